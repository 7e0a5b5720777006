"""check_grad: a right gradient is right, a wrong one wrong, and the report shows it; test_mistakes.py: their names."""

import sys

import fake_cupy
import numpy as np
import pytest
from arrays import pairs
from hypothesis import given
from hypothesis import strategies as st

import sigmoid_l2 as sl2
from host.test_mistakes import SHAPES, by_hand, check, says
from sigmoid_l2.explain import example


@pytest.mark.parametrize("size", [3, 10])
def test_the_textbook_formula_in_float32_is_right(size):
    """Its 1 - s loses some digits at every q beyond 1: that is float32, and no mistake."""
    rng = np.random.default_rng(size)
    for _ in range(50):
        W, x = rng.standard_normal((size, size), np.float32), rng.standard_normal(size, np.float32)
        s = 1 / (1 + np.exp(-W @ x))
        g = 2 * s * s * (1 - s)
        assert sl2.check_grad(W, x, dW=np.outer(g, x), dx=W.T @ g)


def test_a_gradient_by_differences_is_right_with_atol():
    W, x = np.array([[20.0, 1.0], [0.5, 0.1]]), np.array([1.0, 0.2])
    step = 1e-6 * np.eye(2)
    dx = np.array([sl2.value(W, x + d) - sl2.value(W, x - d) for d in step]) / 2e-6
    assert sl2.check_grad(W, x, dx=dx, atol=1e-9)
    assert not sl2.check_grad(W, x, dx=dx + 1e-4, atol=1e-9)
    with pytest.raises(ValueError, match="atol must be"):
        sl2.check_grad(W, x, dx=dx, atol=-1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [*SHAPES, ((), 1, 1), ((), 7, 300), ((0,), 3, 3)])
@pytest.mark.parametrize("scale", [0.01, 1, 30])
def test_what_the_library_computes_is_right(dtype, shape, scale):
    W, x = (a.astype(dtype) for a in pairs(*shape))
    W *= scale
    dW, dx = sl2.grad(W, x, backend="numpy")
    report = sl2.check_grad(W, x, dW=dW, dx=dx)
    assert report
    assert str(report) == "dW: right\ndx: right"
    assert report.dW.mistakes == report.dx.mistakes == ()


def test_dx_may_cancel():
    # dx = 1e6 g_1 - 1e6 g_2 with g_1 and g_2 almost equal: float32 cannot do better than 1e6 g eps.
    W, x = np.array([[1e6, 0.5], [-1e6, 0.5]], np.float32), np.array([1e-13, 1.0], np.float32)
    dx = sl2.grad(W, x, backend="numpy").dx
    assert check("dx", W, x, dx).ok
    assert not check("dx", W, x, dx + np.float32([2, 0])).ok


@given(seed=st.integers(0, 2**32 - 1), shape=st.sampled_from(SHAPES), scale=st.sampled_from([0.01, 0.3, 1, 2]))
def test_a_right_gradient_is_never_wrong(seed, shape, scale):
    W, x = pairs(*shape, seed=seed)
    W *= scale
    report = sl2.check_grad(W, x, dW=by_hand("dW", W, x), dx=by_hand("dx", W, x))
    assert report.ok, report


def test_one_wrong_value_is_pointed_at():
    W, x = pairs((), 3, 4)
    dW = by_hand("dW", W, x)
    true = dW[1, 2]
    dW[1, 2] *= 1.01
    report = check("dW", W, x, dW)
    assert (report.wrong, report.index) == (1, (1, 2))
    assert report.max_relative_error == pytest.approx(0.01, rel=1e-6)
    assert (report.given_value, report.true_value) == pytest.approx((1.01 * true, true))
    assert "1 of 12 values wrong, the worst at i = 1, j = 2:" in str(report)
    assert "No known mistake" in str(report)
    assert check("dW", W, x, dW, rtol=0.02).ok


def test_an_empty_batch_is_right_if_its_shape_is():
    W, x = pairs((0,), 3, 4)
    assert check("dW", W, x, np.empty((0, 3, 4))).ok
    assert says(check("dW", W, x, np.empty((3, 4))).mistakes) == ["shape"]


def test_nan_and_infinity_are_wrong_and_said_so():
    W, x = pairs((), 3, 3)
    dW = by_hand("dW", W, x)
    dW[2, 1], dW[2, 2] = np.nan, np.inf
    report = check("dW", W, x, dW)
    assert not report.ok
    assert report.mistakes[0].startswith("2 of 9 values are NaN or infinite, the first at (2, 1)")
    W[0, 0] = np.nan  # where the truth is NaN, so is the right gradient
    assert check("dW", W, x, sl2.grad(W, x).dW).ok


def test_bad_arguments():
    W, x = pairs((), 3, 3)
    with pytest.raises(ValueError, match="nothing to check"):
        sl2.check_grad(W, x)
    for rtol in (-1, np.nan, np.inf):
        with pytest.raises(ValueError, match="rtol"):
            sl2.check_grad(W, x, dx=x, rtol=rtol)
    for bad in (x + 1j, ["a", "b", "c"], [None] * 3):
        with pytest.raises(TypeError, match="dx has dtype"):
            sl2.check_grad(W, x, dx=bad)


def test_other_kinds_of_numbers():
    W, x = pairs((), 3, 3)
    dx = by_hand("dx", W, x)
    assert check("dx", W.tolist(), x.tolist(), dx.tolist()).ok
    assert check("dx", W, x, dx.astype(">f4")).ok
    assert check("dx", W, x, dx.astype(np.float16), rtol=1e-3).ok
    assert not check("dx", W, x, np.ones(3, int)).ok


def test_cuda_arrays_are_checked_on_the_host(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    W, x = pairs((5,), 3, 4)
    device_W, device_x = fake_cupy.asarray(W), fake_cupy.asarray(x)
    assert check("dW", device_W, device_x, fake_cupy.asarray(by_hand("dW", W, x))).ok
    report = check("dx", device_W, device_x, fake_cupy.asarray(by_hand("dx", W, x, ["sign"])))
    assert says(report.mistakes) == ["sign"]
    assert type(report.true) is np.ndarray


def test_the_report():
    report = sl2.check_grad(example.W, example.x, dW=example.dW, dx=example.dx)
    text = str(report)
    assert repr(report) == text
    assert repr(report.dW) == str(report.dW)
    lines = text.splitlines()
    assert lines[0] == "dW: WRONG"
    assert "dx: WRONG" in lines
    assert max(map(len, lines)) <= 80
    assert "true 0.0281622" in " ".join(text.split())
    assert "[0.056324 0.112649 0.028162]" in text  # the true values, as there are few
    joined = " ".join(text.split())
    for mistake in (*report.dW.mistakes, *report.dx.mistakes):
        assert " ".join(f"- {mistake}".split()) in joined
    W, x = pairs((100,), 3, 3)
    assert len(str(sl2.check_grad(W, x, dW=2 * by_hand("dW", W, x)))) < 400  # no hundred true values
    assert sl2.check_grad(W, x, dx=by_hand("dx", W, x)).dW is None
