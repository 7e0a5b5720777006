"""The kernel for parts of dW = g^T x, for one W (m, n) and many x, in numba.cuda; shared_parts.cuh has CuPy's.

It is a product of matrices, as in shared_product, and a sum over the batch.
"""

from typing import Any

import numpy as np

from sigmoid_l2.kernels.gpu.common import TYPES, cuda, device, framework
from sigmoid_l2.kernels.gpu.plan_types import Product
from sigmoid_l2.kernels.gpu.shared_operand import Operand
from sigmoid_l2.kernels.gpu.shared_product import Tile
from sigmoid_l2.kernels.gpu.shared_sums import add_exactly


def blocks_parts_function(p: Product, itemsize: int, WIDE: bool, WIDE_G: bool) -> Any:
    """Parts of dW: of a tile of rows and columns g^T x, summed over a slice of ``pairs`` of the B pairs of this launch.

    A term goes through a chain of ``chain`` STEPs, whose sum is added to high + low without an error. After CHAINS of
    them low goes into high, but for what it loses, so that low is small and its own errors are too. A part keeps both
    from launch to launch. Grid: ceil(B / pairs) slices, or more, with ceil(m / A) * ceil(n / B) blocks each.
    """
    tile = Tile(p, itemsize)
    A, B_TILE, STEP, OWN_A, OWN_B, OWN, ROOM = tile.A, tile.B, tile.STEP, tile.OWN_A, tile.OWN_B, tile.OWN, tile.ROOM
    CHAINS, LAST = 8, OWN - OWN_B
    g_side = Operand(A, STEP, tile.THREADS, False, WIDE_G, itemsize)
    x_side = Operand(B_TILE, STEP, tile.THREADS, False, WIDE, itemsize)
    real, zero = framework.REALS[itemsize], TYPES[itemsize](0)

    @device
    def add_chain(added: Any, high: Any, low: Any, steps: Any, chain: Any, is_last: Any) -> Any:
        """Add a chain's sum to high + low, at its end."""
        steps = np.uint32(steps + 1)
        if steps < chain and not is_last:
            return steps
        for k in range(OWN):
            high[k], low[k] = add_exactly(high[k], low[k], added[k])
            added[k] = zero
        if is_last:
            for k in range(OWN):
                rest = low[k] if low[k] == low[k] else zero  # NaN where high is infinite
                high[k], rest = add_exactly(high[k], zero, rest)
                low[k] = rest if rest == rest else zero
        return np.uint32(0)

    add, a, load, store = tile.add(g_side, x_side, add_chain), tile.a, tile.load_own(WIDE), tile.store_own(WIDE)

    def shared_blocks_parts(
        x: Any,  # (B, n)
        g: Any,  # (B, m)
        parts: Any,  # (slices, 2, m, n): high and low
        B: Any,
        m: Any,
        n: Any,
        pairs: Any,
        chain: Any,
        is_first: Any,
    ) -> None:
        shared = cuda.shared.array(ROOM, real, 16)
        added = cuda.local.array(OWN, real)
        high, low = cuda.local.array(OWN, real), cuda.local.array(OWN, real)
        t, block = np.uint32(cuda.threadIdx.x), np.uint32(cuda.blockIdx.x)
        row_tiles, column_tiles = np.uint32((m - 1) // A + 1), np.uint32((n - 1) // B_TILE + 1)
        tile_number = np.uint32(block // column_tiles)
        column = np.int64(np.uint32(block % column_tiles)) * B_TILE
        row = np.int64(np.uint32(tile_number % row_tiles)) * A
        slice_number = np.int64(np.uint32(tile_number // row_tiles))
        first = slice_number * pairs
        rows, columns = np.uint32(min(m - row, A)), np.uint32(min(n - column, B_TILE))
        here = np.uint32(max(0, min(B - first, pairs)))
        high_at = (slice_number * 2 * m + row) * n + column
        low_at = high_at + m * n
        if here == 0 and not is_first:
            return

        for k in range(OWN):
            added[k] = zero
            high[k] = zero
            low[k] = zero
        i = np.uint32(0)
        while i < OWN_A and not is_first:  # each row into the last registers
            for k in range(LAST):
                high[k] = high[k + OWN_B]
            for k in range(LAST):
                low[k] = low[k + OWN_B]
            if a(i, t) < rows:
                load(high, LAST, parts, high_at + a(i, t) * n, columns, t)
                load(low, LAST, parts, low_at + a(i, t) * n, columns, t)
            i = np.uint32(i + 1)

        # --- dW = g^T x ----------------------------------------------------------------------------------------------
        done, most, half = np.uint32(0), np.uint32(CHAINS * STEP * chain), np.uint32(0)
        while done < here:
            terms = np.uint32(min(here - done, most))
            g_at, x_at = (first + done) * m + row, (first + done) * n + column
            half = add(
                added,
                high,
                low,
                shared,
                half,
                g,
                g_at,
                m,
                STEP * m,
                rows,
                x,
                x_at,
                n,
                STEP * n,
                columns,
                terms,
                chain,
                t,
            )
            done = np.uint32(done + terms)

        # --- high and low of the part --------------------------------------------------------------------------------
        i = np.uint32(0)
        while i < OWN_A:  # each row out of the first registers
            if a(i, t) < rows:
                store(high, 0, parts, high_at + a(i, t) * n, columns, t)
                store(low, 0, parts, low_at + a(i, t) * n, columns, t)
            for k in range(LAST):
                high[k] = high[k + OWN_B]
            for k in range(LAST):
                low[k] = low[k + OWN_B]
            i = np.uint32(i + 1)

    return shared_blocks_parts
