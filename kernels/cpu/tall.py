"""The kernel for tall pairs: one block is as many rows as a vector has lanes, and a thread has a range of slices.

W and dW of a block are whole vectors, loaded and written in the order of memory. Shuffles bring x_j and g_i to the
elements W_ij that they multiply, and the terms of q into one lane. Compiled for each n and each number of rows that the
last block of a pair has.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
from numba.core import cgutils

from sigmoid_l2.kernels import Given, Wanted
from sigmoid_l2.kernels.cpu.compile import compile_kernel, vector_code
from sigmoid_l2.kernels.cpu.loops import minimum
from sigmoid_l2.kernels.cpu.sigmoid import error_and_g, side_by_side
from sigmoid_l2.kernels.cpu.simd import INDEX, VectorBuilder, lane_count
from sigmoid_l2.kernels.cpu.stream import AHEAD_BYTES, Stream, can_stream
from sigmoid_l2.kernels.cpu.sums import LaneTotal

# Length of a chain of sums, in blocks. So a sum over any number of rows has at most log2(lanes) + CHAIN + 1 roundings.
CHAIN = 8


@vector_code(constants=3)
def slices(
    v: VectorBuilder,
    W: Any,
    x: Any,
    target: Any,
    cotangent: Any,
    loss: Any,
    dW: Any,
    dx: Any,
    dq: Any,
    wanted: Wanted,
    first: Any,
    last: Any,
    m: Any,
    slice_rows: Any,
    streams: Any,
    is_tall: int,
    rest: int,
    n: int,
) -> None:
    """Compute the slices first..last of pairs of whole blocks, if they are tall, and ``rest`` rows, of n elements.

    ``slice_rows`` is a multiple of the lanes, or m. ``streams``: dW and dq go past the caches.
    """
    b, lanes, chain = v.builder, INDEX(v.width), INDEX(CHAIN * v.width)
    v.align_stack()
    if not is_tall:
        m = slice_rows = INDEX(rest)  # and LLVM leaves out all loops
    count = b.sdiv(b.add(m, b.sub(slice_rows, INDEX(1))), slice_rows)  # of a pair's slices
    pair = cgutils.alloca_once_value(b, b.sdiv(first, count))
    row = cgutils.alloca_once_value(b, b.mul(b.srem(first, count), slice_rows))
    begin = b.add(b.mul(b.load(pair), m), b.load(row))
    rows = Rows(v, W, target, dW, dq, wanted, begin, streams, n, v.width if is_tall else rest)
    is_column = v.mask_first(INDEX(n))
    with cgutils.for_range_slice(b, first, last, INDEX(1), intp=INDEX) as (number, _):
        c = cotangent and v.broadcast(b.load(v.at(cotangent, b.load(pair))))
        rows.begin_slice(v.load(x, b.mul(b.load(pair), INDEX(n)), is_column), c)
        size = minimum(b, slice_rows, b.sub(m, b.load(row)))
        with cgutils.for_range_slice(b, INDEX(0), size, chain, intp=INDEX) as (top, _):
            left = minimum(b, chain, b.sub(size, top))
            whole = b.sub(left, b.urem(left, lanes))
            with cgutils.for_range_slice(b, INDEX(0), whole, lanes, intp=INDEX):
                rows.add_block(v.width)
            if rest:
                with b.if_then(b.icmp_signed("<", whole, left)):
                    rows.add_block(rest)
            rows.end_chain(b.icmp_signed("==", top, INDEX(0)))
        with b.if_then(wanted.loss):
            b.store(v.sum_lanes(rows.loss.value()), v.at(loss, number))
        with b.if_then(wanted.dx):
            v.store(rows.dx_of_slice(), dx, b.mul(number, INDEX(n)), is_column)
        next_row = b.add(b.load(row), slice_rows)
        ends = b.icmp_signed(">=", next_row, m)
        b.store(b.select(ends, INDEX(0), next_row), row)
        b.store(b.add(b.load(pair), b.zext(ends, INDEX)), pair)
    rows.end()


class Rows:
    """The rows of a range of slices, block after block; a block has ``most`` rows at most."""

    def __init__(
        self,
        v: VectorBuilder,
        W: Any,
        target: Any,
        dW: Any,
        dq: Any,
        wanted: Wanted,
        begin: Any,
        streams: Any,
        n: int,
        most: int,
    ) -> None:
        self.v, self.W, self.target, self.dW, self.dq, self.n = v, W, target, dW, dq, n
        self.wanted, self.streams = wanted, streams
        self.next = cgutils.alloca_once_value(v.builder, begin)  # the next row
        self.dW_stream = Stream(v, dW, v.builder.mul(begin, INDEX(n))) if can_stream() else None
        self.dq_stream = Stream(v, dq, begin) if can_stream() else None
        # After so many vectors the columns are the same again. So a sum over blocks needs no more vectors.
        self.period = n // math.gcd(n, v.width)
        self.rows_of_sums = min(self.period * v.width // n, most)
        self.loss, *self.dx = (LaneTotal(v) for _ in range(1 + self.period))

    def begin_slice(self, x: Any, cotangent: Any) -> None:
        """Begin new sums; ``x`` is in the first lanes, a cotangent in every lane."""
        self.cotangent = cotangent
        period = self.v.take([x], [e % self.n for e in range(self.v.width * self.period)])
        self.x_of_W = period * (self.n // self.period)  # x_j for each W_ij of a block
        for total in (self.loss, *self.dx):
            total.clear()

    def add_block(self, rows: int) -> None:
        """Add the next rows to the sums, and write their dW and dq."""
        v, b, size, period = self.v, self.v.builder, rows * self.n, self.period
        row, vectors = b.load(self.next), math.ceil(size / v.width)
        at, are_rows = b.mul(row, INDEX(self.n)), None if rows == v.width else v.mask_first(INDEX(rows))
        masks = [None] * (size // v.width) + [v.mask_first(INDEX(size % v.width))]
        W = v.load_block(v.at(self.W, at), vectors, masks)  # (rows, n)
        (q,) = v.sum_axis(v.products(W, self.x_of_W), (rows, self.n, 1))  # q = W x  (rows,)
        y = self.target and v.load(self.target, row, are_rows)
        ((e, g),) = side_by_side([error_and_g(v, q, y, self.cotangent)])
        g_of_W = v.take([g], [min(e // self.n, rows - 1) for e in range(vectors * v.width)])  # g_i for each W_ij
        with b.if_then(self.wanted.loss):
            e = b.select(are_rows, e, v.constant(0)) if are_rows else e
            self.loss.add_products([e], [e])
        with b.if_then(self.wanted.dx):  # dx = W^T g
            for k, total in enumerate(self.dx[:vectors]):
                total.add_products(g_of_W[k::period], W[k::period])

        def prefetch(k: int) -> None:
            v.prefetch(self.W, b.add(at, INDEX(k * v.width + AHEAD_BYTES // v.dtype.itemsize)))

        with b.if_then(self.wanted.dW):  # dW = g x^T
            gradient = partial(v.products, g_of_W, self.x_of_W)
            self._write(self.dW_stream, gradient, v.at(self.dW, at), size, masks, prefetch)
        with b.if_then(self.wanted.dq):
            self._write(self.dq_stream, lambda: [g], v.at(self.dq, row), rows, [are_rows])
        with b.if_then(b.not_(self.wanted.dW)):  # nor streamed: prefetch all the same
            for k in range(vectors):
                prefetch(k)
        b.store(b.add(row, INDEX(rows)), self.next)

    def _write(
        self,
        stream: Stream | None,
        vectors: Callable[[], Iterable[Any]],
        to: Any,
        size: int,
        masks: Sequence[Any],
        meanwhile: Callable[[int], object] = id,
    ) -> None:
        """Stream or store ``size`` elements; call ``meanwhile`` with the number of each vector streamed."""
        v, b = self.v, self.v.builder
        if stream is None:
            v.store_block(vectors(), to, masks)
            return
        with b.if_else(self.streams) as (streamed, stored):
            with streamed:
                stream.put(vectors(), size, meanwhile)
            with stored:
                v.store_block(vectors(), to, masks)

    def end_chain(self, is_first: Any) -> None:
        """Add a chain to the sums over the ones before it, if it is not the first."""
        with self.v.builder.if_else(is_first) as (begin, go_on):
            with begin:
                for total in (self.loss, *self.dx):
                    total.begin()
            with go_on:
                for total in (self.loss, *self.dx):
                    total.go_on()

    def dx_of_slice(self) -> Any:
        """dx, in the first lanes: the rows of the sums, added to each other by halves."""
        v, n, rows = self.v, self.n, self.rows_of_sums
        sums = [total.value() for total in self.dx]
        while rows > 1:
            half = (rows + 1) // 2
            zero = v.width * len(sums)  # the number of the element after them
            upper = [e if e < rows * n else zero for e in range(half * n, 2 * half * n)]
            sums = list(map(v.builder.fadd, sums, v.take([*sums, v.constant(0)], upper)))
            rows = half
        return sums[0]

    def end(self) -> None:
        """Write what is left of a stream."""
        b = self.v.builder
        for stream, is_wanted in ((self.dW_stream, self.wanted.dW), (self.dq_stream, self.wanted.dq)):
            if stream is not None:
                with b.if_then(b.and_(self.streams, is_wanted)):
                    stream.end()


@cache
def _kernel(is_tall: int, rest: int, n: int, dtype: np.dtype[Any], given: Given) -> Any:
    def tall(
        W: Any,
        x: Any,
        target: Any,
        cotangent: Any,
        loss: Any,
        dW: Any,
        dx: Any,
        dq: Any,
        first: int,
        last: int,
        slice_rows: int,
        streams: bool,
    ) -> None:
        wanted = Wanted(loss is not None, dW is not None, dx is not None, dq is not None)
        m = W.shape[1]
        slices(W, x, target, cotangent, loss, dW, dx, dq, wanted, first, last, m, slice_rows, streams, is_tall, rest, n)

    return compile_kernel(tall, f"tall_{'blocks_' * is_tall}{rest}x{n}", dtype, given)


def kernel(m: int, n: int, dtype: np.dtype[Any], given: Given) -> Any:
    """The compiled function for pairs of m rows of n elements of ``dtype``, at most as many as a vector has lanes."""
    lanes = lane_count(dtype)
    return _kernel(int(m >= lanes), m % lanes, n, dtype, given)
