"""The kernel for rows that the registers of a block do not hold, in numba.cuda; long.cuh is CuPy's.

A block owns a pair and reads W twice; a thread owns every THREADS-th column. dx is summed in its own place: a column
belongs to one thread, so that needs no barrier.
"""

from typing import Any

import numpy as np

from sigmoid_l2.kernels import Wanted
from sigmoid_l2.kernels.gpu.common import (
    TYPES,
    cuda,
    framework,
    load_value,
    multiply,
    multiply_add,
    s_and_g,
    store_value,
    sum_over_row_threads,
)
from sigmoid_l2.kernels.gpu.plan import WARP, Long


def long_function(plan: Long, itemsize: int, wanted: Wanted) -> Any:
    """The kernel's Python function. Grid: B blocks of THREADS threads."""
    THREADS = plan.threads
    WANT_LOSS, WANT_DW, WANT_DX = wanted
    WARPS = THREADS // WARP
    Q_SUMS = 2 * WARPS
    real, zero, one = framework.REALS[itemsize], TYPES[itemsize](0), TYPES[itemsize](1)
    sum_q, load, store = sum_over_row_threads(WARPS, 1), load_value(itemsize), store_value(itemsize)

    def fused_long(
        W: Any,  # (B, m, n)
        x: Any,  # (B, n)
        loss: Any,  # (B,)
        dW: Any,  # (B, m, n)
        dx: Any,  # (B, n)
        m: Any,
        n: Any,
    ) -> None:
        q_sums = cuda.shared.array(Q_SUMS, real)
        q = cuda.local.array(1, real)
        t = cuda.threadIdx.x & (THREADS - 1)  # changes nothing, but tells the compiler that t >= 0
        b = np.int64(cuda.blockIdx.x)
        total = zero

        for i in range(m):
            row_first = (b * m + i) * n  # in W and dW

            # --- q = W x ---------------------------------------------------------------------------------------------
            q[0] = zero
            j = t
            while j < n:
                q[0] = multiply_add(load(W, row_first + j), load(x, b * n + j), q[0])
                j += THREADS

            # --- s, g and loss ---------------------------------------------------------------------------------------
            s, g = s_and_g(sum_q(q, q_sums, i % 2 * WARPS), one)
            total = multiply_add(s, s, total)

            # --- dW = g x^T, dx += W^T g -----------------------------------------------------------------------------
            j = t
            while j < n:
                if WANT_DX:
                    before = load(dx, b * n + j) if i > 0 else zero
                    store(dx, b * n + j, multiply_add(g, load(W, row_first + j), before))
                if WANT_DW:
                    store(dW, row_first + j, multiply(g, load(x, b * n + j)))
                j += THREADS
        if WANT_LOSS and t == 0:
            store(loss, b, total)

    return fused_long
