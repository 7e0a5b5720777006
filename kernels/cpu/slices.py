"""Large pairs are cut into slices of rows, which threads compute side by side; here, how, and the sums over slices."""

from functools import cache
from typing import Any

import numpy as np
from numba.core import cgutils

from sigmoid_l2.kernels import Given
from sigmoid_l2.kernels.cpu.compile import compile_kernel, vector_code
from sigmoid_l2.kernels.cpu.loops import for_columns
from sigmoid_l2.kernels.cpu.simd import INDEX, VectorBuilder
from sigmoid_l2.kernels.cpu.sums import Total

# Size of a slice: at least so many bytes of W and so many rows, of which it has a multiple. Its own loss and dx, which
# are written and read once more, must be little beside its W and dW.
SLICE_BYTES, SLICE_ROWS = 1 << 19, 32
# Slices of a pair, at most, where they have less than MOST_ROWS: enough for as many threads.
SLICES = 64
# Size of a slice, in rows, at most; a longer pair has more slices. The errors of a sum's additions are added up with
# errors of their own, which grow with the square of their number: 2^18 equal terms of float32 are off by 54 eps.
MOST_ROWS = 1 << 17
# Columns whose sums over slices stay in registers, in vectors.
COLUMNS = 4
# Columns that a thread adds at a time.
SUM_COLUMNS = 1024


def rows_of_slice(m: int, n: int, itemsize: int) -> int:
    """How many rows each slice of a pair has, but the last, which has what is left; m where a pair is not cut.

    It does not depend on the number of threads: the order of the sums must not.
    """
    rows = min(max(SLICE_BYTES // (n * itemsize), -(-m // SLICES), 1), MOST_ROWS)
    rows = -(-rows // SLICE_ROWS) * SLICE_ROWS
    return rows if m >= 2 * rows else m


@vector_code()
def add_rows(v: VectorBuilder, terms: Any, at: Any, rows: Any, n: Any, sums: Any, sums_at: Any, columns: Any) -> None:
    """Store the sums of ``columns`` columns over rows of n elements, from element ``at`` of ``terms`` on."""
    b = v.builder
    terms, sums = v.at(terms, at), v.at(sums, sums_at)

    def add_columns(j: Any, vectors: int, mask: Any) -> None:
        at = [b.add(j, INDEX(k * v.width)) for k in range(vectors)]
        totals = [Total(v) for _ in at]
        for k, total in zip(at, totals, strict=True):
            total.begin(v.load(terms, k, mask))
        with cgutils.for_range_slice(b, INDEX(1), rows, INDEX(1), intp=INDEX) as (row, _):
            for k, total in zip(at, totals, strict=True):
                total.add(v.load(terms, b.add(b.mul(row, n), k), mask))
        for k, total in zip(at, totals, strict=True):
            v.store(total.value(), sums, k, mask)

    for_columns(v, columns, COLUMNS, add_columns)


@cache
def sums_kernel(dtype: np.dtype[Any]) -> Any:
    """The compiled function that adds the losses x (B, slices) and the dx W (B, slices, n) of slices.

    Its units are not slices but parts of pairs, of ``slice_rows`` columns.
    """

    def sums(
        W: Any,
        x: Any,
        target: Any,
        cotangent: Any,
        loss: Any,
        dW: Any,
        dx: Any,
        dq: Any,
        first: int,
        last: int,
        slice_rows: int,
        streams: bool,
    ) -> None:
        slices, n = W.shape[1:]
        parts = (n + slice_rows - 1) // slice_rows
        for number in range(first, last):
            pair = number // parts
            j = (number - pair * parts) * slice_rows
            if loss is not None and j == 0:
                add_rows(x, pair * slices, slices, 1, loss, pair, 1)
            if dx is not None:
                add_rows(W, pair * slices * n + j, slices, n, dx, pair * n + j, min(slice_rows, n - j))

    return compile_kernel(sums, "sums", dtype, Given(False, False))
