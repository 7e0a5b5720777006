"""How an operand of a product of matrices goes from global to shared memory, in numba.cuda.

shared_operand.cuh has CuPy's.
"""

from typing import Any

import numpy as np

from sigmoid_l2.kernels.gpu.common import TYPES, device, load_global, store_shared


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
