"""The kernel for all other pairs: a vector has neighbours of one row, and a thread has a range of slices of pairs.

A thread takes the rows of a slice in batches that stay in cache until their dW is written. For a batch it computes q,
then the sigmoids of neighbouring rows in one vector, then dx with some columns in registers, then dW. Compiled once
for all m and n.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba.core import cgutils

from sigmoid_l2.kernels import Given, Wanted
from sigmoid_l2.kernels.cpu.compile import compile_kernel, vector_code
from sigmoid_l2.kernels.cpu.loops import for_columns, for_groups, maximum, minimum
from sigmoid_l2.kernels.cpu.sigmoid import error_and_g, side_by_side
from sigmoid_l2.kernels.cpu.simd import INDEX, VectorBuilder, lane_count
from sigmoid_l2.kernels.cpu.stream import AHEAD_BYTES, can_stream
from sigmoid_l2.kernels.cpu.sums import RowTotal, Total

# Size of a batch, in rows, and in bytes of W, about: it stays in the level 1 cache beside x and what is prefetched.
BATCH_ROWS, BATCH_BYTES = 32, 16 << 10
# Size of a batch of rows so long that fewer than LONG_ROWS have BATCH_BYTES: a batch loads and stores dx once.
LONG_ROWS, LONG_BYTES = 8, 256 << 10
# Length of the longest narrow row, in bytes.
NARROW_BYTES = 256
# Rows whose dot products are taken together, because they share their loads of x: as many narrow rows as a vector has
# lanes, and then 4, or 2 others. Each of the others has 4 sums.
NARROW_GROUP, GROUP, SUMS = 4, 2, 4
# Vectors, of SUMS, whose part of the next batch is prefetched with the dot products; the others wait until dW is
# streamed. So memory is read all the time: 256x256 float32 has 0.87 of a copy, 0.80 with all and 0.81 with none.
PREFETCHED = 2
# Columns whose sums of dx stay in registers, in vectors.
COLUMNS = 2
# Size of a chain, in rows: their terms of dx go to CHAIN_SUMS sums in turn, which are added up, and then the chains one
# after another. In a batch, which has less than 1.5 BATCH_ROWS rows, a term goes through at most 8 additions.
CHAIN, CHAIN_SUMS = 8, 4


@vector_code()
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
    m: Any,
    n: Any,
    first: Any,
    last: Any,
    slice_rows: Any,
    batch_rows: Any,
    streams: Any,
    memory: Any,
) -> None:
    """Compute the slices first..last, as ``compile_kernel`` says; ``memory`` is what ``RowTotal`` needs."""
    b = v.builder
    slices_of_pair = b.sdiv(b.add(m, b.sub(slice_rows, INDEX(1))), slice_rows)
    rows, total = Rows(v, n, batch_rows), Total(v)

    def first_row(number: Any) -> tuple[Any, Any, Any]:
        """The pair of a slice, and the slice's first row, in the pair and in W."""
        pair = b.sdiv(number, slices_of_pair)
        row = b.mul(b.sub(number, b.mul(pair, slices_of_pair)), slice_rows)
        return pair, row, b.add(b.mul(pair, m), row)

    with cgutils.for_range_slice(b, first, last, INDEX(1), intp=INDEX) as (number, _):
        pair, row, row_of_W = first_row(number)
        end = minimum(b, b.add(row, slice_rows), m)
        total.begin(v.constant(0))
        with cgutils.for_range_slice(b, row, end, batch_rows, intp=INDEX) as (i, _):
            at = b.mul(b.add(row_of_W, b.sub(i, row)), n)
            rows.take(v.at(W, at), v.at(x, b.mul(pair, n)), v.at(dW, at), minimum(b, batch_rows, b.sub(end, i)))
            rows.compute_q()
            first_of_W = b.add(row_of_W, b.sub(i, row))
            c = cotangent and v.broadcast(b.load(v.at(cotangent, pair)))
            rows.compute_g(total, target and v.at(target, first_of_W), c)
            with b.if_then(wanted.dq):
                rows.write_g(v.at(dq, first_of_W))
            is_first, is_last = b.icmp_signed("==", i, row), b.icmp_signed(">=", b.add(i, batch_rows), end)
            with b.if_then(wanted.dx):
                rows.add_dx(RowTotal(v, n, memory, v.at(dx, b.mul(number, n)), is_first, is_last))
            with b.if_then(wanted.dW):
                rows.write_gradient(streams, b.and_(is_first, b.icmp_signed("==", number, first)))
        with b.if_then(wanted.loss):
            b.store(v.sum_lanes(total.value()), v.at(loss, number))
    if can_stream():
        with b.if_then(b.and_(streams, wanted.dW)):
            rows.finish_gradient(v.at(dW, b.mul(first_row(last)[2], n)))


