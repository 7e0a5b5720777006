"""Sums over rows in the CPU kernels: their error does not grow with the number of rows."""

import math

import numpy as np
import pytest

pytest.importorskip("numba")

import oracle
from contract import allowed, roundings_of_q

import sigmoid_l2 as sl2
from sigmoid_l2.kernels import Given
from sigmoid_l2.kernels.cpu import launch
from sigmoid_l2.kernels.cpu.simd import lane_count
from sigmoid_l2.kernels.cpu.slices import rows_of_slice

MANY = 1 << 22
WIDTHS = [(n, np.dtype(d)) for d in ("f4", "f8") for n in (1, 3, 4, 7, 12, 16, 33, 100)]


PLAIN, FULL = Given(False, False), Given(True, True)


def results(W, x, given=PLAIN):
    """loss, dW and dx of one pair; a target that is given is 0.25, a cotangent is -1.5."""
    (m, n), dtype = W.shape, W.dtype
    target = np.full((1, m), 0.25, dtype) if given.target else None
    cotangent = np.full(1, -1.5, dtype) if given.cotangent else None
    loss, dW, dx = np.empty(1, dtype), np.empty((1, m, n), dtype), np.empty((1, n), dtype)
    launch.kernel(m, n, dtype, given)(W[None], x[None], target, cotangent, loss, dW, dx, None, 0, 1, m, False)
    return loss[0], dW[0], dx[0]


def roundings(m, n, dtype):
    """At most so many has a sum over m rows, beside those of products: in trees, in chains, and one of all chains."""
    lanes = lane_count(dtype)
    match launch.kernel(m, n, dtype, PLAIN).py_func.__name__:
        case "tiny":  # a tree that adds the last one of an odd number of terms by itself
            return m.bit_length() + m.bit_count() - 2
        case "tall":
            return math.ceil(math.log2(min(m, lanes))) + min(8, math.ceil(m / lanes)) - 1 + (m > 8 * lanes)
        case "rows":  # of a batch, less than 48 rows: 4 sums of a chain of 8, in two steps; 4 chains more; the rest
            return min(m - 1, 3 + 4 + 1 + 1)


def assert_exact(got, terms, most, dtype):
    """A sum that is as near to the exact one as its roundings, and one of each term, allow."""
    eps = np.finfo(dtype).eps
    allowed = (most + 1) * eps / 2 * math.fsum(abs(t) for t in terms)
    assert abs(float(got) - math.fsum(terms)) <= allowed, (got, math.fsum(terms))


@pytest.mark.parametrize(("n", "dtype"), WIDTHS)
@pytest.mark.parametrize("m", [2, 15, 16, 100, 128, 129, 1000, 20_011])
@pytest.mark.parametrize("given", [PLAIN, FULL], ids=["plain", "target and cotangent"])
def test_any_rows(m, n, dtype, given):
    """dx against the exact sum of g_i W_ij, with the g of dW = g x^T where x = 1."""
    W = np.random.default_rng([m, n]).uniform(-1, 2, (m, n)).astype(dtype)
    _, dW, dx = results(W, np.ones(n, dtype), given)
    g = dW[:, 0].astype(float)
    for j in range(n):
        assert_exact(dx[j], (g * W[:, j]).tolist(), roundings(m, n, dtype), dtype)
    assert roundings(m, n, dtype) <= 2 * math.ceil(math.log2(m)) + 2


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_errors_of_errors(lanes):
    """TwoSum's errors are added with errors of their own, up to N^2 eps/8 after N additions: the contract has room."""
    eps = float(np.finfo("f4").eps)
    for m in [1 << k for k in range(14, 32)]:
        for n in range(1, 40):
            rows = rows_of_slice(m, n, 4)
            # In a lane: chains of 8 rows in the tall kernel, rows in the loss of the rows kernel; and then slices.
            chain = 8 if n <= lanes else 1
            first = (math.log2(lanes) + chain - 1 + 1 + 1) / 2
            second = sum(k * k * eps / 8 for k in (rows / lanes / chain, m / rows))
            assert first + second <= math.ceil(math.log2(m)) + 1, (m, n)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize(("m", "n"), [(MANY, 1), (MANY // 16, 20)])
@pytest.mark.parametrize(("target", "cotangent"), [(None, None), (0.25, -1.5)])
def test_contract_of_many_equal_rows(backend, m, n, target, cotangent):
    """loss and dx of 2^22 or 2^18 equal rows are as many times those of one row, in exact arithmetic."""
    W, x = np.full((m, n), 0.7, "f4"), np.full(n, 0.9 / n, "f4")
    results = sl2.value_and_grad(W, x, target, cotangent=cotangent, backend=backend)
    one = oracle.pair(W[:1], x, target, cotangent)
    limits = allowed(W[:1], x, one, target=target, cotangent=cotangent, backend=backend)
    eps = np.finfo("f4").eps
    loss, dx = float(one.loss) * m, np.array(one.dx, float) * m
    more = (math.ceil(math.log2(m)) + 1 - 1 / 2) * eps  # S = 1/2 for a single row
    assert abs(float(results.loss) - loss) <= m * float(limits.loss) + more * loss
    assert (abs(results.dx - dx) <= m * limits.dx + more * abs(dx)).all()


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_contract_of_long_rows(backend):
    """The rounding of q over 10^6 columns is that of the real order of its sum, which one chain would break."""
    n, dtype = 1_000_000, np.dtype("f4")
    W, x = np.full((2, n), 1.7 / n, dtype), np.full(n, 0.9, dtype)
    q = n * float(W[0, 0]) * float(x[0])
    relative = roundings_of_q(2, n, dtype, backend) * np.finfo(dtype).eps / 2  # delta / q
    assert abs(float(np.cumsum(W[0] * x, dtype=dtype)[-1]) - q) > 4 * relative * q
    _, dW, _ = sl2.value_and_grad(W, x, backend=backend)
    s = 1 / (1 + math.exp(-q))
    true = 2 * s * s * (1 - s) * float(x[0])
    assert (abs(dW - true) <= (2 * relative * q + 7 * np.finfo(dtype).eps) * true).all()


@pytest.mark.parametrize("given", [PLAIN, FULL], ids=["plain", "target and cotangent"])
def test_many_equal_rows(given):
    """Their sums are those of a block, as often: a plain sum would be off by thousands of eps."""
    dtype = np.dtype("f4")
    lanes = lane_count(dtype)
    eps = np.finfo(dtype).eps
    W, x = np.full((MANY, 1), 0.7, dtype), np.full(1, 0.9, dtype)
    loss, dW, dx = results(W, x, given)
    one_loss, one_dW, one_dx = results(
        W[:lanes], x, given
    )  # a block, whose sums are exact: a number times a power of 2
    assert dW.tobytes() == np.repeat(one_dW[:1], MANY, axis=0).tobytes()
    for got, one in ((loss, one_loss), (dx[0], one_dx[0])):
        exact = float(one) * (MANY // lanes)
        assert abs(float(got) - exact) <= 11 * eps / 2 * abs(exact), (float(got) / exact - 1) / eps


def test_overflow():
    """A sum that overflows is infinite, not NaN."""
    dtype = np.dtype("f4")
    W, x = np.full((1000, 1), np.finfo(dtype).max / 4, dtype), np.full(1, 1e-38, dtype)
    loss, _, dx = results(W, x)
    assert np.isfinite(loss)
    assert dx.tolist() == [np.inf]
    _, _, dx = results(-W, x)
    assert dx.tolist() == [-np.inf]
