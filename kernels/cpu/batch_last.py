"""The kernel for batch-last arrays: neighbours in memory are elements of neighbouring pairs, so a lane is a pair.

A thread has a range of pairs, cut into blocks; the rows of a block's W come in batches. A batch of W is copied to a
scratch that stays in cache, and computed there; then the elements of its dW are written, run after run, while the next
batch's W takes its place. A run is what a block has of one element of all pairs: W_ij, x_j, ...

Every lane does the same, so a pair's bits depend on the sizes m and n alone.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types
from numba.core import cgutils

from sigmoid_l2 import threads
from sigmoid_l2.kernels import Given, Wanted
from sigmoid_l2.kernels.cpu.compile import compile_function, entry_point, vector_code
from sigmoid_l2.kernels.cpu.loops import for_groups, minimum
from sigmoid_l2.kernels.cpu.sigmoid import error_and_g, side_by_side
from sigmoid_l2.kernels.cpu.simd import INDEX, VectorBuilder, lane_count
from sigmoid_l2.kernels.cpu.stream import AHEAD_BYTES, can_stream
from sigmoid_l2.kernels.cpu.sums import RowTotal, Total, sum_products
from sigmoid_l2.settings import get_streaming_threshold

# Terms of q that are summed as a tree; the trees are added with the error of each addition. So a term of q goes through
# 4 roundings, or 5 of n > 8.
TREE = 8
# Rows whose terms of the loss and dx are summed one after another; these chains are added with the errors.
CHAIN = 8
# Vectors of pairs that are computed side by side.
VECTORS = 4
# Size of the longest run, in bytes, and of the scratch for W, about.
RUN_BYTES, SCRATCH_BYTES = 1 << 12, 1 << 18
# Length of the longest row and the longest column of a pair, in bytes: what they need in a thread's memory.
LONGEST = 1 << 16
# Size of the largest small batch, in elements of W: one thread does it, whose results are never streamed.
SMALL = 1 << 15


class Strides(NamedTuple):
    """The distances of neighbours along each axis but the last, in elements."""

    W_i: Any
    W_j: Any
    x_j: Any
    target_i: Any
    dW_i: Any
    dW_j: Any
    dx_j: Any
    dq_i: Any


class Blocks(NamedTuple):
    """How a range is cut, and the memory for it, in elements."""

    pairs: int  # of a block
    rows: int  # of a batch
    memory: int


def has_batch_last(m: int, n: int, itemsize: int) -> bool:
    """Whether ``batch_last`` takes pairs of m by n elements."""
    return max(m, n) * itemsize <= LONGEST


@lru_cache
def _cut(m: int, n: int, dtype: np.dtype[Any], most: int) -> Blocks:
    """The blocks of a range of ``most`` pairs at most. The rows of a batch, by which sums are cut, are of m and n."""
    lanes = lane_count(dtype)
    elements = SCRATCH_BYTES // dtype.itemsize
    pairs = elements // (min(m, CHAIN) * n + 3 * n + m) // lanes * lanes
    pairs = max(min(pairs, RUN_BYTES // dtype.itemsize), lanes)
    rows = max(elements // (pairs * n), 1)
    if rows < m:
        rows = -(-m // -(-m // rows))  # batches of the same size, about
        rows = rows if rows < CHAIN else -(-rows // CHAIN) * CHAIN
    rows = min(rows, m)
    pairs = min(pairs, -(-most // lanes) * lanes)
    run = pairs + lanes
    return Blocks(pairs, rows, (rows * n + n + m + n + 2 + 2 * (n + 1)) * run + 6 * lanes)


@vector_code()
def ranges(
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
    strides: Strides,
    m: Any,
    n: Any,
    first: Any,
    last: Any,
    blocks: Blocks,
    streams: Any,
    memory: Any,
) -> None:
    """Compute the pairs first..last; ``streams``: results go past the caches."""
    b = v.builder
    v.align_stack()
    batches = _quotient_up(b, m, blocks.rows)
    units = b.mul(_quotient_up(b, b.sub(last, first), blocks.pairs), batches)
    block = Block(v, m, n, blocks, memory)

    def unit(number: Any) -> Unit:
        """A batch of rows of a block; one of no rows before the first one and after the last."""
        of_block = b.sdiv(number, batches)
        row = b.mul(b.sub(number, b.mul(of_block, batches)), blocks.rows)
        pair = b.add(first, b.mul(of_block, blocks.pairs))
        exists = b.icmp_unsigned("<", number, units)
        rows = b.select(exists, minimum(b, blocks.rows, b.sub(m, row)), INDEX(0))
        size = minimum(b, blocks.pairs, b.sub(last, pair))
        return Unit(pair, size, row, rows, b.icmp_signed("==", pair, first))

    with cgutils.for_range_slice(b, INDEX(-1), units, INDEX(1), intp=INDEX) as (number, _):
        now, then = unit(number), unit(b.add(number, INDEX(1)))
        writer = Writer(v, now, last, streams)
        exists = b.icmp_signed(">", now.rows, INDEX(0))
        is_last = b.and_(exists, b.icmp_signed("==", b.add(now.row, now.rows), m))
        with b.if_then(exists):
            with b.if_then(b.icmp_signed("==", now.row, INDEX(0))):
                block.x.load(v.at(x, now.pair), strides.x_j, n, now.size)
                if target:
                    block.g.load(v.at(target, now.pair), strides.target_i, m, now.size)
                if cotangent:
                    block.cotangent.load(v.at(cotangent, now.pair), INDEX(0), INDEX(1), now.size)
            block.compute(now, wanted, target is not None, cotangent is not None)
            with b.if_then(wanted.dq):
                writer.write_rows(v.at(dq, b.mul(now.row, strides.dq_i)), strides.dq_i, now.rows, block.g, now.row)
            with b.if_then(b.and_(wanted.loss, is_last)):
                writer.write_rows(loss, INDEX(0), INDEX(1), block.loss, INDEX(0))
            with b.if_then(b.and_(wanted.dx, is_last)):
                writer.write_rows(dx, strides.dx_j, n, block.dx, INDEX(0))
        block.write_gradient_and_load(writer, now, then, dW, W, strides, wanted.dW)
        with b.if_then(is_last):
            block.keep_ends()
    if can_stream():
        with b.if_then(streams):
            v.fence()


class Unit(NamedTuple):
    """Some rows of some pairs."""

    pair: Any
    size: Any  # in pairs
    row: Any
    rows: Any
    is_first: Any  # whether the pairs are the first ones of the range


class Runs:
    """A part of the scratch: runs, and before each a vector with the end of the run that the block before had here."""

    def __init__(self, v: VectorBuilder, memory: Any, run: Any) -> None:
        self.v, self.memory, self.run = v, memory, run

    def at(self, number: Any) -> Any:
        """Where a run begins."""
        return self.v.at(self.memory, self.v.builder.add(self.v.builder.mul(number, self.run), INDEX(self.v.width)))

    def load(self, source: Any, stride: Any, count: Any, size: Any) -> None:
        """Load ``count`` runs of ``size`` pairs."""
        with cgutils.for_range(self.v.builder, count, intp=INDEX) as loop:
            to, run = self.at(loop.index), self.v.at(source, self.v.builder.mul(loop.index, stride))
            copy_run(self.v, run, to, INDEX(0), size)

    def keep_ends(self, count: Any, size: Any) -> None:
        """Put the end of each run of ``size`` pairs before it."""
        v = self.v
        with cgutils.for_range(v.builder, count, intp=INDEX) as loop:
            run = self.at(loop.index)
            v.store(v.load(run, v.builder.sub(size, INDEX(v.width))), run, INDEX(-v.width))


def copy_run(v: VectorBuilder, source: Any, to: Any, begin: Any, size: Any) -> None:
    """Copy the elements begin..size of a run; 0 follows up to the end of a vector."""
    b = v.builder
    whole = b.and_(size, INDEX(-v.width))
    with cgutils.for_range_slice(b, begin, whole, INDEX(v.width), intp=INDEX) as (t, _):
        v.store(v.load(source, t), to, t)
    with b.if_then(b.icmp_signed("<", whole, size)):
        v.store(v.load(source, whole, v.mask_first(b.sub(size, whole))), to, whole)


class Block:
    """The scratch of a block, and what is computed there."""

    def __init__(self, v: VectorBuilder, m: Any, n: Any, blocks: Blocks, memory: Any) -> None:
        b = v.builder
        self.v, self.m, self.n, self.pairs = v, m, n, blocks.pairs
        run = b.add(blocks.pairs, INDEX(v.width))
        self.at = v.at(memory, b.sub(INDEX(v.width), v.part_of_line(memory)))

        def runs(count: Any) -> Runs:
            part = Runs(v, self.at, run)
            self.at = v.at(self.at, b.mul(count, run))
            return part

        self.W, self.x, self.g = runs(b.mul(blocks.rows, n)), runs(n), runs(m)
        self.dx, self.loss, self.cotangent = runs(n), runs(INDEX(1)), runs(INDEX(1))
        self.sums_of_loss = self.at
        self.sums_of_dx = v.at(self.at, b.add(b.mul(run, INDEX(2)), INDEX(2 * v.width)))
        self.run = run

    def compute(self, unit: Unit, wanted: Wanted, has_target: bool, has_cotangent: bool) -> None:
        """g of the rows of a unit, and their part of the loss and of dx."""
        v, b = self.v, self.v.builder

        def step(number: Any, vectors: int) -> None:
            at = [b.mul(b.add(number, INDEX(u)), INDEX(v.width)) for u in range(vectors)]
            c = [v.load(self.cotangent.at(INDEX(0)), t) if has_cotangent else None for t in at]
            with cgutils.for_range_slice(b, INDEX(0), unit.rows, INDEX(CHAIN), intp=INDEX) as (top, _):
                row, end = b.add(unit.row, top), minimum(b, b.add(top, INDEX(CHAIN)), unit.rows)
                is_first = b.icmp_signed("==", row, INDEX(0))
                is_last = b.icmp_signed("==", b.add(unit.row, end), self.m)
                squares = Sums(v, vectors)
                with cgutils.for_range_slice(b, top, end, INDEX(1), intp=INDEX) as (i, _):
                    g_row = self.g.at(b.add(unit.row, i))
                    y = [v.load(g_row, t) if has_target else None for t in at]
                    q = self.q(i, at)
                    e, g = zip(*side_by_side(map(error_and_g, [v] * vectors, q, y, c)), strict=True)
                    for t, g_t in zip(at, g, strict=True):
                        v.store(g_t, g_row, t)
                    squares.add(e, e)
                with b.if_then(wanted.loss):
                    total = RowTotal(v, self.run, self.sums_of_loss, self.loss.at(INDEX(0)), is_first, is_last)
                    squares.end(total, at)
                with b.if_then(wanted.dx):
                    room = b.mul(self.n, self.run)
                    total = RowTotal(v, room, self.sums_of_dx, self.dx.at(INDEX(0)), is_first, is_last)
                    with cgutils.for_range(b, self.n, intp=INDEX) as column:
                        sums = Sums(v, vectors)
                        with cgutils.for_range_slice(b, top, end, INDEX(1), intp=INDEX) as (i, _):
                            g_row = self.g.at(b.add(unit.row, i))
                            W_ij = self.W.at(b.add(b.mul(i, self.n), column.index))
                            sums.add([v.load(g_row, t) for t in at], [v.load(W_ij, t) for t in at])
                        sums.end(total, [b.add(b.mul(column.index, self.run), t) for t in at])

        for_groups(b, _quotient_up(b, unit.size, INDEX(v.width)), (VECTORS, 1), step)

    def q(self, i: Any, at: list[Any]) -> list[Any]:
        """q = W x for the i-th row of the scratch and some vectors of pairs."""
        v, b = self.v, self.v.builder
        totals = [Total(v) for _ in at]

        def trees(j: Any, size: int) -> list[Any]:
            row = b.add(b.mul(i, self.n), j)
            W = [self.W.at(b.add(row, INDEX(k))) for k in range(size)]
            x = [self.x.at(b.add(j, INDEX(k))) for k in range(size)]
            return [sum_products(v, [v.load(a, t) for a in W], [v.load(a, t) for a in x]) for t in at]

        rest = b.add(b.urem(b.sub(self.n, INDEX(1)), INDEX(TREE)), INDEX(1))
        end = b.append_basic_block("trees")
        switch = b.switch(rest, end)
        for size in range(1, TREE + 1):
            case = b.append_basic_block(f"tree_of_{size}")
            switch.add_case(INDEX(size), case)
            with b.goto_block(case):
                for total, tree in zip(totals, trees(INDEX(0), size), strict=True):
                    total.begin(tree)
                b.branch(end)
        b.position_at_end(end)
        with cgutils.for_range_slice(b, rest, self.n, INDEX(TREE), intp=INDEX) as (j, _):
            for total, tree in zip(totals, trees(j, TREE), strict=True):
                total.add(tree)
        return [total.value() for total in totals]

    def write_gradient_and_load(
        self, writer: "Writer", now: Unit, then: Unit, dW: Any, W: Any, strides: Strides, is_wanted: Any
    ) -> None:
        """Write dW = g x^T of a unit, and load W of the next one in the place of its own."""
        v, b = self.v, self.v.builder
        rows = b.select(is_wanted, now.rows, INDEX(0))
        # How many columns ahead W is prefetched.
        ahead = b.add(b.udiv(INDEX(AHEAD_BYTES // v.dtype.itemsize), b.add(self.pairs, INDEX(1))), INDEX(1))
        count = b.select(b.icmp_signed("<", rows, then.rows), then.rows, rows)
        with cgutils.for_range(b, count, intp=INDEX) as row, cgutils.for_range(b, self.n, intp=INDEX) as column:
            i, j = row.index, column.index
            loads = b.select(b.icmp_signed("<", i, then.rows), then.size, INDEX(0))
            whole = b.and_(loads, INDEX(-v.width))

            def source(j: Any, row: Any = b.add(then.row, i)) -> Any:  # noqa: B008
                return v.at(W, b.add(b.add(b.mul(row, strides.W_i), b.mul(j, strides.W_j)), then.pair))

            W_ij, to = source(j), self.W.at(b.add(b.mul(i, self.n), j))
            next_W = source(b.add(j, ahead))
            done = cgutils.alloca_once_value(b, INDEX(0))
            with b.if_then(b.icmp_signed("<", i, rows)):
                row_of_dW = b.add(now.row, i)
                g, x = self.g.at(row_of_dW), self.x.at(j)

                def load(t: Any) -> None:
                    v.prefetch(next_W, t)
                    with b.if_then(b.icmp_signed("<", t, whole)):
                        v.store(v.load(W_ij, t), to, t)

                dW_ij = v.at(dW, b.add(b.mul(row_of_dW, strides.dW_i), b.mul(j, strides.dW_j)))
                written = writer.write(dW_ij, lambda t: b.fmul(v.load(g, t), v.load(x, t)), load)
                b.store(minimum(b, written, whole), done)
            copy_run(v, W_ij, to, b.load(done), loads)

    def keep_ends(self) -> None:
        """Keep the ends of the runs of a whole block for the lines that they share with the next block's."""
        for runs, count in ((self.x, self.n), (self.g, self.m), (self.dx, self.n), (self.loss, INDEX(1))):
            runs.keep_ends(count, self.pairs)


