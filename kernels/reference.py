"""The reference in NumPy: every other kernel is checked against it, and it runs where no other kernel does.

The derivation, which the other kernels cite, for one pair with W (m, n) and x (n,):

    q    = W x                      (m,)    q_i = sum_j W_ij x_j
    s    = sigmoid(q)               (m,)    s_i = 1 / (1 + exp(-q_i))
    loss = sum_i s_i**2             ()      ||sigmoid(W x)||^2

Each s_i depends on q_i alone, so the chain rule gives, element by element,

    dloss/ds_i = 2 s_i
    ds_i/dq_i  = s_i (1 - s_i)
    g_i        = dloss/dq_i = 2 s_i * s_i (1 - s_i)

and, because dq_i/dW_ij = x_j and dq_i/dx_j = W_ij,

    dW_ij = dloss/dW_ij = g_i x_j            dW = g x^T    (m, n), an outer product: the shape of W
    dx_j  = dloss/dx_j  = sum_i W_ij g_i     dx = W^T g    (n,), a matrix product: the shape of x

Every q_i depends on x, so dx is a sum over i; an elementwise product would leave that sum out.

1 - s is computed without a subtraction. With a = exp(min(q, 0)) and b = exp(min(-q, 0)), one of which is 1,

    s = a / (a + b)        1 - s = b / (a + b)

No argument of exp is positive, so nothing overflows; and nothing cancels where 1 - s is small.

The order of a sum depends on (m, n) alone, so a pair has the same bits in any batch. That is why no BLAS adds up here.
A sum over i has chains of CHAIN = 8 terms (pairs with the batch axis last: of one), whose sums are added in pairs until
FEW = 7 or fewer are left, and these in a chain. With c = ceil(log2 m), a term goes through at most

    m <= 8: m - 1        m <= 56: 7 + ceil(m / 8) - 1        m > 56: 7 + (c - 5) + 6 = c + 8

additions, in each case at most 2 c + 2: they round it by at most (c + 1) eps. A sum over j has chains of COLUMNS terms:
a product and at most min(n, COLUMNS) - 1 additions, and where n > COLUMNS at most ceil(log2(n / COLUMNS)) + 4 more.
"""

from functools import partial
from typing import Any

import numpy as np

from sigmoid_l2 import threads

# Sizes of a block, in elements of W; a block has at least one pair. They bound the temporaries whatever the batch. A
# call of NumPy costs more than usual in between large arrays, which drive its code from the caches: 64x64 takes 1.2
# times as long in blocks of 2^17 as in one, and 1.1 times in blocks of 2^20. Blocks of tiny pairs need more memory, and
# should stay in the level 2 cache: they have 2^16. So have others, at least, where larger ones leave threads without
# work.
BLOCK, SMALL_BLOCK = 1 << 20, 1 << 16
# Size of a batch, in elements of W, below which one thread computes it. At 2^18 two threads took 1.2 times as long,
# because they have the interpreter's lock in turn.
THREADED = 1 << 19
# Size of the largest tiny pair: its columns, and its elements. A row costs einsum 9 ns besides its elements, so 3x3 is
# 1.4 times as fast with the batch axis last, 37x5 1.5 times, and 6x6 as fast. A block should have 256 pairs.
TINY_N, TINY = 5, 256
# Terms in a chain of a sum over i, and sums of chains that are added in a chain: NumPy adds up to 7 one after the
# other, wherever they are.
CHAIN, FEW = 8, 7
# Terms in a chain of a sum over j. einsum makes several sums of it, side by side.
COLUMNS = 256


def sigmoid_and_complement(q: Any) -> tuple[Any, Any]:
    """Return ``(s, 1 - s)`` for s = sigmoid(q), both to a few ulp for every q; NaN gives NaN."""
    a, b = np.exp(np.minimum(q, 0)), np.exp(np.minimum(-q, 0))
    both = a + b
    return a / both, b / both


def s_and_g(q: Any) -> tuple[Any, Any]:
    """Return s = sigmoid(q) and g = dloss/dq."""
    s, c = sigmoid_and_complement(q)
    # (2 s) (s c) and not 2 s^2 c, so that no factor underflows before the product does.
    return s, 2 * s * (s * c)


