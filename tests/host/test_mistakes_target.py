"""check_grad with a target: its mistakes are named, and a right gradient of ||sigmoid(W x) - y||^2 is right."""

import numpy as np
import pytest
from arrays import pairs
from hypothesis import given, settings
from hypothesis import strategies as st

import sigmoid_l2 as sl2
from host.test_mistakes import CHAIN, SHAPES, by_hand, check, says

KINDS = ("number", "vector", "batch")
MISTAKES = (*CHAIN, "y - s", "no y", "no e")


def target(kind, batch, m, dtype=np.float64, seed=0):
    """A target of numbers between 0 and 1: one for all, one for each i, or one for each i of each pair."""
    rng = np.random.default_rng([m, seed])
    return dtype({"number": 0.25, "vector": rng.random(m), "batch": rng.random((*batch, m))}[kind])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", MISTAKES)
@pytest.mark.parametrize("shape", SHAPES)
def test_each_mistake(wrong, kind, dtype, shape):
    W, x = pairs(*shape, dtype)
    y = target(kind, *shape[:2], dtype)
    for name in ("dW", "dx"):
        gradient = by_hand(name, W, x, [wrong], y=y)
        assert gradient.dtype == dtype
        mistakes = check(name, W, x, gradient, y).mistakes
        if wrong == "missing 2" and shape[1] == 2:
            assert mistakes[0].startswith("one of these, which this W and x cannot tell apart (another shape can")
        else:
            assert says(mistakes) == ["sign" if wrong == "y - s" else wrong]


def test_the_words():
    W, x = pairs((), 3, 4)
    y = target("vector", (), 3)
    for wrong, words in {
        "y - s": "the error is e = s - y, not y - s",
        "no y": "df/ds = 2e with the error e = s - y, not 2s",
        "no e": "df/ds = 2e with e = s - y",
        "missing 2": "as in the gradient of ½||s - y||²: f is the sum of e², so df/ds = 2e",
        "twice": "g = df/ds · ds/dq = 2e · s(1 - s)",
        "no ds": "g = df/ds · ds/dq = 2e · s(1 - s)",
        "no dq": "g = df/ds · ds/dq = 2e · s(1 - s)",
        "extra 2": "the one in df/ds = 2e",
    }.items():
        (mistake,) = check("dW", W, x, by_hand("dW", W, x, [wrong], y=y), y).mistakes
        assert words in mistake
        assert "{" not in mistake


@pytest.mark.parametrize("digits", [None, 4, 3])
@pytest.mark.parametrize("batch", [(), (5,)])
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("dW", ["no y", "missing 2"]),
        ("dW", ["no e", "transposed"]),
        ("dW", ["g is e"]),  # the gradient of the cross-entropy
        ("dx", ["y - s", "no 1-s"]),
        ("dx", ["W", "no y"]),
        ("dx", ["extra 2", "row", "twice"]),
    ],
)
def test_combinations(name, wrong, batch, digits):
    W, x = pairs(batch, 5, 5, seed=1)
    y = target("batch", batch, 5)
    expected = ["sign" if w == "y - s" else w for w in wrong]
    expected += ["shape"] * ("row" in wrong) + [f"{digits} digits"] * bool(digits)
    assert says(check(name, W, x, by_hand(name, W, x, wrong, digits, y), y).mistakes) == sorted(expected)


def test_mistakes_that_no_numbers_tell_apart_are_alternatives():
    W, x = pairs((), 3, 4)
    (mistake,) = check("dW", W, x, by_hand("dW", W, x, ["no y", "no dq"]), target("vector", (), 3)).mistakes  # g = 2s
    assert mistake.startswith("one of these")
    for words in ("y is left out", "ds/dq = s(1 - s) is left out", "the error e is left out", "(1 - s) is missing"):
        assert words in mistake


