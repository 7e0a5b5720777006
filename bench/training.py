"""The forward and the backward pass within PyTorch and JAX: ours as their operation beside their own formula.

A call makes the loss of each pair, and from the sum of all losses the gradients, as a step of training does. The
interface of a contender is that of ``peers``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import frameworks
from frameworks import Call, Product, compiled, tensor
from peers import JAX_MATMUL, JAX_SUM, Peer


def _torch(loss: Callable[[Any, Any], Any], W: Any, x: Any) -> Call:
    """``loss`` (B,) of tensors, and the gradients of its sum by autograd."""
    import torch

    W, x = tensor(W).requires_grad_(), tensor(x).requires_grad_()

    def call() -> tuple[Any, Any, Any]:
        losses = loss(W, x)
        return losses.detach(), *torch.autograd.grad(losses.sum(), (W, x))

    return call


def in_torch(W: Any, x: Any, out: Any) -> Call:
    import sigmoid_l2.torch

    return _torch(sigmoid_l2.torch.value, W, x)


def torch_compile(product: Product, W: Any, x: Any, out: Any) -> Call:
    """The formula compiled; autograd has a compiled backward pass of it."""
    import torch

    @compiled
    def loss(W: Any, x: Any) -> Any:
        return torch.sigmoid(product(W, x)).square().sum(-1)

    return _torch(loss, W, x)


def in_jax(W: Any, x: Any, out: Any) -> Call:
    import jax

    import sigmoid_l2.jax

    def loss(W: Any, x: Any) -> tuple[Any, Any]:
        losses = sigmoid_l2.jax.value(W, x)
        return losses.sum(), losses

    function = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    W, x = jax.block_until_ready((jax.device_put(W), jax.device_put(x)))

    def call() -> tuple[Any, Any, Any]:
        (_, losses), (dW, dx) = jax.block_until_ready(function(W, x))
        return losses, dW, dx

    return call


IN_TORCH = Peer("sigmoid-l2 in PyTorch", "torch", in_torch, note="forward pass, then backward pass: it reads W twice")
IN_JAX = Peer("sigmoid-l2 in JAX", "jax", in_jax, note="forward pass, then backward pass: it reads W twice")
OURS = (IN_TORCH, IN_JAX)

TORCH_EAGER = Peer("torch eager", "torch", frameworks.torch_eager)
TORCH_COMPILE_MATMUL = Peer(
    "torch.compile, W @ x", "torch", partial(torch_compile, lambda W, x: (W @ x[..., None])[..., 0])
)
TORCH_COMPILE_SUM = Peer(
    "torch.compile, multiply-and-sum", "torch", partial(torch_compile, lambda W, x: (W * x[..., None, :]).sum(-1))
)
PEERS = (TORCH_EAGER, TORCH_COMPILE_MATMUL, TORCH_COMPILE_SUM, JAX_MATMUL, JAX_SUM)
