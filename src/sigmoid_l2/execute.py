"""Runs one validated problem: allocates the results, and calls the kernel for the arrays as they are or in pieces."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from sigmoid_l2 import memory, offload, pieces
from sigmoid_l2.dispatch import Backend
from sigmoid_l2.gpu.library import GpuLibrary
from sigmoid_l2.problem import Problem

# Bytes of W in a piece, where a kernel cannot take the arrays as they are. On a CPU: the buffers stay in cache. On a
# GPU: launching takes little beside the work. Either way they take little memory however large the batch is.
PIECE_BYTES, GPU_PIECE_BYTES = 1 << 20, 16 << 20
# Bytes of W in a piece that goes to a GPU: large, because the first byte of a copy over PCIe arrives after about 10 us.
OFFLOAD_PIECE_BYTES = 32 << 20

# Bytes of the longest row that a kernel for one shared W gets: it has some rows of x and dx in its buffers at a time.
SHARED_ROW_BYTES = 1 << 19

# The outputs in the order of a kernel's arguments, which follow the inputs.
_OUTPUTS = ("loss", "dW", "dx", "dq")


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
    """What ``execute`` does; ``xp`` has NumPy's functions for arrays of the kind of problem.W."""
    results = problem.out
    if results is None:
        shapes = [problem.shapes[name] for name in names]
        most = problem.W.size if problem.plain else max(map(prod, shapes))  # elements of a result
        empty = memory.empty if xp is np and most > memory.SMALL else xp.empty
        results = [empty(shape, problem.dtype) for shape in shapes]
    outputs = [*map(dict(zip(names, results, strict=True)).get, _OUTPUTS)]
    batch = problem.batch
    if 0 in batch:
        for a in results:
            if a.size:  # a sum of no terms
                a[...] = 0
        return results
    if problem.column:
        outputs[2:] = [None if a is None else a[..., 0] for a in outputs[2:]]
    kernel = backend.kernel.fused
    if problem.gpu is not None:
        kernel = _on_stream(problem.gpu, backend)
    elif backend.device == "cuda":
        _offload(problem, outputs, backend, stream)
        return results
    arrays = [*problem.inputs, *outputs]
    shared = None if problem.plain else getattr(backend.kernel, "shared", None)
    if shared and pieces.has_one_W(problem) and problem.n * problem.computed.itemsize <= SHARED_ROW_BYTES:
        _shared(problem, arrays, shared)
        return results
    if not (problem.plain or _fit(problem, arrays)):
        piece_bytes = PIECE_BYTES if xp is np else GPU_PIECE_BYTES
        pieces.compute(problem, outputs, kernel, xp, piece_bytes, parallel=xp is np)
        return results
    if not batch:
        arrays = [None if a is None else a[None] for a in arrays]
    elif len(batch) > 1:
        arrays = [None if a is None else a.reshape(-1, *s) for a, s in zip(arrays, problem.pair_shapes, strict=True)]
    kernel(*arrays)
    return results


def _shared(problem: Problem, arrays: Sequence[Any], kernel: Callable[..., None]) -> None:
    """Compute host arrays of which all pairs share one W."""
    *_, dW, _, _ = arrays
    of_pairs = [None if k in (0, pieces.DW) else a for k, a in enumerate(arrays)]
    if not (_fit(problem, of_pairs) and all(pieces.fits(a, problem.computed) for a in (problem.W, dW))):
        pieces.compute(problem, arrays[pieces.INPUTS :], kernel, np, PIECE_BYTES, parallel=True, shared=True)
        return
    flat = [None if a is None else a.reshape(-1, *s) for a, s in zip(of_pairs, problem.pair_shapes, strict=True)]
    flat[0], flat[pieces.DW] = (None if a is None else a.reshape(problem.m, problem.n) for a in (problem.W, dW))
    kernel(*flat)


def _on_stream(gpu: GpuLibrary, backend: Backend) -> Callable[..., None]:
    """The backend's kernel as a function of its arrays on the device of CUDA arrays and the call's stream."""

    def launch(*arrays: Any, call_bytes: int = 0) -> None:
        with backend.library_class.on_device(gpu.device):
            backend.kernel.fused(*arrays, stream=gpu.stream)

    return launch


def _fit(problem: Problem, arrays: Sequence[Any]) -> bool:
    """Whether a kernel can use all ``arrays`` in place."""
    return all(
        a is None or (pieces.fits(a, problem.computed) and a.shape == problem.batch + shape)
        for a, shape in zip(arrays, problem.pair_shapes, strict=True)
    )


def _offload(problem: Problem, outputs: Sequence[Any], backend: Backend, stream: Any) -> None:
    """Compute host arrays on a GPU; where a gradient is summed, the host adds up its terms, piece by piece."""
    library, kernel = backend.library_class(), backend.kernel.fused

    def on_gpu(*arrays: Any, call_bytes: int = 0) -> None:
        offload.compute(problem, arrays, library, kernel, stream, OFFLOAD_PIECE_BYTES)

    if pieces.sums_of(problem, outputs):
        pieces.compute(problem, outputs, on_gpu, np, GPU_PIECE_BYTES, parallel=False)
        return
    shapes, axes = problem.pair_shapes[pieces.INPUTS :], len(problem.batch)
    full = [None if a is None else pieces.with_batch_axes(a, axes, s) for a, s in zip(outputs, shapes, strict=True)]
    on_gpu(*pieces.full_inputs(problem, np), *full)
