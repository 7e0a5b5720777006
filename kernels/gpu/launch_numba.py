"""The GPU kernels in numba.cuda, launched. The derivation is in ``sigmoid_l2.kernels.reference``.

``plan`` says how a batch is cut into blocks, ``staged`` and ``rows`` have what one of them
does. All sum in the arrays' dtype, in an order that depends on (m, n) alone, and with explicit fused multiply-adds: so
the compiler has no choice to make that could depend on alignment or on what is wanted.
"""

import threading
from functools import cache
from typing import Any

from sigmoid_l2.kernels import Wanted
from sigmoid_l2.kernels.gpu import plan
from sigmoid_l2.kernels.gpu.common import cuda, framework
from sigmoid_l2.kernels.gpu.finish import finish_source
from sigmoid_l2.kernels.gpu.long import long_source
from sigmoid_l2.kernels.gpu.plan import Plan, Rows, Staged
from sigmoid_l2.kernels.gpu.rows import rows_source
from sigmoid_l2.kernels.gpu.staged import old_finish_source, staged_source, unit_sums

# Threads that a multiprocessor should be able to hold, as far as registers go, which the compiler then keeps to.
TINY_THREADS = 1024  # half of the most that any chip holds: 64 registers a thread
STAGED_THREADS = 512  # 128 registers; most need fewer
ROWS_THREADS = 768  # 80 registers; as many as plan.FLIGHT_BYTES counts on


