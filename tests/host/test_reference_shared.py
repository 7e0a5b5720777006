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


@pytest.mark.parametrize(("m", "n"), [(3, 3), (40, 70)])
def test_units_and_threads(dtype, m, n, monkeypatch):
    """dW over several blocks and units: the contract, and the same bits for any number of threads."""
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
