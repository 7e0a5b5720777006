"""Three kernels for one W (m, n) and many x, in numba.cuda; shared_blocks.cuh has CuPy's.

Each is a product of matrices: q = x W^T, from which come e, g and the loss; dx = g W; parts of dW = g^T x, a sum over
the batch.

A block owns a tile of a product, A x B elements. Its operands go through shared memory, STEP terms of the sums at a
time; the next STEP are in flight meanwhile. Thread (ta, tb) owns GROUPS_A groups of WIDTH neighbours along A, and
groups are THREADS_A * WIDTH apart; the same along B. So the lanes of a warp read neighbouring vectors.

An element of q or dx is one chain of fused multiply-adds, whatever tile it is in.
"""

from typing import Any

import numpy as np

from sigmoid_l2.kernels import Given
from sigmoid_l2.kernels.gpu.common import (
    TYPES,
    add_scaled,
    cuda,
    device,
    error_and_g,
    framework,
    load_global,
    load_shared,
    load_value,
    multiply_add,
    store_global,
    store_shared,
    store_value,
)
from sigmoid_l2.kernels.gpu.plan_types import Product
from sigmoid_l2.kernels.gpu.shared_sums import add_exactly


def padded(size: int) -> int:
    """Elements from one term to the next in shared memory: 4 more than a multiple of 8.

    Then no two lanes use one bank at a time where two lanes have neighbours of one line.
    """
    return size + (12 - size % 8) % 8


def move_some(WIDTH: int, WIDE: bool, move: Any, move_one: Any) -> Any:
    """The function that moves the first ``count`` elements of a vector, or all or none of them where it is WIDE.

    Written out, because for sm_100 the compiler unrolls no loop with conditions before it looks for registers.
    """
    assert WIDTH in (2, 4)

    def function(own: Any, k: Any, memory: Any, at: Any, count: Any) -> None:
        if WIDE:
            if count > 0:
                move(own, k, memory, at)
        else:
            if count > 0:
                move_one(own, k, memory, at)
            if count > 1:
                move_one(own, k + 1, memory, at + 1)
            if WIDTH > 2 and count > 2:
                move_one(own, k + 2, memory, at + 2)
            if WIDTH > 2 and count > 3:
                move_one(own, k + 3, memory, at + 3)

    return device(function)


