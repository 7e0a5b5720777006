"""The reference in NumPy: every other kernel is checked against it, and it runs where no other kernel does.

The derivation, which the other kernels cite, for one pair with W (m, n), x (n,) and a target y (m,), which may be 0:

    q    = W x                      (m,)    q_i = sum_j W_ij x_j
    s    = sigmoid(q)               (m,)    s_i = 1 / (1 + exp(-q_i))
    e    = s - y                    (m,)    the error
    loss = sum_i e_i**2             ()      ||sigmoid(W x) - y||^2

Each e_i depends on q_i alone, so the chain rule gives, element by element,

    dloss/de_i = 2 e_i
    de_i/dq_i  = ds_i/dq_i = s_i (1 - s_i)
    g_i        = dloss/dq_i = 2 e_i * s_i (1 - s_i)

and, because dq_i/dW_ij = x_j and dq_i/dx_j = W_ij,

    dW_ij = dloss/dW_ij = g_i x_j            dW = g x^T    (m, n), an outer product: the shape of W
    dx_j  = dloss/dx_j  = sum_i W_ij g_i     dx = W^T g    (n,), a matrix product: the shape of x

Every q_i depends on x, so dx is a sum over i; an elementwise product would leave that sum out.

The gradients of sum(cotangent * loss) over pairs have the factor cotangent of their pair; g has it, hence dW and dx. An
input that many pairs share is in each of their losses, so its gradient is the sum of what it is for each of them alone:
``sigmoid_l2.pieces`` adds these up.

1 - s is computed without a subtraction. With a = exp(min(q, 0)) and b = exp(min(-q, 0)), one of which is 1,

    s = a / (a + b)        1 - s = b / (a + b)

No argument of exp is positive, so nothing overflows; and nothing cancels where 1 - s is small. Nor does it in e for the
targets 0 and 1. s - y is s for y = 0, but for y = 1 it would cancel where s is near 1, so e has a second form:

    e = s - y = (1 - y) - (1 - s)

It is used for y > 1/2. There 1 - y is exact, up to y = 2, and it is 0 for y = 1: then e is -(1 - s), to the last bit.

The order of a sum depends on (m, n) alone, so a pair has the same bits in any batch. That is why no BLAS adds up here.
A sum over i of up to 11 terms is one chain. Longer ones have chains of CHAIN = 8 terms, and the sums of up to 8 chains
are added in one more; those of more chains are added in pairs until FEW = 7 or fewer are left. (Pairs with the batch
axis last have chains of one term, and FEW at the end.) With c = ceil(log2 m), a term goes through at most

    m <= 11: m - 1        m <= 64: 7 + ceil(m / 8) - 1        m > 64: 7 + (c - 5) + 6 = c + 8

additions, in each case at most 2 c + 2: they round it by at most (c + 1) eps. A sum over j has chains of 1024 terms of
float32 or 512 of float64, for which einsum makes at least 4 or 2 sums side by side. There a term goes through at most
257 or 256 additions (258 in a row that is one chain of up to 3 terms more); those of k chains are at most ceil(log2 k)
+ 4 more. With its product, a term is rounded at most 256 + ceil(log2(n / 256)) + 4 times, and not more than n times.
"""

from functools import partial
from typing import Any

import numpy as np

from sigmoid_l2 import threads

# Sizes of a block, in elements of W; a block has at least one pair. They bound the temporaries whatever the batch. A
# call of NumPy costs more than usual in between large arrays, which drive its code from the caches: on two threads
# 64x64 takes 1.14 times as long in blocks of 2^18 as in these, and 1.18 times in blocks of 2^20. Blocks of tiny pairs
# need more memory, and should stay in the level 2 cache: they have 2^16. So have others, at least, where larger ones
# leave threads without work.
BLOCK, SMALL_BLOCK = 1 << 19, 1 << 16
# Size of a batch, in elements of W, below which one thread computes it. At 3*10^5 two threads take 0.5 to 0.85 times as
# long, at 1.4*10^5 up to 2.2 times, because they have the interpreter's lock in turn.
THREADED = 1 << 18
# Size of the largest tiny pair: its columns, and its elements. A row costs einsum 9 ns besides its elements, so 3x3 is
# 1.4 times as fast with the batch axis last, 37x5 1.5 times, and 6x6 as fast. A block should have 256 pairs.
TINY_N, TINY = 5, 256
# Terms in a chain of a sum over i, and sums of chains that are added in a chain: NumPy adds up to 7 one after the
# other, wherever they are.
CHAIN, FEW = 8, 7
# Size of a chain of a sum over j, in bytes. Each further chain costs a row of 784 floats 0.2 of its time.
ROW = 4096


def sigmoid_and_complement(q: Any) -> tuple[Any, Any]:
    """Return ``(s, 1 - s)`` for s = sigmoid(q), both to a few ulp for every q; NaN gives NaN."""
    a, b = np.exp(np.minimum(q, 0)), np.exp(np.minimum(-q, 0))
    both = a + b
    return a / both, b / both


def error_and_g(q: Any, target: Any = None, cotangent: Any = None) -> tuple[Any, Any]:
    """Return e = sigmoid(q) - target and g = cotangent * dloss/dq; a target of None is 0, a cotangent of None is 1."""
    s, c = sigmoid_and_complement(q)
    e = s if target is None else np.where(target > 0.5, (1 - target) - c, s - target)
    factor = 2 * e
    if cotangent is not None:
        factor *= cotangent
    # (2 e) (s c) and not ((2 e) s) c, so that no factor underflows before the product does.
    return e, factor * (s * c)


