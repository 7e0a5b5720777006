"""Runs one validated problem: allocates the results, copies what a kernel cannot use in place, calls the kernel."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sigmoid_l2 import memory, offload
from sigmoid_l2.dispatch import Backend
from sigmoid_l2.gpu.library import GpuLibrary
from sigmoid_l2.problem import Problem

# Bytes of W in a piece, where arrays are copied because a kernel cannot use them in place: the copies stay in cache on
# a CPU, and take little memory however large the batch is.
PIECE_BYTES = 1 << 20
# Bytes of W in a piece that goes to a GPU: large, because the first byte of a copy over PCIe arrives after about 10 us.
OFFLOAD_PIECE_BYTES = 32 << 20

# The outputs in the order of a kernel's arguments, which follow W and x.
_OUTPUTS = ("loss", "dW", "dx")


def execute(problem: Problem, names: Sequence[str], backend: Backend, stream: Any) -> Sequence[Any]:
    """Compute the outputs ``names`` of ``problem`` with ``backend``, into problem.out or, where it is None, new arrays.

    New arrays are of the kind of the caller's W. ``stream`` is the caller's.
    """
    gpu = problem.gpu
    if gpu is None:
        try:
            return _execute(problem, names, backend, stream, np)
        except MemoryError:
            if not memory.give_back():
                raise
        return _execute(problem, names, backend, stream, np)
    with gpu.current() as xp:
        results = _execute(problem, names, backend, stream, xp)
        return results if problem.out is not None else gpu.give(results)


def _execute(problem: Problem, names: Sequence[str], backend: Backend, stream: Any, xp: Any) -> Sequence[Any]:
    """What ``execute`` does; ``xp`` has NumPy's ``empty`` and ``copyto`` for arrays of the kind of problem.W."""
    results = problem.out
    if results is None:
        empty = memory.empty if xp is np and problem.W.size > memory.SMALL else xp.empty
        results = [empty(problem.shapes[name], problem.dtype) for name in names]
    if len(names) == len(_OUTPUTS):
        loss, dW, dx = results
    else:
        by_name = dict(zip(names, results, strict=True))
        loss, dW, dx = map(by_name.get, _OUTPUTS)
    if problem.column and dx is not None:
        dx = dx[..., 0]
    arrays: list[Any] = [problem.W, problem.x, loss, dW, dx]
    batch = problem.batch
    if 0 in batch:
        return results
    kernel = backend.kernel.fused
    if problem.gpu is not None:
        kernel = _on_stream(problem.gpu, backend)
    elif backend.device == "cuda":
        offload.compute(problem, arrays, backend.library_class(), kernel, stream, OFFLOAD_PIECE_BYTES)
        return results
    if not problem.plain and not all(_fits(a, problem.dtype) for a in arrays):
        _in_pieces(problem, arrays, kernel, xp)
        return results
    if not batch:
        arrays = [None if a is None else a[None] for a in arrays]
    elif len(batch) > 1:
        arrays = [*map(_flat, arrays, problem.pair_shapes)]
    kernel(*arrays)
    return results


def _on_stream(gpu: GpuLibrary, backend: Backend) -> Callable[..., None]:
    """The backend's kernel as a function of W, x, loss, dW, dx on the device of CUDA arrays and the call's stream."""

    def launch(*arrays: Any) -> None:
        with backend.library_class.on_device(gpu.device):
            backend.kernel.fused(*arrays, stream=gpu.stream)

    return launch


def _fits(a: Any, dtype: np.dtype[Any]) -> bool:
    """Whether a kernel can use ``a`` in place, or does not get it."""
    if a is None:
        return True
    flags = a.flags
    return (a.dtype is dtype or a.dtype == dtype) and flags.c_contiguous and getattr(flags, "aligned", True)


def _flat(a: Any, pair_shape: tuple[int, ...]) -> Any:
    """A view of ``a``, which is contiguous, with a single batch axis."""
    return None if a is None else a.reshape(-1, *pair_shape)


def _in_pieces(problem: Problem, arrays: Sequence[Any], kernel: Callable[..., None], xp: Any) -> None:
    """Compute piece by piece, through a buffer for each array that the kernel cannot use in place."""
    pair_shapes = problem.pair_shapes
    pairs = min(problem.B, max(1, PIECE_BYTES // (problem.m * problem.n * problem.dtype.itemsize)))
    buffers: list[Any] = [
        None if _fits(a, problem.dtype) else xp.empty((pairs, *shape), problem.dtype)
        for a, shape in zip(arrays, pair_shapes, strict=True)
    ]
    copied = [k for k, buffer in enumerate(buffers) if buffer is not None]
    for index in problem.pieces(pairs):
        pieces: list[Any] = [None if a is None else a[index] for a in arrays]
        size = math.prod(pieces[0].shape[:-2])
        flat = [
            _flat(piece, shape) if buffer is None else buffer[:size]
            for piece, shape, buffer in zip(pieces, pair_shapes, buffers, strict=True)
        ]
        for k in copied:
            if k < 2:  # W and x
                xp.copyto(flat[k].reshape(pieces[k].shape), pieces[k])
        kernel(*flat)
        for k in copied:
            if k >= 2:
                xp.copyto(pieces[k], flat[k].reshape(pieces[k].shape))
