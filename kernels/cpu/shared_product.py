"""Products of matrices, for one W and many x: a tile of the result stays in registers while the terms of its sums pass.

A tile has some rows of some vectors. For each term k it loads the vectors of the second factor and, one after another,
the elements of the first, each into every lane.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from sigmoid_l2.kernels.cpu.loops import minimum
from sigmoid_l2.kernels.cpu.simd import INDEX, VectorBuilder

# Terms that one chain of additions may have: m/2 eps, which the contract allows, is no more than ceil(log2 m) + 1 then.
MOST_IN_CHAIN = 10
# Chains of a sum, at most, as a power of two.
MOST_LEVELS = 24


class Tile:
    """``rows`` rows of ``vectors`` vectors of sums."""

    def __init__(self, v: VectorBuilder, rows: int, vectors: int) -> None:
        b = v.builder
        self.v, self.rows, self.vectors = v, rows, vectors
        self.sums = [cgutils.alloca_once(b, v.vector) for _ in range(rows * vectors)]

    def clear(self) -> None:
        """Begin sums."""
        for total in self.sums:
            self.v.builder.store(self.v.constant(0), total)

    def load(self, source: Any) -> None:
        """Take sums from memory, row after row."""
        for total, vector in zip(self.sums, self.v.load_block(source, len(self.sums)), strict=True):
            self.v.builder.store(vector, total)

    def store(self, to: Any) -> None:
        """Store the sums, row after row."""
        self.v.store_block(map(self.v.builder.load, self.sums), to)

    def add_products(self, count: Any, a: Any, row_step: int, k_step: int, c: Any) -> None:
        """Add a[r, k] c[k] for each k below ``count``, which is not 0.

        Element (r, k) of the first factor is ``r row_step + k k_step`` elements after ``a``; ``c`` has the rows of the
        second factor one after another, each as long as those of the tile.
        """
        v, b = self.v, self.v.builder
        # A loop that runs at least once: its results come from it alone, so LLVM keeps them in the registers that it
        # adds to. For 10x784 it moved all of them in each step of a loop that might not run.
        before, body, after = b.block, b.append_basic_block("products"), b.append_basic_block("sums")
        b.branch(body)
        b.position_at_end(body)
        k = b.phi(INDEX)
        k.add_incoming(INDEX(0), before)
        at = b.mul(k, INDEX(self.vectors * v.width))
        c_k = [v.load(c, b.add(at, INDEX(u * v.width))) for u in range(self.vectors)]
        at = b.mul(k, INDEX(k_step))
        for r in range(self.rows):
            a_rk = v.broadcast(b.load(v.at(a, b.add(at, INDEX(r * row_step)))))
            for total, c_ku in zip(self.of_row(r), c_k, strict=True):
                b.store(v.multiply_add(a_rk, c_ku, b.load(total)), total)
        next_k = b.add(k, INDEX(1))
        k.add_incoming(next_k, b.block)
        b.cbranch(b.icmp_signed("<", next_k, count), body, after)
        b.position_at_end(after)

    def of_row(self, r: int) -> Sequence[Any]:
        """The sums of a row."""
        return self.sums[r * self.vectors : (r + 1) * self.vectors]

    def sum_chains(self, count: Any, add_chain: Callable[[Any], None], fours: bool = False) -> None:
        """Sum over ``count`` chains: ``add_chain(k)`` adds the k-th. The chains' sums are added as a balanced tree.

        When chain k begins, there is a sum of 2^l chains for each bit l that is set in k, one after another in memory.
        It goes behind them, and is added to those whose bits an addition of 1 clears; the last one to all of them.
        They are in memory only, because LLVM else keeps no sums in registers while the terms of a chain pass.

        ``fours``: the code has four chains in a row, which takes fewer of these steps.
        """
        v, b, size = self.v, self.v.builder, len(self.sums)
        memory = cgutils.alloca_once(b, v.vector, INDEX((MOST_LEVELS + 3) * size))
        memory = b.bitcast(memory, v.real.as_pointer())
        of_four = INDEX(4 if fours else 1)
        done = INDEX(0)
        if fours:
            done = b.and_(count, INDEX(-4))
            with cgutils.for_range_slice(b, INDEX(0), done, of_four, intp=INDEX) as (k, _):
                self._sum_four(k, add_chain, v.at(memory, INDEX((MOST_LEVELS + 1) * size * v.width)))
                self._take_sum(memory, b.lshr(k, INDEX(2)), b.icmp_signed("==", b.add(k, of_four), count))
        with cgutils.for_range_slice(b, done, count, INDEX(1), intp=INDEX) as (k, _):
            self.clear()
            add_chain(k)
            self._take_sum(memory, k, b.icmp_signed("==", b.add(k, INDEX(1)), count))
        self.load(memory)

    def _sum_four(self, k: Any, add_chain: Callable[[Any], None], memory: Any) -> None:
        """Sum chain k and the three after it; ``memory`` has room for two sums."""
        v, b, size = self.v, self.v.builder, len(self.sums)
        places = [memory, v.at(memory, INDEX(size * v.width))]

        def add(place: Any) -> None:
            for total, term in zip(self.sums, v.load_block(place, size), strict=True):
                b.store(b.fadd(term, b.load(total)), total)

        for i in range(4):
            self.clear()
            add_chain(b.add(k, INDEX(i)))
            if i == 1 or i == 3:
                add(places[i // 2])
            if i == 3:
                add(places[0])
            else:
                self.store(places[i // 2])

    def _take_sum(self, memory: Any, k: Any, is_last: Any) -> None:
        """Take the k-th sum of as many chains: add it to those before, as ``sum_chains`` says."""
        v, b, size = self.v, self.v.builder, len(self.sums)
        step, false = INDEX(size * v.width), ir.Constant(ir.IntType(1), 0)
        waiting = b.ctpop(k)
        additions = b.select(is_last, waiting, b.cttz(b.not_(k), false))
        before = v.at(memory, b.mul(b.sub(waiting, INDEX(1)), step))
        with b.if_else(b.icmp_signed(">", additions, INDEX(0))) as (adds, waits):
            with adds:
                v.store_block(map(b.fadd, v.load_block(before, size), map(b.load, self.sums)), before)
            with waits:
                self.store(v.at(before, step))
        with cgutils.for_range_slice(b, INDEX(1), additions, INDEX(1), intp=INDEX) as (addition, _):
            to = v.at(before, b.mul(addition, INDEX(-size * v.width)))
            for i in range(size):
                both = v.load(to, INDEX(i * v.width)), v.load(to, INDEX((size + i) * v.width))
                v.store(b.fadd(*both), to, INDEX(i * v.width))


def roundings_of_chains(terms: int, chain: int) -> int:
    """How often a term is rounded in ``sum_chains``, beside its product."""
    return min(chain, terms) - 1 + (-(-terms // chain) - 1).bit_length()


def allowed_roundings(terms: int) -> int:
    """How often a term of a sum may be rounded, by eps/2: the contract allows (ceil(log2 terms) + 1) eps."""
    return 2 * (terms - 1).bit_length() + 2


@lru_cache
def chains_of_panel(m: int, panel: int, rows: int) -> int:
    """How many chains each panel of a sum of dx has, with a tree for ``rows`` rows and a tree of these.

    They are as few as the contract allows, and none of them is empty.
    """
    most = min(allowed_roundings(m), m)
    size, trees = min(m, rows), -(-m // rows)
    for chains in range(1, panel):
        length = -(-panel // chains)
        count = size // panel * chains + -(-(size % panel) // length)
        roundings = min(length, m) - 1 + (count - 1).bit_length() + (trees - 1).bit_length()
        if (chains - 1) * length < panel and roundings <= most:
            return chains
    return panel


def least(b: Any, *numbers: Any) -> Any:
    """The smallest of numbers."""
    result, *others = numbers
    for number in others:
        result = minimum(b, result, number)
    return result
