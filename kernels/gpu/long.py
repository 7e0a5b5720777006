"""The kernel for rows that fill the registers of a whole block, in numba.cuda; long.cuh is CuPy's.

A block owns a unit and goes from row to row, one block a multiprocessor. A thread owns the same columns of each:
VECTORS groups of WIDTH neighbouring columns; groups are STEP columns apart. A row of W and dx stay in registers, dx of
the first SHARED groups in shared memory.

There is no room for x. It is read once a row, from the cache: a group serves dW of this row and q of the next one,
whose W is on its way as soon as a group of W has gone into dx.
"""

from typing import Any

import numpy as np

from sigmoid_l2.kernels import Given, Wanted
from sigmoid_l2.kernels.gpu.common import (
    TYPES,
    add_scaled,
    cuda,
    dot,
    error_and_g,
    framework,
    load_global,
    load_shared,
    load_value,
    multiply_add,
    scale,
    store_global,
    store_shared,
    store_value,
    sum_over_row_threads,
)
from sigmoid_l2.kernels.gpu.plan import WARP
from sigmoid_l2.kernels.gpu.plan_types import Long


def long_function(plan: Long, itemsize: int, wide: bool, given: Given, wanted: Wanted) -> Any:
    """The kernel's Python function for one plan, whose ``rows`` and ``slices`` are arguments of the kernel.

    Grid: a block of THREADS threads for each unit. VECTORS is the smallest number with VECTORS * STEP >= n.
    """
    THREADS, WIDTH, VECTORS, SHARED = plan[:4]
    GIVEN_TARGET, GIVEN_COTANGENT = given
    WANT_LOSS, WANT_DW, WANT_DX, WANT_DQ = wanted
    WARPS, STEP = THREADS // WARP, THREADS * WIDTH
    Q_SUMS, DX_SHARED, OWN = 2 * WARPS, SHARED * STEP, VECTORS * WIDTH
    real, zero, one = framework.REALS[itemsize], TYPES[itemsize](0), TYPES[itemsize](1)
    e_and_g = error_and_g(given, itemsize)
    load, store, get, put = load_global(wide, WIDTH), store_global(wide, WIDTH), load_shared(WIDTH), store_shared(WIDTH)
    dot_group, add_scaled_group, scale_group = dot(WIDTH), add_scaled(WIDTH), scale(WIDTH)
    sum_q, load_one, store_one = sum_over_row_threads(WARPS, 1), load_value(itemsize), store_value(itemsize)

    def fused_long(
        W: Any,  # (B, m, n)
        x: Any,  # (B, n)
        target: Any,  # (B, m)
        cotangent: Any,  # (B,)
        loss: Any,  # (units,)
        dW: Any,  # (B, m, n)
        dx: Any,  # (units, n)
        dq: Any,  # (B, m)
        m: Any,
        n: Any,
        rows: Any,
        slices: Any,
    ) -> None:
        q_sums = cuda.shared.array(Q_SUMS, real)  # for sum_over_row_threads, which uses the halves in turn
        c_shared = cuda.shared.array(1, real)  # the cotangent, for which the longest rows leave no register
        dx_shared = cuda.shared.array(DX_SHARED, real, 16)
        W_row, dx_own = cuda.local.array(OWN, real), cuda.local.array(OWN, real)
        x_own, dW_own, dx_read = (
            cuda.local.array(WIDTH, real),
            cuda.local.array(WIDTH, real),
            cuda.local.array(WIDTH, real),
        )
        q = cuda.local.array(1, real)

        # --- where this thread works ---------------------------------------------------------------------------------
        t = cuda.threadIdx.x & (THREADS - 1)  # changes nothing, but tells the compiler that t >= 0
        first = t * WIDTH  # column
        unit = np.uint32(cuda.blockIdx.x)  # a 64-bit division is a function call
        pair, row = np.int64(unit // np.uint32(slices)), np.int64(unit % np.uint32(slices)) * rows
        end = np.uint32(min(m - row, rows))
        has_last = first + (VECTORS - 1) * STEP < n
        x_at, W_at = pair * n + first, (pair * m + row) * n + first  # W_at: of row i
        y_at = pair * m + row  # of row i, in target and dq
        y, c, total = zero, one, zero

        # --- q = W x of the first row --------------------------------------------------------------------------------
        for k in range(VECTORS):
            if k + 1 < VECTORS or has_last:
                load(W_row, k * WIDTH, W, W_at + k * STEP)
        if GIVEN_TARGET:
            y = load_one(target, y_at)
        if GIVEN_COTANGENT and t == 0:
            c_shared[0] = load_one(cotangent, pair)
        for k in range(OWN):
            dx_own[k] = zero
        q[0] = zero
        for k in range(VECTORS):
            if WANT_DX and k < SHARED:
                put(dx_shared, k * STEP + first, dx_own, k * WIDTH)
            if k + 1 < VECTORS or has_last:
                load(x_own, 0, x, x_at + k * STEP)
                q[0] = dot_group(W_row, k * WIDTH, x_own, 0, q[0])
        i = np.uint32(0)
        while i < end:
            # --- e, g and loss ---------------------------------------------------------------------------------------
            q_row = sum_q(q, q_sums, i % 2 * WARPS)
            if GIVEN_COTANGENT:
                c = c_shared[0]  # in the sum all threads have met at a barrier
            e, g = e_and_g(q_row, y, c)
            total = multiply_add(e, e, total)
            if WANT_DQ and t == 0:
                store_one(dq, y_at + i, g)

            # --- dx += W^T g; W and target of the next row -----------------------------------------------------------
            i = np.uint32(i + 1)
            if GIVEN_TARGET and i < end:
                y = load_one(target, y_at + i)
            for k in range(VECTORS):
                if k + 1 < VECTORS or has_last:
                    if WANT_DX and k < SHARED:
                        get(dx_read, 0, dx_shared, k * STEP + first)
                        add_scaled_group(dx_read, 0, g, W_row, k * WIDTH)
                        put(dx_shared, k * STEP + first, dx_read, 0)
                    elif WANT_DX:
                        add_scaled_group(dx_own, k * WIDTH, g, W_row, k * WIDTH)
                    if i < end:
                        load(W_row, k * WIDTH, W, W_at + n + k * STEP)

            # --- dW = g x^T; q = W x of the next row -----------------------------------------------------------------
            q[0] = zero
            for k in range(VECTORS):
                if k + 1 < VECTORS or has_last:
                    load(x_own, 0, x, x_at + k * STEP)
                    scale_group(dW_own, 0, g, x_own, 0)
                    if WANT_DW:
                        store(dW, W_at + k * STEP, dW_own, 0)
                    q[0] = dot_group(W_row, k * WIDTH, x_own, 0, q[0])
            W_at += n

        # --- loss and dx of the unit ---------------------------------------------------------------------------------
        if WANT_LOSS and t == 0:
            store_one(loss, unit, total)
        for k in range(VECTORS):
            if WANT_DX and (k + 1 < VECTORS or has_last):
                if k < SHARED:
                    get(dx_own, k * WIDTH, dx_shared, k * STEP + first)
                store(dx, unit * n + first + k * STEP, dx_own, k * WIDTH)

    return fused_long
