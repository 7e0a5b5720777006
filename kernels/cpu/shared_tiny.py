"""One tiny W for many x: a lane has a sample, and a block is one or two groups of as many as a vector has lanes.

A thread has a range of units of the batch. x and all else of a block are whole vectors, loaded and written in the order
of memory; shuffles bring x_j of all samples into one vector. W_ij is in every lane. The sums of dW over the samples of
a unit are vectors, too, each lane on its own. Compiled for each (m, n).
"""

from functools import cache
from itertools import product
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types
from numba.core import cgutils

from sigmoid_l2.kernels import Given, Wanted
from sigmoid_l2.kernels.cpu.compile import compile_function, vector_code
from sigmoid_l2.kernels.cpu.loops import minimum
from sigmoid_l2.kernels.cpu.shared_product import MOST_IN_CHAIN
from sigmoid_l2.kernels.cpu.sigmoid import error_and_g, side_by_side
from sigmoid_l2.kernels.cpu.simd import INDEX, VectorBuilder
from sigmoid_l2.kernels.cpu.stream import AHEAD_BYTES, can_stream
from sigmoid_l2.kernels.cpu.sums import LaneTotal, sum_products
from sigmoid_l2.kernels.cpu.tiny import Pairs, pairs_of_block

# Length of a chain of sums, in blocks. A term of dW is rounded in 7 additions of a chain, in those of the chains, and
# in log2(lanes) more at the end of a unit: fewer than 2 log2(B) + 2 for every B.
CHAIN = 8
# Size of the largest W of which a block has two groups of samples, in elements, so that more sigmoids are in work at
# a time. Streaming on two threads 3x3 has 1.18 of the speed with the loss and dx, 4x4 1.14 with all outputs; on one
# thread in cache 4x6 has 1.08, 6x6 1.00 and 8x8 0.94.
TWICE = 24


class Arrays(NamedTuple):
    """What is read and written beside W and dW; all but x may be None."""

    x: Pairs
    target: Pairs | None
    cotangent: Pairs | None
    loss: Pairs
    dx: Pairs
    dq: Pairs


@vector_code(constants=2)
def units(
    v: VectorBuilder,
    W: Any,
    x: Any,
    target: Any,
    cotangent: Any,
    loss: Any,
    dx: Any,
    dq: Any,
    sums: Any,
    wanted: Wanted,
    first: Any,
    last: Any,
    unit: Any,
    batch: Any,
    streams: Any,
    m: int,
    n: int,
) -> None:
    """Compute the units first..last of ``unit`` samples each; ``sums`` are those of dW, 2 m n elements for a unit.

    ``unit`` is a multiple of the lanes. ``streams``: results go past the caches.
    """
    b, together, chain = v.builder, pairs_of_block(v, m, n, TWICE), INDEX(CHAIN * v.width)
    v.align_stack()
    step = INDEX(together)
    begin, end = b.mul(first, unit), minimum(b, b.mul(last, unit), batch)
    whole = b.sub(end, b.urem(b.sub(end, begin), step))
    sizes = (x, n), (target, m), (cotangent, 1), (loss, 1), (dx, n), (dq, m)
    arrays = Arrays(*(a and Pairs(v, a, size, together, begin, whole, end) for a, size in sizes))
    with b.if_then(b.icmp_signed("<", whole, end)):
        for array in filter(None, arrays[:3]):
            array.load_rest()
    W = [[v.broadcast(b.load(v.at(W, INDEX(i * n + j)))) for j in range(n)] for i in range(m)]
    dW = [LaneTotal(v) for _ in range(m * n)]
    with cgutils.for_range_slice(b, first, last, INDEX(1), intp=INDEX) as (number, _):
        unit_begin = b.mul(number, unit)
        unit_end = minimum(b, b.add(unit_begin, unit), end)
        for total in dW:
            total.clear()
        with cgutils.for_range_slice(b, unit_begin, unit_end, chain, intp=INDEX) as (top, _):
            chain_end = minimum(b, b.add(top, chain), unit_end)
            with cgutils.for_range_slice(b, top, chain_end, step, intp=INDEX) as (sample, _):
                is_whole = b.icmp_signed("<", sample, whole)
                at = b.select(is_whole, sample, b.sub(begin, step))  # where Pairs has the rest
                block(v, W, arrays, dW, wanted, at, b.sub(end, sample), b.and_(streams, is_whole))
            is_first = b.icmp_signed("==", top, unit_begin)
            with b.if_then(wanted.dW), b.if_else(is_first) as (begins, goes_on):
                with begins:
                    for total in dW:
                        total.begin()
                with goes_on:
                    for total in dW:
                        total.go_on()
        with b.if_then(wanted.dW):
            to = b.mul(number, INDEX(2 * m * n))
            for k, total in enumerate(dW):
                b.store(v.sum_lanes(total.value()), v.at(sums, b.add(to, INDEX(k))))
                b.store(v.real(0), v.at(sums, b.add(to, INDEX(m * n + k))))
    for output, is_wanted in zip(arrays[3:], (wanted.loss, wanted.dx, wanted.dq), strict=True):
        with b.if_then(is_wanted):
            output.finish(streams)


