"""trace: every intermediate has the right values, shape and dtype, and the printed form shows them all."""

import sys

import contract
import fake_cupy
import numpy as np
import oracle
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


TARGETS = {"0": 0, "1": 1.0, "0 and 1": [0, 1, 1], "between": [0.25, 0.5, 0.75], "outside": [-2.0, 3.0, 0.5]}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("scale", [1, 30])
def test_a_target_is_right_in_both_tails(dtype, target, scale):
    W, x = pairs((20,), 3, 4, dtype)
    W *= dtype(scale)  # |q| up to 150: where 1 - s is 0 and s is below the smallest number
    t = sl2.trace(W, x, target)
    for k in range(20):
        truth = oracle.pair(W[k], x[k], target)
        limits = contract.allowed(W[k], x[k], truth, target=target)
        for name, given, true, limit in (
            ("loss", t.loss[k], truth.loss, limits.loss),
            ("dW", t.dW[k], truth.dW, limits.dW),
            ("dx", t.dx[k], truth.dx, limits.dx),
            ("dloss_dq", t.dloss_dq[k], truth.g, limits.dq),
        ):
            assert np.all(np.abs(given - np.array(true, float)) <= limit), name
        np.testing.assert_array_equal(t.y[k], np.broadcast_to(target, 3))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("q", [-90.0, -20.0, -1.0, 0.0, 1.0, 20.0, 80.0])
def test_the_error_does_not_cancel_at_0_and_1(dtype, q):
    for target in (0, 1):
        t = sl2.trace(np.array([[q]], dtype), np.ones(1, dtype), target)
        truth = oracle.pair([[q]], [1.0], target)
        info = np.finfo(dtype)
        np.testing.assert_allclose(t.e, np.array(truth.e, float), rtol=4 * info.eps, atol=info.tiny)
        np.testing.assert_array_equal(t.dloss_ds, 2 * t.e)


def test_without_a_target_there_is_no_y():
    t = sl2.trace(*pairs((5,), 3, 4))
    assert t.y is t.e is None
    np.testing.assert_array_equal(t.dloss_ds, 2 * t.s)


@pytest.mark.parametrize("batch", [(), (7,), (0,)])
@pytest.mark.parametrize("column", [False, True])
def test_shapes_of_a_target(batch, column):
    W, x = pairs(batch, 3, 4, np.float32)
    x = x[..., None] if column else x
    y = np.arange(3) / 4
    targets = [y, np.broadcast_to(y, (*batch, 3)), *[y[:, None], np.broadcast_to(y, (*batch, 3))[..., None]] * column]
    traces = [sl2.trace(W, x, target) for target in (*targets, y.tolist(), y.astype(np.float32))]
    for t in traces:
        for name in ("y", "e"):
            assert getattr(t, name).shape == t.q.shape == (*batch, 3, *[1] * column)
            assert getattr(t, name).dtype == np.float32
            np.testing.assert_array_equal(getattr(t, name), getattr(traces[0], name))
    for number in (1, 1.0, True, np.float16(1), [1]):
        np.testing.assert_array_equal(sl2.trace(W, x, number).y, np.ones_like(traces[0].q))


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize(
    ("W_batch", "x_batch", "y_batch"), [((), (6,), None), ((6,), (), ()), ((2, 1), (3,), (2, 3)), ((), (), (6,))]
)
def test_gradients_of_what_pairs_share_are_sums(W_batch, x_batch, y_batch, column):
    (W, _), (_, x) = pairs(W_batch, 3, 4), pairs(x_batch, 3, 4)
    y = None if y_batch is None else pairs(y_batch, 3, 3)[1]
    batch = np.broadcast_shapes(W_batch, x_batch, y_batch or ())
    t = sl2.trace(W, x[..., None] if column else x, y)
    assert t.loss.shape == batch
    assert (t.W.shape, t.dW.shape, t.dx.shape) == (W.shape, W.shape, t.x.shape)
    full = np.broadcast_to(W, (*batch, 3, 4)), np.broadcast_to(x, (*batch, 4))
    whole = sl2.trace(*full, None if y is None else np.broadcast_to(y, (*batch, 3)))
    for name, own in (("dW", W_batch), ("dx", x_batch)):
        terms = getattr(whole, name)
        axes = tuple(k for k in range(len(batch)) if (*[1] * (len(batch) - len(own)), *own)[k] == 1)
        np.testing.assert_allclose(getattr(t, name).ravel(), terms.sum(axes).ravel(), rtol=1e-13, atol=1e-15)
    assert str(t).count("summed over the pairs that share") == (W_batch != batch) + (x_batch != batch)


BAD_TARGETS = {
    "two of three": ([0, 1], ValueError, ["W (3, 4)", "x (4,)", "target (2,)"]),
    "of x's length": (np.zeros((3, 4)), ValueError, ["W (3, 4)", "x (4,)", "target (3, 4)"]),
    "complex": ([1j, 0, 0], TypeError, ["target has dtype complex128"]),
    "text": (["0", "1", "1"], TypeError, ["target has dtype <U1"]),
    "ragged": ([[0], [0, 1]], ValueError, ["target cannot be made into an array"]),
    "masked": (np.ma.array([0, 1, 1]), TypeError, ["target is of type numpy.ma"]),
}


