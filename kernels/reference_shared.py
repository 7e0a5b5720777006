"""One W for many x in NumPy: a pair's results as in ``reference``, and dW by the matrix products of NumPy's BLAS.

For the pairs of a block, with their x and g as the rows of X (b, n) and G (b, m), dW = G^T X, summed over the blocks.
No other product goes to a BLAS: it chooses the order of its sums by the sizes and by the place of a row, and a pair's
bits would depend on where it is. OpenBLAS 0.3 does so with its kernels for AVX2.

For the same reason all products for dW are of one size, of (a, k) elements of W and ``pairs`` pairs, which depends on
(m, n) alone: the last ones are filled up with x = 0 and g = 0. They are so small that OpenBLAS, which NumPy has from
PyPI, does each on one thread. How often a term of the sum over B pairs is rounded, each time by at most eps / 2:

* In float32 the products and their sums are computed in float64, where a term goes through less than B + 2 * UNITS
  additions. These round it by less than eps of float32 as long as B < 2**30, and once to float32.
* In float64 a product has FEW_PAIRS = 8 pairs, and those of ``pairs`` pairs are added by halves to one. With c =
  ceil(log2 B), a term goes through B - 1 additions where B <= 8, else through at most 7 and then ceil(log2(B / 8)) + 1
  (where the pairs end, the terms are 0 and nothing is rounded): c + 5. The sums of more pairs, where c >= 7, are added
  with the error of each addition (TwoSum), in units and then over the units, which rounds a term twice more. So it is
  rounded at most 2 (c + 1) times for every B.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from sigmoid_l2 import threads
from sigmoid_l2.kernels.reference import compute_blocks, halved

# Multiplications of a product, at most: OpenBLAS starts its own threads above.
PRODUCT = 1 << 18
# Rows and columns of W in a product, at most; pairs are a multiple of PAIRS.
MOST_A, MOST_K, PAIRS, MOST_PAIRS = 64, 256, 64, 1024
# Pairs in a product for dW in float64.
FEW_PAIRS = 8
# Size of a block, in elements of x and four q, so that two threads do not wait often for the interpreter's lock.
BLOCK = 1 << 19
# The same, at most, of the pairs of one product: each of a block's arrays has so many elements at least.
MOST = 1 << 21
# Units of blocks, at most, and the bytes of all their sums of dW; a thread has one at a time.
UNITS, SUMS_BYTES = 64, 32 << 20


class Sizes(NamedTuple):
    """Of a product, and how many of them W has, filled up with zeros: ``a`` rows, ``k`` columns, ``pairs``."""

    a: int
    a_parts: int
    k: int
    k_parts: int
    pairs: int

    @classmethod
    def of(cls, m: int, n: int) -> "Sizes":
        """Those for W (m, n); at least two rows and columns, because a BLAS multiplies vectors in another way."""
        a, a_parts = _cut(m, MOST_A)
        k, k_parts = _cut(n, min(MOST_K, PRODUCT // (PAIRS * a)))
        return cls(a, a_parts, k, k_parts, min(MOST_PAIRS, PRODUCT // (a * k) // PAIRS * PAIRS))


def _cut(size: int, most: int) -> tuple[int, int]:
    parts = -(-size // most)
    return max(2, -(-size // parts)), parts


def shared(
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
    """Compute the outputs for W (m, n) and x (B, n) on all threads; dW (m, n) is the sum over the batch."""
    B, (m, n) = len(x), W.shape
    sizes = Sizes.of(m, n)
    block = max(1, BLOCK // (n + 4 * m) // sizes.pairs) * sizes.pairs
    blocks = units = -(-B // block)
    sums = None
    if dW is not None:
        shape = (1 if W.dtype == np.float32 else 2, sizes.k_parts, sizes.a_parts, sizes.a, sizes.k)
        units = max(1, min(UNITS, blocks, SUMS_BYTES // (8 * math.prod(shape))))
        sums = np.zeros((units, *shape))
    # As ``fused`` does, so that MemoryError comes before a thread has written: dq, and x and g in float64.
    rows = min(block, -(-B // sizes.pairs) * sizes.pairs)
    np.empty((min(threads.get_num_threads(), units), rows * (3 * n + 4 * m)))
    compute = _Block(W, sizes)

    @np.errstate(all="ignore")
    def run(first: int, last: int) -> None:
        for unit in range(first, last):
            for k in range(blocks * unit // units, blocks * (unit + 1) // units):
                part = slice(k * block, (k + 1) * block)
                arrays = [None if a is None else a[part] for a in (x, target, cotangent, loss, dx, dq)]
                compute(None if sums is None else sums[unit], *arrays)

    threads.for_ranges(units, B * W.size, run)
    if sums is not None:
        with np.errstate(all="ignore"):
            total = _total(sums).transpose(1, 2, 0, 3).reshape(sizes.a_parts * sizes.a, -1)
            dW[...] = total[:m, :n]


class _Block:
    """Computes a block of pairs, for one W."""

    def __init__(self, W: Any, sizes: Sizes) -> None:
        self.W, self.sizes = W, sizes

    def __call__(self, sums: Any, x: Any, target: Any, cotangent: Any, loss: Any, dx: Any, dq: Any) -> None:
        """Write the outputs of the block, and add its dW to ``sums``."""
        b, (m, n) = len(x), self.W.shape
        if dq is None and sums is not None:
            dq = np.empty((b, m), x.dtype)
        compute_blocks(np.broadcast_to(self.W, (b, m, n)), x, target, cotangent, loss, None, dx, dq)
        if sums is not None:
            a, a_parts, k, k_parts, pairs = self.sizes
            stacks = -(-b // pairs)
            G = _filled(dq, stacks * pairs, a_parts * a).reshape(stacks, pairs, -1).swapaxes(1, 2)
            self._add_dW(G, _filled(x, stacks * pairs, k_parts * k).reshape(stacks, pairs, k_parts, k), sums)

    def _add_dW(self, G: Any, X: Any, sums: Any) -> None:  # noqa: N802 - the name of the mathematics
        a, a_parts, k, k_parts, pairs = self.sizes
        few = pairs if len(sums) == 1 else FEW_PAIRS
        G = G.astype(float, copy=False).reshape(-1, a_parts, a, pairs // few, few).transpose(0, 3, 1, 2, 4)
        X = X.astype(float, copy=False).reshape(-1, pairs // few, 1, few, k_parts, k)
        for j in range(k_parts):
            for own_G, own_X in zip(G, X[..., j, :], strict=True):
                _add(sums[:, j], halved(np.matmul(own_G, own_X), 1)[0])


def _filled(a: Any, rows: int, columns: int) -> Any:
    """The array itself, or a copy with zeros after its last row and column."""
    if a.shape == (rows, columns):
        return a
    filled = np.zeros((rows, columns), a.dtype)
    filled[: len(a), : a.shape[1]] = a
    return filled


def _add(sums: Any, term: Any) -> None:
    """Add ``term`` to the first of the ``sums``, and the error of this to the second, if there is one (TwoSum)."""
    if len(sums) == 1:
        sums[0] += term
        return
    high = sums[0] + term
    added = high - sums[0]
    sums[1] += (sums[0] - (high - added)) + (term - added)
    sums[0] = high


def _total(sums: Any) -> Any:
    """The sum over the units, in their order; where it is infinite, the errors are NaN and left out."""
    total = sums[0]
    for unit in sums[1:]:
        _add(total, unit[0])
        total[1:] += unit[1:]
    return total[0] if len(total) == 1 else np.where(np.isnan(total[1]), total[0], total[0] + total[1])
