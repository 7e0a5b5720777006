"""Finds the mistakes that made a wrong gradient, or a wrong step before it.

Every recipe of recipes.py that deviates from the right one in at most two of its tables is computed for a few values.
Those that come near the given values, up to a factor, are compared with all of them; of those that fit, the one with the
least cost is the explanation.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sigmoid_l2.explain import recipes
from sigmoid_l2.explain.precisions import exact, wrong_precisions
from sigmoid_l2.explain.program import Inputs, Precision, Step, Values, Way, errors, run, start, take
from sigmoid_l2.explain.recipes import (
    ADDED,
    DIFFERENCES,
    PRODUCTS,
    RIGHT,
    STEPS,
    SUMS,
    Added,
    Constant,
    Difference,
    Product,
    Sum,
    by_differences,
    constants,
    operand,
)

Array = npt.NDArray[Any]
DType = np.dtype[Any]

# The largest accepted probability that a random wrong gradient fits the explanation, or one tried before it.
_CHANCE = 1e-2
# The most deviations of the program, the product and the sum together; a factor and a precision can come on top.
_MOST_WRONG = 2
_ONE = 2  # the cost of one usual mistake
_FREE = 5  # the cost of a factor that no table has
# What is compared first: so many sums, and so many places along each axis of their values.
_FEW_CELLS = 8
_FEW_PLACES = 8
# The largest deviation of a recipe that is looked at more closely, relative to the largest given value.
_NEAR = 0.03
# An explanation of this much more cost is told, too, where only this W and x make it give the same numbers.
_MARGIN = 1
_MOST_SHOWN = 4  # explanations that give the same numbers and are told
# The most values of a pair of which others of its kind are computed, to see whether two explanations differ there.
_MOST_PROBED = 10_000
# The most values whose odds are looked at.
_MOST_ODDS = 10_000
# The most values of a problem whose differences are computed: each takes four exponentials.
_MOST_DIFFERENCES = 100_000


class Recipe(NamedTuple):
    """One way to compute the given values, and what it costs."""

    ways: dict[str, Way]  # the wrong ways of the program
    product: Product
    sum: Sum
    difference: Difference | None = None

    @property
    def cost(self) -> int:
        own = sum(way.cost for way in self.ways.values())
        return own + self.product.cost * bool(self.product.done) + _ONE * bool(self.sum.done) + _ONE * bool(self.difference)


class Fit(NamedTuple):
    """A recipe with a factor and a precision that gives the values in question."""

    recipe: Recipe
    factor: float
    constant: Constant | None  # the meaning of |factor|, if that is not 1
    added: Added | None
    by: float  # the factor of what was added
    precision: Precision
    deviation: float = 0.0
    values: Array = np.zeros(0)
    near: Array = np.zeros(0)  # values closer than this cannot be told apart

    @property
    def is_known(self) -> bool:
        """Whether no number in it is free."""
        return not self.added and (self.constant is not None or abs(self.factor) == 1)

    @property
    def cost(self) -> int:
        cost = self.recipe.cost + self.precision.cost + _FREE * bool(self.added)
        if self.constant:
            return cost + self.constant.cost + _ONE * (self.factor < 0)
        return cost + (0 if self.factor == 1 else _ONE if self.factor == -1 else _FREE)


def steps_of(name: str) -> tuple[Step, ...]:
    """The steps that ``name`` is computed from, itself included, in order."""
    needed = {"dW": STEPS[-1].name, "dx": STEPS[-1].name, "loss": "e"}.get(name, name)
    names = {needed}
    for step in reversed(STEPS):
        names.update(step.inputs if step.name in names else ())
    return tuple(step for step in STEPS if step.name in names)


def programs(steps: Sequence[Step], inputs: Inputs) -> list[tuple[dict[str, Way], Values]]:
    """All programs with up to _MOST_WRONG wrong ways, and their values; the right one first, then by their number.

    A step that the user gave, and the steps before it, have no wrong ways: what they did is in what was given.
    """
    done = {step.name for step in steps if step.name in inputs.given}
    for step in reversed(steps):
        done.update(step.inputs if step.name in done else ())
    found: list[tuple[dict[str, Way], Values]] = [({}, start(inputs))]
    for step in steps:
        after = []
        for ways, values in found:
            for way in step.ways[: 1 if step.name in done or len(ways) == _MOST_WRONG else None]:
                try:
                    taken = {**ways, step.name: way} if way.done else ways
                    after.append((taken, take(step, way, values, inputs)))
                except ValueError:  # this way does not exist here
                    continue
        found = after
    return sorted(found, key=lambda program: len(program[0]))


def _stack(found: Sequence[tuple[dict[str, Way], Values]]) -> Values:
    """The values of several programs as one, with an axis of programs in front of the steps'."""
    first = found[0][1]
    own = {name for name in (*(step.name for step in STEPS), "c") if hasattr(first, name)}
    stacked = {name: np.stack([getattr(values, name) for _, values in found]) for name in own}
    return Values(**{**first.__dict__, **stacked})


