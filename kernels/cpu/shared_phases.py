"""One large W, or few x: three products of matrices whose work is cut by the rows and the columns of W.

All threads do one phase after another for the same samples: x is packed, then q = x W^T, then g, then dx = g W, then
dW = g^T x. So a few samples occupy all threads, and W is read twice for all of them. A thread packs a part of W that
its cache holds, and takes all tiles that need it. The results have the bits of ``shared_blocks``.
"""

from functools import cache
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core import cgutils

from sigmoid_l2.kernels import Given, Wanted
from sigmoid_l2.kernels.cpu.compile import compile_function, vector_code
from sigmoid_l2.kernels.cpu.loops import maximum, minimum
from sigmoid_l2.kernels.cpu.shared_panels import OTHER_ROWS, Chains, Sizes, g_of_q, pack_rows, rows_of_tile
from sigmoid_l2.kernels.cpu.shared_product import Tile
from sigmoid_l2.kernels.cpu.simd import INDEX, VectorBuilder
from sigmoid_l2.kernels.cpu.sums import add_exactly, with_errors

# The phases, in their order: what a unit of each is.
PACK = 0  # a panel of samples
Q = 1  # ``group`` rows of W
G = 2  # a sample
DX = 3  # ``group`` panels of columns of W
DW = 4  # ``group`` tiles of rows of W


@vector_code(constants=3)
def phases(
    v: VectorBuilder,
    phase: Any,
    W: Any,
    x: Any,
    target: Any,
    cotangent: Any,
    loss: Any,
    dW: Any,
    dx: Any,
    dq: Any,
    errors: Any,
    memory: Any,
    scratch: Any,
    wanted: Wanted,
    m: Any,
    n: Any,
    batch: Any,
    rows: Any,
    first: Any,
    last: Any,
    group: Any,
    step: Any,
    chains_of_panel: Any,
    dW_chain: Any,
    keeps_errors: Any,
    is_first: Any,
    is_last: Any,
    s_vectors: int,
    m_vectors: int,
    n_vectors: int,
) -> None:
    """Compute the units first..last of a phase for ``batch`` samples.

    ``memory`` is that of the samples, with room for ``rows`` of them, ``scratch`` that of a thread. A product takes
    ``step`` terms of a sum at a time. dW gets the sum over these samples, unless they ``is_first``, in addition to what
    it has, and ``errors`` the errors of that where it ``keeps_errors``.
    """
    b = v.builder
    v.align_stack()
    sizes = Sizes(b, m, n, rows, m_vectors * v.width, n_vectors * v.width)
    samples = Samples(v, sizes, memory, batch, s_vectors, m_vectors, n_vectors)

    def units(number: int) -> Any:
        return b.if_then(b.icmp_signed("==", phase, INDEX(number)))

    def each() -> Any:
        return cgutils.for_range_slice(b, first, last, INDEX(1), intp=INDEX)

    with units(PACK), each() as (panel, _):
        samples.pack(x, panel, wanted.dW)
    with units(Q), each() as (number, _):
        samples.compute_q(W, number, group, step, scratch)
    with units(G):
        y = target and v.at(target, b.mul(first, m))
        c = cotangent and v.at(cotangent, first)
        q = v.at(samples.g, b.mul(first, INDEX(sizes.m_panel)))
        to = v.at(loss, first), v.at(dq, b.mul(first, m))
        g_of_q(v, sizes, q, m_vectors, b.sub(last, first), y, c, *to, wanted)
    with units(DX), each() as (number, _):
        samples.compute_dx(W, dx, number, group, step, chains_of_panel, scratch)
    with units(DW), each() as (number, _):
        samples.add_gradient(dW, errors, number, group, dW_chain, keeps_errors, is_first, is_last)