@pytest.mark.parametrize("digits", [2, 3, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_right_gradient_that_is_rounded_is_only_rounded(shape, digits):
    W, x = pairs(*shape, seed=2)
    y = target("batch", *shape[:2])
    for name in ("dW", "dx"):
        for gradient in (by_hand(name, W, x, digits=digits, y=y), by_hand(name, W, x, y=y).round(digits)):
            assert says(check(name, W, x, gradient, y).mistakes) == [f"{digits} digits"]


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from(SHAPES),
    scale=st.sampled_from([0.01, 0.3, 1, 2]),
    kind=st.sampled_from(KINDS),
    ends=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_a_right_gradient_is_never_wrong(seed, shape, scale, kind, ends, dtype):
    W, x = pairs(*shape, dtype, seed=seed)
    W *= dtype(scale)
    y = target(kind, *shape[:2], dtype, seed)
    y = np.round(y) if ends else y  # 0 and 1
    right = sl2.trace(W, x, y)
    assert sl2.check_grad(W, x, y, dW=right.dW, dx=right.dx)
    for name in ("dW", "dx"):
        report = check(name, W, x, by_hand(name, W, x, y=y), y)
        # By hand 1 - s is subtracted, and from some q on, with or without a target, that is a mistake in float32.
        far = dtype is np.float32 and right.q.max() > 6
        assert report.ok or (far and [m[:35] for m in report.mistakes] == ["1 - s is computed by subtraction, w"]), (
            report
        )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [0.01, 1, 30])
@pytest.mark.parametrize("y", [0, 1, 0.3, [0.0, 1.0, 0.5]])
@pytest.mark.parametrize("batch", [(), (8,)])
def test_what_the_library_computes_is_right_in_the_tails(dtype, scale, y, batch):
    W, x = pairs(batch, 3, 4, dtype)
    W *= dtype(scale)
    results = sl2.grad(W, x, y, backend="numpy"), sl2.trace(W, x, y)
    for r in results:
        assert str(sl2.check_grad(W, x, y, dW=r.dW, dx=r.dx)) == "dW: right\ndx: right"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_error_that_cancels_is_no_mistake(dtype):
    """Where s is y but for the last bits, these are all that e has, and no program has them right."""
    W, x = pairs((50,), 1, 3, dtype)
    s = 1 / (1 + np.exp(-sl2.trace(W.astype(float), x.astype(float)).q))
    y = (s * (1 + 4 * np.finfo(dtype).eps)).astype(dtype)
    given = {name: by_hand(name, W, x, y=y) for name in ("dW", "dx")}
    assert sl2.check_grad(W, x, y, **given)
    assert sl2.check_grad(W[0], x[0], y[0], **{name: a[0] for name, a in given.items()})
    assert not sl2.check_grad(W, x, y, dx=1e-3 * by_hand("dx", W, x, y=0))


def test_a_target_of_0_is_no_target():
    W, x = pairs((4,), 3, 3)
    for wrong in ((), ["extra 2"], ["no 1-s"]):
        given = {name: by_hand(name, W, x, wrong) for name in ("dW", "dx")}
        reports = [sl2.check_grad(W, x, y, **given) for y in (None, 0, np.zeros(3), np.zeros((4, 3)))]
        assert len({(r.ok, *says(r.dW.mistakes), *says(r.dx.mistakes)) for r in reports}) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_subtracting_y_from_s_is_named(dtype):
    q = np.array([[12.0], [15.0]] if dtype is np.float32 else [[30.0], [35.0]], dtype)
    x = np.ones(1, dtype)
    report = check("dW", q, x, by_hand("dW", q, x, y=dtype(1)), 1)  # e = s - 1 has lost its digits
    (mistake,) = report.mistakes
    assert mistake.startswith("1 - s is computed by subtraction")
    assert "(1 - y) - c" in mistake
    assert check("dW", q, x, sl2.grad(q, x, 1, backend="numpy").dW, 1).ok


def test_subtracting_y_from_s_hides_no_other_mistake():
    W, x = np.array([[1.0, 2.0], [30.0, 4.0], [-20.0, -3.0]]), np.array([1.0, 0.5])  # q = 2, 32, -21.5
    y = np.ones(3)
    for name in ("dW", "dx"):
        assert check(name, W, x, by_hand(name, W, x, y=y), y).ok  # what is lost is nothing beside the other values
        assert says(check(name, W, x, by_hand(name, W, x, ["extra 2"], y=y), y).mistakes)[-1] == "extra 2"


@settings(max_examples=20)  # test_no_false_names.py has a thousand
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from(SHAPES),
    kind=st.sampled_from(KINDS),
    name=st.sampled_from(["dW", "dx"]),
    how=st.sampled_from(["disturbed", "unrelated", "unrelated, 3 digits"]),
)
def test_a_disturbed_or_an_unrelated_gradient_has_no_name(seed, shape, kind, name, how):
    W, x = pairs(*shape, seed=seed)
    y = target(kind, *shape[:2])
    rng = np.random.default_rng(seed + 1)
    gradient = by_hand(name, W, x, y=y)
    if how == "disturbed":
        gradient += 0.05 * np.abs(gradient).max() * rng.uniform(0.5, 1.5, gradient.shape)
    else:
        gradient = rng.standard_normal(gradient.shape).round(3 if "digits" in how else 16)
    report = check(name, W, x, gradient, y)
    assert not report.ok
    assert report.mistakes == ()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("W_batch", "x_batch", "y_batch"), [((), (6,), None), ((6,), (), ()), ((2, 1), (3,), (2, 3)), ((), (), (500,))]
)
def test_gradients_of_what_pairs_share_are_sums(W_batch, x_batch, y_batch, dtype):
    (W, _), (_, x) = pairs(W_batch, 3, 4, dtype), pairs(x_batch, 3, 4, dtype)
    y = None if y_batch is None else pairs(y_batch, 3, 3, dtype)[1]
    dW, dx = sl2.trace(W, x, y).dW, sl2.trace(W, x, y).dx
    assert sl2.check_grad(W, x, y, dW=dW, dx=dx)
    report = sl2.check_grad(W, x, y, dW=2 * dW, dx=-dx)
    assert (says(report.dW.mistakes), says(report.dx.mistakes)) == (["extra 2"], ["sign"])
    terms = np.broadcast_to(dW, (6, *dW.shape))
    assert says(check("dW", W, x, terms, y).mistakes) == ["shape"]
