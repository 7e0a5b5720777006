"""One W for many x in NumPy: what test_shared.py holds the CPU kernel to, and several blocks, units and products."""

import numpy as np
import pytest

from sigmoid_l2 import threads
from sigmoid_l2.kernels import reference, reference_shared

test_shared = pytest.importorskip("host.test_shared", reason="numba is not there")
SHAPES = [(1, 1), (3, 3), (1, 7), (12, 5), (65, 33), (10, 784), (70, 300)]


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return np.dtype(request.param)


@pytest.fixture(autouse=True)
def of_numpy(monkeypatch):
    monkeypatch.setattr(test_shared.shared, "shared", reference.shared)
    monkeypatch.setattr(reference_shared, "BLOCK", 1 << 12)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_accuracy_and_place(dtype, m, n):
    """The contract, for batches that fill no product; the same bits of a pair wherever it is."""
    for B, given in ((1, ""), (7, "tc"), (65, "t"), (211, "tc")):
        inputs = test_shared.case(B, m, n, dtype, given)
        test_shared.assert_accurate(*inputs, test_shared.run(*inputs))
    test_shared.test_place_in_the_batch(dtype, m, n)


@pytest.mark.parametrize(("m", "n", "block"), [(3, 3, 1 << 16), (40, 70, 1 << 12)])
def test_units_and_threads(dtype, m, n, block, monkeypatch):
    """dW over several products of a block, and over several blocks of a unit.

    The contract, and the same bits for any number of threads.
    """
    monkeypatch.setattr(reference_shared, "BLOCK", block)
    inputs = test_shared.case(5003, m, n, dtype, "tc")
    results = test_shared.run(*inputs)
    test_shared.assert_accurate(*inputs, results)
    for number in (1, 2, 3):
        monkeypatch.setattr(threads, "get_num_threads", lambda number=number: number)
        test_shared.assert_same_bits(test_shared.run(*inputs), results)


@pytest.mark.parametrize("wanted", [("loss",), ("dW",), ("dx",), ("dq",), ("loss", "dx")])
def test_wanted(wanted):
    test_shared.test_wanted(wanted)


@pytest.mark.parametrize(("m", "n"), [(3, 3), (40, 70)])
def test_not_finite(dtype, m, n):
    test_shared.test_not_finite(dtype, m, n)


@pytest.mark.parametrize("B", [(1 << 18) + 5])
def test_equal_terms(B):
    test_shared.test_equal_terms(B, 2, 1)


@pytest.mark.parametrize(("B", "pairs"), [(1 << 10, 1024), ((1 << 19) + 5, 64)])
def test_equal_terms_in_float64(B, pairs, monkeypatch):
    """Of one product, and of many, in blocks and units: what is lost in thousands of additions is not lost."""
    monkeypatch.setattr(reference_shared, "MOST_PAIRS", pairs)
    monkeypatch.setattr(reference_shared, "UNITS", 3)
    W, x = np.full((2, 1), 0.3), np.full((B, 1), 0.7)
    dW, one = np.empty_like(W), np.empty_like(W)
    reference.shared(W, x, None, None, None, dW, None, None)
    reference.shared(W, x[:1], None, None, None, one, None, None)
    true = B * one.astype(np.longdouble)
    assert np.all(abs(dW - true) <= (np.ceil(np.log2(B)) + 2) * np.finfo(float).eps * true)


def test_sums_of_float32_are_rounded_once():
    """They are computed in float64: dW is the sum of dq x^T, but for one rounding and what float64 loses."""
    inputs = test_shared.case(5003, 12, 5, np.float32, "tc")
    results = test_shared.run(*inputs)
    G, X = results["dq"].astype(np.longdouble), inputs[1].astype(np.longdouble)
    true, terms = G.T @ X, abs(G).T @ abs(X)
    limit = np.finfo(np.float32).eps / 2 * abs(true) + len(X) * np.finfo(float).eps * terms
    assert np.all(abs(results["dW"] - true) <= limit)
