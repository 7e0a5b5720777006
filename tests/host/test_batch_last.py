"""Batch-last arrays: read in place, within the contract, with the same bits for any part of the batch."""

import itertools
import tracemalloc

import numpy as np
import pytest
from arrays import bits, strided
from contract import assert_contract

import sigmoid_l2 as sl2
from sigmoid_l2 import dispatch, execute, threads
from sigmoid_l2.kernels import reference, reference_batch_last

WRT = ("W", "x", "q")
SHAPES = [(1, 3), (3, 1), (3, 3), (5, 17), (2, 300), (70, 3)]


@pytest.fixture(params=[b.name for b in dispatch.BACKENDS if b.device == "cpu"])
def name(request):
    if reasons := [r for b in sl2.backends() if b.name == request.param for r in b.reasons]:
        pytest.skip("; ".join(reasons))
    return request.param


@pytest.fixture
def calls(monkeypatch):
    """The arrays of each call of NumPy's kernel for batch-last arrays."""
    given = []
    kernel = reference.batch_last

    def spy(*arrays, **more):
        given.append(arrays)
        kernel(*arrays, **more)

    monkeypatch.setattr(reference, "batch_last", spy)
    return given


def batch(B, m, n, dtype="f8", transposed=False):
    """W, x, target and cotangent with the pairs last in memory."""
    rng = np.random.default_rng([B, m, n])
    W = rng.standard_normal((n, m, B) if transposed else (m, n, B)).astype(dtype)
    x, y, c = (rng.standard_normal(shape).astype(dtype) for shape in ((n, B), (m, B), B))
    return W.T if transposed else np.moveaxis(W, -1, 0), x.T / dtype_of(x, n**0.5), y.T, c


def dtype_of(a, number):
    return a.dtype.type(number)


def compute(W, x, y=None, c=None, **more):
    return sl2.value_and_grad(W, x, y, cotangent=c, wrt=WRT, **more)


def empty(shape, last):
    return np.moveaxis(np.full((*shape[1:], shape[0]), np.nan), -1, 0) if last else np.full(shape, np.nan)


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("transposed", [False, True])
def test_contract(name, m, n, dtype, transposed):
    W, x, y, c = batch(3, m, n, dtype, transposed)
    for more in ((None, None), (y, c)):
        loss, dW, dx, dq = compute(W, x, *more, backend=name)
        assert_contract(W, x, loss, dW, dx, dq=dq, target=more[0], cotangent=more[1], backend=name)


@pytest.mark.parametrize("wrt", [("W", "x", "q"), ("W",), ("q", "x")])
def test_every_layout(name, wrt, monkeypatch):
    """Each array last or first, or in no order; in one call, in pieces, with new results and given ones."""
    W, x, y, c = batch(67, 3, 4)
    expected = sl2.value_and_grad(W, x, y, cotangent=c, wrt=wrt, backend=name)
    plain = (np.ascontiguousarray(a) for a in (W, x, y))
    for a, right in zip(expected, sl2.value_and_grad(*plain, cotangent=c, wrt=wrt, backend=name), strict=True):
        np.testing.assert_allclose(a, right, rtol=1e-13, atol=1e-15)
    wide = np.repeat(W.T, 2, -1).T
    for nbytes in (100, 1 << 20):
        monkeypatch.setattr(execute, "PIECE_BYTES", nbytes)
        for last in itertools.product([True, False], repeat=3):
            given = [a if is_last else np.ascontiguousarray(a) for a, is_last in zip((x, y), last[:2], strict=True)]
            for values in (W, wide[::2], W.astype(">f8")):
                got = sl2.value_and_grad(values, *given, cotangent=strided(c), wrt=wrt, backend=name)
                assert bits(got) == bits(expected)
            out = tuple(empty(a.shape, last[(k + 1) % 3]) for k, a in enumerate(expected))
            sl2.value_and_grad(W, *given, cotangent=c, wrt=wrt, out=out, backend=name)
            assert bits(out) == bits(expected)


def test_broadcast_inputs(name):
    """A number, a row for all pairs, one x for all: its gradient is a sum."""
    W, x, y, c = batch(67, 3, 4)
    for given in ((x, 0.3, 2.0), (x, y[0], c), (x[0], y, c), (x[:1], y[:, :1], c[0])):
        got, right = compute(W, *given, backend=name), compute(np.ascontiguousarray(W), *given, backend=name)
        for a, b in zip(got, right, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-14)
        assert bits([got.loss]) == bits([sl2.value(W, *given[:2], backend=name)])


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_same_bits(name, m, n, dtype):
    """Of a range, of every other pair, of one; whatever else is wanted."""
    W, x, y, c = batch(100, m, n, dtype)
    whole = compute(W, x, y, c, backend=name)
    for part in (slice(7, 40), slice(13, 14), slice(90, 3, -3), slice(99, None), *map(slice, range(1, 20))):
        assert bits(compute(W[part], x[part], y[part], c[part], backend=name)) == bits(whole, part), part
    of_grid = [np.moveaxis(np.moveaxis(a, 0, -1).reshape(*a.shape[1:], 5, 20), (-2, -1), (0, 1)) for a in (W, x, y, c)]
    for part in ((2,), (slice(1, 3), slice(4, 9)), (slice(None), 7), (3, slice(11, 12)), (slice(None), slice(None))):
        results = [np.moveaxis(np.moveaxis(a, 0, -1).reshape(*a.shape[1:], 5, 20), (-2, -1), (0, 1)) for a in whole]
        assert bits(compute(*(a[part] for a in of_grid), backend=name)) == bits(a[part] for a in results), part
    assert bits([sl2.grad(W, x, y, cotangent=c, wrt="x", backend=name)]) == bits([whole.dx])


