"""The kernel for batch-last arrays: neighbours in memory are elements of neighbouring pairs.

It is compiled for a dtype and takes pairs of all sizes; ``batch_last_range`` has what a thread does.
"""

from functools import cache
from typing import Any

import numba
import numpy as np
from numba import types

from sigmoid_l2 import threads
from sigmoid_l2.kernels import Given, Wanted
from sigmoid_l2.kernels.cpu.batch_last_range import VECTORS, Strides, pairs, room
from sigmoid_l2.kernels.cpu.compile import compile_function, entry_point
from sigmoid_l2.kernels.cpu.simd import lane_count
from sigmoid_l2.settings import get_streaming_threshold

# Length of the longest row and the longest column of a pair, in bytes: a thread keeps 59 vectors of each
# column (10 where there are few pairs), 15 MiB at most.
LONGEST = 1 << 14
# Size of the largest small batch, in elements of W: one thread does it, whose results are never streamed.
SMALL = 1 << 15


def has_batch_last(m: int, n: int, itemsize: int) -> bool:
    """Whether ``batch_last`` takes pairs of m by n elements."""
    return max(m, n) * itemsize <= LONGEST


@cache
def kernel(dtype: np.dtype[Any], given: Given) -> Any:
    """The compiled function for pairs of ``dtype``."""
    itemsize = dtype.itemsize

    def batch_last(
        W: Any,
        x: Any,
        target: Any,
        cotangent: Any,
        loss: Any,
        dW: Any,
        dx: Any,
        dq: Any,
        first: int,
        last: int,
        size: int,
        streams: bool,
    ) -> None:
        wanted = Wanted(loss is not None, dW is not None, dx is not None, dq is not None)
        W_i, W_j = W.strides[0] // itemsize, W.strides[1] // itemsize
        target_i = dW_i = dW_j = dx_j = dq_i = 0
        if target is not None:
            target_i = target.strides[0] // itemsize
        if dW is not None:
            dW_i, dW_j = dW.strides[0] // itemsize, dW.strides[1] // itemsize
        if dx is not None:
            dx_j = dx.strides[0] // itemsize
        if dq is not None:
            dq_i = dq.strides[0] // itemsize
        strides = Strides(W_i, W_j, x.strides[0] // itemsize, target_i, dW_i, dW_j, dx_j, dq_i)
        m, n = W.shape[:2]
        memory = np.empty(size, W.dtype)
        pairs(W, x, target, cotangent, loss, dW, dx, dq, wanted, strides, m, n, first, last, streams, memory)

    real = numba.from_dtype(dtype)
    elements, vectors, numbers = real[:, :, :], real[:, :], real[::1]
    inputs = vectors if given.target else types.none, numbers if given.cotangent else types.none
    outputs = map(types.Optional, (numbers, elements, vectors, vectors))
    signature = types.void(elements, vectors, *inputs, *outputs, *(types.int64,) * 3, types.boolean)
    name = "batch_last" + "_target" * given.target + "_cotangent" * given.cotangent
    return compile_function(batch_last, f"{name}_{dtype}", signature)


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
    """Compute the outputs that are wanted for W (m, n, B), x (n, B), ...; the contract is in ``sigmoid_l2.kernels``."""
    m, n, B = W.shape
    run = entry_point(kernel(W.dtype, Given(target is not None, cotangent is not None)))
    arrays = W, x, target, cotangent, loss, dW, dx, dq
    lanes = lane_count(W.dtype)
    block = VECTORS * lanes
    size = room(m, n, lanes, VECTORS if block <= B else 1)
    if W.size <= SMALL:
        run(*arrays, 0, B, size, False)
        return
    written = call_bytes or sum(a.nbytes for a in arrays[-4:] if a is not None)
    streams = written >= get_streaming_threshold()
    units = -(-B // block)
    # Allocate and drop as much memory as the threads need, so that MemoryError comes before any of them has written.
    np.empty((min(units, threads.get_num_threads()), size), W.dtype)

    def run_range(first: int, last: int) -> None:
        run(*arrays, first * block, min(last * block, B), size, streams)

    threads.for_ranges(units, W.size, run_range)
