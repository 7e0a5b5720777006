"""``check_grad``: is a gradient written by hand right, and if not, how is it wrong?"""

from __future__ import annotations  # help() then shows the name of a type

import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sigmoid_l2.arguments import broadcast_axes
from sigmoid_l2.explain.mistakes import name_mistakes
from sigmoid_l2.explain.recipes import Pairs, true_gradient
from sigmoid_l2.problem import Problem, on_host, validate

Array = npt.NDArray[Any]

_WIDTH = 100  # columns of the printed report
_SMALL = 36  # true gradients of up to this many values are printed


@dataclass(frozen=True, eq=False, repr=False)
class ArrayCheck:
    """What ``check_grad`` found out about one gradient; ``print`` it for the report.

    Attributes
    ----------
    name : str
        "dW" or "dx".
    ok : bool
        Whether the shape and all values are right.
    shape, expected_shape : tuple of int
        The shape of the given gradient, and that of its input.
    wrong : int, or None
        The number of wrong values. None where the shapes differ, as the next four.
    index : tuple of int, or None
        The place of the worst value: the one whose error is the largest multiple of its tolerance.
    max_relative_error : float, or None
        That of the worst value; inf where the true one is 0 or the given one is not finite.
    given_value, true_value : float, or None
        The worst value, and what it should be.
    mistakes : tuple of str
        What is wrong and how to correct it; empty where no known mistake explains it.
    true : array, of the expected shape
        The true gradient, in float64.

    Examples
    --------
    >>> import numpy as np, sigmoid_l2 as sl2
    >>> W, x = np.zeros((2, 2)), np.ones(2)
    >>> check = sl2.check_grad(W, x, dW=np.full((2, 2), 0.5)).dW
    >>> check.ok, check.wrong, check.given_value, check.true_value
    (False, 4, 0.5, 0.25)
    """

    name: str
    ok: bool
    shape: tuple[int, ...]
    expected_shape: tuple[int, ...]
    wrong: int | None
    max_relative_error: float | None
    index: tuple[int, ...] | None
    given_value: float | None
    true_value: float | None
    mistakes: tuple[str, ...]
    true: Array

    def __str__(self) -> str:
        return "\n".join(self._lines())

    __repr__ = __str__  # what the REPL shows

    def _lines(self) -> Iterator[str]:
        if self.ok:
            yield f"{self.name}: right"
            return
        yield f"{self.name}: WRONG"
        if self.wrong:
            values = f"given {self.given_value:.6g}, true {self.true_value:.6g}"
            worst = f"the worst at {self.index}: {values}, relative error {self.max_relative_error:.2g}"
            yield _wrap("  ", f"{self.wrong} of {self.true.size} values; {worst}")
        for mistake in self.mistakes:
            yield _wrap("  - ", mistake)
        if not self.mistakes:
            yield _wrap(
                "  ",
                "No known mistake explains it. Check values that are not rounded, and compare each of your steps with "
                "those that trace prints for the same arguments.",
            )
        if self.true.size <= _SMALL:
            yield f"  the true {self.name}:"
            yield textwrap.indent(np.array2string(self.true, precision=6, max_line_width=_WIDTH - 6), "      ")


def _wrap(indent: str, text: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=indent, subsequent_indent=" " * len(indent))


@dataclass(frozen=True, eq=False, repr=False)
class GradCheck:
    """What ``check_grad`` returns: true where every given gradient is right; ``print`` it for the report.

    Attributes
    ----------
    dW, dx : ArrayCheck, or None
        What was found out about each gradient; None for one that was not given.
    ok : bool
        Whether every gradient that was given is right; ``bool(check)`` is the same.

    Examples
    --------
    >>> import numpy as np, sigmoid_l2 as sl2
    >>> check = sl2.check_grad(np.zeros((2, 2)), np.ones(2), dW=np.full((2, 2), 0.25))
    >>> check.ok, check.dx
    (True, None)
    >>> print(check)
    dW: right
    """

    dW: ArrayCheck | None
    dx: ArrayCheck | None

    @property
    def ok(self) -> bool:
        """Whether every gradient that was given is right."""
        return all(check.ok for check in (self.dW, self.dx) if check is not None)

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        return "\n".join(str(check) for check in (self.dW, self.dx) if check is not None)

    __repr__ = __str__


