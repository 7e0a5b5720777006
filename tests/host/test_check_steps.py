"""check_grad with steps of one's own, pair by pair, and where several explanations give the same numbers."""

import numpy as np
import pytest
from arrays import pairs

import sigmoid_l2 as sl2
from host.test_mistakes import by_hand, check, says

STEPS = ("q", "s", "e", "loss", "dloss_ds", "ds_dq", "dloss_dq", "dW", "dx")


def program(W, x, y=None, **wrong):
    """Every step of a program, of vectors; ``wrong`` replaces steps, each a function of the steps before it."""
    step = {}

    def take(name, value):
        step[name] = wrong[name](step) if name in wrong else value()

    take("q", lambda: np.einsum("...ij,...j->...i", W, x))
    take("s", lambda: 1 / (1 + np.exp(-step["q"])))
    if y is not None:
        take("e", lambda: step["s"] - y)
    e = step["s" if y is None else "e"]
    take("loss", lambda: (e**2).sum(axis=-1))
    take("dloss_ds", lambda: 2 * e)
    take("ds_dq", lambda: step["s"] * (1 - step["s"]))
    take("dloss_dq", lambda: step["dloss_ds"] * step["ds_dq"])
    take("dW", lambda: step["dloss_dq"][..., :, None] * x[..., None, :])
    take("dx", lambda: np.einsum("...ij,...i->...j", W, step["dloss_dq"]))
    return step


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("y", [None, 0.25])
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_right_steps_are_right(batch, y, column):
    W, x = pairs(batch, 3, 4)
    steps = program(W, x, y)
    if column:
        steps = {name: a if name in ("loss", "dW") else a[..., None] for name, a in steps.items()}
    report = sl2.check_grad(W, x[..., None] if column else x, y, **steps)
    assert report, report
    assert report.first_wrong is None
    assert [step.name for step in report.steps] == [name for name in STEPS if name in steps]
    assert str(report) == "\n".join(f"{name}: right" for name in STEPS if name in steps)


WRONG = {
    "q": (lambda p: -p["q_right"], "every value is -1 times the right one"),
    "s": (lambda p: np.tanh(p["q"]), "s is tanh(q) instead of the sigmoid"),
    "e": (lambda p: 0.25 - p["s"], "the opposite sign: the error is e = s - y"),
    "loss": (lambda p: (p["e"] ** 2).mean(axis=-1), "every value is 0.33333 times the right one"),
    "dloss_ds": (lambda p: p["e"] ** 2, "e² stands in the place of its derivative 2e"),
    "ds_dq": (lambda p: 1 - p["s"] ** 2, "ds/dq is 1 - s²"),
    "dloss_dq": (lambda p: p["dloss_ds"] + p["ds_dq"], "df/ds and ds/dq are added"),
    "dW": (lambda p: 2 * p["dloss_dq"][..., :, None] * p["x"][..., None, :], "an extra factor 2"),
    "dx": (lambda p: np.einsum("...ij,...j->...i", p["W"], p["dloss_dq"]), "W instead of Wᵀ"),
}


@pytest.mark.parametrize("batch", [(), (4,)])
@pytest.mark.parametrize("name", WRONG)
def test_the_first_wrong_step_is_named_and_what_follows_is_not(name, batch):
    W, x = pairs(batch, 3, 3)
    known = {"W": W, "x": x, "q_right": np.einsum("...ij,...j->...i", W, x)}
    steps = program(W, x, 0.25, **{name: lambda step: WRONG[name][0]({**known, **step})})
    report = sl2.check_grad(W, x, 0.25, **steps)
    assert report.first_wrong == name
    assert str(report).startswith(f"The first wrong step is {name}.\n")
    for step in report.steps:
        if step.name == name:
            assert len(step.mistakes) == 1
            assert step.mistakes[0].startswith(WRONG[name][1])
        elif not step.ok:
            assert step.mistakes == ()
            assert (step.known, step.follows) == ((), name)


def test_a_second_mistake_is_told_from_one_s_own_step():
    W, x = pairs((), 4, 3)
    steps = program(W, x, s=lambda step: np.tanh(step["q"]), dloss_ds=lambda step: step["s"])
    report = sl2.check_grad(W, x, **steps)
    assert report.first_wrong == "s"
    told = {step.name: step.mistakes[0] for step in report.steps if step.mistakes}
    assert told["s"].startswith("s is tanh(q)")
    assert told["dloss_ds"].startswith("every value is 0.5 times the right one: f is the sum of s²")
    assert set(told) == {"s", "dloss_ds"}


