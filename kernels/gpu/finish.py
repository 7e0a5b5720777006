"""The kernel that adds the sums of the slices of each pair, in a fixed order, in numba.cuda; finish.cuh is CuPy's.

A block owns 32 columns of a pair; the column after those of dx is loss. Thread (k, c) adds the slices k, k + GROUPS,
... of column c.
"""

from typing import Any

import numpy as np

from sigmoid_l2.kernels import Wanted
from sigmoid_l2.kernels.gpu.common import TYPES, cuda, framework, load_value, store_value
from sigmoid_l2.kernels.gpu.plan import BLOCK_THREADS, WARP


def finish_function(itemsize: int, wanted: Wanted) -> Any:
    """The kernel's Python function. Grid: B * (n // 32 + 1) blocks of 32 * GROUPS threads."""
    GROUPS = BLOCK_THREADS // WARP
    WANT_LOSS, WANT_DX = wanted.loss, wanted.dx
    real, zero = framework.REALS[itemsize], TYPES[itemsize](0)
    load, store = load_value(itemsize), store_value(itemsize)

    def finish(
        slice_loss: Any,  # (units,)
        slice_dx: Any,  # (units, n)
        loss: Any,  # (B,)
        dx: Any,  # (B, n)
        n: Any,
        slices: Any,
    ) -> None:
        sums = cuda.shared.array(BLOCK_THREADS, real)
        t = cuda.threadIdx.x & (BLOCK_THREADS - 1)  # changes nothing, but tells the compiler that t >= 0
        c, group = t % WARP, t // WARP
        tiles = n // WARP + 1
        j = np.int64(cuda.blockIdx.x) % tiles * WARP + c
        b = np.int64(cuda.blockIdx.x) // tiles

        # --- the sums of this thread's slices ------------------------------------------------------------------------
        total = zero
        if WANT_DX and j < n:
            k = group
            while k < slices:
                total += load(slice_dx, (b * slices + k) * n + j)
                k += GROUPS
        if WANT_LOSS and j == n:
            k = group
            while k < slices:
                total += load(slice_loss, b * slices + k)
                k += GROUPS
        sums[t] = total
        cuda.syncthreads()

        # --- the sums of all groups ----------------------------------------------------------------------------------
        if group > 0:
            return
        for k in range(1, GROUPS):
            total += sums[k * WARP + c]
        if WANT_DX and j < n:
            store(dx, b * n + j, total)
        if WANT_LOSS and j == n:
            store(loss, b, total)

    return finish
