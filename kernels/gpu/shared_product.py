"""A tile of a product of matrices, in numba.cuda; shared_product.cuh has CuPy's.

A block owns a tile of a product, A x B elements. Its operands go through shared memory, STEP terms of the sums at a
time; the next STEP are in flight meanwhile. Thread (ta, tb) owns GROUPS_A groups of WIDTH neighbours along A, and
groups are THREADS_A * WIDTH apart; the same along B. So the lanes of a warp read neighbouring vectors.
"""

from typing import Any

import numpy as np

from sigmoid_l2.kernels.gpu.common import (
    add_scaled,
    cuda,
    device,
    framework,
    load_global,
    load_shared,
    store_global,
)
from sigmoid_l2.kernels.gpu.plan_types import Product
from sigmoid_l2.kernels.gpu.shared_operand import Operand, move_some, padded


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
