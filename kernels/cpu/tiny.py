"""The kernel for tiny pairs: a block is as many pairs as a vector has lanes, or twice as many; a thread has a range.

W, x and all else of a block are whole vectors, loaded and written in the order of memory. Shuffles bring x_j and g_i to
the elements W_ij that they multiply, and the terms of a sum into one lane. Compiled for each (m, n).
"""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba.core import cgutils

from sigmoid_l2.kernels import Given, Wanted
from sigmoid_l2.kernels.cpu.compile import compile_kernel, vector_code
from sigmoid_l2.kernels.cpu.sigmoid import error_and_g, side_by_side
from sigmoid_l2.kernels.cpu.simd import INDEX, VectorBuilder
from sigmoid_l2.kernels.cpu.stream import AHEAD_BYTES, Stream, can_stream

# Size of the largest pair of which a block has twice as many as a vector has lanes, in elements of W. A step of a
# sigmoid waits for the one before, and the shuffles wait for the sigmoids; with more of both the processor waits less.
# In cache 3x3 has 1.25 of the speed with all outputs and 1.28 with the loss and dx, 2x5 and 2x2 1.08 and 1.05; but 4x4
# has 1.01, 5x3 0.86 and 4x6 0.90, whose values do not all fit into registers.
TWICE = 10


def pairs_of_block(v: VectorBuilder, m: int, n: int, most: int = TWICE) -> int:
    """How many pairs of m by n elements are computed together: twice as many as lanes up to ``most`` elements."""
    return v.width * (2 if m * n <= most else 1)


@vector_code(constants=2)
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
    first: Any,
    last: Any,
    streams: Any,
    m: int,
    n: int,
) -> None:
    """Compute the pairs first..last; ``streams``: results go past the caches."""
    b, together = v.builder, pairs_of_block(v, m, n)
    v.align_stack()
    step = INDEX(together)
    whole = b.sub(last, b.urem(b.sub(last, first), step))
    has_rest = b.icmp_signed("<", whole, last)
    inputs = zip((W, x, target, cotangent), (m * n, n, m, 1), strict=True)
    outputs = zip((loss, dW, dx, dq), (1, m * n, n, m), strict=True)
    given = Inputs(*(a and Pairs(v, a, size, together, first, whole, last) for a, size in inputs))
    results = Outputs(*(Pairs(v, a, size, together, first, whole, last) for a, size in outputs))
    with b.if_then(has_rest):
        for array in filter(None, given):
            array.load_rest()
    begin = b.select(has_rest, b.sub(first, step), first)
    with cgutils.for_range_slice(b, begin, whole, step, intp=INDEX) as (pair, _):
        block(v, given, results, wanted, pair, b.and_(streams, b.icmp_signed(">=", pair, first)), m, n)
    for output, is_wanted in zip(results, wanted, strict=True):
        with b.if_then(is_wanted):
            output.finish(streams)


class Pairs:
    """An array in which a pair has ``size`` elements, and a block ``together`` pairs, hence ``vectors`` vectors.

    The last pairs, too few for a block, are a block of their own in a buffer, filled up with zeros: the same
    instructions give the same bits. It is the first of all blocks, at the pair ``first - together``.
    """

    def __init__(
        self, v: VectorBuilder, array: Any, size: int, together: int, first: Any, whole: Any, last: Any
    ) -> None:
        b = v.builder
        self.v, self.array, self.size, self.vectors = v, array, size, size * together // v.width
        self.first, self.whole, self.last = first, whole, last
        self.rest = b.bitcast(cgutils.alloca_once(b, v.vector, INDEX(self.vectors)), v.real.as_pointer())
        self.stream = Stream(v, array, self.index(first)) if can_stream() else None

    def index(self, pair: Any) -> Any:
        """The number of a pair's first element."""
        return self.v.builder.mul(pair, INDEX(self.size))

    def block(self, pair: Any) -> Any:
        """The elements of the block that begins with ``pair``."""
        b = self.v.builder
        return b.select(b.icmp_signed("<", pair, self.first), self.rest, self.v.at(self.array, self.index(pair)))

    def load(self, pair: Any) -> list[Any]:
        """The vectors of the block that begins with ``pair``."""
        return self.v.load_block(self.block(pair), self.vectors)

    def load_rest(self) -> None:
        """Copy the last pairs to their buffer."""
        b, itemsize = self.v.builder, self.v.dtype.itemsize
        cgutils.memset(b, self.rest, INDEX(self.vectors * self.v.width * itemsize), 0)
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
                self.stream.put(vectors(), self.vectors * self.v.width, meanwhile)
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


