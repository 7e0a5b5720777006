"""Runs one validated problem: allocates the results, and calls the kernel for the arrays as they are or in pieces."""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from sigmoid_l2 import ensembles, layouts, memory, offload, pieces
from sigmoid_l2.arguments import DW_PLACE, INPUTS, W_PLACE, Kernel, full_inputs, sums_of, with_batch_axes
from sigmoid_l2.at_once import compute_at_once
from sigmoid_l2.dispatch import Backend
from sigmoid_l2.gpu.library import GpuLibrary
from sigmoid_l2.problem import Problem, check_for_device

# Bytes of the buffers of a piece, where a kernel cannot take the arrays as they are. On a CPU: the buffers stay in
# cache. On a GPU: launching takes little beside the work. Either way they take little memory, however large the batch.
PIECE_BYTES, GPU_PIECE_BYTES = 2 << 20, 16 << 20
# The same for one W on a CPU: what a call of its kernel begins with and ends with takes some time.
ONE_W_PIECE_BYTES = 8 << 20
# Bytes of W in a piece that goes to a GPU: large, because the first byte of a copy over PCIe arrives after about 10 us.
# And of a piece's other arrays, where all have one W; or so many as W has.
OFFLOAD_PIECE_BYTES, OFFLOAD_ONE_W_BYTES = 32 << 20, 8 << 20

# Work for one of many W from which on the kernel for one W is called for each, in elements of W; on a GPU in bytes: a
# launch takes about as long as moving so many. On a CPU it is 1.0 times as fast at 7*10^4 for 8x8 and 0.4 for 64x64,
# 1.5 at 2.6*10^5 for 64x64, 4.7 at 5*10^5 for 10x784, 6 to 9 at 10^6 and more for 64x64.
MODEL_WORK, GPU_MODEL_BYTES = 1 << 17, 32 << 20
# And the pairs that share one W, at least: with 2 of 256x256 NumPy took 4.6 times as long as in pieces.
MODEL_SAMPLES = 8

# The outputs in the order of a kernel's arguments, which follow the inputs.
_OUTPUTS = ("loss", "dW", "dx", "dq")


def execute(problem: Problem, names: Sequence[str], backend: Backend, stream: Any) -> Sequence[Any]:
    """Compute the outputs ``names`` of ``problem`` with ``backend``, into problem.out or, where it is None, new arrays.

    New arrays are of the kind of the caller's W. ``stream`` is the caller's.
    """
    gpu = problem.gpu
    if gpu is None:
        try:
            results = _execute(problem, names, backend, stream, np)
        except MemoryError:
            if not memory.give_back():
                raise
            results = _execute(problem, names, backend, stream, np)
        return results if problem.library is None else _given(problem, results)
    with gpu.current() as xp:
        results = _execute(problem, names, backend, stream, xp)
        return results if problem.out is not None else gpu.give(results)


def _given(problem: Problem, results: Sequence[Any]) -> Sequence[Any]:
    """The ``results`` in host memory as arrays of W's library, or in those that the caller gave."""
    library: Any = problem.library
    if problem.out is None:
        results = library.give(results)
    else:
        library.mark_written()
    return results


def _execute(problem: Problem, names: Sequence[str], backend: Backend, stream: Any, xp: Any) -> Sequence[Any]:
    """What ``execute`` does; ``xp`` has NumPy's functions for arrays of the kind of problem.W."""
    results = problem.out
    if results is None:
        shapes = [problem.shapes[name] for name in names]
        most = problem.W.size if problem.plain else max(map(prod, shapes))  # elements of a result
        empty = memory.empty if xp is np and most > memory.SMALL else xp.empty
        if problem.library is not None and problem.library.needs_lines:
            empty = memory.empty_on_a_line
        if problem.plain:
            results = [empty(shape, problem.dtype) for shape in shapes]
        else:
            results = [layouts.new_result(problem, name, empty) for name in names]
    outputs = [*map(dict(zip(names, results, strict=True)).get, _OUTPUTS)]
    batch = problem.batch
    if 0 in batch:
        for a in results:
            if a.size:  # a sum of no terms
                a[...] = 0
        return results
    if problem.column:
        outputs[2:] = [None if a is None else a[..., 0] for a in outputs[2:]]
    if problem.plain and backend.device == "cpu":
        arrays = [*problem.inputs, *outputs]
        if problem.target is problem.cotangent is None or _fill(problem, arrays):
            if not batch:
                arrays = [None if a is None else a[None] for a in arrays]
            elif len(batch) > 1:
                pairs = zip(arrays, problem.pair_shapes, strict=True)
                arrays = [None if a is None else a.reshape(-1, *shape) for a, shape in pairs]
            backend.kernel.fused(*arrays)
            return results
    _compute(problem, outputs, _way(problem, backend, stream), xp)
    return results


def _fill(problem: Problem, arrays: list[Any]) -> bool:
    """Make full arrays of a small target and cotangent that are broadcast; return whether both are full."""
    batch = problem.batch
    for k, shape in ((2, (*batch, problem.m)), (3, batch)):
        a = arrays[k]
        if a is None or (a.shape == shape and a.dtype is problem.dtype):
            continue
        if problem.W.size > pieces.BLOCK_WORK:
            return False
        arrays[k] = np.empty(shape, problem.dtype)
        with np.errstate(all="ignore"):
            arrays[k][...] = a
    return True