def fused(
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
    """Compute loss, dW, dx and dq for a batch, in blocks on all threads; the contract is in ``sigmoid_l2.kernels``."""
    B, m, n = W.shape
    tiny = n <= TINY_N and m * n <= TINY
    compute = _tiny_pairs if tiny else _pairs
    at_once = threads.get_num_threads() if W.size >= THREADED else 1
    small = max(1, SMALL_BLOCK // (m * n))
    pairs = min(B, small if tiny else max(small, min(BLOCK // (m * n), -(-B // at_once))))
    blocks = -(-B // pairs)
    # Allocate and drop as much memory as the threads need, so that MemoryError comes before any of them has written.
    np.empty((min(at_once, blocks), pairs, 2 * tiny * m * n + m * n // 4 + 8 * m + 2 * n), W.dtype)
    run = partial(_blocks, compute, pairs, (W, x, target, cotangent, loss, dW, dx, dq))
    if at_once == 1:
        run(0, blocks)
    else:
        threads.for_ranges(blocks, W.size, run)


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
    """The same for pairs that all have one W; see ``reference_shared``, which uses the functions here."""
    from sigmoid_l2.kernels import reference_shared

    reference_shared.shared(W, x, target, cotangent, loss, dW, dx, dq)


def has_shared(m: int, n: int, itemsize: int) -> bool:
    """Whether ``shared`` takes a W (m, n)."""
    from sigmoid_l2.kernels import reference_shared

    return reference_shared.Sizes.of(m, n).pairs * (n + 4 * m) <= reference_shared.MOST


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
    """The same for arrays whose last axis is the batch; see ``reference_batch_last``, which uses the functions here."""
    from sigmoid_l2.kernels import reference_batch_last

    reference_batch_last.batch_last(W, x, target, cotangent, loss, dW, dx, dq)


def compute_blocks(*arrays: Any) -> None:
    """What ``fused`` does on one thread, where W may be broadcast."""
    B, m, n = arrays[0].shape
    tiny = n <= TINY_N and m * n <= TINY
    pairs = min(B, max(1, (SMALL_BLOCK if tiny else BLOCK) // (m * n)))
    _blocks(_tiny_pairs if tiny else _pairs, pairs, arrays, 0, -(-B // pairs))


@np.errstate(all="ignore")
def _blocks(compute: Any, pairs: int, arrays: Any, first: int, last: int) -> None:
    """``compute`` the blocks from ``first`` to ``last``, of so many ``pairs``."""
    B = len(arrays[0])
    if pairs == B:  # views of all arrays cost a small call 1 us
        compute(*arrays)
        return
    for begin in range(first * pairs, min(B, last * pairs), pairs):
        compute(*[None if a is None else a[begin : begin + pairs] for a in arrays])


def _pairs(W: Any, x: Any, target: Any, cotangent: Any, loss: Any, dW: Any, dx: Any, dq: Any) -> None:
    """A block: W (b, m, n) and x (b, n)."""
    q = _sum_of_products(W.swapaxes(1, 2), x, ROW // W.itemsize)
    e, g = error_and_g(q, target, None if cotangent is None else cotangent[:, None])  # (b, m)
    if loss is not None:
        _sum_of_products(e[:, :, None], e, CHAIN, out=loss[:, None])
    if dq is not None:
        dq[...] = g
    if dx is not None:  # before dW drives W from the cache
        _sum_of_products(W, g, CHAIN, out=dx)
    if dW is not None:
        np.einsum("bi,bj->bij", g, x, out=dW)


def _sum_of_products(A: Any, v: Any, most: int, out: Any = None) -> Any:
    """Return sum_i A_ij v_i for each pair, A (b, i, j) and v (b, i), by chains of at most ``most`` + 3 terms."""
    b, length, width = A.shape
    if length <= most + 3:
        return np.einsum("bij,bi->bj", A, v, out=out)
    chains, rest = divmod(length, most)
    end = length - rest
    sums = np.empty((b, chains + (rest > 0), width), A.dtype)
    whole = A[:, :end].reshape(b, chains, most, width), v[:, :end].reshape(b, chains, most)
    np.einsum("bkij,bki->bkj", *whole, out=sums[:, :chains])
    if rest:
        np.einsum("bij,bi->bj", A[:, end:], v[:, end:], out=sums[:, -1])
    if sums.shape[1] <= CHAIN:
        return np.einsum("bkj->bj", sums, out=out)
    return np.add.reduce(halved(sums.swapaxes(0, 1).copy()), 0, None, out)


def halved(terms: Any, most: int = FEW) -> Any:
    """At most ``most`` sums of the ``terms`` (k, ...), which are overwritten."""
    while len(terms) > most:
        half = terms[: len(terms) // 2]
        half += terms[-len(half) :]
        terms = terms[: -len(half)]
    return terms


def _tiny_pairs(W: Any, x: Any, target: Any, cotangent: Any, loss: Any, dW: Any, dx: Any, dq: Any) -> None:
    """A block with the batch axis last, W (m, n, b) and x (n, b), because NumPy is slow along short axes."""
    W, x = W.transpose(1, 2, 0).copy(), x.T.copy()
    terms = W * x
    e, g = error_and_g(np.add.reduce(terms, 1), None if target is None else target.T, cotangent)  # (m, b)
    if loss is not None:
        np.add.reduce(halved(e * e), 0, None, loss)
    if dq is not None:
        np.positive(g, dq.T)  # along the batch axis; a copy, which suits dW, would go along the short one
    g = g[:, None]
    if dW is not None:
        dW.transpose(1, 2, 0)[...] = np.multiply(g, x, terms)
    if dx is not None:
        sums = np.add.reduce(halved(np.multiply(g, W, terms)), 0)
        np.positive(sums, dx.T)
