"""The kernel for tall pairs: one block is as many rows as a vector has lanes, and a thread has a range of pairs.

W and dW of a block are whole vectors, loaded and stored in the order of memory, with masks where the pair ends.
Shuffles bring x_j and g_i to the elements W_ij that they multiply, and the terms of q into one lane. Compiled for
each n.
"""

from functools import cache
from typing import Any

import numpy as np

from sigmoid_l2.kernels import Wanted
from sigmoid_l2.kernels.cpu.compile import compile_kernel, vector_code
from sigmoid_l2.kernels.cpu.sigmoid import s_and_g
from sigmoid_l2.kernels.cpu.simd import INDEX, VectorBuilder, lane_count


@vector_code(constants=1, returns_real=True)
def block(
    v: VectorBuilder, W: Any, top: Any, x: Any, x_at: Any, dW: Any, sums: Any, wanted: Wanted, rows: Any, n: int
) -> Any:
    """Compute ``rows`` rows, at most a vector's lanes, from element ``top`` of W on, with x from ``x_at`` on.

    Store their dW, add their terms of dx to ``sums`` (lanes, n) and return their part of the loss.
    """
    b = v.builder
    W, x, dW = v.at(W, top), v.at(x, x_at), v.at(dW, top)
    is_row = v.mask_first(rows)
    masks = [v.mask_first(b.sub(b.mul(rows, INDEX(n)), INDEX(k * v.width))) for k in range(n)]
    elements = range(v.width * n)  # of W in the block
    W_block = v.load_block(W, n, masks)  # (rows, n)
    x_of_W = v.take([v.load(x, INDEX(0), v.mask_first(INDEX(n)))], [e % n for e in elements])  # x_j for each W_ij
    q = q_of_rows(v, W_block, x_of_W, n)  # (rows,)
    loss, g = loss_and_g(v, q, is_row)
    g_of_W = v.take([g], [e // n for e in elements])  # g_i for each W_ij
    gradients(v, W_block, x_of_W, g_of_W, dW, masks, sums, wanted)
    return loss


def q_of_rows(v: VectorBuilder, W: Any, x: Any, n: int) -> Any:
    """q = W x."""
    (q,) = v.sum_axis(v.products(W, x), n, 1)
    return q


def loss_and_g(v: VectorBuilder, q: Any, is_row: Any) -> tuple[Any, Any]:
    """Return the rows' part of the loss, and their g, which is 0 in the other lanes."""
    b, zero = v.builder, v.constant(0)
    s, g = s_and_g(v, q)
    return v.sum_lanes(b.select(is_row, b.fmul(s, s), zero)), b.select(is_row, g, zero)


def gradients(v: VectorBuilder, W: Any, x: Any, g: Any, dW: Any, masks: Any, sums: Any, wanted: Wanted) -> None:
    """Store dW = g x^T where it is wanted, and always add the terms of dx = W^T g to ``sums``, which stay in cache."""
    with v.builder.if_then(wanted.dW):
        v.store_block(v.products(g, x), dW, masks)
    v.store_block(map(v.multiply_add, g, W, v.load_block(sums, len(W))), sums)


@cache
def kernel(n: int, dtype: np.dtype[Any]) -> Any:
    """The compiled function for pairs with n columns of ``dtype``, at most as many as a vector has lanes."""
    width = lane_count(dtype)

    def tall(
        W: Any, x: Any, loss: Any, dW: Any, dx: Any, first: int, last: int, slice_rows: int, streams: bool
    ) -> None:
        wanted = Wanted(loss.size > 0, dW.size > 0, dx.size > 0)
        m = W.shape[1]
        sums = np.empty((width, n), W.dtype)
        for pair in range(first, last):
            for r in range(width):
                for j in range(n):
                    sums[r, j] = 0
            total = W.dtype.type(0)
            for i in range(0, m, width):
                total += block(W, (pair * m + i) * n, x, pair * n, dW, sums, wanted, min(width, m - i), n)
            if wanted.loss:
                loss[pair] = total
            if wanted.dx:
                for j in range(n):
                    total = sums[0, j]
                    for r in range(1, width):
                        total += sums[r, j]
                    dx[pair, j] = total

    return compile_kernel(tall, f"tall_{n}", dtype)