def fused(W: Any, x: Any, loss: Any, dW: Any, dx: Any, *, stream: int | None = None) -> None:
    """Compute loss, dW and dx for a batch, in blocks on all threads; the contract is in ``sigmoid_l2.kernels``."""
    B, m, n = W.shape
    tiny, half = n <= TINY_N and m * n <= TINY, W.dtype == np.float16
    compute: Any = _tiny_pairs if tiny else _pairs
    if half:
        compute = partial(_in_float32, compute)
    at_once = threads.get_num_threads() if W.size >= THREADED else 1
    small = max(1, SMALL_BLOCK // (m * n))
    pairs = min(B, small if tiny else max(small, min(BLOCK // (m * n), -(-B // at_once))))
    blocks = -(-B // pairs)
    # Allocate and drop as much memory as the threads need, so that MemoryError comes before any of them has written.
    elements = (2 * tiny + 2 * half) * m * n + m * n // 4 + 8 * m + 2 * n
    np.empty((min(at_once, blocks), pairs, elements), np.float32 if half else W.dtype)

    def run(first: int, last: int) -> None:
        with np.errstate(all="ignore"):
            for begin in range(first * pairs, min(B, last * pairs), pairs):
                k = slice(begin, begin + pairs)
                compute(W[k], x[k], *[None if a is None else a[k] for a in (loss, dW, dx)])

    if at_once == 1:
        run(0, blocks)
    else:
        threads.for_ranges(blocks, W.size, run)


def _in_float32(compute: Any, W: Any, x: Any, *results: Any) -> None:
    """``compute`` a block of float16, in which NumPy is slow, and adds in an order that depends on the layout."""
    wide = [None if a is None else np.empty(a.shape, np.float32) for a in results]
    compute(W.astype(np.float32), x.astype(np.float32), *wide)
    for a, b in zip(results, wide, strict=True):
        if a is not None:
            a[...] = b


def _pairs(W: Any, x: Any, loss: Any, dW: Any, dx: Any) -> None:
    """A block: W (b, m, n) and x (b, n)."""
    q = _sum_of_products(W.swapaxes(1, 2), x, COLUMNS)
    s, g = s_and_g(q)  # (b, m)
    if loss is not None:
        _sum_of_products(s[:, :, None], s, CHAIN, out=loss[:, None])
    if dW is not None:
        np.einsum("bi,bj->bij", g, x, out=dW)
    if dx is not None:
        _sum_of_products(W, g, CHAIN, out=dx)


def _sum_of_products(A: Any, v: Any, most: int, out: Any = None) -> Any:
    """Return sum_i A_ij v_i for each pair, A (b, i, j) and v (b, i), by chains of at most ``most`` terms."""
    b, length, width = A.shape
    if length <= most:
        return np.einsum("bij,bi->bj", A, v, out=out)
    chains, rest = divmod(length, most)
    end = length - rest
    sums = np.empty((b, chains + (rest > 0), width), A.dtype)
    whole = A[:, :end].reshape(b, chains, most, width), v[:, :end].reshape(b, chains, most)
    np.einsum("bkij,bki->bkj", *whole, out=sums[:, :chains])
    if rest:
        np.einsum("bij,bi->bj", A[:, end:], v[:, end:], out=sums[:, -1])
    return np.einsum("kbj->bj", _halved(sums.swapaxes(0, 1)), out=out)


def _halved(terms: Any) -> Any:
    """At most FEW sums of the ``terms`` (k, ...), which are overwritten."""
    while len(terms) > FEW:
        half = len(terms) // 2
        terms[:half] += terms[-half:]
        terms = terms[:-half]
    return terms


def _tiny_pairs(W: Any, x: Any, loss: Any, dW: Any, dx: Any) -> None:
    """A block with the batch axis last, W (m, n, b) and x (n, b), because NumPy is slow along short axes."""
    W, x = W.transpose(1, 2, 0).copy(), x.T.copy()
    terms = W * x
    q = np.add.reduce(terms, axis=1)
    s, g = s_and_g(q)  # (m, b)
    if loss is not None:
        np.add.reduce(_halved(s * s), axis=0, out=loss)
    if dW is not None:
        dW.transpose(1, 2, 0)[...] = np.multiply(g[:, None], x, out=terms)
    if dx is not None:
        sums = np.add.reduce(_halved(np.multiply(g[:, None], W, out=terms)), axis=0)
        np.positive(sums, out=dx.T)  # along the batch axis; a copy, which suits dW, would go along the short one