def test_a_wrong_shape_of_a_step_is_named():
    W, x = pairs((), 3, 4)
    report = sl2.check_grad(W, x, s=np.ones((3, 3)), loss=np.ones(3))
    assert [step.mistakes[0].split(":")[0] for step in report.steps] == [
        "wrong shape (3, 3) instead of (3,)",
        "wrong shape (3,) instead of ()",
    ]


def test_e_needs_a_target():
    W, x = pairs((), 3, 4)
    with pytest.raises(ValueError, match="only where there is a target"):
        sl2.check_grad(W, x, e=np.ones(3))


def test_pairs_that_differ_are_told_apart():
    W, x = pairs((2, 4), 3, 4)
    dW = by_hand("dW", W, x)
    dW[1, 2] *= 2
    dW[0, 1], dW[1, 1] = by_hand("dW", W[0, 1], x[0, 1], ["no dq"]), by_hand("dW", W[1, 1], x[1, 1], ["no dq"])
    mistakes = check("dW", W, x, dW).mistakes
    assert [mistake.split(": ")[:2] for mistake in mistakes] == [
        ["pair (0, 1)", "ds/dq = s(1 - s) is left out"],
        ["pair (1, 1)", "ds/dq = s(1 - s) is left out"],
        ["pair (1, 2)", "an extra factor 2"],
    ]
    dW = by_hand("dW", W, x)
    dW[1] = by_hand("dW", W[1], x[1], ["sign"])
    (mistake,) = check("dW", W, x, dW).mistakes  # one search for all that are wrong
    assert mistake.startswith("pairs (1, 0), (1, 1), (1, 2), (1, 3): the opposite sign")


def test_gradients_that_are_not_summed_are_known_in_any_order_of_the_axes():
    """The batch axes that are summed are the first here, and the last in the search."""
    (W, _), (_, x) = pairs((3,), 4, 5), pairs((6, 1), 4, 5)
    full = np.broadcast_to(W, (6, 3, 4, 5)), np.broadcast_to(x, (6, 3, 5))
    terms = by_hand("dW", *full)
    assert check("dW", W, x, terms.sum(axis=0)).ok
    for dW, words in (
        (terms, "the gradients of the pairs are not summed"),
        (terms.mean(axis=0), "a mean instead of the sum: it is divided by B = 6"),
        (terms[-1], "only the last pair counts"),
        (terms[0], "only the first pair counts"),
    ):
        assert words in " ".join(check("dW", W, x, dW).mistakes)


def test_gradients_may_be_swapped():
    W, x = pairs((), 3, 4)
    t = sl2.trace(W, x)
    report = sl2.check_grad(W, x, dW=t.dx, dx=t.dW)
    assert all("dW and dx are swapped" in step.mistakes[0] for step in report.steps)


def test_how_to_tell_explanations_apart():
    W, x = np.zeros((3, 2)), np.array([0.3, 0.7])  # s = 1/2 everywhere
    (mistake,) = check("dW", W, x, by_hand("dW", W, x, ["no 1-s"])).mistakes
    assert "cannot tell apart (another W and x can): " in mistake
    W, x = pairs((), 2, 3)
    (mistake,) = check("dx", W, x, by_hand("dx", W, x) / 2).mistakes
    assert "cannot tell apart (another shape can, such as m = 3 and n = 4): " in mistake


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a * np.array([[1, 1, 1], [1, 1.7, 1], [1, 1, 1]]), "only the value i = 1, j = 1 is wrong"),
        (lambda a: a * np.array([[1], [1.7], [1]]) + [[0], [0.1], [0]], "only the row i = 1 is wrong"),
        (lambda a: a * [1, 1, 1.7] + [0, 0, 0.1], "only the column j = 2 is wrong"),
        (
            lambda a: a[[2, 0, 1]],
            "the rows are right, in another order: i = 0, 1, ... of yours is the true i = 2, 0, 1",
        ),
        (lambda a: a[:, [1, 0, 2]], "the columns are right, in another order"),
        (lambda a: a * [[1, -1, 1], [1, 1, -1], [-1, 1, 1]], "the values are right but for their signs"),
        (lambda a: np.clip(a, -0.1, 0.1), "are clipped to that"),
        (
            lambda a: a * [[1.001, 0.998, 1.002], [0.999, 1.003, 1.001], [0.998, 1.001, 1.004]],
            "within 0.004 of the right",
        ),
        (
            lambda a: np.outer([0.3, 0.1, 0.7], [0.4, -0.2, 0.9]) * 0 + np.outer([0.3, 0.1, 0.7], X),
            "u xᵀ with the right x",
        ),
    ],
)
def test_what_is_known_where_no_mistake_is(change, words):
    report = check("dW", W3, X, change(sl2.trace(W3, X).dW))
    assert report.mistakes == ()
    assert words in report.known[0]
    assert f"  - {words[:30]}" in str(report) or words in " ".join(str(report).split())
    assert "No known mistake explains it." in str(report)


