"""check_grad names a mistake where it is, and nowhere else."""

import functools

import numpy as np
import pytest
from arrays import pairs
from hypothesis import given, settings
from hypothesis import strategies as st

import sigmoid_l2 as sl2
from sigmoid_l2.explain import example

SHAPES = [((), 3, 3), ((), 4, 2), ((), 2, 5), ((6,), 3, 3), ((2, 3), 3, 4)]

# What a report must say: the beginning of the sentence.
SAYS = {
    "extra 2": "an extra factor 2",
    "missing 2": "the factor 2 is missing",
    "twice": "df/ds = 2{e} is applied twice",
    "no ds": "df/ds = 2{e} is left out",
    "no dq": "ds/dq = s(1 - s) is left out",
    "no 1-s": "(1 - s) is missing",
    "sign": "the opposite sign",
    "transposed": "dW is transposed",
    "no outer": "elementwise product of g and x",
    "no e": "the error e is left out, the derivative is taken of s only",
    "no y": "y is left out, as in the gradient of ||s||²",
    "W": "W instead of Wᵀ",
    "row": "elementwise product with Wᵀ",
    "W and row": "elementwise product with W instead",
    "g is e": "g is {e} alone",
    "mean": "a mean instead of the sum",
}


def says(mistakes):
    """The mistakes by their keys in SAYS; "shape" and "k digits" for those two."""
    keys = {begin.replace("{e}", e): key for key, begin in SAYS.items() for e in "se"}
    found = []
    for sentence in mistakes:
        key = next((key for begin, key in keys.items() if sentence.startswith(begin)), sentence)
        if sentence.startswith("wrong shape"):
            key = "shape"
        elif sentence.startswith("rounded to "):
            key = sentence.removeprefix("rounded to ").split(":")[0]
        found.append(key)
    return sorted(found)


def by_hand(name, W, x, wrong=(), digits=None, y=None):
    """One gradient of a batch, computed the way its author would, with the mistakes ``wrong``; ``y`` is the target."""
    r = functools.partial(np.round, decimals=digits) if digits else np.asarray
    q = r(np.einsum("...ij,...j->...i", W, x))
    s = r(1 / (1 + np.exp(-q)))
    e = s if y is None or "no y" in wrong else y - s if "y - s" in wrong else r(s - y)
    df_ds = np.full_like(s, 2) if "no e" in wrong else r(2 * e)
    ds_dq = s if "no 1-s" in wrong else r(s * (1 - s))
    g = e if "g is e" in wrong else df_ds if "no dq" in wrong else ds_dq if "no ds" in wrong else r(ds_dq * df_ds)
    if "twice" in wrong:
        g = r(g * df_ds)
    factor = (2 if "extra 2" in wrong else 1) * (0.5 if "missing 2" in wrong else 1) * (-1 if "sign" in wrong else 1)
    WT = W if {"W", "W and row"} & set(wrong) else np.swapaxes(W, -1, -2)
    if name == "dW":
        out = g[..., :, None] * x[..., None, :]
        out = np.swapaxes(out, -1, -2) if "transposed" in wrong else g * x if "no outer" in wrong else out
    elif {"row", "W and row"} & set(wrong):
        out = WT * g[..., None, :]
    elif "column" in wrong:
        out = WT * g[..., :, None]
    else:
        out = (WT @ g[..., None])[..., 0]
    return r(factor * out)


def check(name, W, x, gradient, target=None, **options):
    return getattr(sl2.check_grad(W, x, target, **{name: gradient}, **options), name)


def test_the_example_is_explained():
    report = sl2.check_grad(example.W, example.x, dW=example.dW, dx=example.dx)
    assert not report
    assert not report.ok
    assert says(report.dW.mistakes) == ["3 digits", "twice"]
    assert says(report.dx.mistakes) == ["3 digits", "extra 2", "row", "shape", "twice"]
    assert report.dx.mistakes[0].startswith("wrong shape (3, 3) instead of (3, 1)")
    assert report.dx.max_relative_error is report.dx.index is None


