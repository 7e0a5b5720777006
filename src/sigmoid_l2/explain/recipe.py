"""A recipe: one way to compute a gradient, or a step before it, with everything that may be wrong in it."""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sigmoid_l2.explain.differences import Difference, by_differences
from sigmoid_l2.explain.factors import Constant, Sum
from sigmoid_l2.explain.precisions import exact
from sigmoid_l2.explain.products import (
    COMPUTED,
    PRODUCTS,
    RIGHT,
    Added,
    Places,
    Product,
    evaluate,
    factors_of,
    operand,
    operands,
)
from sigmoid_l2.explain.program import Inputs, Precision, Step, Values, Way, errors, run
from sigmoid_l2.explain.steps import STEPS

Array = npt.NDArray[Any]
DType = np.dtype[Any]

ONE = 2  # the cost of one usual mistake
FREE = 5  # the cost of a number that no table has: a factor, or that of what is added

_SIGN = (
    "the opposite sign: the gradient points to where f grows, and ds/dq is s(1 - s), not -s(1 - s) as of 1/(1 + e^q); "
    "take the minus out, which belongs to the step W - rate * dW"
)
_ERROR_SIGN = (
    "the opposite sign: the error is e = s - y, not y - s, and ds/dq is s(1 - s), not -s(1 - s) as of 1/(1 + e^q); "
    "take the minus out, which belongs to the step W - rate * dW"
)


def steps_of(name: str, also: bool = False) -> tuple[Step, ...]:
    """The steps that ``name`` is computed from, itself included, in order; ``also`` those that wrong ways use."""
    names = {{"dW": STEPS[-1].name, "dx": STEPS[-1].name, "loss": "e"}.get(name, name)}
    for step in reversed(STEPS):
        names.update((*step.inputs, *(step.also if also else ())) if step.name in names else ())
    return tuple(step for step in STEPS if step.name in names)


class Recipe(NamedTuple):
    """How ``name`` was computed. All that is not said is right."""

    name: str  # "dW", "dx", "loss" or a step
    product: Product
    sum: Sum
    ways: Mapping[str, Way] = {}  # the wrong ways of the steps
    difference: Difference | None = None  # instead of the steps and the product
    factor: float = 1.0
    constant: Constant | None = None  # what |factor| means, where a table has it
    added: Added | None = None
    by: float = 0.0  # the factor of what is added
    precision: Precision = exact

    @property
    def deviations(self) -> int:
        """The cost of what is wrong but for the factor, what is added, and the precision."""
        ways = sum(way.cost for way in self.ways.values())
        product = self.product.cost * bool(self.product.done)
        return ways + product + ONE * bool(self.sum.done) + ONE * bool(self.difference)

    @property
    def cost(self) -> int:
        """What the search counts for all that is wrong; of two recipes that fit the one of less cost is told."""
        factor = 0
        if self.constant:
            factor = self.constant.cost + ONE * (self.factor < 0)
        elif self.factor != 1:
            factor = ONE if self.factor == -1 else FREE
        return self.deviations + factor + FREE * bool(self.added) + self.precision.cost

    @property
    def free(self) -> int:
        """How many numbers in it are fitted to the given values."""
        factor = self.constant is None and abs(self.factor) != 1
        return int(factor) + int(self.added is not None and not self.added.whole)

    @property
    def only_rounds(self) -> bool:
        """Whether nothing but the precision is wrong."""
        return not self.deviations and self.factor == 1 and not self.added

    def values(self, steps: Values, inputs: Inputs, places: Places | None = None) -> tuple[Array, Array]:
        """The values without the factor, and those of what is added, each flat; ``inputs`` are the pairs of its sum.

        With ``places`` those at some places of each pair alone.
        """
        if self.difference:
            result = by_differences(self.name, self.difference, inputs, steps, places)
        else:
            result = evaluate(self.product.formula, steps, inputs, places)
        added = evaluate(self.added.formula, steps, inputs, places).ravel() if self.added else np.zeros(1)
        return result.ravel(), added

    def error(
        self, steps: Values, inputs: Inputs, precision: Precision, eps: float, places: Places | None = None
    ) -> Array:
        """The largest error of ``values``, flat: that of the steps, and that of the sums."""
        off = errors(steps_of(self.name, also=True), self.ways, inputs, precision, eps)
        sizes = Values(**{k: np.abs(a) if isinstance(a, np.ndarray) else a for k, a in steps.__dict__.items()})
        off = Values(**{**sizes.__dict__, **off.__dict__, "y": np.zeros_like(steps.y)})
        formula = self.product.formula

        rest = (inputs.W.shape[1] + 3 + math.sqrt(inputs.terms)) * eps
        total = rest * evaluate(formula, sizes, inputs, places, _size)
        for k, name in enumerate(factors_of(formula)):  # the error of one factor, times the sizes of the others
            if name in COMPUTED:
                total = total + evaluate(formula, sizes, inputs, places, _with_error(k, off))
        return np.asarray(np.nan_to_num(total).ravel())

    def sentences(self, inputs: Inputs, length: float) -> tuple[str, ...]:
        """What was done, why it is wrong and what is right; ``length`` is that of all given values as one vector."""
        said: list[str] = []

        def say(done: str, why: str, right: str) -> None:
            said.append(f"{done}: {why}; {right}")

        why, line = RIGHT[self.name]
        line += _each(line, inputs)
        if self.product.done:
            say(self.product.done, self.product.why or why, f"write {line}")
        if self.sum.done:
            right = "add up the gradients of the pairs" if inputs.terms > 1 else "give one for each pair"
            what = {"dW": "gradients", "dx": "gradients", "loss": "losses"}.get(self.name, "values")
            say(self.sum.done.format(what=what), self.sum.why, right)
        is_gradient = self.name in ("dW", "dx", "dloss_dq")
        if self.factor != 1 and not is_gradient and (self.name != "e" or self.factor != -1):
            say(f"every value is {self.factor:.5g} times the right one", why, f"write {line}")
        elif self.constant:
            say(self.constant.done, self.constant.why, self.constant.right)
        elif abs(self.factor) != 1 and not (self.added and self.added.whole):
            said.append(_factor_words(self.factor, length))
        if self.factor < 0 and (self.constant or self.factor == -1) and (is_gradient or self.name == "e"):
            said.append(_ERROR_SIGN if inputs.target else _SIGN)
        for step in steps_of(self.name):
            if way := self.ways.get(step.name):
                done = way.done if inputs.target else way.plain or way.done
                say(done, way.why or step.why, f"write {step.line}{_each(step.line, inputs)}")
        if self.added:
            say(self.added.done.format(k=self._added_factor(inputs)), self.added.why, self.added.right)
        if self.difference:
            why = "the error grows with the step, or with its square for central differences"
            say(self.difference.done, why, "use (f(x + h) - f(x - h)) / (2 * h) with h = 1e-5")
        said += self.precision.mistakes
        return tuple(text.replace("{e}", "e" if inputs.target else "s") for text in said)

    def _added_factor(self, inputs: Inputs) -> str:
        assert self.added
        if self.added.whole:
            return _signed(self.factor)
        if operands(self.added.formula) & COMPUTED:
            return _signed(self.by)
        return f"{self.by * inputs.terms:.4g}"  # W or x alone: the product has it once for each pair


