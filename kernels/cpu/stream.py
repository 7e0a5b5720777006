"""Streaming stores: results go to memory in whole lines, past the caches, wherever the given array begins.

An ordinary store first reads the line of memory that it changes, so a kernel with ordinary stores moves half as much
again as it must. A streaming store reads nothing, but it takes a whole line of its own size, on a multiple of that
size. Here a line is as long as a vector. A kernel computes vectors from the first element on, and an array may begin
anywhere in a line, so a line is joined from two neighbouring vectors.

A line that holds bytes of somebody else is not streamed: the ends of a range are stored with a mask.
"""

from collections.abc import Callable, Iterable
from typing import Any

from numba.core import cgutils

from sigmoid_l2.kernels.cpu.simd import INDEX, VectorBuilder, vector_bytes

# How far ahead inputs are prefetched while lines are streamed, and where dW is not wanted, in bytes. The processor does
# not read ahead enough by itself then: 3x3 float32 reaches 0.69 of a copy without a prefetch and 0.90 with it, and no
# more with 2048 or 8192.
AHEAD_BYTES = 4096


def can_stream() -> bool:
    """Whether kernels stream their results: with AVX-512 and AVX2, which shuffle by lanes known at run time."""
    return vector_bytes() > 16


class Stream:
    """The elements of an array from ``first`` on. They come in order, and any number of them at a time."""

    def __init__(self, v: VectorBuilder, array: Any, first: Any) -> None:
        b = v.builder
        self.v, self.array, self.first = v, array, first
        self.next = cgutils.alloca_once_value(b, first)
        # Elements before the next one in its line. They are the last lanes of `before`.
        self.offset = cgutils.alloca_once_value(b, v.part_of_line(v.at(array, first)))
        self.before = cgutils.alloca_once_value(b, v.constant(0))

    def put(self, vectors: Iterable[Any], size: int, meanwhile: Callable[[int], object]) -> None:
        """Take the ``size`` elements that ``vectors`` begin with; call ``meanwhile`` with the number of each vector."""
        v, b = self.v, self.v.builder
        index, offset, before = b.load(self.next), b.load(self.offset), b.load(self.before)
        join, line = v.joiner(offset), b.sub(index, offset)
        for k, vector in enumerate(vectors):
            rest = size - k * v.width
            if rest >= v.width:
                self._stream(join(before, vector), line, k)
                before = vector
            else:
                end = b.add(offset, INDEX(rest))
                with b.if_then(b.icmp_signed(">=", end, INDEX(v.width))):
                    self._stream(join(before, vector), line, k)
                before = v.shuffle(before, vector, range(rest, rest + v.width))
                b.store(b.and_(end, INDEX(v.width - 1)), self.offset)
            meanwhile(k)
        b.store(before, self.before)
        b.store(b.add(index, INDEX(size)), self.next)

    def end(self) -> None:
        """Store the elements that fill no line; other threads see all of them from here on."""
        b, offset, before = self.v.builder, self.v.builder.load(self.offset), self.v.builder.load(self.before)
        self._store_part(self.v.joiner(offset)(before, before), b.sub(b.load(self.next), offset), offset)
        self.v.fence()

    def _stream(self, vector: Any, line: Any, k: int) -> None:
        """Stream the k-th line from ``line`` on; what is before the first element is somebody else's."""
        v, b = self.v, self.v.builder
        if k:
            v.stream(vector, self.array, b.add(line, INDEX(k * v.width)))
            return
        with b.if_else(b.icmp_signed(">=", line, self.first), likely=True) as (whole, part):
            with whole:
                v.stream(vector, self.array, line)
            with part:
                self._store_part(vector, line, INDEX(v.width))

    def _store_part(self, vector: Any, line: Any, end: Any) -> None:
        """Store the lanes before ``end``, without those that are before the first element."""
        v, b = self.v, self.v.builder
        before = b.select(b.icmp_signed("<", line, self.first), b.sub(self.first, line), INDEX(0))
        v.store(vector, self.array, line, b.and_(v.mask_first(end), b.not_(v.mask_first(before))))
