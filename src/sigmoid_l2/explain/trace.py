"""``trace``: every step from W and x to the gradients, by name, with formula, shape and values."""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sigmoid_l2.kernels.reference import sigmoid_and_complement
from sigmoid_l2.problem import validate

Array = npt.NDArray[Any]

_WIDTH = 100  # columns of the printed trace

# Each step: name, axes, formula, and what the formula means for one element. A string alone is a heading.
_STEPS: tuple[str | tuple[str, str, str, str], ...] = (
    "Given",
    ("W", "mn", "", ""),
    ("x", "n", "", ""),
    "Forward: from W and x to the loss",
    ("q", "m", "W x", "q_i = sum over j of W_ij x_j"),
    ("s", "m", "sigmoid(q)", "s_i = 1 / (1 + exp(-q_i))"),
    ("loss", "", "||s||²", "the sum over i of s_i²: one number"),
    "Backward: from the loss to W and x, by the chain rule",
    ("dloss_ds", "m", "2 s", "because the loss is the sum of the s_i²"),
    ("ds_dq", "m", "s (1 - s)", "element by element, because s_i depends on q_i alone"),
    ("dloss_dq", "m", "dloss_ds · ds_dq", "g for short: g_i = 2 s_i · s_i (1 - s_i), each factor once"),
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
    """Every intermediate of f(W, x) = ||sigmoid(W x)||^2 and its gradients; ``print`` it to read it.

    All fields are NumPy arrays of one dtype and belong to the trace alone. Where x is given as columns (..., n, 1),
    the vectors are columns too: (..., m, 1) for (..., m), (..., n, 1) for (..., n).
    """

    W: Array  # (..., m, n)
    x: Array  # (..., n)
    q: Array  # (..., m)     W x
    s: Array  # (..., m)     sigmoid(q)
    loss: Array  # (...)     sum of s**2
    dloss_ds: Array  # (..., m)     2 s
    ds_dq: Array  # (..., m)     s (1 - s)
    dloss_dq: Array  # (..., m)     g = dloss_ds * ds_dq
    dW: Array  # (..., m, n)     g x^T
    dx: Array  # (..., n)     W^T g

    def __str__(self) -> str:
        return "\n".join(self._lines())

    __repr__ = __str__  # what the REPL shows

    def _lines(self) -> Iterator[str]:
        yield _line("f(W, x) = ||sigmoid(W x)||²", str(self.loss.dtype))
        for step in _STEPS:
            yield ""
            if isinstance(step, str):
                yield from (step, "-" * len(step))
                continue
            name, axes, formula, meaning = step
            array: Array = getattr(self, name)
            yield _line(f"  {name} = {formula}" if formula else f"  {name}", self._shape(axes, array))
            if meaning:
                yield f"      {meaning}"
            # A batch of matrices gets long, so fewer values are shown along each axis.
            edge = max(1, min(3, 5 - array.ndim))
            values = np.array2string(
                array, precision=6, suppress_small=False, max_line_width=_WIDTH - 6, threshold=100, edgeitems=edge
            )
            yield textwrap.indent(values, "      ")
        yield ""
        for reason in _WHY:
            yield textwrap.fill(reason, _WIDTH, subsequent_indent="  ")

    def _shape(self, axes: str, array: Array) -> str:
        """The shape in letters and in numbers, as in (m, n) = (3, 3)."""
        letters = ["..."] * (self.loss.ndim > 0) + list(axes)
        letters += ["1"] * (array.ndim - self.loss.ndim - len(axes))  # the 1 of a column
        comma = "," if len(letters) == 1 and self.loss.ndim == 0 else ""
        return f"({', '.join(letters)}{comma}) = {array.shape}" if letters else str(array.shape)


def trace(W: Any, x: Any) -> Trace:
    """Compute every step from W and x to the gradients, to learn them and to debug a program step by step.

    Parameters
    ----------
    W : array (..., m, n)
        NumPy array, CuPy array (copied to the host) or array-like; float16, float32, float64, integers or bool.
    x : array (..., n) or (..., n, 1)
        The same leading (batch) shape as W, which may be ().

    Returns
    -------
    Trace
        NumPy arrays in the inputs' common dtype (float64 for integers and bool), all intermediates of batch size.

    Raises
    ------
    TypeError
        W and x in different places, or a dtype or kind of array that is not supported.
    ValueError
        Shapes that do not fit, with both shapes.
    """
    problem = validate(W, x)
    given = (problem.on_host(a) for a in (problem.W, problem.x))
    # Copies, because a trace must not change when the caller changes W and x later.
    W, x = (np.array(a, problem.dtype, order="C") for a in given)  # (..., m, n), (..., n)
    with np.errstate(all="ignore"):
        q = (W * x[..., None, :]).sum(axis=-1)  # (..., m)
        s, complement = sigmoid_and_complement(q)
        dloss_ds = 2 * s
        ds_dq = s * complement
        g = dloss_ds * ds_dq
        dx = (g[..., None] * W).sum(axis=-2)
        vectors = dict(x=x, q=q, s=s, dloss_ds=dloss_ds, ds_dq=ds_dq, dloss_dq=g, dx=dx)
        if problem.column:
            vectors = {name: a[..., None] for name, a in vectors.items()}
        return Trace(W=W, loss=np.asarray((s * s).sum(axis=-1)), dW=g[..., None] * x[..., None, :], **vectors)


def _line(left: str, right: str) -> str:
    return f"{left}{right:>{_WIDTH - len(left)}}"
