"""Finds the recipe that made wrong values.

Every recipe that deviates from the right one in at most two of its steps, product and sum is computed for a few values.
Those that come near the given values, up to a factor, are compared with all of them; of those that fit, the one of the
least cost is the explanation.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sigmoid_l2.explain.differences import DIFFERENCES, by_differences
from sigmoid_l2.explain.factors import SUMS, Sum, constants
from sigmoid_l2.explain.precisions import exact, wrong_precisions
from sigmoid_l2.explain.products import (
    ADDED,
    PRODUCTS,
    Places,
    Product,
    at_places,
    axis_sizes,
    evaluate,
    places_of,
)
from sigmoid_l2.explain.program import Inputs, run
from sigmoid_l2.explain.programs import Programs, programs
from sigmoid_l2.explain.recipe import FREE, ONE, DType, Recipe, eps_of, smallest_of, steps_of

Array = npt.NDArray[Any]

# The largest accepted probability that a random wrong gradient fits the explanation, or one tried before it.
_CHANCE = 3e-3
# The same for one that is only rounded in its steps.
_CHANCE_OF_ROUNDING = 0.02
# The largest factor that no table has, and one over the smallest.
_MOST_FACTOR = 1e6
# The most deviations of the steps, the product and the sum together; a factor and a precision can come on top.
_MOST_WRONG = 2
# The most values of W and of all programs with two wrong steps, of which there are about so many, for which these are
# computed; of larger problems one deviation is tried. It keeps a W of 2000x2000 below 2 s.
_MOST_VALUES = 5_000_000
_PROGRAMS = 700
# An explanation of this much more cost is told, too, where only this W and x make it give the same numbers.
_MARGIN = 1
# The most explanations that are told as "one of these".
_MOST_SHOWN = 4
# The most sums of which values are compared first.
_FEW_CELLS = 8
# The most places along an axis that are compared first, and then, of a recipe that comes near.
_FEW, _MORE = 8, 40
# The largest deviation of a recipe that is looked at more closely, relative to the largest given value: at least, and
# where rounding makes it larger, at most.
_NEAR, _MOST_NEAR = 1e-3, 0.03
# The probability of a 0 that is where a recipe has one; where a factor is fitted, a 0 says nothing.
_ODDS_OF_ZERO = 0.1
# The most values whose odds are looked at.
_MOST_ODDS = 10_000
# The most values of W whose differences are computed: each takes four exponentials.
_MOST_DIFFERENCES = 100_000
# The most values of W of which others of that size are computed, to see whether two explanations differ there.
_MOST_PROBED = 10_000


class Fit(NamedTuple):
    """A recipe that gives all given values."""

    recipe: Recipe
    deviation: float  # sum over all values
    values: Array
    near: Array  # values closer than this cannot be told apart


class Search:
    """What made the wrong values ``given`` of ``name``, of any size, which are in the order of the pairs of ``inputs``.

    ``true`` are the right ones, ``dtype`` is what the given ones were computed in, ``rtol`` what counts as right.
    """

    def __init__(self, name: str, given: Array, true: Array, inputs: Inputs, rtol: float, dtype: DType) -> None:
        # A large rtol would accept nearly every recipe, and an explanation need not be better than single precision.
        self.rtol, self.eps = min(max(rtol, 1e-5), 1e-3), eps_of(dtype)
        self.name, self.given, self.inputs, self.dtype = name, given.ravel(), inputs, dtype
        self.steps = steps_of(name, also=True)
        self.needed = steps_of(name)
        self.different = len(np.unique(self.given[:: max(1, given.size // _MOST_ODDS)]))
        self.off = np.nan_to_num(np.abs(self.given - true.ravel())) if true.size == self.given.size else np.zeros(0)
        right = run(self.steps, {}, inputs)
        # Of a gradient, which may be differences of the loss.
        loss = inputs.summed((right.e**2).sum(axis=1)) if name in ("dW", "dx") else np.zeros(0)
        c = getattr(right, "c", np.ones(1))
        wrong = wrong_precisions(self.given, true.ravel(), loss, inputs, c, self.eps, self.rtol, dtype)
        self.precisions = [exact, *wrong]
        self.with_others = [precision for precision in self.precisions if not precision.alone]
        # Right values have errors of this size, relative to the largest; wrong ones may have some more.
        # The cells of the largest errors, where there are as many values as there should be.
        self.worst = np.zeros(0, int)
        if self.given.size == true.size > 0:
            off = np.abs(self.given - true.ravel()).reshape(inputs.cells, -1).max(axis=1)
            self.worst = np.argsort(off, kind="stable")[-_FEW_CELLS // 2 :]
        with_error = self._right_error(true)
        largest = float(np.max(np.abs(self.given), initial=0))
        near = largest * min(max(_NEAR, 10 * with_error), _MOST_NEAR)
        for precision in self.with_others:
            near = max(near, largest * _MOST_NEAR * bool(precision.coarse), 3 * precision.coarse)
        self.near = near
        self.compared: dict[tuple[int, ...], tuple[Array, Places]] = {}  # what _few has found
        self.tried: Counter[int] = Counter()  # recipes by the cost of their deviations

    def _right_error(self, true: Array) -> float:
        """The largest error of the right values at a few places, relative to the largest of them."""
        recipe = Recipe(self.name, PRODUCTS[self.name][0], SUMS[0])
        few = self.inputs.at(self._cells(self.inputs))
        steps = run(self.steps, {}, few)
        true = true.reshape(self.inputs.cells, *axis_sizes(recipe.product.formula, steps))[self._cells(self.inputs)]
        places = places_of(true, np.abs(true), _FEW)
        values, _ = recipe.values(steps, few, places)
        allowed = self.rtol * np.abs(values) + recipe.error(steps, few, exact, self.eps, places)
        return float(np.max(allowed, initial=0)) / (float(np.max(np.abs(values), initial=0)) or 1.0)

    def explanation(self) -> tuple[str, ...] | None:
        """The mistakes, a sentence each; () where the values are right, None where nothing known fits."""
        best: list[Fit] = []
        for recipe in sorted(self._candidates(), key=lambda recipe: recipe.cost):
            if best and recipe.cost > best[0].recipe.cost + _MARGIN * (not best[0].recipe.only_rounds):
                break
            if (fit := self._fit(recipe)) is not None:
                best.append(fit)
        if not best:
            return None
        cost = best[0].recipe.cost
        closest = min((fit for fit in best if fit.recipe.cost == cost), key=lambda fit: fit.deviation)
        twins = []  # in the order of their costs, and then of the tables
        for fit in best:
            # What costs more and gives the same for every W and x says the same in more words.
            is_own = fit.recipe.cost == cost or (not fit.recipe.free and self._differ(closest.recipe, fit.recipe))
            if is_own and np.all(np.abs(fit.values - closest.values) <= closest.near):
                twins.append(fit.recipe)
        length = float(np.linalg.norm(self.given))
        said = {recipe.sentences(self.inputs, length): recipe for recipe in twins}
        # One mistake more that changes nothing here is no explanation of its own.
        said = {words: recipe for words, recipe in said.items() if not any(set(words) > set(other) for other in said)}
        return _either(list(said), self._advice(list(said.values())))

    def _advice(self, recipes: Sequence[Recipe]) -> str:
        """How to tell several recipes apart that give the same numbers here."""
        first, others = recipes[0], recipes[1:]
        if any(self._differ(first, other) for other in others):
            return "another W and x can"
        if any(self._differ(first, other, more=1) for other in others):
            m, n = self.inputs.W.shape[1:]
            return f"another shape can, such as m = {m + 1} and n = {n + 1}"
        return "no other W and x can"

    def _differ(self, one: Recipe, other: Recipe, more: int = 0) -> bool:
        """Whether two recipes give other values for random pairs, of ``more`` rows and columns than the given ones."""
        m, n = (size + more for size in self.inputs.W.shape[1:])
        if m * n > _MOST_PROBED:
            return False
        rng = np.random.default_rng(0)
        probe = self.inputs.at(np.zeros(1, int))
        B = len(probe.W)
        y = rng.random((B, m)) if probe.target else np.zeros((B, m))
        W, x = rng.standard_normal((B, m, n)), rng.standard_normal((B, n))
        probe = Inputs.of(W, x, y, probe.target, probe.cells, probe.terms, {})
        sizes = probe._replace(cells=self.inputs.cells)
        known = {constant.place: factor for factor, constant in constants(sizes)}  # 1/m is another number for another m
        values = []
        for recipe in (one, other):
            try:
                pairs = recipe.sum.of(probe)
                result, added = recipe.values(run(self.steps, recipe.ways, pairs), pairs)
            except ValueError:  # for these pairs only one of the two exists
                return True
            factor = math.copysign(known[recipe.constant.place], recipe.factor) if recipe.constant else recipe.factor
            values.append(factor * result + recipe.by * added)
        return values[0].shape != values[1].shape or not np.allclose(values[0], values[1], rtol=1e-6)

    def _candidates(self) -> Iterator[Recipe]:
        """The recipes that come near a few of the given values, with the factors and precisions that they may have."""
        for own_sum in SUMS:
            try:
                pairs = own_sum.of(self.inputs)
            except ValueError:  # there are no such pairs
                continue
            few = pairs.at(self._cells(pairs))
            products = self._products(pairs)
            is_small = few.W.size + _PROGRAMS * few.y.size <= _MOST_VALUES
            most = _MOST_WRONG if is_small else 1
            for found in programs(self.steps, self.needed, few, most) if products else ():
                for product in products:
                    recipe = Recipe(self.name, product, own_sum)
                    yield from self._with_programs(recipe, found, most, pairs, few)
            yield from self._differences(own_sum, pairs)

    def _products(self, pairs: Inputs) -> list[Product]:
        """The products that have as many values as were given."""
        one = run(self.steps, {}, pairs.at(np.zeros(1, int)))
        found = []
        for product in PRODUCTS[self.name]:
            try:
                if self.given.size == pairs.cells * math.prod(axis_sizes(product.formula, one)):
                    found.append(product)
            except ValueError:  # there is no such product of these pairs
                continue
        return found

    def _with_programs(
        self, recipe: Recipe, found: Programs, most: int, pairs: Inputs, few: Inputs
    ) -> Iterator[Recipe]:
        """The programs, with the product and the sum of ``recipe``, and up to ``most`` deviations."""
        deviations = bool(recipe.product.done) + bool(recipe.sum.done)
        tried = found.first(most - deviations)
        if not tried.ways:
            return
        try:
            given, places = self._few(pairs, axis_sizes(recipe.product.formula, tried.values), _FEW)
            values = evaluate(recipe.product.formula, tried.values, few, places).reshape(-1, given.size)
        except ValueError:  # there is no such product of these programs
            return
        self.tried.update((tried.costs + recipe.deviations).tolist())
        for k in near_multiples(given, values, self.near):
            yield from self._with_factors(recipe._replace(ways=tried.ways[k]), given, values[k])
        if not deviations:
            if not tried.ways[0]:
                yield from (recipe._replace(precision=precision) for precision in self.precisions)
            yield from self._with_additions(recipe, tried.first(1), few, given, places)

    def _cells(self, pairs: Inputs) -> Array:
        """The numbers of the sums that are compared first: the worst, and others."""
        worst = self.worst if pairs.cells == self.inputs.cells else ()
        return np.unique([*worst, *range(min(pairs.cells, _FEW_CELLS - len(worst)))])

    def _few(self, pairs: Inputs, sizes: Sequence[int], count: int) -> tuple[Array, Places]:
        """The given values that are compared first, flat, and their places; ValueError where there are others."""
        key = (pairs.cells, *sizes, count)
        if key not in self.compared:
            if self.given.size != pairs.cells * math.prod(sizes):
                raise ValueError("another number of values")
            cells = self._cells(pairs)
            given = self.given.reshape(pairs.cells, *sizes)[cells]
            has_off = self.off.size == self.given.size
            places = places_of(given, self.off.reshape(-1, *sizes)[cells] if has_off else np.abs(given), count)
            self.compared[key] = at_places(given, places).ravel(), places
        return self.compared[key]

    def _with_factors(self, recipe: Recipe, given: Array, values: Array, free: bool = True) -> Iterator[Recipe]:
        """The recipe with each known factor near the one that fits best and, if it is ``free``, with that one."""
        best = multiple(given, values)
        for precision in self.with_others:
            for factor, constant in [(1.0, None), *constants(self.inputs)]:
                if abs(abs(best) - factor) <= 0.1 * factor:
                    yield recipe._replace(precision=precision, factor=math.copysign(factor, best), constant=constant)
            if free and given.size > 1 and 1 / _MOST_FACTOR < abs(best) < _MOST_FACTOR:
                yield recipe._replace(precision=precision, factor=best)

    def _with_additions(
        self, recipe: Recipe, found: Programs, few: Inputs, given: Array, places: Places
    ) -> Iterator[Recipe]:
        """The programs, and something added to their gradients."""
        if given.size < 3 or not np.isfinite(given).all():
            return
        values = evaluate(recipe.product.formula, found.values, few, places).reshape(-1, given.size)
        for added in ADDED.get(self.name, ()):
            self.tried.update((found.costs + FREE).tolist())
            more = evaluate(added.formula, found.values, few, places).reshape(-1, given.size)
            more = np.broadcast_to(more, values.shape)
            factors, bys = _two_multiples(given, values, more)
            off = np.abs(factors[:, None] * values + bys[:, None] * more - given).max(axis=1)
            for k in np.flatnonzero(off <= self.near).tolist():
                factor, by = float(factors[k]), float(bys[k])
                near = recipe._replace(ways=found.ways[k], added=added, factor=factor, by=by)
                for precision in self.with_others:
                    if added.whole and abs(by * few.terms - 1) < 0.1:
                        yield near._replace(by=1 / few.terms, precision=precision)
                    for known, constant in [(1.0, None), *constants(self.inputs)] if not added.whole else ():
                        if abs(abs(factor) - known) <= 0.1 * known:
                            signed = math.copysign(known, factor)
                            yield near._replace(factor=signed, constant=constant, precision=precision)

    def _differences(self, own_sum: Sum, pairs: Inputs) -> Iterator[Recipe]:
        few = pairs.at(self._cells(pairs))
        sizes = {"dW": pairs.W.shape[1:], "dx": pairs.W.shape[2:]}.get(self.name)
        if sizes is None or few.W.size > _MOST_DIFFERENCES or self.given.size != pairs.cells * math.prod(sizes):
            return
        given, places = self._few(pairs, sizes, _FEW)
        right = run(self.steps, {}, few)
        for difference in DIFFERENCES:
            self.tried[ONE] += 1
            values = by_differences(self.name, difference, few, right, places).ravel()
            if list(near_multiples(given, values[None], self.near)):
                recipe = Recipe(self.name, PRODUCTS[self.name][0], own_sum, difference=difference)
                yield from self._with_factors(recipe, given, values, free=False)

    def _fit(self, recipe: Recipe) -> Fit | None:
        """Compare all given values with a recipe; None where it does not fit, or would fit too much else."""
        pairs = recipe.sum.of(self.inputs)
        if self._numbers(recipe, pairs) <= 0 and not recipe.only_rounds:
            return None
        few = pairs.at(self._cells(pairs))
        sizes = axis_sizes(recipe.product.formula, run(self.steps, recipe.ways, few))
        given, places = self._few(pairs, sizes, _MORE)
        if given.size < self.given.size and self._compare(recipe, few, given, math.inf, places) is None:
            return None
        return self._compare(recipe, pairs, self.given, _CHANCE / self._tried(recipe))

    def _tried(self, recipe: Recipe) -> int:
        """How many recipes were tried that cost no more than this one."""
        recipes = sum(count for cost, count in self.tried.items() if cost <= recipe.deviations) or 1
        if recipe.factor == 1:
            return recipes
        known = [constant for _, constant in constants(self.inputs)]
        place = known.index(recipe.constant) + 1 if recipe.constant else len(known)
        return recipes * 2 * place  # with either sign, and after the factors before it in the table

    def _compare(
        self, recipe: Recipe, pairs: Inputs, given: Array, chance: float, places: Places | None = None
    ) -> Fit | None:
        steps = run(self.steps, recipe.ways, pairs)
        values, added = recipe.values(steps, pairs, places)
        factor, by = recipe.factor, recipe.by
        if recipe.added and not recipe.added.whole:
            by = multiple(given - factor * values, added)
        elif recipe.free:
            factor = multiple(given - by * added, values)
        recipe = recipe._replace(factor=factor, by=by)
        result = factor * values + by * added
        size = np.abs(factor * values) + np.abs(by * added)
        smallest = smallest_of(self.dtype)
        near = self.rtol * size + abs(factor) * recipe.error(steps, pairs, exact, self.eps, places) + smallest
        tolerance = near
        if recipe.precision is not exact:
            rounded = recipe.precision.last(result)
            tolerance = near + abs(factor) * recipe.error(steps, pairs, recipe.precision, self.eps, places) + rounded
            near = near + rounded
        deviation = np.abs(given - result)
        off = ~(deviation <= tolerance)
        if off.any():
            same = (given == result) | (np.isnan(given) & np.isnan(result))
            if np.any(off & ~same):
                return None
            deviation[same] = 0
        fit = Fit(recipe, float(deviation.sum()), result, near)
        if recipe.only_rounds:
            # That only the precision is wrong can be said of the rounded truth in any case, and of what rounding in the
            # steps may have made where not nearly anything may be that.
            precision = recipe.precision
            is_certain = precision.certain or bool(
                np.all(deviation <= 0.92 * precision.last(result) + self.rtol * size)
            )
            chance = _CHANCE_OF_ROUNDING if math.isfinite(chance) else chance
            return (
                fit if is_certain or self._odds(recipe, pairs, given, result, tolerance) <= math.log(chance) else None
            )
        return fit if self._odds(recipe, pairs, given, result, tolerance) <= math.log(chance) else None

    def _odds(self, recipe: Recipe, pairs: Inputs, given: Array, result: Array, tolerance: Array) -> float:
        """The logarithm of the probability that random values would fit as well; 0 where nothing can be said.

        A random value of a size fits with the probability tolerance / size. Each independent number is held to the
        tightest of the values that it makes, so the tighter half counts.
        """
        every = max(1, given.size // _MOST_ODDS)
        size, limit = np.maximum(np.abs(given), np.abs(result))[::every], tolerance[::every]
        zero = _ODDS_OF_ZERO if recipe.free == 0 else 1.0
        odds = np.log(np.minimum(np.divide(limit, size, out=np.full_like(size, zero), where=size > 0), 1))
        numbers = self._numbers(recipe, pairs)
        if recipe.free:
            numbers = int((numbers + recipe.free) * np.mean(size > 0)) - recipe.free
        return float(np.sort(odds)[: (odds.size + 1) // 2].mean() * numbers) if odds.size and numbers > 0 else 0.0

    def _numbers(self, recipe: Recipe, pairs: Inputs) -> int:
        """How many of the given numbers are independent, and not used up by what is fitted.

        These are the g_i of a pair or, where a pair's gradient has fewer values, those; a sum over pairs has no more.
        Equal values are one number.
        """
        numbers = int(pairs.cells * min(pairs.W.shape[1], self.given.size // pairs.cells))
        return min(numbers, self.different) - recipe.free


def multiple(given: Array, values: Array) -> float:
    """The factor k with which k ``values`` comes nearest to ``given``."""
    scale = float(np.abs(values).max(initial=0)) or 1.0
    values = values / scale
    return float(given @ values / (values @ values or 1.0)) / scale


def _two_multiples(given: Array, values: Array, more: Array) -> tuple[Array, Array]:
    """For each row k the two factors with which values[k] and more[k] come nearest to ``given`` together."""
    with np.errstate(all="ignore"):
        vv, mm, vm = (np.einsum("kn,kn->k", a, b) for a, b in ((values, values), (more, more), (values, more)))
        vg, mg = values @ given, more @ given
        det = vv * mm - vm * vm
        return (vg * mm - mg * vm) / det, (mg * vv - vg * vm) / det


def near_multiples(given: Array, values: Array, near: float) -> Iterator[int]:
    """The rows of ``values`` of which a multiple is within ``near`` of ``given``."""
    with np.errstate(all="ignore"):
        unit = values / np.abs(values).max(axis=1, keepdims=True)
        factors = unit @ given / np.einsum("kn,kn->k", unit, unit)
        off = np.abs(factors[:, None] * unit - given).max(axis=1, initial=0)
    return iter(np.flatnonzero((off <= near) & (factors != 0)).tolist())


def _either(explanations: Sequence[tuple[str, ...]], advice: str) -> tuple[str, ...]:
    """One explanation; of several equally good ones the mistakes in all of them, and one sentence with the others."""
    first = explanations[0]
    if len(explanations) == 1:
        return first
    common = [mistake for mistake in first if all(mistake in other for other in explanations)]
    rest = ["; and ".join(m for m in explanation if m not in common) for explanation in explanations]
    hidden = len(rest) - _MOST_SHOWN
    shown = " | ".join(rest[:_MOST_SHOWN]) + (f" | or {hidden} others" if hidden > 0 else "")
    return (*common, f"one of these, which this W and x cannot tell apart ({advice}): {shown}")
