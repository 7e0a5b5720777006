"""The CPU backend: one pass over W, in vectors, on all cores.

A thread has a range of pairs. Sums run in an order that depends on (m, n), the dtype and the width of the vectors
alone, so the bits of a pair's results depend on nothing but the pair.
"""

from functools import cache, lru_cache
from typing import Any

import numpy as np

from sigmoid_l2 import threads
from sigmoid_l2.kernels.cpu import rows, tall, tiny
from sigmoid_l2.kernels.cpu.simd import lane_count

# Size of the largest tiny pair, in elements of W. With AVX-512 and float32, tiny and rows give 12.5 and 9.5 GB/s at
# 12x12, but 11.5 and 13.9 at 16x16; and the code of a block, with the time to compile it, grows with the elements.
TINY = 144
# Width of the widest tall pair, in columns, where a vector has as many lanes. In float32 tall and rows give 4.4 and 1.1
# GB/s at 200x1, 17.2 and 14.7 at 784x10, and the same at 16 columns.
TALL = 12
# Size of the results from which they go past the caches, in bytes.
STREAM_BYTES = 40 << 20


@lru_cache
def kernel(m: int, n: int, dtype: np.dtype[Any]) -> Any:
    """The compiled kernel for pairs of this size."""
    if m * n <= TINY:
        return tiny.kernel(m, n, dtype)
    if n <= min(TALL, lane_count(dtype)):
        return tall.kernel(n, dtype)
    return rows.kernel(dtype)


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
