"""The GPU kernels in numba.cuda.

They sum with explicit fused multiply-adds, so the compiler has no choice that could depend on alignment or on which
outputs are wanted.
"""

import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sigmoid_l2.gpu.numba_library import NumbaLibrary
from sigmoid_l2.kernels import Given, Wanted
from sigmoid_l2.kernels.gpu import launch, launch_batch_last, launch_shared, plan
from sigmoid_l2.kernels.gpu.batch_last import batch_last_function
from sigmoid_l2.kernels.gpu.columns import columns_gradients_function, columns_q_function
from sigmoid_l2.kernels.gpu.common import cuda, framework
from sigmoid_l2.kernels.gpu.finish import finish_function
from sigmoid_l2.kernels.gpu.long import long_function
from sigmoid_l2.kernels.gpu.plan_types import BatchLast, Columns, Long, Product, Rows, SharedTiny, Staged
from sigmoid_l2.kernels.gpu.rows import rows_function
from sigmoid_l2.kernels.gpu.shared_blocks import blocks_dx_function, blocks_q_function
from sigmoid_l2.kernels.gpu.shared_parts import blocks_parts_function
from sigmoid_l2.kernels.gpu.shared_sums import sums_function
from sigmoid_l2.kernels.gpu.shared_tiny import tiny_function
from sigmoid_l2.kernels.gpu.staged import staged_function
from sigmoid_l2.kernels.quiet import quiet


def fused(
    W: Any,
    x: Any,
    target: Any,
    cotangent: Any,
    loss: Any,
    dW: Any,
    dx: Any,
    dq: Any,
    *,
    stream: int | None = None,
    call_bytes: int = 0,
) -> None:
    """Compute loss, dW, dx and dq for a batch on the current GPU; the contract is in ``sigmoid_l2.kernels``.

    Arrays are numba's, CuPy's or of the class DeviceArray.
    """
    launch.fused(sys.modules[__name__], W, x, target, cotangent, loss, dW, dx, dq, stream=stream)


def shared(
    W: Any,
    x: Any,
    target: Any,
    cotangent: Any,
    loss: Any,
    dW: Any,
    dx: Any,
    dq: Any,
    *,
    stream: int | None = None,
    call_bytes: int = 0,
) -> None:
    """The same for pairs that all have one W (m, n), of which dW is the sum; ``has_shared`` says for which W."""
    launch_shared.shared(sys.modules[__name__], W, x, target, cotangent, loss, dW, dx, dq, stream=stream)


def batch_last(
    W: Any,
    x: Any,
    target: Any,
    cotangent: Any,
    loss: Any,
    dW: Any,
    dx: Any,
    dq: Any,
    *,
    stream: int | None = None,
    call_bytes: int = 0,
) -> None:
    """``fused`` for arrays whose last axis is that of the pairs; ``has_batch_last`` says for which (m, n)."""
    launch_batch_last.batch_last(sys.modules[__name__], W, x, target, cotangent, loss, dW, dx, dq, stream=stream)


has_shared, has_batch_last = launch_shared.has_shared, launch_batch_last.has_batch_last


# --- the kernels -----------------------------------------------------------------------------------------------------


@launch.once
def staged_kernel(p: Staged, m: int, n: int, itemsize: int, wide: bool, given: Given, wanted: Wanted) -> Any:
    """The kernel of staged.py for one (m, n)."""
    return _kernel(staged_function(p, m, n, itemsize, wide, given, wanted), p.threads, p.registers)


@launch.once
def rows_kernel(p: Rows, itemsize: int, wide: bool, given: Given, wanted: Wanted) -> Any:
    """The kernel of rows.py, to which the plan's ``rows`` and ``slices`` are arguments."""
    return _kernel(
        rows_function(p, itemsize, wide, given, wanted), p.threads, plan.rows_registers(p, itemsize, given, wanted)
    )


@launch.once
def long_kernel(p: Long, itemsize: int, wide: bool, given: Given, wanted: Wanted) -> Any:
    """The kernel of long.py, to which the plan's ``rows`` and ``slices`` are arguments."""
    return _kernel(long_function(p, itemsize, wide, given, wanted), p.threads, p.registers)


