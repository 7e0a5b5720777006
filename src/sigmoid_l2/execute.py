"""One validated problem through one kernel: results allocated, layouts made right piece by piece, the kernel called."""

import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sigmoid_l2 import device
from sigmoid_l2.backends import Backend
from sigmoid_l2.problem import Problem

# What a kernel cannot read or write in place is copied in pieces of this many bytes of W, so that the copies stay in
# cache on a CPU and out of proportion to no batch.
PIECE_BYTES = 1 << 20
# Host arrays are carried to a GPU in larger pieces: a copy over PCIe costs about 10 us before its first byte.
CARRIED_PIECE_BYTES = 32 << 20

# A kernel's arguments are W, x and these, in this order.
_OUTPUTS = ("loss", "dW", "dx")
_INPUTS = (0, 1)


def execute(
    problem: Problem, names: Sequence[str], out: Any, backend: Backend, stream: Any, xp: Any = np
) -> Sequence[Any]:
    """Compute the outputs ``names`` of ``problem`` with ``backend``, into ``out`` or, where it is None, new arrays."""
    if problem.device == "cuda" and xp is np:
        with device.on(problem.W, stream):
            return execute(problem, names, out, backend, stream, sys.modules["cupy"])
    dtype, new = problem.dtype, out is None
    results: Sequence[Any] = [xp.empty(problem.shape(name), dtype) for name in names] if new else out
    if len(names) == len(_OUTPUTS):
        arrays: list[Any] = [problem.W, problem.x, *results]
    else:
        by_name = dict(zip(names, results, strict=True))
        arrays = [problem.W, problem.x, *(by_name.get(name) for name in _OUTPUTS)]
    if problem.column or not new:
        arrays[2:] = [_plain(a, problem.column and name == "dx") for a, name in zip(arrays[2:], _OUTPUTS, strict=True)]
    carried = problem.device == "cpu" and backend.device == "cuda"
    if 0 in problem.batch:
        return results
    inputs_fit = _fits(problem.W, dtype) and _fits(problem.x, dtype)
    if not carried and inputs_fit and (new or all(a is None or _fits(a, dtype) for a in arrays)):
        if not problem.batch:
            arrays = [None if a is None else a[None] for a in arrays]
        elif len(problem.batch) > 1:
            arrays = [*map(_flat, arrays, _pair_shapes(problem))]
        device.in_place(backend, problem)(*arrays)
        return results
    compute = device.carried(backend, stream) if carried else device.in_place(backend, problem)
    _in_pieces(problem, arrays, compute, CARRIED_PIECE_BYTES if carried else PIECE_BYTES, xp)
    return results


def _plain(result: Any, column: bool) -> Any:
    """A view of a result without its column axis; of NumPy's own class, because another may not index as it does."""
    if result is None:
        return None
    if isinstance(result, np.ndarray) and type(result) is not np.ndarray:
        result = np.asarray(result)
    return result[..., 0] if column else result


def _pair_shapes(problem: Problem) -> tuple[tuple[int, ...], ...]:
    m, n = problem.m, problem.n
    return (m, n), (n,), (), (m, n), (n,)


def _fits(a: Any, dtype: np.dtype[Any]) -> bool:
    """Whether a kernel can use ``a`` in place."""
    flags = a.flags
    return (a.dtype is dtype or a.dtype == dtype) and flags.c_contiguous and getattr(flags, "aligned", True)


def _flat(a: Any, pair_shape: tuple[int, ...]) -> Any:
    """``a`` with its batch axes made one: a view, because ``a`` is contiguous."""
    return None if a is None else a.reshape(-1, *pair_shape)


def _in_pieces(problem: Problem, arrays: Sequence[Any], compute: device.Compute, piece_bytes: int, xp: Any) -> None:
    """Compute piece by piece, through a buffer for every array that a kernel cannot use in place."""
    pair_shapes = _pair_shapes(problem)
    pairs = min(problem.B, max(1, piece_bytes // (problem.m * problem.n * problem.dtype.itemsize)))
    buffers: list[Any] = [
        None if a is None or _fits(a, problem.dtype) else xp.empty((pairs, *shape), problem.dtype)
        for a, shape in zip(arrays, pair_shapes, strict=True)
    ]
    for index in _pieces(problem.batch, pairs):
        pieces: list[Any] = [None if a is None else a[index] for a in arrays]
        size = math.prod(pieces[0].shape[:-2])
        flat = [
            _flat(piece, shape) if buffer is None else buffer[:size]
            for piece, shape, buffer in zip(pieces, pair_shapes, buffers, strict=True)
        ]
        buffered = [i for i, buffer in enumerate(buffers) if buffer is not None]
        for i in buffered:
            if i in _INPUTS:
                xp.copyto(flat[i].reshape(pieces[i].shape), pieces[i])
        compute(*flat)
        for i in buffered:
            if i not in _INPUTS:
                xp.copyto(pieces[i], flat[i].reshape(pieces[i].shape))


def _pieces(batch: tuple[int, ...], pairs: int) -> Iterator[tuple[Any, ...]]:
    """Index tuples that cut the batch axes into pieces of at most ``pairs`` pairs, each pair once."""
    if not batch:
        yield (...,)
        return
    # Cut along the first axis of which one step is small enough; take the axes before it step by step.
    axis = next(axis for axis in range(len(batch)) if math.prod(batch[axis + 1 :]) <= pairs)
    step = pairs // math.prod(batch[axis + 1 :])
    for outer in np.ndindex(*batch[:axis]):
        for first in range(0, batch[axis], step):
            # The Ellipsis keeps a single element an array, so that it can be written to.
            yield (*outer, slice(first, first + step), ...)