def block(
    v: VectorBuilder,
    W: list[list[Any]],
    arrays: Arrays,
    dW: list[LaneTotal],
    wanted: Wanted,
    at: Any,
    left: Any,
    streams: Any,
) -> None:
    """Compute the samples of a block, of which ``left`` count."""
    b, m, n, lanes = v.builder, len(W), len(W[0]), range(v.width)
    groups = range(arrays.x.vectors // n)
    x = _columns(v, arrays.x.load(at), n)
    q = [dot(v, row, x_k) for x_k in x for row in W]  # q = W x, of all groups
    y, c = [None] * len(q), [None for _ in groups]
    if arrays.target:
        y = [y_i for y_k in _columns(v, arrays.target.load(at), m) for y_i in y_k]
    if arrays.cotangent:
        c = arrays.cotangent.load(at)
    e, g = zip(*side_by_side(error_and_g(v, q[k], y[k], c[k // m]) for k in range(len(q))), strict=True)
    g_of_group = [g[k : k + m] for k in range(0, len(g), m)]
    with b.if_then(wanted.loss):
        sums = [sum_products(v, e[k : k + m], e[k : k + m]) for k in range(0, len(e), m)]
        arrays.loss.put(at, streams, lambda: sums)
    if can_stream():
        with b.if_then(streams):
            for k in range(arrays.x.vectors):
                v.prefetch(
                    arrays.x.array, b.add(arrays.x.index(at), INDEX(k * v.width + AHEAD_BYTES // v.dtype.itemsize))
                )
    with b.if_then(wanted.dx):  # dx = W^T g
        columns = [dot(v, column, g_k) for g_k in g_of_group for column in zip(*W, strict=True)]
        totals = v.take(columns, [(k * n + j) * v.width + lane for k in groups for lane in lanes for j in range(n)])
        arrays.dx.put(at, streams, lambda: totals)
    with b.if_then(wanted.dq):
        g_block = v.take(g, [(k * m + i) * v.width + lane for k in groups for lane in lanes for i in range(m)])
        arrays.dq.put(at, streams, lambda: g_block)
    with b.if_then(wanted.dW):  # dW = the sum of g x^T
        for k in groups:
            counts = v.mask_first(minimum(b, b.sub(left, INDEX(k * v.width)), INDEX(v.width)))
            counted = [b.select(counts, g_i, v.constant(0)) for g_i in g_of_group[k]]
            for total, (g_i, x_j) in zip(dW, product(counted, x[k]), strict=True):
                total.add_products([g_i], [x_j])


def _columns(v: VectorBuilder, block: list[Any], size: int) -> list[list[Any]]:
    """For each group of a block (samples, size), the vectors of its columns."""
    groups = [block[k : k + size] for k in range(0, len(block), size)]
    return [v.take(group, [k * size + j for j in range(size) for k in range(v.width)]) for group in groups]


def dot(v: VectorBuilder, a: Any, c: Any) -> Any:
    """The sum of the products a[k] c[k], lane by lane: a chain of up to 10 terms, then a tree.

    Up to 10 terms a chain has no more roundings than ``tests.contract`` allows, and no addition by itself.
    """
    if len(a) > MOST_IN_CHAIN:
        return sum_products(v, a, c)
    total = v.builder.fmul(a[0], c[0])
    for a_k, c_k in zip(a[1:], c[1:], strict=True):
        total = v.multiply_add(a_k, c_k, total)
    return total


@cache
def kernel(m: int, n: int, dtype: np.dtype[Any], given: Given) -> Any:
    """The compiled function for W of m by n elements of ``dtype``."""

    def shared_tiny(
        W: Any,
        x: Any,
        target: Any,
        cotangent: Any,
        loss: Any,
        dx: Any,
        dq: Any,
        sums: Any,
        sums_wanted: bool,
        first: int,
        last: int,
        unit: int,
        streams: bool,
    ) -> None:
        wanted = Wanted(loss is not None, sums_wanted, dx is not None, dq is not None)
        units(W, x, target, cotangent, loss, dx, dq, sums, wanted, first, last, unit, len(x), streams, m, n)

    real = numba.from_dtype(dtype)
    numbers, vectors = real[::1], real[:, ::1]
    inputs = vectors if given.target else types.none, numbers if given.cotangent else types.none
    outputs = map(types.Optional, (numbers, vectors, vectors))
    signature = types.void(
        vectors, vectors, *inputs, *outputs, numbers, types.boolean, *(types.int64,) * 3, types.boolean
    )
    name = "_target" * given.target + "_cotangent" * given.cotangent
    return compile_function(shared_tiny, f"shared_tiny_{m}x{n}{name}_{dtype}", signature)
