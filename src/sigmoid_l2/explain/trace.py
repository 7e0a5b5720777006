"""``trace``: every step from W and x to the gradients, by name, with formula, shape and values."""

from __future__ import annotations  # help() then shows the name of a type

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sigmoid_l2.kernels.reference import sigmoid_and_complement
from sigmoid_l2.problem import validate

Array = npt.NDArray[Any]

_WIDTH = 80  # columns of the printed trace

# Each step: name, axes, formula, and what the formula means for one element. A string alone is a heading. {e} is the
# error: e where there is a target, else s. Steps whose array a trace does not have are left out.
STEPS: tuple[str | tuple[str, str, str, str], ...] = (
    "Given",
    ("W", "mn", "", ""),
    ("x", "n", "", ""),
    ("y", "m", "", ""),
    "Forward: from W and x to the loss",
    ("q", "m", "W x", "q_i = sum over j of W_ij x_j"),
    ("s", "m", "sigmoid(q)", "s_i = 1 / (1 + exp(-q_i))"),
    ("e", "m", "s - y", "the error, or residual: e_i = s_i - y_i, in this order"),
    ("loss", "", "||{e}||²", "the sum over i of {e}_i²: one number"),
    "Backward: from the loss to W and x, by the chain rule",
    ("dloss_ds", "m", "2 {e}", "because the loss is the sum of the {e}_i²"),
    ("ds_dq", "m", "s (1 - s)", "element by element, because s_i depends on q_i alone"),
    ("dloss_dq", "m", "dloss_ds · ds_dq", "g for short: g_i = 2 {e}_i · s_i (1 - s_i), each factor once"),
    ("dW", "mn", "g xᵀ", "dW_ij = g_i x_j: an outer product, the shape of W"),
    ("dx", "n", "Wᵀ g", "dx_j = sum over i of W_ij g_i: a matrix product, the shape of x"),
)

_WHY = (
    "Why dW is an outer product: W_ij enters q_i alone, multiplied by x_j, so it gets g_i times x_j; that is one "
    "value for each i and j.",
    "Why dx is a matrix product: x_j enters every q_i, multiplied by W_ij, so it gets the sum over i of all its "
    "W_ij g_i. An elementwise product sums nothing, and so does not have the shape of x.",
)


@dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """Every intermediate of f(W, x) = ||sigmoid(W x) - y||^2 and its gradients; ``print`` it to read it.

    All are NumPy arrays of one dtype, and belong to the trace alone. Where x is given as columns (..., n, 1), the
    vectors are columns too: (..., m, 1) for (..., m), (..., n, 1) for (..., n).

    Attributes
    ----------
    W, x : array (..., m, n), array (..., n)
        What was given, in the dtype of the trace.
    y : array (..., m), or None
        The target; None without one.
    q, s : array (..., m)
        q = W x, and s = sigmoid(q).
    e : array (..., m), or None
        The error s - y. Without a target it is None, and s stands in its place below.
    loss : array (...)
        The sum of e**2 over m.
    dloss_ds, ds_dq, dloss_dq : array (..., m)
        2 e, s (1 - s), and their product g.
    dW : array, of the shape of W
        The outer product g x^T, summed over the pairs that share W.
    dx : array, of the shape of x
        The matrix product W^T g, summed over the pairs that share x.

    Examples
    --------
    >>> import sigmoid_l2 as sl2
    >>> steps = sl2.trace([[0.0, 0.0]], [1.0, 2.0], target=[1.0])
    >>> steps.q, steps.s, steps.e, steps.loss
    (array([0.]), array([0.5]), array([-0.5]), array(0.25))
    >>> steps.dW
    array([[-0.25, -0.5 ]])
    """

    W: Array
    x: Array
    y: Array | None
    q: Array
    s: Array
    e: Array | None
    loss: Array
    dloss_ds: Array
    ds_dq: Array
    dloss_dq: Array
    dW: Array
    dx: Array

    def __str__(self) -> str:
        return "\n".join(short for line in self._lines() for short in _fit(line))

    __repr__ = __str__  # what the REPL shows

    def _repr_html_(self) -> str:
        from sigmoid_l2.explain import html  # which needs this module

        return html.fragment(self)

    def _lines(self) -> Iterator[str]:
        e, minus_y = ("s", "") if self.e is None else ("e", " - y")
        yield from _titled(f"f(W, x) = ||sigmoid(W x){minus_y}||²", str(self.loss.dtype))
        for step in STEPS:
            if isinstance(step, str):
                yield from ("", step, "-" * len(step))
                continue
            name, axes, formula, meaning = step
            array: Array | None = getattr(self, name)
            if array is None:
                continue
            yield ""
            yield from _titled(
                f"  {name} = {formula.format(e=e)}" if formula else f"  {name}", self._shape(axes, array)
            )
            if meaning:
                yield f"      {meaning.format(e=e)}"
            if name in ("dW", "dx") and self._batch(axes, array) != self.loss.shape:
                yield f"      summed over the pairs that share {name[1]}"
            # A batch of matrices gets long, so fewer values are shown along each axis.
            edge = max(1, min(3, 5 - array.ndim))
            values = np.array2string(
                array, precision=6, suppress_small=False, max_line_width=_WIDTH - 6, threshold=100, edgeitems=edge
            )
            yield from textwrap.indent(values, "      ").splitlines()
        yield ""
        for reason in _WHY:
            yield from textwrap.wrap(reason, _WIDTH, subsequent_indent="  ")

    def _pair_axes(self, axes: str) -> list[str]:
        """The letters of the axes of one pair: those of a column have a 1."""
        column = len(axes) == 1 and self.q.ndim == self.loss.ndim + 2
        return [*axes, *["1"] * column]

    def _batch(self, axes: str, array: Array) -> tuple[int, ...]:
        """The batch shape of ``array``."""
        return array.shape[: array.ndim - len(self._pair_axes(axes))]

    def _shape(self, axes: str, array: Array) -> str:
        """The shape in letters and in numbers, as in (m, n) = (3, 3)."""
        batch = ["..."] * bool(self._batch(axes, array))
        letters = batch + self._pair_axes(axes)
        comma = "," if len(letters) == 1 and not batch else ""
        return f"({', '.join(letters)}{comma}) = {array.shape}" if letters else str(array.shape)


