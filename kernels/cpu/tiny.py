"""The kernel for tiny pairs: one block is as many pairs as a vector has lanes, and a thread has a range of pairs.

W, x, loss, dW and dx of a block are whole vectors, loaded and written in the order of memory. Shuffles bring x_j and
g_i to the elements W_ij that they multiply, and the terms of a sum into one lane. Compiled for each (m, n).
"""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import numpy as np
from numba.core import cgutils

from sigmoid_l2.kernels import Wanted
from sigmoid_l2.kernels.cpu.compile import compile_kernel, vector_code
from sigmoid_l2.kernels.cpu.sigmoid import s_and_g, side_by_side
from sigmoid_l2.kernels.cpu.simd import INDEX, VectorBuilder
from sigmoid_l2.kernels.cpu.stream import AHEAD_BYTES, Stream, can_stream


@vector_code(constants=2)
def pairs(
    v: VectorBuilder,
    W: Any,
    x: Any,
    loss: Any,
    dW: Any,
    dx: Any,
    wanted: Wanted,
    first: Any,
    last: Any,
    streams: Any,
    m: int,
    n: int,
) -> None:
    """Compute the pairs first..last of W (B, m, n) and x (B, n); ``streams``: results go past the caches."""
    b, width = v.builder, INDEX(v.width)
    v.align_stack()
    whole = b.sub(last, b.urem(b.sub(last, first), width))
    has_rest = b.icmp_signed("<", whole, last)
    sizes = (m * n, n, 1, m * n, n)
    W, x, loss, dW, dx = (Pairs(v, *a, first, whole, last) for a in zip((W, x, loss, dW, dx), sizes, strict=True))
    with b.if_then(has_rest):
        W.load_rest()
        x.load_rest()
    begin = b.select(has_rest, b.sub(first, width), first)
    with cgutils.for_range_slice(b, begin, whole, width, intp=INDEX) as (pair, _):
        block(v, W, x, loss, dW, dx, wanted, pair, b.and_(streams, b.icmp_signed(">=", pair, first)), m, n)
    for output, is_wanted in zip((loss, dW, dx), wanted, strict=True):
        with b.if_then(is_wanted):
            output.finish(streams)


class Pairs:
    """An array in which a pair has ``size`` elements.

    The last pairs, too few for a block, are a block of their own in a buffer, filled up with zeros: the same
    instructions give the same bits. It is the first of all blocks, at the pair ``first - width``.
    """

    def __init__(self, v: VectorBuilder, array: Any, size: int, first: Any, whole: Any, last: Any) -> None:
        b = v.builder
        self.v, self.array, self.size = v, array, size
        self.first, self.whole, self.last = first, whole, last
        self.rest = b.bitcast(cgutils.alloca_once(b, v.vector, INDEX(size)), v.real.as_pointer())
        self.stream = Stream(v, array, self.index(first)) if can_stream() else None

    def index(self, pair: Any) -> Any:
        """The number of a pair's first element."""
        return self.v.builder.mul(pair, INDEX(self.size))

    def block(self, pair: Any) -> Any:
        """The elements of the block that begins with ``pair``."""
        b = self.v.builder
        return b.select(b.icmp_signed("<", pair, self.first), self.rest, self.v.at(self.array, self.index(pair)))

    def load_rest(self) -> None:
        """Copy the last pairs to their buffer."""
        b, itemsize = self.v.builder, self.v.dtype.itemsize
        cgutils.memset(b, self.rest, INDEX(self.size * self.v.width * itemsize), 0)
        self._copy_rest(self.rest, self.v.at(self.array, self.index(self.whole)))

    def put(
        self, pair: Any, streams: Any, vectors: Callable[[], Iterable[Any]], meanwhile: Callable[[int], object] = id
    ) -> None:
        """Write the block that begins with ``pair``; call ``meanwhile`` with the number of each vector streamed."""
        if self.stream is None:
            self.v.store_block(vectors(), self.block(pair))
            return
        with self.v.builder.if_else(streams) as (streamed, stored):
            with streamed:
                self.stream.put(vectors(), self.v.width * self.size, meanwhile)
            with stored:
                self.v.store_block(vectors(), self.block(pair))

    def finish(self, streams: Any) -> None:
        """Copy the results of the last pairs from their buffer, and write what is left of a stream."""
        b = self.v.builder
        if self.stream is not None:
            with b.if_then(streams):
                self.stream.end()
        self._copy_rest(self.v.at(self.array, self.index(self.whole)), self.rest)

    def _copy_rest(self, to: Any, source: Any) -> None:
        b = self.v.builder
        cgutils.raw_memcpy(b, to, source, b.mul(b.sub(self.last, self.whole), INDEX(self.size)), self.v.dtype.itemsize)


def block(
    v: VectorBuilder,
    W: Pairs,
    x: Pairs,
    loss: Pairs,
    dW: Pairs,
    dx: Pairs,
    wanted: Wanted,
    pair: Any,
    streams: Any,
    m: int,
    n: int,
) -> None:
    """Compute as many pairs as a vector has lanes, from ``pair`` on."""
    b = v.builder
    elements = range(v.width * m * n)  # of W in the block
    W_block = v.load_block(W.block(pair), m * n)  # (pairs, m, n)
    x_block = v.load_block(x.block(pair), n)  # (pairs, n)
    x_of_W = v.take(x_block, [e // (m * n) * n + e % n for e in elements])  # x_j for each W_ij
    q = v.sum_axis(v.products(W_block, x_of_W), (v.width * m, n, 1))  # q = W x  (pairs, m)
    s, g = zip(*side_by_side(s_and_g(v, q_k) for q_k in q), strict=True)  # (pairs, m)
    g_of_W = v.take(g, [e // n for e in elements])  # g_i for each W_ij
    with b.if_then(wanted.loss):
        sums = v.sum_axis(v.products(s, s), (v.width, m, 1))
        loss.put(pair, streams, lambda: sums)

    def prefetch(k: int) -> None:
        ahead = AHEAD_BYTES // v.dtype.itemsize
        v.prefetch(W.array, b.add(W.index(pair), INDEX(k * v.width + ahead)))
        if k < n:
            v.prefetch(x.array, b.add(x.index(pair), INDEX(k * v.width + ahead // m)))

    with b.if_then(wanted.dW):  # dW = g x^T
        dW.put(pair, streams, lambda: v.products(g_of_W, x_of_W), prefetch)
    with b.if_then(wanted.dx):  # dx = W^T g
        totals = v.sum_axis(v.products(g_of_W, W_block), (v.width, m, n))
        dx.put(pair, streams, lambda: totals)


@cache
def kernel(m: int, n: int, dtype: np.dtype[Any]) -> Any:
    """The compiled function for pairs of m by n elements of ``dtype``."""

    def tiny(
        W: Any, x: Any, loss: Any, dW: Any, dx: Any, first: int, last: int, slice_rows: int, streams: bool
    ) -> None:
        pairs(W, x, loss, dW, dx, Wanted(loss.size > 0, dW.size > 0, dx.size > 0), first, last, streams, m, n)

    return compile_kernel(tiny, f"tiny_{m}x{n}", dtype)
