"""The CPU kernel: one pass over W, compiled by numba, on all cores.

The derivation is in ``sigmoid_l2.kernels.reference``. A thread owns a range of pairs and goes through each pair row by
row: row i of W gives q_i, hence g_i, hence row i of dW and row i's part of dx, while the row is in cache. Sums run in
index order in the arrays' dtype, so a pair's bits depend on nothing but the pair.
"""

import math
from typing import Any

import numpy as np
from numba import njit

from sigmoid_l2.threads import for_ranges


@njit(nogil=True, error_model="numpy")
def _pairs(W: Any, x: Any, loss: Any, dW: Any, dx: Any, first: int, last: int) -> None:
    """Pairs first..last of W (B, m, n), x (B, n), loss (B,), dW (B, m, n), dx (B, n); an output may be None."""
    m, n = W.shape[1:]
    real = W.dtype.type  # constants of the arrays' dtype: a plain 1.0 would make numba compute in float64
    one, two = real(1), real(2)
    row_sums = np.empty(n, W.dtype)
    for b in range(first, last):
        row_sums[:] = 0
        total = real(0)
        for i in range(m):
            q = real(0)
            for j in range(n):
                q += W[b, i, j] * x[b, j]
            t = math.exp(-abs(q))
            r = one / (one + t)
            s, c = (t * r, r) if q < 0 else (r, t * r)
            total += s * s
            g = two * s * (s * c)
            if dW is not None:
                for j in range(n):
                    dW[b, i, j] = g * x[b, j]
            if dx is not None:
                for j in range(n):
                    row_sums[j] += g * W[b, i, j]
        if loss is not None:
            loss[b] = total
        if dx is not None:
            for j in range(n):
                dx[b, j] = row_sums[j]


def fused(W: Any, x: Any, loss: Any, dW: Any, dx: Any, *, stream: int | None = None) -> None:
    """Compute loss, dW and dx for a batch on all cores; the contract is in ``sigmoid_l2.kernels``."""
    for_ranges(len(W), W.size, lambda first, last: _pairs(W, x, loss, dW, dx, first, last))