class Sums:
    """Chains of sums, one for each of some vectors of pairs."""

    def __init__(self, v: VectorBuilder, vectors: int) -> None:
        self.v = v
        self.sums = [cgutils.alloca_once(v.builder, v.vector) for _ in range(vectors)]
        for a in self.sums:
            v.builder.store(v.constant(0), a)

    def add(self, a: Any, c: Any) -> None:
        """Add the products a[k] c[k]."""
        v, b = self.v, self.v.builder
        for a_k, c_k, to in zip(a, c, self.sums, strict=True):
            b.store(v.multiply_add(a_k, c_k, b.load(to)), to)

    def end(self, total: RowTotal, at: list[Any]) -> None:
        """Add the sums to a total."""
        for a, t in zip(self.sums, at, strict=True):
            total.add(self.v.builder.load(a), t, None)


class Writer:
    """Writes the runs of a unit in lines as long as a vector, which are streamed where they are the range's own.

    The line in which a run ends is written by the next block, which has the run's end before its own run.
    """

    def __init__(self, v: VectorBuilder, unit: Unit, last: Any, streams: Any) -> None:
        self.v, self.unit, self.streams = v, unit, streams
        self.is_last = v.builder.icmp_signed("==", v.builder.add(unit.pair, unit.size), last)

    def write_rows(self, to: Any, stride: Any, count: Any, runs: Runs, first: Any) -> None:
        """Write ``count`` runs from ``first`` on."""
        v, b = self.v, self.v.builder
        with cgutils.for_range(b, count, intp=INDEX) as loop:
            run = runs.at(b.add(first, loop.index))
            self.write(v.at(to, b.mul(loop.index, stride)), lambda t: v.load(run, t), lambda t: None)

    def write(self, to: Any, value: Callable[[Any], Any], meanwhile: Callable[[Any], None]) -> Any:
        """Write a run of an array that begins with ``to``, whose vectors are ``value(t)``; how often ``meanwhile``."""
        v, b, width, size = self.v, self.v.builder, INDEX(self.v.width), self.unit.size
        to = v.at(to, self.unit.pair)
        part = v.part_of_line(to)
        is_shared = b.and_(self.unit.is_first, b.icmp_signed(">", part, INDEX(0)))
        begin = b.neg(part)
        with b.if_then(is_shared):
            own = b.and_(v.mask_first(minimum(b, width, b.add(size, part))), b.not_(v.mask_first(part)))
            v.store(value(begin), to, begin, own)
        begin = b.select(is_shared, b.sub(width, part), begin)
        lines = b.sdiv(b.sub(size, begin), width)
        with cgutils.for_range(b, lines, intp=INDEX) as loop:
            k = b.mul(loop.index, width)
            self._store(value(b.add(begin, k)), to, b.add(begin, k))
            meanwhile(k)
        end = b.add(begin, b.mul(lines, width))
        with b.if_then(b.and_(self.is_last, b.icmp_signed("<", end, size))):
            v.store(value(end), to, end, v.mask_first(b.sub(size, end)))
        return b.mul(lines, width)

    def _store(self, vector: Any, to: Any, t: Any) -> None:
        if not can_stream():
            self.v.store(vector, to, t)
            return
        with self.v.builder.if_else(self.streams) as (streamed, stored):
            with streamed:
                self.v.stream(vector, to, t)
            with stored:
                self.v.store(vector, to, t)


