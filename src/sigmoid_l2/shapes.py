"""How the shapes of a call fit together: which axes are the batch's, and where vectors are given as columns."""

from collections.abc import Mapping
from typing import NamedTuple

Shape = tuple[int, ...]


class Shapes(NamedTuple):
    """The shapes of a call, without the axis of length 1 of columns."""

    batch: Shape  # that of the loss: the batch shapes of W, x and target, broadcast
    m: int
    n: int
    x_is_column: bool  # x came as (..., n, 1)
    target_is_column: bool  # target came as (..., m, 1)

    @property
    def results(self) -> dict[str, Shape]:
        """The shapes of loss and dq; each other gradient has that of its input."""
        return {"loss": self.batch, "dq": (*self.batch, self.m, *(1,) * self.x_is_column)}


def fit(given: Mapping[str, Shape], *, vectors: bool = False) -> Shapes:
    """How W, x and, where they are given, target and cotangent fit together; ValueError with all shapes if they do not.

    The batch shapes broadcast by NumPy's rules; those of the cotangent to the shape of the loss. An x of (..., n, 1)
    are columns where n > 1, and so is then a target of (..., m, 1) where m > 1. What could be vectors or columns, and
    would give a loss of another shape, is refused; but not an x of one vector for each W. ``vectors``: x and target are
    no columns.
    """
    W, x, target = given["W"], given["x"], given.get("target", ())
    if len(W) < 2 or 0 in W[-2:]:
        what = "W must have at least 2 dimensions" if len(W) < 2 else "m and n must be at least 1 in W"
        raise _error(f"{what}, (..., m, n)", given, _hint(W, x))
    *W_batch, m, n = W
    x_batch, x_is_column = (x[:-1], False) if vectors and x[-1:] == (n,) else _read("x", x, n, n > 1, W_batch, given)
    if x_batch is None:
        columns = f" or, as columns, (..., {n}, 1)" if n > 1 else ""
        raise _error(f"for this W, x must have shape (..., {n}){columns}", given, _hint(W, x))
    try:
        batch = broadcast(tuple(W_batch), x_batch)
    except ValueError:
        raise _error("the batch shapes of W and x do not broadcast", given) from None
    target_batch: Shape = ()
    target_is_column = False
    if target:
        target_batch, target_is_column = _read_target(target, m, x_is_column, batch, given)
    try:
        batch = broadcast(batch, target_batch)
    except ValueError:
        raise _error("the batch shape of target does not broadcast with those of W and x", given) from None
    cotangent = given.get("cotangent", ())
    if not _broadcasts_to(cotangent, batch):
        raise _error(f"cotangent must have the loss's shape {batch}, or broadcast to it", given)
    return Shapes(batch, m, n, x_is_column, target_is_column)


def broadcast(*shapes: Shape) -> Shape:
    """The shape to which ``shapes`` broadcast by NumPy's rules; ValueError where they do not."""
    axes = max(map(len, shapes))
    result = []
    for sizes in zip(*((1,) * (axes - len(shape)) + shape for shape in shapes), strict=True):
        different = {size for size in sizes if size != 1}
        if len(different) > 1:
            raise ValueError(f"{sizes} do not broadcast")
        result.append(different.pop() if different else 1)
    return tuple(result)


def _broadcasts_to(shape: Shape, to: Shape) -> bool:
    try:
        return broadcast(shape, to) == to
    except ValueError:
        return False


def _read(
    name: str, shape: Shape, size: int, may_be_column: bool, batch: list[int], given: Mapping[str, Shape]
) -> tuple[Shape | None, bool]:
    """The batch shape of vectors or columns of ``size``, and whether they are columns; None for neither."""
    is_vector, is_column = shape[-1:] == (size,), shape[-2:] == (size, 1)
    if is_vector and is_column and shape[:-1] != tuple(batch):  # of size 1
        _refuse_if_ambiguous(name, shape, tuple(batch), given)
    if is_vector:
        return shape[:-1], False
    return (shape[:-2], True) if is_column and may_be_column else (None, False)


def _read_target(
    target: Shape, m: int, x_is_column: bool, batch: Shape, given: Mapping[str, Shape]
) -> tuple[Shape, bool]:
    """As ``_read``; the last axis of a target may be 1 for any m."""
    if target[-1] != m and target[-1] != 1:
        columns = f" or, as columns, (..., {m}, 1)" if x_is_column else ""
        raise _error(f"for this W, target must have shape (..., {m}){columns}, or broadcast to it", given)
    if x_is_column and len(target) >= 2 and target[-1] == 1:
        if m > 1 and target[-2] == m:
            return target[:-2], True
        if target[-2] == 1:
            _refuse_if_ambiguous("target", target, batch, given)
    return target[:-1], False


def _refuse_if_ambiguous(name: str, shape: Shape, batch: Shape, given: Mapping[str, Shape]) -> None:
    """Raise ValueError for a shape (..., 1, 1) where vectors and columns would give losses of different shapes."""
    try:
        as_vectors, as_columns = broadcast(batch, shape[:-1]), broadcast(batch, shape[:-2])
    except ValueError:  # only one of them is possible, or none
        return
    if as_vectors != as_columns:
        raise _error(
            f"{name} could be vectors, which give a loss of shape {as_vectors}, or columns, which give {as_columns}; "
            f"for columns pass {name}[..., 0], for vectors np.broadcast_to(W, {(*as_vectors, *given['W'][-2:])})",
            given,
        )


def _hint(W: Shape, x: Shape) -> str:
    """What was probably done, where W and x do not fit as they are."""

    def fits(W: Shape, x: Shape) -> bool:
        return len(W) >= 2 and 0 not in W and (x[-1:] == W[-1:] or (x[-2:] == (W[-1], 1) and W[-1] > 1))

    if fits(x, W):
        return "W and x are exchanged: W comes first"
    if len(W) >= 2 and fits((*W[:-2], W[-1], W[-2]), x):
        return "this x fits Wᵀ: q = W x needs a value of x for each column of W"
    return ""


def _error(message: str, given: Mapping[str, Shape], hint: str = "") -> ValueError:
    *others, last = (f"{name} {shape}" for name, shape in given.items())
    return ValueError(f"{message}; got {', '.join(others)} and {last}{f'; {hint}' if hint else ''}")
