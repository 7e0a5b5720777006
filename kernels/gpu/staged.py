"""The kernel for short rows: staged.cuh in numba.cuda.

A block carries a tile of units through shared memory, so that neighbouring threads touch neighbouring addresses of
global memory however short a row is. A lane owns rows of a unit, or shares them with other lanes. Names in capitals are
constants of a compiled kernel.
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
    multiply_add,
    scale,
    shuffle,
    shuffle_xor,
    store_global,
    sum_over_lanes,
)
from sigmoid_l2.kernels.gpu.plan import SHARED_BYTES, WARP
from sigmoid_l2.kernels.gpu.plan_types import Staged
from sigmoid_l2.kernels.gpu.tile import Mover, Tile, twos


def each_row(row: Any, LANE_ROWS: int) -> Any:
    """The function that calls ``row`` for i = 0, 1, ..., LANE_ROWS - 1.

    W_own[i * COLUMNS + j] is a register only where the compiler knows i. For sm_100 it does not unroll a loop over long
    rows (3 rows of 10 columns), so up to 4 rows are written out. A lane with more rows has few columns of each; 29
    calls would take numba-cuda-mlir minutes.
    """
    zero, one, two, three = map(np.int64, range(4))  # with literals numba would compile row four times

    @device
    def loop(W_own: Any, x_own: Any, q: Any, g_own: Any, sums: Any, t: Any) -> None:
        for i in range(LANE_ROWS):
            row(i, W_own, x_own, q, g_own, sums, t)

    @device
    def written_out(W_own: Any, x_own: Any, q: Any, g_own: Any, sums: Any, t: Any) -> None:
        row(zero, W_own, x_own, q, g_own, sums, t)
        if LANE_ROWS > 1:
            row(one, W_own, x_own, q, g_own, sums, t)
        if LANE_ROWS > 2:
            row(two, W_own, x_own, q, g_own, sums, t)
        if LANE_ROWS > 3:
            row(three, W_own, x_own, q, g_own, sums, t)

    return written_out if LANE_ROWS <= 4 else loop


def staged_function(plan: Staged, M: int, N: int, itemsize: int, wide: bool, given: Given, wanted: Wanted) -> Any:
    """The kernel's Python function for one (M, N). Grid: ceil(units / BLOCK_UNITS) blocks of THREADS threads.

    ROW_LANES lanes of a unit share a row; each owns COLUMNS neighbouring columns of it, the last ones fewer. A lane has
    LANE_ROWS rows, the last ones fewer. One that owns whole pairs owns LANE_PAIRS.
    """
    THREADS, LANES, ROW_LANES, COLUMNS, LANE_ROWS, LANE_PAIRS, ROWS, SLICES = plan[:8]
    GIVEN_TARGET, GIVEN_COTANGENT = given
    WANT_LOSS, WANT_DW, WANT_DX, WANT_DQ = wanted
    real, zero, one = framework.REALS[itemsize], TYPES[itemsize](0), TYPES[itemsize](1)
    e_and_g = error_and_g(given, itemsize)
    BLOCK_UNITS, VECTOR = plan.block_units, 16 // itemsize
    W_SIZE, X_SIZE, LANE_SIZE = BLOCK_UNITS * ROWS * N, BLOCK_UNITS * N, LANE_ROWS * COLUMNS
    W_ALL, X_ALL = np.int64(W_SIZE), np.int64(X_SIZE)  # with literals numba would compile the movers twice
    assert SLICES == 1 or BLOCK_UNITS == 1, "a slice has a block to itself"
    assert LANE_PAIRS == 1 or LANES == 1, "only a lane that owns pairs owns several"
    # A lane owns LANE_ROWS whole rows that follow each other, or columns of rows that are STEP apart: so the lanes of
    # a warp touch neighbouring elements.
    WHOLE, ALL_COLUMNS = ROW_LANES == 1, ROW_LANES * COLUMNS == N
    ALL_ROWS = LANES * LANE_ROWS == ROWS * ROW_LANES and M % ROWS == 0  # each lane has LANE_ROWS
    SEGMENT = LANE_SIZE if WHOLE else COLUMNS  # of neighbouring elements
    SEGMENTS, STEP = LANE_SIZE // SEGMENT, 1 if WHOLE else LANES // ROW_LANES
    W_GRAIN = twos(N if not WHOLE else SEGMENT if BLOCK_UNITS == 1 else SEGMENT | ROWS * N, VECTOR)
    X_CHUNK = (N - 1) % COLUMNS + 1  # columns that a lane has all or none of
    W_CHUNK = X_CHUNK if X_CHUNK % W_GRAIN == 0 else W_GRAIN
    # Elements in one access: 16 bytes of them where every tile begins on a multiple of 16 bytes.
    W_WIDTH = VECTOR if wide and (W_SIZE if SLICES == 1 else M * N) % VECTOR == 0 else 1
    X_WIDTH = VECTOR if wide and X_SIZE % VECTOR == 0 else 1
    W_Tile, X_Tile = Tile(W_SIZE, SEGMENT, W_GRAIN, itemsize), Tile(X_SIZE, COLUMNS, twos(N, VECTOR), itemsize)
    W_Mover, X_Mover = Mover(W_Tile, W_SIZE, W_WIDTH, THREADS), Mover(X_Tile, X_SIZE, X_WIDTH, THREADS)
    TOGETHER, WARPS = min(LANES, WARP), LANES // WARP
    TEAMS = TOGETHER // ROW_LANES  # lanes of a column
    SUMS, UNIT_SUMS = (1 + COLUMNS, 1 + N) if WANT_DX else (1, 1)  # of a lane, of a unit: loss, dx_0, dx_1, ...
    OWN_G, SHARES = -(-LANE_ROWS // ROW_LANES), -(-SUMS // TEAMS)  # sums over lanes that a lane is left with
    W_ROOM, X_ROOM, WARP_ROOM = W_Tile.ROOM, X_Tile.ROOM, THREADS // WARP * UNIT_SUMS if LANES > WARP else 1
    W_BEYOND = W_ROOM - W_SIZE
    # The target and dq go through a tile where a lane's rows follow each other and there is room: one short row has as
    # much of them as of W. Lanes that share rows have neighbouring ones.
    Y_SIZE, Y_GRAIN = BLOCK_UNITS * ROWS, twos(LANE_ROWS if BLOCK_UNITS == 1 else LANE_ROWS | ROWS, VECTOR)
    Y_WIDTH = VECTOR if wide and (Y_SIZE if SLICES == 1 else M) % VECTOR == 0 else 1
    Y_Tile, C_Tile = Tile(Y_SIZE, LANE_ROWS, Y_GRAIN, itemsize), Tile(BLOCK_UNITS, 1, 1, itemsize)
    Y_Mover, C_Mover = Mover(Y_Tile, Y_SIZE, Y_WIDTH, THREADS), Mover(C_Tile, BLOCK_UNITS, 1, THREADS)
    ROOM = W_ROOM + X_ROOM + Y_Tile.ROOM + C_Tile.ROOM + WARP_ROOM
    Y_STAGED = WHOLE and ROOM * itemsize <= SHARED_BYTES
    TARGET_STAGED, DQ_STAGED = GIVEN_TARGET and Y_STAGED, WANT_DQ and Y_STAGED
    Y_ROOM, C_ROOM = Y_Tile.ROOM if Y_STAGED else 1, C_Tile.ROOM
    Y_BEYOND, Y_ALL, C_ALL = Y_Tile.ROOM - Y_SIZE, np.int64(Y_SIZE), np.int64(BLOCK_UNITS)
    Y_HELD, C_HELD = Y_Mover.HELD, C_Mover.HELD
    y_from_global, y_to_tile, y_from_tile, y_to_global = Y_Mover.functions
    c_from_global, c_to_tile, *_ = C_Mover.functions
    y_get, y_put, y_at = Y_Tile.get(LANE_ROWS, Y_GRAIN), Y_Tile.put(LANE_ROWS, Y_GRAIN), Y_Tile.at
    load_one = load_global(True, 1)
    W_HELD, X_HELD = W_Mover.HELD, X_Mover.HELD
    W_from_global, W_to_tile, W_from_tile, W_to_global = W_Mover.functions
    x_from_global, x_to_tile, x_from_tile, x_to_global = X_Mover.functions
    W_get, W_put, W_at = W_Tile.get(SEGMENT, W_CHUNK), W_Tile.put(SEGMENT, W_CHUNK), W_Tile.at
    x_get, x_put, x_at = X_Tile.get(COLUMNS, X_CHUNK), X_Tile.put(COLUMNS, X_CHUNK), X_Tile.at
    dot_row, add_scaled_row, scale_row = dot(COLUMNS), add_scaled(COLUMNS), scale(COLUMNS)
    sum_rows, sum_lanes = sum_over_lanes(ROW_LANES, LANE_ROWS), sum_over_lanes(TOGETHER, SUMS, ROW_LANES)
    store_one = store_global(True, 1)
    LOSS_SHIFTS = ROW_LANES.bit_length() - 1

    @device
    def y_row(k: Any, lane: Any) -> Any:
        if WHOLE:
            return np.uint32(lane * LANE_ROWS + k)
        return np.uint32(lane // ROW_LANES + (k * ROW_LANES + lane % ROW_LANES) * STEP)

    @device
    def y_exists(k: Any, lane: Any, y_rows: Any) -> Any:
        return (LANE_ROWS % ROW_LANES == 0 or k * ROW_LANES + lane % ROW_LANES < LANE_ROWS) & (y_row(k, lane) < y_rows)

    @device
    def q_row(i: Any, W_own: Any, x_own: Any, q: Any, g_own: Any, sums: Any, t: Any) -> None:
        q[i] = dot_row(W_own, i * COLUMNS, x_own, 0, zero)

    @device
    def gradients_row(i: Any, W_own: Any, x_own: Any, q: Any, g_own: Any, sums: Any, t: Any) -> None:
        g = g_own[i // ROW_LANES]
        if ROW_LANES > 1:
            g = shuffle(g, t % WARP // ROW_LANES * ROW_LANES + i % ROW_LANES)
        if WANT_DX:
            add_scaled_row(sums, 1, g, W_own, i * COLUMNS)
        scale_row(W_own, i * COLUMNS, g, x_own, 0)

    q_rows, gradients_rows = each_row(q_row, LANE_ROWS), each_row(gradients_row, LANE_ROWS)

    def fused_staged(
        W: Any,  # (B, M, N)
        x: Any,  # (B, N)
        target: Any,  # (B, M)
        cotangent: Any,  # (B,)
        loss: Any,  # (units,)
        dW: Any,  # (B, M, N)
        dx: Any,  # (units, N)
        dq: Any,  # (B, M)
        units: Any,
    ) -> None:
        W_tile = cuda.shared.array(W_ROOM, real, 16)  # W first, dW after
        x_tile = cuda.shared.array(X_ROOM, real, 16)  # x first, dx after
        y_tile = cuda.shared.array(Y_ROOM, real, 16)  # the target first, dq after
        c_tile = cuda.shared.array(C_ROOM, real, 16)  # the cotangent
        warp_sums = cuda.shared.array(WARP_ROOM, real)
        W_held, x_held = cuda.local.array(W_HELD, real), cuda.local.array(X_HELD, real)
        # On the way out other registers, as each Mover of staged.cuh has its own.
        dW_held, dx_held = cuda.local.array(W_HELD, real), cuda.local.array(X_HELD, real)
        y_held, dq_held = cuda.local.array(Y_HELD, real), cuda.local.array(Y_HELD, real)
        y_own, c_held = cuda.local.array(OWN_G, real), cuda.local.array(C_HELD, real)
        W_own, x_own = cuda.local.array(LANE_SIZE, real), cuda.local.array(COLUMNS, real)
        q, g_own = cuda.local.array(LANE_ROWS, real), cuda.local.array(OWN_G, real)
        sums = cuda.local.array(SUMS, real)

        # --- where this thread works ---------------------------------------------------------------------------------
        # Unsigned 32-bit numbers: numba would make 64-bit ones of them, and look for negative indices.
        t = np.uint32(cuda.threadIdx.x)
        lane = np.uint32(t % LANES)
        column = np.uint32(lane % ROW_LANES * COLUMNS)
        first = np.int64(np.uint32(cuda.blockIdx.x)) * BLOCK_UNITS
        pair = first // SLICES
        units_here = np.uint32(min(units - first, BLOCK_UNITS))
        row = first % SLICES * ROWS
        rows_left: Any = min(M - row, ROWS)
        rows = np.uint32(rows_left)
        row_first = pair * M + row
        W_first = row_first * N
        is_full = units_here == BLOCK_UNITS and rows == ROWS
        # Where target and dq are not staged: the row of the unit of which this lane has them is there if below y_rows.
        y_rows = rows if t // LANES < units_here else np.uint32(0)
        y_first = row_first + np.uint32(t // LANES * ROWS)
        y_here, c_here = np.int64(units_here * rows), np.int64(units_here)  # elements of the tiles
        c_own = one

        # --- W, x, target and cotangent into shared memory -----------------------------------------------------------
        # copy_in and copy_out of staged.cuh are written out here: as functions they would take twenty arguments.
        for k in range(OWN_G):
            if GIVEN_TARGET and not Y_STAGED:
                y_own[k] = zero
                if y_exists(k, lane, y_rows):
                    load_one(y_own, k, target, y_first + y_row(k, lane))
        if is_full:
            W_from_global(W_held, W, W_first, W_ALL, t)
            x_from_global(x_held, x, pair * N, X_ALL, t)
            if TARGET_STAGED:
                y_from_global(y_held, target, row_first, Y_ALL, t)
            if GIVEN_COTANGENT:
                c_from_global(c_held, cotangent, pair, C_ALL, t)
            W_to_tile(W_tile, W_held, W_ALL, t)
            x_to_tile(x_tile, x_held, X_ALL, t)
            if TARGET_STAGED:
                y_to_tile(y_tile, y_held, Y_ALL, t)
            if GIVEN_COTANGENT:
                c_to_tile(c_tile, c_held, C_ALL, t)
            if t < W_BEYOND:
                W_tile[np.uint32(W_at(W_SIZE + t))] = zero  # a grain may reach beyond the last row
            if TARGET_STAGED and t < Y_BEYOND:
                y_tile[np.uint32(y_at(Y_SIZE + t))] = zero
        else:  # units and rows beyond the end are computed like all others, with zeros
            e = t
            while e < W_ROOM:
                W_tile[e] = zero
                e = np.uint32(e + THREADS)
            e = t
            while e < X_ROOM:
                x_tile[e] = zero
                e = np.uint32(e + THREADS)
            e = t
            while TARGET_STAGED and e < Y_ROOM:
                y_tile[e] = zero
                e = np.uint32(e + THREADS)
            e = t
            while GIVEN_COTANGENT and e < C_ROOM:
                c_tile[e] = zero
                e = np.uint32(e + THREADS)
            cuda.syncthreads()
            W_from_global(W_held, W, W_first, units_here * rows * N, t)
            x_from_global(x_held, x, pair * N, units_here * N, t)
            if TARGET_STAGED:
                y_from_global(y_held, target, row_first, y_here, t)
            if GIVEN_COTANGENT:
                c_from_global(c_held, cotangent, pair, c_here, t)
            W_to_tile(W_tile, W_held, units_here * rows * N, t)
            x_to_tile(x_tile, x_held, units_here * N, t)
            if TARGET_STAGED:
                y_to_tile(y_tile, y_held, y_here, t)
            if GIVEN_COTANGENT:
                c_to_tile(c_tile, c_held, c_here, t)
        cuda.syncthreads()

        # The lane's row i is row first_row + i * STEP of its unit, and is there where i * STEP < left.
        first_row = np.uint32(lane * LANE_ROWS if WHOLE else lane // ROW_LANES)
        left = np.int32(rows - first_row)
        columns_left: Any = COLUMNS if ALL_COLUMNS else min(COLUMNS, N - column)
        columns = np.int32(columns_left)  # none where negative
        own = np.int32(columns if not WHOLE else SEGMENT if ALL_ROWS else left * N)  # of a segment
        last = columns if WANT_DX else np.int32(0)  # of the lane's sums
        own_rows = np.int32(LANE_ROWS if ALL_ROWS else left)
        p = np.uint32(0)
        while p < LANE_PAIRS:
            # --- W, x, target and cotangent of each lane -------------------------------------------------------------
            unit = np.uint32(p * (THREADS // LANES) + t // LANES)
            for k in range(LANE_SIZE):
                W_own[k] = zero
            for k in range(COLUMNS):
                x_own[k] = zero
            for k in range(SUMS):
                sums[k] = zero
            y_begin = unit * ROWS + first_row
            W_begin = np.uint32(y_begin * N + column)
            for k in range(SEGMENTS):
                if ALL_ROWS or k * STEP < left:
                    W_get(W_own, k * SEGMENT, W_tile, W_begin + k * STEP * N, own)
            x_get(x_own, 0, x_tile, np.uint32(unit * N + column), columns)
            if TARGET_STAGED:
                for k in range(OWN_G):
                    y_own[k] = zero
                y_get(y_own, 0, y_tile, np.uint32(y_begin), own_rows)
            if GIVEN_COTANGENT:
                c_own = c_tile[unit]

            # --- q = W x ---------------------------------------------------------------------------------------------
            q_rows(W_own, x_own, q, g_own, sums, t)
            sum_rows(q, lane)

            # --- e, g and loss: of the lanes that share rows, lane l does rows l, l + ROW_LANES, ... -----------------
            for k in range(OWN_G):
                i = np.int32(k * ROW_LANES + lane % ROW_LANES)
                e_own, g = e_and_g(q[k], y_own[k] if GIVEN_TARGET else zero, c_own)
                if (LANE_ROWS % ROW_LANES == 0 or i < LANE_ROWS) and (ALL_ROWS or i * STEP < left):
                    sums[0] = multiply_add(e_own, e_own, sums[0])
                    g_own[k] = g
                else:
                    g_own[k] = zero  # no row: e and g are NaN where x is infinite
                if WANT_DQ and not Y_STAGED and y_exists(k, lane, y_rows):
                    store_one(dq, y_first + y_row(k, lane), g_own, k)
            if DQ_STAGED:
                y_put(y_tile, np.uint32(y_begin), g_own, 0, own_rows)

            # --- dW = g x^T, dx += W^T g -----------------------------------------------------------------------------
            gradients_rows(W_own, x_own, q, g_own, sums, t)
            if WANT_DW:
                for k in range(SEGMENTS):
                    if ALL_ROWS or k * STEP < left:
                        W_put(W_tile, W_begin + k * STEP * N, W_own, k * SEGMENT, own)

            # --- loss and dx of each unit: sums over its lanes -------------------------------------------------------
            # All lanes of the unit read x before dx takes its place. dx of more lanes goes through warp_sums.
            if TEAMS > 1 and LANES <= WARP:
                cuda.syncwarp()
            for k in range(LOSS_SHIFTS):
                sums[0] += shuffle_xor(sums[0], 1 << k)
            sum_lanes(sums, lane)
            if WANT_LOSS and LANES <= WARP and lane == 0 and unit < units_here:
                store_one(loss, first + unit, sums, 0)
            if LANES <= WARP and TEAMS == 1:
                if WANT_DX:
                    x_put(x_tile, np.uint32(unit * N + column), sums, 1, columns)
            else:
                for k in range(SHARES):
                    which = np.uint32(k * TEAMS + lane % TOGETHER // ROW_LANES)
                    if LANES > WARP and which <= last and (which > 0 or column == 0):
                        warp_sums[np.uint32(t // WARP * UNIT_SUMS + column + which)] = sums[k]
                    if LANES <= WARP and 0 < which <= last:
                        x_tile[np.uint32(x_at(unit * N + column + which - 1))] = sums[k]
            p = np.uint32(p + 1)
        cuda.syncthreads()
        if LANES > WARP and lane < UNIT_SUMS and t // LANES < units_here:
            sums[0] = zero
            for w in range(WARPS):
                sums[0] += warp_sums[np.uint32((t // LANES * WARPS + w) * UNIT_SUMS + lane)]
            if WANT_LOSS and lane == 0:
                store_one(loss, first + t // LANES, sums, 0)
            if WANT_DX and lane > 0:
                store_one(dx, (first + t // LANES) * N + lane - 1, sums, 0)

        # --- dq, dx and dW out of shared memory ----------------------------------------------------------------------
        if is_full:
            if DQ_STAGED:
                y_from_tile(dq_held, y_tile, Y_ALL, t)
                y_to_global(dq, row_first, dq_held, Y_ALL, t)
            if WANT_DX and LANES <= WARP:
                x_from_tile(dx_held, x_tile, X_ALL, t)
                x_to_global(dx, first * N, dx_held, X_ALL, t)
            if WANT_DW:
                W_from_tile(dW_held, W_tile, W_ALL, t)
                W_to_global(dW, W_first, dW_held, W_ALL, t)
        else:
            if DQ_STAGED:
                y_from_tile(dq_held, y_tile, y_here, t)
                y_to_global(dq, row_first, dq_held, y_here, t)
            if WANT_DX and LANES <= WARP:
                x_from_tile(dx_held, x_tile, units_here * N, t)
                x_to_global(dx, first * N, dx_held, units_here * N, t)
            if WANT_DW:
                W_from_tile(dW_held, W_tile, units_here * rows * N, t)
                W_to_global(dW, W_first, dW_held, units_here * rows * N, t)

    return fused_staged
