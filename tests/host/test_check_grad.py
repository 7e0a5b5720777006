"""check_grad: a right gradient is right, a wrong one is wrong, and a mistake is named where it is and nowhere else."""

import functools
import sys

import fake_cupy
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sigmoid_l2 as sl2
from sigmoid_l2.explain import example

SHAPES = [((), 3, 3), ((), 4, 2), ((), 2, 5), ((6,), 3, 3), ((2, 3), 3, 4)]

# What a report must say: the beginning of the sentence.
SAYS = {
    "extra 2": "an extra factor 2",
    "missing 2": "the factor 2 is missing",
    "twice": "df/ds = 2s is applied twice",
    "no ds": "df/ds = 2s is left out",
    "no dq": "ds/dq = s(1 - s) is left out",
    "no 1-s": "(1 - s) is missing",
    "sign": "the opposite sign",
    "transposed": "dW is transposed",
    "no outer": "elementwise product of g and x",
    "W": "W instead of Wᵀ",
    "row": "elementwise product with Wᵀ",
    "column": "elementwise product with Wᵀ",
}


def says(mistakes):
    """The mistakes by their keys in SAYS; "shape" and "k digits" for those two."""
    keys = {begin: key for key, begin in SAYS.items() if key != "column"}
    found = []
    for sentence in mistakes:
        key = next((key for begin, key in keys.items() if sentence.startswith(begin)), sentence)
        if sentence.startswith("wrong shape"):
            key = "shape"
        elif sentence.startswith("rounded to "):
            key = sentence.removeprefix("rounded to ").split(":")[0]
        found.append(key)
    return sorted(found)


def by_hand(name, W, x, wrong=(), digits=None):
    """One gradient of a batch, computed the way its author would, with the mistakes ``wrong``."""
    r = functools.partial(np.round, decimals=digits) if digits else np.asarray
    q = r(np.einsum("...ij,...j->...i", W, x))
    s = r(1 / (1 + np.exp(-q)))
    df_ds = r(2 * s)
    ds_dq = s if "no 1-s" in wrong else r(s * (1 - s))
    g = df_ds if "no dq" in wrong else ds_dq if "no ds" in wrong else r(ds_dq * df_ds)
    if "twice" in wrong:
        g = r(g * df_ds)
    factor = (2 if "extra 2" in wrong else 1) * (0.5 if "missing 2" in wrong else 1) * (-1 if "sign" in wrong else 1)
    WT = W if "W" in wrong else np.swapaxes(W, -1, -2)
    if name == "dW":
        out = g[..., :, None] * x[..., None, :]
        out = np.swapaxes(out, -1, -2) if "transposed" in wrong else g * x if "no outer" in wrong else out
    elif "row" in wrong:
        out = WT * g[..., None, :]
    elif "column" in wrong:
        out = WT * g[..., :, None]
    else:
        out = (WT @ g[..., None])[..., 0]
    return r(factor * out)


def pairs(batch, m, n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (*batch, m, n)), rng.uniform(0.2, 1, (*batch, n))


def check(name, W, x, gradient, **options):
    return getattr(sl2.check_grad(W, x, **{name: gradient}, **options), name)


def test_the_example_is_explained():
    report = sl2.check_grad(example.W, example.x, dW=example.dW, dx=example.dx)
    assert not report
    assert not report.ok
    assert says(report.dW.mistakes) == ["3 digits", "twice"]
    assert says(report.dx.mistakes) == ["3 digits", "extra 2", "row", "shape", "twice"]
    assert report.dx.mistakes[0].startswith("wrong shape (3, 3) instead of (3, 1)")
    assert report.dx.max_relative_error is report.dx.index is None