class Operand:
    """An operand's part of a tile: SIZE lines of STEP terms.

    ALONG says that a line's terms are neighbours in global memory; else the lines of a term are. WIDE: each line, or
    each term, begins on a multiple of 16 bytes. A thread holds HELD elements: all are loaded before the first is used,
    so that all are in flight.
    """

    def __init__(self, SIZE: int, STEP: int, THREADS: int, ALONG: bool, WIDE: bool, itemsize: int) -> None:
        WIDTH, LINE = 16 // itemsize, padded(SIZE)
        VECTORS = SIZE * STEP // WIDTH
        ROUNDS = -(-VECTORS // THREADS)
        LINES = SIZE // WIDTH
        assert not ALONG or STEP % (2 * WIDTH) == 0, "two lanes load neighbouring vectors of a line"
        self.LINE, self.HELD = LINE, ROUNDS * WIDTH
        zero = TYPES[itemsize](0)
        load, put = move_some(WIDTH, WIDE, load_global(True, WIDTH), load_global(True, 1)), store_shared(WIDTH)

        assert SIZE & (SIZE - 1) == THREADS & (THREADS - 1) == 0, "powers of two"

        @device
        def place(r: Any, t: Any) -> Any:
            """Of the first element of the vector of round r the line and the term, and whether there is such a vector.

            As the thread's own and a constant: for powers of two that is the place of vector r * THREADS + t.
            """
            has = VECTORS >= THREADS or t < VECTORS
            if ALONG:
                line = np.uint32(t // 2 % SIZE + r * (THREADS // 2) % SIZE)
                return line, np.uint32((t // (2 * SIZE) * 2 + t % 2 + r * THREADS // (2 * SIZE) * 2) * WIDTH), has
            return (
                np.uint32((t % LINES + r * THREADS % LINES) * WIDTH),
                np.uint32(t // LINES + r * THREADS // LINES),
                has,
            )

        @device
        def from_global(held: Any, source: Any, at: Any, stride: Any, lines: Any, terms: Any, t: Any) -> None:
            """Load what is there of ``lines`` and ``terms``, zeros elsewhere.

            ``stride`` is from one line or term to the next.
            """
            for r in range(ROUNDS):
                line, term, has = place(r, t)
                begin = at + np.uint32(line * stride + term if ALONG else term * stride + line)
                for w in range(WIDTH):
                    held[r * WIDTH + w] = zero
                # Those of the vector that are there; none where a line or a term is not.
                own = np.int64(terms) - term if ALONG else np.int64(lines) - line
                if not has or (line >= lines if ALONG else term >= terms):
                    own = np.int64(0)
                load(held, r * WIDTH, source, begin, own)

        @device
        def to_shared(shared: Any, shared_at: Any, held: Any, t: Any) -> None:  # (STEP, LINE)
            for r in range(ROUNDS):
                line, term, has = place(r, t)
                at = np.uint32(shared_at + term * LINE + line)
                if has and not ALONG:
                    put(shared, at, held, r * WIDTH)
                for w in range(WIDTH):
                    if has and ALONG:
                        shared[np.uint32(at + w * LINE)] = held[r * WIDTH + w]

        self.from_global, self.to_shared = from_global, to_shared


class Tile:
    """The elements of a tile that a thread owns."""

    def __init__(self, p: Product, itemsize: int) -> None:
        self.WIDTH = WIDTH = 16 // itemsize
        self.THREADS_A, self.THREADS_B, self.GROUPS_A, self.GROUPS_B, self.STEP = p[:5]
        self.THREADS, self.A, self.B = p.threads, p.a(itemsize), p.b(itemsize)
        self.OWN_A, self.OWN_B = self.GROUPS_A * WIDTH, self.GROUPS_B * WIDTH
        self.OWN = self.OWN_A * self.OWN_B
        self.HALF = self.STEP * (padded(self.A) + padded(self.B))
        self.ROOM = 2 * self.HALF
        THREADS_A, THREADS_B = self.THREADS_A, self.THREADS_B

        @device
        def a(k: Any, t: Any) -> Any:
            """Where the thread's element k along A lies in the tile."""
            return np.uint32((k // WIDTH * THREADS_A + t // THREADS_B) * WIDTH + k % WIDTH)

        @device
        def b(k: Any, t: Any) -> Any:
            """The same along B."""
            return np.uint32((k // WIDTH * THREADS_B + t % THREADS_B) * WIDTH + k % WIDTH)

        self.a, self.b, self.itemsize = a, b, itemsize

    def add(self, side_a: Operand, side_b: Operand, end: Any) -> Any:
        """sums += a b^T of STEP terms at a time; ``end`` is called after each, with whether it is the last.

        The halves of ``shared`` are used in turn, from call to call: while some threads read one, others may already
        store into the other. The function returns which one comes next.
        """
        STEP, HALF, WIDTH, OWN_A, OWN_B = self.STEP, self.HALF, self.WIDTH, self.OWN_A, self.OWN_B
        GROUPS_A, GROUPS_B, HELD_A, HELD_B = self.GROUPS_A, self.GROUPS_B, side_a.HELD, side_b.HELD
        APART_A, APART_B = self.THREADS_A * WIDTH, self.THREADS_B * WIDTH
        LINE_A, LINE_B, BEGIN_B = side_a.LINE, side_b.LINE, STEP * side_a.LINE
        a, b, get, add_row = self.a, self.b, load_shared(WIDTH), add_scaled(OWN_B)
        load_a, load_b, put_a, put_b = side_a.from_global, side_b.from_global, side_a.to_shared, side_b.to_shared
        # Terms between two branches. With more the compilers need more than 128 registers for 8 x 8 sums.
        AT_ONCE = min(128 // self.OWN, STEP)
        real = framework.REALS[self.itemsize]

        @device
        def add_term(sums: Any, shared: Any, own_a: Any, own_b: Any) -> None:
            a_own, b_own = cuda.local.array(OWN_A, real), cuda.local.array(OWN_B, real)
            for g in range(GROUPS_A):
                get(a_own, g * WIDTH, shared, own_a + g * APART_A)
            for g in range(GROUPS_B):
                get(b_own, g * WIDTH, shared, own_b + g * APART_B)
            for i in range(OWN_A):
                add_row(sums, i * OWN_B, a_own[i], b_own, 0)

        @device
        def function(
            sums: Any,
            high: Any,  # these two are for ``end``
            low: Any,
            shared: Any,
            half: Any,
            a_from: Any,
            a_at: Any,
            a_stride: Any,
            a_step: Any,
            a_lines: Any,
            b_from: Any,
            b_at: Any,
            b_stride: Any,
            b_step: Any,
            b_lines: Any,
            terms: Any,
            chain: Any,  # of ``end``
            t: Any,
        ) -> Any:
            # A tile spans less than 2**32 elements.
            a_apart, b_apart, left = np.uint32(a_stride), np.uint32(b_stride), np.uint32(terms)
            a_held, b_held = cuda.local.array(HELD_A, real), cuda.local.array(HELD_B, real)
            more: Any = True
            stored, steps = np.uint32(0), np.uint32(0)  # stored: steps in shared memory until now
            while more:
                # --- the next terms on their way ---------------------------------------------------------------------
                more = left > 0
                if more:
                    load_a(a_held, a_from, a_at, a_apart, a_lines, left, t)
                    load_b(b_held, b_from, b_at, b_apart, b_lines, left, t)
                    a_at += a_step
                    b_at += b_step
                    left = np.uint32(left - STEP) if left > STEP else np.uint32(0)

                # --- sums += a b^T -----------------------------------------------------------------------------------
                if stored > 0:
                    # 64-bit numbers here: what is added to them goes into the instructions that load.
                    own_a, own_b = np.int64(half + a(0, t)), np.int64(half + BEGIN_B + b(0, t))
                    end_a = own_a + STEP * LINE_A
                    while own_a < end_a:
                        for k in range(AT_ONCE):
                            add_term(sums, shared, own_a + k * LINE_A, own_b + k * LINE_B)
                        own_a += AT_ONCE * LINE_A
                        own_b += AT_ONCE * LINE_B
                    steps = end(sums, high, low, steps, chain, not more)
                if more:
                    half = np.uint32(HALF - half)
                    put_a(shared, half, a_held, t)
                    put_b(shared, np.uint32(half + BEGIN_B), b_held, t)
                    cuda.syncthreads()
                stored = np.uint32(stored + 1)
            return half

        return function

    def load_own(self, WIDE: bool) -> Any:
        """The function that loads a thread's elements of a row which begins at ``at``: those of ``columns``."""
        return self._each(WIDE, *(load_global(True, width) for width in (self.WIDTH, 1)))

    def store_own(self, WIDE: bool) -> Any:
        """The function that stores them."""

        def stored(width: int) -> Any:
            store = store_global(True, width)

            def function(own: Any, k: Any, memory: Any, at: Any) -> None:
                store(memory, at, own, k)

            return device(function)

        return self._each(WIDE, *map(stored, (self.WIDTH, 1)))

    def _each(self, WIDE: bool, move: Any, move_one: Any) -> Any:
        """The function that moves the groups of a row."""
        WIDTH, GROUPS_B, b = self.WIDTH, self.GROUPS_B, self.b
        assert GROUPS_B <= 2, "they are written out, as in move_some"
        group = move_some(WIDTH, WIDE, move, move_one)

        def function(own: Any, k: Any, memory: Any, at: Any, columns: Any, t: Any) -> None:
            first = np.int64(b(0, t))
            group(own, k, memory, at + first, columns - first)
            if GROUPS_B > 1:
                first = np.int64(b(WIDTH, t))
                group(own, k + WIDTH, memory, at + first, columns - first)

        return device(function)


@device
def no_end(sums: Any, high: Any, low: Any, steps: Any, chain: Any, is_last: Any) -> Any:
    """Nothing is done after a step."""
    return steps


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
