"""A program for the gradients as people write it, step by step: each step taken in a right way or in a wrong one.

``run`` computes what such a program computes, in float64, and ``errors`` bounds what rounding does to it.
"""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Values = SimpleNamespace  # the inputs and all steps that are computed so far, each (B, m) but W (B, m, n), x (B, n)


class Way(NamedTuple):
    """One way to take a step: what was done, in the words of the formula, and the step's value.

    {e} in a text is the error: e where there is a target, else s.
    """

    done: str  # empty for the right way
    of: Callable[[Values], Any]
    why: str = ""  # why it is wrong, where that is not what the step says
    cost: int = 2  # what the search counts for it: 2 for what people do often, 3 for the rest
    plain: str = ""  # what was done, where there is no target, if that is better said in another way


class Step(NamedTuple):
    """A step of the computation, and the ways in which people take it; the first is right."""

    name: str
    inputs: tuple[str, ...]  # the steps that it is computed from, in the right way
    why: str  # the rule that a wrong way breaks
    line: str  # the right line of NumPy
    ways: tuple[Way, ...]
    also: tuple[str, ...] = ()  # what wrong ways use besides


class Inputs(NamedTuple):
    """Pairs in float64: ``cells`` sums, each of ``terms`` neighbouring pairs that share an input.

    ``given`` has the steps that the user's own program computed, which stand in the place of the computed ones.
    """

    W: Array  # (B, m, n)
    x: Array  # (B, n)
    y: Array  # (B, m)     0 without a target
    q: Array  # (B, m)     W x
    q_size: Array  # (B, m)     sum over j of |W_ij x_j|, which the error of q is relative to
    target: bool
    cells: int
    terms: int
    given: Mapping[str, Array]  # each (B, m)

    @classmethod
    def of(
        cls, W: Array, x: Array, y: Array, target: bool, cells: int, terms: int, given: Mapping[str, Array]
    ) -> "Inputs":
        q, q_size = np.einsum("bij,bj->bi", W, x), np.einsum("bij,bj->bi", np.abs(W), np.abs(x))
        return cls(W, x, y, q, q_size, target, cells, terms, given)

    def take(self, pairs: Any, cells: int, terms: int) -> "Inputs":
        """The pairs of an index, as so many cells and terms."""
        given = {name: a[pairs] for name, a in self.given.items()}
        W, x, y, q, q_size = (a[pairs] for a in (self.W, self.x, self.y, self.q, self.q_size))
        return Inputs(W, x, y, q, q_size, self.target, cells, terms, given)

    def at(self, cells: Array) -> "Inputs":
        """Some of the cells, by their numbers, in order."""
        if len(cells) == self.cells:
            return self
        pairs = (cells[:, None] * self.terms + np.arange(self.terms)).ravel()
        return self.take(pairs, len(cells), self.terms)

    def summed(self, a: Array) -> Array:
        """The sum of ``a`` (B, ...) over the pairs of each cell: (cells, ...)."""
        return a if self.terms == 1 else a.reshape(self.cells, self.terms, *a.shape[1:]).sum(axis=1)


Ways = Mapping[str, Way]


def only(condition: bool, a: Any) -> Any:
    """``a``, where a way exists; ValueError elsewhere."""
    if not condition:
        raise ValueError("this way does not exist for these shapes or without a target")
    return a


def start(inputs: Inputs) -> Values:
    """The values before the first step."""
    m, n = inputs.W.shape[1:]
    arrays: dict[str, Any] = dict(W=inputs.W, x=inputs.x, y=inputs.y, right_q=inputs.q, q_size=inputs.q_size)
    return Values(**arrays, target=inputs.target, m=m, n=n, cells=inputs.cells, terms=inputs.terms)


def take(step: Step, way: Way, values: Values, inputs: Inputs) -> Values:
    """The values after one more step; ValueError where its shapes do not broadcast, as in the user's program.

    The values may be those of several programs, with an axis of programs in front of the others: (programs, B, m).
    """
    values = Values(**values.__dict__)
    result = inputs.given[step.name] if step.name in inputs.given else way.of(values)
    if step.name == "s":  # 1 - s comes with it, where it can be had without a subtraction
        values.s, values.c = result if isinstance(result, tuple) else (result, 1 - result)
        return values
    shape = (*result.shape[:-2], *inputs.y.shape)
    values.__dict__[step.name] = result if result.shape == shape else np.broadcast_to(result, shape)
    return values


def run(steps: Sequence[Step], ways: Ways, inputs: Inputs) -> Values:
    """The values of all ``steps``, each taken in its way of ``ways``, or in the right one."""
    values = start(inputs)
    for step in steps:
        values = take(step, ways.get(step.name, step.ways[0]), values, inputs)
    return values


class Precision(NamedTuple):
    """How a program rounds: its mistakes, if that is one, and the error of a step's value."""

    mistakes: tuple[str, ...]
    error: Callable[[str, Values, float], Array]  # of the step by that name; the float is eps of the dtype
    last: Callable[[Array], Array]  # the error of the result, from its values
    complement: bool  # whether 1 - s has an error of its own; else it moves with s
    cost: int = 0
    coarse: float = 0.0  # the error of values of the size 1, about
    alone: bool = False  # whether it is looked for only where nothing else is wrong
    certain: bool = True  # whether values that it explains need not be told from chance


def errors(steps: Sequence[Step], ways: Ways, inputs: Inputs, precision: Precision, eps: float) -> Values:
    """The largest error of each step: its own, and what the errors of the steps before it cause, to first order."""
    values = run(steps, ways, inputs)
    names = [step.name for step in steps] + ["c"] * (precision.complement and hasattr(values, "c"))
    own = {name: precision.error(name, values, eps) for name in names}
    # Large enough a step that the difference is not rounding of our own, small enough to be first order.
    step_of = {name: np.maximum(own[name], 1e-6 * np.abs(getattr(values, name)) + 1e-300) for name in names}
    # Of as many programs as there are names each moves one of them, and computes what comes after it.
    moved = start(inputs)
    shape = (len(names), *inputs.y.shape)
    for step in steps:
        moved = take(step, ways.get(step.name, step.ways[0]), moved, inputs)
        for name in (step.name, "c") if step.name == "s" else (step.name,):
            here = np.array(np.broadcast_to(getattr(moved, name), shape))
            if name in names:
                here[names.index(name)] += step_of[name]
            elif name == "c":
                here[names.index("s")] -= step_of["s"]
            moved.__dict__[name] = here
    slopes = np.stack([own[name] / step_of[name] for name in names])
    total = {
        name: np.einsum("kbm,kbm->bm", np.abs(getattr(moved, name) - getattr(values, name)), slopes)
        for name in (*names, "c")
        if hasattr(values, name)
    }
    return Values(**total)