W3, X = pairs((), 3, 3, seed=3)


def test_the_report_fits_80_columns_and_shows_what_it_judges():
    report = sl2.check_grad(W3, X, dW=W3, dx=np.outer(X, X))
    text = str(report)
    assert max(map(len, text.splitlines())) <= 80
    assert "your dW:" in text
    assert np.array2string(W3[0], precision=6)[1:-1].strip() in text
    assert f"i = {report.dW.index[0]}, j = {report.dW.index[1]}" in text


def test_a_notebook_shows_the_graph():
    assert "<svg" in sl2.check_grad(W3, X, dW=W3)._repr_html_()


def test_what_follows_is_told_of_the_last_wrong_step_that_it_needs():
    W, x = pairs((), 4, 3)
    right = sl2.trace(W, x)
    report = sl2.check_grad(W, x, loss=right.loss + 1, ds_dq=right.s, dW=np.outer(right.dloss_ds * right.s, x))
    assert [step.follows for step in report.steps] == [None, None, "ds_dq"]  # no gradient is made of the loss
    assert sl2.check_grad(W, x, loss=right.loss + 1, dW=2 * right.dW).dW.follows is None


@pytest.mark.parametrize("shape", [(30_000, 1), (1, 30_000)])
def test_long_pairs_make_no_square_arrays(shape):
    rng = np.random.default_rng(0)
    W, x = rng.standard_normal(shape) / 100, rng.random(shape[1])
    report = check("dW", W, x, rng.random(shape), 0.3)
    assert (report.ok, report.mistakes) == (False, ())
    assert says(check("dW", W, x, 2 * sl2.trace(W, x, 0.3).dW, 0.3).mistakes)


@pytest.mark.parametrize("given", [[0.7, 0.7, 0.7], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [-1.0, 1.0, 1.0]])
def test_numbers_of_one_digit_are_no_rounding_of_others(given):
    rng = np.random.default_rng(4)
    for _ in range(10):
        W, x, y = rng.standard_normal((3, 3)), rng.standard_normal(3), rng.random(3)
        assert not any("rounded" in mistake for mistake in check("dx", W, x, given, y).mistakes)


@pytest.mark.parametrize("name", ["ds_dq", "dW", "e", "dloss_dq"])
def test_whole_numbers_are_no_differences(name):
    step = sl2.check_grad(np.eye(4), np.ones(4), 0.3, **{name: np.eye(4) if name == "dW" else [1, 0, 1, 0]}).steps[0]
    assert not any("differences" in mistake for mistake in step.mistakes)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_where_the_truth_is_no_number_nothing_is_looked_for(bad):
    W, x = np.array([[bad, 0.5], [-0.3, 1.0]]), np.array([0.2, 0.4])
    report = check("dx", W, x, [1.0, 2.0])
    assert not report.ok
    assert report.mistakes == ()
    assert report.known == ("W, x or the target holds NaN or infinity, and so do the right values",)


def test_zeros_of_a_step_are_not_blamed_on_another():
    for name in ("q", "s", "e", "dloss_ds"):
        (step,) = sl2.check_grad(W3, X, 0.5, **{name: np.zeros(3)}).steps
        assert "ds_dq" not in " ".join(step.mistakes)


def test_a_wrong_shape_of_one_number_has_advice_that_runs():
    loss = sl2.value(W3, X)
    (step,) = sl2.check_grad(W3, X, loss=[loss]).steps
    assert step.mistakes[0].endswith("give them the right shape with .reshape(())")


@pytest.mark.parametrize("tolerance", ["rtol", "atol"])
@pytest.mark.parametrize("bad", ["a", [1e-3], np.ones(3), 1j])
def test_a_tolerance_is_a_number(tolerance, bad):
    with pytest.raises(TypeError, match=f"{tolerance} must be a number"):
        sl2.check_grad(W3, X, dx=X, **{tolerance: bad})
