"""The CPU kernel: one pass over W, in vectors, on all cores. The derivation is in ``sigmoid_l2.kernels.reference``.

Three kernels, chosen by the size of a pair:

* *tiny*, for pairs of at most TINY elements: as many pairs as a vector has lanes are one block. W, x and the results of
  a block are whole vectors, read and written as they lie in memory; shuffles in between bring x_j and g_i to the
  elements that they multiply, and the terms of a sum into one lane. Compiled for each (m, n).
* *tall*, for larger pairs whose rows are shorter than a vector: as many rows of a pair as a vector has lanes are one
  block, with the same shuffles. Compiled for each n.
* *rows*, for all others: the lanes run along a row. The rows of a pair are taken in batches that stay in cache between
  their q and their dW; their sigmoids are computed together.

Threads own ranges of pairs. Sums run in an order that depends on (m, n), the dtype and the width of the vectors alone,
so a pair's bits depend on nothing but the pair.
"""

import functools
import hashlib
import itertools
import os
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from sigmoid_l2 import threads
from sigmoid_l2.kernels.cpu.simd import INDEX, Lanes, vector_bytes

# Elements of W up to which a pair is tiny. With AVX-512 and float32, tiny and rows give 12.5 and 9.5 GB/s at 12x12, but
# 11.5 and 13.9 at 16x16; and the code of a block, with the time to compile it, grows with the elements.
TINY = 144
# Columns up to which a larger pair is tall, where a vector has as many lanes. In float32 tall and rows give 4.4 and 1.1
# GB/s at 200x1, 17.2 and 14.7 at 784x10, and are even at 16 columns.
TALL = 12
# Rows of one batch of the rows kernel at most, a multiple of every vector's lanes; and the bytes of W that it may have,
# half of a common level 1 cache, because dW passes through it as well.
ROWS, ROWS_BYTES = 64, 16 << 10
# Rows that the rows kernel takes at a time: they load x and dx once, and their sums do not wait for each other.
GROUP = 4
# Bytes of a row up to which that pays. Longer rows go one by one, with GROUP sums each, because memory is read fastest
# in one stream: 256x256 float32 went from 11.6 GB/s to 20.0.
NARROW_BYTES = 64
# Free memory without which nothing is compiled: the first time in a process takes 150 MiB, mostly of addresses, and
# LLVM ends the process where it gets none.
COMPILER_BYTES = 192 << 20
# The outputs that are wanted, as bits of a number: one compiled function does for all of them.
LOSS, DW, DX = 1, 2, 4


def _width(dtype: np.dtype[Any]) -> int:
    return vector_bytes() // dtype.itemsize


class _Code:
    """What the code of an intrinsic starts from: the lanes, and the arguments.

    Of an array that is its pointer, of a number the program's 64-bit one, of the last ``constants`` arguments Python's.
    """

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any, constants: int = 0) -> None:
        dtype = np.dtype(str(next(a.dtype for a in signature.args if isinstance(a, types.Array))))
        self.lanes = Lanes(builder, dtype, _width(dtype))
        variables = len(arguments) - constants
        self.arguments = [
            *(self._variable(context, builder, *a) for a in zip(signature.args, arguments[:variables], strict=False)),
            *(type_.literal_value for type_ in signature.args[variables:]),
        ]

    def if_wanted(self, wanted: Any, output: int) -> Any:
        """A context in which code is built that runs where ``output`` is among those wanted."""
        builder = self.lanes.builder
        return builder.if_then(builder.icmp_signed("!=", builder.and_(wanted, INDEX(output)), INDEX(0)))

    @staticmethod
    def _variable(context: Any, builder: Any, type_: Any, value: Any) -> Any:
        if isinstance(type_, types.Array):
            return context.make_array(type_)(context, builder, value).data
        return context.cast(builder, value, type_, types.int64)


