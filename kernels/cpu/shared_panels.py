"""Matrices in panels, for one W and many x: how they are packed, and g of q.

All matrices between the products are in panels: of each row as many elements as a tile is wide, the rows one after
another. So a tile reads neighbours, and each address is one from the begin of the panel that is known when compiled.
"""

from typing import Any, NamedTuple

import numpy as np
from numba.core import cgutils

from sigmoid_l2.kernels import Wanted
from sigmoid_l2.kernels.cpu.loops import maximum
from sigmoid_l2.kernels.cpu.shared_product import MOST_IN_CHAIN, least
from sigmoid_l2.kernels.cpu.sigmoid import error_and_g, side_by_side
from sigmoid_l2.kernels.cpu.simd import INDEX, VectorBuilder, lane_count, vector_bytes
from sigmoid_l2.kernels.cpu.sums import Total


def aligned(size: int, dtype: np.dtype[Any]) -> Any:
    """Memory that begins at a multiple of 64 bytes."""
    memory = np.empty(size + 64 // dtype.itemsize, dtype)
    begin = -memory.ctypes.data % 64 // dtype.itemsize
    return memory[begin : begin + size]


def rows_of_tile() -> int:
    """Samples of a tile of q and dx. AVX-512 has 32 registers for the 12 x 2 sums, others 16 for 6 x 2."""
    return 12 if vector_bytes() == 64 else 6


# Rows of a tile of dW by those of a tile of q, where W has more: they divide a panel's elements.
OTHER_ROWS = {12: 8, 6: 4}
# Rows of W whose chains of a sum of dx are added as one tree, which is then added to others as a tree: of so many rows
# a panel fits into the first cache, and whole panels have so many.
TREE_ROWS = 256


def tile_shape(m: int, n: int, dtype: np.dtype[Any]) -> tuple[int, int, int, int]:
    """Vectors in a panel of q, and of x, rows in a tile of dW, and levels of trees in a sum of dx."""
    lanes, most = lane_count(dtype), rows_of_tile()
    m_vectors, n_vectors = (1 if size <= lanes else 2 for size in (m, n))
    dW_rows = m if m_vectors == 1 and m <= most else min(OTHER_ROWS[most], lanes * m_vectors)
    levels = 0 if m_vectors == 1 and m <= MOST_IN_CHAIN else 1 if m <= TREE_ROWS else 2
    return m_vectors, n_vectors, dW_rows, levels


class Sizes:
    """The sizes of matrices and panels, in elements: LLVM values, but the widths of panels are ints."""

    def __init__(self, b: Any, m: Any, n: Any, rows: Any, m_panel: int, n_panel: int) -> None:
        self.b, self.m, self.n, self.rows, self.m_panel, self.n_panel = b, m, n, rows, m_panel, n_panel
        self.m_panels, self.n_panels = self.quotient(m, m_panel), self.quotient(n, n_panel)

    def quotient(self, number: Any, divisor: int) -> Any:
        """The quotient rounded up."""
        return self.b.udiv(self.b.add(number, INDEX(divisor - 1)), INDEX(divisor))

    def steps(self, step: Any) -> Any:
        """How many times ``step`` rows W has, the last ones perhaps fewer."""
        return self.b.udiv(self.b.add(self.m, self.b.sub(step, INDEX(1))), step)

    def rounded_up(self, number: Any, divisor: int) -> Any:
        """The next multiple."""
        return self.b.mul(self.quotient(number, divisor), INDEX(divisor))


class Chain(NamedTuple):
    """A chain of a sum over rows of W: LLVM values."""

    panel: Any
    begin: Any  # in the panel
    term: Any  # its first row
    count: Any


class Chains:
    """The chains of a sum over ``terms`` rows of W: each panel of ``width`` rows is cut into ``of_panel`` chains."""

    def __init__(self, b: Any, terms: Any, width: int, of_panel: Any) -> None:
        self.b, self.terms, self.width, self.of_panel = b, terms, INDEX(width), of_panel
        self.length = b.udiv(b.add(INDEX(width - 1), of_panel), of_panel)
        rest = b.urem(terms, self.width)
        whole = b.mul(b.udiv(terms, self.width), of_panel)
        self.number = b.add(whole, b.udiv(b.add(rest, b.sub(self.length, INDEX(1))), self.length))

    def of(self, number: Any) -> Chain:
        """One of them."""
        b = self.b
        panel = b.udiv(number, self.of_panel)
        begin = b.mul(b.urem(number, self.of_panel), self.length)
        term = b.add(b.mul(panel, self.width), begin)
        return Chain(panel, begin, term, least(b, self.length, b.sub(self.width, begin), b.sub(self.terms, term)))


def pack_rows(
    v: VectorBuilder, source: Any, stride: Any, count: Any, columns: Any, to: Any, panel_size: Any, vectors: int
) -> None:
    """Copy the first ``columns`` elements of ``count`` rows to panels of ``vectors`` vectors, and zeros after the last.

    The rows of ``source`` begin ``stride`` elements apart, the panels ``panel_size``.
    """
    b, width = v.builder, INDEX(vectors * v.width)
    with cgutils.for_range(b, count, intp=INDEX) as row:
        from_row = v.at(source, b.mul(row.index, stride))
        to_row = v.at(to, b.mul(row.index, width))
        whole = b.udiv(columns, width)

        def copy(panel: Any, is_masked: bool) -> None:
            at = b.mul(panel, width)
            for u in range(vectors):
                j = b.add(at, INDEX(u * v.width))
                left = maximum(b, b.sub(columns, j), INDEX(0))
                value = v.load(from_row, j, v.mask_first(left) if is_masked else None)
                v.store(value, to_row, b.add(b.mul(panel, panel_size), INDEX(u * v.width)))

        with cgutils.for_range(b, whole, intp=INDEX) as panel:
            copy(panel.index, False)
        with b.if_then(b.icmp_signed("<", b.mul(whole, width), columns)):
            copy(whole, True)


def g_of_q(
    v: VectorBuilder,
    sizes: Sizes,
    q: Any,
    vectors: int,
    count: Any,
    target: Any,
    cotangent: Any,
    loss: Any,
    dq: Any,
    wanted: Wanted,
) -> None:
    """g in the place of q, which is in panels of ``vectors`` vectors, for ``count`` samples; the loss and dq."""
    b = v.builder
    g_size = b.mul(sizes.rows, INDEX(sizes.m_panel))
    with cgutils.for_range(b, count, intp=INDEX) as row:
        total = Total(v)
        total.begin(v.constant(0))
        c = cotangent and v.broadcast(b.load(v.at(cotangent, row.index)))
        of_row = b.mul(row.index, sizes.m)
        g_row = v.at(q, b.mul(row.index, INDEX(sizes.m_panel)))
        with cgutils.for_range(b, sizes.m_panels, intp=INDEX) as panel:
            i = [b.add(b.mul(panel.index, INDEX(sizes.m_panel)), INDEX(u * v.width)) for u in range(vectors)]
            masks = [v.mask_first(maximum(b, b.sub(sizes.m, i_u), INDEX(0))) for i_u in i]
            g_panel = v.at(g_row, b.mul(panel.index, g_size))
            y = [target and v.load(target, b.add(of_row, i_u), mask) for i_u, mask in zip(i, masks, strict=True)]
            q_of_panel = v.load_block(g_panel, vectors)
            results = side_by_side(error_and_g(v, q_u, y_u, c) for q_u, y_u in zip(q_of_panel, y, strict=True))
            v.store_block((g for _, g in results), g_panel)
            with b.if_then(wanted.dq):
                for (_, g), i_u, mask in zip(results, i, masks, strict=True):
                    v.store(g, dq, b.add(of_row, i_u), mask)
            with b.if_then(wanted.loss):
                for (e, _), mask in zip(results, masks, strict=True):
                    total.add(b.select(mask, b.fmul(e, e), v.constant(0)))
        with b.if_then(wanted.loss):
            b.store(v.sum_lanes(total.value()), v.at(loss, row.index))
