"""Every backend keeps the contract on a part of the suite's values; and tests of the suite's own truth and counts."""

import mpmath
import numpy as np
import oracle
import pytest

from accuracy import report, truth
from accuracy.contenders import CONTENDERS, DTYPES, textbook
from accuracy.measure import PIECE, TARGETS, exp_errors, pieces, rows, sweep, values_of, wrong_gradients
from accuracy.tally import FIRST, OUTPUTS, Tally, allowed_eps

FLOAT32, FLOAT64 = DTYPES
EVERY = 1009
PIECES = {dtype: pieces(dtype, EVERY, values=10**6) for dtype in DTYPES}


def contender_of(entry):
    """The contender that is a backend."""
    (contender,) = [c for c in CONTENDERS if c.backend is entry]
    return contender


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backends_keep_the_contract(entry, dtype, target):
    (tally,) = sweep([contender_of(entry)], dtype, PIECES[dtype], target)
    assert tally.values == sum(map(len, PIECES[tally.dtype]))
    assert tally.broken[:, 0].tolist() == [0, 0, 0], f"loss, g, dx break the contract, say at q = {tally.broken[:, 1]}"
    assert (tally.eps[:, 0] <= allowed_eps(tally.dtype)).all()
    assert (tally.ulp[:, 0] > 0.5).all(), "all results correctly rounded: nothing was measured"


def test_all_patterns_of_float32_are_swept_once():
    """By their ends: the pieces are one after another, and each is read as its patterns."""
    every_piece = pieces(FLOAT32, every=1, values=0)
    assert [piece.start for piece in every_piece] == list(range(0, 2**32, PIECE))
    assert every_piece[-1].stop == 2**32
    for piece in (every_piece[0], every_piece[-1]):
        assert values_of(FLOAT32, piece).view(np.uint32).tolist() == list(piece)


@pytest.mark.parametrize(("dtype", "bits"), [(FLOAT32, 48), (FLOAT64, 90)], ids=str)
def test_truth(dtype, bits):
    """Against mpmath, at 10^4 values of every size where one of the results does not underflow."""
    rng = np.random.default_rng(0)
    q = np.concatenate([rng.uniform(-1, 1, 5000), rng.uniform(-105, 105, 5000), values_of(FLOAT64, range(9000))])
    q = q[np.abs(q) < (105 if dtype == np.float32 else 780)].astype(dtype)
    assert len(q) >= 10_000
    found = truth.of(q)
    with mpmath.workdps(60):
        for i in range(len(q)):
            true = oracle.pair([[q[i]]], [1])
            for k, value in enumerate((true.loss, true.g[0], true.dx[0])):
                high, low, exponent = (float(a[k, i]) for a in found)
                got = mpmath.ldexp(mpmath.mpf(high) + mpmath.mpf(low), int(exponent))
                assert abs(got - value) <= mpmath.ldexp(abs(value), -bits), f"{OUTPUTS[k]} at q = {q[i]!r}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tally_counts_what_is_wrong(dtype):
    """Results that are right, then with one error of each kind."""
    eps, tiny = float(np.finfo(dtype).eps), float(np.finfo(dtype).tiny)
    q = np.array([1, -2, 0.5, 200 if dtype == np.float32 else 800, np.inf, -np.inf, np.nan], dtype)
    true = truth.of(q)
    right = [np.ldexp(a, e).astype(dtype) for a, e in zip(true.high, true.exponent, strict=True)]
    tally = Tally(np.dtype(dtype))
    tally.add(q, right, true)
    assert tally.broken[:, 0].tolist() == [0, 0, 0]
    assert (tally.ulp[:, 0] <= 0.5).all()
    assert tally.classes.sum(axis=1).tolist() == [4, 3, 3], "at the largest q, g and dx underflow"

    def found(k, i, value):
        wrong = [a.copy() for a in right]
        wrong[k][i] = value
        tally = Tally(np.dtype(dtype))
        tally.add(q, wrong, true)
        assert tally.broken[:, 0].tolist() == [int(k == other) for other in range(3)]
        assert np.array_equal(tally.broken[k, 1], q[i], equal_nan=True)
        return tally

    for k in range(3):
        off = found(k, 1, right[k][1] * (1 + 20 * eps))
        assert abs(off.eps[k, 0] - 20) <= 1
        assert 20 <= off.ulp[k, 0] <= 40
        assert off.ulp[k, 1] == -2
        assert off.classes[k, int(np.log2(off.ulp[k, 0])) - FIRST + 1] == 1
        assert found(k, 0, np.nan).ulp[k, 0] == np.inf
        assert found(k, 6, 0).ulp[k, 0] <= 0.5
        found(k, 4, 0.5)
    found(1, 3, 2 * tiny)
    found(2, 3, 2 * tiny * float(q[3]))


def test_textbook_formula_is_found_wrong():
    """What the suite is for: from q = 17 on its g is 0 in float32."""
    q = np.linspace(17, 80, 1000, dtype=np.float32)
    loss, dW, dx = textbook(q[:, None, None], np.ones((1000, 1), np.float32))
    tally = Tally(FLOAT32)
    tally.add(q, (loss, dW.ravel(), dx.ravel()), truth.of(q))
    assert tally.broken[:, 0].tolist() == [0, 1000, 1000]
    assert tally.eps[1, 0] == 1 / np.finfo(np.float32).eps


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backends_have_no_wrong_gradient(entry, dtype, target):
    assert wrong_gradients(contender_of(entry), dtype, target) == 0


@pytest.mark.parametrize(("target", "last"), [(None, 88), (1.0, 44)])
def test_textbook_formula_has_wrong_gradients(target, last):
    """From about q = 13 on to where the true one is no longer a normal number; they are normal over 88 + 44."""
    (contender,) = [c for c in CONTENDERS if c.run is textbook]
    assert abs(wrong_gradients(contender, FLOAT32, target) - (last - 13) / (88 + 44)) < 0.02


def test_report():
    """The page has a row for every contender and no hole."""
    present = [c for c in CONTENDERS if c.backend and not c.missing()]
    part = [range(0, 2**31, 2**20 + 7)]
    found = [r for d in DTYPES for y in TARGETS for r in rows(present, d, y, sweep(present, d, part, y))]
    results = {"date": "2000-01-01", "machine": "a machine", "versions": {"numpy": "2"}, "rows": found}
    results |= {"every": 2**20 + 7, "peers_every": 17, "seconds": 60, "cpu_seconds": 90}
    results |= {"missing": {"torch": "torch is not installed"}}
    page = report.page(results | {"exp": exp_errors(2**12 + 1, 1)}, "picture.png")
    assert "torch was not measured here: torch is not installed" in page
    assert "nan" not in page
    for contender in present:
        assert page.count(f"| {contender.name}") == 2 * (len(TARGETS) + len(OUTPUTS) + 1) + 1


def test_errors_of_exp_are_below_an_eps():
    """numba's, which the proof sketch of the report builds on: with fused multiply-add or without."""
    found = exp_errors(EVERY, 2**20)
    assert max(found["numba"].values()) <= 0.85
