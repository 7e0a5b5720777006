"""The sums of dW over the units of a batch, for one W and many x.

A unit leaves, for each tile, the high parts of its sums and then the low parts, which are the errors of the additions.
The units are added in their order, again with the error of each addition, so that the order depends on shapes alone.
"""

from functools import cache
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core import cgutils

from sigmoid_l2.kernels.cpu.compile import compile_function, vector_code
from sigmoid_l2.kernels.cpu.loops import for_columns
from sigmoid_l2.kernels.cpu.simd import INDEX, VectorBuilder
from sigmoid_l2.kernels.cpu.sums import Total, with_errors

# Sums that stay in registers while the units pass, in vectors.
COLUMNS = 4


@vector_code()
def add_tiles(
    v: VectorBuilder, units: Any, room: Any, count: Any, totals: Any, first: Any, last: Any, tile: Any, is_last: Any
) -> None:
    """Add the tiles first..last of ``count`` units to ``totals``; a tile has ``tile`` sums, a unit ``room`` elements.

    The last time, the high parts of the totals get the low parts.
    """
    b = v.builder
    with cgutils.for_range_slice(b, first, last, INDEX(1), intp=INDEX) as (number, _):
        at = b.mul(number, b.add(tile, tile))

        def add(j: Any, vectors: int, mask: Any, at: Any = at) -> None:
            highs = [b.add(at, b.add(j, INDEX(u * v.width))) for u in range(vectors)]
            sums = [Total(v) for _ in highs]
            for high, total in zip(highs, sums, strict=True):
                b.store(v.load(totals, high, mask), total.high)
                b.store(v.load(totals, b.add(high, tile), mask), total.low)
            with cgutils.for_range(b, count, intp=INDEX) as unit:
                of_unit = v.at(units, b.mul(unit.index, room))
                for high, total in zip(highs, sums, strict=True):
                    total.add(with_errors(b, v.load(of_unit, high, mask), v.load(of_unit, b.add(high, tile), mask)))
            for high, total in zip(highs, sums, strict=True):
                v.store(b.select(is_last, total.value(), b.load(total.high)), totals, high, mask)
                v.store(b.load(total.low), totals, b.add(high, tile), mask)

        for_columns(v, tile, COLUMNS, add)


@cache
def sums_kernel(dtype: np.dtype[Any]) -> Any:
    """The compiled function ``add_tiles``, for units (number, room)."""

    def shared_sums(units: Any, count: int, totals: Any, first: int, last: int, tile: int, is_last: bool) -> None:
        add_tiles(units, units.shape[1], count, totals, first, last, tile, is_last)

    real = numba.from_dtype(dtype)
    integers = (types.int64,) * 3
    signature = types.void(real[:, ::1], types.int64, real[::1], *integers, types.boolean)
    return compile_function(shared_sums, f"shared_sums_{dtype}", signature)
