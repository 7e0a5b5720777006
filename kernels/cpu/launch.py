"""The CPU backend: one pass over W, in vectors, on all cores.

A thread has a range of pairs. Sums run in an order that depends on (m, n), the dtype and the width of the vectors
alone, so the bits of a pair's results depend on nothing but the pair.
"""

from functools import cache, lru_cache
from typing import Any

import numpy as np

from sigmoid_l2 import threads
from sigmoid_l2.kernels.cpu import rows, tall, tiny
from sigmoid_l2.kernels.cpu.simd import lane_count, vector_bytes

# Size of the largest tiny pair, in elements of W; the code of a block, with the time to compile it, grows with them.
TINY = 144
# Size of the largest tiny pair that the tall kernel could compute with AVX-512, in bytes of W. Streaming, tiny and tall
# reach 0.84 and 0.81 of a copy at 8x8 float32, 0.65 and 0.69 at 9x9, 0.60 and 0.86 at 12x12; in float64 0.72 and 0.75
# at 6x6, 0.73 and 0.86 at 8x8. In cache tiny is faster by a quarter up to this size, and slower at 12x12 float32. With
# narrower vectors tiny is as fast as tall, or faster, up to TINY.
TINY_BYTES = 384
# Size of the results from which they go past the caches, in bytes.
STREAM_BYTES = 40 << 20


@lru_cache
def kernel(m: int, n: int, dtype: np.dtype[Any]) -> Any:
    """The compiled kernel for pairs of this size."""
    is_tall = n <= lane_count(dtype)
    if m * n <= (TINY_BYTES // dtype.itemsize if is_tall and vector_bytes() == 64 else TINY):
        return tiny.kernel(m, n, dtype)
    return tall.kernel(m, n, dtype) if is_tall else rows.kernel(dtype)


def fused(W: Any, x: Any, loss: Any, dW: Any, dx: Any, *, stream: int | None = None) -> None:
    """Compute loss, dW and dx for a batch on all cores; the contract is in ``sigmoid_l2.kernels``."""
    B, m, n = W.shape
    run = kernel(m, n, W.dtype)
    memory = W, x
    if not (W.flags.writeable and x.flags.writeable):
        W, x = _writeable(W), _writeable(x)
    loss = _unwanted(1, W.dtype) if loss is None else loss
    dW = _unwanted(3, W.dtype) if dW is None else dW
    dx = _unwanted(2, W.dtype) if dx is None else dx
    streams = (loss.size + dW.size + dx.size) * W.itemsize > STREAM_BYTES
    if W.size <= threads.THREAD_WORK:
        run(W, x, loss, dW, dx, 0, B, m, streams)
        return

    def run_range(first: int, last: int, memory: Any = memory) -> None:  # keeps alive what _writeable points to
        run(W, x, loss, dW, dx, first, last, m, streams)

    # Allocate and drop as much memory as the threads need for their sums, so that MemoryError comes before any of them
    # has written. The single thread above allocates its sums before it writes.
    np.empty((min(B, threads.get_num_threads()), n), W.dtype)
    threads.for_ranges(B, W.size, run_range)


@cache
def _unwanted(axes: int, dtype: np.dtype[Any]) -> Any:
    """The array of size 0 by which a compiled kernel knows that an output is not wanted."""
    return np.empty((0,) * axes, dtype)


def _writeable(a: Any) -> Any:
    """``a`` itself, or the same memory not marked as read-only, which to numba is another type to compile for."""
    if a.flags.writeable:
        return a
    real = np.ctypeslib.as_ctypes_type(a.dtype)
    return np.ctypeslib.as_array((real * a.size).from_address(a.ctypes.data)).reshape(a.shape)
