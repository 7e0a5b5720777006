"""The peers that are frameworks: JAX, PyTorch, HIPS autograd and NVIDIA Warp. The interface is in ``peers``.

A framework is imported by the functions that need it, so that a missing one costs only its own rows.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

Call = Callable[[], tuple[Any, Any, Any]]
Product = Callable[[Any, Any], Any]


def hips_autograd(W: Any, x: Any, out: Any) -> Call:
    """One backward pass over all pairs, with ``einsum``, which is twice as fast here as ``matmul``."""
    import autograd.numpy as anp
    from autograd import make_vjp

    def losses(W: Any, x: Any) -> Any:
        s = 1 / (1 + anp.exp(-anp.einsum("bmn,bn->bm", W, x)))
        return anp.sum(s * s, axis=-1)

    def call() -> tuple[Any, Any, Any]:
        backward, loss = make_vjp(losses, (0, 1))(W, x)
        return loss, *backward(np.ones_like(loss))

    return call


def _jax(W: Any, x: Any, product: Product) -> Call:
    import jax

    def loss(W: Any, x: Any) -> Any:
        return (jax.nn.sigmoid(product(W, x)) ** 2).sum()

    if not isinstance(W, np.ndarray):  # CuPy's: JAX gets them from the host
        if jax.default_backend() != "gpu":
            raise RuntimeError(f"JAX computes on the {jax.default_backend()} here")
        jax.config.update("jax_default_matmul_precision", "highest")  # float32 products would be in TF32
        W, x = W.get(), x.get()
    function = jax.jit(jax.vmap(jax.value_and_grad(loss, argnums=(0, 1))))
    W, x = jax.block_until_ready((jax.device_put(W), jax.device_put(x)))

    def call() -> tuple[Any, Any, Any]:
        value, (dW, dx) = jax.block_until_ready(function(W, x))
        return value, dW, dx

    return call


def jax_matmul(W: Any, x: Any, out: Any) -> Call:
    return _jax(W, x, lambda W, x: W @ x)


def jax_sum(W: Any, x: Any, out: Any) -> Call:
    return _jax(W, x, lambda W, x: (W * x).sum(-1))


def tensor(a: Any) -> Any:
    """A tensor in the memory of an array, NumPy's or CuPy's."""
    import torch

    return torch.from_numpy(a) if isinstance(a, np.ndarray) else torch.as_tensor(a, device="cuda")


def torch_eager(W: Any, x: Any, out: Any) -> Call:
    """With ``W @ x``, which is faster here than multiply-and-sum and as fast as ``einsum``."""
    import torch

    W, x = tensor(W).requires_grad_(), tensor(x).requires_grad_()

    def call() -> tuple[Any, Any, Any]:
        loss = torch.sigmoid((W @ x[:, :, None])[:, :, 0]).square().sum(-1)
        return loss.detach(), *torch.autograd.grad(loss.sum(), (W, x))

    return call


def _torch_vmap(W: Any, x: Any, product: Product, wrap: Callable[[Any], Any]) -> Call:
    import torch

    def loss(W: Any, x: Any) -> Any:
        return torch.sigmoid(product(W, x)).square().sum()

    function = wrap(torch.func.vmap(torch.func.grad_and_value(loss, argnums=(0, 1))))
    W, x = tensor(W), tensor(x)

    def call() -> tuple[Any, Any, Any]:
        (dW, dx), value = function(W, x)
        return value, dW, dx

    return call


def compiled(function: Any) -> Any:
    """``function`` compiled for the exact sizes of each call; torch's limit of recompilations is too low for that."""
    import torch

    torch._dynamo.config.recompile_limit = 100
    return torch.compile(function, dynamic=False)


def torch_vmap(W: Any, x: Any, out: Any) -> Call:
    """With ``W @ x``, which is faster here than multiply-and-sum."""
    return _torch_vmap(W, x, lambda W, x: W @ x, lambda function: function)


def torch_compile_vmap(W: Any, x: Any, out: Any) -> Call:
    """With multiply-and-sum, which the compiler fuses; it leaves ``W @ x`` to a library."""
    return _torch_vmap(W, x, lambda W, x: (W * x).sum(-1), compiled)


def torch_compile_hand(W: Any, x: Any, out: Any) -> Call:
    """The formulas of the forward and the backward pass, without automatic differentiation."""
    import torch

    @compiled
    def formula(W: Any, x: Any, loss: Any, dW: Any, dx: Any) -> tuple[Any, Any, Any]:
        s = torch.sigmoid((W * x[:, None, :]).sum(-1))
        g = 2 * s * s * (1 - s)
        return (
            torch.sum(s * s, -1, out=loss),
            torch.mul(g[:, :, None], x[:, None, :], out=dW),
            torch.sum(g[:, :, None] * W, 1, out=dx),
        )

    tensors = [None if a is None else tensor(a) for a in (W, x, *(out or (None, None, None)))]
    return lambda: formula(*tensors)


@cache
def _warp(m: int, n: int) -> tuple[Any, list[Any]]:
    import warp as wp

    wp.config.log_level = 30  # no banner
    matrix, vector = wp.types.matrix((m, n), wp.float32), wp.types.vector(n, wp.float32)
    column = wp.types.vector(m, wp.float32)

    @wp.kernel
    def kernel(
        W: wp.array(dtype=matrix),
        x: wp.array(dtype=vector),
        loss: wp.array(dtype=wp.float32),
        dW: wp.array(dtype=matrix),
        dx: wp.array(dtype=vector),
    ):
        b = wp.tid()
        q = W[b] * x[b]
        g = column()
        total = wp.float32(0.0)
        for i in range(m):
            s = 1.0 / (1.0 + wp.exp(-q[i]))
            total += s * s
            g[i] = 2.0 * s * s * (1.0 - s)
        loss[b] = total
        dW[b] = wp.outer(g, x[b])
        dx[b] = g * W[b]

    return kernel, [matrix, vector, wp.float32, matrix, vector]


def warp_kernel(W: Any, x: Any, out: Any) -> Call:
    """Forward and backward pass by hand in one float32 kernel, which is twice as fast here as ``wp.Tape``."""
    import warp as wp

    kernel, types = _warp(*W.shape[1:])
    arrays = [wp.array(a, dtype=t, device="cpu", copy=False) for a, t in zip((W, x, *out), types, strict=True)]

    def call() -> tuple[Any, Any, Any]:
        wp.launch(kernel, dim=len(W), inputs=arrays[:2], outputs=arrays[2:], device="cpu")
        return out

    return call