class Inputs(NamedTuple):
    """What is read; the last two may be None."""

    W: Pairs
    x: Pairs
    target: Pairs | None
    cotangent: Pairs | None

    def prefetch(self, pair: Any, k: int) -> None:
        """Prefetch what lies ahead of the k-th vector of W in the block that begins with ``pair``.

        The others' vectors, which are fewer, go with the first ones of W.
        """
        v, ahead = self.W.v, AHEAD_BYTES // self.W.v.dtype.itemsize
        for array in filter(None, self):
            if k < array.vectors:
                at = v.builder.add(array.index(pair), INDEX(k * v.width + ahead * array.size // self.W.size))
                v.prefetch(array.array, at)


class Outputs(NamedTuple):
    """What is written, if it is wanted."""

    loss: Pairs
    dW: Pairs
    dx: Pairs
    dq: Pairs


def block(
    v: VectorBuilder, given: Inputs, results: Outputs, wanted: Wanted, pair: Any, streams: Any, m: int, n: int
) -> None:
    """Compute the block of pairs that begins with ``pair``."""
    b = v.builder
    W, x, target, cotangent = given
    loss, dW, dx, dq = results
    together = pairs_of_block(v, m, n)
    elements = range(together * m * n)  # of W in the block
    W_block, x_block = W.load(pair), x.load(pair)  # (pairs, m, n) and (pairs, n)
    x_of_W = v.take(x_block, [e // (m * n) * n + e % n for e in elements])  # x_j for each W_ij
    q = v.sum_axis(v.products(W_block, x_of_W), (together * m, n, 1))  # q = W x  (pairs, m)
    y = target.load(pair) if target else [None] * len(q)  # (pairs, m)
    c = [None] * len(q)  # the cotangent for each q_i
    if cotangent:
        c = v.take(cotangent.load(pair), [e // m for e in range(together * m)])
    e, g = zip(*side_by_side(map(error_and_g, [v] * len(q), q, y, c)), strict=True)  # (pairs, m)
    g_of_W = v.take(g, [e // n for e in elements])  # g_i for each W_ij
    with b.if_then(wanted.loss):
        sums = v.sum_axis(v.products(e, e), (together, m, 1))
        loss.put(pair, streams, lambda: sums)

    def prefetch(k: int) -> None:
        given.prefetch(pair, k)

    with b.if_then(wanted.dW):  # dW = g x^T
        dW.put(pair, streams, lambda: v.products(g_of_W, x_of_W), prefetch)
    with b.if_then(wanted.dx):  # dx = W^T g
        totals = v.sum_axis(v.products(g_of_W, W_block), (together, m, n))
        dx.put(pair, streams, lambda: totals)
    with b.if_then(wanted.dq):
        dq.put(pair, streams, lambda: g)
    with b.if_then(b.not_(wanted.dW)):  # nor streamed: prefetch all the same
        for k in range(W.vectors):
            prefetch(k)


@cache
def kernel(m: int, n: int, dtype: np.dtype[Any], given: Given) -> Any:
    """The compiled function for pairs of m by n elements of ``dtype``."""

    def tiny(
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
        pairs(W, x, target, cotangent, loss, dW, dx, dq, wanted, first, last, streams, m, n)

    return compile_kernel(tiny, f"tiny_{m}x{n}", dtype, given)
