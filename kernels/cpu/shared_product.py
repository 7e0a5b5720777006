"""Products of matrices, for one W and many x: a tile of the result stays in registers while the terms of its sums pass.

A tile has some rows of some vectors. For each term k it loads the vectors of the second factor and, one after another,
the elements of the first, each into every lane.
"""

from collections.abc import Callable, Sequence
from typing import Any

from numba.core import cgutils

from sigmoid_l2.kernels.cpu.loops import minimum
from sigmoid_l2.kernels.cpu.simd import INDEX, VectorBuilder

# Chains of a sum, at most, as a power of two.
MOST_LEVELS = 24


class Tile:
    """``rows`` rows of ``vectors`` vectors of sums."""

    def __init__(self, v: VectorBuilder, rows: int, vectors: int) -> None:
        b = v.builder
        self.v, self.rows, self.vectors = v, rows, vectors
        self.sums = [cgutils.alloca_once(b, v.vector) for _ in range(rows * vectors)]
        self.memory: Any = None

    def clear(self) -> None:
        """Begin sums."""
        for total in self.sums:
            self.v.builder.store(self.v.constant(0), total)

    def add_products(self, count: Any, a: Any, row_step: int, k_step: int, c: Any) -> None:
        """Add a[r, k] c[k] for each k below ``count``.

        Element (r, k) of the first factor is ``r row_step + k k_step`` elements after ``a``; ``c`` has the rows of the
        second factor one after another, each as long as those of the tile.
        """
        v, b = self.v, self.v.builder
        with cgutils.for_range(b, count, intp=INDEX) as loop:
            at = b.mul(loop.index, INDEX(self.vectors * v.width))
            c_k = [v.load(c, b.add(at, INDEX(u * v.width))) for u in range(self.vectors)]
            at = b.mul(loop.index, INDEX(k_step))
            for r in range(self.rows):
                a_rk = v.broadcast(b.load(v.at(a, b.add(at, INDEX(r * row_step)))))
                for total, c_ku in zip(self.of_row(r), c_k, strict=True):
                    b.store(v.multiply_add(a_rk, c_ku, b.load(total)), total)

    def of_row(self, r: int) -> Sequence[Any]:
        """The sums of a row."""
        return self.sums[r * self.vectors : (r + 1) * self.vectors]

    def sum_chains(self, count: Any, add_chain: Callable[[Any], None]) -> None:
        """Sum over ``count`` chains: ``add_chain(k)`` adds the k-th. The chains' sums are added as a balanced tree.

        When chain k is complete, so are the sums of 2^l chains for each l whose bit is set in k. The tree needs room
        for these alone.
        """
        v, b = self.v, self.v.builder
        size = len(self.sums)
        memory = cgutils.alloca_once(b, v.vector, INDEX(MOST_LEVELS * size))
        last = b.sub(count, INDEX(1))
        with cgutils.for_range(b, count, intp=INDEX) as loop:
            self.clear()
            add_chain(loop.index)
            # The last chain takes all that is left, another the sums that it completes.
            is_last = b.icmp_signed("==", loop.index, last)
            full = b.cttz(b.not_(loop.index), INDEX.__class__(1)(0))
            bits = b.sub(INDEX(64), b.ctlz(loop.index, INDEX.__class__(1)(0)))
            levels = b.select(is_last, bits, full)
            with cgutils.for_range(b, levels, intp=INDEX) as level:
                is_set = b.trunc(b.lshr(loop.index, level.index), INDEX.__class__(1))
                at = b.gep(memory, [b.mul(level.index, INDEX(size))])
                with b.if_then(is_set):
                    for k, total in enumerate(self.sums):
                        b.store(b.fadd(b.load(b.gep(at, [INDEX(k)])), b.load(total)), total)
            with b.if_then(b.not_(is_last)):
                at = b.gep(memory, [b.mul(levels, INDEX(size))])
                for k, total in enumerate(self.sums):
                    b.store(b.load(total), b.gep(at, [INDEX(k)]))


def roundings_of_chains(terms: int, chain: int) -> int:
    """How often a term is rounded in ``sum_chains``, beside its product."""
    return min(chain, terms) - 1 + (-(-terms // chain) - 1).bit_length()


def allowed_roundings(terms: int) -> int:
    """How often the contract lets a term of a sum be rounded: by (ceil(log2 terms) + 1) eps, and a rounding has eps/2."""
    return 2 * (terms - 1).bit_length() + 2


def least(b: Any, *numbers: Any) -> Any:
    """The smallest of numbers."""
    result, *others = numbers
    for number in others:
        result = minimum(b, result, number)
    return result
