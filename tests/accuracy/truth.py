"""The truth for one q, compiled: float64 where float32 is judged, double-double where float64 is.

loss = s^2, g = 2 s^2 (1 - s) and dx = g q are triples (high, low, exponent) that mean (high + low) 2^exponent; so the
low part keeps its bits where the value underflows.

A double-double number is the unevaluated sum of two float64, the second below half an ulp of the first: 106 bits. Sums
and products of two float64 are exact in that form (Knuth, Dekker). numba fuses and reorders nothing unless told to.
"""

import math
from typing import Any, NamedTuple

import mpmath
import numpy as np
from numba import njit

STEPS = 64  # exp(y) = 2^e 2^(j/64) exp(r) with |r| <= ln(2) / 128
TERMS = 12  # of the series of exp(r); the first one left out is below 2^-118
DOUBLE_DOUBLE_TERMS = 5  # those from r^5 / 5! < 2^-44 on are summed in float64, their rounding is below 2^-97
# exp of it is 0 to float64, and so is its product with the largest q; the same for float32, where float64 is normal.
FLOOR, FLOOR32 = -1600.0, -340.0


def _parts(value: mpmath.mpf, *bits: int) -> tuple[float, ...]:
    """``value`` as a sum of float64 numbers, of so many bits each."""
    parts = []
    for b in bits:
        with mpmath.workprec(b):
            parts.append(float(+value))
        value -= parts[-1]
    return tuple(parts)


with mpmath.workdps(60):
    # A whole number of up to 18 bits times either of the first two parts is exact.
    STEP_HIGH, STEP_MIDDLE, STEP_LOW = _parts(mpmath.log(2) / STEPS, 34, 34, 53)
    POWERS = np.array([_parts(mpmath.mpf(2) ** (mpmath.mpf(j) / STEPS), 53, 53) for j in range(STEPS)])
    COEFFICIENTS = np.array([_parts(1 / mpmath.factorial(k), 53, 53) for k in range(TERMS)])


@njit
def _sum(a, b):
    """a + b, exactly."""
    high = a + b
    b_part = high - a
    return high, (a - (high - b_part)) + (b - b_part)


@njit
def _product(a, b):
    """a b, exactly, by halves of 26 bits."""
    high = a * b
    c = 134217729.0 * a  # 2^27 + 1
    a_high = c - (c - a)
    c = 134217729.0 * b
    b_high = c - (c - b)
    a_low, b_low = a - a_high, b - b_high
    return high, ((a_high * b_high - high) + a_high * b_low + a_low * b_high) + a_low * b_low


@njit
def _add(a, b):
    high, low = _sum(a[0], b[0])
    return _sum(high, low + (a[1] + b[1]))


@njit
def _multiply(a, b):
    high, low = _product(a[0], b[0])
    return _sum(high, low + (a[0] * b[1] + a[1] * b[0]))


@njit
def _reciprocal(a):
    """1 / a: the float64 quotient and one Newton step for what is left."""
    r = 1 / a[0]
    high, low = _product(r, a[0])
    return _sum(r, r * (((1 - high) - low) - r * a[1]))


@njit
def exp(y):
    """exp(y) for y <= 0 as (high, low), exponent."""
    k = np.rint(y / STEP_HIGH)
    high, low = _sum(y - k * STEP_HIGH, -k * STEP_MIDDLE)
    r = _sum(high, low - k * STEP_LOW)
    series = COEFFICIENTS[TERMS - 1, 0]
    for i in range(TERMS - 2, DOUBLE_DOUBLE_TERMS - 1, -1):
        series = series * r[0] + COEFFICIENTS[i, 0]
    total = series, 0.0
    for i in range(DOUBLE_DOUBLE_TERMS - 1, -1, -1):
        total = _add(_multiply(total, r), (COEFFICIENTS[i, 0], COEFFICIENTS[i, 1]))
    j = np.int64(k) & (STEPS - 1)
    return _multiply(total, (POWERS[j, 0], POWERS[j, 1])), (np.int64(k) - j) // STEPS


@njit
def of_float64(q):
    """loss, g and dx of a finite q in double-double, to 2^-95."""
    power, exponent = exp(max(-abs(q), FLOOR))
    t = math.ldexp(power[0], exponent), math.ldexp(power[1], exponent)
    r = _reciprocal(_add((1.0, 0.0), t))
    loss = _multiply(r, r)
    g = _multiply(_multiply(loss, r), power)
    loss_exponent, g_exponent = 0, exponent + 1  # g = 2 r^2 (t r)
    if q < 0:  # s = t r and 1 - s = r
        loss = _multiply(loss, _multiply(power, power))
        g = _multiply(g, power)
        loss_exponent, g_exponent = 2 * exponent, 2 * exponent + 1
    mantissa, q_exponent = math.frexp(q)
    dx = _multiply(g, (mantissa, 0.0))
    return (*loss, loss_exponent), (*g, g_exponent), (*dx, g_exponent + q_exponent)


@njit
def of_float32(q):
    """loss, g and dx of a finite q in float64, to a few of its ulp, which are 2e-9 of float32's."""
    t = math.exp(max(-abs(q), FLOOR32))
    r = 1 / (1 + t)
    s, c = (t * r, r) if q < 0 else (r, t * r)
    g = 2 * s * (s * c)
    return (s * s, 0.0, 0), (g, 0.0, 0), (g * q, 0.0, 0)


class Truth(NamedTuple):
    """The truth for many q; the first axis is loss, g, dx."""

    high: Any  # (3, size)
    low: Any  # (3, size)
    exponent: Any  # (3, size)


def of(q: np.ndarray) -> Truth:
    """The truth for an array of float32 or float64, as accurately as its dtype needs; also for inf and NaN."""
    return Truth(*_of(q, of_float32 if q.dtype == np.float32 else of_float64))


@njit(nogil=True)
def _of(q, function):
    high, low, exponent = np.empty((3, len(q))), np.empty((3, len(q))), np.empty((3, len(q)), np.int64)
    for i in range(len(q)):
        value = np.float64(q[i])  # float() of a float32 stays one in numba
        if np.isfinite(value):
            loss, g, dx = function(value)
        else:  # s = 0, 1 or NaN
            s = value if np.isnan(value) else 1.0 if value > 0 else 0.0
            loss, g, dx = (s, 0.0, 0), (0 * s, 0.0, 0), (np.nan, 0.0, 0)
        high[0, i], low[0, i], exponent[0, i] = loss
        high[1, i], low[1, i], exponent[1, i] = g
        high[2, i], low[2, i], exponent[2, i] = dx
    return high, low, exponent
