"""The kernel for tiny pairs: one block is as many pairs as a vector has lanes, and a thread has a range of pairs.

W, x, loss, dW and dx of a block are whole vectors, loaded and stored in the order of memory. Shuffles bring x_j and g_i
to the elements W_ij that they multiply, and the terms of a sum into one lane. Compiled for each (m, n).
"""

from functools import cache
from typing import Any

import numpy as np

from sigmoid_l2.kernels import Wanted
from sigmoid_l2.kernels.cpu.compile import compile_kernel, vector_code
from sigmoid_l2.kernels.cpu.sigmoid import s_and_g
from sigmoid_l2.kernels.cpu.simd import INDEX, VectorBuilder, lane_count


@vector_code(constants=2)
def block(
    v: VectorBuilder, W: Any, x: Any, loss: Any, dW: Any, dx: Any, wanted: Wanted, first: Any, m: int, n: int
) -> None:
    """Compute the pairs from ``first`` on of W (B, m, n) and x (B, n), as many as a vector has lanes."""
    b = v.builder
    # The block spills vectors to the stack. Unless LLVM aligns the stack to vectors, three processes in four have their
    # spills across two cache lines: 8x8 and 12x12 took 25 to 30 % longer in those.
    b.function.attributes.alignstack = v.width * v.dtype.itemsize
    b.function.attributes.add("nounwind")  # llvmlite leaves alignstack out where there is no other attribute
    W, dW = (v.at(array, b.mul(first, INDEX(m * n))) for array in (W, dW))
    x, dx = (v.at(array, b.mul(first, INDEX(n))) for array in (x, dx))
    elements = range(v.width * m * n)  # of W in the block
    W_block = v.load_block(W, m * n)  # (pairs, m, n)
    x_of_W = v.take(v.load_block(x, n), [e // (m * n) * n + e % n for e in elements])  # x_j for each W_ij
    q = q_of_rows(v, W_block, x_of_W, n)  # (pairs, m)
    g = loss_and_g(v, q, m, v.at(loss, first), wanted)  # (pairs, m)
    g_of_W = v.take(g, [e // n for e in elements])  # g_i for each W_ij
    gradients(v, W_block, x_of_W, g_of_W, m, n, dW, dx, wanted)


def q_of_rows(v: VectorBuilder, W: Any, x: Any, n: int) -> list[Any]:
    """q = W x."""
    return v.sum_axis(v.products(W, x), n, 1)


def loss_and_g(v: VectorBuilder, q: Any, m: int, loss: Any, wanted: Wanted) -> Any:
    """Store the loss where it is wanted, and return g."""
    s, g = zip(*(s_and_g(v, q_k) for q_k in q), strict=True)
    with v.builder.if_then(wanted.loss):
        v.store_block(v.sum_axis(v.products(s, s), m, 1), loss)
    return g


def gradients(v: VectorBuilder, W: Any, x: Any, g: Any, m: int, n: int, dW: Any, dx: Any, wanted: Wanted) -> None:
    """Store dW = g x^T and dx = W^T g where they are wanted."""
    with v.builder.if_then(wanted.dW):
        v.store_block(v.products(g, x), dW)
    with v.builder.if_then(wanted.dx):
        v.store_block(v.sum_axis(v.products(g, W), m, n), dx)


@cache
def kernel(m: int, n: int, dtype: np.dtype[Any]) -> Any:
    """The compiled function for pairs of m by n elements of ``dtype``."""
    width = lane_count(dtype)

    def tiny(W: Any, x: Any, loss: Any, dW: Any, dx: Any, first: int, last: int) -> None:
        wanted = Wanted(loss.size > 0, dW.size > 0, dx.size > 0)
        whole = first + (last - first) // width * width
        for pair in range(first, whole, width):
            block(W, x, loss, dW, dx, wanted, pair, m, n)
        if whole == last:
            return
        # The last pairs are a block of their own, filled up with zeros: the same instructions give the same bits.
        W_block, x_block = np.zeros((width, m, n), W.dtype), np.zeros((width, n), W.dtype)
        loss_block, dW_block, dx_block = np.empty(width, W.dtype), np.empty_like(W_block), np.empty_like(x_block)
        for pair in range(whole, last):  # plain loops: numba takes seconds to compile assignments of slices
            for j in range(n):
                x_block[pair - whole, j] = x[pair, j]
                for i in range(m):
                    W_block[pair - whole, i, j] = W[pair, i, j]
        block(W_block, x_block, loss_block, dW_block, dx_block, wanted, 0, m, n)
        for pair in range(whole, last):
            if wanted.loss:
                loss[pair] = loss_block[pair - whole]
            for j in range(n):
                if wanted.dx:
                    dx[pair, j] = dx_block[pair - whole, j]
                if wanted.dW:
                    for i in range(m):
                        dW[pair, i, j] = dW_block[pair - whole, i, j]

    return compile_kernel(tiny, f"tiny_{m}x{n}", dtype)
