"""The arithmetic of PTX on vectors of threads: what each opcode computes, of which types.

Rounding: float32 fma goes through float64 and is rounded twice, which changes about one result in 2**29; float64 fma
goes through NumPy's longdouble. The approximate instructions are wrong here by as much as CUDA's documents allow the
hardware (2 ulp for exp2f, 1 ulp for rcp.approx), up or down by the operand's bits: what holds here does not rest on
a friendly chip.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gpu.ptx import TYPES

INTEGERS, BITS, FLOATS = ("s32", "u32", "s64", "u64"), ("b32", "b64"), ("f32", "f64")


class Operation(NamedTuple):
    """An opcode that computes one value of the operands."""

    function: Callable[..., Any]
    sources: tuple[np.dtype, ...]
    result: np.dtype


OPERATIONS: dict[str, Operation] = {}


def define(
    name: str, types: tuple[str, ...], function: Callable[..., Any], sources: str = "tt", result: str = "t"
) -> None:
    """Opcodes ``name`` with each of ``types`` after it; sources and result are such types, t being the opcode's."""
    for t in types:
        source = tuple(TYPES[t if s == "t" else s] for s in sources.split())
        OPERATIONS[f"{name}.{t}"] = Operation(function, source, TYPES[t if result == "t" else result])


def flushed(a: Any) -> Any:
    """Subnormal numbers as zeros of their sign."""
    return np.where(np.abs(a) < np.finfo(a.dtype).tiny, np.copysign(a.dtype.type(0), a), a)


def flushing(function: Callable[..., Any]) -> Callable[..., Any]:
    """What .ftz does to a float32 instruction: to what comes in and to what goes out."""
    return lambda *values: flushed(function(*map(flushed, values)))


def wrong(value: Any, operand: Any, error: float) -> Any:
    """``value`` with the relative ``error``, of either sign."""
    bits = np.asarray(operand).view(np.uint32) * np.uint32(0x9E3779B1)
    return (value * np.where(bits >> np.uint32(31), 1 + error, 1 - error)).astype(np.float32)


def fma(a: Any, b: Any, c: Any) -> Any:
    """a * b + c, to nearest."""
    wide = np.float64 if a.dtype == np.float32 else np.longdouble
    return (a.astype(wide) * b + c).astype(a.dtype)


def fma_down(a: Any, b: Any, c: Any) -> Any:
    """a * b + c of float32, towards minus infinity."""
    product = a.astype(np.float64) * b  # exact
    total = product + c
    part = total - product
    lost = (product - (total - part)) + (c - part)  # what the sum was rounded by
    near = total.astype(np.float32)
    return np.where((near > total) | ((near == total) & (lost < 0)), np.nextafter(near, np.float32(-np.inf)), near)


def shift(left: bool) -> Callable[..., Any]:
    """A shift by any number of bits; those beyond the width leave zeros or, of a negative number to the right, ones."""

    def function(a: Any, count: Any) -> Any:
        bits = 8 * a.dtype.itemsize
        if left:
            return np.where(count < bits, a << np.minimum(count, bits - 1).astype(a.dtype), 0)
        most = a.dtype.type(bits - 1)
        shifted = a >> np.minimum(count, bits - 1).astype(a.dtype)
        return np.where(count < bits, shifted, a >> most if a.dtype.kind == "i" else 0)

    return function


def insert(source: Any, target: Any, first: Any, count: Any) -> Any:
    """``target`` with ``count`` bits from ``first`` on taken from ``source``."""
    one, first, count = target.dtype.type(1), first & 255, count & 255
    mask = ((one << count.astype(target.dtype)) - one) << first.astype(target.dtype)
    return (target & ~mask) | ((source << first.astype(target.dtype)) & mask)


def divide(a: Any, b: Any) -> Any:
    """The quotient towards zero; what is divided by zero is taken for undefined, see ``steps``."""
    safe = np.where(b == 0, b.dtype.type(1), b)
    quotient = a // safe
    if a.dtype.kind == "i":
        quotient += (quotient < 0) & (quotient * safe != a)
    return np.where(b == 0, a.dtype.type(0), quotient)


def high(a: Any, b: Any) -> Any:
    """The upper half of a product of 64-bit integers."""
    return np.array([int(x) * int(y) >> 64 for x, y in np.broadcast(a, b)], a.dtype).reshape(np.broadcast(a, b).shape)


def about_reciprocal(a: Any) -> Any:
    """The first 32 bits of the reciprocal of a float64's first 32 bits."""
    first = np.uint64(0xFFFFFFFF00000000)
    about = np.asarray(1 / (a.view(np.uint64) & first).view(np.float64))
    return (about.view(np.uint64) & first).view(np.float64)


def saturated(a: Any) -> Any:
    """Between 0 and 1; 0 of NaN."""
    return np.clip(np.where(np.isnan(a), a.dtype.type(0), a), 0, 1)