class Rows:
    """Some rows of a pair: W, x and dW from their begin on."""

    def __init__(self, v: VectorBuilder, n: Any, batch_rows: Any) -> None:
        b = v.builder
        self.v, self.n = v, n
        room = INDEX(2 * BATCH_ROWS // v.width + 1)  # for a batch and one more vector, in vectors
        self.q, self.g = (b.bitcast(cgutils.alloca_once(b, v.vector, room), v.real.as_pointer()) for _ in range(2))
        # How far ahead W is prefetched, in elements: a batch, or AHEAD_BYTES where that is more.
        self.ahead = maximum(b, INDEX(AHEAD_BYTES // v.dtype.itemsize), b.mul(batch_rows, n))
        self.are_narrow = b.icmp_signed("<=", n, INDEX(NARROW_BYTES // v.dtype.itemsize))
        self.line = cgutils.alloca_once_value(b, v.constant(0))  # the begin of a line of dW that is not full yet

    def take(self, W: Any, x: Any, dW: Any, count: Any) -> None:
        """Go to ``count`` other rows."""
        self.W, self.x, self.dW, self.count = W, x, dW, count

    def for_rows(self, narrow: tuple[int, ...], others: tuple[int, ...], step: Callable[[Any, int], None]) -> None:
        """Build ``step(first, size)`` for all rows, in groups of the given sizes while they fit, then one by one."""
        b = self.v.builder
        with b.if_else(self.are_narrow) as (if_narrow, if_long):
            with if_narrow:
                for_groups(b, self.count, (*narrow, 1), step)
            with if_long:
                for_groups(b, self.count, (*others, 1), step)

    def begins(self, first: Any, rows: int) -> list[Any]:
        """Where each of ``rows`` rows begins, in elements."""
        begins = [self.v.builder.mul(first, self.n)]
        while len(begins) < rows:
            begins.append(self.v.builder.add(begins[-1], self.n))
        return begins

    def compute_q(self) -> None:
        """q = W x, followed by a vector of zeros, because compute_g takes whole vectors.

        Other padding can be slow: exp(-inf) is too small for a normal number. 20x33 took 1.4 times as long in cache.
        """
        v, b = self.v, self.v.builder

        def dot(first: Any, group: int) -> None:
            rows = self.begins(first, group)
            unroll = SUMS if group <= GROUP else 1
            sums = [[cgutils.alloca_once_value(b, v.constant(0)) for _ in range(unroll)] for _ in rows]

            def add_products(j: Any, vectors: int, mask: Any) -> None:
                for u in range(vectors):
                    j_u = b.add(j, INDEX(u * v.width))
                    x_j = v.load(self.x, j_u, mask)
                    for row, row_sums in zip(rows, sums, strict=True):
                        W_j = v.load(self.W, b.add(row, j_u), mask)
                        if u < PREFETCHED and mask is None:
                            v.prefetch(self.W, b.add(b.add(row, j_u), self.ahead), level=2)
                        b.store(v.multiply_add(W_j, x_j, b.load(row_sums[u])), row_sums[u])

            for_columns(v, self.n, unroll, add_products)
            totals = [functools.reduce(b.fadd, map(b.load, row_sums)) for row_sums in sums]
            if group == v.width:
                v.store(v.sum_lanes_of_each(totals), self.q, first)
            else:
                for r, total in enumerate(totals):
                    b.store(v.sum_lanes(total), v.at(self.q, b.add(first, INDEX(r))))

        self.for_rows((v.width, NARROW_GROUP), (GROUP,), dot)
        v.store(v.constant(0), self.q, self.count)

    def compute_g(self, loss: Total, target: Any, cotangent: Any) -> None:
        """g; add e^2 to the loss. ``target`` begins with the first row, ``cotangent`` is in every lane."""
        v, b = self.v, self.v.builder
        with cgutils.for_range_slice(b, INDEX(0), self.count, INDEX(v.width), intp=INDEX) as (k, _):
            are_rows = v.mask_first(minimum(b, b.sub(self.count, k), INDEX(v.width)))
            y = target and v.load(target, k, are_rows)
            ((e, g),) = side_by_side([error_and_g(v, v.load(self.q, k), y, cotangent)])
            v.store(g, self.g, k)
            loss.add(b.select(are_rows, b.fmul(e, e), v.constant(0)))

    def write_g(self, dq: Any) -> None:
        """dq = g. It goes through the caches, even where dW does not: it is less than a sixteenth of W."""
        cgutils.memcpy(self.v.builder, dq, self.g, self.count)

    def g_of(self, row: Any) -> Any:
        """A row's g in every lane."""
        return self.v.broadcast(self.v.builder.load(self.v.at(self.g, row)))

    def add_dx(self, dx: RowTotal) -> None:
        """Add W^T g to dx."""
        v, b = self.v, self.v.builder

        def add_columns(j: Any, vectors: int, mask: Any) -> None:
            at = [b.add(j, INDEX(k * v.width)) for k in range(vectors)]
            totals = [cgutils.alloca_once_value(b, v.constant(0)) for _ in at]

            def with_row(row: Any, begin: Any, sums: list[Any]) -> list[Any]:
                g = self.g_of(row)
                return [
                    v.multiply_add(g, v.load(self.W, b.add(begin, k), mask), a) for k, a in zip(at, sums, strict=True)
                ]

            def add(sums: list[Any]) -> None:
                for total, term in zip(totals, sums, strict=True):
                    b.store(b.fadd(b.load(total), term), total)

            def add_chain(first: Any, size: int) -> None:
                sums = [[v.constant(0) for _ in at] for _ in range(CHAIN_SUMS)]
                for r, begin in enumerate(self.begins(first, size)):
                    sums[r % CHAIN_SUMS] = with_row(b.add(first, INDEX(r)), begin, sums[r % CHAIN_SUMS])
                while len(sums) > 1:
                    sums = [list(map(b.fadd, *two)) for two in zip(sums[::2], sums[1::2], strict=True)]
                add(sums[0])

            rest = for_groups(b, self.count, (CHAIN,), add_chain)
            with b.if_then(b.icmp_signed("<", rest, self.count)):
                sums = [cgutils.alloca_once_value(b, v.constant(0)) for _ in at]
                with cgutils.for_range_slice(b, rest, self.count, INDEX(1), intp=INDEX) as (row, _):
                    for a, total in zip(sums, with_row(row, b.mul(row, self.n), list(map(b.load, sums))), strict=True):
                        b.store(total, a)
                add(list(map(b.load, sums)))
            for k, total in zip(at, totals, strict=True):
                dx.add(b.load(total), k, mask)

        for_columns(v, self.n, COLUMNS, add_columns)

    def write_gradient(self, streams: Any, are_first: Any) -> None:
        """Stream or store dW = g x^T; ``are_first``: no rows of dW were written before."""
        if not can_stream():
            self.store_gradient()
            return
        with self.v.builder.if_else(streams) as (streamed, stored):
            with streamed:
                self.stream_gradient(are_first)
            with stored:
                self.store_gradient()

    def store_gradient(self) -> None:
        """Store dW as it comes."""
        v, b = self.v, self.v.builder

        def scale(first: Any, group: int) -> None:
            at = self.begins(first, group)
            g = [self.g_of(b.add(first, INDEX(r))) for r in range(group)]

            def step(j: Any, _: int, mask: Any) -> None:
                x_j = v.load(self.x, j, mask)
                for begin, g_row in zip(at, g, strict=True):
                    v.store(b.fmul(g_row, x_j), self.dW, b.add(begin, j), mask)

            for_columns(v, self.n, 1, step)

        self.for_rows((NARROW_GROUP,), (), scale)

    def stream_gradient(self, are_first: Any) -> None:
        """Stream dW in whole lines, and prefetch W meanwhile; a row must have a vector's elements at least.

        No shuffle is needed: dW_ij = g_i x_j, so a line is g_i times the elements of x from any column on. The line in
        which a row ends and the next one begins is selected from both. The first row of all shares its first line with
        others, and stores its part.
        """
        v, b, width = self.v, self.v.builder, INDEX(self.v.width)
        with cgutils.for_range(b, self.count, intp=INDEX) as loop:
            begin, g = b.mul(loop.index, self.n), self.g_of(loop.index)

            def part_of_row(j: Any, mask: Any = None) -> Any:
                return b.fmul(g, v.load(self.x, j, mask))

            def stream(line: Any, j: Any) -> None:
                v.stream(line, self.dW, b.add(begin, j))
                ahead = b.add(b.add(begin, j), self.ahead)
                with b.if_else(self.are_narrow) as (if_narrow, if_long):
                    with if_narrow:
                        v.prefetch(self.W, ahead, level=1)
                    with if_long:
                        v.prefetch(self.W, ahead, level=2)

            before = v.part_of_line(v.at(self.dW, begin))  # elements of the row before in this row's first line
            j = b.neg(before)
            is_before = v.mask_first(before)
            own = part_of_row(j, b.not_(is_before))
            with b.if_else(b.and_(are_first, b.icmp_signed("==", loop.index, INDEX(0)))) as (shared, whole):
                with shared:
                    v.store(own, self.dW, b.add(begin, j), b.not_(is_before))
                with whole:
                    stream(b.select(is_before, b.load(self.line), own), j)
            j = b.add(j, width)
            end = b.sub(self.n, b.urem(b.sub(self.n, j), width))
            with cgutils.for_range_slice(b, j, end, width, intp=INDEX) as (k, _):
                stream(part_of_row(k), k)
            b.store(part_of_row(end, v.mask_first(b.sub(self.n, end))), self.line)

    def finish_gradient(self, end: Any) -> None:
        """Store the last line's part before ``end``; other threads see all of dW from here on."""
        v = self.v
        part = v.part_of_line(end)
        v.store(v.builder.load(self.line), end, v.builder.neg(part), v.mask_first(part))
        v.fence()


@functools.cache
def kernel(dtype: np.dtype[Any], given: Given) -> Any:
    """The compiled function for pairs of ``dtype``."""
    itemsize, width = dtype.itemsize, lane_count(dtype)

    def rows(
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
        m, n = W.shape[1:]
        row = n * itemsize
        batch = min(BATCH_ROWS, BATCH_BYTES // row)
        if batch < LONG_ROWS:
            batch = max(1, min(LONG_ROWS, LONG_BYTES // row))
        batches = max(1, (2 * slice_rows + batch) // (2 * batch))  # of the same size, about
        batch = (slice_rows + batches - 1) // batches
        streams = streams and n >= width
        memory = np.empty(2 * (n + width), W.dtype)
        sizes = m, n, first, last, slice_rows, batch
        slices(W, x, target, cotangent, loss, dW, dx, dq, wanted, *sizes, streams, memory)

    return compile_kernel(rows, "rows", dtype, given)