@intrinsic(prefer_literal=True)
def _tiny_block(
    context: Any, W: Any, x: Any, loss: Any, dW: Any, dx: Any, wanted: Any, first: Any, m: Any, n: Any
) -> Any:
    """The pairs from ``first`` on, as many as a vector has lanes, of W (B, m, n), x (B, n); m and n are constants."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = _Code(context, builder, signature, arguments, constants=2)
        v, b = code.lanes, builder
        W, x, loss, dW, dx, wanted, first, m, n = code.arguments
        mn, width = m * n, v.width

        def at(size: int, k: int) -> Any:  # the element where vector k of the block begins; a pair has `size` of them
            return b.add(b.mul(first, INDEX(size)), INDEX(k * width))

        def elements(k: int) -> range:  # of the block, in vector k
            return range(k * width, (k + 1) * width)

        W_block = [v.load(W, at(mn, k)) for k in range(mn)]  # (pairs, m, n), one element after another
        x_block = [v.load(x, at(n, k)) for k in range(n)]  # (pairs, n)
        x_of_W = [v.gather(x_block, [e // mn * n + e % n for e in elements(k)]) for k in range(mn)]
        q_block = v.sum_axis([b.fmul(w, y) for w, y in zip(W_block, x_of_W, strict=True)], n, 1)  # (pairs, m)
        s_and_c = [v.sigmoid_and_complement(q) for q in q_block]
        g_block = [v.g(s, c) for s, c in s_and_c]
        with code.if_wanted(wanted, LOSS):
            (total,) = v.sum_axis([b.fmul(s, s) for s, _ in s_and_c], m, 1)
            v.store(total, loss, first)
        g_of_W = [v.gather(g_block, [e // n for e in elements(k)]) for k in range(mn)]
        with code.if_wanted(wanted, DW):
            for k in range(mn):
                v.store(b.fmul(g_of_W[k], x_of_W[k]), dW, at(mn, k))
        with code.if_wanted(wanted, DX):
            terms = [b.fmul(g, w) for g, w in zip(g_of_W, W_block, strict=True)]
            for k, total in enumerate(v.sum_axis(terms, m, n)):
                v.store(total, dx, at(n, k))
        return context.get_dummy_value()

    return types.void(W, x, loss, dW, dx, wanted, first, m, n), generate


@intrinsic(prefer_literal=True)
def _tall_block(
    context: Any, W: Any, top: Any, x: Any, x_at: Any, dW: Any, sums: Any, wanted: Any, rows: Any, n: Any
) -> Any:
    """One block of a tall pair: ``rows`` rows (at most a vector's lanes) from element ``top`` of W on; n is constant.

    Writes their dW, adds their terms of dx to ``sums`` (lanes, n), and is the sum of their s^2.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = _Code(context, builder, signature, arguments, constants=1)
        v, b = code.lanes, builder
        W, top, x, x_at, dW, sums, wanted, rows, n = code.arguments
        width, zero = v.width, v.constant(0)
        in_pair = v.first(rows)
        masks = [v.first(b.sub(b.mul(rows, INDEX(n)), INDEX(k * width))) for k in range(n)]

        def at(k: int) -> Any:
            return b.add(top, INDEX(k * width))

        W_block = [v.load(W, at(k), masks[k]) for k in range(n)]  # (rows, n), one element after another
        x_pair = v.load(x, x_at, v.first(INDEX(n)))
        x_of_W = [v.shuffle(x_pair, x_pair, [e % n for e in range(k * width, (k + 1) * width)]) for k in range(n)]
        (q,) = v.sum_axis([b.fmul(w, y) for w, y in zip(W_block, x_of_W, strict=True)], n, 1)
        s, c = v.sigmoid_and_complement(q)
        g = b.select(in_pair, v.g(s, c), zero)
        g_of_W = [v.gather([g], [e // n for e in range(k * width, (k + 1) * width)]) for k in range(n)]
        for k in range(n):
            with code.if_wanted(wanted, DW):
                v.store(b.fmul(g_of_W[k], x_of_W[k]), dW, at(k), masks[k])
            so_far = v.load(sums, INDEX(k * width))
            v.store(v.multiply_add(g_of_W[k], W_block[k], so_far), sums, INDEX(k * width))
        return v.sum(b.select(in_pair, b.fmul(s, s), zero))

    return W.dtype(W, top, x, x_at, dW, sums, wanted, rows, n), generate


def _columns(code: _Code, n: Any, step: Any, unroll: int = 1) -> None:
    """Build ``step(j, mask, u)`` for the vectors of a row of n: the whole ones without a mask, the rest with one.

    ``unroll`` of them are taken at a time, of which u is the number, and what is left one by one with u = 0.
    """
    b, width = code.lanes.builder, code.lanes.width
    begin = INDEX(0)
    for together in (unroll, 1) if unroll > 1 else (1,):
        end = b.sub(n, b.urem(n, INDEX(together * width)))
        with cgutils.for_range_slice(b, begin, end, INDEX(together * width), intp=INDEX) as (j, _):
            for u in range(together):
                step(b.add(j, INDEX(u * width)), None, u)
        begin = end
    rest = b.sub(n, begin)
    with b.if_then(b.icmp_signed(">", rest, INDEX(0))):
        step(begin, code.lanes.first(rest), 0)


@intrinsic(prefer_literal=True)
def _dots(context: Any, W: Any, row: Any, x: Any, x_at: Any, n: Any, q: Any, q_at: Any, rows: Any) -> Any:
    """q[q_at + r] = the product of x, from ``x_at`` on, and row r of those from element ``row`` of W on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = _Code(context, builder, signature, arguments, constants=1)
        v, b = code.lanes, builder
        W, row, x, x_at, n, q, q_at, rows = code.arguments
        unroll = GROUP if rows == 1 else 1  # sums that do not wait for each other
        sums = [[cgutils.alloca_once(b, v.vector) for _ in range(unroll)] for _ in range(rows)]
        for total in itertools.chain(*sums):
            b.store(v.constant(0), total)

        def step(j: Any, mask: Any, u: int) -> None:
            x_j = v.load(x, b.add(x_at, j), mask)
            for r in range(rows):
                total = sums[r][u]
                W_j = v.load(W, b.add(b.add(row, b.mul(INDEX(r), n)), j), mask)
                b.store(v.multiply_add(W_j, x_j, b.load(total)), total)

        _columns(code, n, step, unroll)
        totals = [functools.reduce(b.fadd, map(b.load, row_sums)) for row_sums in sums]
        if rows == v.width:
            v.store(v.sums(totals), q, q_at)
        else:
            for r, total in enumerate(totals):
                b.store(v.sum(total), b.gep(q, [b.add(q_at, INDEX(r))]))
        return context.get_dummy_value()

    return types.void(W, row, x, x_at, n, q, q_at, rows), generate


@intrinsic(prefer_literal=True)
def _gradients(
    context: Any,
    W: Any,
    row: Any,
    x: Any,
    x_at: Any,
    n: Any,
    g: Any,
    g_at: Any,
    dW: Any,
    dx: Any,
    wanted: Any,
    rows: Any,
) -> Any:
    """Write ``rows`` rows of dW from element ``row`` on, where it is wanted, and add the same rows' part to dx (n,)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = _Code(context, builder, signature, arguments, constants=1)
        v, b = code.lanes, builder
        W, row, x, x_at, n, g, g_at, dW, dx, wanted, rows = code.arguments
        g_rows = [v.splat(b.load(b.gep(g, [b.add(g_at, INDEX(r))]))) for r in range(rows)]

        def step(j: Any, mask: Any, _: int) -> None:
            x_j = v.load(x, b.add(x_at, j), mask)
            dx_j = v.load(dx, j, mask)
            for r, g_r in enumerate(g_rows):
                at = b.add(b.add(row, b.mul(INDEX(r), n)), j)
                dx_j = v.multiply_add(g_r, v.load(W, at, mask), dx_j)
                with code.if_wanted(wanted, DW):
                    v.store(b.fmul(g_r, x_j), dW, at, mask)
            v.store(dx_j, dx, j, mask)

        _columns(code, n, step)
        return context.get_dummy_value()

    return types.void(W, row, x, x_at, n, g, g_at, dW, dx, wanted, rows), generate


@intrinsic
def _sigmoids(context: Any, q: Any, g: Any, at: Any) -> Any:
    """Replace a vector of q, from ``at`` on, by g in the array g; the sum of s^2 over its lanes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = _Code(context, builder, signature, arguments)
        q, g, at = code.arguments
        s, c = code.lanes.sigmoid_and_complement(code.lanes.load(q, at))
        code.lanes.store(code.lanes.g(s, c), g, at)
        return code.lanes.sum(builder.fmul(s, s))

    return q.dtype(q, g, at), generate


@cache
def _tiny(m: int, n: int, dtype: np.dtype[Any]) -> Any:
    width = _width(dtype)

    def tiny(W: Any, x: Any, loss: Any, dW: Any, dx: Any, wanted: int, first: int, last: int) -> None:
        """The pairs first..last of W (B, m, n), x (B, n), loss (B,), dW (B, m, n), dx (B, n), those that are wanted."""
        whole = first + (last - first) // width * width
        for pair in range(first, whole, width):
            _tiny_block(W, x, loss, dW, dx, wanted, pair, m, n)
        if whole == last:
            return
        # The rest is a block of its own, filled up with zeros: the same instructions, hence the same bits.
        W_block, x_block = np.zeros((width, m, n), W.dtype), np.zeros((width, n), W.dtype)
        loss_block, dW_block, dx_block = np.empty(width, W.dtype), np.empty_like(W_block), np.empty_like(x_block)
        for pair in range(whole, last):  # plain loops: numba takes seconds to compile assignments of slices
            for j in range(n):
                x_block[pair - whole, j] = x[pair, j]
                for i in range(m):
                    W_block[pair - whole, i, j] = W[pair, i, j]
        _tiny_block(W_block, x_block, loss_block, dW_block, dx_block, wanted, 0, m, n)
        for pair in range(whole, last):
            if wanted & LOSS:
                loss[pair] = loss_block[pair - whole]
            for j in range(n):
                if wanted & DX:
                    dx[pair, j] = dx_block[pair - whole, j]
                if wanted & DW:
                    for i in range(m):
                        dW[pair, i, j] = dW_block[pair - whole, i, j]

    return _compile(tiny, f"tiny_{m}x{n}", dtype)


@cache
def _tall(n: int, dtype: np.dtype[Any]) -> Any:
    width = _width(dtype)

    def tall(W: Any, x: Any, loss: Any, dW: Any, dx: Any, wanted: int, first: int, last: int) -> None:
        """The pairs first..last of W (B, m, n), x (B, n), loss (B,), dW (B, m, n), dx (B, n), those that are wanted."""
        m = W.shape[1]
        sums = np.empty((width, n), W.dtype)
        for b in range(first, last):
            for r in range(width):
                for j in range(n):
                    sums[r, j] = 0
            total = W.dtype.type(0)
            for i in range(0, m, width):
                total += _tall_block(W, (b * m + i) * n, x, b * n, dW, sums, wanted, min(width, m - i), n)
            if wanted & LOSS:
                loss[b] = total
            if wanted & DX:
                for j in range(n):
                    total = sums[0, j]
                    for r in range(1, width):
                        total += sums[r, j]
                    dx[b, j] = total

    return _compile(tall, f"tall_{n}", dtype)


@cache
def _rows(dtype: np.dtype[Any]) -> Any:
    width, itemsize = _width(dtype), dtype.itemsize

    def rows(W: Any, x: Any, loss: Any, dW: Any, dx: Any, wanted: int, first: int, last: int) -> None:
        """The pairs first..last of W (B, m, n), x (B, n), loss (B,), dW (B, m, n), dx (B, n), those that are wanted."""
        m, n = W.shape[1:]
        size = min(ROWS, max(width, ROWS_BYTES // itemsize // n // width * width))
        q, g, sums = np.empty(ROWS, W.dtype), np.empty(ROWS, W.dtype), np.empty(n, W.dtype)
        for b in range(first, last):
            for j in range(n):
                sums[j] = 0
            total = W.dtype.type(0)
            for i in range(0, m, size):
                here = min(size, m - i)
                top = (b * m + i) * n
                grouped = here if n * itemsize <= NARROW_BYTES else 0
                r = 0
                while r + width <= grouped:
                    _dots(W, top + r * n, x, b * n, n, q, r, width)
                    r += width
                while r + GROUP <= grouped:
                    _dots(W, top + r * n, x, b * n, n, q, r, GROUP)
                    r += GROUP
                while r < here:
                    _dots(W, top + r * n, x, b * n, n, q, r, 1)
                    r += 1
                while r % width:
                    q[r] = -np.inf  # adds 0 to the loss
                    r += 1
                for k in range(0, r, width):
                    total += _sigmoids(q, g, k)
                if wanted == LOSS:
                    continue
                r = 0
                while r + GROUP <= grouped:
                    _gradients(W, top + r * n, x, b * n, n, g, r, dW, sums, wanted, GROUP)
                    r += GROUP
                while r < here:
                    _gradients(W, top + r * n, x, b * n, n, g, r, dW, sums, wanted, 1)
                    r += 1
            if wanted & LOSS:
                loss[b] = total
            if wanted & DX:
                for j in range(n):
                    dx[b, j] = sums[j]

    return _compile(rows, "rows", dtype)


@cache
def _digest() -> str:
    """What compiled code depends on: the text of both files, numba, and the processor that it is for."""
    files = (Path(path).read_bytes() for path in (__file__, Path(__file__).with_name("simd.py")))
    what = (*files, numba.__version__, cpu_target.target_context.codegen().magic_tuple())
    return hashlib.sha256(repr(what).encode()).hexdigest()[:16]


def _compile(function: Any, name: str, dtype: np.dtype[Any]) -> Any:
    """Compile one of the functions above for arrays of ``dtype``, or load it from numba's disk cache."""
    # numba's disk cache sees changes of a function's own file alone. And it numbers the variants of a function: when
    # two processes add one each at the same time, the key of one may lead to the code of the other from then on. So
    # each variant has a name, hence files in the cache, of its own.
    function.__qualname__ = f"{name}_{dtype}_{_digest()}"
    real = numba.from_dtype(dtype)
    arrays = (real[:, :, ::1], real[:, ::1], real[::1], real[:, :, ::1], real[:, ::1])
    signature = types.void(*arrays, types.int64, types.int64, types.int64)
    options = {"nogil": True, "error_model": "numpy"}
    np.empty(COMPILER_BYTES, np.uint8)  # MemoryError, and the process goes on
    try:
        return njit(signature, **options, cache=True)(function)
    except Exception:  # no directory to write to, a full disk, a damaged file: none of them keeps us from computing
        return njit(signature, **options)(function)


if hasattr(os, "register_at_fork"):
    # A child forked while another thread compiles would wait for numba's lock forever.
    lock = global_compiler_lock
    os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)


def fused(W: Any, x: Any, loss: Any, dW: Any, dx: Any, *, stream: int | None = None) -> None:
    """Compute loss, dW and dx for a batch on all cores; the contract is in ``sigmoid_l2.kernels``."""
    B, m, n = W.shape
    if m * n <= TINY:
        run = _tiny(m, n, W.dtype)
    elif n <= min(TALL, _width(W.dtype)):
        run = _tall(n, W.dtype)
    else:
        run = _rows(W.dtype)
    memory = W, x
    if not (W.flags.writeable and x.flags.writeable):
        W, x = _writeable(W), _writeable(x)
    wanted = LOSS | DW | DX
    # An output that is not wanted is never touched; something of its type stands in for it.
    if loss is None:
        wanted, loss = wanted & ~LOSS, x[0]
    if dW is None:
        wanted, dW = wanted & ~DW, W
    if dx is None:
        wanted, dx = wanted & ~DX, x
    if W.size <= threads.THREAD_WORK:
        run(W, x, loss, dW, dx, wanted, 0, B)
        return

    def run_range(first: int, last: int, memory: Any = memory) -> None:  # keeps alive what _writeable only points to
        run(W, x, loss, dW, dx, wanted, first, last)

    np.empty((min(B, threads.get_num_threads()), n), W.dtype)  # their sums: MemoryError before anything is written
    threads.for_ranges(B, W.size, run_range)


def _writeable(a: Any) -> Any:
    """``a`` itself, or the same memory not marked as read-only, which to numba is another type to compile for."""
    if a.flags.writeable:
        return a
    real = np.ctypeslib.as_ctypes_type(a.dtype)
    return np.ctypeslib.as_array((real * a.size).from_address(a.ctypes.data)).reshape(a.shape)
