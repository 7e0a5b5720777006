"""Every way to compute loss, dW and dx that we compare with, each written as its own users would write it.

A peer's ``build(W, x, out)`` prepares everything that is not part of a call (arrays on its device, compilation) and
returns the call: arrays W (B, m, n) and x (B, n), NumPy's or CuPy's, to loss (B,), dW (B, m, n) and dx (B, n), on a CPU
finished when it returns. ``out`` is three arrays to write to, or None for new ones; a peer that cannot ignores it.
"""

from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import frameworks
import numpy as np
from frameworks import Call

import sigmoid_l2 as sl2


@dataclass(frozen=True)
class Peer:
    """One contender; ``note`` says what a reader of its figures has to know."""

    name: str
    library: str  # the distribution whose version is quoted
    build: Any
    takes_out: bool = False
    devices: tuple[str, ...] = ("cpu",)
    note: str = ""


def ours(backend: str, W: Any, x: Any, out: Any) -> Call:
    """A backend of this library by name, or "auto"."""
    return lambda: sl2.value_and_grad(W, x, out=out, backend=backend)


def numpy_pair(W: Any, x: Any, out: Any) -> Call:
    """A single pair, W (m, n) and x (n,)."""

    def call() -> tuple[Any, Any, Any]:
        s = 1 / (1 + np.exp(-(W @ x)))
        g = 2 * s * s * (1 - s)
        return s @ s, g[:, None] * x, W.T @ g

    return call


def numpy_einsum(W: Any, x: Any, out: Any) -> Call:
    """The formula in einsum's letters."""
    loss, dW, dx = out or (None, None, None)

    def call() -> tuple[Any, Any, Any]:
        s = 1 / (1 + np.exp(-np.einsum("...mn,...n->...m", W, x)))
        g = 2 * s * s * (1 - s)
        return (
            np.einsum("...m,...m->...", s, s, out=loss),
            np.einsum("...m,...n->...mn", g, x, out=dW),
            np.einsum("...mn,...m->...n", W, g, out=dx),
        )

    return call


def matmul(xp: Any, W: Any, x: Any, out: Any) -> Call:
    """The formula in matrix products of NumPy or CuPy, ``xp``; any batch axes, also none."""
    loss, dW, dx = out or (None, None, None)
    dx_row = None if dx is None else dx[..., None, :]

    def call() -> tuple[Any, Any, Any]:
        s = 1 / (1 + xp.exp(-xp.matmul(W, x[..., None])[..., 0]))
        g = 2 * s * s * (1 - s)
        return (
            xp.sum(s * s, axis=-1, out=loss),
            xp.multiply(g[..., :, None], x[..., None, :], out=dW),
            xp.matmul(g[..., None, :], W, out=dx_row)[..., 0, :],
        )

    return call


@cache
def _numba_loop() -> Any:
    from numba import njit, prange

    @njit(parallel=True)
    def loop(W: Any, x: Any, loss: Any, dW: Any, dx: Any) -> None:
        B, m, n = W.shape
        zero, one, two = W.dtype.type(0), W.dtype.type(1), W.dtype.type(2)
        for b in prange(B):
            total = zero
            for j in range(n):
                dx[b, j] = zero
            for i in range(m):
                q = zero
                for j in range(n):
                    q += W[b, i, j] * x[b, j]
                s = one / (one + np.exp(-q))
                total += s * s
                g = two * s * s * (one - s)
                for j in range(n):
                    dW[b, i, j] = g * x[b, j]
                    dx[b, j] += g * W[b, i, j]
            loss[b] = total

    return loop


def numba_loop(W: Any, x: Any, out: Any) -> Call:
    """The formula as loops, the batch on all threads; no fast-math."""
    loop = _numba_loop()

    def call() -> tuple[Any, Any, Any]:
        results = out or (np.empty(len(W), W.dtype), np.empty_like(W), np.empty_like(x))
        loop(W, x, *results)
        return results

    return call


def cupy_matmul(W: Any, x: Any, out: Any) -> Call:
    import cupy

    return matmul(cupy, W, x, out)


def of_backend(backend: str) -> Peer:
    """One of our backends under its own name."""
    return Peer(backend, "sigmoid-l2", partial(ours, backend), takes_out=True, devices=BOTH)


BOTH = ("cpu", "gpu")
OURS = Peer("sigmoid-l2", "sigmoid-l2", partial(ours, "numba"), takes_out=True)
OURS_AUTO = Peer("sigmoid-l2, auto", "sigmoid-l2", partial(ours, "auto"), takes_out=True)
NUMPY = of_backend("numpy")
NUMPY_PAIR = Peer("NumPy, W @ x", "numpy", numpy_pair)
NUMPY_EINSUM = Peer("NumPy einsum", "numpy", numpy_einsum, takes_out=True, note="one thread")
NUMPY_MATMUL = Peer("NumPy matmul", "numpy", partial(matmul, np), takes_out=True, note="one thread")
JAX_MATMUL = Peer("JAX, W @ x", "jax", frameworks.jax_matmul, devices=BOTH)
JAX_SUM = Peer("JAX, multiply-and-sum", "jax", frameworks.jax_sum, devices=BOTH)
TORCH_COMPILE_VMAP = Peer("torch.compile of vmap", "torch", frameworks.torch_compile_vmap, devices=BOTH)
TORCH_COMPILE_HAND = Peer("torch.compile by hand", "torch", frameworks.torch_compile_hand, takes_out=True, devices=BOTH)
PEERS = (
    NUMPY_EINSUM,
    NUMPY_MATMUL,
    Peer("HIPS autograd", "autograd", frameworks.hips_autograd, note="one thread"),
    JAX_MATMUL,
    JAX_SUM,
    Peer("torch eager", "torch", frameworks.torch_eager, devices=BOTH),
    Peer("torch.func.vmap", "torch", frameworks.torch_vmap),
    TORCH_COMPILE_VMAP,
    TORCH_COMPILE_HAND,
    Peer("Warp kernel", "warp-lang", frameworks.warp_kernel, takes_out=True, note="one thread, as Warp runs on a CPU"),
    Peer("numba prange loop", "numba", numba_loop, takes_out=True),
    Peer("CuPy matmul", "cupy", cupy_matmul, takes_out=True, devices=("gpu",)),
)
