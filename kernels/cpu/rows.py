"""The kernel for all other pairs: a vector has neighbours of one row, and a thread has a range of pairs.

A thread takes the rows of a pair in chunks that stay in cache between their q and their dW. The sigmoids of a chunk are
computed together: a vector of q has neighbouring rows. Compiled once for all m and n.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba.core import cgutils

from sigmoid_l2.kernels import Wanted
from sigmoid_l2.kernels.cpu.compile import compile_kernel, vector_code
from sigmoid_l2.kernels.cpu.sigmoid import s_and_g
from sigmoid_l2.kernels.cpu.simd import INDEX, VectorBuilder, lane_count

# Size of the largest chunk, in rows: a multiple of the lanes of every vector.
CHUNK_ROWS = 64
# Size of the largest chunk, in bytes of W: half of a common level 1 cache, because dW passes through it as well.
CHUNK_BYTES = 16 << 10
# Size of a group of narrow rows, in rows: a group loads x and dx once, and its sums are independent. q_of_rows first
# takes groups of as many rows as a vector has lanes. A single long row keeps GROUP sums, for the same reason.
GROUP = 4
# Length of the longest narrow row, in bytes. Longer rows go one by one, because memory is read fastest in one stream:
# 256x256 float32 went from 11.6 GB/s to 20.0.
NARROW_BYTES = 64


@vector_code()
def q_of_rows(v: VectorBuilder, W: Any, top: Any, x: Any, x_at: Any, n: Any, q: Any, rows: Any) -> None:
    """Store q = W x of ``rows`` rows from element ``top`` of W on, then a vector of -inf.

    loss_and_g adds whole vectors of s^2, and sigmoid(-inf) = 0. Another activation needs another padding or a mask.
    """
    b = v.builder

    def dot(first: Any, group: int) -> None:
        first_at = b.add(top, b.mul(first, n))
        row_at = [b.add(first_at, b.mul(INDEX(r), n)) for r in range(group)]
        unroll = GROUP if group == 1 else 1
        sums = [[cgutils.alloca_once_value(b, v.constant(0)) for _ in range(unroll)] for _ in range(group)]

        def add_products(j: Any, mask: Any, u: int) -> None:
            x_j = v.load(x, b.add(x_at, j), mask)
            for at, row_sums in zip(row_at, sums, strict=True):
                W_j = v.load(W, b.add(at, j), mask)
                b.store(v.multiply_add(W_j, x_j, b.load(row_sums[u])), row_sums[u])

        for_columns(v, n, unroll, add_products)
        totals = [functools.reduce(b.fadd, map(b.load, row_sums)) for row_sums in sums]
        if group == v.width:
            v.store(v.sum_lanes_of_each(totals), q, first)
        else:
            for r, total in enumerate(totals):
                b.store(v.sum_lanes(total), v.at(q, b.add(first, INDEX(r))))

    for_rows(v, n, rows, (v.width, GROUP), dot)
    v.store(v.constant(-np.inf), q, rows)


@vector_code(returns_real=True)
def loss_and_g(v: VectorBuilder, q: Any, g: Any, rows: Any, loss: Any) -> Any:
    """Store g of q; return ``loss`` plus the sum of s^2, which is added vector by vector."""
    b = v.builder
    total = cgutils.alloca_once_value(b, loss)
    with cgutils.for_range_slice(b, INDEX(0), rows, INDEX(v.width), intp=INDEX) as (k, _):
        s, g_k = s_and_g(v, v.load(q, k))
        v.store(g_k, g, k)
        b.store(b.fadd(b.load(total), v.sum_lanes(b.fmul(s, s))), total)
    return b.load(total)


@vector_code()
def gradients(
    v: VectorBuilder, W: Any, top: Any, x: Any, x_at: Any, n: Any, g: Any, dW: Any, dx: Any, wanted: Wanted, rows: Any
) -> None:
    """For ``rows`` rows from element ``top`` of W on, store dW = g x^T where it is wanted, and add W^T g to dx."""
    b = v.builder

    def scale_and_add(first: Any, group: int) -> None:
        first_at = b.add(top, b.mul(first, n))
        row_at = [b.add(first_at, b.mul(INDEX(r), n)) for r in range(group)]
        g_rows = [v.broadcast(b.load(v.at(g, b.add(first, INDEX(r))))) for r in range(group)]

        def step(j: Any, mask: Any, _: int) -> None:
            x_j, dx_j = v.load(x, b.add(x_at, j), mask), v.load(dx, j, mask)
            for at, g_r in zip(row_at, g_rows, strict=True):
                dx_j = v.multiply_add(g_r, v.load(W, b.add(at, j), mask), dx_j)
                with b.if_then(wanted.dW):
                    v.store(b.fmul(g_r, x_j), dW, b.add(at, j), mask)
            v.store(dx_j, dx, j, mask)

        for_columns(v, n, 1, step)

    for_rows(v, n, rows, (GROUP,), scale_and_add)


@functools.cache
def kernel(dtype: np.dtype[Any]) -> Any:
    """The compiled function for pairs of ``dtype``."""
    width, itemsize = lane_count(dtype), dtype.itemsize

    def rows(
        W: Any, x: Any, loss: Any, dW: Any, dx: Any, first: int, last: int, slice_rows: int, streams: bool
    ) -> None:
        wanted = Wanted(loss.size > 0, dW.size > 0, dx.size > 0)
        m, n = W.shape[1:]
        chunk = min(CHUNK_ROWS, max(width, CHUNK_BYTES // itemsize // n // width * width))
        q, g, sums = np.empty(CHUNK_ROWS + width, W.dtype), np.empty(CHUNK_ROWS, W.dtype), np.empty(n, W.dtype)
        for pair in range(first, last):
            for j in range(n):
                sums[j] = 0
            total = W.dtype.type(0)
            for i in range(0, m, chunk):
                top, count = (pair * m + i) * n, min(chunk, m - i)
                q_of_rows(W, top, x, pair * n, n, q, count)
                total = loss_and_g(q, g, count, total)
                if wanted.dW or wanted.dx:
                    gradients(W, top, x, pair * n, n, g, dW, sums, wanted, count)
            if wanted.loss:
                loss[pair] = total
            if wanted.dx:
                for j in range(n):
                    dx[pair, j] = sums[j]

    return compile_kernel(rows, "rows", dtype)


def for_groups(b: Any, begin: Any, end: Any, size: int, step: Callable[[Any, int], None]) -> Any:
    """Build ``step(first, size)`` for each whole group of ``size`` numbers from ``begin`` on; return where they end."""
    end = b.sub(end, b.urem(b.sub(end, begin), INDEX(size)))
    with cgutils.for_range_slice(b, begin, end, INDEX(size), intp=INDEX) as (first, _):
        step(first, size)
    return end


def for_rows(v: VectorBuilder, n: Any, rows: Any, groups: Sequence[int], step: Callable[[Any, int], None]) -> None:
    """Build ``step(first, size)`` for all rows: in groups of each size while they fit, if narrow, then one by one."""
    b = v.builder
    is_narrow = b.icmp_signed("<=", b.mul(n, INDEX(v.dtype.itemsize)), INDEX(NARROW_BYTES))
    first, grouped = INDEX(0), b.select(is_narrow, rows, INDEX(0))
    for group in groups:
        first = for_groups(b, first, grouped, group, step)
    for_groups(b, first, rows, 1, step)


def for_columns(v: VectorBuilder, n: Any, unroll: int, step: Callable[[Any, Any, int], None]) -> None:
    """Build ``step(j, mask, u)`` for the vectors of a row of n: the whole ones without a mask, the rest with one.

    ``unroll`` vectors are taken at a time, numbered by u; those left over have u = 0.
    """
    b = v.builder

    def step_each(j: Any, columns: int) -> None:
        for u in range(columns // v.width):
            step(b.add(j, INDEX(u * v.width)), None, u)

    j = INDEX(0)
    for vectors in sorted({unroll, 1}, reverse=True):
        j = for_groups(b, j, n, vectors * v.width, step_each)
    rest = b.sub(n, j)
    with b.if_then(b.icmp_signed(">", rest, INDEX(0))):
        step(j, v.mask_first(rest), 0)
