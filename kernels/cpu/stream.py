"""Streaming stores: results go to memory in whole lines, past the caches, wherever the given array begins.

An ordinary store first reads the line of memory that it changes, so a kernel with ordinary stores moves half as much
again as it must. A streaming store reads nothing, but it takes a whole line of its own size, on a multiple of that
size. Here a line is as long as a vector. A kernel computes vectors from the first element on, and an array may begin
anywhere in a line, so a line is joined from two neighbouring vectors.

A line that holds bytes of somebody else is not streamed: the ends of a range are stored as they come.
"""

from collections.abc import Callable, Iterable
from typing import Any

from numba.core import cgutils

from sigmoid_l2.kernels.cpu.simd import INDEX, VectorBuilder, vector_bytes

# How far ahead inputs are prefetched while lines are streamed, in bytes. The processor does not read ahead by itself
# then: 3x3 float32 reaches 0.69 of a copy without a prefetch and 0.90 with it, and no more with 2048 or 8192.
AHEAD_BYTES = 4096


def can_stream() -> bool:
    """Whether kernels stream their results: with AVX-512 and AVX2, which shuffle by lanes known at run time."""
    return vector_bytes() > 16


class Stream:
    """The lines of an array from element ``first`` on."""

    def __init__(self, v: VectorBuilder, array: Any, first: Any) -> None:
        b = v.builder
        self.v, self.array = v, array
        self.offset = v.part_of_line(v.at(array, first))
        self.join = v.joiner(self.offset)
        self.before = cgutils.alloca_once_value(b, v.constant(0))

    def keep(self, vector: Any) -> None:
        """Remember the vector before the next one."""
        self.v.builder.store(vector, self.before)

    def put(self, vectors: Iterable[Any], index: Any, meanwhile: Callable[[int], object]) -> None:
        """Stream the lines that end in ``vectors``, the first of which belongs at element ``index``."""
        v, b = self.v, self.v.builder
        before, line = b.load(self.before), b.sub(index, self.offset)
        for k, vector in enumerate(vectors):
            v.stream(self.join(before, vector), self.array, b.add(line, INDEX(k * v.width)))
            before = vector
            meanwhile(k)
        self.keep(before)

    def end(self, index: Any) -> None:
        """Store the elements before element ``index`` that fill no line; other threads see all of it from here on."""
        v, b = self.v, self.v.builder
        before = b.load(self.before)
        v.store(self.join(before, before), self.array, b.sub(index, self.offset), v.mask_first(self.offset))
        v.fence()
