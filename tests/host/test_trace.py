"""trace: every intermediate has the right values, shape and dtype, and the printed form shows them all."""

import sys

import fake_cupy
import numpy as np
import pytest
from arrays import pairs

import sigmoid_l2 as sl2
from sigmoid_l2.explain import example

FIELDS = ("W", "x", "q", "s", "loss", "dloss_ds", "ds_dq", "dloss_dq", "dW", "dx")
VECTORS = {"x": "n", "q": "m", "s": "m", "dloss_ds": "m", "ds_dq": "m", "dloss_dq": "m", "dx": "n"}

# The hand-written example in float64 without rounding, to 12 decimals.
TRUE = {
    "q": [[0.24], [0.31], [0.21]],
    "s": [[0.559713649267], [0.576885261132], [0.552307909574]],
    "loss": 0.9511200006657486,
    "dloss_ds": [[1.119427298534], [1.153770522264], [1.104615819149]],
    "ds_dq": [[0.246434280091], [0.244088656621], [0.247263882596]],
    "dloss_dq": [[0.275865260429], [0.281622296828], [0.27313159622]],
    "dW": [
        [0.055173052086, 0.110346104172, 0.027586526043],
        [0.056324459366, 0.112648918731, 0.028162229683],
        [0.054626319244, 0.109252638488, 0.027313159622],
    ],
    "dx": [[0.079665635104], [0.417856786921], [0.277923679366]],
}


@pytest.mark.parametrize("name", TRUE)
def test_example_values(name):
    np.testing.assert_allclose(getattr(sl2.trace(example.W, example.x), name), TRUE[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize(("batch", "m", "n"), [((), 3, 3), ((), 1, 2), ((7,), 2, 5), ((2, 3), 4, 3), ((0,), 3, 2)])
def test_shapes_and_dtype(batch, m, n, column, dtype):
    W, x = pairs(batch, m, n, dtype)
    t = sl2.trace(W, x[..., None] if column else x)
    for name in FIELDS:
        a = getattr(t, name)
        assert type(a) is np.ndarray, name
        assert a.dtype == dtype, name
        if name in VECTORS:
            assert a.shape == (*batch, {"m": m, "n": n}[VECTORS[name]], *[1] * column), name
    assert t.loss.shape == batch
    assert t.W.shape == t.dW.shape == W.shape


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_agrees_with_value_and_grad(dtype):
    W, x = pairs((50,), 4, 6, dtype)
    t = sl2.trace(W, x)
    loss, dW, dx = sl2.value_and_grad(W, x, backend="numpy")
    rtol = 20 * np.finfo(dtype).eps
    np.testing.assert_allclose(t.loss, loss, rtol=rtol)
    np.testing.assert_allclose(t.dW, dW, rtol=rtol)
    np.testing.assert_allclose(t.dx, dx, rtol=rtol, atol=rtol * np.abs(W).max())


def test_every_pair_of_a_batch_is_traced_alone():
    W, x = pairs((5,), 3, 4)
    whole, third = sl2.trace(W, x), sl2.trace(W[2], x[2])
    for name in FIELDS:
        np.testing.assert_allclose(getattr(whole, name)[2], getattr(third, name), rtol=1e-14, err_msg=name)


def test_lists_and_integers_are_computed_in_float64():
    t = sl2.trace([[1, 2]], [3, 4])
    assert t.q.dtype == t.W.dtype == np.float64
    np.testing.assert_array_equal(t.q, [11.0])


def test_large_q_keeps_its_complement():
    # Where 1 - s is subtracted, ds_dq is 0 from q = 37 on. No warning either: they are errors here.
    t = sl2.trace([[1.0]], [50.0])
    np.testing.assert_allclose(t.ds_dq, [np.exp(-50)], rtol=1e-14)
    t = sl2.trace([[1e300], [-1e300]], [1e300])
    np.testing.assert_array_equal(t.s, [1, 0])
    np.testing.assert_array_equal(t.dloss_dq, [0, 0])


def test_a_trace_does_not_follow_its_inputs():
    W, x = pairs((), 3, 3)
    t = sl2.trace(W, x)
    before = t.W.copy(), t.x.copy()
    W[:], x[:] = 0, 0
    np.testing.assert_array_equal(t.W, before[0])
    np.testing.assert_array_equal(t.x, before[1])


def test_cuda_arrays_are_brought_to_the_host(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    W, x = pairs((5,), 3, 4)
    on_device = sl2.trace(fake_cupy.asarray(W), fake_cupy.asarray(x))
    for name in FIELDS:
        assert type(getattr(on_device, name)) is np.ndarray, name
    np.testing.assert_array_equal(on_device.dx, sl2.trace(W, x).dx)


def test_printing_shows_every_step():
    text = str(sl2.trace(example.W, example.x))
    assert repr(sl2.trace(example.W, example.x)) == text
    for line in (
        "f(W, x) = ||sigmoid(W x)||²",
        "  W  ",
        "  x  ",
        "  q = W x ",
        "  s = sigmoid(q) ",
        "  loss = ||s||² ",
        "  dloss_ds = 2 s ",
        "  ds_dq = s (1 - s) ",
        "  dloss_dq = dloss_ds · ds_dq ",
        "  dW = g xᵀ ",
        "  dx = Wᵀ g ",
        "sum over i of W_ij g_i",
        "(n, 1) = (3, 1)",
        "(m, n) = (3, 3)",
        "Why dW is an outer product",
        "Why dx is a matrix product",
    ):
        assert line in text, line
    for value in ("0.559714", "0.95112", "0.281622", "0.112649", "0.417857"):
        assert value in text


@pytest.mark.parametrize(
    ("batch", "column", "shape"), [((), False, "(n,) = (4,)"), ((9,), True, "(..., n, 1) = (9, 4, 1)")]
)
def test_printing_names_the_axes(batch, column, shape):
    W, x = pairs(batch, 3, 4)
    assert shape in str(sl2.trace(W, x[..., None] if column else x))


@pytest.mark.parametrize(("batch", "m", "n"), [((), 3, 3), ((1000,), 30, 40), ((), 200, 300), ((2, 3, 4), 5, 6)])
def test_printing_fits_a_terminal(batch, m, n):
    lines = str(sl2.trace(*pairs(batch, m, n, np.float32))).splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) < 500
    assert not any(line != line.rstrip() for line in lines)
