"""The CPU backend: one pass over W, in vectors, on all cores.

A thread has a range of pairs or, where pairs are large, of slices of pairs. How a pair is cut, and the order of its
sums, depend on (m, n), the dtype and the width of the vectors alone, so the bits of its results depend on nothing but
the pair.
"""

from functools import lru_cache
from typing import Any

import numpy as np

from sigmoid_l2 import threads
from sigmoid_l2.kernels import Given
from sigmoid_l2.kernels.cpu import rows, tall, tiny
from sigmoid_l2.kernels.cpu.batch_last import batch_last as batch_last  # a part of this module's contract
from sigmoid_l2.kernels.cpu.batch_last import has_batch_last as has_batch_last
from sigmoid_l2.kernels.cpu.compile import entry_point
from sigmoid_l2.kernels.cpu.shared import shared as shared  # a part of this module's contract
from sigmoid_l2.kernels.cpu.simd import lane_count, vector_bytes
from sigmoid_l2.kernels.cpu.slices import SUM_COLUMNS, rows_of_slice, sums_kernel
from sigmoid_l2.settings import get_streaming_threshold

# Size of the largest tiny pair, in elements of W; the code of a block, with the time to compile it, grows with them.
TINY = 144
# Size of the largest tiny pair that the tall kernel could compute with AVX-512, in bytes of W. Streaming, tiny has 1.00
# of the speed of tall at 8x8 float32, 0.95 at 9x9, 0.67 at 12x12; in float64 1.05 at 6x6 and 1.01 at 8x8. In cache it
# has 1.3, 1.2, 0.7; 1.4 and 1.1. With narrower vectors tiny is as fast as tall, or faster, up to TINY.
TINY_BYTES = 384
# Size of the largest small batch, in elements of W: one thread does it, whose results are never streamed.
SMALL = 1 << 15
# Size of the losses and dx of slices that a call keeps at a time, in bytes: enough for many pairs, and cached.
SUMS_BYTES = 1 << 22
# Bytes of the longest row that ``shared`` takes: it has some rows of x and dx in its buffers at a time.
SHARED_ROW_BYTES = 1 << 19


def has_shared(m: int, n: int, itemsize: int) -> bool:
    """Whether ``shared`` takes a W (m, n)."""
    return n * itemsize <= SHARED_ROW_BYTES


@lru_cache
def kernel(m: int, n: int, dtype: np.dtype[Any], given: Given) -> Any:
    """The compiled kernel for pairs of this size, and for the inputs that are given."""
    is_tall = n <= lane_count(dtype)
    if m * n <= (TINY_BYTES // dtype.itemsize if is_tall and vector_bytes() == 64 else TINY):
        return tiny.kernel(m, n, dtype, given)
    return tall.kernel(m, n, dtype, given) if is_tall else rows.kernel(dtype, given)


@lru_cache
def _entry(m: int, n: int, dtype: np.dtype[Any], target: bool = False, cotangent: bool = False) -> Any:
    """What ``kernel`` compiles, without the dispatcher, which takes 0.3 us."""
    return entry_point(kernel(m, n, dtype, Given(target, cotangent)))


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
    """Compute the outputs that are wanted for a batch on all cores; the contract is in ``sigmoid_l2.kernels``."""
    B, m, n = W.shape
    # Two arguments fewer are looked up in 0.03 us less, of the 1 us that ten 3x3 pairs take.
    if target is None and cotangent is None:
        run = _entry(m, n, W.dtype)
    else:
        run = _entry(m, n, W.dtype, target is not None, cotangent is not None)
    if W.size <= SMALL:
        run(W, x, target, cotangent, loss, dW, dx, dq, 0, B, m, False)
        return
    arrays = W, x, target, cotangent, loss, dW, dx, dq
    written = call_bytes or sum(a.nbytes for a in arrays[-4:] if a is not None)
    streams = written >= get_streaming_threshold()
    slice_rows = rows_of_slice(m, n, W.itemsize)
    slices = -(-m // slice_rows)
    # Allocate and drop as much memory as the threads need for their sums, so that MemoryError comes before any of them
    # has written. The single thread above allocates its sums before it writes.
    np.empty((min(B * slices, threads.get_num_threads()), 2 * (n + lane_count(W.dtype))), W.dtype)
    if slices > 1:
        _in_slices(run, arrays, slices, slice_rows, streams)
    else:
        _on_threads(run, arrays, slices, slice_rows, streams)


def _on_threads(run: Any, arrays: tuple[Any, ...], slices: int, slice_rows: int, streams: bool) -> None:
    """Call a compiled kernel for all slices of all pairs."""
    W = arrays[0]

    def run_range(first: int, last: int) -> None:
        run(*arrays, first, last, slice_rows, streams)

    threads.for_ranges(len(W) * slices, W.size, run_range)


def _in_slices(run: Any, arrays: tuple[Any, ...], slices: int, slice_rows: int, streams: bool) -> None:
    """Compute the slices of some pairs at a time, and add their losses and dx."""
    W = arrays[0]
    B, _, n = W.shape
    add = sums_kernel(W.dtype)
    pairs = max(SUMS_BYTES // (slices * n * W.itemsize), threads.RANGES * threads.get_num_threads() // slices, 1)
    pairs = min(pairs, B)
    losses = np.empty((pairs, slices), W.dtype)
    sums = np.empty((pairs, slices, n), W.dtype)
    for first in range(0, B, pairs):
        some: list[Any] = [None if a is None else a[first : first + pairs] for a in arrays]
        *inputs, loss, dW, dx, dq = some
        count = min(pairs, B - first)
        loss_of_slices = None if loss is None else losses[:count].reshape(-1)
        dx_of_slices = None if dx is None else sums[:count].reshape(-1, n)
        _on_threads(run, (*inputs, loss_of_slices, dW, dx_of_slices, dq), slices, slice_rows, streams)
        parts = -(-n // SUM_COLUMNS)
        summed = sums[:count], losses[:count], None, None, loss, None, dx, None
        _on_threads(add, summed, parts, SUM_COLUMNS, False)