@launch.once
def columns_q_kernel(p: Columns, itemsize: int, wide: bool) -> Any:
    """The first kernel of columns.py, to which ``q_columns`` and ``q_slices`` are arguments."""
    return _kernel(columns_q_function(p, itemsize, wide), p.threads, p.registers)


@launch.once
def columns_gradients_kernel(p: Columns, itemsize: int, wide: bool, given: Given, wanted: Wanted) -> Any:
    """The second, to which ``rows``, ``slices`` and ``q_slices`` are arguments."""
    return _kernel(columns_gradients_function(p, itemsize, wide, given, wanted), p.threads, p.registers)


@launch.once
def finish_kernel(chunk: int, itemsize: int, wanted: Wanted) -> Any:
    """The kernel of finish.py."""
    loaders = chunk // plan.FINISH_LOADS
    return _kernel(finish_function(loaders, chunk, itemsize, wanted), loaders * plan.WARP, plan.FINISH_REGISTERS)


@launch.once
def shared_tiny_kernel(p: SharedTiny, m: int, n: int, itemsize: int, wide: bool, given: Given, wanted: Wanted) -> Any:
    """The kernel of shared_tiny.py for one (m, n)."""
    return _kernel(tiny_function(p, m, n, itemsize, wide, given, wanted), p.threads, None)


@launch.once
def shared_blocks_q_kernel(
    p: Product, itemsize: int, wide: bool, wide_g: bool, given: Given, want_loss: bool, want_g: bool
) -> Any:
    """The first kernel of shared_blocks.py."""
    return _kernel(blocks_q_function(p, itemsize, wide, wide_g, given, want_loss, want_g), p.threads, p.registers)


@launch.once
def shared_blocks_dx_kernel(p: Product, itemsize: int, wide: bool, wide_g: bool) -> Any:
    """The second, for dx."""
    return _kernel(blocks_dx_function(p, itemsize, wide, wide_g), p.threads, p.registers)


@launch.once
def shared_blocks_parts_kernel(p: Product, itemsize: int, wide: bool, wide_g: bool) -> Any:
    """The kernel of shared_parts.py."""
    return _kernel(blocks_parts_function(p, itemsize, wide, wide_g), p.threads, p.registers)


@launch.once
def shared_sums_kernel(columns: int, loaders: int, itemsize: int) -> Any:
    """The kernel of shared_sums.py."""
    return _kernel(sums_function(columns, loaders, itemsize), columns * loaders, None)


@launch.once
def batch_last_kernel(p: BatchLast, n: int, itemsize: int, given: Given, wanted: Wanted) -> Any:
    """The kernel of batch_last.py for rows of n."""
    return _kernel(batch_last_function(p, n, itemsize, given, wanted), p.threads, None)


def _kernel(function: Any, threads: int, registers: int | None) -> Any:
    """A kernel of blocks of ``threads`` threads that use at most ``registers`` each; None leaves it to the compiler."""
    blocks = () if registers is None else (min(plan.BLOCKS, plan.REGISTERS // (threads * registers)),)
    return cuda.jit(launch_bounds=(threads, *blocks))(function)


# --- what launch.py asks of a launcher -------------------------------------------------------------------------------


def run(kernel: Any, blocks: int, threads: int, stream: int | None, arguments: Sequence[int]) -> None:
    """Launch a kernel, which the first launch compiles."""
    configured = _configured(kernel, blocks, threads, stream or 0)
    if kernel.overloads:
        configured(*arguments)
    else:
        with quiet():
            configured(*arguments)


@lru_cache(maxsize=1024)  # numba keeps 128 per kernel and stream object
def _configured(kernel: Any, blocks: int, threads: int, stream: int) -> Any:
    """``kernel[blocks, threads, stream]`` without the warning of fewer than 128 blocks: a small batch is no mistake."""
    queue = cuda.external_stream(stream) if stream else 0
    with launch.one_at_a_time:
        before = framework.config.CUDA_LOW_OCCUPANCY_WARNINGS
        framework.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0
        try:
            return kernel[blocks, threads, queue]
        finally:
            framework.config.CUDA_LOW_OCCUPANCY_WARNINGS = before


def workspace(stream: int | None, nbytes: int) -> Any:
    """Memory for the sums of slices, of this thread, on the current device, for one stream."""
    return NumbaLibrary.workspace(stream or 0, nbytes)
