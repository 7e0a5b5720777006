"""A thread's range of pairs in the kernel for batch-last arrays: a lane is a pair.

It is cut into blocks of some vectors of pairs. The thread goes through the rows of a block, and then of the next one:
while a row of dW is written, the next row of W is read into a scratch, which waits there for its g. What a block has of
one element of all pairs, as W_ij or x_j, is a run.

Every lane does the same, so a pair's bits depend on the sizes m and n alone.
"""

from typing import Any, NamedTuple

from numba.core import cgutils

from sigmoid_l2.kernels import Wanted
from sigmoid_l2.kernels.cpu.compile import vector_code
from sigmoid_l2.kernels.cpu.loops import minimum
from sigmoid_l2.kernels.cpu.sigmoid import error_and_g, side_by_side
from sigmoid_l2.kernels.cpu.simd import INDEX, VectorBuilder
from sigmoid_l2.kernels.cpu.stream import can_stream
from sigmoid_l2.kernels.cpu.sums import RowTotal, Total, sum_products

# Vectors of pairs of a block. A range with fewer pairs has blocks of one vector. Beside 4, 3x3 has 1.2 of the speed in
# cache and 8x8 streamed 1.4, but 3x3 and 4x4 streamed 0.9 and 0.8.
VECTORS = 8
# Terms of q that are summed as a tree; trees are added with the error of each addition. So a term goes through at most
# ceil(log2 n) + 1 roundings up to n = 8, and through 5 of a longer row.
TREE = 8
# Rows whose terms of the loss and of dx are summed one after another; these chains are added with the errors.
CHAIN = 8
# How far ahead W is prefetched, in runs.
AHEAD = 16


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


class Arrays(NamedTuple):
    """The first elements; a target or a cotangent that is not given is None."""

    W: Any
    x: Any
    target: Any
    cotangent: Any
    loss: Any
    dW: Any
    dx: Any
    dq: Any


@vector_code()
def pairs(
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
    streams: Any,
    memory: Any,
) -> None:
    """Compute the pairs first..last; ``streams``: results go past the caches."""
    b = v.builder
    v.align_stack()
    arrays = Arrays(W, x, target, cotangent, loss, dW, dx, dq)
    is_long = b.icmp_signed(">=", b.sub(last, first), INDEX(VECTORS * v.width))
    with b.if_else(is_long, likely=True) as (long, short):
        with long:
            Range(v, VECTORS, arrays, strides, wanted, m, n, streams, memory).compute(first, last)
        with short:
            Range(v, 1, arrays, strides, wanted, m, n, streams, memory).compute(first, last)
    if can_stream():
        with b.if_then(streams):
            v.fence()


class Unit(NamedTuple):
    """A row of a block."""

    pair: Any  # the block's first one
    size: Any  # of the block, in pairs
    row: Any
    begins: Any  # whether the block does not go on where the one before ended
    ends: Any  # whether the next one does not go on where this one ends
    parity: Any  # of the block's number


