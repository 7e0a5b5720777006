"""exp, the error and g on vectors; the derivation is in ``sigmoid_l2.kernels.reference``."""

import math
from collections.abc import Generator, Iterable
from typing import Any

from sigmoid_l2.kernels.cpu.simd import VectorBuilder

# Constants of exp by the bytes of a real number: bits of the mantissa; bias of the exponent; a y below which exp(y)
# rounds to 0; ln 2 as a sum of two numbers, of which the first times any exponent is exact; terms of the series of
# exp(r), |r| <= ln(2) / 2. One term more changes nothing, one less doubles the error.
_FORMATS = {
    4: (23, 127, -104.0, 0.693145751953125, 1.4286068203094172e-06, 8),
    8: (52, 1023, -746.0, 0.6931471803691238, 1.9082149292705877e-10, 14),
}


# What builds a result step by step: it yields after each step, so that ``side_by_side`` can build others meanwhile.
Steps = Generator[None, None, Any]


def exp(v: VectorBuilder, y: Any) -> Steps:
    """exp(y) for y <= 0, NaN for NaN; without a branch, so that all lanes stay together.

    y = k ln 2 + r with an integer k and |r| <= ln(2) / 2. exp(r) is its Taylor series. Without an instruction for it,
    2^k is the product of two factors made from exponent bits, because k may be less than the smallest exponent of a
    normal number. The bits are the same: a product with the first factor is exact.

    The largest error measured is 0.94 ulp with fused multiply-add and 1.22 ulp without: of all float32 values, and
    of 5e7 float64 values (tests/host/test_simd.py). Where the result is subnormal, it is off by one step at most.
    """
    b = v.builder
    mantissa, bias, floor, ln2_high, ln2_low, terms = _FORMATS[v.dtype.itemsize]
    # A comparison with NaN is false: NaN stays.
    y = b.select(b.fcmp_ordered("<", y, v.constant(floor)), v.constant(floor), y)
    # Adding 1.5 * 2^mantissa rounds to an integer and leaves it in the low bits. (A conversion to integer would be
    # undefined for NaN, and AVX2 has none for float64.)
    shift = v.constant(1.5 * 2.0**mantissa)
    shifted = v.multiply_add(y, v.constant(1 / math.log(2)), shift)
    yield
    k = b.fsub(shifted, shift)
    yield
    r = v.multiply_add(k, v.constant(-ln2_high), y)
    yield
    r = v.multiply_add(k, v.constant(-ln2_low), r)
    result = v.constant(1 / math.factorial(terms - 1))
    for i in reversed(range(terms - 1)):
        yield
        result = v.multiply_add(result, r, v.constant(1 / math.factorial(i)))
    yield
    if v.can_scale:
        return v.scale(result, k)
    exponent = b.sub(b.bitcast(shifted, v.integers), b.bitcast(shift, v.integers))
    half = b.ashr(exponent, v.integer(1))
    for e in (half, b.sub(exponent, half)):
        power = b.shl(b.add(e, v.integer(bias)), v.integer(mantissa))
        result = b.fmul(result, b.bitcast(power, v.vector))
    return result


def error_and_g(v: VectorBuilder, q: Any, target: Any = None, cotangent: Any = None) -> Steps:
    """e = sigmoid(q) - target and g = 2 e s (1 - s) cotangent; a target of None is 0, a cotangent of None is 1."""
    b = v.builder
    t = yield from exp(v, b.fneg(v.absolute(q)))
    yield
    r = b.fdiv(v.constant(1), b.fadd(v.constant(1), t))
    yield
    tr = b.fmul(t, r)
    negative = b.fcmp_ordered("<", q, v.constant(0))
    s, c = b.select(negative, tr, r), b.select(negative, r, tr)
    e = s if target is None else _error(v, s, c, target)
    factor = b.fmul(v.constant(2), e)
    if cotangent is not None:
        factor = b.fmul(factor, cotangent)
    return e, b.fmul(factor, b.fmul(s, c))


def _error(v: VectorBuilder, s: Any, c: Any, target: Any) -> Any:
    """s - target, where s + c = 1."""
    b = v.builder
    # Where the target is above 1/2, 1 - target is exact, and so small that it does not cover c: a target of 1 leaves -c
    # as it is, where s - 1 has lost it. A comparison with NaN is false: NaN stays.
    from_above = b.fsub(b.fsub(v.constant(1), target), c)
    return b.select(b.fcmp_ordered(">", target, v.constant(0.5)), from_above, b.fsub(s, target))


def side_by_side(builds: Iterable[Steps]) -> list[Any]:
    """Build results step by step in turn, and return them.

    A step waits for the one before. The processor looks ahead for others that need not wait, but not from one exp to
    the next: 3x3 float64 in cache is 1.1 times as fast with its three vectors side by side.
    """
    waiting, results = dict(enumerate(builds)), dict[int, Any]()
    while waiting:
        for k, build in list(waiting.items()):
            try:
                next(build)
            except StopIteration as end:
                results[k] = end.value
                del waiting[k]
    return [results[k] for k in range(len(results))]
