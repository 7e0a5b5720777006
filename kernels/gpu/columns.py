"""Two kernels for rows that no block can hold, in numba.cuda; columns.cuh has CuPy's.

Both cut a pair into slices of columns. The first adds up each slice's part of q = W x; the second adds the parts in a
fixed order, reads W again and writes the gradients. Its blocks begin with the pairs that the first has read last: the
cache still has them.
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
    load_value,
    multiply_add,
    scale,
    store_global,
    store_value,
    sum_over_lanes,
    sum_over_row_threads,
)
from sigmoid_l2.kernels.gpu.plan import WARP
from sigmoid_l2.kernels.gpu.plan_types import Columns


def columns_q_function(plan: Columns, itemsize: int, wide: bool) -> Any:
    """q = W x of AT_ONCE rows in ``columns`` columns.

    Grid: B * ceil(m / AT_ONCE) * slices blocks of THREADS threads.
    """
    THREADS, WIDTH, _, AT_ONCE = plan[:4]
    WARPS, STEP = THREADS // WARP, THREADS * WIDTH
    Q_SUMS, W_OWN = WARPS * AT_ONCE, AT_ONCE * WIDTH
    real, zero = framework.REALS[itemsize], TYPES[itemsize](0)
    load, store_one = load_global(wide, WIDTH), store_value(itemsize)
    dot_group, sum_q = dot(WIDTH), sum_over_row_threads(WARPS, AT_ONCE)

    def columns_q(
        W: Any,  # (B, m, n)
        x: Any,  # (B, n)
        q_parts: Any,  # (B, m, slices)
        m: Any,
        n: Any,
        columns: Any,
        slices: Any,
    ) -> None:
        q_sums = cuda.shared.array(Q_SUMS, real)
        W_own, x_own = cuda.local.array(W_OWN, real), cuda.local.array(WIDTH, real)
        q = cuda.local.array(AT_ONCE, real)

        # --- where this thread works ---------------------------------------------------------------------------------
        t = cuda.threadIdx.x & (THREADS - 1)  # changes nothing, but tells the compiler that t >= 0
        block, slices_of_row = np.uint32(cuda.blockIdx.x), np.uint32(slices)  # a 64-bit division is a function call
        groups = np.uint32((m - 1) // AT_ONCE + 1)
        slice_number, group = np.int64(block % slices_of_row), np.uint32(block // slices_of_row)
        i = np.int64(group % groups) * AT_ONCE
        first = slice_number * columns
        end = min(n, first + columns)
        pair = np.int64(group // groups)
        row = pair * m + i

        # --- q = W x -------------------------------------------------------------------------------------------------
        for k in range(W_OWN):
            W_own[k] = zero
        for a in range(AT_ONCE):
            q[a] = zero
        j = first + t * WIDTH
        while j < end:
            load(x_own, 0, x, pair * n + j)
            for a in range(AT_ONCE):
                if a == 0 or i + a < m:
                    load(W_own, a * WIDTH, W, (row + a) * n + j)
            for a in range(AT_ONCE):
                q[a] = dot_group(W_own, a * WIDTH, x_own, 0, q[a])
            j += STEP
        total = sum_q(q, q_sums, 0)  # lane l: of row i + l % AT_ONCE
        if t < AT_ONCE and i + t < m:
            store_one(q_parts, (row + t) * slices + slice_number, total)

    return columns_q


def columns_gradients_function(plan: Columns, itemsize: int, wide: bool, given: Given, wanted: Wanted) -> Any:
    """dW and dx of a unit in COLUMNS = VECTORS * STEP columns, and in its first slice of columns dq and the loss.

    A thread owns VECTORS groups of WIDTH neighbouring columns, STEP apart; x and dx stay in registers. A warp computes
    g of four rows, lane k adding the part k of q. Grid: B * slices * ceil(n / COLUMNS) blocks, or B * slices without
    dW and dx.
    """
    THREADS, WIDTH, VECTORS = plan[:3]
    GIVEN_TARGET, GIVEN_COTANGENT = given
    WANT_LOSS, WANT_DW, WANT_DX, WANT_DQ = wanted
    WARPS, STEP, OWN = THREADS // WARP, THREADS * WIDTH, VECTORS * WIDTH
    COLUMNS, AT_ONCE = VECTORS * STEP, 4
    G_ROWS = WARPS * AT_ONCE
    G_ALL = 2 * G_ROWS
    real, zero, one = framework.REALS[itemsize], TYPES[itemsize](0), TYPES[itemsize](1)
    e_and_g = error_and_g(given, itemsize)
    load, store = load_global(wide, WIDTH), store_global(wide, WIDTH)
    load_one, store_one = load_value(itemsize), store_value(itemsize)
    add_scaled_group, scale_group = add_scaled(WIDTH), scale(WIDTH)
    sum_lanes, sum_loss = sum_over_lanes(WARP, AT_ONCE), sum_over_row_threads(WARPS, 1)

    def columns_gradients(
        W: Any,  # (B, m, n)
        x: Any,  # (B, n)
        target: Any,  # (B, m)
        cotangent: Any,  # (B,)
        q_parts: Any,  # (B, m, q_slices)
        loss: Any,  # (units,)
        dW: Any,  # (B, m, n)
        dx: Any,  # (units, n)
        dq: Any,  # (B, m)
        m: Any,
        n: Any,
        rows: Any,
        slices: Any,
        q_slices: Any,
    ) -> None:
        loss_sums = cuda.shared.array(WARPS, real)
        g_rows = cuda.shared.array(G_ALL, real)  # the halves are used in turn
        x_own, dx_own = cuda.local.array(OWN, real), cuda.local.array(OWN, real)
        W_row, dW_own = cuda.local.array(OWN, real), cuda.local.array(WIDTH, real)
        q, total = cuda.local.array(AT_ONCE, real), cuda.local.array(1, real)

        # --- where this thread works ---------------------------------------------------------------------------------
        column_slices = np.uint32((n - 1) // COLUMNS + 1 if WANT_DW or WANT_DX else 1)
        block = np.uint32(cuda.blockIdx.x)
        column_slice = np.uint32(block % column_slices)
        unit = np.uint32(np.uint32(cuda.gridDim.x - 1 - block) // column_slices)
        pair, row = np.int64(unit // np.uint32(slices)), np.int64(unit % np.uint32(slices)) * rows
        end = np.uint32(min(m - row, rows))
        t = np.uint32(cuda.threadIdx.x)
        lane, warp = np.uint32(t % WARP), np.uint32(t // WARP)
        first = np.int64(column_slice) * COLUMNS + t * WIDTH
        own = np.uint32((n - first - 1) // STEP + 1 if first < n else 0)  # groups that are there, or more
        W_at = (pair * m + row) * n + first  # of row i + r, in W and dW
        q_at, y_at = (pair * m + row) * q_slices + lane, pair * m + row
        c_own = one
        if GIVEN_COTANGENT:
            c_own = load_one(cotangent, pair)
        for k in range(OWN):
            dx_own[k] = zero
        total[0] = zero
        turn = np.uint32(0)

        for k in range(VECTORS):
            if WANT_DW and k < own:
                load(x_own, k * WIDTH, x, pair * n + first + k * STEP)
        i = np.uint32(0)
        while i < end:
            # --- e, g and loss: lane l does row i + warp * AT_ONCE + l % AT_ONCE -------------------------------------
            own_row = np.uint32(i + warp * AT_ONCE + lane % AT_ONCE)
            for a in range(AT_ONCE):
                r = np.uint32(i + warp * AT_ONCE + a)
                q[a] = zero
                if r < end and lane < q_slices:
                    q[a] = load_one(q_parts, q_at + r * q_slices)
            y_own = zero
            if GIVEN_TARGET and own_row < end:
                y_own = load_one(target, y_at + own_row)
            sum_lanes(q, lane)
            e, g = e_and_g(q[0], y_own, c_own)
            if lane < AT_ONCE and own_row < end:
                total[0] = multiply_add(e, e, total[0])
            if WANT_DQ and column_slice == 0 and lane < AT_ONCE and own_row < end:
                store_one(dq, y_at + own_row, g)
            if lane < AT_ONCE:
                g_rows[np.uint32(turn * G_ROWS + warp * AT_ONCE + lane)] = g
            cuda.syncthreads()

            # --- dW = g x^T, dx += W^T g -----------------------------------------------------------------------------
            r, here = np.uint32(0), min(np.uint32(end - i), np.uint32(G_ROWS))
            while r < here and (WANT_DW or WANT_DX):
                g_row = g_rows[np.uint32(turn * G_ROWS + r)]
                for k in range(VECTORS):
                    if WANT_DX and k < own:
                        load(W_row, k * WIDTH, W, W_at + k * STEP)
                for k in range(VECTORS):
                    scale_group(dW_own, 0, g_row, x_own, k * WIDTH)
                    if WANT_DW and k < own:
                        store(dW, W_at + k * STEP, dW_own, 0)
                    if WANT_DX and k < own:
                        add_scaled_group(dx_own, k * WIDTH, g_row, W_row, k * WIDTH)
                W_at += n
                r = np.uint32(r + 1)
            turn = np.uint32(1 - turn)
            i = np.uint32(i + G_ROWS)

        # --- loss and dx of the unit ---------------------------------------------------------------------------------
        if WANT_LOSS and column_slice == 0:
            loss_own = sum_loss(total, loss_sums, 0)
            if t == 0:
                store_one(loss, unit, loss_own)
        for k in range(VECTORS):
            if WANT_DX and k < own:
                store(dx, unit * n + first + k * STEP, dx_own, k * WIDTH)

    return columns_gradients