def test_threads(name, monkeypatch):
    W, x, y, c = batch(1001, 3, 3)
    expected = bits(compute(W, x, y, c, backend=name))
    monkeypatch.setattr(threads, "get_num_threads", lambda: 3)
    monkeypatch.setattr(threads, "THREAD_WORK", 1)
    monkeypatch.setattr(reference_batch_last, "THREADED", 1)
    monkeypatch.setattr(execute, "PIECE_BYTES", 2000)
    threads._pool.cache_clear()
    try:
        assert bits(compute(W, x, y, c, backend=name)) == expected
        assert bits(compute(W, np.ascontiguousarray(x), y, c, backend=name)) == expected
    finally:
        threads._pool.cache_clear()


@pytest.mark.parametrize("transposed", [False, True])
def test_in_place(calls, transposed):
    """One call, with the memory of the caller's arrays and of the results."""
    W, x, y, c = batch(30, 3, 4, transposed=transposed)
    given = [a[5:25] for a in (W, x, y, c)]
    new = compute(*given, backend="numpy")
    out = tuple(map(np.empty_like, new))
    compute(*given, out=out, backend="numpy")
    for arrays, results in zip(calls, (new, out), strict=True):
        for a, b in zip(arrays, (*given, *results), strict=True):
            assert a.ctypes.data == b.ctypes.data
            assert a.shape == (*b.shape[1:], 20)
    grid = [np.moveaxis(np.moveaxis(a, 0, -1).reshape(*a.shape[1:], 5, 6), (-2, -1), (0, 1)) for a in (W, x, y, c)]
    compute(*grid, backend="numpy")
    assert calls[-1][0].shape == (3, 4, 30)
    assert [a.ctypes.data for a in calls[-1][:4]] == [a.ctypes.data for a in grid]


def test_not_taken(calls, monkeypatch):
    """One W for many x, other layouts, and pairs that the kernel does not take."""
    W, x, _, _ = batch(20, 3, 4)
    sl2.grad(W[0], x, backend="numpy")
    sl2.grad(np.ascontiguousarray(W), x, backend="numpy")
    sl2.grad(strided(W), x, backend="numpy")
    monkeypatch.setattr(
        reference, "has_batch_last", lambda m, n, itemsize: (m, n, itemsize) != (3, 4, 8), raising=False
    )
    right = sl2.grad(np.ascontiguousarray(W), x, backend="numpy")
    assert bits(sl2.grad(W, x, backend="numpy")) == bits(right)
    assert not calls
    sl2.grad(W.astype("f4"), x.astype("f4"), backend="numpy")
    assert len(calls) == 1


@pytest.mark.parametrize("fits", [True, False])
def test_memory(fits, monkeypatch):
    """Nothing of batch size is allocated, also where x and dx go through buffers; nor for a large pair."""
    monkeypatch.setattr(threads, "get_num_threads", lambda: 1)
    for B, m, n in ((500_000, 3, 3), (40, 300, 700)):
        W, x, y, c = batch(B, m, n)
        x = x if fits else np.ascontiguousarray(x)
        out = tuple(np.empty_like(a) for a in (c, W, x, y))
        tracemalloc.start()
        compute(W, x, y, c, out=out, backend="numpy")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 24 << 20  # the contract has 33 MiB; W has 34 and 64


def test_sums_by_halves(monkeypatch):
    """A pair whose rows are computed in parts has the sums over rows of one that is whole."""
    W, x = np.full((1, 4097, 1), 0.75), np.ones((1, 1))
    monkeypatch.setattr(reference_batch_last, "BLOCK", 1 << 10)
    loss, dW, dx = np.empty(1), np.empty((4097, 1, 1)), np.empty((1, 1))
    reference.batch_last(W.T.copy().swapaxes(0, 1), x, None, None, loss, dW, dx, None)
    s = 1 / (1 + np.exp(-np.longdouble(0.75)))
    assert abs(loss[0] - 4097 * s * s) <= 21 * np.finfo(float).eps * 4097 * s * s
    assert abs(dx[0, 0] - 4097 * dW[0, 0, 0] * np.longdouble(0.75)) <= 14 * np.finfo(float).eps * dx[0, 0]
