"""Calls that go straight to a GPU kernel, and those that must not; with the stand-in for CuPy."""

import fake_cupy
import numpy as np
import pytest
from arrays import bits, pairs

import sigmoid_l2 as sl2
from sigmoid_l2 import api
from sigmoid_l2.gpu.direct import direct
from sigmoid_l2.kernels import reference

NAMES = ("loss", "dW", "dx")


@pytest.fixture
def cupy(monkeypatch):
    return fake_cupy.install(monkeypatch)


def outputs(W, x):
    return tuple(np.full(shape, np.nan, W.dtype) for shape in (W.shape[:1], W.shape, x.shape))


def plain(cupy, B=5, dtype="float32"):
    W, x = pairs((B,), dtype=dtype)
    return cupy.asarray(W), cupy.asarray(x), tuple(map(cupy.asarray, outputs(W, x)))


@pytest.mark.parametrize("backend", ["auto", "gpu", "cupy", "numba-cuda"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_plain_call(cupy, monkeypatch, backend, dtype):
    """It is not checked any further, and its results are the reference's."""
    W, x, out = plain(cupy, dtype=dtype)
    right = outputs(W, x)
    reference.fused(np.asarray(W), np.asarray(x), *right)
    monkeypatch.setattr(api, "validate", None)
    assert all(a is b for a, b in zip(sl2.value_and_grad(W, x, out=out, backend=backend), out, strict=True))
    assert bits(map(np.asarray, out)) == bits(right)
    assert sl2.grad(W, x, out=out[1:], backend=backend)[1] is out[2]
    assert sl2.value(W, x, out=out[0], backend=backend) is out[0]


def test_the_current_stream(cupy):
    W, x, out = plain(cupy)
    with cupy.cuda.Stream() as stream:
        for given in (None, stream, stream.ptr):
            assert direct(NAMES, W, x, out, given).stream == stream.ptr
        assert direct(NAMES, W, x, out, 0) is None, "the call would have to wait for the current stream"


def with_result(out, k, a):
    return (*out[:k], a, *out[k + 1 :])


NOT_PLAIN = {
    "no results": lambda cupy, W, x, out: (W, x, None),
    "too few results": lambda cupy, W, x, out: (W, x, out[:2]),
    "a host array": lambda cupy, W, x, out: (W, np.asarray(x), out),
    "another dtype of x": lambda cupy, W, x, out: (W, cupy.asarray(np.float64(x)), out),
    "another dtype of dW": lambda cupy, W, x, out: (W, x, with_result(out, 1, cupy.asarray(np.float64(out[1])))),
    "another byte order": lambda cupy, W, x, out: (W.view(W.dtype.newbyteorder()), x, out),
    "integers": lambda cupy, W, x, out: (*(cupy.asarray(a.astype(np.int32)) for a in (W, x)), out),
    "strided W": lambda cupy, W, x, out: (W[::2], x[:3], tuple(a[:3] for a in out)),
    "strided dx": lambda cupy, W, x, out: (W[:3], x[:3], (out[0][:3], out[1][:3], out[2][::2])),
    "two batch axes": lambda cupy, W, x, out: (*(a[None] for a in (W, x)), tuple(a[None] for a in out)),
    "no batch axis": lambda cupy, W, x, out: (W[0], x[0], tuple(a[0] for a in out)),
    "columns": lambda cupy, W, x, out: (W, x[..., None], with_result(out, 2, out[2][..., None])),
    "no pairs": lambda cupy, W, x, out: (W[:0], x[:0], tuple(a[:0] for a in out)),
    "x too short": lambda cupy, W, x, out: (W, x[:4], out),
    "loss too long": lambda cupy, W, x, out: (W[:4], x[:4], (out[0], out[1][:4], out[2][:4])),
    "dx in x": lambda cupy, W, x, out: (W, x, with_result(out, 2, x)),
    "dW in W": lambda cupy, W, x, out: (W, x, with_result(out, 1, W)),
    "loss in dW": lambda cupy, W, x, out: (W, x, with_result(out, 0, out[1].reshape(-1)[:5])),
    "loss at the end of W": lambda cupy, W, x, out: (W, x, with_result(out, 0, W.reshape(-1)[-5:])),
}


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_what_is_not_plain(cupy, name):
    """It gets its checks, conversions and messages from problem.py."""
    W, x, out = NOT_PLAIN[name](cupy, *plain(cupy))
    assert direct(NAMES, W, x, out, None) is None


def test_another_device(cupy):
    W, x, out = plain(cupy)
    with cupy.cuda.Device(1):
        other = plain(cupy)
        assert direct(NAMES, W, x, out, None) is None, "it is not the current one"
        assert direct(NAMES, *other, None).device.id == 1
        assert direct(NAMES, other[0], x, other[2], None) is None


def test_inputs_may_share_memory(cupy):
    memory = cupy.asarray(np.ones(60, np.float32))
    W, x, out = plain(cupy)
    assert direct(NAMES, memory.reshape(W.shape), memory[-20:].reshape(x.shape), out, None) is not None