def evaluate(formula: str, values: Values, inputs: Inputs, few: bool = False, sizes: bool = False, of: Any = operand) -> Any:
    """The values of a product, (cells, ...), or (programs, cells, ...); ValueError where the shapes do not fit.

    ``few`` computes a few places of each axis alone. ``sizes``: the sizes of the axes of one cell come back, too.
    """
    out, _, factors = formula.partition(" = ")
    arrays, letters = [], []
    for factor in factors.split():
        name, _, axes = factor.rpartition("_")
        a = of(name, values)
        letters.append("Pb"[2 - (a.ndim - len(axes)) :] + axes)
        arrays.append(a)
    axis_sizes = [max(a.shape[l.index(k)] for a, l in zip(arrays, letters, strict=True) if k in l) for k in out]
    if few:
        for k, size in zip(out, axis_sizes, strict=True):
            if size > _FEW_PLACES:
                places = few_places(size)
                arrays = [
                    np.take(a, places, axis=l.index(k)) if k in l and a.shape[l.index(k)] == size else a
                    for a, l in zip(arrays, letters, strict=True)
                ]
    programs = "P" * any("P" in l for l in letters)
    result = np.einsum(f"{','.join(letters)}->{programs}b{out}", *arrays, optimize=len(arrays) > 1)
    if inputs.terms > 1:
        at = len(programs)
        shape = result.shape
        result = result.reshape(*shape[:at], inputs.cells, inputs.terms, *shape[at + 1 :]).sum(axis=at + 1)
    return (result, axis_sizes) if sizes else result


def operands(formula: str) -> set[str]:
    """The names of a product's factors."""
    return {factor.rpartition("_")[0] for factor in formula.partition(" = ")[2].split()}


def few_places(size: int) -> Array:
    return np.unique(np.linspace(0, size - 1, _FEW_PLACES).astype(int))


