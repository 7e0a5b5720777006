"""Two kernels for one W (m, n) and many x, in numba.cuda; shared_blocks.cuh has CuPy's.

Each is a product of matrices, as in shared_product: q = x W^T, from which come e, g and the loss; and dx = g W. An
element of q or dx is one chain of fused multiply-adds, whatever tile it is in. shared_parts has the third product.
"""

from typing import Any

import numpy as np

from sigmoid_l2.kernels import Given
from sigmoid_l2.kernels.gpu.common import (
    TYPES,
    cuda,
    error_and_g,
    framework,
    load_value,
    multiply_add,
    store_value,
)
from sigmoid_l2.kernels.gpu.plan_types import Product
from sigmoid_l2.kernels.gpu.shared_operand import Operand
from sigmoid_l2.kernels.gpu.shared_product import Tile, no_end


def blocks_q_function(
    p: Product, itemsize: int, WIDE: bool, WIDE_G: bool, given: Given, WANT_LOSS: bool, WANT_G: bool
) -> Any:
    """q = x W^T, e, g and the loss of a tile of pairs, tile of rows by tile of rows. Grid: ceil(B / A) blocks."""
    tile = Tile(p, itemsize)
    A, B_TILE, STEP, OWN_A, OWN_B, OWN, ROOM = tile.A, tile.B, tile.STEP, tile.OWN_A, tile.OWN_B, tile.OWN, tile.ROOM
    THREADS, THREADS_A, THREADS_B, WIDTH = tile.THREADS, tile.THREADS_A, tile.THREADS_B, tile.WIDTH
    LAST = OWN - OWN_B
    GIVEN_TARGET, GIVEN_COTANGENT = given
    LINE = THREADS_B + 1  # so that lanes which add those of a pair use different banks
    I_LINE = THREADS_A * LINE
    LOSS_ROOM = OWN_A * I_LINE if WANT_LOSS else 1
    x_side, W_side = (Operand(size, STEP, THREADS, True, WIDE, itemsize) for size in (A, B_TILE))
    add, a, b = tile.add(x_side, W_side, no_end), tile.a, tile.b
    load_y, store_g = tile.load_own(WIDE_G), tile.store_own(WIDE_G)
    load_one, store_one, e_and_g = load_value(itemsize), store_value(itemsize), error_and_g(given, itemsize)
    real, zero, one = framework.REALS[itemsize], TYPES[itemsize](0), TYPES[itemsize](1)

    def shared_blocks_q(
        W: Any,  # (m, n)
        x: Any,  # (B, n)
        target: Any,  # (B, m)
        cotangent: Any,  # (B,)
        loss: Any,  # (B,)
        g: Any,  # (B, m)
        B: Any,
        m: Any,
        n: Any,
    ) -> None:
        shared = cuda.shared.array(ROOM, real, 16)
        loss_sums = cuda.shared.array(LOSS_ROOM, real)  # of each pair of a thread
        q = cuda.local.array(OWN, real)
        y_own, g_own = cuda.local.array(OWN_B, real), cuda.local.array(OWN_B, real)
        t = np.uint32(cuda.threadIdx.x)
        first = np.int64(np.uint32(cuda.blockIdx.x)) * A
        pairs = np.uint32(min(B - first, A))
        own_sums = np.uint32(t // THREADS_B * LINE + t % THREADS_B)

        row, half = np.int64(0), np.uint32(0)
        while row < m:
            # --- q = x W^T -------------------------------------------------------------------------------------------
            rows = np.uint32(min(m - row, B_TILE))
            for k in range(OWN):
                q[k] = zero
            half = add(q, q, q, shared, half, x, first * n, n, STEP, pairs, W, row * n, n, STEP, rows, n, 0, t)

            # --- e, g and loss: one pair of the thread after the other -----------------------------------------------
            # Its q is always in the first registers, so that the loop has the code of one pair.
            i = np.uint32(0)
            while i < OWN_A:
                pair = a(i, t)
                at = (first + pair) * m + row
                here = rows if pair < pairs else np.uint32(0)
                c_own, total = one, zero
                for j in range(OWN_B):
                    y_own[j] = zero
                if GIVEN_TARGET:
                    load_y(y_own, 0, target, at, here, t)
                if GIVEN_COTANGENT and here > 0:
                    c_own = load_one(cotangent, first + pair)
                if WANT_LOSS and row > 0:
                    total = loss_sums[np.uint32(own_sums + i * I_LINE)]
                for j in range(OWN_B):
                    e, g_j = e_and_g(q[j], y_own[j], c_own)
                    g_own[j] = g_j
                    if b(j, t) < here:
                        total = multiply_add(e, e, total)
                for k in range(LAST):
                    q[k] = q[k + OWN_B]
                if WANT_LOSS:
                    loss_sums[np.uint32(own_sums + i * I_LINE)] = total
                if WANT_G:
                    store_g(g_own, 0, g, at, here, t)
                i = np.uint32(i + 1)
            row += B_TILE

        # --- the loss of each pair: sums over the threads that share it ----------------------------------------------
        cuda.syncthreads()
        pair = t
        while WANT_LOSS and pair < pairs:
            group = np.uint32(pair // WIDTH)
            i = np.uint32(group // THREADS_A * WIDTH + pair % WIDTH)
            of_pair = np.uint32((i * THREADS_A + group % THREADS_A) * LINE)
            total = loss_sums[of_pair]
            for k in range(1, THREADS_B):
                total += loss_sums[np.uint32(of_pair + k)]
            store_one(loss, first + pair, total)
            pair = np.uint32(pair + THREADS)

    return shared_blocks_q


def blocks_dx_function(p: Product, itemsize: int, WIDE: bool, WIDE_G: bool) -> Any:
    """dx = g W of a tile of pairs and columns. Grid: ceil(B / A) * ceil(n / B) blocks."""
    tile = Tile(p, itemsize)
    A, B_TILE, STEP, OWN_A, OWN_B, OWN, ROOM = tile.A, tile.B, tile.STEP, tile.OWN_A, tile.OWN_B, tile.OWN, tile.ROOM
    g_side = Operand(A, STEP, tile.THREADS, True, WIDE_G, itemsize)
    W_side = Operand(B_TILE, STEP, tile.THREADS, False, WIDE, itemsize)
    add, a, store, LAST = tile.add(g_side, W_side, no_end), tile.a, tile.store_own(WIDE), OWN - OWN_B
    real, zero = framework.REALS[itemsize], TYPES[itemsize](0)

    def shared_blocks_dx(
        W: Any,  # (m, n)
        g: Any,  # (B, m)
        dx: Any,  # (B, n)
        B: Any,
        m: Any,
        n: Any,
    ) -> None:
        shared, sums = cuda.shared.array(ROOM, real, 16), cuda.local.array(OWN, real)
        t, block = np.uint32(cuda.threadIdx.x), np.uint32(cuda.blockIdx.x)
        tiles = np.uint32((n - 1) // B_TILE + 1)
        column = np.int64(np.uint32(block % tiles)) * B_TILE
        first = np.int64(np.uint32(block // tiles)) * A
        pairs, columns = np.uint32(min(B - first, A)), np.uint32(min(n - column, B_TILE))

        # --- dx = g W ------------------------------------------------------------------------------------------------
        for k in range(OWN):
            sums[k] = zero
        add(
            sums,
            sums,
            sums,
            shared,
            np.uint32(0),
            g,
            first * m,
            m,
            STEP,
            pairs,
            W,
            column,
            n,
            STEP * n,
            columns,
            m,
            0,
            t,
        )
        i = np.uint32(0)
        while i < OWN_A:
            if a(i, t) < pairs:
                store(sums, 0, dx, (first + a(i, t)) * n + column, columns, t)
            for k in range(LAST):
                sums[k] = sums[k + OWN_B]
            i = np.uint32(i + 1)

    return shared_blocks_dx