class Range:
    """A range of pairs, in blocks of ``vectors`` vectors; what is kept of a row or a block lies in ``memory``."""

    def __init__(
        self,
        v: VectorBuilder,
        vectors: int,
        arrays: Arrays,
        strides: Strides,
        wanted: Wanted,
        m: Any,
        n: Any,
        streams: Any,
        memory: Any,
    ) -> None:
        b = v.builder
        self.v, self.vectors, self.arrays, self.strides, self.wanted = v, vectors, arrays, strides, wanted
        self.m, self.n, self.streams = m, n, streams
        self.pairs, self.at = vectors * v.width, [k * v.width for k in range(vectors)]
        self.memory = v.at(memory, b.sub(INDEX(v.width), v.part_of_line(memory)))

        def room(count: Any, size: int) -> Any:
            place = self.memory
            self.memory = v.at(place, b.mul(count, INDEX(size)))
            return place

        self.W = room(n, self.pairs)  # a row
        self.chains = room(n, self.pairs)  # the sums of dx over a chain of rows
        # x of two blocks in turn, each run after the last vector of the block before.
        self.x_run = self.pairs + v.width
        self.x = [room(n, self.x_run) for _ in range(2)]
        self.g_before, self.dx_before, self.loss_before = (room(count, v.width) for count in (m, n, INDEX(1)))
        self.loss, self.dx = room(INDEX(1), self.pairs), room(n, self.pairs)
        self.sums_of_loss = room(INDEX(2), self.pairs + v.width)
        self.sums_of_dx = self.memory
        self.g, self.squares = ([cgutils.alloca_once(b, v.vector) for _ in self.at] for _ in range(2))

    def compute(self, first: Any, last: Any) -> None:
        """Compute the pairs first..last."""
        v, b, m, step = self.v, self.v.builder, self.m, INDEX(self.pairs)
        blocks = b.sdiv(b.add(b.sub(last, first), b.sub(step, INDEX(1))), step)
        units = b.mul(blocks, m)
        with cgutils.for_range(b, self.n, intp=INDEX) as column:
            for t in self.at:
                v.store(v.constant(0), v.at(self.chains, b.mul(column.index, step)), INDEX(t))
        for square in self.squares:
            b.store(v.constant(0), square)

        def unit(number: Any) -> Unit:
            block = b.sdiv(number, m)
            pair = b.add(first, b.mul(block, step))
            size, begins = step, b.icmp_signed("==", block, INDEX(0))
            ends = b.icmp_signed(">", b.add(pair, INDEX(2 * self.pairs)), last)
            if self.is_masked:
                size = minimum(b, step, b.sub(last, pair))
                ends = b.icmp_signed(">=", b.add(pair, step), last)
            else:  # the last block ends with the range, and may compute some pairs of the one before again
                begins = b.or_(begins, b.icmp_signed(">", b.add(pair, step), last))
                pair = minimum(b, pair, b.sub(last, step))
            return Unit(pair, size, b.sub(number, b.mul(block, m)), begins, ends, b.and_(block, INDEX(1)))

        with cgutils.for_range_slice(b, INDEX(-1), units, INDEX(1), intp=INDEX) as (number, _):
            exists = b.icmp_signed(">=", number, INDEX(0))
            now = unit(b.select(exists, number, INDEX(0)))
            next_number = b.add(number, INDEX(1))
            then = unit(b.select(b.icmp_signed("<", next_number, units), next_number, number))
            with b.if_then(b.icmp_signed("==", then.row, INDEX(0))):
                self.load_x(then)
            self.write_and_read(now, then, exists)
            with b.if_then(exists):
                self.end_row(now)
            self.compute_g(then)

    @property
    def is_masked(self) -> bool:
        """Whether blocks may be shorter than their vectors."""
        return self.vectors == 1

    def load(self, array: Any, index: Any, unit: Unit) -> list[Any]:
        """A unit's run of an array."""
        mask = self.v.mask_first(unit.size) if self.is_masked else None
        return [self.v.load(array, self.v.builder.add(index, INDEX(t)), mask) for t in self.at]

    def x_of(self, unit: Unit, j: Any) -> Any:
        """Where a unit's run of x begins."""
        v, b = self.v, self.v.builder
        x = b.select(b.icmp_signed("==", unit.parity, INDEX(0)), *self.x)
        return v.at(x, b.add(b.mul(j, INDEX(self.x_run)), INDEX(v.width)))

    def load_x(self, unit: Unit) -> None:
        """Copy x of a block."""
        v, b = self.v, self.v.builder
        before = unit._replace(parity=b.xor(unit.parity, INDEX(1)))
        with cgutils.for_range(b, self.n, intp=INDEX) as column:
            j = column.index
            run, at = self.x_of(unit, j), b.add(b.mul(j, self.strides.x_j), unit.pair)
            v.store(v.load(self.x_of(before, j), INDEX(self.at[-1])), run, INDEX(-v.width))
            for t, x in zip(self.at, self.load(self.arrays.x, at, unit), strict=True):
                v.store(x, run, INDEX(t))
                v.prefetch(self.arrays.x, b.add(at, INDEX(t + 4 * self.pairs)), level=2)

    def write_and_read(self, now: Unit, then: Unit, exists: Any) -> None:
        """dW = g x^T and dx += W^T g of a row, while the next row of W takes its place."""
        v, b, strides = self.v, self.v.builder, self.strides
        writes, adds = b.and_(exists, self.wanted.dW), b.and_(exists, self.wanted.dx)
        g, g_before = list(map(b.load, self.g)), v.load(self.g_before, b.mul(now.row, INDEX(v.width)))
        row = b.add(b.mul(then.row, strides.W_i), then.pair)
        row_of_dW = b.mul(now.row, strides.dW_i)
        # What is prefetched: some rows further, and then some columns.
        rows, columns = b.udiv(INDEX(AHEAD), self.n), b.urem(INDEX(AHEAD), self.n)

        def ahead_of(row: Any) -> Any:
            block = b.udiv(row, self.m)
            row = b.sub(row, b.mul(block, self.m))
            pair = b.add(then.pair, b.mul(block, INDEX(self.pairs)))
            return b.add(b.mul(row, strides.W_i), pair)

        near, far = (ahead_of(b.add(b.add(then.row, rows), INDEX(k))) for k in range(2))
        with cgutils.for_range(b, self.n, intp=INDEX) as column:
            j = column.index
            run = b.mul(j, INDEX(self.pairs))
            ahead_j = b.add(j, columns)
            is_near = b.icmp_signed("<", ahead_j, self.n)
            ahead_j = b.select(is_near, ahead_j, b.sub(ahead_j, self.n))
            ahead = b.add(b.select(is_near, near, far), b.mul(ahead_j, strides.W_j))
            for t in self.at:
                v.prefetch(self.arrays.W, b.add(ahead, INDEX(t)))
            with b.if_then(adds):
                scratch, chain = v.at(self.W, run), v.at(self.chains, run)
                for t, g_t in zip(self.at, g, strict=True):
                    k = INDEX(t)
                    v.store(v.multiply_add(g_t, v.load(scratch, k), v.load(chain, k)), chain, k)
            next_W = self.load(self.arrays.W, b.add(row, b.mul(j, strides.W_j)), then)
            for t, W in zip(self.at, next_W, strict=True):
                v.store(W, self.W, b.add(run, INDEX(t)))
            with b.if_then(writes):
                x = self.x_of(now, j)
                before = b.fmul(g_before, v.load(x, INDEX(-v.width)))
                dW = [b.fmul(g_t, v.load(x, INDEX(t))) for t, g_t in zip(self.at, g, strict=True)]
                self.write(self.arrays.dW, b.add(row_of_dW, b.mul(j, strides.dW_j)), before, dW, now)

    def end_row(self, now: Unit) -> None:
        """dq; and the loss and dx, where a chain of rows ends."""
        v, b, width = self.v, self.v.builder, INDEX(self.v.width)
        g, at = list(map(b.load, self.g)), b.mul(now.row, width)
        with b.if_then(self.wanted.dq):
            before = v.load(self.g_before, at)
            self.write(self.arrays.dq, b.mul(now.row, self.strides.dq_i), before, g, now)
        v.store(g[-1], self.g_before, at)
        count = b.add(now.row, INDEX(1))
        is_last = b.icmp_signed("==", count, self.m)
        ends = b.or_(is_last, b.icmp_signed("==", b.urem(count, INDEX(CHAIN)), INDEX(0)))
        is_first = b.icmp_signed("<", now.row, INDEX(CHAIN))

        def end_chain(chain: list[Any], sums: Any, n: Any, run: Any, total: Any, before: Any, to: Any, at: Any) -> None:
            """Add a chain to its sum; the last one writes it."""
            sum_ = RowTotal(v, n, sums, total, is_first, is_last)
            for t, a in zip(self.at, chain, strict=True):
                sum_.add(a, b.add(run, INDEX(t)), None)
            with b.if_then(is_last):
                values = [v.load(total, b.add(run, INDEX(t))) for t in self.at]
                self.write(to, at, v.load(before, INDEX(0)), values, now)
                v.store(values[-1], before, INDEX(0))

        with b.if_then(ends):
            with b.if_then(self.wanted.loss):
                chain = list(map(b.load, self.squares))
                zero = INDEX(0)
                size = INDEX(self.pairs)
                end_chain(chain, self.sums_of_loss, size, zero, self.loss, self.loss_before, self.arrays.loss, zero)
            for square in self.squares:
                b.store(v.constant(0), square)
            with b.if_then(self.wanted.dx), cgutils.for_range(b, self.n, intp=INDEX) as column:
                j, size = column.index, b.mul(self.n, INDEX(self.pairs))
                run, to = b.mul(j, INDEX(self.pairs)), b.mul(j, self.strides.dx_j)
                chain = [v.load(self.chains, b.add(run, INDEX(t))) for t in self.at]
                for t in self.at:
                    v.store(v.constant(0), self.chains, b.add(run, INDEX(t)))
                before = v.at(self.dx_before, b.mul(j, width))
                end_chain(chain, self.sums_of_dx, size, run, self.dx, before, self.arrays.dx, to)

    def compute_g(self, unit: Unit) -> None:
        """q = W x of the row in the scratch; e, g, and its part of the loss."""
        v, b, target, cotangent = self.v, self.v.builder, self.arrays.target, self.arrays.cotangent
        nothing = [None] * self.vectors
        y, c = nothing, nothing
        if target:
            y = self.load(target, b.add(b.mul(unit.row, self.strides.target_i), unit.pair), unit)
        if cotangent:
            c = self.load(cotangent, unit.pair, unit)
        e, g = zip(*side_by_side(map(error_and_g, [v] * self.vectors, self.q(unit), y, c)), strict=True)
        for square, e_t in zip(self.squares, e, strict=True):
            b.store(v.multiply_add(e_t, e_t, b.load(square)), square)
        for place, g_t in zip(self.g, g, strict=True):
            b.store(g_t, place)

    def q(self, unit: Unit) -> list[Any]:
        """q = W x of the row in the scratch."""
        v, b = self.v, self.v.builder
        totals = [Total(v) for _ in self.at]

        def trees(j: Any, size: int) -> list[Any]:
            W, x = v.at(self.W, b.mul(j, INDEX(self.pairs))), self.x_of(unit, j)
            return [
                sum_products(
                    v,
                    [v.load(W, INDEX(k * self.pairs + t)) for k in range(size)],
                    [v.load(x, INDEX(k * self.x_run + t)) for k in range(size)],
                )
                for t in self.at
            ]

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

    def write(self, array: Any, index: Any, before: Any, vectors: list[Any], unit: Unit) -> None:
        """Write a run, in lines as long as a vector, joined from two neighbours; ``before`` is the one before them.

        The line in which the run ends is written with the next block's, if that goes on there. A line of which only a
        part is written is not streamed.
        """
        v, b, width = self.v, self.v.builder, INDEX(self.v.width)
        to = v.at(array, b.add(index, unit.pair))
        if not can_stream():
            mask = v.mask_first(unit.size) if self.is_masked else None
            for t, vector in zip(self.at, vectors, strict=True):
                v.store(vector, to, INDEX(t), mask)
            return
        part = v.part_of_line(to)
        join, lines = v.joiner(part), []
        for vector in vectors:
            lines.append(join(before, vector))
            before = vector
        at = [b.sub(INDEX(t), part) for t in self.at]
        own = b.not_(v.mask_first(b.select(unit.begins, part, INDEX(0))))
        if self.is_masked:
            own = b.and_(own, v.mask_first(minimum(b, width, b.add(part, unit.size))))
            v.store(lines[0], to, at[0], own)
        else:
            with b.if_else(b.and_(self.streams, b.not_(unit.begins))) as (streamed, stored):
                with streamed:
                    v.stream(lines[0], to, at[0])
                with stored:
                    v.store(lines[0], to, at[0], own)
            with b.if_else(self.streams) as (streamed, stored):
                with streamed:
                    for t, line in zip(at[1:], lines[1:], strict=True):
                        v.stream(line, to, t)
                with stored:
                    for t, line in zip(at[1:], lines[1:], strict=True):
                        v.store(line, to, t)
        with b.if_then(unit.ends):
            end = b.sub(INDEX(self.pairs), part)
            v.store(join(before, before), to, end, v.mask_first(b.sub(unit.size, end)))


def room(m: int, n: int, lanes: int, vectors: int) -> int:
    """The memory that a range needs with blocks of so many vectors, in elements; what ``Range`` takes of it."""
    of_column = 2 * vectors + 2 * (vectors + 1) + 1 + vectors + 2 * vectors  # W, chains; x; dx_before; dx; sums_of_dx
    of_range = m + 1 + vectors + 2 * (vectors + 1)  # g_before, loss_before; loss; sums_of_loss
    return lanes * (n * of_column + of_range + 4)  # and RowTotal's and the first line's rest