def fused(W: Any, x: Any, loss: Any, dW: Any, dx: Any, *, stream: int | None = None) -> None:
    """Compute loss, dW and dx for a batch on the current GPU; the contract is in ``sigmoid_l2.kernels``.

    Arrays are numba's device arrays or anything with ``__cuda_array_interface__``.
    """
    B, m, n = W.shape
    itemsize = W.dtype.itemsize
    p = plan.make_plan(m, n, itemsize)
    wanted = Wanted(loss is not None, dW is not None, dx is not None)
    given = [None if a is None else _device_array(a) for a in (W, x, loss, dW, dx)]
    wide = _is_wide(p, m, n, itemsize, given)
    # An output that is not wanted is never touched; W stands in for it, because a kernel's argument must be an array.
    arrays = [given[0] if a is None else a for a in given]
    if p.slices > 1:
        _fused_in_slices(p, wanted, wide, arrays, stream)
    elif isinstance(p, Staged):
        units = p.units * plan.lane_pairs(m, n, itemsize)
        kernel = _kernel(_staged, p, m, n, itemsize, wanted, wide)
        _launch(kernel, -(-B // units), p.threads, _queue(stream), *arrays, 0, B)
    elif isinstance(p, Rows):
        kernel = _kernel(_rows, p._replace(rows=0, slices=0), itemsize, wide, wanted)
        _launch(kernel, -(-B // p.units), p.threads, _queue(stream), *arrays, B, m, n, m, 1)
    else:
        _launch(_kernel(_long, p, itemsize, wanted), B, p.threads, _queue(stream), *arrays, m, n)


def _fused_in_slices(p: Any, wanted: Wanted, wide: bool, arrays: list[Any], stream: int | None) -> None:
    """As many pairs at a time as the workspace has room for: each slice by itself, then the slices added up."""
    W, x, loss, dW, dx = arrays
    B, m, n = W.shape
    itemsize, queue = W.dtype.itemsize, _queue(stream)
    sums = unit_sums(n, itemsize)
    pair_bytes = p.slices * sums * itemsize
    at_once = max(1, plan.WORKSPACE_BYTES // pair_bytes)
    workspace = _workspace(stream, max(plan.WORKSPACE_BYTES, pair_bytes), itemsize)
    if isinstance(p, Rows):
        kernel = _kernel(_rows, p._replace(rows=0, slices=0), itemsize, wide, wanted)
        finish = _kernel(_finish, itemsize, wanted._replace(dW=False))
        for first in range(0, B, at_once):
            part = slice(first, first + at_once)
            units = len(W[part]) * p.slices
            slice_dx = workspace[: units * n].reshape(units, n)
            slice_loss = workspace[units * n : units * (n + 1)]
            loss_part, dx_part = loss[part] if wanted.loss else slice_loss, dx[part] if wanted.dx else slice_dx
            outputs = slice_loss, dW[part], slice_dx
            blocks = -(-units // p.units)
            _launch(kernel, blocks, p.threads, queue, W[part], x[part], *outputs, units, m, n, p.rows, p.slices)
            if wanted.loss or wanted.dx:
                blocks = len(W[part]) * (n // plan.WARP + 1)
                arrays = [slice_loss, slice_dx, loss_part, dx_part]
                _launch(finish, blocks, plan.BLOCK_THREADS, queue, *arrays, n, p.slices)
        return
    kernel = _kernel(_staged, p, m, n, itemsize, wanted, wide)
    finish = _kernel(_old_finish, itemsize, wanted._replace(dW=False))
    for first in range(0, B, at_once):
        pairs = min(at_once, B - first)
        blocks = -(-pairs * p.slices // p.units)
        _launch(kernel, blocks, p.threads, queue, W, x, workspace, dW, workspace, first, pairs)
        if wanted.loss or wanted.dx:
            blocks = pairs * (n // plan.WARP + 1)
            _launch(finish, blocks, plan.BLOCK_THREADS, queue, workspace, loss, dx, first, n, p.slices, sums)


_one_at_a_time = threading.Lock()


def _kernel(make: Any, *key: Any) -> Any:
    """What one of the cached functions below makes; threads that miss its cache at once would each compile a kernel."""
    with _one_at_a_time:
        return make(*key)


def _launch(kernel: Any, blocks: int, threads: int, queue: Any, *arguments: Any) -> None:
    """Launch without the framework's warning of fewer than 128 blocks: a small batch is no mistake."""
    with _one_at_a_time:
        before = framework.config.CUDA_LOW_OCCUPANCY_WARNINGS
        framework.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0
        try:
            launch = kernel[blocks, threads, queue]
        finally:
            framework.config.CUDA_LOW_OCCUPANCY_WARNINGS = before
    launch(*arguments)


def _queue(stream: int | None) -> Any:
    return cuda.external_stream(stream) if stream else 0


_workspaces: dict[tuple[int, int, int, int, int], Any] = {}


def _workspace(stream: int | None, size: int, itemsize: int) -> Any:
    """Memory for partial sums, of this thread, on the current device, for one stream.

    It is kept for good: so a second call allocates nothing, and a CUDA graph with a call in it stays valid.
    """
    key = threading.get_ident(), framework.current_device(), stream or 0, size, itemsize
    if key not in _workspaces:
        _workspaces[key] = cuda.device_array(size // itemsize, f"f{itemsize}")
    return _workspaces[key]


def _device_array(a: Any) -> Any:
    if hasattr(a, "copy_to_host"):  # numba's own
        return a
    # sync=False: streams are ordered by whoever passes them in; numba would wait for the producer's stream.
    return cuda.as_cuda_array(a, sync=False)


def _is_wide(p: Plan, m: int, n: int, itemsize: int, arrays: list[Any]) -> bool:
    """Whether bytes can move by 16: every array begins on a multiple of them, and so does every tile of W."""
    if isinstance(p, Staged):
        units = p.units * plan.lane_pairs(m, n, itemsize) if p.slices == 1 else 1
        if units * m * n * itemsize % plan.WIDE_BYTES:
            return False
    return not any(framework.address(a) % plan.WIDE_BYTES for a in arrays if a is not None)


def blocks_at_once(p: Plan) -> int:
    """Blocks that a multiprocessor should be able to hold."""
    if isinstance(p, Rows):
        return max(1, ROWS_THREADS // p.threads)
    if isinstance(p, Staged):
        return max(1, (TINY_THREADS if p.lanes == 1 else STAGED_THREADS) // p.threads)
    return 1


@cache
def _staged(*key: Any) -> Any:
    return framework.kernel(staged_source(*key), key[0].threads, blocks_at_once(key[0]))


@cache
def _rows(*key: Any) -> Any:
    return framework.kernel(rows_source(*key), key[0].threads, blocks_at_once(key[0]))


@cache
def _long(*key: Any) -> Any:
    return framework.kernel(long_source(*key), key[0].threads, blocks_at_once(key[0]))


@cache
def _finish(*key: Any) -> Any:
    return framework.kernel(finish_source(*key), plan.BLOCK_THREADS, TINY_THREADS // plan.BLOCK_THREADS)


@cache
def _old_finish(*key: Any) -> Any:
    return framework.kernel(old_finish_source(*key), plan.BLOCK_THREADS, 1)
