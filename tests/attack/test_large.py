"""More than 2^31 elements of W, more than a 32-bit index reaches: `make large`, in up to 17 GB of host or GPU memory.

W and x are zero but for a few pairs. On a CPU, memory that is read but was never written takes no room, so most of
what is needed is for dW. gpu/test_proof.py executes the last blocks of such a batch without a GPU.
"""

import importlib

import numpy as np
import pytest
from arrays import bits

import sigmoid_l2 as sl2

pytestmark = pytest.mark.large

SIZE = 2**31
# Elements of W, in float32, before which a number of bytes or elements still has 31 or 32 bits.
EDGES = (2**29, 2**30, 2**31)
# For each kernel of the CPU.
SHAPES = {"tiny": (12, 12), "tall": (300, 8), "rows": (20, 300)}


def package_of(backend):
    """The package of the arrays that the backend computes in place."""
    return importlib.import_module("cupy" if backend.device == "cuda" else "numpy")


def on_host(a):
    return a.get() if hasattr(a, "get") else a


@pytest.mark.parametrize("kernel", SHAPES)
def test_batch(entry, kernel):
    """The pairs at both ends and at the edges have the bits of small calls; all others have the results of zeros."""
    m, n = SHAPES[kernel]
    xp, rng = package_of(entry), np.random.default_rng(m)
    B = SIZE // (m * n) + 1000
    W, x = xp.zeros((B, m, n), np.float32), xp.zeros((B, n), np.float32)
    places = [slice(3), *(slice(e // (m * n) - 2, e // (m * n) + 3) for e in EDGES), slice(B - 3, B)]
    for place in places:
        W[place] = xp.asarray(rng.standard_normal(W[place].shape, np.float32))
        x[place] = xp.asarray(rng.standard_normal(x[place].shape, np.float32) / n**0.5)
    results = sl2.value_and_grad(W, x, backend=entry.name)
    assert results.dW.size > SIZE
    for place in places:
        alone = sl2.value_and_grad(W[place], x[place], backend=entry.name)
        assert bits(on_host(a[place]) for a in results) == bits(map(on_host, alone))
    pairs = sum(len(range(B)[place]) for place in places)
    assert int((results.loss == m / 4).sum()) == B - pairs
    for got in (results.dW, results.dx):
        written = sum(int(xp.count_nonzero(got[first : first + 10**5])) for first in range(0, B, 10**5))
        assert written == pairs * got[0].size


def test_pair(entry):
    """One pair: the rows of dW at both ends and at the edges are those of pairs of one row."""
    xp, rng = package_of(entry), np.random.default_rng(0)
    n = 50_000
    m = SIZE // n + 10
    W, x = xp.zeros((m, n), np.float32), xp.asarray(rng.standard_normal(n, np.float32))
    rows = [0, *(e // n for e in EDGES), m - 1]
    for i in rows:
        W[i] = xp.asarray(rng.standard_normal(n, np.float32) / n**0.5)
    loss, dW, dx = sl2.value_and_grad(W, x, backend=entry.name)
    some = sl2.value_and_grad(W[rows], x, backend=entry.name)
    np.testing.assert_allclose(on_host(loss), on_host(some.loss) + (m - len(rows)) / 4, rtol=1e-4)
    np.testing.assert_allclose(on_host(dx), on_host(some.dx), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(on_host(dW[rows]), on_host(some.dW), rtol=1e-5)
    for between in (1, rows[3] + 1):
        np.testing.assert_array_equal(on_host(dW[between]), on_host(x) / 4)


def test_pieces():
    """A layout that no kernel reads, here a view of one pair with zero strides, is computed in pieces."""
    W, x = np.random.default_rng(0).standard_normal((2, 12, 12), np.float32)[0], np.ones(12, np.float32)
    B = SIZE // W.size + 1000
    results = sl2.value_and_grad(np.broadcast_to(W, (B, 12, 12)), np.broadcast_to(x, (B, 12)))
    one = sl2.value_and_grad(W, x)
    for first in range(0, B, 10**6):
        for got, right in zip(results, one, strict=True):
            assert (got[first : first + 10**6] == right).all()
