"""A kernel's arguments: their places, what a kernel can take as it is, and views of some of their pairs."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from sigmoid_l2.problem import Problem

Kernel = Callable[..., None]  # the contract is in sigmoid_l2.kernels
# Of a kernel's arguments: how many inputs come first, and the places of some.
INPUTS = 4
W_PLACE, X_PLACE, DW_PLACE, DX_PLACE = 0, 1, 5, 6


def pieces(batch: Sequence[int], pairs: int) -> Iterator[tuple[Any, ...]]:
    """Indices of the batch axes, each of a piece of at most ``pairs`` pairs; together they cover each pair once."""
    if not batch:
        yield (...,)
        return
    # Cut the first axis of which one element is small enough; go through the axes before it one by one.
    axis = next(axis for axis in range(len(batch)) if math.prod(batch[axis + 1 :]) <= pairs)
    step = pairs // math.prod(batch[axis + 1 :])
    for outer in np.ndindex(*batch[:axis]):
        for first in range(0, batch[axis], step):
            # The Ellipsis keeps a single element an array, so that it can be written to.
            yield (*outer, slice(first, first + step), ...)


def broadcast_axes(a: Any, pair_shape: tuple[int, ...], batch: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of ``batch`` along which ``a`` (..., *pair_shape) is broadcast."""
    own = a.shape[: a.ndim - len(pair_shape)]
    if own == batch:
        return ()
    missing = len(batch) - len(own)
    return tuple(k for k, size in enumerate(batch) if size != 1 and (k < missing or own[k - missing] == 1))


def fits(a: Any, pair_shape: tuple[int, ...], dtype: np.dtype[Any], last: bool = False) -> bool:
    """Whether a kernel can use ``a`` (*batch, *pair_shape) in place, or does not get it.

    ``last``: the kernel is ``batch_last``, for which the pairs must be neighbours, in C order, and a step along any
    other axis whole elements.
    """
    if a is None:
        return True
    flags = a.flags
    if not ((a.dtype is dtype or a.dtype == dtype) and getattr(flags, "aligned", True)):
        return False
    if not last:
        return bool(flags.c_contiguous)
    axes, step = a.ndim - len(pair_shape), a.itemsize
    for size, stride in zip(reversed(a.shape[:axes]), reversed(a.strides[:axes]), strict=True):
        if size > 1 and stride != step:
            return False
        step *= size
    return not any(stride % a.itemsize for stride in a.strides[axes:])


def new_buffer(pairs: int, pair_shape: tuple[int, ...], dtype: np.dtype[Any], xp: Any, last: bool = False) -> Any:
    """A new array (pairs, *pair_shape) as a kernel takes it: in C order, or with the axis of pairs ``last`` in it."""
    if not last:
        return xp.empty((pairs, *pair_shape), dtype)
    axes = len(pair_shape)
    return xp.empty((*pair_shape, pairs), dtype).transpose(axes, *range(axes))


def full_inputs(problem: Problem, xp: Any) -> list[Any]:
    """Views of the inputs that are broadcast to (*batch, *pair_shape)."""
    shapes = [problem.batch + shape for shape in problem.pair_shapes]
    return [None if a is None else xp.broadcast_to(a, s) for a, s in zip(problem.inputs, shapes, strict=False)]


def with_batch_axes(a: Any, axes: int, pair_shape: tuple[int, ...]) -> Any:
    """A view of ``a`` (..., *pair_shape) with so many batch axes, of which the first have length 1."""
    missing = axes + len(pair_shape) - a.ndim
    return a[(None,) * missing] if missing else a


def sums_of(problem: Problem, outputs: Sequence[Any]) -> dict[int, tuple[int, ...]]:
    """Over which batch axes dW and dx are summed, by their places, where they are among the ``outputs``."""
    gradients = (DW_PLACE, problem.W), (DX_PLACE, problem.x)
    shapes, batch = problem.pair_shapes, problem.batch
    axes = {k: broadcast_axes(a, shapes[k], batch) for k, a in gradients if outputs[k - INPUTS] is not None}
    return {k: summed for k, summed in axes.items() if summed}