CHAIN = ("extra 2", "missing 2", "twice", "no ds", "no dq", "no 1-s", "sign")
MISTAKES = [*((name, wrong) for name in ("dW", "dx") for wrong in CHAIN), ("dW", "transposed"), ("dx", "row")]
SQUARE = [("dW", "no outer"), ("dx", "W"), ("dx", "column")]  # these broadcast only where m = n


@pytest.mark.parametrize(
    ("name", "wrong", "shape"),
    [(*mistake, (batch, m, n)) for batch, m, n in SHAPES for mistake in MISTAKES + SQUARE * (m == n)],
)
def test_each_mistake(name, wrong, shape):
    W, x = pairs(*shape)
    gradient = by_hand(name, W, x, [wrong])
    mistakes = check(name, W, x, gradient).mistakes
    if wrong == "missing 2" and shape[1] == 2:
        (mistake,) = mistakes
        assert mistake.startswith(
            "one of these, which this W and x cannot tell apart (another shape can, such as m = 3 and"
        )
        assert SAYS["missing 2"] in mistake
        assert "divided by m = 2" in mistake
        return
    expected = ["row" if wrong == "column" else wrong]
    expected += ["shape"] * (gradient.shape != (W if name == "dW" else x).shape)
    assert says(mistakes) == sorted(expected)


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
        ("dx", ["W and row", "missing 2"]),
    ],
)
def test_combinations(name, wrong, batch, digits):
    # Of the size 5, so that three digits hold enough to tell the combinations apart.
    W, x = pairs(batch, 5, 5, seed=1)
    gradient = by_hand(name, W, x, wrong, digits)
    expected = ["row" if w == "column" else w for w in wrong]
    expected += ["shape"] * bool({"row", "column", "W and row"} & set(wrong)) + [f"{digits} digits"] * bool(digits)
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


def test_terms_that_are_right_but_not_summed():
    W, x = np.array([[0.1, 0.5], [-0.3, 0.8]]), np.array([0.2, 0.4])
    (mistake,) = sl2.check_grad(W, x, dx=W * sl2.trace(W, x).dloss_dq[:, None]).dx.mistakes[1:]
    assert mistake.startswith("W_ij g_i are the right terms, but their sum over i is missing")


@settings(max_examples=20)  # test_no_false_names.py has a thousand
@given(seed=st.integers(0, 2**32 - 1), shape=st.sampled_from(SHAPES), size=st.sampled_from([1e-3, 0.05, 1]))
def test_a_disturbed_gradient_is_wrong_and_has_no_name(seed, shape, size):
    W, x = pairs(*shape, seed=seed)
    rng = np.random.default_rng(seed + 1)
    for name in ("dW", "dx"):
        true = by_hand(name, W, x)
        report = check(name, W, x, true + size * np.abs(true).max() * rng.uniform(0.5, 1.5, true.shape))
        assert not report.ok
        assert report.mistakes == ()


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), shape=st.sampled_from(SHAPES), digits=st.sampled_from([None, 4, 3]))
def test_an_unrelated_gradient_has_no_name(seed, shape, digits):
    W, x = pairs(*shape, seed=seed)
    rng = np.random.default_rng(seed + 1)
    for name in ("dW", "dx"):
        noise = rng.standard_normal(by_hand(name, W, x).shape)
        report = check(name, W, x, noise if digits is None else noise.round(digits))
        assert not report.ok
        assert report.mistakes == ()


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


def test_zeros_are_named():
    W, x = pairs((), 3, 3)
    (mistake,) = check("dx", W, x, np.zeros(3)).mistakes
    assert mistake.startswith("every value is 0: not computed")


def test_mistakes_that_cannot_be_told_apart_are_alternatives():
    W, x = np.zeros((3, 2)), np.array([0.3, 0.7])  # s = 1/2, where 1 - s is a factor 1/2
    (mistake,) = check("dW", W, x, by_hand("dW", W, x, ["no 1-s"])).mistakes
    assert mistake.startswith("one of these")
    assert SAYS["extra 2"] in mistake
    assert SAYS["no 1-s"] in mistake