def or_unordered(compare: Callable[..., Any]) -> Callable[..., Any]:
    """A comparison that is true of NaN as well."""
    return lambda a, b: compare(a, b) | np.isnan(a) | np.isnan(b)


def of_flushed(compare: Callable[..., Any]) -> Callable[..., Any]:
    """What .ftz does to a comparison."""
    return lambda a, b: compare(flushed(a), flushed(b))


define("mov", (*INTEGERS, *BITS, *FLOATS, "pred"), lambda a: a, "t")
define("cvta.to.global", ("u64",), lambda a: a, "t")
for name, function in (("add", np.add), ("sub", np.subtract), ("mul", np.multiply)):
    define(name, (*INTEGERS, *FLOATS) if name != "mul" else FLOATS, function, "t t")
    define(f"{name}.rn", FLOATS, function, "t t")
    define(f"{name}.ftz", ("f32",), flushing(function), "t t")
    define(f"{name}.rn.ftz", ("f32",), flushing(function), "t t")
for name, function in (("abs", np.abs), ("neg", np.negative)):
    define(name, (*FLOATS, "s32", "s64"), function, "t")
    define(f"{name}.ftz", ("f32",), flushing(function), "t")
for name, function in (("min", np.minimum), ("max", np.maximum)):
    define(name, INTEGERS, function, "t t")
for name, function in (("and", np.bitwise_and), ("or", np.bitwise_or), ("xor", np.bitwise_xor)):
    define(name, (*BITS, "pred"), function, "t t")
define("not", (*BITS, "pred"), np.invert, "t")
define("and", ("b16",), np.bitwise_and, "t t")
define("cvt.u16", ("u32",), lambda a: a, "t", "u16")
define("shl", BITS, shift(left=True), "t u32")
define("shr", INTEGERS, shift(left=False), "t u32")
define("bfi", BITS, insert, "t t u32 u32")
define("mul.lo", INTEGERS, np.multiply, "t t")
define("mul.hi", ("s64", "u64"), high, "t t")
define("mul.wide", ("s32",), lambda a, b: a.astype(np.int64) * b, "t t", "s64")
define("mul.wide", ("u16",), lambda a, b: a.astype(np.uint32) * b, "t t", "u32")
define("mul.wide", ("u32",), lambda a, b: a.astype(np.uint64) * b, "t t", "u64")
define("mad.lo", INTEGERS, lambda a, b, c: a * b + c, "t t t")
define("div", INTEGERS, divide, "t t")
define("rem", INTEGERS, lambda a, b: a - divide(a, b) * b, "t t")
define("fma.rn", FLOATS, fma, "t t t")
define("fma.rn.ftz", ("f32",), flushing(fma), "t t t")
define("fma.rm", ("f32",), fma_down, "t t t")
define("fma.rm.ftz", ("f32",), flushing(fma_down), "t t t")
define("rcp.rn", FLOATS, lambda a: 1 / a, "t")
define("rcp.rn.ftz", ("f32",), flushing(lambda a: 1 / a), "t")
define("rcp.approx.ftz", ("f32",), flushing(lambda a: wrong(1 / a.astype(np.float64), a, 2**-23)), "t")
define("rcp.approx.ftz", ("f64",), flushing(about_reciprocal), "t")
define("ex2.approx.ftz", ("f32",), flushing(lambda a: wrong(np.exp2(a.astype(np.float64)), a, 2**-22)), "t")
define("selp", (*INTEGERS, *BITS, *FLOATS), lambda a, b, p: np.where(p, a, b), "t t pred")
define("setp.eq", (*INTEGERS, *BITS), np.equal, "t t", "pred")
define("setp.ne", (*INTEGERS, *BITS), np.not_equal, "t t", "pred")
for name, function in (
    ("eq", np.equal),
    ("ne", lambda a, b: (a < b) | (a > b)),
    ("lt", np.less),
    ("le", np.less_equal),
    ("gt", np.greater),
    ("ge", np.greater_equal),
    ("num", lambda a, b: ~(np.isnan(a) | np.isnan(b))),
    ("nan", lambda a, b: np.isnan(a) | np.isnan(b)),
):
    if name in ("num", "nan"):  # which integers do not have, nor a form for numbers that are not ordered
        define(f"setp.{name}", FLOATS, function, "t t", "pred")
        define(f"setp.{name}.ftz", ("f32",), of_flushed(function), "t t", "pred")
        continue
    if name not in ("eq", "ne"):
        define(f"setp.{name}", INTEGERS, function, "t t", "pred")
    for suffix, compare in (("", function), ("u", or_unordered(function))):
        define(f"setp.{name}{suffix}", FLOATS, compare, "t t", "pred")
        define(f"setp.{name}{suffix}.ftz", ("f32",), of_flushed(compare), "t t", "pred")
for source in INTEGERS:
    for result in INTEGERS:
        if source != result:
            define(f"cvt.{result}", (source,), lambda a: a, "t", result)
define("cvt.sat.f32", ("f32",), saturated, "t")
define("cvt.ftz.sat.f32", ("f32",), flushing(saturated), "t")
