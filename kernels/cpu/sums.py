"""Sums over any number of rows that stay as good as a sum over few: the error of each addition is summed as well."""

from collections.abc import Sequence
from typing import Any

from numba.core import cgutils

from sigmoid_l2.kernels.cpu.simd import INDEX, VectorBuilder


def add_exactly(b: Any, total: Any, term: Any) -> tuple[Any, Any]:
    """total + term, and its rounding error (Knuth's TwoSum)."""
    high = b.fadd(total, term)
    added = b.fsub(high, total)
    return high, b.fadd(b.fsub(total, b.fsub(high, added)), b.fsub(term, added))


def with_errors(b: Any, high: Any, low: Any) -> Any:
    """high + low, where low is the sum of the errors; high alone where it is infinite, because low is NaN then."""
    return b.select(b.fcmp_ordered("ord", low, low), b.fadd(high, low), high)


class Total:
    """A sum of vectors, each lane on its own."""

    def __init__(self, v: VectorBuilder) -> None:
        self.v = v
        self.high, self.low = (cgutils.alloca_once(v.builder, v.vector) for _ in range(2))

    def begin(self, term: Any) -> None:
        """Begin anew, with a vector."""
        self.v.builder.store(term, self.high)
        self.v.builder.store(self.v.constant(-0.0), self.low)  # LLVM leaves out an addition of -0

    def add(self, term: Any) -> None:
        """Add a vector."""
        b = self.v.builder
        high, error = add_exactly(b, b.load(self.high), term)
        b.store(high, self.high)
        b.store(b.fadd(b.load(self.low), error), self.low)

    def value(self) -> Any:
        """The sums."""
        b = self.v.builder
        return with_errors(b, b.load(self.high), b.load(self.low))


class RowTotal:
    """The sum of rows of n elements, vector by vector.

    ``memory`` has room for 2 (n + lanes) elements: two rows that begin on a line, without which 256x256 took 1.05 times
    as long. ``to`` has room for the sum.
    """

    def __init__(self, v: VectorBuilder, n: Any, memory: Any, to: Any, is_first: Any, is_last: Any) -> None:
        b, lanes = v.builder, INDEX(v.width)
        self.v, self.to = v, to
        self.high = v.at(memory, b.sub(lanes, v.part_of_line(memory)))
        self.low = v.at(self.high, b.sub(b.add(n, lanes), b.urem(n, lanes)))
        self.is_first, self.is_last = is_first, is_last  # whether what is added is the first row, and the last

    def add(self, term: Any, j: Any, mask: Any) -> None:
        """Add the vector ``term`` to the columns from j on."""
        v, b = self.v, self.v.builder
        with b.if_else(self.is_first) as (begins, goes_on):
            with begins:
                self._store(term, v.constant(0), term, j, mask)
            with goes_on:
                high, error = add_exactly(b, v.load(self.high, j, mask), term)
                low = b.fadd(v.load(self.low, j, mask), error)
                self._store(high, low, with_errors(b, high, low), j, mask)

    def _store(self, high: Any, low: Any, total: Any, j: Any, mask: Any) -> None:
        v = self.v
        with v.builder.if_else(self.is_last) as (ends, goes_on):
            with ends:
                v.store(total, self.to, j, mask)
            with goes_on:
                v.store(high, self.high, j, mask)
                v.store(low, self.low, j, mask)


class LaneTotal:
    """Sums of vectors, each lane on its own: over the blocks of a chain, and then over chains."""

    def __init__(self, v: VectorBuilder) -> None:
        self.v, self.total = v, Total(v)
        self.chain = cgutils.alloca_once(v.builder, v.vector)

    def clear(self) -> None:
        """Begin a chain."""
        self.v.builder.store(self.v.constant(0), self.chain)

    def add_products(self, a: Sequence[Any], c: Sequence[Any]) -> None:
        """Add the products a[k] c[k] of a block to the chain."""
        v, chain = self.v, self.v.builder.load(self.chain)
        chain = v.builder.fadd(chain, sum_products(v, a, c)) if len(a) > 1 else v.multiply_add(a[0], c[0], chain)
        v.builder.store(chain, self.chain)

    def begin(self) -> None:
        """Take the first chain."""
        self.total.begin(self.v.builder.load(self.chain))
        self.clear()

    def go_on(self) -> None:
        """Take a further chain."""
        self.total.add(self.v.builder.load(self.chain))
        self.clear()

    def value(self) -> Any:
        """The sums over the chains taken."""
        return self.total.value()


def sum_products(v: VectorBuilder, a: Sequence[Any], c: Sequence[Any]) -> Any:
    """The sum of the products a[k] c[k], as a tree: for 2^k terms k roundings, beside that of a product."""
    if len(a) == 1:
        return v.builder.fmul(a[0], c[0])
    if len(a) == 2:
        return v.multiply_add(a[1], c[1], v.builder.fmul(a[0], c[0]))
    half = (len(a) + 1) // 2
    return v.builder.fadd(sum_products(v, a[:half], c[:half]), sum_products(v, a[half:], c[half:]))
