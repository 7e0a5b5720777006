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

1 - s is computed without a subtraction. With t = exp(-|q|) and r = 1 / (1 + t),

    q >= 0:  s = r,    1 - s = t r
    q <  0:  s = t r,  1 - s = r

The argument of exp is never positive, so nothing overflows; and nothing cancels where 1 - s is small.
"""

from typing import Any

import numpy as np

# Size of a block, in elements of W; a block has at least one pair. It bounds the temporaries whatever the batch.
BLOCK_ELEMENTS = 1 << 16


def sigmoid_and_complement(q: Any) -> tuple[Any, Any]:
    """Return ``(s, 1 - s)`` for s = sigmoid(q), both to a few ulp for every q; NaN gives NaN."""
    t = np.exp(-np.abs(q))
    r = 1 / (1 + t)
    tr = t * r
    return np.where(q < 0, tr, r), np.where(q < 0, r, tr)


def fused(W: Any, x: Any, loss: Any, dW: Any, dx: Any, *, stream: int | None = None) -> None:
    """Compute loss, dW and dx for a batch, block by block; the contract is in ``sigmoid_l2.kernels``."""
    B, m, n = W.shape
    pairs = min(B, max(1, BLOCK_ELEMENTS // (m * n)))
    # A block's memory is allocated before anything is written, so that a MemoryError comes before that.
    terms = np.empty((pairs, m, n), W.dtype)
    np.empty((16, pairs, m), W.dtype)  # as much as its smaller temporaries, which are allocated later
    with np.errstate(all="ignore"):
        for first in range(0, B, pairs):
            block = slice(first, first + pairs)
            Wb, xb = W[block], x[block, None, :]  # (b, m, n), (b, 1, n)
            q = np.multiply(Wb, xb, out=terms[: len(Wb)]).sum(axis=2)  # (b, m)
            s, c = sigmoid_and_complement(q)
            # (2 s) (s c) and not 2 s^2 c, so that no factor underflows before the product does.
            g = (2 * s * (s * c))[:, :, None]  # (b, m, 1)
            if loss is not None:
                np.sum(s * s, axis=1, out=loss[block])
            if dW is not None:
                np.multiply(g, xb, out=dW[block])
            if dx is not None:
                np.sum(np.multiply(g, Wb, out=terms[: len(Wb)]), axis=1, out=dx[block])
