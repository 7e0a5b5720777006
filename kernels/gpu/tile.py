"""A tile of elements in shared memory, and the way of its elements from and to global memory: tile.cuh in numba.cuda.

The kernel of staged.py has W and dW in one tile, x and dx in another; that of shared_tiny.py has x and dx, the target
and dq.
"""

from functools import cache
from typing import Any

import numpy as np

from sigmoid_l2.kernels.gpu.common import device, load_global, load_shared, store_global, store_shared


def twos(size: int, most: int) -> int:
    """The largest power of two that divides ``size`` and is at most ``most``, a power of two."""
    return min(size & -size, most)


@cache
def place(PERMUTED: int, itemsize: int) -> Any:
    """Where element e of a tile lies; those of an aligned vector of 16 bytes stay together."""
    VECTOR, BANKS = 16 // itemsize, 128 // itemsize

    def function(e: Any) -> Any:
        e = np.uint32(e)
        return np.uint32(e ^ (e // BANKS % PERMUTED) * VECTOR)

    def unchanged(e: Any) -> Any:
        return e

    return device(function if PERMUTED > 1 else unchanged)


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

    def get(self, COUNT: int, CHUNK: int) -> Any:
        """Copy COUNT elements from e on to registers: those chunks of which ``own`` has the first element."""
        GRAIN, at, load, WHOLE = self.GRAIN, self.at, load_shared(self.GRAIN), COUNT // CHUNK * CHUNK

        def function(to: Any, to_at: Any, tile: Any, e: Any, own: Any) -> None:
            for chunk in range(0, WHOLE, CHUNK):
                if chunk < own:
                    for k in range(0, CHUNK, GRAIN):
                        load(to, to_at + chunk + k, tile, at(e + chunk + k))
            if own > WHOLE:  # a chunk with fewer elements, if any
                for k in range(WHOLE, COUNT, GRAIN):
                    load(to, to_at + k, tile, at(e + k))

        return device(function)

    def put(self, COUNT: int, CHUNK: int) -> Any:
        """Copy them from registers."""
        GRAIN, at, store, WHOLE = self.GRAIN, self.at, store_shared(self.GRAIN), COUNT // CHUNK * CHUNK

        def function(tile: Any, e: Any, source: Any, source_at: Any, own: Any) -> None:
            for chunk in range(0, WHOLE, CHUNK):
                if chunk < own:
                    for k in range(0, CHUNK, GRAIN):
                        store(tile, at(e + chunk + k), source, source_at + chunk + k)
            if own > WHOLE:
                for k in range(WHOLE, COUNT, GRAIN):
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
        ROUNDS, ROUND, at = -(-(SIZE // WIDTH) // THREADS), THREADS * WIDTH, tile.at
        SINGLE = ROUNDS * WIDTH
        self.HELD = SINGLE + 1
        load, store, load_one, store_one = (f(True, k) for k in (WIDTH, 1) for f in (load_global, store_global))
        get, put, get_one, put_one = (f(k) for k in (WIDTH, 1) for f in (load_shared, store_shared))

        @device
        def places(count: Any, t: Any) -> Any:
            """The thread's first element, that of its single one, and where the vectors end."""
            t = np.uint32(min(t, np.uint32(THREADS - 1)))  # changes nothing, but tells the compiler that t < THREADS
            rest = np.uint32(count) // WIDTH * WIDTH
            return np.uint32(t * WIDTH), rest + t, rest

        @device
        def from_global(held: Any, source: Any, tile_first: Any, count: Any, t: Any) -> None:
            first, single, rest = places(count, t)
            begin = tile_first + first
            for r in range(ROUNDS):
                if np.uint32(first + r * ROUND) < rest:
                    load(held, r * WIDTH, source, begin + r * ROUND)
            if single < count:
                load_one(held, SINGLE, source, tile_first + single)

        @device
        def to_tile(tile: Any, held: Any, count: Any, t: Any) -> None:
            first, single, rest = places(count, t)
            for r in range(ROUNDS):
                if np.uint32(first + r * ROUND) < rest:
                    put(tile, at(np.uint32(first + r * ROUND)), held, r * WIDTH)
            if single < count:
                put_one(tile, at(single), held, SINGLE)

        @device
        def from_tile(held: Any, tile: Any, count: Any, t: Any) -> None:
            first, single, rest = places(count, t)
            for r in range(ROUNDS):
                if np.uint32(first + r * ROUND) < rest:
                    get(held, r * WIDTH, tile, at(np.uint32(first + r * ROUND)))
            if single < count:
                get_one(held, SINGLE, tile, at(single))

        @device
        def to_global(target: Any, tile_first: Any, held: Any, count: Any, t: Any) -> None:
            first, single, rest = places(count, t)
            begin = tile_first + first
            for r in range(ROUNDS):
                if np.uint32(first + r * ROUND) < rest:
                    store(target, begin + r * ROUND, held, r * WIDTH)
            if single < count:
                store_one(target, tile_first + single, held, SINGLE)

        self.functions = from_global, to_tile, from_tile, to_global
