"""The kernel for short rows: staged.cuh in numba.cuda.

A block carries a tile of units through shared memory, so that neighbouring threads touch neighbouring addresses of
global memory however short a row is. A lane owns consecutive rows of a unit. Names in capitals are constants of a
compiled kernel.
"""

from functools import cache
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
    load_shared,
    multiply_add,
    s_and_g,
    scale,
    store_global,
    store_shared,
    sum_over_lanes,
)
from sigmoid_l2.kernels.gpu.plan import WARP, Staged


def twos(size: int, most: int) -> int:
    """The largest power of two that divides ``size`` and is at most ``most``, a power of two."""
    return min(size & -size, most)


@cache
def place(PERMUTED: int, itemsize: int) -> Any:
    """Where element e of a tile lies; those of an aligned vector of 16 bytes stay together."""
    VECTOR, BANKS = 16 // itemsize, 128 // itemsize

    def function(e: Any) -> Any:
        return np.uint32(e ^ (e // BANKS % PERMUTED) * VECTOR)  # unsigned: numba looks for no negative index

    return device(function)


class Tile:
    """A tile of SIZE elements in shared memory.

    Each lane uses its own elements, which begin STRIDE after those of the lane before, and moves GRAIN of them in one
    access. Where STRIDE is an odd number of grains, no two lanes use one bank at a time. Otherwise GRAIN is 16 bytes,
    and vectors of 16 bytes are permuted within the 128 bytes of all banks: by as many bits as STRIDE has factors of 2.
    """

    def __init__(self, SIZE: int, STRIDE: int, GRAIN: int, itemsize: int) -> None:
        VECTOR = 16 // itemsize
        PERMUTED = twos(STRIDE // GRAIN, 8) if GRAIN == VECTOR else 1  # vectors that change places
        self.ROOM = -(-SIZE // (PERMUTED * VECTOR)) * PERMUTED * VECTOR
        self.GRAIN, self.at = GRAIN, place(PERMUTED, itemsize)

    def get(self, COUNT: int) -> Any:
        """Copy COUNT elements from e on, or only the first ``own`` of them, to registers."""
        GRAIN, at, load = self.GRAIN, self.at, load_shared(self.GRAIN)

        def function(to: Any, to_at: Any, tile: Any, e: Any, own: Any) -> None:
            for k in range(0, COUNT, GRAIN):
                if k < own:
                    load(to, to_at + k, tile, at(e + k))

        return device(function)

    def put(self, COUNT: int) -> Any:
        """Copy them from registers."""
        GRAIN, at, store = self.GRAIN, self.at, store_shared(self.GRAIN)

        def function(tile: Any, e: Any, source: Any, source_at: Any, own: Any) -> None:
            for k in range(0, COUNT, GRAIN):
                if k < own:
                    store(tile, at(e + k), source, source_at + k)

        return device(function)


class Mover:
    """A thread's share of the first ``count`` elements of a tile of SIZE, on their way from or to global memory.

    Neighbouring threads move neighbouring vectors of WIDTH elements and, where those do not divide ``count``, single
    elements after them. A thread holds its vectors in registers, and behind them (SINGLE) its single element: all are
    loaded before the first is stored, so that all are in flight. The compiler drops e < rest where a full tile has a
    vector for each thread, because it knows a bound of t; staged.cuh must tell it.
    """

    def __init__(self, tile: Tile, SIZE: int, WIDTH: int, THREADS: int) -> None:
        ROUNDS, at = -(-(SIZE // WIDTH) // THREADS), tile.at
        SINGLE = ROUNDS * WIDTH
        self.HELD = SINGLE + 1
        load, store, load_one, store_one = (f(True, k) for k in (WIDTH, 1) for f in (load_global, store_global))
        get, put, get_one, put_one = (f(k) for k in (WIDTH, 1) for f in (load_shared, store_shared))

        @device
        def from_global(held: Any, source: Any, tile_first: Any, count: Any, t: Any) -> None:
            rest = count // WIDTH * WIDTH
            for r in range(ROUNDS):
                e = (r * THREADS + t) * WIDTH
                if e < rest:
                    load(held, r * WIDTH, source, tile_first + e)
            if rest + t < count:
                load_one(held, SINGLE, source, tile_first + rest + t)

        @device
        def to_tile(tile: Any, held: Any, count: Any, t: Any) -> None:
            rest = count // WIDTH * WIDTH
            for r in range(ROUNDS):
                e = (r * THREADS + t) * WIDTH
                if e < rest:
                    put(tile, at(e), held, r * WIDTH)
            if rest + t < count:
                put_one(tile, at(rest + t), held, SINGLE)

        @device
        def from_tile(held: Any, tile: Any, count: Any, t: Any) -> None:
            rest = count // WIDTH * WIDTH
            for r in range(ROUNDS):
                e = (r * THREADS + t) * WIDTH
                if e < rest:
                    get(held, r * WIDTH, tile, at(e))
            if rest + t < count:
                get_one(held, SINGLE, tile, at(rest + t))

        @device
        def to_global(target: Any, tile_first: Any, held: Any, count: Any, t: Any) -> None:
            rest = count // WIDTH * WIDTH
            for r in range(ROUNDS):
                e = (r * THREADS + t) * WIDTH
                if e < rest:
                    store(target, tile_first + e, held, r * WIDTH)
            if rest + t < count:
                store_one(target, tile_first + rest + t, held, SINGLE)

        self.functions = from_global, to_tile, from_tile, to_global


def each_row(row: Any, LANE_ROWS: int) -> Any:
    """The function that calls ``row`` for i = 0, 1, ..., LANE_ROWS - 1.

    W_own[i * N + j] is a register only where the compiler knows i. For sm_100 it does not unroll a loop over long rows
    (3 rows of 10 columns), so up to 4 rows are written out. A lane with more rows has short ones; 29 calls would take
    numba-cuda-mlir minutes.
    """
    zero, one, two, three = map(np.int64, range(4))  # with literals numba would compile row four times

    @device
    def loop(W_own: Any, x_own: Any, sums: Any, own: Any) -> None:
        for i in range(LANE_ROWS):
            row(i, W_own, x_own, sums, own)

    @device
    def written_out(W_own: Any, x_own: Any, sums: Any, own: Any) -> None:
        row(zero, W_own, x_own, sums, own)
        if LANE_ROWS > 1:
            row(one, W_own, x_own, sums, own)
        if LANE_ROWS > 2:
            row(two, W_own, x_own, sums, own)
        if LANE_ROWS > 3:
            row(three, W_own, x_own, sums, own)

    return written_out if LANE_ROWS <= 4 else loop


def staged_function(plan: Staged, M: int, N: int, itemsize: int, wide: bool, wanted: Wanted) -> Any:
    """The kernel's Python function for one (M, N). Grid: ceil(units / BLOCK_UNITS) blocks of THREADS threads.

    A unit has LANES lanes of LANE_ROWS rows each, the last ones fewer; a lane that owns whole pairs owns LANE_PAIRS. An
    output that is not wanted is not touched.
    """
    THREADS, LANES, LANE_ROWS, LANE_PAIRS, ROWS, SLICES = plan[:6]
    WANT_LOSS, WANT_DW, WANT_DX = wanted
    real, zero, one = framework.REALS[itemsize], TYPES[itemsize](0), TYPES[itemsize](1)
    BLOCK_UNITS, VECTOR = plan.block_units, 16 // itemsize
    W_SIZE, X_SIZE, LANE_SIZE = BLOCK_UNITS * ROWS * N, BLOCK_UNITS * N, LANE_ROWS * N
    W_ALL, X_ALL = np.int64(W_SIZE), np.int64(X_SIZE)  # with literals numba would compile the movers twice
    ALL_ROWS = LANES * LANE_ROWS == ROWS and M % ROWS == 0  # each lane has LANE_ROWS
    assert SLICES == 1 or BLOCK_UNITS == 1, "a slice has a block to itself"
    assert LANE_PAIRS == 1 or LANES == 1, "only a lane that owns pairs owns several"
    # Elements in one access: 16 bytes of them where every tile begins on a multiple of 16 bytes.
    W_WIDTH = VECTOR if wide and (W_SIZE if SLICES == 1 else M * N) % VECTOR == 0 else 1
    X_WIDTH = VECTOR if wide and X_SIZE % VECTOR == 0 else 1
    W_Tile = Tile(W_SIZE, LANE_SIZE, twos(LANE_SIZE if BLOCK_UNITS == 1 else LANE_SIZE | ROWS * N, VECTOR), itemsize)
    X_Tile = Tile(X_SIZE, N, twos(N, VECTOR), itemsize)
    W_Mover, X_Mover = Mover(W_Tile, W_SIZE, W_WIDTH, THREADS), Mover(X_Tile, X_SIZE, X_WIDTH, THREADS)
    SUMS = 1 + N if WANT_DX else 1  # over the unit's lanes: loss, dx_0, dx_1, ...
    TOGETHER, WARPS = min(LANES, WARP), LANES // WARP
    SHARES = -(-SUMS // TOGETHER)  # sums that a lane is left with
    W_ROOM, X_ROOM, WARP_ROOM = W_Tile.ROOM, X_Tile.ROOM, THREADS // WARP * SUMS if LANES > WARP else 1
    W_HELD, X_HELD = W_Mover.HELD, X_Mover.HELD
    W_from_global, W_to_tile, W_from_tile, W_to_global = W_Mover.functions
    x_from_global, x_to_tile, x_from_tile, x_to_global = X_Mover.functions
    W_get, W_put = W_Tile.get(LANE_SIZE), W_Tile.put(LANE_SIZE)
    x_get, x_put, x_at = X_Tile.get(N), X_Tile.put(N), X_Tile.at
    dot_row, add_scaled_row, scale_row = dot(N), add_scaled(N), scale(N)
    sum_lanes, store_one = sum_over_lanes(TOGETHER, SUMS), store_global(True, 1)

    @device
    def row_step(i: Any, W_own: Any, x_own: Any, sums: Any, own: Any) -> None:
        if i * N < own:
            s, g = s_and_g(dot_row(W_own, i * N, x_own, 0, zero), one)
            sums[0] = multiply_add(s, s, sums[0])
            if WANT_DX:
                add_scaled_row(sums, 1, g, W_own, i * N)
            scale_row(W_own, i * N, g, x_own, 0)

    lane_steps = each_row(row_step, LANE_ROWS)

    def fused_staged(
        W: Any,  # (B, M, N)
        x: Any,  # (B, N)
        loss: Any,  # (units,)
        dW: Any,  # (B, M, N)
        dx: Any,  # (units, N)
        units: Any,
    ) -> None:
        W_tile = cuda.shared.array(W_ROOM, real, 16)  # W first, dW after
        x_tile = cuda.shared.array(X_ROOM, real, 16)  # x first, dx after
        warp_sums = cuda.shared.array(WARP_ROOM, real)
        W_held, x_held = cuda.local.array(W_HELD, real), cuda.local.array(X_HELD, real)
        # On the way out other registers, as each Mover of staged.cuh has its own.
        dW_held, dx_held = cuda.local.array(W_HELD, real), cuda.local.array(X_HELD, real)
        W_own, x_own = cuda.local.array(LANE_SIZE, real), cuda.local.array(N, real)
        sums = cuda.local.array(SUMS, real)

        # --- where this thread works ---------------------------------------------------------------------------------
        t = cuda.threadIdx.x & (THREADS - 1)  # changes nothing, but tells the compiler that t >= 0
        lane = t % LANES
        first = np.int64(np.uint32(cuda.blockIdx.x)) * BLOCK_UNITS
        pair = first // SLICES
        units_here = min(units - first, BLOCK_UNITS)
        row = first % SLICES * ROWS
        rows: Any = min(M - row, ROWS)
        W_first = (pair * M + row) * N
        is_full = units_here == BLOCK_UNITS and rows == ROWS

        # --- W and x into shared memory ------------------------------------------------------------------------------
        # copy_in and copy_out of staged.cuh are written out here: as functions they would take eleven arguments.
        if is_full:
            W_from_global(W_held, W, W_first, W_ALL, t)
            x_from_global(x_held, x, pair * N, X_ALL, t)
            W_to_tile(W_tile, W_held, W_ALL, t)
            x_to_tile(x_tile, x_held, X_ALL, t)
        else:  # units and rows beyond the end are computed like all others, with zeros
            e = t
            while e < W_ROOM:
                W_tile[np.uint32(e)] = zero
                e += THREADS
            e = t
            while e < X_ROOM:
                x_tile[np.uint32(e)] = zero
                e += THREADS
            cuda.syncthreads()
            W_from_global(W_held, W, W_first, units_here * rows * N, t)
            x_from_global(x_held, x, pair * N, units_here * N, t)
            W_to_tile(W_tile, W_held, units_here * rows * N, t)
            x_to_tile(x_tile, x_held, units_here * N, t)
        cuda.syncthreads()

        for p in range(LANE_PAIRS):
            # --- the rows of each lane: q = W x; s, g and loss; dW = g x^T, dx += W^T g ------------------------------
            unit = p * (THREADS // LANES) + t // LANES
            W_own_first = (unit * ROWS + lane * LANE_ROWS) * N
            own = LANE_SIZE if ALL_ROWS else rows * N - lane * LANE_SIZE  # negative: none
            for k in range(SUMS):
                sums[k] = zero
            W_get(W_own, 0, W_tile, W_own_first, own)
            x_get(x_own, 0, x_tile, unit * N, N)
            lane_steps(W_own, x_own, sums, own)
            if WANT_DW:
                W_put(W_tile, W_own_first, W_own, 0, own)

            # --- loss and dx of each unit: sums over its lanes -------------------------------------------------------
            # All lanes of the unit read x before dx takes its place. dx of more lanes goes through warp_sums.
            if 1 < LANES <= WARP:
                cuda.syncwarp()
            sum_lanes(sums, lane)
            if WANT_LOSS and LANES <= WARP and lane == 0 and unit < units_here:
                store_one(loss, first + unit, sums, 0)
            if WANT_DX and LANES == 1:
                x_put(x_tile, unit * N, sums, 1, N)
            for k in range(SHARES):
                which = k * TOGETHER + lane % TOGETHER
                if LANES > WARP and which < SUMS:
                    warp_sums[np.uint32(t // WARP * SUMS + which)] = sums[k]
                if 1 < LANES <= WARP and 0 < which < SUMS:
                    x_tile[x_at(unit * N + which - 1)] = sums[k]
        cuda.syncthreads()
        if LANES > WARP and lane < SUMS and t // LANES < units_here:
            sums[0] = zero
            for w in range(WARPS):
                sums[0] += warp_sums[np.uint32((t // LANES * WARPS + w) * SUMS + lane)]
            if WANT_LOSS and lane == 0:
                store_one(loss, first + t // LANES, sums, 0)
            if WANT_DX and lane > 0:
                store_one(dx, (first + t // LANES) * N + lane - 1, sums, 0)

        # --- dx and dW out of shared memory --------------------------------------------------------------------------
        if is_full:
            if WANT_DX and LANES <= WARP:
                x_from_tile(dx_held, x_tile, X_ALL, t)
                x_to_global(dx, first * N, dx_held, X_ALL, t)
            if WANT_DW:
                W_from_tile(dW_held, W_tile, W_ALL, t)
                W_to_global(dW, W_first, dW_held, W_ALL, t)
        else:
            if WANT_DX and LANES <= WARP:
                x_from_tile(dx_held, x_tile, units_here * N, t)
                x_to_global(dx, first * N, dx_held, units_here * N, t)
            if WANT_DW:
                W_from_tile(dW_held, W_tile, units_here * rows * N, t)
                W_to_global(dW, W_first, dW_held, units_here * rows * N, t)

    return fused_staged