class _Way(NamedTuple):
    """How a backend computes the arrays of a call, where they are."""

    fused: Kernel
    shared: Kernel | None  # the kernel for one W, where it takes this one
    batch_last: Kernel | None  # that for pairs that are neighbours in memory, of arrays with the batch axis first
    takes_views: bool  # the kernels take any layout and dtype, and inputs that are broadcast
    piece_bytes: int  # of the buffers, for ``fused``
    one_W_bytes: int  # of the buffers, for ``shared``
    model_work: int  # in elements of W: whether to call ``shared`` for each of many W
    parallel: bool  # pieces on all threads


def _way(problem: Problem, backend: Backend, stream: Any) -> _Way:
    """The way of ``backend``."""
    kernel, itemsize = backend.kernel, problem.computed.itemsize
    shared, last = (_if_there(kernel, name, problem, itemsize) for name in ("shared", "batch_last"))
    if backend.device == "cpu":
        last = last and _batch_first(last)
        return _Way(kernel.fused, shared, last, False, PIECE_BYTES, ONE_W_PIECE_BYTES, MODEL_WORK, True)
    gpu = problem.gpu
    if gpu is not None:
        check_for_device(problem, has_shared=shared is not None)
        fused, shared = _on_stream(gpu, backend, kernel.fused), shared and _on_stream(gpu, backend, shared)
        last = last and _batch_first(_on_stream(gpu, backend, last))
    else:
        last = None
        library = backend.library_class()
        fused = _offloaded(problem, library, kernel.fused, stream, OFFLOAD_PIECE_BYTES, one_W=False)
        shared = shared and _offloaded(problem, library, shared, stream, OFFLOAD_ONE_W_BYTES, one_W=True)
    model_work = GPU_MODEL_BYTES // itemsize
    return _Way(fused, shared, last, gpu is None, GPU_PIECE_BYTES, GPU_PIECE_BYTES, model_work, False)


def _if_there(kernel: Any, name: str, problem: Problem, itemsize: int) -> Any:
    """The function ``name`` of a backend's module ``kernel``; None where it has none, or none for these pairs."""
    has = getattr(kernel, f"has_{name}", None)
    return getattr(kernel, name, None) if not has or has(problem.m, problem.n, itemsize) else None


def _batch_first(kernel: Kernel) -> Kernel:
    """The kernel ``batch_last`` as a function of views whose axis of pairs is the first."""

    def compute(*arrays: Any, call_bytes: int = 0) -> None:
        views = [None if a is None else a.transpose(*range(1, a.ndim), 0) for a in arrays]
        kernel(*views, call_bytes=call_bytes)

    return compute


def _on_stream(gpu: GpuLibrary, backend: Backend, kernel: Kernel) -> Kernel:
    """The kernel as a function of its arrays on the device of CUDA arrays and the call's stream."""

    def launch(*arrays: Any, call_bytes: int = 0) -> None:
        with backend.library_class.on_device(gpu.device):
            kernel(*arrays, stream=gpu.stream)

    return launch


def _offloaded(
    problem: Problem, library: GpuLibrary, kernel: Kernel, stream: Any, piece_bytes: int, *, one_W: bool
) -> Kernel:
    """The kernel as a function of host arrays."""

    def compute(*arrays: Any, call_bytes: int = 0) -> None:
        offload.compute(problem, arrays, library, kernel, stream, piece_bytes, one_W=one_W)

    return compute


def _compute(problem: Problem, outputs: Sequence[Any], way: _Way, xp: Any) -> None:
    """Compute the ``outputs`` that are wanted, with the kernel for one W where there is one and it pays."""
    kernel: Any = way.shared
    samples = ensembles.samples_of_a_model(problem)

    def compute_model(problem: Problem, outputs: Sequence[Any]) -> None:
        if not _at_once(problem, outputs, way, xp, one_W=True):
            pieces.compute(problem, outputs, kernel, xp, way.one_W_bytes, one_W=True)

    if kernel and problem.one_W:
        compute_model(problem, outputs)
    elif kernel and samples >= MODEL_SAMPLES and samples * problem.m * problem.n >= way.model_work:
        ensembles.compute(problem, outputs, compute_model, xp, way.parallel)
    else:
        last = way.batch_last is not None and samples == 1 and layouts.is_batch_last(problem.W)
        if not _at_once(problem, outputs, way, xp, last=last):
            kernel = way.batch_last if last else way.fused
            pieces.compute(problem, outputs, kernel, xp, way.piece_bytes, parallel=way.parallel, last=last)


def _at_once(
    problem: Problem, outputs: Sequence[Any], way: _Way, xp: Any, *, one_W: bool = False, last: bool = False
) -> bool:
    """Compute in one call, unless it takes large copies or sums over some axes; return whether it was done."""
    kernel: Any
    kernel = way.shared if one_W else way.batch_last if last else way.fused
    nbytes = way.one_W_bytes if one_W else way.piece_bytes
    sums = sums_of(problem, outputs)
    if one_W:
        sums.pop(DW_PLACE, None)
    if sums and (one_W or way.takes_views or not pieces.is_one_block(problem, sums.values())):
        return False
    if not way.takes_views:
        return compute_at_once(problem, outputs, kernel, xp, nbytes, sums=sums, one_W=one_W, last=last)
    shapes, axes = problem.pair_shapes[INPUTS:], len(problem.batch)
    arrays = full_inputs(problem, np)
    arrays += [None if a is None else with_batch_axes(a, axes, s) for a, s in zip(outputs, shapes, strict=True)]
    if one_W:
        arrays[W_PLACE] = problem.W
        for k in (W_PLACE, DW_PLACE):
            arrays[k] = None if arrays[k] is None else arrays[k].reshape(problem.m, problem.n)
    kernel(*arrays)
    return True