class Samples:
    """Some samples in ``memory``: their x twice, in panels of samples and of columns, and g (first q) in panels."""

    def __init__(
        self, v: VectorBuilder, sizes: Sizes, memory: Any, count: Any, s_vectors: int, m_vectors: int, n_vectors: int
    ) -> None:
        b = v.builder
        self.v, self.sizes, self.count = v, sizes, count
        self.s_vectors, self.m_vectors, self.n_vectors = s_vectors, m_vectors, n_vectors
        self.s_panel = s_vectors * v.width
        self.s_panels = sizes.quotient(count, self.s_panel)
        self.x_panel, self.g_panel = (b.mul(sizes.rows, INDEX(p)) for p in (sizes.n_panel, sizes.m_panel))
        self.t_panel = b.mul(sizes.rounded_up(sizes.n, v.width), INDEX(self.s_panel))
        self.x_transposed = memory
        self.x = v.at(memory, b.mul(self.s_panels, self.t_panel))
        self.g = v.at(self.x, b.mul(sizes.n_panels, self.x_panel))

    def pack(self, x: Any, panel: Any, packs_rows: Any) -> None:
        """Pack the x of a panel of samples. What is beyond the last sample is the last one again."""
        v, b, n = self.v, self.v.builder, self.sizes.n
        begin = b.mul(panel, INDEX(self.s_panel))
        to = v.at(self.x_transposed, b.mul(panel, self.t_panel))
        for u in range(self.s_vectors):
            numbers = [b.add(begin, INDEX(u * v.width + k)) for k in range(v.width)]
            last = b.sub(self.count, INDEX(1))
            of_rows = [v.at(x, b.mul(minimum(b, number, last), n)) for number in numbers]
            with cgutils.for_range_slice(b, INDEX(0), n, INDEX(v.width), intp=INDEX) as (j, _):
                mask = v.mask_first(b.sub(n, j))
                columns = v.transposed([v.load(row, j, mask) for row in of_rows])
                for k, column in enumerate(columns):
                    at = b.mul(b.add(j, INDEX(k)), INDEX(self.s_panel))
                    v.store(column, to, b.add(at, INDEX(u * v.width)))
        with b.if_then(packs_rows):
            count = minimum(b, INDEX(self.s_panel), b.sub(self.count, begin))
            rows = v.at(self.x, b.mul(begin, INDEX(self.sizes.n_panel)))
            pack_rows(v, v.at(x, b.mul(begin, n)), n, count, n, rows, self.x_panel, self.n_vectors)

    def compute_q(self, W: Any, number: Any, group: Any, step: Any, scratch: Any) -> None:
        """q = x W^T for a group of rows of W. A sum is one chain, in the order of the columns."""
        v, b, sizes, rows = self.v, self.v.builder, self.sizes, rows_of_tile()
        first = b.mul(number, group)
        count = minimum(b, group, b.sub(sizes.m, first))
        part_panel = b.mul(group, INDEX(sizes.n_panel))
        q = v.at(scratch, b.mul(group, step))  # of the group, in panels of samples
        q_panel = b.mul(group, INDEX(self.s_panel))
        with cgutils.for_range_slice(b, INDEX(0), sizes.n, step, intp=INDEX) as (j, _):
            terms = minimum(b, step, b.sub(sizes.n, j))
            source = v.at(W, b.add(b.mul(first, sizes.n), j))
            pack_rows(v, source, sizes.n, count, terms, scratch, part_panel, self.n_vectors)
            with cgutils.for_range(b, self.s_panels, intp=INDEX) as panel:
                x_part = v.at(self.x_transposed, b.mul(panel.index, self.t_panel))
                x_part = v.at(x_part, b.mul(j, INDEX(self.s_panel)))
                with cgutils.for_range_slice(b, INDEX(0), count, INDEX(rows), intp=INDEX) as (row, _):
                    tile = Tile(v, rows, self.s_vectors)
                    of_tile = v.at(q, b.add(b.mul(panel.index, q_panel), b.mul(row, INDEX(self.s_panel))))
                    is_first = b.icmp_signed("==", j, INDEX(0))
                    tile.clear()
                    with b.if_then(b.not_(is_first)):
                        tile.load(of_tile)
                    W_row = v.at(scratch, b.mul(row, INDEX(sizes.n_panel)))
                    with cgutils.for_range_slice(b, INDEX(0), terms, INDEX(sizes.n_panel), intp=INDEX) as (k, _):
                        W_part = v.at(W_row, b.mul(k, group))
                        x_k = v.at(x_part, b.mul(k, INDEX(self.s_panel)))
                        of_panel = minimum(b, INDEX(sizes.n_panel), b.sub(terms, k))
                        tile.add_products(of_panel, W_part, sizes.n_panel, 1, x_k)
                    tile.store(of_tile)
        with cgutils.for_range(b, self.s_panels, intp=INDEX) as panel:
            self._transpose_q(v.at(q, b.mul(panel.index, q_panel)), panel.index, first, count)

    def _transpose_q(self, q: Any, panel: Any, first: Any, count: Any) -> None:
        """Copy q of a panel of samples to the panels of rows of W."""
        v, b, sizes = self.v, self.v.builder, self.sizes
        with cgutils.for_range_slice(b, INDEX(0), count, INDEX(v.width), intp=INDEX) as (row, _):
            i = b.add(first, row)
            i_panel, k = b.udiv(i, INDEX(sizes.m_panel)), b.urem(i, INDEX(sizes.m_panel))
            for u in range(self.s_vectors):
                sample = b.add(b.mul(panel, INDEX(self.s_panel)), INDEX(u * v.width))
                source = v.at(q, b.add(b.mul(row, INDEX(self.s_panel)), INDEX(u * v.width)))
                to = v.at(self.g, b.add(b.mul(i_panel, self.g_panel), k))
                to = v.at(to, b.mul(sample, INDEX(sizes.m_panel)))
                vectors = [v.load(source, INDEX(r * self.s_panel)) for r in range(v.width)]
                for r, vector in enumerate(v.transposed(vectors)):
                    v.store(vector, to, INDEX(r * sizes.m_panel))

    def compute_dx(
        self, W: Any, dx: Any, number: Any, group: Any, step: Any, chains_of_panel: Any, scratch: Any
    ) -> None:
        """dx = g W for a group of panels: a tree of chains for ``step`` rows of W, and a tree of these."""
        v, b, sizes, rows = self.v, self.v.builder, self.sizes, rows_of_tile()
        width = b.mul(group, INDEX(sizes.n_panel))
        first = b.mul(number, width)
        columns = minimum(b, width, b.sub(sizes.n, first))
        panels = sizes.quotient(columns, sizes.n_panel)
        part_panel = b.mul(step, INDEX(sizes.n_panel))
        sums = v.at(scratch, b.mul(group, part_panel))
        size = INDEX(rows * sizes.n_panel)
        tiles = sizes.quotient(self.count, rows)
        level = b.mul(b.mul(tiles, panels), size)
        with cgutils.for_range(b, sizes.steps(step), intp=INDEX) as part:
            i = b.mul(part.index, step)
            count = minimum(b, step, b.sub(sizes.m, i))
            source = v.at(W, b.add(b.mul(i, sizes.n), first))
            pack_rows(v, source, sizes.n, count, columns, scratch, part_panel, self.n_vectors)
            chains = Chains(b, count, sizes.m_panel, chains_of_panel)
            g_part = v.at(self.g, b.mul(b.udiv(i, INDEX(sizes.m_panel)), self.g_panel))
            waiting = b.ctpop(part.index)
            is_last = b.icmp_signed("==", b.add(i, count), sizes.m)
            additions = b.select(is_last, waiting, b.cttz(b.not_(part.index), cgutils.false_bit))
            with cgutils.for_range(b, panels, intp=INDEX) as panel, cgutils.for_range(b, tiles, intp=INDEX) as of_rows:
                tile = Tile(v, rows, self.n_vectors)
                g_row = v.at(g_part, b.mul(of_rows.index, INDEX(rows * sizes.m_panel)))
                W_panel = v.at(scratch, b.mul(panel.index, part_panel))

                def add_chain(chain: Any, tile: Any = tile, g_row: Any = g_row, W_panel: Any = W_panel) -> None:
                    of_chain = chains.of(chain)
                    g_chain = v.at(g_row, b.add(b.mul(of_chain.panel, self.g_panel), of_chain.begin))
                    W_chain = v.at(W_panel, b.mul(of_chain.term, INDEX(sizes.n_panel)))
                    tile.add_products(of_chain.count, g_chain, sizes.m_panel, 1, W_chain)

                tile.sum_chains(chains.number, add_chain, fours=True)
                to = v.at(sums, b.mul(b.add(b.mul(panel.index, tiles), of_rows.index), size))
                tile.store(v.at(to, b.mul(waiting, level)))
                with cgutils.for_range(b, additions, intp=INDEX) as addition:
                    before = b.sub(b.sub(waiting, addition.index), INDEX(1))
                    before = v.at(to, b.mul(before, level))
                    pairs = (v.load_block(a, len(tile.sums)) for a in (before, v.at(before, level)))
                    v.store_block(map(b.fadd, *pairs), before)
        self._write_dx(sums, panels, tiles, columns, v.at(dx, first))

    def _write_dx(self, sums: Any, panels: Any, tiles: Any, columns: Any, dx: Any) -> None:
        """Copy tiles to the rows of dx."""
        v, b, sizes, rows = self.v, self.v.builder, self.sizes, rows_of_tile()
        with cgutils.for_range(b, self.count, intp=INDEX) as row, cgutils.for_range(b, panels, intp=INDEX) as panel:
            tile, k = b.udiv(row.index, INDEX(rows)), b.urem(row.index, INDEX(rows))
            source = v.at(sums, b.mul(b.add(b.mul(panel.index, tiles), tile), INDEX(rows * sizes.n_panel)))
            j = b.mul(panel.index, INDEX(sizes.n_panel))
            masks = [v.mask_first(b.sub(b.sub(columns, j), INDEX(u * v.width))) for u in range(self.n_vectors)]
            vectors = v.load_block(v.at(source, b.mul(k, INDEX(sizes.n_panel))), self.n_vectors)
            v.store_block(vectors, v.at(dx, b.add(b.mul(row.index, sizes.n), j)), masks)

    def add_gradient(
        self,
        dW: Any,
        errors: Any,
        number: Any,
        group: Any,
        chain: Any,
        keeps_errors: Any,
        is_first: Any,
        is_last: Any,
    ) -> None:
        """dW = g^T x for a group of tiles, or dW plus that."""
        v, b, sizes = self.v, self.v.builder, self.sizes
        rows = min(OTHER_ROWS[rows_of_tile()], sizes.m_panel)
        chains = b.udiv(b.add(self.count, b.sub(chain, INDEX(1))), chain)
        first = b.mul(number, b.mul(group, INDEX(rows)))
        end = minimum(b, b.add(first, b.mul(group, INDEX(rows))), sizes.m)
        with (
            cgutils.for_range(b, sizes.n_panels, intp=INDEX) as panel,
            cgutils.for_range_slice(b, first, end, INDEX(rows), intp=INDEX) as (i, _),
        ):
            tile = Tile(v, rows, self.n_vectors)
            x_panel = v.at(self.x, b.mul(panel.index, self.x_panel))
            i_panel, k = b.udiv(i, INDEX(sizes.m_panel)), b.urem(i, INDEX(sizes.m_panel))
            g_panel = v.at(self.g, b.add(b.mul(i_panel, self.g_panel), k))

            def add_chain(number: Any, tile: Any = tile, g_panel: Any = g_panel, x_panel: Any = x_panel) -> None:
                sample = b.mul(number, chain)
                g_part = v.at(g_panel, b.mul(sample, INDEX(sizes.m_panel)))
                x_part = v.at(x_panel, b.mul(sample, INDEX(sizes.n_panel)))
                tile.add_products(minimum(b, chain, b.sub(self.count, sample)), g_part, 1, sizes.m_panel, x_part)

            tile.sum_chains(chains, add_chain, fours=True)
            j = b.mul(panel.index, INDEX(sizes.n_panel))
            left = [b.sub(b.sub(sizes.n, j), INDEX(u * v.width)) for u in range(self.n_vectors)]
            masks = [v.mask_first(maximum(b, k, INDEX(0))) for k in left]
            for r in range(rows):
                row = b.add(i, INDEX(r))
                with b.if_then(b.icmp_signed("<", row, sizes.m)):
                    at = b.add(b.mul(row, sizes.n), j)
                    for u, (total, mask) in enumerate(zip(tile.of_row(r), masks, strict=True)):
                        place = b.add(at, INDEX(u * v.width))
                        self._add(b.load(total), dW, errors, place, mask, keeps_errors, is_first, is_last)

    def _add(
        self, term: Any, dW: Any, errors: Any, at: Any, mask: Any, keeps_errors: Any, is_first: Any, is_last: Any
    ) -> None:
        """Add a vector to dW, and the error of that to the errors; the last time the errors to dW."""
        v, b = self.v, self.v.builder
        with b.if_else(is_first) as (begins, goes_on):
            with begins:
                v.store(term, dW, at, mask)
                with b.if_then(keeps_errors):
                    v.store(v.constant(0), errors, at, mask)
            with goes_on:
                high, error = add_exactly(b, v.load(dW, at, mask), term)
                with b.if_else(keeps_errors) as (keeps, drops):
                    with keeps:
                        low = b.fadd(v.load(errors, at, mask), error)
                        v.store(low, errors, at, mask)
                        v.store(b.select(is_last, with_errors(b, high, low), high), dW, at, mask)
                    with drops:
                        v.store(high, dW, at, mask)


