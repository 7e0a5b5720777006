"""The kernel for rows that keep a warp busy, in numba.cuda, straight from global memory; rows.cuh is CuPy's.

A block owns one or several units. A team of threads owns AT_ONCE rows at a time, a thread the same columns of each row:
VECTORS times VECTOR neighbouring ones. x and the team's part of dx stay in registers.
"""

from typing import Any

import numpy as np

from sigmoid_l2.kernels import Wanted
from sigmoid_l2.kernels.gpu.common import (
    TYPES,
    add_scaled,
    cuda,
    dot,
    framework,
    load_global,
    multiply_add,
    s_and_g,
    scale,
    shuffle,
    shuffle_xor,
    store_global,
    store_shared,
    sum_over_warps,
)
from sigmoid_l2.kernels.gpu.plan import WARP, Rows


def rows_source(p: Rows, itemsize: int, wide: bool, wanted: Wanted) -> Any:
    """The kernel's Python function for one plan; p.rows and p.slices are arguments, so they may be 0.

    Grid: ceil(units / (THREADS / (ROW_THREADS * TEAMS))) blocks of THREADS threads. TEAMS is 1 unless a team is a warp;
    VECTORS * ROW_THREADS * VECTOR columns are as few as hold n.
    """
    THREADS, ROW_THREADS, TEAMS, VECTOR, VECTORS, AT_ONCE = p[:6]
    WANT_LOSS, WANT_DW, WANT_DX = wanted
    real, zero, one = framework.REALS[itemsize], TYPES[itemsize](0), TYPES[itemsize](1)
    UNIT_THREADS, WARPS = ROW_THREADS * TEAMS, ROW_THREADS // WARP
    UNITS = THREADS // UNIT_THREADS
    OWN = VECTORS * VECTOR  # columns of a thread
    STEP = ROW_THREADS * VECTOR  # columns from one of a thread's vectors to the next
    SHIFTS = AT_ONCE.bit_length() - 1
    ROOM = STEP * VECTORS
    Q_SUMS, W_ROWS = 2 * WARPS * AT_ONCE, AT_ONCE * OWN
    LOSS_SUMS, DX_SUMS = (UNITS * TEAMS, UNITS * TEAMS * ROOM) if TEAMS > 1 else (1, 1)
    dot_own, add_scaled_own, scale_vector = dot(OWN), add_scaled(OWN), scale(VECTOR)
    sum_q = sum_over_warps(WARPS, AT_ONCE)
    load, store, store_dx = load_global(wide, VECTOR), store_global(wide, VECTOR), store_shared(VECTOR)

    def sigmoid_l2_rows(
        W: Any,  # (B, m, n)
        x: Any,  # (B, n)
        loss: Any,  # (units,)
        dW: Any,  # (B, m, n)
        dx: Any,  # (units, n)
        units: Any,
        m: Any,
        n: Any,
        rows: Any,
        slices: Any,
    ) -> None:
        q_sums = cuda.shared.array(Q_SUMS, real)
        loss_sums, dx_sums = cuda.shared.array(LOSS_SUMS, real), cuda.shared.array(DX_SUMS, real, 16)
        x_own, dx_own = cuda.local.array(OWN, real), cuda.local.array(OWN, real)
        dW_own, W_rows = cuda.local.array(VECTOR, real), cuda.local.array(W_ROWS, real)
        q = cuda.local.array(AT_ONCE, real)
        total = zero

        # --- where this thread works ---------------------------------------------------------------------------------
        t = cuda.threadIdx.x & (THREADS - 1)  # as it is; it tells the compiler that t is not negative
        lane, team = t % WARP, t // ROW_THREADS % TEAMS
        unit = np.uint32(cuda.blockIdx.x * UNITS + t // UNIT_THREADS)
        pair, row = np.int64(unit // np.uint32(slices)), np.int64(unit % np.uint32(slices)) * rows
        end = 0 if unit >= units else min(m - row, rows)
        first = t % ROW_THREADS * VECTOR  # column
        has_last = first + (VECTORS - 1) * STEP < n
        here = (pair * m + row + team * AT_ONCE) * n + first  # in W and dW
        turn = 0  # of the two halves of q_sums

        for k in range(OWN):
            x_own[k] = dx_own[k] = zero
        for k in range(VECTORS):
            if unit < units and (k + 1 < VECTORS or has_last):
                load(x_own, k * VECTOR, x, pair * n + first + k * STEP)

        i = team * AT_ONCE
        while i < end:
            # --- W of AT_ONCE rows -----------------------------------------------------------------------------------
            for k in range(W_ROWS):
                W_rows[k] = zero
            for a in range(AT_ONCE):
                for k in range(VECTORS):
                    if (a == 0 or i + a < end) and (k + 1 < VECTORS or has_last):
                        load(W_rows, a * OWN + k * VECTOR, W, here + a * n + k * STEP)

            # --- q = W x ---------------------------------------------------------------------------------------------
            for a in range(AT_ONCE):
                q[a] = dot_own(W_rows, a * OWN, x_own, 0, zero)

            # --- s, g and loss: lane l does row i + l % AT_ONCE ------------------------------------------------------
            s, g_own = s_and_g(sum_q(q, q_sums, turn * WARPS * AT_ONCE), one)
            turn ^= 1
            if AT_ONCE == 1 or i + lane % AT_ONCE < end:
                total = multiply_add(s, s, total)
            else:
                g_own = zero  # no row: s and g are NaN where x is infinite

            # --- dW = g x^T, dx += W^T g -----------------------------------------------------------------------------
            for a in range(AT_ONCE):
                g = shuffle(g_own, a)
                add_scaled_own(dx_own, 0, g, W_rows, a * OWN)
                for k in range(VECTORS):
                    scale_vector(dW_own, 0, g, x_own, k * VECTOR)
                    if WANT_DW and (a == 0 or i + a < end) and (k + 1 < VECTORS or has_last):
                        store(dW, here + a * n + k * STEP, dW_own, 0)
            i += TEAMS * AT_ONCE
            here += TEAMS * AT_ONCE * n

        # --- loss and dx of the unit ---------------------------------------------------------------------------------
        for d in range(SHIFTS):
            total += shuffle_xor(total, 1 << d)
        if TEAMS == 1:
            if unit >= units:
                return
            if WANT_LOSS and t % ROW_THREADS == 0:
                loss[unit] = total
            for k in range(VECTORS):
                if WANT_DX and (k + 1 < VECTORS or has_last):
                    store(dx, unit * n + first + k * STEP, dx_own, k * VECTOR)
        else:
            first_team = t // UNIT_THREADS * TEAMS  # of the unit
            if lane == 0:
                loss_sums[t // ROW_THREADS] = total
            for k in range(VECTORS):
                store_dx(dx_sums, t // ROW_THREADS * ROOM + first + k * STEP, dx_own, k * VECTOR)
            cuda.syncthreads()
            if unit >= units:
                return
            if WANT_LOSS and t % UNIT_THREADS == 0:
                total = zero
                for k in range(TEAMS):
                    total += loss_sums[first_team + k]
                loss[unit] = total
            if WANT_DX:
                j = t % UNIT_THREADS
                while j < n:
                    total = zero
                    for k in range(TEAMS):
                        total += dx_sums[(first_team + k) * ROOM + j]
                    dx[unit, j] = total
                    j += UNIT_THREADS

    return sigmoid_l2_rows
