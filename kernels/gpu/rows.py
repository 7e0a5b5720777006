"""The kernel for rows that keep a warp busy, in numba.cuda, straight from global memory; rows.cuh is CuPy's.

A block owns one or several units. A team of threads owns AT_ONCE rows at a time. A thread owns the same columns of
each: VECTORS groups of WIDTH neighbouring columns; groups are STEP columns apart. x and the team's part of dx stay in
registers.
"""

from typing import Any

import numpy as np

from sigmoid_l2.kernels import Given, Wanted
from sigmoid_l2.kernels.gpu.common import (
    TYPES,
    add_scaled,
    cuda,
    device,
    dot,
    error_and_g,
    framework,
    load_global,
    load_value,
    multiply_add,
    scale,
    shuffle,
    shuffle_xor,
    store_global,
    store_shared,
    store_value,
    sum_over_row_threads,
)
from sigmoid_l2.kernels.gpu.plan import WARP
from sigmoid_l2.kernels.gpu.plan_types import Rows


def load_row(wide: bool, WIDTH: int, VECTORS: int, STEP: int) -> Any:
    """Load a thread's columns of one row: VECTORS vectors, STEP columns apart; the last may be beyond the row's end."""
    load = load_global(wide, WIDTH)

    def function(to: Any, to_at: Any, source: Any, at: Any, has_last: Any) -> None:
        for k in range(VECTORS):
            if k + 1 < VECTORS or has_last:
                load(to, to_at + k * WIDTH, source, at + k * STEP)

    return device(function)


def store_row(wide: bool, WIDTH: int, VECTORS: int, STEP: int) -> Any:
    """Store the same columns of dW or dx."""
    store = store_global(wide, WIDTH)

    def function(to: Any, to_at: Any, source: Any, at: Any, has_last: Any) -> None:
        for k in range(VECTORS):
            if k + 1 < VECTORS or has_last:
                store(to, to_at + k * STEP, source, at + k * WIDTH)

    return device(function)


def add_row(itemsize: int, WIDTH: int, VECTORS: int, STEP: int) -> Any:
    """Add them to what is there."""
    load, store = load_value(itemsize), store_value(itemsize)

    def function(to: Any, to_at: Any, source: Any, has_last: Any) -> None:
        for k in range(VECTORS):
            for v in range(WIDTH):
                if k + 1 < VECTORS or has_last:
                    at = to_at + k * STEP + v
                    store(to, at, load(to, at) + source[k * WIDTH + v])

    return device(function)


def add_teams(
    ROW_THREADS: int, TEAMS: int, WIDTH: int, VECTORS: int, itemsize: int, WANT_LOSS: bool, WANT_DX: bool
) -> Any:
    """loss and dx of a slice, from those of its teams, added in their order.

    Those of a unit's later slices are added to what the slices before have left.
    """
    UNIT_THREADS, STEP = TEAMS * ROW_THREADS, ROW_THREADS * WIDTH
    COLUMNS = VECTORS * STEP
    zero = TYPES[itemsize](0)
    store, load_one, store_one = store_shared(WIDTH), load_value(itemsize), store_value(itemsize)

    def function(
        loss: Any,
        dx: Any,
        loss_own: Any,
        dx_own: Any,
        unit: Any,
        is_there: Any,
        n: Any,
        is_first: Any,
        loss_sums: Any,  # (BLOCK_UNITS * TEAMS,)
        dx_sums: Any,  # (BLOCK_UNITS * TEAMS, COLUMNS)
        t: Any,
    ) -> None:
        thread, team = t % ROW_THREADS, t // ROW_THREADS
        if not is_first:
            cuda.syncthreads()  # all have read the sums of the slice before
        if thread == 0:
            loss_sums[team] = loss_own
        for k in range(VECTORS):
            store(dx_sums, team * COLUMNS + k * STEP + thread * WIDTH, dx_own, k * WIDTH)
        cuda.syncthreads()

        if not is_there:
            return
        first = team // TEAMS * TEAMS  # the unit's first team
        if WANT_LOSS and t % UNIT_THREADS == 0:
            total = zero
            for k in range(TEAMS):
                total += loss_sums[first + k]
            store_one(loss, unit, total if is_first else load_one(loss, unit) + total)
        j = t % UNIT_THREADS
        while WANT_DX and j < n:
            total = zero
            for k in range(TEAMS):
                total += dx_sums[(first + k) * COLUMNS + j]
            store_one(dx, unit * n + j, total if is_first else load_one(dx, unit * n + j) + total)
            j += UNIT_THREADS

    return device(function)