@pytest.mark.parametrize(("target", "error", "words"), BAD_TARGETS.values(), ids=BAD_TARGETS)
def test_refused_targets(target, error, words):
    W, x = pairs((), 3, 4)
    for call in (lambda: sl2.trace(W, x, target), lambda: sl2.check_grad(W, x, target, dW=W)):
        with pytest.raises(error) as raised:
            call()
        assert all(word in str(raised.value) for word in words), raised.value


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
    y = np.ones(3)
    t = sl2.trace(W, x, y)
    before = t.W.copy(), t.x.copy()
    W[:], x[:], y[:] = 0, 0, 0
    np.testing.assert_array_equal(t.W, before[0])
    np.testing.assert_array_equal(t.x, before[1])
    np.testing.assert_array_equal(t.y, [1, 1, 1])


def test_cuda_arrays_are_brought_to_the_host(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    W, x = pairs((5,), 3, 4)
    on_device = sl2.trace(fake_cupy.asarray(W), fake_cupy.asarray(x))
    for name in FIELDS:
        assert type(getattr(on_device, name)) is np.ndarray, name
    np.testing.assert_array_equal(on_device.dx, sl2.trace(W, x).dx)
    y = np.ones((5, 3))
    on_device = sl2.trace(fake_cupy.asarray(W), fake_cupy.asarray(x), fake_cupy.asarray(y))
    assert type(on_device.y) is np.ndarray
    np.testing.assert_array_equal(on_device.dx, sl2.trace(W, x, y).dx)
    with pytest.raises(TypeError, match="target"):
        sl2.trace(fake_cupy.asarray(W), fake_cupy.asarray(x), y)


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


def test_printing_shows_the_error_of_a_target():
    text = str(sl2.trace(example.W, example.x, [1, 0, 1]))
    for line in (
        "f(W, x) = ||sigmoid(W x) - y||²",
        "  y  ",
        "  e = s - y ",
        "e_i = s_i - y_i",
        "  loss = ||e||² ",
        "the sum over i of e_i²",
        "  dloss_ds = 2 e ",
        "  ds_dq = s (1 - s) ",
        "g_i = 2 e_i · s_i (1 - s_i)",
    ):
        assert line in text, line
    for value in ("-0.440286", "0.727077", "-0.217003"):
        assert value in text
    assert "{" not in text


@pytest.mark.parametrize(
    ("batch", "column", "shape"), [((), False, "(n,) = (4,)"), ((9,), True, "(..., n, 1) = (9, 4, 1)")]
)
def test_printing_names_the_axes(batch, column, shape):
    W, x = pairs(batch, 3, 4)
    assert shape in str(sl2.trace(W, x[..., None] if column else x))


def test_printing_names_the_axes_of_what_is_shared():
    (W, _), (_, x) = pairs((), 3, 4), pairs((9,), 3, 4)
    lines = str(sl2.trace(W, x, 1)).splitlines()
    shapes = {
        name: next(line for line in lines if line.startswith(f"  {name} ")) for name in ("W", "x", "y", "q", "dW")
    }
    ends = {"W": "(m, n) = (3, 4)", "x": "(..., n) = (9, 4)", "y": "(..., m) = (9, 3)", "q": "(..., m) = (9, 3)"}
    for name, end in {**ends, "dW": ends["W"]}.items():
        assert shapes[name].endswith(f" {end}")


# Batches that are deep, wide, empty, and as deep as NumPy's arrays can be; and values that take the most columns.
PRINTED = [((), 3, 3), ((1000,), 30, 40), ((), 200, 300), ((2, 3, 4), 5, 6), ((0, 123456789, 1000, 10000), 3, 2)]
PRINTED += [((1, 2, 1, 2, 1, 2), 3, 4), ((1,) * 20, 2, 2), ((1,) * 30, 1, 7)]
VALUES = {"ordinary": 1, "smallest": -1.23456e-300, "largest": 1e300, "integers": -123456789}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("target", [None, 1])
@pytest.mark.parametrize(("batch", "m", "n"), PRINTED)
def test_printing_fits_a_terminal(batch, m, n, target, value, dtype):
    W, x = pairs(batch, m, n)
    with np.errstate(over="ignore"):
        text = str(sl2.trace((W * value).astype(dtype), x.astype(dtype), target))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) < 500
    assert not any(line != line.rstrip() for line in lines)


@pytest.mark.parametrize("batch", [(0, 123456789, 1000, 10000), (1,) * 30])
def test_a_long_shape_is_printed_whole(batch):
    text = str(sl2.trace(*pairs(batch, 3, 2)))
    assert f" W (..., m, n) = {(*batch, 3, 2)} " in " ".join(text.split())


def test_values_that_do_not_fit_are_wrapped():
    """An element that a caller prints in many columns, as by np.set_printoptions(formatter=...)."""
    with np.printoptions(formatter={"float_kind": lambda value: f"{value:.90f}"}):
        lines = str(sl2.trace([[0.0, 0.0]], [1.0, 2.0])).splitlines()
    assert max(map(len, lines)) <= 80
    assert "".join(lines).count("0" * 60) > 2