@pytest.mark.parametrize("name", ["dW", "dx"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("wrong", ["extra 2", "missing 2", "twice", "no ds", "no dq", "no 1-s", "sign"])
def test_each_mistake_in_the_chain(name, shape, wrong):
    W, x = pairs(*shape)
    assert says(check(name, W, x, by_hand(name, W, x, [wrong])).mistakes) == [wrong]


PRODUCTS = [("dW", "transposed"), ("dx", "row"), ("dW", "no outer"), ("dx", "W"), ("dx", "column")]


@pytest.mark.parametrize(
    ("name", "wrong", "shape"),
    # The last three broadcast only where m = n.
    [(*p, (b, m, n)) for i, p in enumerate(PRODUCTS) for b, m, n in SHAPES if i < 2 or m == n],
)
def test_each_mistake_in_the_product(name, wrong, shape):
    batch, m, n = shape
    W, x = pairs(*shape)
    gradient = by_hand(name, W, x, [wrong])
    expected = ["row" if wrong == "column" else wrong]
    if gradient.shape != ((*batch, m, n) if name == "dW" else (*batch, n)):
        expected.append("shape")
    assert says(check(name, W, x, gradient).mistakes) == sorted(expected)


@pytest.mark.parametrize("m", [2, 3])
def test_g_as_a_column_broadcasts_where_n_is_1(m):
    W, x = pairs((), m, 1)
    gradient = by_hand("dx", W, x, ["column"])
    assert gradient.shape == (m, m)
    assert says(check("dx", W, x, gradient).mistakes) == ["row", "shape"]


@pytest.mark.parametrize("digits", [None, 4, 3])
@pytest.mark.parametrize("batch", [(), (5,)])
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("dW", ["twice", "sign"]),
        ("dW", ["no 1-s", "missing 2"]),
        ("dW", ["transposed", "twice"]),
        ("dW", ["transposed", "extra 2", "no 1-s", "sign"]),
        ("dx", ["W", "twice"]),
        ("dx", ["extra 2", "no 1-s"]),
        ("dx", ["extra 2", "row", "twice"]),
        ("dx", ["extra 2", "column", "twice"]),
        ("dx", ["W", "row", "missing 2"]),
    ],
)
def test_combinations(name, wrong, batch, digits):
    # Of the size 5, so that three digits hold enough to tell the combinations apart.
    W, x = pairs(batch, 5, 5, seed=1)
    gradient = by_hand(name, W, x, wrong, digits)
    expected = ["row" if w == "column" else w for w in wrong]
    expected += ["shape"] * bool({"row", "column"} & set(wrong)) + [f"{digits} digits"] * bool(digits)
    assert says(check(name, W, x, gradient).mistakes) == sorted(expected)


