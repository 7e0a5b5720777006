"""``check_grad``: is a gradient written by hand right, and if not, how is it wrong?"""

from __future__ import annotations  # help() then shows the name of a type

import math
import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sigmoid_l2.arguments import broadcast_axes
from sigmoid_l2.explain.facts import facts, same_g, where_to_look
from sigmoid_l2.explain.mistakes import name_mistakes
from sigmoid_l2.explain.program import Inputs
from sigmoid_l2.explain.recipe import eps_of, steps_of, true_values
from sigmoid_l2.explain.report import ArrayCheck, GradCheck
from sigmoid_l2.explain.steps import STEPS
from sigmoid_l2.explain.trace import trace
from sigmoid_l2.problem import Problem, on_host, validate

Array = npt.NDArray[Any]

# What can be checked, in the order of the computation.
_NAMES = ("q", "s", "e", "loss", "dloss_ds", "ds_dq", "dloss_dq", "dW", "dx")


def check_grad(
    W: Any,
    x: Any,
    target: Any = None,
    *,
    q: Any = None,
    s: Any = None,
    e: Any = None,
    loss: Any = None,
    dloss_ds: Any = None,
    ds_dq: Any = None,
    dloss_dq: Any = None,
    dW: Any = None,
    dx: Any = None,
    rtol: float | None = None,
    atol: float = 0.0,
) -> GradCheck:
    """Say whether gradients of f(W, x) = ||sigmoid(W x) - y||^2 are right and, if not, which mistakes made them.

    The true gradient is computed in float64. A value is right if its error is at most ``rtol`` times the true value,
    plus ``atol``, plus what rounding in the given array's own dtype may cause: as much as the accuracy contract of this
    library allows, and 4 eps of the largest true value, which other formulas lose where 1 - s is small. A float64 array
    counts as float32 where W and x are, because lists of float32 numbers come as float64.

    Parameters
    ----------
    W : array (..., m, n)
    x : array (..., n) or (..., n, 1)
    target : array (..., m), or what broadcasts to it, such as a number; optional
        y, which is 0 by default. Where x is given as columns, also (..., m, 1). The leading shapes of W, x and target
        are the same, or broadcast; the gradient of what several pairs share is the sum over these pairs.
    q, s, e, dloss_ds, ds_dq, dloss_dq : array (..., m), optional
        Steps of your own, by the names that ``trace`` prints: q = W x, s = sigmoid(q), e = s - y (only with a target),
        dloss_ds = 2e, or 2s without a target, ds_dq = s (1 - s), dloss_dq = dloss_ds * ds_dq. As columns (..., m, 1)
        where x is. The report names the first wrong one; later ones are held to what follows from yours, too.
    loss : array (...), optional
    dW : array of W's shape, optional
    dx : array of x's shape, optional
        What to check, at least one of them all. A wrong shape is reported and raises nothing.
        All arrays are NumPy or CuPy arrays, or array-likes, of floats, integers or bool.
    rtol : float, optional
        The relative error that still counts as right; by default 1e-5, for float32 3.5e-4, for float16 0.03.
    atol : float
        The absolute error that still counts as right. For a gradient by central differences give about 1e-9.

    Returns
    -------
    GradCheck
        True where all that was given is right. ``print`` it to read what is wrong, and how to correct it.

    Raises
    ------
    TypeError
        W, x and target in different places; a dtype that is complex or not numeric; rtol or atol that is no number.
    ValueError
        Shapes of W, x and target that do not fit; nothing given to check; e without a target; rtol or atol negative or
        not finite.

    Examples
    --------
    >>> import numpy as np, sigmoid_l2 as sl2
    >>> W, x, g = np.zeros((2, 3)), np.ones(3), np.full(2, 0.25)
    >>> bool(sl2.check_grad(W, x, dW=np.outer(g, x)))
    True
    >>> print(sl2.check_grad(W, x, dW=np.outer(x, g)))  # doctest: +ELLIPSIS
    dW: WRONG
      - wrong shape (3, 2) instead of (2, 3)...
    """
    problem = validate(W, x, target)
    given = dict(q=q, s=s, e=e, loss=loss, dloss_ds=dloss_ds, ds_dq=ds_dq, dloss_dq=dloss_dq, dW=dW, dx=dx)
    given = {name: a for name, a in given.items() if a is not None}
    if not given:
        raise ValueError("nothing to check: give dW=..., dx=..., or steps before them such as s=...")
    if e is not None and target is None:
        raise ValueError("e = s - y is a step only where there is a target; without one s stands in its place")
    for name, tolerance in (("rtol", rtol), ("atol", atol)):
        if not isinstance(tolerance, numbers.Real) and not (name == "rtol" and tolerance is None):
            raise TypeError(f"{name} must be a number, not {type(tolerance).__name__}")
        if tolerance is not None and not 0 <= tolerance < math.inf:
            raise ValueError(f"{name} must be at least 0 and finite, not {tolerance}")
    with np.errstate(all="ignore"):
        checks: list[ArrayCheck] = []
        before: dict[str, Array] = {}  # steps of the user's own, (*batch, m)
        for name, a in given.items():
            array: Array = np.asarray(on_host(name, a))
            check = _check(name, array, problem, before, checks, rtol, atol)
            checks.append(check)
            if name in _STEP_NAMES and check.shape == check.expected_shape:
                before[name] = check.given.reshape(*problem.batch, problem.m)
        return GradCheck(tuple(checks), trace(W, x, target))


