"""One W for many x, whose dW is the sum over all x: the case, its arrays, and the peers that do the same work.

The peers are of two kinds: the three matrix products by hand, and the gradient of the sum of all losses that a
framework derives. Their interface is that of ``peers``.
"""

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, Self

import numpy as np
from frameworks import Call, compiled, tensor
from peers import Peer
from workload import Case, Workload, on_host

import sigmoid_l2 as sl2

# Samples whose terms of dW are computed in float64 at a time.
BLOCK = 1 << 16
# Error that dW may have, relative to its largest element. A running float32 sum of ten million terms is off by more
# than TOLERANCE: JAX's at 3x3 by 2.5e-4 (JAX 0.10).
SUM_TOLERANCE = 1e-3


class SharedCase(Case):
    """B random x, all with the same W (m, n)."""

    @classmethod
    def of_x(cls, device: str, dtype: str, m: int, n: int, size: int) -> Self:
        """So many x that they have about ``size`` bytes."""
        return cls(device, dtype, m, n, max(1, size // (n * np.dtype(dtype).itemsize)))

    @property
    def matrices(self) -> tuple[int, ...]:
        """The shape of W and dW."""
        return self.m, self.n


class SharedWork(Workload):
    """Its arrays: loss and dx are compared with the reference for some samples, dW with its sum over all."""

    @cached_property
    def truth(self) -> sl2.ValueAndGrad:
        W, x = (self.some_pairs(a).astype(float) for a in (self.W, self.x))
        return sl2.value_and_grad(W, x, backend="numpy")._replace(dW=self._sum())

    def _sum(self) -> Any:
        """dW in float64, by hand."""
        W, total = on_host(self.W).astype(float), np.zeros(self.W.shape)
        for first in range(0, self.case.B, BLOCK):
            x = on_host(self.x[first : first + BLOCK]).astype(float)
            s = 1 / (1 + np.exp(-(x @ W.T)))
            total += (2 * s * s * (1 - s)).T @ x
        return total

    def tolerance(self, name: str) -> float:
        return SUM_TOLERANCE if name == "dW" else super().tolerance(name)

    def some_pairs(self, a: Any) -> Any:
        """All of W and dW, some of the others."""
        return on_host(a) if a.shape == self.W.shape else super().some_pairs(a)


def work_of(case: Case) -> Workload:
    """The arrays of a case."""
    return (SharedWork if isinstance(case, SharedCase) else Workload)(case)


def numpy_products(W: Any, x: Any, out: Any) -> Call:
    """By hand; where outputs are given, nothing of batch size is allocated."""
    loss, dW, dx = out or (None, None, None)
    q, g = (np.empty((len(x), len(W)), x.dtype) if out else None for _ in range(2))

    def call() -> tuple[Any, Any, Any]:
        s = np.matmul(x, W.T, out=q)
        np.negative(s, out=s)
        np.exp(s, out=s)
        s += 1
        np.divide(1, s, out=s)
        G = np.subtract(1, s, out=g)
        G *= s
        G *= s
        G *= 2
        return np.einsum("bi,bi->b", s, s, out=loss), np.matmul(G.T, x, out=dW), np.matmul(G, W, out=dx)

    return call


def _by_hand(sigmoid: Callable[[Any], Any], W: Any, x: Any) -> tuple[Any, Any, Any]:
    """The three matrix products of torch or JAX."""
    s = sigmoid(x @ W.T)
    g = 2 * s * s * (1 - s)
    return (s * s).sum(-1), g.T @ x, g @ W


def torch_autograd(W: Any, x: Any, out: Any) -> Call:
    import torch

    W, x = tensor(W).requires_grad_(), tensor(x).requires_grad_()

    def call() -> tuple[Any, Any, Any]:
        loss = torch.sigmoid(x @ W.T).square().sum(-1)
        return loss.detach(), *torch.autograd.grad(loss.sum(), (W, x))

    return call


def torch_by_hand(W: Any, x: Any, out: Any, wrap: Callable[[Any], Any] = lambda function: function) -> Call:
    import torch

    function = wrap(partial(_by_hand, torch.sigmoid))
    W, x = tensor(W), tensor(x)
    return lambda: function(W, x)


def _jax(function: Callable[[Any, Any], Any], W: Any, x: Any) -> Call:
    import jax

    function = jax.jit(function)
    W, x = jax.block_until_ready((jax.device_put(W), jax.device_put(x)))
    return lambda: jax.block_until_ready(function(W, x))


def jax_grad(W: Any, x: Any, out: Any) -> Call:
    import jax

    def losses(W: Any, x: Any) -> tuple[Any, Any]:
        loss = (jax.nn.sigmoid(x @ W.T) ** 2).sum(-1)
        return loss.sum(), loss

    def gradients(W: Any, x: Any) -> tuple[Any, Any, Any]:
        (_, loss), both = jax.value_and_grad(losses, argnums=(0, 1), has_aux=True)(W, x)
        return loss, *both

    return _jax(gradients, W, x)


def jax_by_hand(W: Any, x: Any, out: Any) -> Call:
    import jax

    return _jax(partial(_by_hand, jax.nn.sigmoid), W, x)


PEERS = (
    Peer("NumPy by hand", "numpy", numpy_products, takes_out=True),
    Peer("torch eager", "torch", torch_autograd),
    Peer("torch by hand", "torch", torch_by_hand),
    Peer("torch.compile by hand", "torch", partial(torch_by_hand, wrap=compiled)),
    Peer("JAX", "jax", jax_grad),
    Peer("JAX by hand", "jax", jax_by_hand),
)
