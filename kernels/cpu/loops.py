"""Loops over the rows and the columns of a matrix."""

from collections.abc import Callable, Sequence
from typing import Any

from numba.core import cgutils

from sigmoid_l2.kernels.cpu.simd import INDEX, VectorBuilder


def for_groups(b: Any, count: Any, sizes: Sequence[int], step: Callable[[Any, int], None]) -> Any:
    """Build ``step(first, size)`` for groups of the numbers below ``count``; return the first that is in none.

    There are as many groups of the first size as fit, then of the next one.
    """
    begin = INDEX(0)
    for size in sizes:
        end = b.sub(count, b.urem(b.sub(count, begin), INDEX(size)))
        with cgutils.for_range_slice(b, begin, end, INDEX(size), intp=INDEX) as (first, _):
            step(first, size)
        begin = end
    return begin


def for_columns(v: VectorBuilder, n: Any, vectors: int, step: Callable[[Any, int, Any], None]) -> None:
    """Build ``step(j, count, mask)`` for ``count`` vectors of a row of n, from column j on.

    First ``vectors`` vectors at a time, then single ones, both without a mask, and the rest with one.
    """
    b, width = v.builder, v.width
    sizes = sorted({vectors * width, width}, reverse=True)
    j = for_groups(b, n, sizes, lambda first, size: step(first, size // width, None))
    rest = b.sub(n, j)
    with b.if_then(b.icmp_signed(">", rest, INDEX(0))):
        step(j, 1, v.mask_first(rest))


def minimum(b: Any, a: Any, c: Any) -> Any:
    """The smaller one of two numbers."""
    return b.select(b.icmp_signed("<", a, c), a, c)


def maximum(b: Any, a: Any, c: Any) -> Any:
    """The larger one of two numbers."""
    return b.select(b.icmp_signed("<", a, c), c, a)
