"""One validated problem through one kernel: results allocated, layouts made right piece by piece, the kernel called."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from sigmoid_l2 import offload
from sigmoid_l2.dispatch import Backend
from sigmoid_l2.gpu import library
from sigmoid_l2.problem import Problem

# What a kernel cannot read or write in place is copied in pieces of this many bytes of W, so that the copies stay in
# cache on a CPU and out of proportion to no batch.
PIECE_BYTES = 1 << 20
# Host arrays are carried to a GPU in larger pieces: a copy over PCIe costs about 10 us before its first byte.
CARRIED_PIECE_BYTES = 32 << 20

# A kernel's arguments are W, x and these, in this order.
_OUTPUTS = ("loss", "dW", "dx")
_INPUTS = (0, 1)


def execute(problem: Problem, names: Sequence[str], out: Any, backend: Backend, stream: Any) -> Sequence[Any]:
    """Compute the outputs ``names`` of ``problem`` with ``backend``, into ``out`` or, where it is None, new arrays.

    ``out`` has arrays as problem.W is; new arrays are of the kind that the caller's W is. ``stream`` is the caller's.
    """
    place = problem.place
    if place is None:
        return _execute(problem, names, out, backend, stream, np)
    with place.current():
        results = _execute(problem, names, out, backend, stream, place.xp)
        return results if out is not None else [place.give(result) for result in results]


def _execute(problem: Problem, names: Sequence[str], out: Any, backend: Backend, stream: Any, xp: Any) -> Sequence[Any]:
    dtype, new = problem.dtype, out is None
    results: Sequence[Any] = [xp.empty(problem.shape(name), dtype) for name in names] if new else out
    if len(names) == len(_OUTPUTS):
        arrays: list[Any] = [problem.W, problem.x, *results]
    else:
        by_name = dict(zip(names, results, strict=True))
        arrays = [problem.W, problem.x, *(by_name.get(name) for name in _OUTPUTS)]
    if problem.column or not new:
        arrays[2:4] = [_plain(a, False, xp) for a in arrays[2:4]]
        arrays[4] = _plain(arrays[4], problem.column, xp)
    if 0 in problem.batch:
        return results
    if problem.device == "cpu" and backend.device == "cuda":
        handle = None if stream is None else library.stream_handle(stream)
        offload.carry(problem, arrays, library.layer(backend.name, backend.kernel), handle, CARRIED_PIECE_BYTES)
        return results
    compute = _kernel(problem, backend)
    inputs_fit = _fits(problem.W, dtype) and _fits(problem.x, dtype)
    if not inputs_fit or not (new or all(a is None or _fits(a, dtype) for a in arrays)):
        _in_pieces(problem, arrays, compute, xp)
        return results
    if not problem.batch:
        arrays = [None if a is None else a[None] for a in arrays]
    elif len(problem.batch) > 1:
        arrays = [*map(_flat, arrays, problem.pair_shapes)]
    compute(*arrays)
    return results


def _kernel(problem: Problem, backend: Backend) -> Callable[..., None]:
    """The backend's kernel, on the stream and the device of CUDA arrays."""
    kernel = backend.kernel
    fused: Callable[..., None] = kernel.fused
    if problem.place is None:
        return fused
    launch = partial(fused, stream=problem.place.stream)
    where = problem.place.device
    if backend.name != "numba-cuda" or where is None:
        return launch

    def on_numbas_device(*arrays: Any) -> None:
        with kernel.cuda.gpus[where.id]:  # numba keeps a current device of its own
            launch(*arrays)

    return on_numbas_device


def _plain(result: Any, column: bool, xp: Any) -> Any:
    """A view of a result without its column axis; of NumPy's own class, because another may not index as it does."""
    if result is None:
        return None
    if xp is np and type(result) is not np.ndarray:
        result = np.asarray(result)
    return result[..., 0] if column else result


def _fits(a: Any, dtype: np.dtype[Any]) -> bool:
    """Whether a kernel can use ``a`` in place."""
    flags = a.flags
    return (a.dtype is dtype or a.dtype == dtype) and flags.c_contiguous and getattr(flags, "aligned", True)


def _flat(a: Any, pair_shape: tuple[int, ...]) -> Any:
    """``a`` with its batch axes made one: a view, because ``a`` is contiguous."""
    return None if a is None else a.reshape(-1, *pair_shape)


def _in_pieces(problem: Problem, arrays: Sequence[Any], compute: Callable[..., None], xp: Any) -> None:
    """Compute piece by piece, through a buffer for every array that a kernel cannot use in place."""
    pair_shapes = problem.pair_shapes
    pairs = min(problem.B, max(1, PIECE_BYTES // (problem.m * problem.n * problem.dtype.itemsize)))
    buffers: list[Any] = [
        None if a is None or _fits(a, problem.dtype) else xp.empty((pairs, *shape), problem.dtype)
        for a, shape in zip(arrays, pair_shapes, strict=True)
    ]
    for index in problem.pieces(pairs):
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
