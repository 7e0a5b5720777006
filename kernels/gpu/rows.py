"""The kernel for rows that keep a warp busy, in numba.cuda, straight from global memory; rows.cuh is CuPy's.

A block owns one or several units. A team of threads owns AT_ONCE rows at a time, a thread the same columns of each row:
VECTORS times VECTOR neighbouring ones, STEP apart. x and the team's part of dx stay in registers.
"""

from typing import Any

import numpy as np

from sigmoid_l2.kernels import Wanted
from sigmoid_l2.kernels.gpu.common import (
    TYPES,
    add_scaled,
    cuda,
    device,
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


def load_row(wide: bool, VECTOR: int, VECTORS: int, STEP: int) -> Any:
    """A thread's columns of one row: VECTORS vectors, STEP columns apart; the last may be beyond the row's end."""
    load = load_global(wide, VECTOR)

    def function(to: Any, to_at: Any, source: Any, at: Any, has_last: Any) -> None:
        for k in range(VECTORS):
            if k + 1 < VECTORS or has_last:
                load(to, to_at + k * VECTOR, source, at + k * STEP)

    return device(function)


def store_row(wide: bool, VECTOR: int, VECTORS: int, STEP: int) -> Any:
    """The same columns of dW or dx."""
    store = store_global(wide, VECTOR)

    def function(to: Any, to_at: Any, source: Any, at: Any, has_last: Any) -> None:
        for k in range(VECTORS):
            if k + 1 < VECTORS or has_last:
                store(to, to_at + k * STEP, source, at + k * VECTOR)

    return device(function)


def add_teams(TEAMS: int, VECTOR: int, VECTORS: int, itemsize: int, WANT_LOSS: bool, WANT_DX: bool) -> Any:
    """loss and dx of a unit, from those of its teams, added in their order."""
    UNIT_THREADS, STEP = TEAMS * WARP, WARP * VECTOR
    COLUMNS = VECTORS * STEP
    zero = TYPES[itemsize](0)
    store = store_shared(VECTOR)

    def function(
        loss: Any,
        dx: Any,
        total: Any,
        dx_own: Any,
        unit: Any,
        units: Any,
        n: Any,
        loss_sums: Any,  # (UNITS * TEAMS,)
        dx_sums: Any,  # (UNITS * TEAMS, COLUMNS)
        t: Any,
    ) -> None:
        lane, team = t % WARP, t // WARP
        if lane == 0:
            loss_sums[team] = total
        for k in range(VECTORS):
            store(dx_sums, team * COLUMNS + k * STEP + lane * VECTOR, dx_own, k * VECTOR)
        cuda.syncthreads()

        if unit >= units:
            return
        first = team // TEAMS * TEAMS  # team of the unit
        if WANT_LOSS and t % UNIT_THREADS == 0:
            total = zero
            for k in range(TEAMS):
                total += loss_sums[first + k]
            loss[unit] = total
        j = t % UNIT_THREADS
        while WANT_DX and j < n:
            total = zero
            for k in range(TEAMS):
                total += dx_sums[(first + k) * COLUMNS + j]
            dx[unit, j] = total
            j += UNIT_THREADS

    return device(function)


def rows_source(p: Rows, itemsize: int, wide: bool, wanted: Wanted) -> Any:
    """The kernel's Python function for one plan; p.rows and p.slices are arguments, so they may be 0.

    Grid: ceil(units / (THREADS / (ROW_THREADS * TEAMS))) blocks of THREADS threads. TEAMS is 1 unless a team is a warp;
    VECTORS * ROW_THREADS * VECTOR columns are as few as hold n.
    """
    THREADS, ROW_THREADS, TEAMS, VECTOR, VECTORS, AT_ONCE = p[:6]
    UNIT_THREADS, UNITS, WARPS = ROW_THREADS * TEAMS, p.units, ROW_THREADS // WARP
    OWN, STEP = VECTORS * VECTOR, ROW_THREADS * VECTOR
    SHIFTS, Q_SUMS, W_ROWS = AT_ONCE.bit_length() - 1, 2 * WARPS * AT_ONCE, AT_ONCE * OWN
    LOSS_SUMS, DX_SUMS = (UNITS * TEAMS, UNITS * TEAMS * VECTORS * STEP) if TEAMS > 1 else (1, 1)
    WANT_LOSS, WANT_DW, WANT_DX = wanted
    real, zero, one = framework.REALS[itemsize], TYPES[itemsize](0), TYPES[itemsize](1)
    load, store = load_row(wide, VECTOR, VECTORS, STEP), store_row(wide, VECTOR, VECTORS, STEP)
    dot_own, add_scaled_own, scale_own = dot(OWN), add_scaled(OWN), scale(OWN)
    sum_q = sum_over_warps(WARPS, AT_ONCE)
    add = add_teams(TEAMS, VECTOR, VECTORS, itemsize, WANT_LOSS, WANT_DX)

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
        q_sums = cuda.shared.array(Q_SUMS, real)  # for sum_over_warps, in turn one half and the other
        loss_sums, dx_sums = cuda.shared.array(LOSS_SUMS, real), cuda.shared.array(DX_SUMS, real, 16)
        x_own, dx_own = cuda.local.array(OWN, real), cuda.local.array(OWN, real)
        W_rows, dW_row = cuda.local.array(W_ROWS, real), cuda.local.array(OWN, real)
        q = cuda.local.array(AT_ONCE, real)

        # --- where this thread works ---------------------------------------------------------------------------------
        t = cuda.threadIdx.x & (THREADS - 1)  # as it is; it tells the compiler that t is not negative
        lane, team = t % WARP, t // ROW_THREADS % TEAMS
        unit = np.uint32(cuda.blockIdx.x * UNITS + t // UNIT_THREADS)  # of 32 bits: a division by 64 is a function call
        pair, row = np.int64(unit // np.uint32(slices)), np.int64(unit % np.uint32(slices)) * rows
        end = 0 if unit >= units else min(m - row, rows)
        first = t % ROW_THREADS * VECTOR  # column
        has_last = first + (VECTORS - 1) * STEP < n
        here = (pair * m + row + team * AT_ONCE) * n + first  # in W and dW
        for k in range(OWN):
            x_own[k] = dx_own[k] = zero
        total = zero
        turn = 0

        if unit < units:
            load(x_own, 0, x, pair * n + first, has_last)
        i = team * AT_ONCE
        while i < end:
            # --- W of the rows i to i + AT_ONCE - 1 ------------------------------------------------------------------
            for k in range(W_ROWS):
                W_rows[k] = zero
            for a in range(AT_ONCE):
                if a == 0 or i + a < end:  # a == 0: the compiler does not infer that row i exists
                    load(W_rows, a * OWN, W, here + a * n, has_last)

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
                scale_own(dW_row, 0, g, x_own, 0)
                if WANT_DW and (a == 0 or i + a < end):
                    store(dW, here + a * n, dW_row, 0, has_last)
            i += TEAMS * AT_ONCE
            here += TEAMS * AT_ONCE * n

        # --- loss and dx of the unit ---------------------------------------------------------------------------------
        for d in range(SHIFTS):
            total += shuffle_xor(total, 1 << d)
        if TEAMS > 1:
            add(loss, dx, total, dx_own, unit, units, n, loss_sums, dx_sums, t)
        elif unit < units:
            if WANT_LOSS and t % ROW_THREADS == 0:
                loss[unit] = total
            if WANT_DX:
                store(dx, unit * n + first, dx_own, 0, has_last)

    return sigmoid_l2_rows