_STEP_NAMES = {step.name for step in STEPS}


def _inputs(name: str, problem: Problem, before: dict[str, Array]) -> tuple[Inputs, list[int], tuple[int, ...]]:
    """The pairs of the problem, in such an order that those whose terms of ``name`` are added are neighbours.

    Also the order of the batch's axes, and the sizes of those that are not summed.
    """
    batch, m, n = problem.batch, problem.m, problem.n
    summed: tuple[int, ...] = ()
    if name in ("dW", "dx"):
        summed = broadcast_axes(problem.W, (m, n), batch) if name == "dW" else broadcast_axes(problem.x, (n,), batch)
    order = [*(k for k in range(len(batch)) if k not in summed), *summed]
    terms = math.prod(batch[k] for k in summed)
    kept = tuple(batch[k] for k in order[: len(batch) - len(summed)])
    cells = math.prod(kept)

    def flat(a: Any, *pair: int) -> Array:
        full = np.broadcast_to(problem.on_host(a), (*batch, *pair)).astype(np.float64)
        return full.transpose(*order, *range(len(batch), full.ndim)).reshape(cells * terms, *pair)

    has_target = problem.target is not None
    y = flat(problem.target, m) if has_target else np.zeros((cells * terms, m))
    steps = {step: flat(a, m) for step, a in before.items()}
    inputs = Inputs.of(flat(problem.W, m, n), flat(problem.x, n), y, has_target, cells, terms, steps)
    return inputs, order, kept


def _shape(name: str, problem: Problem) -> tuple[int, ...]:
    return problem.shapes["dq" if name in _STEP_NAMES else name]


class _Truth(NamedTuple):
    """What an array should be, computed from W, x and y or from steps of the user's own."""

    inputs: Inputs
    order: list[int]  # of the batch's axes in ``inputs``
    kept: tuple[int, ...]  # the sizes of those that are not summed
    values: Array
    allowed: Array  # the largest error that is right

    def beyond(self, given: Array) -> tuple[Array, Array]:
        """The errors of ``given`` as multiples of what is allowed, and the errors."""
        same = (given == self.values) | (np.isnan(given) & np.isnan(self.values))
        error = np.where(same, 0, np.abs(given - self.values))
        return np.where(same, 0, np.nan_to_num(error / self.allowed, nan=np.inf, posinf=np.inf)), error


class _Tolerance(NamedTuple):
    """Which errors of an array are right."""

    rtol: float
    atol: float
    dtype: np.dtype[Any]  # that it was computed in


def _tolerance(a: Array, problem: Problem, rtol: float | None, atol: float) -> _Tolerance:
    # Numbers computed in float32 may be given as float64, as those of a list are.
    is_float = a.dtype.kind == "f" or a.dtype.name == "bfloat16"
    dtype = a.dtype if is_float and a.dtype != np.float64 else problem.computed
    return _Tolerance(max(1e-5, eps_of(dtype) ** 0.5) if rtol is None else rtol, atol, dtype)


def _truth(name: str, problem: Problem, own: dict[str, Array], tolerance: _Tolerance) -> _Truth:
    inputs, order, kept = _inputs(name, problem, own)
    rtol, atol, dtype = tolerance
    values, allowed = (a.reshape(_shape(name, problem)) for a in true_values(name, inputs, rtol, dtype))
    largest = float(np.max(np.abs(values), initial=0, where=np.isfinite(values)))
    return _Truth(inputs, order, kept, values, allowed + atol + 4 * eps_of(dtype) * largest)


