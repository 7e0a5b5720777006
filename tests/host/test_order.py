"""New gradients lie in memory as their inputs do: NumPy's order "K"."""

import fake_cupy
import numpy as np
import pytest
from arrays import bits, pairs
from fake_cupy import Array, DeviceNDArray, Owned, Tensor

import sigmoid_l2 as sl2
from sigmoid_l2 import layouts, memory

NAMES = ("W", "x", "q")


def in_order(a, order):
    """A copy of ``a`` whose axes lie in memory in this order."""
    return a.transpose(order).copy().transpose(np.argsort(order))


def strides(a):
    """Those of the axes that have a step."""
    return [step for step, size in zip(a.strides, a.shape, strict=True) if size > 1]


LAYOUTS = {  # of W (4, 2, 3, 5) and x (4, 2, 5)
    "C": lambda W, x: (W, x),
    "F": lambda W, x: (np.asfortranarray(W), np.asfortranarray(x)),
    "the batch last": lambda W, x: (in_order(W, (2, 3, 0, 1)), in_order(x, (2, 0, 1))),
    "the batch last, transposed": lambda W, x: (in_order(W, (3, 2, 0, 1)), x),
    "transposed pairs": lambda W, x: (in_order(W, (0, 1, 3, 2)), in_order(x, (1, 0, 2))),
    "the batch in the middle": lambda W, x: (in_order(W, (2, 0, 1, 3)), x),
    "backwards": lambda W, x: (in_order(W, (3, 1, 2, 0))[::-1, :, ::-1], in_order(x, (1, 2, 0))[..., ::-1]),
    "a slice": lambda W, x: (in_order(W, (3, 2, 0, 1))[1:3, :, :2], in_order(x, (2, 0, 1))[1:3]),
    "every other": lambda W, x: (in_order(W, (2, 3, 0, 1))[::2], in_order(x, (1, 2, 0))[::2]),
    "axes of 1": lambda W, x: (in_order(W, (3, 2, 1, 0))[:, :1, :1], in_order(x, (2, 1, 0))[:, :1]),
    "columns": lambda W, x: (W, in_order(x, (2, 0, 1))[..., None]),
    "columns of a longer array": lambda W, x: (W, np.repeat(in_order(x, (2, 1, 0))[..., None], 2, -1)[..., :1]),
    "another byte order": lambda W, x: (in_order(W.astype(">f8"), (3, 0, 2, 1)), x),
    "one pair": lambda W, x: (in_order(W, (2, 3, 0, 1))[1, 1], in_order(x, (2, 0, 1))[1, 1]),
    "one W": lambda W, x: (W[0, 0].T.copy().T, in_order(x, (2, 0, 1))),
    "one x": lambda W, x: (in_order(W, (3, 0, 2, 1)), x[0, 0, ::-1]),
    "some W": lambda W, x: (in_order(W, (3, 2, 1, 0))[:, :1], in_order(x, (2, 0, 1))),
}


@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)
def test_order(backend, make):
    W, x = make(*pairs((4, 2), 3, 5))
    got = sl2.grad(W, x, wrt=NAMES, backend=backend)
    plain = sl2.grad(np.ascontiguousarray(W, "f8"), np.ascontiguousarray(x), wrt=NAMES, backend=backend)
    for name, a, right in zip(got._fields, got, plain, strict=True):
        assert right.flags.c_contiguous
        np.testing.assert_allclose(a, right, rtol=1e-12, atol=1e-15, err_msg=name)
    for a, given in ((got.dW, W), (got.dx, x)):
        assert strides(a) == strides(np.empty_like(given))
    batch = sl2.value(W, x, backend=backend).shape
    last = layouts.is_batch_last(W) and W.shape[:-2] == batch
    m = W.shape[-2]
    expected = np.moveaxis(np.empty((m, *batch)), 0, -1) if last else np.empty((*batch, m))
    assert strides(got.dq) == strides(expected)


def test_elements_that_share_memory_have_no_order():
    W, x = pairs((7,))
    got = sl2.grad(np.broadcast_to(W[0], W.shape), np.broadcast_to(x[:, :1], x.shape), backend="numpy")
    assert all(a.flags.c_contiguous for a in got)


def test_which_arrays_are_batch_last():
    """All pairs, a range, every other one and a batch of one go the same way; not one without a batch."""
    W = in_order(pairs((6, 4), 3, 5)[0], (3, 2, 0, 1))
    parts = W, W[1:3], W[::-2], W[:, 1], W[2, 1:2], W[:1, :1], W[2:, :, 1:, ::2]
    assert all(map(layouts.is_batch_last, parts))
    C = pairs((6, 4), 6, 10)[0]
    parts = C, C[..., ::2], C[1:2, 1:2, ::3, ::5], C[:1, :1], C[::2], C[3, 3], C[..., :1, :], C[..., :1]
    assert not any(map(layouts.is_batch_last, (*parts, in_order(C, (0, 1, 3, 2)), in_order(C, (2, 0, 1, 3)))))
    assert not any(map(layouts.is_batch_last, (W[3, 3], W[3, 3, None])))
    assert not layouts.is_batch_last(in_order(pairs((6, 4), 1, 1)[0], (3, 2, 0, 1)))


def test_large_results_come_from_memory_for_results():
    W, x = (np.asfortranarray(a, "f4") for a in pairs((memory.ALIGNED_BYTES // 4,), 1, 2))
    for a in sl2.value_and_grad(W, x, backend="numpy"):
        assert a.ctypes.data % memory.LINE == 0


KINDS = {"cupy": lambda held: held, "numba": DeviceNDArray, "interface": Owned, "torch": Tensor, "jax": Array}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["cupy", "numba-cuda"])
def test_cuda_arrays(monkeypatch, kind, name):
    """But JAX's arrays, whose layout is JAX's own."""
    cupy = fake_cupy.install(monkeypatch)
    W, x = pairs((7,))
    W, x = in_order(W, (1, 2, 0)), in_order(x, (1, 0))
    W_device, x_device = (KINDS[kind](np.array(a, order="K").view(cupy.ndarray)) for a in (W, x))
    got = sl2.grad(W_device, x_device, wrt=NAMES, backend=name)
    expected = sl2.grad(W, x, wrt=NAMES, backend="numpy")
    for a, right in zip(got, expected, strict=True):
        a = np.asarray(getattr(a, "held", a))
        np.testing.assert_allclose(a, right, rtol=1e-12)
        assert a.strides == (np.empty(a.shape).strides if kind == "jax" else right.strides)
    assert bits(expected) == bits(sl2.grad(W, x, wrt=NAMES, backend="numpy"))