@pytest.mark.parametrize("name", ["dW", "dx"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("digits", [2, 3, 4])
@pytest.mark.parametrize("intermediates", [False, True])
def test_a_right_gradient_that_is_rounded_is_only_rounded(name, shape, digits, intermediates):
    W, x = pairs(*shape, seed=2)
    gradient = by_hand(name, W, x, digits=digits) if intermediates else by_hand(name, W, x).round(digits)
    assert says(check(name, W, x, gradient).mistakes) == [f"{digits} digits"]


def test_subtracting_s_from_1_is_named():
    W, x = np.array([[1.0, 2.0], [30.0, 4.0], [-20.0, -3.0]]), np.array([1.0, 0.5])
    for name in ("dW", "dx"):  # q = 2, 32, -21.5
        report = check(name, W, x, by_hand(name, W, x, ["extra 2"]))
        assert says(report.mistakes)[-1] == "extra 2"
    assert check("dW", W, x, by_hand("dW", W, x)).ok  # a few steps of the largest value, which q = 2 gives
    large = np.array([[30.0, 4.0], [40.0, 4.0]])  # q = 32, 42: nothing else outweighs it
    report = check("dW", large, x, by_hand("dW", large, x))
    assert [m[:5] for m in report.mistakes] == ["1 - s"]
    assert check("dx", W, x, by_hand("dx", W, x)).ok  # what is lost is nothing beside the other rows' terms
    assert [m[:5] for m in check("dW", [[40.0], [50.0]], [1.0], [[0.0], [0.0]]).mistakes] == ["1 - s"]


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


def test_terms_that_are_right_but_not_summed():
    W, x = np.array([[0.1, 0.5], [-0.3, 0.8]]), np.array([0.2, 0.4])
    (mistake,) = sl2.check_grad(W, x, dx=W * sl2.trace(W, x).dloss_dq[:, None]).dx.mistakes[1:]
    assert mistake.startswith("W_ij g_i are the right terms, but their sum over i is missing")


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


@given(seed=st.integers(0, 2**32 - 1), shape=st.sampled_from(SHAPES), scale=st.sampled_from([0.01, 0.3, 1, 5]))
def test_a_right_gradient_is_never_wrong(seed, shape, scale):
    W, x = pairs(*shape, seed)
    W *= scale
    report = sl2.check_grad(W, x, dW=by_hand("dW", W, x), dx=by_hand("dx", W, x))
    assert report.ok, report


@given(seed=st.integers(0, 2**32 - 1), shape=st.sampled_from(SHAPES), size=st.sampled_from([1e-3, 0.05, 1]))
def test_a_disturbed_gradient_is_wrong_and_has_no_name(seed, shape, size):
    W, x = pairs(*shape, seed)
    rng = np.random.default_rng(seed + 1)
    for name in ("dW", "dx"):
        true = by_hand(name, W, x)
        report = check(name, W, x, true + size * np.abs(true).max() * rng.uniform(0.5, 1.5, true.shape))
        assert not report.ok
        assert report.mistakes == ()


@given(seed=st.integers(0, 2**32 - 1), shape=st.sampled_from(SHAPES), digits=st.sampled_from([None, 4, 3]))
def test_an_unrelated_gradient_has_no_name(seed, shape, digits):
    W, x = pairs(*shape, seed)
    rng = np.random.default_rng(seed + 1)
    for name in ("dW", "dx"):
        noise = rng.standard_normal(by_hand(name, W, x).shape)
        report = check(name, W, x, noise if digits is None else noise.round(digits))
        assert not report.ok
        assert report.mistakes == ()


def test_one_wrong_value_is_pointed_at():
    W, x = pairs((), 3, 4)
    dW = by_hand("dW", W, x)
    true = dW[1, 2]
    dW[1, 2] *= 1.01
    report = check("dW", W, x, dW)
    assert (report.wrong, report.index) == (1, (1, 2))
    assert report.max_relative_error == pytest.approx(0.01, rel=1e-6)
    assert (report.given_value, report.true_value) == pytest.approx((1.01 * true, true))
    assert "1 of 12 values; the worst at (1, 2)" in str(report)
    assert "No known mistake" in str(report)
    assert check("dW", W, x, dW, rtol=0.02).ok


@pytest.mark.parametrize("column", [False, True])
def test_a_harmless_shape_is_called_harmless(column):
    W, x = pairs((), 3, 4)
    dx = by_hand("dx", W, x)
    report = check("dx", W, x[:, None] if column else x, dx if column else dx[:, None])
    assert not report.ok
    (mistake,) = report.mistakes
    assert "the values are right" in mistake
    assert f".reshape{report.expected_shape}" in mistake
    doubled = check("dx", W, x, 2 * dx[None, :])
    assert says(doubled.mistakes) == ["extra 2", "shape"]


def test_a_wrong_shape_alone_is_named():
    W, x = pairs((), 3, 4)
    report = check("dW", W, x, np.ones((5, 2)))
    assert report.mistakes == (
        "wrong shape (5, 2) instead of (3, 4): a gradient has exactly the shape of its input, here of W",
    )
    assert (report.shape, report.expected_shape, report.wrong) == ((5, 2), (3, 4), None)


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


def test_zeros_are_named():
    W, x = pairs((), 3, 3)
    assert check("dx", W, x, np.zeros(3)).mistakes == ("every value is 0: not computed, or rounded away",)


def test_mistakes_that_cannot_be_told_apart_are_alternatives():
    W, x = np.zeros((3, 2)), np.array([0.3, 0.7])  # s = 1/2, where 1 - s is a factor 1/2
    (mistake,) = check("dW", W, x, by_hand("dW", W, x, ["no 1-s"])).mistakes
    assert mistake.startswith("one of these")
    assert SAYS["extra 2"] in mistake
    assert SAYS["no 1-s"] in mistake


def test_bad_arguments():
    W, x = pairs((), 3, 3)
    with pytest.raises(ValueError, match="nothing to check"):
        sl2.check_grad(W, x)
    with pytest.raises(ValueError, match="x must have shape"):
        sl2.check_grad(W, x[:2], dx=x)
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
    assert max(map(len, lines)) <= 100
    assert "true 0.0281622" in text
    assert "[0.056324 0.112649 0.028162]" in text  # the true values, as there are few
    joined = " ".join(text.split())
    for mistake in (*report.dW.mistakes, *report.dx.mistakes):
        assert " ".join(f"- {mistake}".split()) in joined
    W, x = pairs((100,), 3, 3)
    assert len(str(sl2.check_grad(W, x, dW=2 * by_hand("dW", W, x)))) < 400  # no hundred true values
    assert sl2.check_grad(W, x, dx=by_hand("dx", W, x)).dW is None