def _check(
    name: str,
    a: Array,
    problem: Problem,
    own: dict[str, Array],
    checks: Sequence[ArrayCheck],
    rtol: float | None,
    atol: float,
) -> ArrayCheck:
    """Check one array: ``own`` are the steps before it that were given, ``checks`` what was found out about them."""
    given = a.astype(np.float64)
    tolerance = _tolerance(a, problem, rtol, atol)
    truth = _truth(name, problem, {}, tolerance)
    found: dict[str, Any] = dict(wrong=None, index=None, max_relative_error=None, given_value=None, true_value=None)
    if given.shape == truth.values.shape:
        beyond, error = truth.beyond(given)
        found["wrong"] = int((beyond > 1).sum())
        if given.size:
            index = tuple(int(i) for i in np.unravel_index(np.argmax(beyond), given.shape))
            relative = float(np.nan_to_num(error[index] / np.abs(truth.values[index]), nan=np.inf, posinf=np.inf))
            found |= dict(index=index, max_relative_error=relative if beyond[index] else 0.0)
            found |= dict(given_value=float(given[index]), true_value=float(truth.values[index]))
    ok = found["wrong"] == 0
    # The last wrong step that this one is computed from, and that is not wrong because of another one alone.
    needed = {step.name for step in steps_of(name)}
    wrong = [check.name for check in checks if not check.ok and check.follows is None and check.name in needed]
    first = wrong[-1] if wrong else None
    mine = truth if ok or not own else _truth(name, problem, own, tolerance)
    follows = None
    if not ok and first is not None and given.shape == mine.values.shape and np.all(mine.beyond(given)[0] <= 1):
        follows = first
    mistakes: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    if not ok and follows is None:
        mistakes = _mistakes(name, given, problem, mine, tolerance)
        known = () if mistakes else _known(name, given, mine, checks)
    return ArrayCheck(
        name=name,
        ok=ok,
        shape=given.shape,
        expected_shape=truth.values.shape,
        **found,
        mistakes=mistakes,
        known=known,
        follows=follows,
        given=given,
        true=truth.values,
        column=problem.column and name not in ("loss", "dW"),
    )


def _mistakes(name: str, given: Array, problem: Problem, truth: _Truth, tolerance: _Tolerance) -> tuple[str, ...]:
    """The mistakes in a wrong array."""
    shape = truth.values.shape
    if given.shape != shape and _is_the_other(name, given, problem, tolerance):
        return (f"wrong shape {given.shape} instead of {shape}: this is {_OTHER[name]}; dW and dx are swapped",)
    wrong = truth.beyond(given)[0] > 1 if given.shape == shape else None
    ordered, kept = _in_order(given, problem, truth.order), truth.kept
    rtol, _, dtype = tolerance
    return name_mistakes(name, ordered, truth.values, wrong, truth.inputs, rtol, dtype, lambda cell: _place(cell, kept))


def _known(name: str, given: Array, truth: _Truth, checks: Sequence[ArrayCheck]) -> tuple[str, ...]:
    """What is known of a wrong array that no known mistake explains, and where to look."""
    if not np.isfinite(truth.values).all():
        return ("W, x or the target holds NaN or infinity, and so do the right values",)
    if truth.inputs.terms == 0:
        return ("there are no pairs, so every value is 0",)
    found = facts(name, given, truth.values, truth.allowed, truth.inputs)
    dW = next((check for check in checks if check.name == "dW" and not check.ok), None)
    if name == "dx" and dW is not None and given.shape == truth.values.shape:
        found += same_g(dW.given, given, truth.inputs)
    right = [check.name for check in checks if check.ok]
    return (*found, where_to_look(name, right, [check.name for check in checks], truth.inputs.target))


_OTHER = {"dW": "dx", "dx": "dW"}


def _is_the_other(name: str, given: Array, problem: Problem, tolerance: _Tolerance) -> bool:
    """Whether what was given as dW is dx, or as dx is dW."""
    if name not in _OTHER or given.shape != _shape(_OTHER[name], problem):
        return False
    return bool(np.all(_truth(_OTHER[name], problem, {}, tolerance).beyond(given)[0] <= 1))


def _in_order(given: Array, problem: Problem, order: list[int]) -> Array:
    """``given``, with the axes of its batch in the order of the pairs, where it has all of them."""
    batch = problem.batch
    if given.ndim < len(batch) or given.shape[: len(batch)] != batch or order == sorted(order):
        return given
    return given.transpose(*order, *range(len(batch), given.ndim))


def _place(cell: int, sizes: tuple[int, ...]) -> str:
    """The index of a sum among those of its batch."""
    index = tuple(int(k) for k in np.unravel_index(cell, sizes))
    return str(index[0] if len(index) == 1 else index)