def rows_function(plan: Rows, itemsize: int, wide: bool, given: Given, wanted: Wanted) -> Any:
    """The kernel's Python function for one plan, whose ``rows`` and ``slices`` are arguments of the kernel.

    Grid: ceil(units / (THREADS / (ROW_THREADS * TEAMS))) blocks of THREADS threads. TEAMS is 1 if a team has more than
    a warp. VECTORS is the smallest number with VECTORS * ROW_THREADS * WIDTH >= n. If IN_TURN, a unit is a group of
    slices of ``rows`` rows each, which it does one after the other.
    """
    THREADS, ROW_THREADS, TEAMS, WIDTH, VECTORS, AT_ONCE = plan[:6]
    IN_TURN, UNIT_THREADS, BLOCK_UNITS = plan.in_turn, ROW_THREADS * TEAMS, plan.block_units
    LANES = min(ROW_THREADS, WARP)
    WARPS, WARP_TEAMS = ROW_THREADS // LANES, min(TEAMS, WARP // LANES)  # of a unit
    OWN, STEP, STEP_ROWS = VECTORS * WIDTH, ROW_THREADS * WIDTH, TEAMS * AT_ONCE
    assert WARPS == 1 or (TEAMS == 1 and BLOCK_UNITS == 1), "all of the block meets at a row's barrier"
    SHIFTS, Q_SUMS, W_ROWS = AT_ONCE.bit_length() - 1, 2 * WARPS * AT_ONCE, AT_ONCE * OWN
    LOSS_SUMS, DX_SUMS = (BLOCK_UNITS * TEAMS, BLOCK_UNITS * TEAMS * VECTORS * STEP) if TEAMS > 1 else (1, 1)
    GIVEN_TARGET, GIVEN_COTANGENT = given
    Y_SHARED = 2 * AT_ONCE
    WANT_LOSS, WANT_DW, WANT_DX, WANT_DQ = wanted
    real, zero, one = framework.REALS[itemsize], TYPES[itemsize](0), TYPES[itemsize](1)
    e_and_g = error_and_g(given, itemsize)
    load, store = load_row(wide, WIDTH, VECTORS, STEP), store_row(wide, WIDTH, VECTORS, STEP)
    dot_own, add_scaled_own, scale_own = dot(OWN), add_scaled(OWN), scale(OWN)
    sum_q = sum_over_row_threads(WARPS, AT_ONCE, LANES)
    load_one, store_one, add_own = load_value(itemsize), store_value(itemsize), add_row(itemsize, WIDTH, VECTORS, STEP)
    add = add_teams(ROW_THREADS, TEAMS, WIDTH, VECTORS, itemsize, WANT_LOSS, WANT_DX)

    def fused_rows(
        W: Any,  # (B, m, n)
        x: Any,  # (B, n)
        target: Any,  # (B, m)
        cotangent: Any,  # (B,)
        loss: Any,  # (units,)
        dW: Any,  # (B, m, n)
        dx: Any,  # (units, n)
        dq: Any,  # (B, m)
        units: Any,
        m: Any,
        n: Any,
        rows: Any,
        unit_rows: Any,
        slices: Any,
    ) -> None:
        q_sums = cuda.shared.array(Q_SUMS, real)  # for sum_over_row_threads, which uses the halves in turn
        # cotangent and target where a row has several warps
        c_shared, y_shared = cuda.shared.array(1, real), cuda.shared.array(Y_SHARED, real)
        loss_sums, dx_sums = cuda.shared.array(LOSS_SUMS, real), cuda.shared.array(DX_SUMS, real, 16)
        x_own, dx_own = cuda.local.array(OWN, real), cuda.local.array(OWN, real)
        W_rows, dW_row = cuda.local.array(W_ROWS, real), cuda.local.array(OWN, real)
        q = cuda.local.array(AT_ONCE, real)

        # --- where this thread works ---------------------------------------------------------------------------------
        t = cuda.threadIdx.x & (THREADS - 1)  # changes nothing, but tells the compiler that t >= 0
        lane, team = t % WARP, t // ROW_THREADS % TEAMS
        unit = np.uint32(cuda.blockIdx.x * BLOCK_UNITS + t // UNIT_THREADS)  # a 64-bit division is a function call
        pair = unit // np.uint32(slices)
        first = t % ROW_THREADS * WIDTH  # column
        is_there = BLOCK_UNITS == 1 or unit < units
        has_last = first + (VECTORS - 1) * STEP < n
        for k in range(OWN):
            x_own[k] = zero
        turn = 0

        if is_there:
            load(x_own, 0, x, pair * n + first, has_last)
        c_own, y_first = one, np.int64(pair) * m  # y_first: of the pair, in target and dq
        if GIVEN_COTANGENT and WARPS == 1 and is_there:
            c_own = load_one(cotangent, pair)
        if GIVEN_COTANGENT and WARPS > 1 and t == 0:
            c_shared[0] = load_one(cotangent, pair)
        slice_end = unit % np.uint32(slices) * unit_rows
        i = slice_end + team * AT_ONCE
        W_at = (pair * m + i) * n + first  # of row i, in W and dW
        left = unit_rows  # with this slice
        while True:  # for each slice of the unit
            slice_end = min(m, slice_end + rows)
            end = slice_end if is_there else 0
            for k in range(OWN):
                dx_own[k] = zero
            total = zero
            # The teams of a warp make the same number of steps, even where one has no row.
            while i - team % WARP_TEAMS * AT_ONCE < (slice_end if LANES < WARP else end):
                # --- W and target of the rows i to i + AT_ONCE - 1; lane l has the target of row i + l % AT_ONCE -----
                for k in range(W_ROWS):
                    W_rows[k] = zero
                for a in range(AT_ONCE):
                    # With a warp or more, row i exists, which the compiler does not infer; so too below.
                    if (a == 0 and LANES == WARP) or i + a < end:
                        load(W_rows, a * OWN, W, W_at + a * n, has_last)
                y_own, own_row = zero, i + lane % AT_ONCE
                if GIVEN_TARGET and WARPS == 1 and own_row < end:
                    y_own = load_one(target, y_first + own_row)
                if GIVEN_TARGET and WARPS > 1 and t < AT_ONCE and own_row < end:
                    y_shared[turn * AT_ONCE + t] = load_one(target, y_first + own_row)

                # --- q = W x -----------------------------------------------------------------------------------------
                for a in range(AT_ONCE):
                    q[a] = dot_own(W_rows, a * OWN, x_own, 0, zero)

                # --- e, g and loss: lane l does row i + l % AT_ONCE --------------------------------------------------
                q_own = sum_q(q, q_sums, turn * WARPS * AT_ONCE)
                # The longest rows leave no register for either before the sum. In it all threads meet at a barrier.
                if GIVEN_TARGET and WARPS > 1 and own_row < end:
                    y_own = y_shared[turn * AT_ONCE + lane % AT_ONCE]
                if GIVEN_COTANGENT and WARPS > 1:
                    c_own = c_shared[0]
                e, g_own = e_and_g(q_own, y_own, c_own)
                turn ^= 1
                if (AT_ONCE == 1 and LANES == WARP) or own_row < end:
                    total = multiply_add(e, e, total)
                else:
                    g_own = zero  # no row: e and g are NaN where x is infinite
                if WANT_DQ and own_row < end and t % ROW_THREADS < AT_ONCE:
                    store_one(dq, y_first + own_row, g_own)

                # --- dW = g x^T, dx += W^T g -------------------------------------------------------------------------
                for a in range(AT_ONCE):
                    g = shuffle(g_own, lane // LANES * LANES + a)
                    add_scaled_own(dx_own, 0, g, W_rows, a * OWN)
                    scale_own(dW_row, 0, g, x_own, 0)
                    if WANT_DW and ((a == 0 and LANES == WARP) or i + a < end):
                        store(dW, W_at + a * n, dW_row, 0, has_last)
                i += STEP_ROWS
                W_at += STEP_ROWS * n

            # --- loss and dx of the slice ----------------------------------------------------------------------------
            is_first = not IN_TURN or left == unit_rows
            for d in range(SHIFTS):
                total += shuffle_xor(total, 1 << d)
            if TEAMS > 1:
                add(loss, dx, total, dx_own, unit, is_there, n, is_first, loss_sums, dx_sums, t)
            elif is_there:
                if WANT_LOSS and t % ROW_THREADS == 0:
                    store_one(loss, unit, total if is_first else load_one(loss, unit) + total)
                if WANT_DX and is_first:
                    store(dx, unit * n + first, dx_own, 0, has_last)
                if WANT_DX and not is_first:
                    add_own(dx, unit * n + first, dx_own, has_last)
            if not IN_TURN or slice_end >= m or left == rows:
                break
            left -= rows
            if TEAMS == 1:  # else ``rows`` is a multiple of their step
                W_at -= (i - slice_end) * n
                i = slice_end

    return fused_rows
