"""Pairs that are neighbours in memory, in NumPy: W (m, n, B) and x (n, B), as ``reference`` computes tiny pairs.

Each operation is one for all pairs of a block, element by element, which in NumPy has the same bits in every place.
Sums are added by halves: a term of k goes through ceil(log2 k) additions. So a term of q is rounded at most 1 +
ceil(log2 n) times, and never more than n times. Rows that do not fit in a block are computed in two halves, or in
halves of these; where they are cut depends on (m, n) alone, and that adds no addition to dx and the loss.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sigmoid_l2 import threads
from sigmoid_l2.kernels.reference import THREADED, error_and_g, halved

# Size of a block, in elements of W. On two threads, whose calls of NumPy wait for each other, 3x3, 8x8 and 64x64 take
# 0.97 to 1.5 times as long with 2^16, 1.0 to 1.3 times with 2^17, and 0.9 to 1.2 times with 2^19.
BLOCK = 1 << 18
# Pairs of a block, at least, where a row of so many fits in one; else as many as fit, in whole lines of the caches (of
# LINE elements of float32) where that is one or more.
PAIRS, LINE = 128, 16


def batch_last(
    W: Any,
    x: Any,
    target: Any,
    cotangent: Any,
    loss: Any,
    dW: Any,
    dx: Any,
    dq: Any,
    *,
    stream: int | None = None,
    call_bytes: int = 0,
) -> None:
    """Compute the outputs that are wanted in blocks of pairs, on all threads."""
    m, n, B = W.shape
    least = min(PAIRS, BLOCK // n)
    least = least // LINE * LINE or max(1, least)
    rows = min(m, max(1, BLOCK // (least * n)))  # at a time
    at_once = threads.get_num_threads() if W.size >= THREADED else 1
    pairs = max(least, min(BLOCK // (rows * n), -(-B // at_once)) // LINE * LINE)
    blocks = -(-B // pairs)
    # Allocate and drop as much memory as the threads need, so that MemoryError comes before any of them has written.
    elements = 2 * rows * n + 10 * rows + 2 * m.bit_length() * (n + 1)
    np.empty((min(at_once, blocks), min(B, pairs), elements), W.dtype)
    arrays = W, x, target, cotangent, loss, dW, dx, dq

    @np.errstate(all="ignore")
    def run(first: int, last: int) -> None:
        for begin in range(first * pairs, min(B, last * pairs), pairs):
            block = [None if a is None else a[..., begin : begin + pairs] for a in arrays]
            for to, values in zip((block[4], block[6]), _rows(block, 0, m, rows), strict=True):
                if to is not None:
                    to[...] = values

    if at_once == 1:
        run(0, blocks)
    else:
        threads.for_ranges(blocks, W.size, run)


def _rows(block: Sequence[Any], first: int, last: int, most: int) -> list[Any]:
    """Write dW and dq of these rows, at most so many at a time; return the sums over them, the loss (b,) and dx (n, b).

    What is not wanted is None.
    """
    if last - first > most:
        middle = (first + last + 1) // 2
        halves = _rows(block, first, middle, most), _rows(block, middle, last, most)
        return [None if a is None else a + b for a, b in zip(*halves, strict=True)]
    own = slice(first, last)
    W, x, target, cotangent, loss, dW, dx, dq = block
    W = W[own]
    terms = W * x  # (rows, n, b)
    q = halved(terms.swapaxes(0, 1), 1)[0]  # (rows, b)
    e, g = error_and_g(q, None if target is None else target[own], cotangent)
    if dq is not None:
        dq[own] = g
    if dW is not None:
        np.multiply(g[:, None], x, out=dW[own])
    if loss is not None:
        loss = halved(e * e, 1)[0]
    if dx is not None:
        dx = halved(np.multiply(g[:, None], W, out=terms), 1)[0]
    return [loss, dx]
