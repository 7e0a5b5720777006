"""All whose errors are measured: our backends, JAX, torch and the textbook formula, each as its users write it.

``run(W, x, target)`` takes W (B, 1, 1) and x (B, 1) as NumPy arrays of one dtype, and a number or None as the target of
all, to loss (B,), dW and dx of any shape.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import numpy as np

import sigmoid_l2 as sl2
from sigmoid_l2 import dispatch

DTYPES = (np.dtype("float32"), np.dtype("float64"))


@dataclass(frozen=True)
class Contender:
    """One row of the tables for each dtype."""

    name: str
    library: str  # the distribution whose version is quoted
    run: Callable[[Any, Any, float | None], tuple[Any, Any, Any]]
    backend: Any = None  # ours: the entry in the dispatcher's table

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        if self.backend:
            return "; ".join(self.backend.reasons()) or None
        return None if find_spec(self.library) else f"{self.library} is not installed"

    def flushes(self, dtype: np.dtype[Any]) -> bool:
        """Whether the contract lets it flush subnormal numbers to 0."""
        return bool(self.backend) and self.backend.device == "cuda" and dtype == np.float32


def textbook(W: Any, x: Any, target: float | None = None) -> tuple[Any, Any, Any]:
    """s = 1 / (1 + exp(-q)), and 1 - s and s - target subtracted."""
    with np.errstate(all="ignore"):
        s = 1 / (1 + np.exp(-(W @ x[:, :, None])[:, :, 0]))
        e = s - W.dtype.type(target or 0)
        g = 2 * e * s * (1 - s)
        return (e * e).sum(axis=1), g[:, :, None] * x[:, None, :], (g[:, :, None] * W).sum(axis=1)


@cache
def _jax_function() -> Any:
    import jax

    def loss(W: Any, x: Any, target: Any) -> Any:
        return ((jax.nn.sigmoid((W * x).sum(-1)) - target) ** 2).sum()

    return jax.jit(jax.vmap(jax.value_and_grad(loss, argnums=(0, 1)), in_axes=(0, 0, None)))


def jax_grad(W: Any, x: Any, target: float | None = None) -> tuple[Any, Any, Any]:
    """Compiled, on the CPU."""
    import jax

    with jax.enable_x64(W.dtype == np.float64), jax.default_device(jax.devices("cpu")[0]):
        loss, (dW, dx) = jax.tree.map(np.asarray, _jax_function()(W, x, W.dtype.type(target or 0)))
    return loss, dW, dx


def torch_grad(W: Any, x: Any, target: float | None = None) -> tuple[Any, Any, Any]:
    """Eager, on the CPU."""
    import torch

    W, x = torch.from_numpy(W).requires_grad_(), torch.from_numpy(x).requires_grad_()
    loss = (torch.sigmoid((W * x[:, None, :]).sum(-1)) - (target or 0)).square().sum(-1)
    return loss.detach().numpy(), *(a.numpy() for a in torch.autograd.grad(loss.sum(), (W, x)))


CONTENDERS = (
    *(
        Contender(f"sigmoid-l2, {b.name}", "sigmoid-l2", partial(sl2.value_and_grad, backend=b.name), b)
        for b in dispatch.BACKENDS
    ),
    Contender("JAX", "jax", jax_grad),
    Contender("torch", "torch", torch_grad),
    Contender("textbook formula in NumPy", "numpy", textbook),
)
