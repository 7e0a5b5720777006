"""One W for many x, larger than tiny: three products of matrices for a block of samples, which stays in cache.

A thread has a range of units of the batch, and takes a unit in blocks. For a block it packs x, then computes q = x W^T,
then e and g, then dx = g W, then adds g^T x to the unit's dW. Compiled for each number of vectors that a row of W and
of W^T has, up to two, and for each number of rows of W up to MOST_ROWS.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from sigmoid_l2.kernels import Given, Wanted
from sigmoid_l2.kernels.cpu.compile import compile_function, vector_code
from sigmoid_l2.kernels.cpu.loops import maximum, minimum
from sigmoid_l2.kernels.cpu.shared_panels import TREE_ROWS, Chains, Sizes, g_of_q, pack_rows, rows_of_tile
from sigmoid_l2.kernels.cpu.shared_product import Tile
from sigmoid_l2.kernels.cpu.simd import INDEX, VectorBuilder
from sigmoid_l2.kernels.cpu.stream import can_stream
from sigmoid_l2.kernels.cpu.sums import add_exactly


@vector_code(constants=4)
def units(
    v: VectorBuilder,
    W: Any,
    W_transposed: Any,
    x: Any,
    target: Any,
    cotangent: Any,
    loss: Any,
    dx: Any,
    dq: Any,
    memory: Any,
    wanted: Wanted,
    m: Any,
    n: Any,
    first: Any,
    last: Any,
    unit: Any,
    batch: Any,
    block_rows: Any,
    chains_of_panel: Any,
    dW_chain: Any,
    room: Any,
    streams: Any,
    m_vectors: int,
    n_vectors: int,
    dW_rows: int,
    dx_levels: int,
) -> None:
    """Compute the units first..last of ``unit`` samples each.

    W and its transpose are packed. ``memory`` has ``room`` elements for each unit; the first ones get the sum of dW,
    high and low parts of a tile one after another. A panel of a sum for dx is cut into ``chains_of_panel`` chains, a
    sum of dW into chains of ``dW_chain`` samples.
    """
    b = v.builder
    v.align_stack()
    sizes = Sizes(b, m, n, block_rows, m_vectors * v.width, n_vectors * v.width)
    with cgutils.for_range_slice(b, first, last, INDEX(1), intp=INDEX) as (number, _):
        sums = v.at(memory, b.mul(number, room))
        begin = b.mul(number, unit)
        end = minimum(b, b.add(begin, unit), batch)
        # What follows the sums, if they are there.
        dW_size = b.mul(b.mul(sizes.n_panels, INDEX(2 * sizes.n_panel)), sizes.rounded_up(m, dW_rows))
        buffers = v.at(sums, b.select(wanted.dW, dW_size, INDEX(0)))
        block = Block(v, sizes, buffers, m_vectors, n_vectors, dW_rows)
        with cgutils.for_range_slice(b, begin, end, block_rows, intp=INDEX) as (sample, _):
            count = minimum(b, block_rows, b.sub(end, sample))
            block.take(count)
            pack_rows(v, v.at(x, b.mul(sample, n)), n, count, n, block.x, block.x_panel, n_vectors)
            block.compute_q(W_transposed)
            at = b.mul(sample, m)
            y = target and v.at(target, at)
            c = cotangent and v.at(cotangent, sample)
            g_of_q(v, sizes, block.g, m_vectors, count, y, c, v.at(loss, sample), v.at(dq, at), wanted)
            with b.if_then(wanted.dx):
                block.compute_dx(W, chains_of_panel, dx_levels)
                block.write_dx(v.at(dx, b.mul(sample, n)), streams)
            with b.if_then(wanted.dW):
                block.add_gradient(sums, dW_chain, b.icmp_signed("==", sample, begin))
    if can_stream():
        with b.if_then(streams):
            v.fence()


class Block:
    """Some samples: x, g (first q) and dx in ``memory``, x and g in panels, dx in the order of memory."""

    def __init__(
        self, v: VectorBuilder, sizes: Sizes, memory: Any, m_vectors: int, n_vectors: int, dW_rows: int
    ) -> None:
        b = v.builder
        self.v, self.sizes, self.m_vectors, self.n_vectors, self.dW_rows = v, sizes, m_vectors, n_vectors, dW_rows
        self.x_panel, self.g_panel = (b.mul(sizes.rows, INDEX(p)) for p in (sizes.n_panel, sizes.m_panel))
        self.x = memory
        self.g = v.at(self.x, b.mul(sizes.n_panels, self.x_panel))
        self.dx = v.at(self.g, b.mul(sizes.m_panels, self.g_panel))

    def take(self, count: Any) -> None:
        """Go to other samples, ``count`` of them."""
        self.count = count

    def for_tiles(self, panels: Any, rows: int, count: Any, step: Callable[[Any, Any], None]) -> None:
        """Build ``step(panel, row)`` for each tile."""
        b = self.v.builder
        tiles_of_panel = partial(cgutils.for_range_slice, b, INDEX(0), count, INDEX(rows), intp=INDEX)
        with cgutils.for_range(b, panels, intp=INDEX) as panel, tiles_of_panel() as (row, _):
            step(panel.index, row)

    def compute_q(self, W_transposed: Any) -> None:
        """q = x W^T. A term of q is rounded n times at most: a sum is one chain, in the order of the columns."""
        v, b, sizes, rows = self.v, self.v.builder, self.sizes, rows_of_tile()

        def compute(i_panel: Any, row: Any) -> None:
            tile = Tile(v, rows, self.m_vectors)
            tile.clear()
            W_panel = v.at(W_transposed, b.mul(b.mul(i_panel, sizes.n), INDEX(sizes.m_panel)))
            x_row = v.at(self.x, b.mul(row, INDEX(sizes.n_panel)))
            with cgutils.for_range(b, sizes.n_panels, intp=INDEX) as panel:
                j = b.mul(panel.index, INDEX(sizes.n_panel))
                count = minimum(b, INDEX(sizes.n_panel), b.sub(sizes.n, j))
                x_part = v.at(x_row, b.mul(panel.index, self.x_panel))
                tile.add_products(count, x_part, sizes.n_panel, 1, v.at(W_panel, b.mul(j, INDEX(sizes.m_panel))))
            to = v.at(self.g, b.add(b.mul(i_panel, self.g_panel), b.mul(row, INDEX(sizes.m_panel))))
            v.store_block(map(b.load, tile.sums), to)

        self.for_tiles(sizes.m_panels, rows, self.count, compute)

    def compute_dx(self, W: Any, chains_of_panel: Any, levels: int) -> None:
        """dx = g W; a sum is one chain, which stays in registers, or a tree of chains, or a tree of trees."""
        v, b, sizes, rows = self.v, self.v.builder, self.sizes, rows_of_tile()

        def compute(j_panel: Any, row: Any) -> None:
            tile = Tile(v, rows, self.n_vectors)
            W_panel = v.at(W, b.mul(b.mul(j_panel, sizes.m), INDEX(sizes.n_panel)))
            g_row = v.at(self.g, b.mul(row, INDEX(sizes.m_panel)))

            def add_rows(i: Any, count: Any) -> None:
                chains = Chains(b, count, sizes.m_panel, chains_of_panel)
                g_rows = v.at(g_row, b.mul(b.udiv(i, INDEX(sizes.m_panel)), self.g_panel))
                W_rows = v.at(W_panel, b.mul(i, INDEX(sizes.n_panel)))

                def add_chain(number: Any) -> None:
                    chain = chains.of(number)
                    g_part = v.at(g_rows, b.add(b.mul(chain.panel, self.g_panel), chain.begin))
                    W_part = v.at(W_rows, b.mul(chain.term, INDEX(sizes.n_panel)))
                    tile.add_products(chain.count, g_part, sizes.m_panel, 1, W_part)

                if levels:
                    tile.sum_chains(chains.number, add_chain)
                else:
                    tile.clear()
                    add_chain(INDEX(0))

            def add_tree(number: Any) -> None:
                i = b.mul(number, INDEX(TREE_ROWS))
                add_rows(i, minimum(b, INDEX(TREE_ROWS), b.sub(sizes.m, i)))

            if levels == 2:
                tile.sum_chains(sizes.quotient(sizes.m, TREE_ROWS), add_tree)
            else:
                add_rows(INDEX(0), sizes.m)
            j = b.mul(j_panel, INDEX(sizes.n_panel))
            to = v.at(self.dx, b.add(b.mul(row, sizes.n), j))
            with b.if_else(b.icmp_signed(">=", b.sub(sizes.n, j), INDEX(sizes.n_panel))) as (whole, part):
                with whole:
                    self._store_rows(tile, to, [None] * self.n_vectors)
                with part:
                    left = [b.sub(b.sub(sizes.n, j), INDEX(u * v.width)) for u in range(self.n_vectors)]
                    self._store_rows(tile, to, [v.mask_first(maximum(b, k, INDEX(0))) for k in left])

        self.for_tiles(sizes.n_panels, rows, self.count, compute)

    def _store_rows(self, tile: Tile, to: Any, masks: list[Any]) -> None:
        v, b = self.v, self.v.builder
        for r in range(tile.rows):
            v.store_block(map(b.load, tile.of_row(r)), v.at(to, b.mul(INDEX(r), self.sizes.n)), masks)

    def write_dx(self, dx: Any, streams: Any) -> None:
        """Copy dx to its place."""
        v, b, width = self.v, self.v.builder, INDEX(self.v.width)
        size = b.mul(self.count, self.sizes.n)

        def copy(begin: Any, end: Any, step: Callable[[Any, Any, Any], None]) -> None:
            with cgutils.for_range_slice(b, begin, end, width, intp=INDEX) as (k, _):
                step(v.load(self.dx, k), dx, k)

        def copy_part(begin: Any, count: Any) -> None:
            mask = v.mask_first(count)
            v.store(v.load(self.dx, begin, mask), dx, begin, mask)

        if not can_stream():
            streams = ir.Constant(ir.IntType(1), 0)
        # Up to the first whole line, which the block before has a part of.
        head = b.select(streams, b.and_(b.neg(v.part_of_line(dx)), INDEX(v.width - 1)), INDEX(0))
        head = minimum(b, head, size)
        tail = b.sub(size, b.urem(b.sub(size, head), width))
        copy_part(INDEX(0), head)
        with b.if_else(streams) as (streamed, stored):
            with streamed:
                copy(head, tail, v.stream)
            with stored:
                copy(head, tail, v.store)
        copy_part(tail, b.sub(size, tail))

    def add_gradient(self, sums: Any, chain: Any, is_first: Any) -> None:
        """Add g^T x to the unit's sums, and the errors of these additions to the sums' low parts."""
        v, b, sizes, rows = self.v, self.v.builder, self.sizes, self.dW_rows
        chains = b.udiv(b.sub(b.add(self.count, chain), INDEX(1)), chain)
        tile_size = INDEX(2 * rows * sizes.n_panel)
        m_tiles = sizes.quotient(sizes.m, rows)

        def add(j_panel: Any, row: Any) -> None:
            tile = Tile(v, rows, self.n_vectors)
            x_panel = v.at(self.x, b.mul(j_panel, self.x_panel))
            panel, i = b.udiv(row, INDEX(sizes.m_panel)), b.urem(row, INDEX(sizes.m_panel))
            g_panel = v.at(self.g, b.add(b.mul(panel, self.g_panel), i))

            def add_chain(number: Any) -> None:
                k = b.mul(number, chain)
                g_part = v.at(g_panel, b.mul(k, INDEX(sizes.m_panel)))
                x_part = v.at(x_panel, b.mul(k, INDEX(sizes.n_panel)))
                tile.add_products(minimum(b, chain, b.sub(self.count, k)), g_part, 1, sizes.m_panel, x_part)

            tile.sum_chains(chains, add_chain)
            number = b.add(b.mul(j_panel, m_tiles), b.udiv(row, INDEX(rows)))
            high = v.at(sums, b.mul(number, tile_size))
            low = v.at(high, INDEX(rows * sizes.n_panel))
            at = [INDEX(k * v.width) for k in range(len(tile.sums))]
            with b.if_else(is_first) as (begins, goes_on):
                with begins:
                    for k, total in zip(at, tile.sums, strict=True):
                        v.store(b.load(total), high, k)
                        v.store(v.constant(0), low, k)
                with goes_on:
                    for k, total in zip(at, tile.sums, strict=True):
                        added, error = add_exactly(b, v.load(high, k), b.load(total))
                        v.store(added, high, k)
                        v.store(b.fadd(v.load(low, k), error), low, k)

        self.for_tiles(sizes.n_panels, rows, sizes.m, add)


@cache
def kernel(m_vectors: int, n_vectors: int, dW_rows: int, dx_levels: int, dtype: np.dtype[Any], given: Given) -> Any:
    """The compiled function; the last three but two arguments are as ``units`` says."""

    def shared_blocks(
        W: Any,
        W_transposed: Any,
        x: Any,
        target: Any,
        cotangent: Any,
        loss: Any,
        dx: Any,
        dq: Any,
        memory: Any,
        dW_wanted: bool,
        m: int,
        first: int,
        last: int,
        unit: int,
        block_rows: int,
        chains_of_panel: int,
        dW_chain: int,
        streams: bool,
    ) -> None:
        wanted = Wanted(loss is not None, dW_wanted, dx is not None, dq is not None)
        batch, n = x.shape
        units(
            W,
            W_transposed,
            x,
            target,
            cotangent,
            loss,
            dx,
            dq,
            memory,
            wanted,
            m,
            n,
            first,
            last,
            unit,
            batch,
            block_rows,
            chains_of_panel,
            dW_chain,
            memory.shape[1],
            streams,
            m_vectors,
            n_vectors,
            dW_rows,
            dx_levels,
        )

    real = numba.from_dtype(dtype)
    numbers, vectors = real[::1], real[:, ::1]
    inputs = vectors if given.target else types.none, numbers if given.cotangent else types.none
    outputs = map(types.Optional, (numbers, vectors, vectors))
    signature = types.void(
        numbers, numbers, vectors, *inputs, *outputs, vectors, types.boolean, *(types.int64,) * 7, types.boolean
    )
    name = "_target" * given.target + "_cotangent" * given.cotangent
    return compile_function(
        shared_blocks, f"shared_blocks_{m_vectors}_{n_vectors}_{dW_rows}_{dx_levels}{name}_{dtype}", signature
    )
