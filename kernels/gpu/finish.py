"""The kernel that adds the sums of the slices of each pair, in numba.cuda; finish.cuh is CuPy's.

It adds those of a group one after the other, and then the groups. A block owns 32 columns of a pair; the column after
those of dx is loss. CHUNK slices are in shared memory at a time: thread (k, c) loads slices k, k + LOADERS, ... of
column c, all of them in flight at once; then thread (0, c) adds them.
"""

from typing import Any

import numpy as np

from sigmoid_l2.kernels import Wanted
from sigmoid_l2.kernels.gpu.common import TYPES, cuda, framework, load_value, store_value
from sigmoid_l2.kernels.gpu.plan import WARP


def finish_function(LOADERS: int, CHUNK: int, itemsize: int, wanted: Wanted) -> Any:
    """The kernel's Python function. Grid: B * (n // 32 + 1) blocks of 32 * LOADERS threads."""
    THREADS = WARP * LOADERS
    HELD, CHUNK_SUMS = CHUNK // LOADERS, CHUNK * WARP
    WANT_LOSS, WANT_DX = wanted.loss, wanted.dx
    real, zero = framework.REALS[itemsize], TYPES[itemsize](0)
    nothing = TYPES[itemsize](-0.0)  # to which the first sum is added as it is
    load, store = load_value(itemsize), store_value(itemsize)

    def finish(
        slice_loss: Any,  # (units,)
        slice_dx: Any,  # (units, n)
        loss: Any,  # (B,)
        dx: Any,  # (B, n)
        n: Any,
        slices: Any,
        group: Any,
    ) -> None:
        chunk, held = cuda.shared.array(CHUNK_SUMS, real), cuda.local.array(HELD, real)
        t = cuda.threadIdx.x & (THREADS - 1)  # changes nothing, but tells the compiler that t >= 0
        c, loader = t % WARP, t // WARP
        tiles = n // WARP + 1
        j = np.int64(cuda.blockIdx.x) % tiles * WARP + c
        b = np.int64(cuda.blockIdx.x) // tiles
        is_dx, is_loss = WANT_DX and j < n, WANT_LOSS and j == n
        total = group_total = nothing
        added = 0  # slices to group_total

        first = 0
        while first < slices:
            # --- the next slices into shared memory ------------------------------------------------------------------
            for k in range(HELD):
                part = first + k * LOADERS + loader
                held[k] = zero
                if is_dx and part < slices:
                    held[k] = load(slice_dx, (b * slices + part) * n + j)
                if is_loss and part < slices:
                    held[k] = load(slice_loss, b * slices + part)
            if first > 0:
                cuda.syncthreads()  # those before have been added
            for k in range(HELD):
                chunk[(k * LOADERS + loader) * WARP + c] = held[k]
            cuda.syncthreads()

            # --- their sum -------------------------------------------------------------------------------------------
            k = 0
            while loader == 0 and k < min(CHUNK, slices - first):
                group_total += chunk[k * WARP + c]
                k += 1
                added += 1
                if added == group or first + k == slices:
                    total += group_total
                    group_total = nothing
                    added = 0
            first += CHUNK
        if loader > 0:
            return
        if is_dx:
            store(dx, b * n + j, total)
        if is_loss:
            store(loss, b, total)

    return finish