def _quotient_up(b: Any, a: Any, c: Any) -> Any:
    """a / c, rounded up."""
    return b.sdiv(b.add(a, b.sub(c, INDEX(1))), c)


@cache
def kernel(dtype: np.dtype[Any], given: Given) -> Any:
    """The compiled function for pairs of ``dtype``."""
    itemsize = dtype.itemsize

    def batch_last(
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
        pairs: int,
        rows: int,
        size: int,
        streams: bool,
    ) -> None:
        wanted = Wanted(loss is not None, dW is not None, dx is not None, dq is not None)
        W_i, W_j = W.strides[0] // itemsize, W.strides[1] // itemsize
        target_i = dW_i = dW_j = dx_j = dq_i = 0
        if target is not None:
            target_i = target.strides[0] // itemsize
        if dW is not None:
            dW_i, dW_j = dW.strides[0] // itemsize, dW.strides[1] // itemsize
        if dx is not None:
            dx_j = dx.strides[0] // itemsize
        if dq is not None:
            dq_i = dq.strides[0] // itemsize
        strides = Strides(W_i, W_j, x.strides[0] // itemsize, target_i, dW_i, dW_j, dx_j, dq_i)
        m, n = W.shape[:2]
        blocks = Blocks(pairs, rows, size)
        memory = np.empty(size, W.dtype)
        ranges(W, x, target, cotangent, loss, dW, dx, dq, wanted, strides, m, n, first, last, blocks, streams, memory)

    real = numba.from_dtype(dtype)
    elements, vectors, numbers = real[:, :, :], real[:, :], real[::1]
    inputs = vectors if given.target else types.none, numbers if given.cotangent else types.none
    outputs = map(types.Optional, (numbers, elements, vectors, vectors))
    signature = types.void(elements, vectors, *inputs, *outputs, *(types.int64,) * 5, types.boolean)
    name = "batch_last" + "_target" * given.target + "_cotangent" * given.cotangent
    return compile_function(batch_last, f"{name}_{dtype}", signature)


def batch_last(
    W: Any,
    x: Any,
    target: Any,
    cotangent: Any,
    loss: Any,
    dW: Any,
    dx: Any,
    dq: Any,
    *,
    stream: int | None = None,
    call_bytes: int = 0,
) -> None:
    """Compute the outputs that are wanted for W (m, n, B), x (n, B), ...; the contract is in ``sigmoid_l2.kernels``."""
    m, n, B = W.shape
    run = entry_point(kernel(W.dtype, Given(target is not None, cotangent is not None)))
    arrays = W, x, target, cotangent, loss, dW, dx, dq
    blocks = _cut(m, n, W.dtype, B)
    if W.size <= SMALL:
        run(*arrays, 0, B, *blocks, False)
        return
    written = call_bytes or sum(a.nbytes for a in arrays[-4:] if a is not None)
    streams = written >= get_streaming_threshold()
    lanes = lane_count(W.dtype)
    units = -(-B // lanes)
    # Allocate and drop as much memory as the threads need, so that MemoryError comes before any of them has written.
    np.empty((min(units, threads.get_num_threads()), blocks.memory), W.dtype)

    def run_range(first: int, last: int) -> None:
        run(*arrays, first * lanes, min(last * lanes, B), *blocks, streams)

    threads.for_ranges(units, W.size, run_range)
