"""The same kind out as in, for arrays of PyTorch, JAX and others: checked by mypy and pyright, see test_typing.py."""

from typing import Any, assert_type

import jax
import numpy as np
import torch
from numpy.typing import NDArray

import sigmoid_l2 as sl2


def of_torch(W: torch.Tensor, x: torch.Tensor, y: torch.Tensor, stream: torch.cuda.Stream) -> None:
    loss, dW, dx = sl2.value_and_grad(W, x, y)
    assert_type(loss, torch.Tensor)
    assert_type(dW, torch.Tensor)
    assert_type(dx, torch.Tensor)
    assert_type(sl2.value(W, x, stream=stream, out=loss), torch.Tensor)
    assert_type(sl2.grad(W, x, wrt="x"), torch.Tensor)
    assert_type(sl2.grad(W, x), sl2.Grad[torch.Tensor])
    assert_type(sl2.grad(W, x, wrt=("q", "x"))[0], torch.Tensor)
    assert_type(sl2.value_and_grad(W, x, wrt="q").dq, torch.Tensor)
    assert_type(sl2.torch.value(W, x), torch.Tensor)
    assert_type(sl2.torch.value(torch.nn.Parameter(W), x, y), torch.Tensor)


def of_jax(W: jax.Array, x: jax.Array) -> None:
    loss, dW, _ = sl2.value_and_grad(W, x, 1.0)
    assert_type(loss, jax.Array)
    assert_type(dW, jax.Array)
    assert_type(sl2.value(W, x), jax.Array)
    assert_type(sl2.grad(W, x, wrt="W"), jax.Array)
    assert_type(sl2.jax.value(W, x, 1.0), jax.Array)
    assert_type(sl2.jax.value(np.ones((3, 3)), x), jax.Array)
    jax.jit(jax.value_and_grad(lambda W: sl2.jax.value(W, x).sum()))(W)


def mixed(W: NDArray[np.float32], x: torch.Tensor) -> None:
    assert_type(sl2.value(W, x), NDArray[Any])
    assert_type(sl2.value(x, W), torch.Tensor)