@cache
def kernel(s_vectors: int, m_vectors: int, n_vectors: int, dtype: np.dtype[Any], given: Given) -> Any:
    """The compiled function; the first three arguments are the vectors of panels of samples, rows and columns of W."""

    def shared_phases(
        phase: int,
        W: Any,
        x: Any,
        target: Any,
        cotangent: Any,
        loss: Any,
        dW: Any,
        dx: Any,
        dq: Any,
        errors: Any,
        memory: Any,
        scratch: Any,
        rows: int,
        first: int,
        last: int,
        group: int,
        step: int,
        chains_of_panel: int,
        dW_chain: int,
        is_first: bool,
        is_last: bool,
    ) -> None:
        wanted = Wanted(loss is not None, dW is not None, dx is not None, dq is not None)
        m, n = W.shape
        phases(
            phase,
            W,
            x,
            target,
            cotangent,
            loss,
            dW,
            dx,
            dq,
            errors,
            memory,
            scratch,
            wanted,
            m,
            n,
            x.shape[0],
            rows,
            first,
            last,
            group,
            step,
            chains_of_panel,
            dW_chain,
            errors is not None,
            is_first,
            is_last,
            s_vectors,
            m_vectors,
            n_vectors,
        )

    real = numba.from_dtype(dtype)
    numbers, matrix = real[::1], real[:, ::1]
    inputs = matrix if given.target else types.none, numbers if given.cotangent else types.none
    outputs = map(types.Optional, (numbers, matrix, matrix, matrix, matrix))
    integers = (types.int64,) * 7
    signature = types.void(
        types.int64, matrix, matrix, *inputs, *outputs, numbers, numbers, *integers, types.boolean, types.boolean
    )
    name = "_target" * given.target + "_cotangent" * given.cotangent
    return compile_function(
        shared_phases, f"shared_phases_{s_vectors}_{m_vectors}_{n_vectors}{name}_{dtype}", signature
    )