class Search:
    """What made the values ``given`` of ``name``; they are in the order of the pairs of ``inputs``, of any size."""

    def __init__(self, name: str, given: Array, true: Array, inputs: Inputs, rtol: float, dtype: DType) -> None:
        # A large rtol would accept nearly every recipe, and an explanation need not be better than single precision.
        self.name, self.given, self.inputs, self.dtype = name, given.ravel(), inputs, dtype
        self.rtol, self.eps = min(max(rtol, 1e-5), 1e-3), eps_of(dtype)
        self.steps = steps_of(name)
        right = run(self.steps, {}, inputs)
        loss = inputs.summed((right.e**2).sum(axis=1)) if hasattr(right, "e") else np.zeros(0)
        c = getattr(right, "c", np.ones(1))
        wrong = wrong_precisions(self.given, true.ravel(), loss, inputs, c, self.eps, self.rtol, dtype)
        self.precisions = [exact, *wrong]
        self.largest = float(np.max(np.abs(self.given), initial=0))
        self.near = max(_NEAR * self.largest, *(3 * precision.coarse for precision in self.precisions))
        self.tried: Counter[int] = Counter()  # recipes by their cost

    def explanation(self) -> tuple[str, ...] | None:
        """The mistakes, a sentence each; () where the values are right, None where nothing known fits."""
        best: list[Fit] = []
        for candidate in sorted(self._candidates(), key=lambda fit: fit.cost):
            if best and candidate.cost > best[0].cost + _MARGIN * bool(best[0].recipe.cost or best[0].constant):
                break
            if (fit := self._fit(candidate)) is not None:
                best.append(fit)
        if not best:
            return None
        closest = min((fit for fit in best if fit.cost == best[0].cost), key=lambda fit: fit.deviation)
        twins = [fit for fit in best if np.all(np.abs(fit.values - closest.values) <= closest.near)]
        # What costs more and gives the same for every W and x says the same in more words.
        twins = [fit for fit in twins if fit.cost == closest.cost or (fit.is_known and self._differ(closest, fit, more=0))]
        distinct = {self._words(fit): fit for fit in (closest, *twins)}
        # One mistake more that changes nothing here is no explanation of its own.
        distinct = {words: fit for words, fit in distinct.items() if not any(set(words) > set(other) for other in distinct)}
        return either(list(distinct), self._advice(list(distinct.values())))

    def _advice(self, fits: Sequence[Fit]) -> str:
        """How to tell several explanations apart that give the same numbers here."""
        if any(self._differ(fits[0], other, more=0) for other in fits[1:]):
            return "another W and x can"
        if any(self._differ(fits[0], other, more=1) for other in fits[1:]):
            m, n = self.inputs.W.shape[1:]
            return f"another shape can, such as m = {m + 1} and n = {n + 1}"
        return "no other W and x can"

    def _differ(self, one: Fit, other: Fit, more: int) -> bool:
        """Whether two fits give other values for random pairs, with ``more`` rows and columns than the given ones."""
        rng = np.random.default_rng(0)
        m, n = (size + more for size in self.inputs.W.shape[1:])
        if m * n > _MOST_PROBED:
            return False
        probe = self.inputs.first(2) if self.inputs.terms < 100 else self.inputs.first(1)
        B = len(probe.W)
        y = rng.random((B, m)) if probe.target else np.zeros((B, m))
        probe = probe._replace(W=rng.standard_normal((B, m, n)), x=rng.standard_normal((B, n)), y=y, given={})
        values = []
        for fit in (one, other):
            try:
                pairs = fit.recipe.sum.of(probe)
                steps = run(self.steps, fit.recipe.ways, pairs)
                result, more_values = self._result(fit, pairs, steps)
            except ValueError:
                return True
            factor = fit.factor
            if fit.constant and more:  # 1/m is another number where m is
                known = {constant.place: k for k, constant in constants(probe._replace(cells=self.inputs.cells, terms=self.inputs.terms))}
                factor = math.copysign(known[fit.constant.place], factor)
            values.append(factor * result + fit.by * more_values)
        return values[0].shape != values[1].shape or not np.allclose(*values, rtol=1e-6)

    def _candidates(self) -> Iterator[Fit]:
        """Every recipe that comes near a few of the given values, with the factors and precisions that it may have."""
        for world in SUMS:
            try:
                whole = world.of(self.inputs)
            except ValueError:
                continue
            few = whole.first(_FEW_CELLS)
            found = programs(self.steps, few)
            wrong = np.array([len(ways) for ways, _ in found])
            costs = np.array([sum(way.cost for way in ways.values()) for ways, _ in found])
            stack = _stack(found)
            for product in PRODUCTS[self.name]:
                deviations = bool(product.done) + bool(world.done)
                allowed = int(np.sum(wrong <= _MOST_WRONG - deviations))
                part = Values(**{k: a[:allowed] if k in _STACKED else a for k, a in stack.__dict__.items()})
                try:
                    values, sizes = evaluate(product.formula, part, few, few=True, sizes=True)
                except ValueError:
                    continue
                own = Recipe({}, product, world).cost
                self.tried.update((costs[:allowed] + own).tolist())
                given = self._few(whole, sizes)
                if given is None:
                    continue
                values = values.reshape(-1, given.size)
                for k in near_multiples(given, values, self.near):
                    yield from self._with_factors(Recipe(found[k][0], product, world), given, values[k])
                if deviations == 0:
                    one_wrong = int(np.sum(wrong <= 1))
                    yield from self._with_additions(found[:one_wrong], product, few, given, values)
                    yield from (self._candidate(found[0][0], product, world, precision) for precision in self.precisions)
            yield from self._differences(world, whole)

    def _few(self, whole: Inputs, sizes: Sequence[int]) -> Array | None:
        """The given values at the few places that are compared first; None where their number is another."""
        if self.given.size != whole.cells * math.prod(sizes):
            return None
        given = self.given.reshape(whole.cells, *sizes)[:_FEW_CELLS]
        for axis, size in enumerate(sizes, 1):
            if size > _FEW_PLACES:
                given = np.take(given, few_places(size), axis=axis)
        return given.ravel()

    def _candidate(self, ways: dict[str, Way], product: Product, world: Sum, precision: Precision) -> Fit:
        return Fit(Recipe(ways, product, world), 1.0, None, None, 0.0, precision)

    def _with_factors(self, recipe: Recipe, given: Array, values: Array, free: bool = True) -> Iterator[Fit]:
        """The recipe with each known factor near the one that fits best and, if it is ``free``, with that one."""
        best = multiple(given, values)
        for precision in self.precisions:
            fit = Fit(recipe, 1.0, None, None, 0.0, precision)
            for factor, constant in [(1.0, None), *constants(self.inputs)]:
                if abs(abs(best) - factor) <= 0.1 * factor:
                    yield fit._replace(factor=math.copysign(factor, best), constant=constant)
            if free and given.size > 1:
                yield fit._replace(factor=best)

    def _with_additions(
        self, found: Sequence[tuple[dict[str, Way], Values]], product: Product, few: Inputs, given: Array, values: Array
    ) -> Iterator[Fit]:
        for added in ADDED.get(self.name, ()):
            is_computed = bool(_COMPUTED & operands(added.formula))
            more = None
            for (ways, own), value in zip(found, values, strict=False):
                self.tried[_FREE + sum(way.cost for way in ways.values())] += 1
                if is_computed or more is None:
                    more = evaluate(added.formula, own, few, few=True).ravel()
                both = np.stack([value, more])
                if given.size < 3 or not (np.isfinite(both).all() and np.isfinite(given).all()):
                    continue
                (factor, by), *_ = np.linalg.lstsq(both.T, given, rcond=None)
                if np.abs(factor * value + by * more - given).max() > self.near:
                    continue
                for precision in self.precisions:
                    fit = Fit(Recipe(ways, product, SUMS[0]), factor, None, added, by, precision)
                    if added.whole and abs(by * few.terms - 1) < 0.1:
                        yield fit._replace(by=1 / few.terms)
                    elif not added.whole:
                        for known, constant in [(1.0, None), *constants(self.inputs)]:
                            if abs(abs(factor) - known) <= 0.1 * known:
                                yield fit._replace(factor=math.copysign(known, factor), constant=constant)

    def _differences(self, world: Sum, whole: Inputs) -> Iterator[Fit]:
        if self.name not in ("dW", "dx") or self.given.size != whole.cells * math.prod(whole.W.shape[1 if self.name == "dW" else 2 :]):
            return
        few = whole.first(_FEW_CELLS)
        if few.W.size > _MOST_DIFFERENCES:
            return
        right = run(self.steps, {}, few)
        given = self.given[: self.given.size // whole.cells * few.cells]
        for difference in DIFFERENCES:
            self.tried[_ONE] += 1
            values = by_differences(self.name, difference, few, right).ravel()
            if list(near_multiples(given, values[None], self.near)):
                recipe = Recipe({}, PRODUCTS[self.name][0], world, difference)
                yield from self._with_factors(recipe, given, values, free=False)

    def _fit(self, candidate: Fit) -> Fit | None:
        """Compare all given values with a candidate; None where it does not fit, or would fit too much else."""
        whole = candidate.recipe.sum.of(self.inputs)
        few = whole.first(_FEW_CELLS)
        if few.cells < whole.cells:
            part = self.given.reshape(whole.cells, -1)[: few.cells].ravel()
            if self._compare(candidate, few, part, math.inf) is None:
                return None
        return self._compare(candidate, whole, self.given, _CHANCE / self._tried(candidate))

    def _tried(self, candidate: Fit) -> int:
        recipes = sum(count for cost, count in self.tried.items() if cost <= candidate.recipe.cost) or 1
        if candidate.factor == 1:
            return recipes
        known = [constant for _, constant in constants(self.inputs)]
        place = known.index(candidate.constant) + 1 if candidate.constant else len(known)
        return recipes * 2 * place  # with either sign, and after the factors before it in the table

    def _compare(self, candidate: Fit, inputs: Inputs, given: Array, chance: float) -> Fit | None:
        recipe, precision = candidate.recipe, candidate.precision
        try:
            values = run(self.steps, recipe.ways, inputs)
            exact_values, more = self._result(candidate, inputs, values)
        except ValueError:
            return None
        if exact_values.size != given.size:
            return None
        factor, by = candidate.factor, candidate.by
        if candidate.added and not candidate.added.whole:
            by = multiple(given - factor * exact_values, more)
        elif candidate.added or (candidate.constant is None and abs(factor) != 1):
            factor = multiple(given - by * more, exact_values)
        product = candidate.recipe.product.formula
        near = self._error(product, values, inputs, recipe.ways, exact)
        total = self._error(product, values, inputs, recipe.ways, precision) if precision is not exact else near
        result = factor * exact_values + by * more
        size = np.abs(factor * exact_values) + np.abs(by * more)
        near = self.rtol * size + abs(factor) * near.ravel() + float(np.finfo(self.dtype).smallest_normal)
        tolerance = near + abs(factor) * total.ravel() + precision.last(result)
        deviation = np.abs(given - result)
        off = ~(deviation <= tolerance)
        if off.any():
            same = (given == result) | (np.isnan(given) & np.isnan(result))
            if np.any(off & ~same):
                return None
            deviation[same] = 0
        fit = candidate._replace(factor=factor, by=by, deviation=float(deviation.sum()), values=result, near=near + precision.last(result))
        if not recipe.cost and candidate.factor == 1 and not candidate.added:
            return fit  # only the precision is wrong: that can be said of the values in any case
        # A random value of this size fits with the probability tolerance / size. Only a few numbers are independent: the
        # g_i of a pair or, where a pair's gradient has fewer values, those values; a sum over pairs has no more.
        every = max(1, given.size // _MOST_ODDS)
        size, limit = np.maximum(np.abs(given), np.abs(result))[::every], tolerance[::every]
        # Each is held to the tightest of the values that it makes, so the tighter half counts.
        odds = np.sort(np.log(np.minimum(limit[size > 0] / size[size > 0], 1)))
        odds = odds[: (odds.size + 1) // 2]
        free = (candidate.constant is None and abs(candidate.factor) != 1) + bool(candidate.added)
        numbers = inputs.cells * min(inputs.W.shape[1], given.size // inputs.cells) - free
        return fit if odds.size and odds.mean() * numbers <= math.log(chance) else None

    def _result(self, fit: Fit, inputs: Inputs, values: Values) -> tuple[Array, Array]:
        """The values of a recipe, without its factor, and those of what is added."""
        recipe = fit.recipe
        if recipe.difference:
            result = by_differences(self.name, recipe.difference, inputs, values)
        else:
            result = evaluate(recipe.product.formula, values, inputs)
        return result.ravel(), evaluate(fit.added.formula, values, inputs).ravel() if fit.added else np.zeros(1)

    def _error(self, formula: str, values: Values, inputs: Inputs, ways: dict[str, Way], precision: Precision) -> Array:
        """The largest error of a product, from those of its factors and of its sums."""
        found = errors(self.steps, ways, inputs, precision, self.eps)
        sizes = Values(**{k: np.abs(a) if isinstance(a, np.ndarray) else a for k, a in values.__dict__.items()})
        off = Values(**{**sizes.__dict__, **found.__dict__, "y": np.zeros_like(values.y)})
        rest = (inputs.W.shape[1] + 3 + math.sqrt(inputs.terms)) * self.eps
        total = rest * np.abs(evaluate(formula, sizes, inputs, of=_size))
        for k, factor in enumerate(formula.partition(" = ")[2].split()):
            if factor.rpartition("_")[0] in _COMPUTED:
                names = iter(range(99))
                part = evaluate(formula, sizes, inputs, of=lambda name, v: np.abs(operand(name, off)) if next(names) == k else _size(name, v))
                total = total + part
        return np.asarray(np.nan_to_num(total))

    def _factor_words(self, factor: float) -> str:
        if abs(float(np.linalg.norm(self.given)) - 1) < 1e-4:
            return "the gradient is divided by its length, so that its length is 1: f has no such factor; leave it as it is"
        what = "a step, -rate times the gradient" if factor < 0 else "a learning rate"
        return f"every value is {factor:.5g} times the right one: {what}, or another constant factor; give the gradient without it"

    def _words(self, fit: Fit) -> tuple[str, ...]:
        """What a fit did, a sentence each."""
        recipe, sentences = fit.recipe, []

        def say(done: str, why: str, right: str) -> None:
            sentences.append(f"{done}: {why}; {right}")

        why, line = RIGHT[self.name]
        if recipe.product.done:
            say(recipe.product.done, recipe.product.why or why, f"write {line}")
        if recipe.sum.done:
            say(recipe.sum.done, recipe.sum.why, "add up the gradients of the pairs" if self.inputs.terms > 1 else "give one gradient for each pair")
        if fit.constant:
            say(*fit.constant[:3])
        elif abs(fit.factor) != 1 and not (fit.added and fit.added.whole):
            sentences.append(self._factor_words(fit.factor))
        if fit.factor < 0 and (fit.constant or fit.factor == -1):
            sentences.append(_ERROR_SIGN if self.inputs.target else _SIGN)
        for step in self.steps:
            if way := recipe.ways.get(step.name):
                say(way.done if self.inputs.target else way.plain or way.done, way.why or step.why, f"write {step.line}")
        if fit.added:
            # What is of W or x alone is added once, and the product is summed over the pairs.
            is_shared = not _COMPUTED & operands(fit.added.formula)
            k = fit.factor if fit.added.whole else fit.by * (self.inputs.terms if is_shared else 1)
            say(fit.added.done.format(k=f"{k:.4g}" if is_shared and not fit.added.whole else f"{'-' if k < 0 else '+'} {abs(k):.4g}"), fit.added.why, fit.added.right)
        if recipe.difference:
            say(recipe.difference.done, "the error grows with the step, or with its square for central differences", "use (f(x + h) - f(x - h)) / (2 * h) with h = 1e-5")
        sentences += fit.precision.mistakes
        return tuple(text.replace("{e}", "e" if self.inputs.target else "s") for text in sentences)


_SIGN = "the opposite sign: the gradient points to where f grows; take the minus out, which belongs to the step W - rate * dW"
_ERROR_SIGN = "the opposite sign: the error is e = s - y, not y - s, and no minus stands in front; take the minus out, which belongs to the step W - rate * dW"
_STACKED = {*(step.name for step in STEPS), "c"}
_COMPUTED = {*(step.name for step in STEPS), "g", "E", "last_g", "all_g"}


def _size(name: str, values: Values) -> Array:
    return np.abs(operand(name, values))


def multiple(given: Array, values: Array) -> float:
    """The factor k with which k ``values`` comes nearest to ``given``."""
    scale = float(np.abs(values).max(initial=0)) or 1.0
    values = values / scale
    return float(given @ values / (values @ values or 1.0)) / scale


def near_multiples(given: Array, values: Array, near: float) -> Iterator[int]:
    """The rows of ``values`` of which a multiple is within ``near`` of ``given``."""
    with np.errstate(all="ignore"):
        scale = np.abs(values).max(axis=1, keepdims=True)
        unit = values / scale
        factors = unit @ given / np.einsum("kn,kn->k", unit, unit)
        off = np.abs(factors[:, None] * unit - given).max(axis=1, initial=0)
    return iter(np.flatnonzero((off <= near) & (factors != 0)).tolist())


def either(explanations: Sequence[tuple[str, ...]], advice: str) -> tuple[str, ...]:
    """One explanation; of several equally good ones the mistakes in all of them, and one sentence with the others."""
    first = explanations[0]
    if len(explanations) == 1:
        return first
    common = [mistake for mistake in first if all(mistake in other for other in explanations)]
    rest = ["; and ".join(m for m in explanation if m not in common) for explanation in explanations]
    shown = " | ".join(rest[:_MOST_SHOWN]) + (f" | or {len(rest) - _MOST_SHOWN} others" if len(rest) > _MOST_SHOWN else "")
    return (*common, f"one of these, which this W and x cannot tell apart ({advice}): {shown}")


def eps_of(dtype: DType) -> float:
    return float(np.finfo(dtype).eps) + float(np.finfo(np.float64).eps)  # of the user, and of the true values


def true_values(name: str, inputs: Inputs, rtol: float, dtype: DType) -> tuple[Array, Array]:
    """The right values of ``name``, (cells, ...), and the largest error of values computed in ``dtype``."""
    search = Search(name, np.zeros(0), np.zeros(0), inputs, rtol, dtype)
    search.rtol = rtol
    values = run(search.steps, {}, inputs)
    formula = PRODUCTS[name][0].formula
    result = np.asarray(evaluate(formula, values, inputs))
    error = search._error(formula, values, inputs, {}, exact)
    return result, rtol * np.abs(result) + error + float(np.finfo(dtype).smallest_normal)
