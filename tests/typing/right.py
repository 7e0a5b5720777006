"""What a user of NumPy writes, and the types that come out: checked by mypy and pyright, see test_typing.py."""
# pyright: strict

from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import sigmoid_l2 as sl2

F32 = NDArray[np.float32]


def float32(W: F32, x: F32, y: F32) -> F32:
    loss, dW, dx = sl2.value_and_grad(W, x, y)
    assert_type(loss, F32)
    assert_type(dW, F32)
    assert_type(dx, F32)
    assert_type(sl2.value_and_grad(W, x, 1.0, cotangent=y[0]).dW, F32)
    assert_type(sl2.value(W, x), F32)
    assert_type(sl2.grad(W, x), sl2.Grad[F32])
    assert_type(sl2.grad(W, x, y, wrt="W"), F32)
    dq, dx = sl2.grad(W, x, wrt=("q", "x"))
    assert_type(dq, F32)
    assert_type(sl2.value_and_grad(W, x, wrt=["q"]).dq, F32)
    assert_type(sl2.value_and_grad(W, x, wrt="x").loss, F32)
    return loss


def out(W: F32, x: F32, loss: F32) -> None:
    results = sl2.value_and_grad(W, x, out=(loss, np.empty_like(W), np.empty_like(x)), backend="numpy", stream=None)
    sl2.value_and_grad(W, x, out=results)
    assert_type(sl2.value(W, x, out=loss), F32)
    assert_type(sl2.grad(W, x, wrt="x", out=np.empty_like(x)), F32)


def shapes() -> None:
    """NumPy knows the number of axes of some arrays; the loss of W (5, 3, 2) has one."""
    loss, dW, dx = sl2.value_and_grad(np.zeros((5, 3, 2)), np.ones((5, 2)))
    assert_type(loss, NDArray[np.float64])
    (count,) = loss.shape
    print(count)
    assert_type(dW, NDArray[np.float64])
    assert_type(dx, NDArray[np.float64])


def other_dtypes(W: NDArray[np.int64], x: F32, anything: NDArray[Any]) -> None:
    assert_type(sl2.value(W, x), NDArray[Any])
    assert_type(sl2.value(anything, x), NDArray[Any])
    assert_type(sl2.value(anything, anything), NDArray[Any])
    assert_type(sl2.grad(anything, anything, anything), sl2.Grad[NDArray[Any]])
    assert_type(sl2.value_and_grad(anything, anything).dx, NDArray[Any])
    mixed: NDArray[np.floating[Any]] = sl2.value(x, x.astype(np.float64))
    mixed.sum()


def array_likes(row: list[float], rows: list[F32]) -> None:
    assert_type(sl2.value([[1, 0.5], [0, 2]], [1, 2]), NDArray[Any])
    assert_type(sl2.value([[[True, False]]], [[1]], [0.0]), NDArray[Any])
    assert_type(sl2.value([row, row], row), NDArray[Any])
    assert_type(sl2.value((tuple(row), tuple(row)), rows[0]), NDArray[Any])
    assert_type(sl2.value(rows, np.ones(2, np.float32)), NDArray[Any])
    assert_type(sl2.value([rows, rows], [rows]), NDArray[Any])
    assert_type(sl2.grad([[1.0]], [1.0], wrt="q"), NDArray[Any])


class OnDevice:
    """As the arrays of libraries that no test installs: what comes out is of the same class."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        raise NotImplementedError

    def __dlpack__(self, *, stream: int | None = None) -> object:
        raise NotImplementedError


def of_others(W: OnDevice, x: OnDevice) -> None:
    loss, dW, dx = sl2.value_and_grad(W, x, 0.5, stream=7)
    assert_type(loss, OnDevice)
    assert_type(sl2.grad(W, x, out=(dW, dx)), sl2.Grad[OnDevice])
    assert_type(sl2.value(W, x, backend="gpu"), OnDevice)


def others(W: F32, x: F32) -> bool:
    for info in sl2.backends():
        if info.available:
            sl2.value(W, x, backend=info.name)
    sl2.warmup((3, 3), np.float32, "numba", target=True)
    assert_type(sl2.trace(W, x).dloss_dq, NDArray[Any])
    check = sl2.check_grad(W, x, dx=[1.0, 2.0], rtol=1e-3)
    assert_type(check.dW, sl2.ArrayCheck | None)
    assert_type(sl2.__version__, str)
    return check.ok
