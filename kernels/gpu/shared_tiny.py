"""The kernel for a tiny W that all pairs share: shared_tiny.cuh in numba.cuda.

A thread owns whole pairs and adds up their dW in its registers. x, dx, the target and dq go through shared memory, so
that neighbouring threads touch neighbouring addresses of global memory however short a row is. Names in capitals are
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
    load_shared,
    multiply_add,
    store_global,
    sum_over_lanes,
)
from sigmoid_l2.kernels.gpu.plan import WARP
from sigmoid_l2.kernels.gpu.plan_types import SharedTiny
from sigmoid_l2.kernels.gpu.shared_sums import add_exactly, rounded_once
from sigmoid_l2.kernels.gpu.tile import Mover, Tile, twos


def each_row(row: Any, M: int) -> Any:
    """The function that calls ``row`` for the rows first, ..., M - 1.

    dW_own[i * N + j] is a register only where the compiler knows i. For sm_100 it does not unroll a loop over long
    rows, so the calls are written out: four, four times four, and so on.
    """
    function, step = row, 1
    while step < M:
        function, step = four_times(function, step, M), 4 * step
    return function


def four_times(function: Any, step: int, M: int) -> Any:
    """The function that calls ``function`` for first, first + step, ... where there are such rows."""
    one, two, three = (np.int64(k * step) for k in (1, 2, 3))  # with literals numba would compile it for each

    def four(
        first: Any, W_tile: Any, x_own: Any, y_own: Any, c_own: Any, counts: Any, dx_own: Any, dW_own: Any, sums: Any
    ) -> None:
        function(first, W_tile, x_own, y_own, c_own, counts, dx_own, dW_own, sums)
        if first + one < M:
            function(first + one, W_tile, x_own, y_own, c_own, counts, dx_own, dW_own, sums)
        if first + two < M:
            function(first + two, W_tile, x_own, y_own, c_own, counts, dx_own, dW_own, sums)
        if first + three < M:
            function(first + three, W_tile, x_own, y_own, c_own, counts, dx_own, dW_own, sums)

    return device(four)


def tiny_function(plan: SharedTiny, M: int, N: int, itemsize: int, wide: bool, given: Given, wanted: Wanted) -> Any:
    """The kernel's Python function for one (M, N). Grid: ceil(B / (THREADS * PAIRS * tiles)) blocks of THREADS threads.

    A block does ``tiles`` tiles in turn. In each a thread has PAIRS pairs. Its terms of dW in RUN tiles are added one
    after the other, then those of a warp over its lanes, and these sums with their errors: those of a warp, and at the
    end those of the block, which leaves one part.
    """
    THREADS, PAIRS, RUN = plan
    GIVEN_TARGET, GIVEN_COTANGENT = given
    WANT_LOSS, WANT_DW, WANT_DX, WANT_DQ = wanted
    real, zero, one, nothing = framework.REALS[itemsize], *map(TYPES[itemsize], (0, 1, -0.0))
    e_and_g = error_and_g(given, itemsize)
    TILE, SIZE, WARPS, VECTOR = THREADS * PAIRS, M * N, THREADS // WARP, 16 // itemsize
    X_SIZE, Y_SIZE, WIDTH = TILE * N, TILE * M, VECTOR if wide else 1
    X_ALL, Y_ALL, C_ALL = map(np.int64, (X_SIZE, Y_SIZE, TILE))  # with literals numba would compile the movers twice
    W_STEP = -(-N // VECTOR) * VECTOR  # a row of W in whole vectors
    OWN = -(-SIZE // WARP)  # sums over lanes that a lane is left with
    HAS_Y = GIVEN_TARGET or WANT_DQ
    assert SIZE <= THREADS, "a thread loads an element of W"
    X_Tile, Y_Tile = Tile(X_SIZE, N, twos(N, VECTOR), itemsize), Tile(Y_SIZE, M, twos(M, VECTOR), itemsize)
    C_Tile = Tile(TILE, 1, 1, itemsize)
    X_Mover, Y_Mover = Mover(X_Tile, X_SIZE, WIDTH, THREADS), Mover(Y_Tile, Y_SIZE, WIDTH, THREADS)
    C_Mover = Mover(C_Tile, TILE, 1, THREADS)
    x_from_global, x_to_tile, x_from_tile, x_to_global = X_Mover.functions
    y_from_global, y_to_tile, y_from_tile, y_to_global = Y_Mover.functions
    c_from_global, c_to_tile, *_ = C_Mover.functions
    x_get, x_put, y_get, y_put = X_Tile.get(N, N), X_Tile.put(N, N), Y_Tile.get(M, M), Y_Tile.put(M, M)
    W_ROOM, X_ROOM, Y_ROOM = M * W_STEP, X_Tile.ROOM, Y_Tile.ROOM if HAS_Y else 1
    C_ROOM, SUMS_ROOM = C_Tile.ROOM if GIVEN_COTANGENT else 1, WARPS * SIZE if WANT_DW else 1
    X_HELD, Y_HELD, C_HELD = X_Mover.HELD, Y_Mover.HELD, C_Mover.HELD
    get_row, dot_row, add_scaled_row = load_shared(VECTOR), dot(N), add_scaled(N)
    sum_lanes, load_one, store_one = sum_over_lanes(WARP, SIZE), load_global(True, 1), store_global(True, 1)

    @device
    def clear(x_held: Any, y_held: Any) -> None:
        """Else what is not loaded in one trip through the loop would be kept from the one before, in registers."""
        for k in range(X_HELD):
            x_held[k] = zero
        for k in range(Y_HELD):
            y_held[k] = zero

    @device
    def clear_c(c_held: Any) -> None:
        for k in range(C_HELD):
            c_held[k] = zero

    @device
    def row(
        i: Any, W_tile: Any, x_own: Any, y_own: Any, c_own: Any, counts: Any, dx_own: Any, dW_own: Any, sums: Any
    ) -> None:
        # --- q = W x, e, g and loss ----------------------------------------------------------------------------------
        W_row = cuda.local.array(W_STEP, real)
        for k in range(0, W_STEP, VECTOR):
            get_row(W_row, k, W_tile, i * W_STEP + k)
        e, g = e_and_g(dot_row(W_row, 0, x_own, 0, zero), y_own[i], c_own)
        sums[0] = multiply_add(e, e, sums[0])
        y_own[i] = g

        # --- dx += W^T g, dW += g x^T --------------------------------------------------------------------------------
        if WANT_DX:
            add_scaled_row(dx_own, 0, g, W_row, 0)
        if WANT_DW:
            add_scaled_row(dW_own, i * N, g if counts else zero, x_own, 0)

    rows = each_row(row, M)
    top = np.int64(0)

    def shared_tiny(
        W: Any,  # (M, N)
        x: Any,  # (B, N)
        target: Any,  # (B, M)
        cotangent: Any,  # (B,)
        loss: Any,  # (B,)
        parts: Any,  # (M, N, blocks), of dW
        dx: Any,  # (B, N)
        dq: Any,  # (B, M)
        B: Any,
        tiles: Any,
    ) -> None:
        W_tile = cuda.shared.array(W_ROOM, real, 16)
        x_tile = cuda.shared.array(X_ROOM, real, 16)  # x first, dx after
        y_tile = cuda.shared.array(Y_ROOM, real, 16)  # the target first, dq after
        c_tile = cuda.shared.array(C_ROOM, real, 16)
        highs, lows = cuda.shared.array(SUMS_ROOM, real), cuda.shared.array(SUMS_ROOM, real)
        x_held, dx_held = cuda.local.array(X_HELD, real), cuda.local.array(X_HELD, real)
        y_held, dq_held = cuda.local.array(Y_HELD, real), cuda.local.array(Y_HELD, real)
        c_held, one_held = cuda.local.array(C_HELD, real), cuda.local.array(1, real)
        x_own, y_own = cuda.local.array(N, real), cuda.local.array(M, real)
        dx_own, dW_own = cuda.local.array(N, real), cuda.local.array(SIZE, real)
        high, low = cuda.local.array(OWN, real), cuda.local.array(OWN, real)

        # --- where this thread works, and its element of W -----------------------------------------------------------
        t = np.uint32(cuda.threadIdx.x)
        lane, warp = np.uint32(t % WARP), np.uint32(t // WARP)
        W_at, W_own = np.uint32(t // N * W_STEP + t % N), zero
        if t < SIZE:
            load_one(one_held, 0, W, np.int64(t))
            W_own = one_held[0]
        for k in range(SIZE):
            dW_own[k] = zero
        for k in range(OWN):
            high[k] = nothing
            low[k] = zero

        left, run = tiles, 0  # tiles to do, and those whose terms are in dW_own
        first = np.int64(np.uint32(cuda.blockIdx.x)) * tiles * TILE
        while left > 0 and first < B:
            # --- x, target and cotangent into shared memory ----------------------------------------------------------
            # copy_in and copy_out of shared_tiny.cuh are written out here: as functions they would take many arguments.
            pairs = min(B - first, C_ALL)
            clear(x_held, y_held)
            clear_c(c_held)
            if pairs == TILE:
                x_from_global(x_held, x, first * N, X_ALL, t)
                if GIVEN_TARGET:
                    y_from_global(y_held, target, first * M, Y_ALL, t)
                if GIVEN_COTANGENT:
                    c_from_global(c_held, cotangent, first, C_ALL, t)
                if t < SIZE:
                    W_tile[W_at] = W_own  # in each trip: the first one loads W and x at once
                x_to_tile(x_tile, x_held, X_ALL, t)
                if GIVEN_TARGET:
                    y_to_tile(y_tile, y_held, Y_ALL, t)
                if GIVEN_COTANGENT:
                    c_to_tile(c_tile, c_held, C_ALL, t)
            else:  # pairs beyond the end are computed like all others, with zeros, and their g is not counted
                cuda.syncthreads()  # the tile before has gone out; else each thread has moved what it overwrites
                e = t
                while e < X_ROOM:
                    x_tile[e] = zero
                    e = np.uint32(e + THREADS)
                e = t
                while GIVEN_TARGET and e < Y_ROOM:
                    y_tile[e] = zero
                    e = np.uint32(e + THREADS)
                e = t
                while GIVEN_COTANGENT and e < C_ROOM:
                    c_tile[e] = zero
                    e = np.uint32(e + THREADS)
                cuda.syncthreads()
                x_from_global(x_held, x, first * N, pairs * N, t)
                if GIVEN_TARGET:
                    y_from_global(y_held, target, first * M, pairs * M, t)
                if GIVEN_COTANGENT:
                    c_from_global(c_held, cotangent, first, pairs, t)
                if t < SIZE:
                    W_tile[W_at] = W_own
                x_to_tile(x_tile, x_held, pairs * N, t)
                if GIVEN_TARGET:
                    y_to_tile(y_tile, y_held, pairs * M, t)
                if GIVEN_COTANGENT:
                    c_to_tile(c_tile, c_held, pairs, t)
            cuda.syncthreads()

            p = np.uint32(0)
            while p < PAIRS:
                cuda.syncwarp()  # else the compilers would load all of W before the first pair, into registers
                pair = np.uint32(p * THREADS + t)
                c_own = one
                for k in range(M):
                    y_own[k] = zero
                for k in range(N):
                    dx_own[k] = zero
                x_get(x_own, 0, x_tile, np.uint32(pair * N), N)
                if GIVEN_TARGET:
                    y_get(y_own, 0, y_tile, np.uint32(pair * M), M)
                if GIVEN_COTANGENT:
                    c_own = c_tile[pair]
                one_held[0] = zero  # the loss
                rows(top, W_tile, x_own, y_own, c_own, pair < pairs, dx_own, dW_own, one_held)
                if WANT_DX:
                    x_put(x_tile, np.uint32(pair * N), dx_own, 0, N)
                if WANT_DQ:
                    y_put(y_tile, np.uint32(pair * M), y_own, 0, M)
                if WANT_LOSS and pair < pairs:
                    store_one(loss, first + pair, one_held, 0)
                p = np.uint32(p + 1)

            # --- dW of the run, over the lanes -----------------------------------------------------------------------
            run += 1
            if WANT_DW and (run == RUN or left == 1 or B - first <= TILE):
                sum_lanes(dW_own, lane)
                for k in range(OWN):
                    high[k], low[k] = add_exactly(high[k], low[k], dW_own[k])
                for k in range(SIZE):
                    dW_own[k] = zero
                run = 0

            # --- dx and dq out of shared memory ----------------------------------------------------------------------
            cuda.syncthreads()
            clear(dx_held, dq_held)
            if pairs == TILE:
                if WANT_DX:
                    x_from_tile(dx_held, x_tile, X_ALL, t)
                if WANT_DQ:
                    y_from_tile(dq_held, y_tile, Y_ALL, t)
                if WANT_DX:
                    x_to_global(dx, first * N, dx_held, X_ALL, t)
                if WANT_DQ:
                    y_to_global(dq, first * M, dq_held, Y_ALL, t)
            else:
                if WANT_DX:
                    x_from_tile(dx_held, x_tile, pairs * N, t)
                if WANT_DQ:
                    y_from_tile(dq_held, y_tile, pairs * M, t)
                if WANT_DX:
                    x_to_global(dx, first * N, dx_held, pairs * N, t)
                if WANT_DQ:
                    y_to_global(dq, first * M, dq_held, pairs * M, t)
            left -= 1
            first += TILE

        # --- dW of the block: sums over its warps --------------------------------------------------------------------
        if WANT_DW:
            for k in range(OWN):
                if k * WARP + lane < SIZE:
                    highs[np.uint32(warp * SIZE + k * WARP + lane)] = high[k]
                    lows[np.uint32(warp * SIZE + k * WARP + lane)] = low[k]
            cuda.syncthreads()
            e = t
            while e < SIZE:
                block_high, block_low = highs[e], lows[e]
                for w in range(1, WARPS):
                    other = np.uint32(w * SIZE + e)
                    block_high, block_low = add_exactly(block_high, block_low + lows[other], highs[other])
                one_held[0] = rounded_once(block_high, block_low)
                at = np.int64(e) * np.uint32(cuda.gridDim.x) + np.uint32(cuda.blockIdx.x)
                store_one(parts, at, one_held, 0)
                e = np.uint32(e + THREADS)

    return shared_tiny
