"""What the kernels in numba.cuda share: arithmetic, the steps of a row, sums over threads, moves; common.cuh is CuPy's.

A function of compile-time constants, like ``dot(count)``, returns a device function. Where the .cuh takes a pointer,
this takes an array and an index. Arrays are contiguous, in shared memory or in registers; for global memory it takes an
address and an index. ``one`` is 1 in the arrays' dtype, because numba makes float64 of a float32 and a Python number.
"""

import math
from functools import cache, partial
from importlib import import_module
from typing import Any

import numpy as np

from sigmoid_l2.kernels import Given
from sigmoid_l2.kernels.gpu.plan import WARP
from sigmoid_l2.kernels.gpu.shim import package

framework: Any = import_module(f"sigmoid_l2.kernels.gpu.shim_{package()}")
cuda, device = framework.cuda, framework.device
shuffle, shuffle_xor, about_reciprocal = framework.shuffle, framework.shuffle_xor, framework.about_reciprocal
TYPES: dict[int, Any] = {4: np.float32, 8: np.float64}  # by itemsize

# --- arithmetic ------------------------------------------------------------------------------------------------------


@device
def multiply_add(a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""
    return cuda.fma(a, b, c)


@device
def multiply(a: Any, b: Any) -> Any:
    """a * b, rounded once. numba does not flush subnormals, so a plain product is enough."""
    return a * b


@device
def subtract(a: Any, b: Any, one: Any) -> Any:
    """a - b, rounded once: never contracted with the product that a may be."""
    return multiply_add(b, -one, a)


@device
def sigmoid_and_complement(q: Any, one: Any) -> Any:
    """s = sigmoid(q) and c = 1 - s, both to a few ulp: one exp whose argument is never positive, nothing subtracted."""
    t = math.exp(-abs(q))
    d = one + t
    # A division would first look for d that is subnormal, huge or NaN, and call a function then; see about_reciprocal.
    r = about_reciprocal(d)
    for _ in range(2):  # Newton's steps, in float64: 20 bits, 40, all
        r = multiply_add(r, multiply_add(-d, r, one), r)
    tr = t * r
    return (tr, r) if q < 0 else (r, tr)


# --- the steps of a row ----------------------------------------------------------------------------------------------


@cache
def dot(count: int) -> Any:
    """q + a . b of ``count`` elements, added one after the other."""

    def function(a: Any, a_at: Any, b: Any, b_at: Any, q: Any) -> Any:
        for j in range(count):
            q = multiply_add(a[a_at + j], b[b_at + j], q)
        return q

    return device(function)


@cache
def error_and_g(given: Given, itemsize: int) -> Any:
    """The error e = s - y of s = sigmoid(q), and g = cotangent dloss/dq = 2 e cotangent (s (1 - s)).

    Where y > 1/2, e is (1 - y) - (1 - s), in which 1 - y is exact where y <= 2, so that nothing cancels near s = y = 1.
    """
    GIVEN_TARGET, GIVEN_COTANGENT = given
    half, one, two = map(TYPES[itemsize], (0.5, 1, 2))

    def function(q: Any, y: Any, cotangent: Any) -> Any:
        s, c = sigmoid_and_complement(q, one)
        e = s
        if GIVEN_TARGET:
            e = subtract(subtract(one, y, one), c, one) if y > half else subtract(s, y, one)
        two_e = two * e
        if GIVEN_COTANGENT:
            two_e = multiply(two_e, cotangent)
        return e, multiply(two_e, multiply(s, c))

    return device(function)


@cache
def add_scaled(count: int) -> Any:
    """y += g a, of ``count`` elements."""

    def function(y: Any, y_at: Any, g: Any, a: Any, a_at: Any) -> None:
        for j in range(count):
            y[y_at + j] = multiply_add(g, a[a_at + j], y[y_at + j])

    return device(function)


@cache
def scale(count: int) -> Any:
    """y = g a, of ``count`` elements."""

    def function(y: Any, y_at: Any, g: Any, a: Any, a_at: Any) -> None:
        for j in range(count):
            y[y_at + j] = multiply(g, a[a_at + j])

    return device(function)


# --- sums over threads -----------------------------------------------------------------------------------------------


@cache
def sum_over_lanes(lanes: int, count: int, distance: int = 1) -> Any:
    """Sums of v[0 .. count - 1] over groups of ``lanes`` neighbouring lanes, a power of two.

    At the end lane l of a group has the sums of v[l], v[l + lanes], ... in v[0], v[1], ... In each step two lanes share
    their values: each sends those that the other keeps, so all steps take about ``count`` shuffles. Every lane of
    the warp takes part.
    """
    pairs, single = divmod(count, 2)
    rest: Any = sum_over_lanes(lanes, pairs + single, 2 * distance) if distance < lanes else None

    def alone(v: Any, lane: Any) -> None:
        pass

    def function(v: Any, lane: Any) -> None:
        for k in range(pairs):
            even, odd = v[2 * k], v[2 * k + 1]
            mine, theirs = (odd, even) if lane & distance else (even, odd)
            v[k] = mine + shuffle_xor(theirs, distance)
        if single:  # the last value has no partner: both lanes keep it
            v[pairs] = v[count - 1] + shuffle_xor(v[count - 1], distance)
        rest(v, lane)

    return device(function if distance < lanes else alone)


@cache
def sum_over_row_threads(warps: int, count: int, lanes: int = WARP) -> Any:
    """Sums of v[0 .. count - 1] over the threads that own a row: ``lanes`` of a warp, or all ``warps`` of the block.

    ``count`` is a power of two up to 32; lane l gets the sum of v[l % count]. ``sums`` is in shared memory and has room
    for (warps, count) from ``at`` on. The next call needs another place: no barrier protects these sums.
    """
    sum_lanes = sum_over_lanes(lanes, count)

    def function(v: Any, sums: Any, at: Any) -> Any:
        t = np.uint32(cuda.threadIdx.x)  # unsigned: numba then does not look for negative indices
        lane, warp = np.uint32(t % WARP), np.uint32(t // WARP)
        sum_lanes(v, lane)
        if warps == 1:
            return v[0]
        if lane < count:
            sums[np.uint32(at + warp * count + lane)] = v[0]
        cuda.syncthreads()
        first = np.uint32(at + lane % count)
        total = sums[first]
        for w in range(1, warps):
            total += sums[np.uint32(first + w * count)]
        return total

    return device(function)


# --- moving ----------------------------------------------------------------------------------------------------------


@cache
def load_global(wide: bool, width: int) -> Any:
    """Copy ``width`` neighbouring elements: in one access of an aligned address or, where not ``wide``, one by one.

    The function takes what and which index to copy to, then from.
    Its accesses have no hints to the cache as in common.cuh: ldcs and stcs of numba.cuda move single elements only.
    """
    move = framework.MOVERS[width if wide else 1]
    if wide or width == 1:
        return move

    def function(target: Any, to: Any, source: Any, at: Any) -> None:
        for v in range(width):
            move(target, to + v, source, at + v)

    return device(function)


store_global = load_global
load_shared = store_shared = partial(load_global, True)  # of ``width`` elements


@cache
def load_value(itemsize: int) -> Any:
    """One element of global memory."""
    real, move = framework.REALS[itemsize], framework.MOVERS[1]

    def function(source: Any, at: Any) -> Any:
        held = cuda.local.array(1, real)
        move(held, 0, source, at)
        return held[0]

    return device(function)


@cache
def store_value(itemsize: int) -> Any:
    """Store one element in global memory."""
    real, move = framework.REALS[itemsize], framework.MOVERS[1]

    def function(target: Any, at: Any, value: Any) -> None:
        held = cuda.local.array(1, real)
        held[0] = value
        move(target, at, held, 0)

    return device(function)