def trace(W: Any, x: Any, target: Any = None) -> Trace:
    """Compute every step from W and x to the gradients, to learn them and to debug a program step by step.

    Parameters
    ----------
    W : array (..., m, n)
        Array of NumPy, PyTorch, JAX or on a CUDA device (copied to the host), or array-like; float16, bfloat16,
        float32, float64, integers or bool.
    x : array (..., n) or (..., n, 1)
        The leading (batch) shapes of W, x and target are the same, or broadcast by NumPy's rules.
    target : array (..., m), or what broadcasts to it, such as a number; optional
        y of the loss ||sigmoid(W x) - y||^2. Where x is given as columns, also (..., m, 1).

    Returns
    -------
    Trace
        NumPy arrays in the common dtype of W and x (float64 for integers and bool), all intermediates of batch size;
        dW and dx have the shapes of W and x, so they are summed over the pairs that share one.

    Raises
    ------
    TypeError
        W, x and target in different places, or a dtype or kind of array that is not supported.
    ValueError
        Shapes that do not fit, with all of them.

    Examples
    --------
    >>> import sigmoid_l2 as sl2
    >>> print(sl2.trace([[0.0, 0.0]], [1.0, 2.0]))  # doctest: +ELLIPSIS +NORMALIZE_WHITESPACE
    f(W, x) = ||sigmoid(W x)||²                                         float64
    ...
      q = W x                                                       (m,) = (1,)
          q_i = sum over j of W_ij x_j
          [0.]
    ...
    """
    problem = validate(W, x, target)
    vector = (*problem.batch, problem.m)
    # Copies, because a trace must not change when the caller changes its arrays later.
    W, x = (np.array(problem.on_host(a), problem.computed, order="C") for a in (problem.W, problem.x))
    y = None
    with np.errstate(all="ignore"):
        if problem.target is not None:
            y = np.array(np.broadcast_to(problem.on_host(problem.target), vector), problem.computed, order="C")
        q = np.broadcast_to((W * x[..., None, :]).sum(axis=-1), vector).copy()
        s, complement = sigmoid_and_complement(q)  # (..., m), as all others but W, x and their gradients
        e = s if y is None else residual(s, complement, y)
        dloss_ds = 2 * e
        ds_dq = s * complement
        g = dloss_ds * ds_dq
        dW = _sum_to(W.shape, g[..., None] * x[..., None, :])
        dx = _sum_to(x.shape, (g[..., None] * W).sum(axis=-2))
        vectors = dict(x=x, y=y, q=q, s=s, dloss_ds=dloss_ds, ds_dq=ds_dq, dloss_dq=g, dx=dx)
        vectors["e"] = None if y is None else e
        if problem.column:
            vectors = {name: None if a is None else a[..., None] for name, a in vectors.items()}
        values = dict(W=W, loss=np.asarray((e * e).sum(axis=-1)), dW=dW, **vectors)
        # As the calls do: float16 and bfloat16 are computed in float32, and rounded once.
        rounded: dict[str, Any] = {
            name: None if a is None else a.astype(problem.dtype, copy=False) for name, a in values.items()
        }
        return Trace(**rounded)


def residual(s: Array, complement: Array, y: Array) -> Array:
    """Return s - y, which keeps its digits where y is 0 or 1, for the ``complement`` 1 - s."""
    return np.where(y > 0.5, (1 - y) - complement, s - y)


def _sum_to(shape: tuple[int, ...], a: Array) -> Array:
    """The sum of ``a`` over the axes along which an array of ``shape`` was broadcast to the shape of ``a``."""
    if a.shape == shape:
        return a
    missing = a.ndim - len(shape)
    axes = tuple(k for k in range(a.ndim) if k < missing or (shape[k - missing] == 1 and a.shape[k] != 1))
    return np.asarray(a.sum(axis=axes, dtype=np.float64)).astype(a.dtype).reshape(shape)


def _titled(left: str, right: str) -> Iterator[str]:
    """``left``, and ``right`` at the right margin: on a line of its own where both do not fit on one."""
    if len(left) + len(right) < _WIDTH:
        yield f"{left}{right:>{_WIDTH - len(left)}}"
    else:
        yield left
        yield f"      {right}"


def _fit(line: str) -> list[str]:
    """``line`` in lines of at most ``_WIDTH``: a long shape, or values in more brackets than fit before them."""
    if len(line) <= _WIDTH:
        return [line]
    return textwrap.wrap(line, _WIDTH, subsequent_indent="      ", break_on_hyphens=False)