def _size(name: str, values: Values) -> Array:
    return np.asarray(np.abs(operand(name, values)))


def _with_error(place: int, off: Values) -> Callable[[str, Values], Array]:
    """The factors of a product, which are asked for in order: that at ``place`` is ``off``."""
    calls = itertools.count()
    return lambda name, values: _size(name, off if next(calls) == place else values)


def _each(line: str, inputs: Inputs) -> str:
    """What a line of NumPy for one pair needs to be right for several."""
    return " for each pair" * (inputs.cells * inputs.terms > 1 and any(word in line for word in ("@", "sum", "outer")))


def _signed(k: float) -> str:
    return f"{'-' if k < 0 else '+'} {abs(k):.4g}"


def _factor_words(factor: float, length: float) -> str:
    if abs(length - 1) < 1e-4:
        return (
            "the gradient is divided by its length, so that its length is 1: f has no such factor; give it as it was "
            "before"
        )
    what = "a step, -rate times the gradient" if factor < 0 else "a learning rate"
    return (
        f"every value is {factor:.5g} times the right one: {what}, or another constant factor; give the gradient "
        "without it"
    )


def eps_of(dtype: DType) -> float:
    """The rounding of the user, and that of the true values."""
    own = 2.0**-7 if dtype.name == "bfloat16" else float(np.finfo(dtype).eps)  # np.finfo does not know bfloat16
    return own + float(np.finfo(np.float64).eps)


def smallest_of(dtype: DType) -> float:
    """The smallest normal number."""
    return float(np.finfo(np.float32 if dtype.name == "bfloat16" else dtype).smallest_normal)


def true_values(name: str, inputs: Inputs, rtol: float, dtype: DType) -> tuple[Array, Array]:
    """The right values of ``name``, flat, and the largest error of values computed in ``dtype``.

    That error is ``rtol`` and what sums in any order and the rounding of each step may lose. Errors below the smallest
    normal number do not count.
    """
    right = Recipe(name, PRODUCTS[name][0], Sum("", lambda pairs: pairs))
    steps = run(steps_of(name, also=True), {}, inputs)
    values, _ = right.values(steps, inputs)
    error = right.error(steps, inputs, exact, eps_of(dtype))
    return values, rtol * np.abs(values) + error + smallest_of(dtype)
