"""Vectors for numba: LLVM's, which numba has no types for, built with llvmlite and used inside numba's intrinsics.

``Lanes`` builds instructions on vectors of one width and dtype. An element of memory is addressed by a pointer to the
first element of an array and an index.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import config

INDEX = ir.IntType(64)
_LANE = ir.IntType(32)

# For each dtype: bits of the mantissa; the exponent's bias; a q below which exp(q) rounds to 0; ln 2 as a sum of two
# numbers, of which the first times any exponent is exact; how many terms of the series of exp(r), |r| <= ln(2) / 2, are
# summed. One term more changes nothing, one less doubles the error.
_FORMATS = {
    4: (23, 127, -104.0, 0.693145751953125, 1.4286068203094172e-06, 8),
    8: (52, 1023, -746.0, 0.6931471803691238, 1.9082149292705877e-10, 14),
}


def vector_bytes() -> int:
    """The width of the machine's vectors, or of those that NUMBA_CPU_FEATURES leaves it."""
    features = config.CPU_FEATURES
    if features is None:
        features = binding.get_host_cpu_features().flatten()
    enabled = features.split(",")
    return 64 if "+avx512f" in enabled else 32 if "+avx2" in enabled else 16


class Lanes:
    """Builds instructions on vectors of ``width`` lanes of float32 or float64."""

    def __init__(self, builder: Any, dtype: np.dtype[Any], width: int) -> None:
        self.builder = builder
        self.dtype = dtype
        self.width = width
        self.real = ir.FloatType() if dtype.itemsize == 4 else ir.DoubleType()
        self.vector = ir.VectorType(self.real, width)
        self.bits = ir.VectorType(ir.IntType(8 * dtype.itemsize), width)
        self.undefined = ir.Constant(self.vector, ir.Undefined)

    def constant(self, value: float) -> Any:
        """``value`` in every lane."""
        return ir.Constant(self.vector, [ir.Constant(self.real, float(self.dtype.type(value)))] * self.width)

    def splat(self, scalar: Any) -> Any:
        """A scalar of the program in every lane."""
        first = self.builder.insert_element(self.undefined, scalar, _LANE(0))
        return self.shuffle(first, first, [0] * self.width)

    def shuffle(self, a: Any, b: Any, lanes: Sequence[int]) -> Any:
        """The vector whose lane k is lane ``lanes[k]`` of a followed by b."""
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_LANE, self.width), list(lanes)))

    def gather(self, vectors: Sequence[Any], elements: Sequence[int]) -> Any:
        """The vector whose lane k is element ``elements[k]`` of all ``vectors`` one after another."""
        width = self.width
        sources = sorted({e // width for e in elements})
        result = vectors[sources[0]]
        lanes = [e % width for e in elements]
        if len(sources) == 1:
            return result if lanes == list(range(width)) else self.shuffle(result, result, lanes)
        done = [e // width == sources[0] for e in elements]
        for count, source in enumerate(sources[1:]):
            # Lanes that are in place already stay; in the first step they come from where they are.
            pick = [
                width + e % width if e // width == source else (k if count else e % width) if done[k] else 0
                for k, e in enumerate(elements)
            ]
            result = self.shuffle(result, vectors[source], pick)
            done = [done[k] or e // width == source for k, e in enumerate(elements)]
        return result

    def sum_axis(self, vectors: Sequence[Any], size: int, inner: int) -> list[Any]:
        """Sum over the middle axis of (outer, size, inner), the elements of all ``vectors`` one after another.

        The outcome is (outer, inner) in vectors, whole ones, because outer is a multiple of ``width``. Neighbours are
        added first: of n terms that takes about 2 n shuffles, where gathering each term takes n^2.
        """
        if size == 1:
            return list(vectors)

        def term(first: int, step: int, count: int) -> list[Any]:  # (outer, count, inner): first, first + step, ...
            elements = [
                ((e // (inner * count)) * size + first + e // inner % count * step) * inner + e % inner
                for e in range(len(vectors) * self.width // size * count)
            ]
            return [self.gather(vectors, elements[k : k + self.width]) for k in range(0, len(elements), self.width)]

        half = size // 2
        pairs = map(self.builder.fadd, term(0, 2, half), term(1, 2, half))
        sums = self.sum_axis(list(pairs), half, inner)
        return sums if size % 2 == 0 else list(map(self.builder.fadd, sums, term(size - 1, 1, 1)))

    def load(self, array: Any, index: Any, mask: Any = None) -> Any:
        """The ``width`` elements from ``index``; 0 in the lanes that a mask excludes."""
        address, align = self._address(array, index), self.dtype.itemsize
        if mask is None:
            value = self.builder.load(address)
            value.align = align
            return value
        return self._call("masked.load", self.vector, address, _LANE(align), mask, self.constant(0), suffix=".p0")

    def store(self, value: Any, array: Any, index: Any, mask: Any = None) -> None:
        """Store the lanes, those that a mask includes, from ``index`` on."""
        address, align = self._address(array, index), self.dtype.itemsize
        if mask is None:
            self.builder.store(value, address).align = align
        else:
            self._call("masked.store", ir.VoidType(), value, address, _LANE(align), mask, suffix=".p0")

    def first(self, count: Any) -> Any:
        """The mask of the first ``count`` lanes, a number of the program."""
        lanes = ir.VectorType(INDEX, self.width)
        undefined = ir.Constant(lanes, ir.Undefined)
        counts = self.builder.shuffle_vector(
            self.builder.insert_element(undefined, count, _LANE(0)),
            undefined,
            ir.Constant(ir.VectorType(_LANE, self.width), [0] * self.width),
        )
        return self.builder.icmp_signed("<", ir.Constant(lanes, list(range(self.width))), counts)

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """a b + c, in one rounding where the machine has an instruction for that."""
        return self._call("fmuladd", self.vector, a, b, c)

    def sums(self, vectors: Sequence[Any]) -> Any:
        """The vector whose lane k is the sum of all lanes of ``vectors[k]``; there are ``width`` of them."""
        step = 1
        while len(vectors) > 1:
            # Neighbours a, b become one vector: at lanes without the bit `step` sums of a, at the others of b.
            own = [k if not k & step else self.width + k for k in range(self.width)]
            other = [k ^ step for k in own]
            pairs = zip(vectors[::2], vectors[1::2], strict=True)
            vectors = [self.builder.fadd(self.shuffle(a, b, own), self.shuffle(a, b, other)) for a, b in pairs]
            step *= 2
        return vectors[0]

    def sum(self, vector: Any) -> Any:
        """The sum of all lanes, as a scalar of the program."""
        half = self.width // 2
        while half:
            upper = self.shuffle(vector, vector, [(k + half) % self.width for k in range(self.width)])
            vector = self.builder.fadd(vector, upper)
            half //= 2
        return self.builder.extract_element(vector, _LANE(0))

    def exp(self, y: Any) -> Any:
        """exp(y) for y <= 0, NaN for NaN; no branch, so that all lanes go together.

        y = k ln 2 + r with a whole k and |r| <= ln(2) / 2; exp(r) is its Taylor series, and 2^k two factors made from
        exponent bits, because k reaches below the smallest exponent of a normal number.

        The largest error measured is 0.94 ulp with fused multiply-add and 1.22 ulp without: of all float32 values, and
        of 5e7 float64 values (tests/host/test_simd.py). Where the result is subnormal, it is off by one step at most.
        """
        b = self.builder
        mantissa, bias, floor, ln2_high, ln2_low, terms = _FORMATS[self.dtype.itemsize]
        # A comparison with NaN is false: NaN stays.
        y = b.select(b.fcmp_ordered("<", y, self.constant(floor)), self.constant(floor), y)
        # Adding 1.5 * 2^mantissa rounds to a whole number and leaves it in the low bits. (A conversion to integer would
        # be undefined for NaN, and AVX2 has none for float64.)
        shift = self.constant(1.5 * 2.0**mantissa)
        shifted = self.multiply_add(y, self.constant(1 / math.log(2)), shift)
        k = b.fsub(shifted, shift)
        exponent = b.sub(b.bitcast(shifted, self.bits), b.bitcast(shift, self.bits))
        r = self.multiply_add(k, self.constant(-ln2_high), y)
        r = self.multiply_add(k, self.constant(-ln2_low), r)
        result = self.constant(1 / math.factorial(terms - 1))
        for i in reversed(range(terms - 1)):
            result = self.multiply_add(result, r, self.constant(1 / math.factorial(i)))
        half = b.ashr(exponent, self._integer(1))
        for e in (half, b.sub(exponent, half)):
            power = b.shl(b.add(e, self._integer(bias)), self._integer(mantissa))
            result = b.fmul(result, b.bitcast(power, self.vector))
        return result

    def sigmoid_and_complement(self, q: Any) -> tuple[Any, Any]:
        """s = sigmoid(q) and 1 - s; see ``sigmoid_l2.kernels.reference``."""
        b = self.builder
        negative = b.fcmp_ordered("<", q, self.constant(0))
        t = self.exp(b.select(negative, q, b.fneg(q)))
        r = b.fdiv(self.constant(1), b.fadd(self.constant(1), t))
        tr = b.fmul(t, r)
        return b.select(negative, tr, r), b.select(negative, r, tr)

    def g(self, s: Any, c: Any) -> Any:
        """g = 2 s^2 (1 - s) of s and c = 1 - s."""
        return self.builder.fmul(self.builder.fmul(self.constant(2), s), self.builder.fmul(s, c))

    def _integer(self, value: int) -> Any:
        return ir.Constant(self.bits, [value] * self.width)

    def _address(self, array: Any, index: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(array, [index]), self.vector.as_pointer())

    def _call(self, name: str, result: Any, *arguments: Any, suffix: str = "") -> Any:
        name = f"llvm.{name}.v{self.width}f{8 * self.dtype.itemsize}{suffix}"
        return self.builder.call(self._declare(name, result, *(a.type for a in arguments)), arguments)

    def _declare(self, name: str, result: Any, *arguments: Any) -> Any:
        module = self.builder.module
        return module.globals.get(name) or ir.Function(module, ir.FunctionType(result, arguments), name)