def check_grad(
    W: Any,
    x: Any,
    target: Any = None,
    *,
    dW: Any = None,
    dx: Any = None,
    rtol: float | None = None,
    atol: float = 0.0,
) -> GradCheck:
    """Say whether gradients of f(W, x) = ||sigmoid(W x) - y||^2 are right and, if not, which mistakes made them.

    The true gradient is computed in float64. A value is right if its error is at most ``rtol`` times the true value,
    plus ``atol``, plus what rounding in the given array's own dtype may cause: as much as the accuracy contract of this
    library allows, and 4 eps of the largest true value, which other formulas lose where 1 - s is small.

    Parameters
    ----------
    W : array (..., m, n)
    x : array (..., n) or (..., n, 1)
    target : array (..., m), or what broadcasts to it, such as a number; optional
        y, which is 0 by default. Where x is given as columns, also (..., m, 1). The leading shapes of W, x and target
        are the same, or broadcast; the gradient of what several pairs share is the sum over these pairs.
    dW : array of W's shape, optional
    dx : array of x's shape, optional
        The gradients to check, at least one of them. A wrong shape is reported and raises nothing.
        All five are NumPy or CuPy arrays, or array-likes, of floats, integers or bool.
    rtol : float, optional
        The relative error that still counts as right; by default 1e-5, for float32 3.5e-4, for float16 0.03.
    atol : float
        The absolute error that still counts as right. For a gradient by central differences give about 1e-9.

    Returns
    -------
    GradCheck
        True where every given gradient is right. ``print`` it to read what is wrong, and how to correct it.

    Raises
    ------
    TypeError
        W, x and target in different places; a dtype that is complex or not numeric.
    ValueError
        Shapes of W, x and target that do not fit; neither dW nor dx given; rtol or atol negative or not finite.

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
    if dW is None and dx is None:
        raise ValueError("nothing to check: give dW=..., dx=... or both")
    for name, tolerance in (("rtol", rtol), ("atol", atol)):
        if tolerance is not None and not 0 <= tolerance < math.inf:
            raise ValueError(f"{name} must be at least 0 and finite, not {tolerance}")
    with np.errstate(all="ignore"):
        return GradCheck(
            None if dW is None else _check("dW", dW, problem, rtol, atol),
            None if dx is None else _check("dx", dx, problem, rtol, atol),
        )


def _pairs(name: str, problem: Problem) -> Pairs:
    """The pairs of the problem, in such an order that those whose terms of the gradient are added are neighbours."""
    batch, m, n = problem.batch, problem.m, problem.n
    summed = broadcast_axes(problem.W, (m, n), batch) if name == "dW" else broadcast_axes(problem.x, (n,), batch)
    order = [*(k for k in range(len(batch)) if k not in summed), *summed]
    terms = math.prod(batch[k] for k in summed)
    cells = math.prod(batch[k] for k in order[: len(batch) - len(summed)])

    def flat(a: Any, *pair: int) -> Array:
        full = np.broadcast_to(problem.on_host(a), (*batch, *pair)).astype(np.float64)
        return full.transpose(*order, *range(len(batch), full.ndim)).reshape(cells * terms, *pair)

    y = None if problem.target is None else flat(problem.target, m)
    return Pairs.of(flat(problem.W, m, n), flat(problem.x, n), y, cells, terms)


def _check(name: str, a: Any, problem: Problem, rtol: float | None, atol: float) -> ArrayCheck:
    pairs, shape = _pairs(name, problem), problem.shapes[name]
    given: Array = np.asarray(on_host(name, a))
    dtype = given.dtype if given.dtype.kind == "f" else np.dtype(np.float64)
    is_bfloat16 = given.dtype.name == "bfloat16"  # for which np.finfo has no numbers
    given = given.astype(np.float64)
    eps = 2.0**-7 if is_bfloat16 else float(np.finfo(dtype).eps)
    if rtol is None:
        rtol = max(1e-5, eps**0.5)
    values, allowed = (v.reshape(shape) for v in true_gradient(name, pairs, rtol, dtype))
    largest = float(np.max(np.abs(values), initial=0, where=np.isfinite(values)))
    allowed = allowed + atol + 4 * eps * largest
    ok, wrong, error, index = False, None, None, None
    if given.shape == shape:
        same = np.isclose(given, values, rtol=0, atol=0, equal_nan=True)
        difference = np.where(same, 0, np.abs(given - values))
        beyond = np.where(same, 0, np.nan_to_num(difference / allowed, nan=np.inf, posinf=np.inf))
        wrong = int((beyond > 1).sum())
        ok = wrong == 0
        if given.size:
            index = tuple(int(i) for i in np.unravel_index(np.argmax(beyond), shape))
            relative = difference[index] / np.abs(values[index])
            error = 0.0 if same[index] else float(np.nan_to_num(relative, nan=np.inf, posinf=np.inf))
    return ArrayCheck(
        name=name,
        ok=ok,
        shape=given.shape,
        expected_shape=shape,
        wrong=wrong,
        max_relative_error=error,
        index=index,
        given_value=None if index is None else float(given[index]),
        true_value=None if index is None else float(values[index]),
        mistakes=() if ok else name_mistakes(name, given, values, pairs, rtol, dtype),
        true=values,
    )
