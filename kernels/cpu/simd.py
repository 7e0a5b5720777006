"""Vectors for numba: numba has no types for LLVM's vectors, so llvmlite builds their code, inside numba's intrinsics.

``VectorBuilder`` builds instructions on vectors of one width and dtype. It addresses memory by a pointer to an element
of an array and an index from there.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import config
from numba.core import cgutils

INDEX = ir.IntType(64)
_LANE = ir.IntType(32)


@cache
def vector_bytes() -> int:
    """The width of the machine's vectors, or of those that NUMBA_CPU_FEATURES allows."""
    features = config.CPU_FEATURES
    if features is None:
        features = binding.get_host_cpu_features().flatten()
    enabled = features.split(",")
    return 64 if "+avx512f" in enabled else 32 if "+avx2" in enabled else 16


@cache
def lane_count(dtype: np.dtype[Any]) -> int:
    """How many elements of ``dtype`` a vector of the machine holds."""
    return vector_bytes() // dtype.itemsize


class VectorBuilder:
    """Builds instructions on vectors of ``width`` lanes of float32 or float64."""

    def __init__(self, builder: Any, dtype: np.dtype[Any], width: int) -> None:
        self.builder = builder
        self.dtype = dtype
        self.width = width
        self.real = ir.FloatType() if dtype.itemsize == 4 else ir.DoubleType()
        self.vector = ir.VectorType(self.real, width)
        self.integers = ir.VectorType(ir.IntType(8 * dtype.itemsize), width)

    def align_stack(self) -> None:
        """Let LLVM align the stack to vectors.

        Otherwise three processes in four have the vectors that a kernel spills across two cache lines: tiny pairs of
        8x8 and 12x12 took 25 to 30 % longer in those.
        """
        self.builder.function.attributes.alignstack = self.width * self.dtype.itemsize
        # llvmlite leaves alignstack out where there is no other attribute.
        self.builder.function.attributes.add("nounwind")

    def constant(self, value: float) -> Any:
        """``value`` in every lane."""
        return ir.Constant(self.vector, [ir.Constant(self.real, float(self.dtype.type(value)))] * self.width)

    def integer(self, value: int) -> Any:
        """``value`` in every lane of a vector of integers as wide as the real numbers."""
        return ir.Constant(self.integers, [value] * self.width)

    def broadcast(self, scalar: Any) -> Any:
        """The LLVM value ``scalar`` in every lane."""
        undefined = ir.Constant(ir.VectorType(scalar.type, self.width), ir.Undefined)
        lane_0 = self.builder.insert_element(undefined, scalar, _LANE(0))
        return self.shuffle(lane_0, lane_0, [0] * self.width)

    def shuffle(self, a: Any, b: Any, lanes: Sequence[int]) -> Any:
        """The vector whose lane k is lane ``lanes[k]`` of a followed by b."""
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_LANE, self.width), list(lanes)))

    def joiner(self, offset: Any) -> Callable[[Any, Any], Any]:
        """A function of vectors a and b: the last ``offset`` lanes of a, then the first ones of b.

        ``offset`` is an LLVM value; constant lanes would need code for each offset. AVX-512 shuffles two vectors by
        such lanes, AVX2 one vector.
        """
        b, bits = self.builder, 8 * self.dtype.itemsize
        numbers = ir.Constant(self.integers, list(range(self.width)))
        if self.width * bits == 512:
            name = f"x86.avx512.vpermi2var.p{'s' if bits == 32 else 'd'}.512"
            lanes = b.add(numbers, self.broadcast(self._lane(b.sub(INDEX(self.width), offset))))
            return lambda before, after: self._call_named(name, self.vector, before, lanes, after)

        words, word = ir.VectorType(ir.FloatType(), 8), ir.VectorType(_LANE, 8)
        first_word = b.trunc(b.mul(offset, INDEX(bits // 32)), _LANE)
        lanes = b.sub(ir.Constant(word, list(range(8))), VectorBuilder(b, np.dtype("f4"), 8).broadcast(first_word))

        def rotated(vector: Any) -> Any:  # as words of 32 bits; the shuffle takes lanes modulo 8
            return b.bitcast(self._call_named("x86.avx2.permps", words, b.bitcast(vector, words), lanes), self.vector)

        is_before = self.mask_first(offset)
        return lambda before, after: b.select(is_before, rotated(before), rotated(after))

    def take(self, vectors: Sequence[Any], elements: Sequence[int]) -> list[Any]:
        """Vectors that hold ``elements``, in that order; the elements of ``vectors`` are numbered one after another.

        The last element is repeated up to the end of its vector.
        """
        width = self.width
        chunks = [list(elements[k : k + width]) for k in range(0, len(elements), width)]
        return [self._take_one(vectors, c + c[-1:] * (width - len(c))) for c in chunks]

    def _take_one(self, vectors: Sequence[Any], elements: Sequence[int]) -> Any:
        width = self.width
        sources = sorted({e // width for e in elements})
        result = vectors[sources[0]]
        lanes = [e % width for e in elements]
        if len(sources) == 1:
            return result if lanes == list(range(width)) else self.shuffle(result, result, lanes)
        done = [e // width == sources[0] for e in elements]
        for count, source in enumerate(sources[1:]):
            # The first shuffle moves the lanes of the first source into place; later ones keep what is in place.
            pick = [
                width + e % width if e // width == source else (k if count else e % width) if done[k] else 0
                for k, e in enumerate(elements)
            ]
            result = self.shuffle(result, vectors[source], pick)
            done = [done[k] or e // width == source for k, e in enumerate(elements)]
        return result

    def products(self, a: Iterable[Any], b: Iterable[Any]) -> Iterator[Any]:
        """a[k] b[k] for each k. Built lazily: a product that is stored at once frees its register."""
        return map(self.builder.fmul, a, b)

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """a b + c, rounded once where the machine has an instruction for that."""
        return self._call("fmuladd", self.vector, a, b, c)

    def absolute(self, a: Any) -> Any:
        """|a|."""
        return self._call("fabs", self.vector, a)

    @property
    def can_scale(self) -> bool:
        """Whether there is ``scale``."""
        return self.width * self.dtype.itemsize == vector_bytes() == 64

    def scale(self, a: Any, exponent: Any) -> Any:
        """a times 2^exponent, rounded once; the exponents are integers in real lanes."""
        name = f"x86.avx512.mask.scalef.p{'s' if self.dtype.itemsize == 4 else 'd'}.512"
        all_lanes, as_usual = ir.IntType(self.width)(-1), _LANE(4)
        return self._call_named(name, self.vector, a, exponent, a, all_lanes, as_usual)

    def sum_lanes(self, vector: Any) -> Any:
        """The sum of all lanes, as a scalar."""
        half = self.width // 2
        while half:
            upper = self.shuffle(vector, vector, [(k + half) % self.width for k in range(self.width)])
            vector = self.builder.fadd(vector, upper)
            half //= 2
        return self.builder.extract_element(vector, _LANE(0))

    def sum_lanes_of_each(self, vectors: Sequence[Any]) -> Any:
        """The vector whose lane k is the sum of all lanes of ``vectors[k]``, of ``width`` vectors."""
        step = 1
        while len(vectors) > 1:
            # Neighbours a, b become one vector: lanes whose number has the bit `step` get sums of b, the others of a.
            own = [k if not k & step else self.width + k for k in range(self.width)]
            other = [k ^ step for k in own]
            pairs = zip(vectors[::2], vectors[1::2], strict=True)
            vectors = [self.builder.fadd(self.shuffle(a, b, own), self.shuffle(a, b, other)) for a, b in pairs]
            step *= 2
        return vectors[0]

    def transposed(self, vectors: Sequence[Any]) -> list[Any]:
        """The vectors whose k-th one has lane k of each of ``vectors``, which are ``width``."""
        result, step = list(vectors), 1
        while step < self.width:
            # Exchange, in the number of the vector and in that of the lane, the bit `step`.
            stay = [k if not k & step else self.width + (k ^ step) for k in range(self.width)]
            move = [k | step if not k & step else self.width + k for k in range(self.width)]
            for k in range(self.width):
                if not k & step:
                    a, b = result[k], result[k | step]
                    result[k], result[k | step] = self.shuffle(a, b, stay), self.shuffle(a, b, move)
            step *= 2
        return result

    def sum_axis(self, vectors: Iterable[Any], shape: tuple[int, int, int]) -> list[Any]:
        """Sum over the middle axis of (outer, size, inner), the shape of the elements of ``vectors``.

        The result is (outer, inner); where it ends within a vector, any numbers follow. Neighbours are added first,
        which takes about 2 n shuffles for n terms; to gather each term by itself would take n^2.
        """
        outer, size, inner = shape
        vectors = list(vectors)
        if size == 1:
            return vectors
        elements = np.arange(outer * size * inner).reshape(shape)

        def terms(first: int, end: int) -> list[Any]:  # every second term of first..end
            return self.take(vectors, elements[:, first:end:2].flatten().tolist())

        pairs = map(self.builder.fadd, terms(0, size - 1), terms(1, size))
        sums = self.sum_axis(pairs, (outer, size // 2, inner))
        return sums if size % 2 == 0 else list(map(self.builder.fadd, sums, terms(size - 1, size)))

    def mask_first(self, count: Any) -> Any:
        """The mask that includes the first ``count`` lanes; ``count`` is an LLVM value."""
        numbers = ir.Constant(self.integers, list(range(self.width)))
        return self.builder.icmp_signed("<", numbers, self.broadcast(self._lane(count)))

    def _lane(self, number: Any) -> Any:
        """An index, which must be small, as an integer as wide as the real numbers."""
        lane = self.integers.element
        return number if number.type == lane else self.builder.trunc(number, lane)

    def at(self, array: Any, index: Any) -> Any:
        """The pointer to element ``index``, which is also the array from there on."""
        return self.builder.gep(array, [index])

    def load(self, array: Any, index: Any, mask: Any = None) -> Any:
        """The ``width`` elements from ``index`` on; 0 in the lanes that a mask excludes."""
        address, align = self._address(array, index), self.dtype.itemsize
        if mask is None:
            value = self.builder.load(address)
            value.align = align
            return value
        return self._call("masked.load", self.vector, address, _LANE(align), mask, self.constant(0), suffix=".p0")

    def stream(self, value: Any, array: Any, index: Any) -> None:
        """Store the lanes past the caches, from ``index`` on, which is a multiple of a vector's size in memory."""
        store = self.builder.store(value, self._address(array, index))
        store.align = self.width * self.dtype.itemsize
        store.set_metadata("nontemporal", self.builder.module.add_metadata([_LANE(1)]))

    def part_of_line(self, array: Any) -> Any:
        """How many elements are between the begin of ``array`` and the multiple of a vector's size before it."""
        address = self.builder.ptrtoint(array, INDEX)
        element = self.builder.lshr(address, INDEX(self.dtype.itemsize.bit_length() - 1))
        return self.builder.and_(element, INDEX(self.width - 1))

    def prefetch(self, array: Any, index: Any, level: int = 1) -> None:
        """Bring the line at ``index`` to the cache of a level, 1 or 2; one outside of all memory does no harm."""
        address = self.builder.bitcast(self.at(array, index), ir.IntType(8).as_pointer())
        self._call_named("prefetch.p0", ir.VoidType(), address, _LANE(0), _LANE(4 - level), _LANE(1))

    def fence(self) -> None:
        """Let what was streamed be seen by other threads before what is stored from here on."""
        self._call_named("x86.sse.sfence", ir.VoidType())

    def store(self, value: Any, array: Any, index: Any, mask: Any = None) -> None:
        """Store the lanes, only those that a mask includes, from ``index`` on."""
        address, align = self._address(array, index), self.dtype.itemsize
        if mask is None:
            self.builder.store(value, address).align = align
        else:
            self._call("masked.store", ir.VoidType(), value, address, _LANE(align), mask, suffix=".p0")

    def load_block(self, array: Any, count: int, masks: Sequence[Any] | None = None) -> list[Any]:
        """The first ``count`` vectors of an array, each with its mask."""
        return [self.load(array, INDEX(k * self.width), masks and masks[k]) for k in range(count)]

    def store_block(self, vectors: Iterable[Any], array: Any, masks: Sequence[Any] | None = None) -> None:
        """Store vectors one after another from the start of an array, each with its mask."""
        for k, vector in enumerate(vectors):
            self.store(vector, array, INDEX(k * self.width), masks and masks[k])

    def _address(self, array: Any, index: Any) -> Any:
        return self.builder.bitcast(self.at(array, index), self.vector.as_pointer())

    def _call(self, name: str, result: Any, *arguments: Any, suffix: str = "") -> Any:
        return self._call_named(f"{name}.v{self.width}f{8 * self.dtype.itemsize}{suffix}", result, *arguments)

    def _call_named(self, name: str, result: Any, *arguments: Any) -> Any:
        type_ = ir.FunctionType(result, [a.type for a in arguments])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, type_, f"llvm.{name}"), arguments)
