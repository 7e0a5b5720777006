"""The compiled CPU kernels with a target, a cotangent and dq, called directly."""

import os
import sys
from itertools import combinations, product
from pathlib import Path

import fenced
import numpy as np
import pytest
from processes import run_python

pytest.importorskip("numba")

from contract import assert_contract

from sigmoid_l2.kernels import Given
from sigmoid_l2.kernels.cpu import launch
from sigmoid_l2.kernels.cpu.slices import rows_of_slice

F4, F8 = np.dtype("f4"), np.dtype("f8")
# Tiny, tall and rows; fewer rows than lanes and more, whole vectors of rows and a rest, short columns and long ones.
SHAPES = [(1, 1), (3, 3), (4, 6), (50, 5), (100, 1), (32, 8), (3, 40), (33, 33), (2, 300)]
BATCH = 37  # blocks of every width up to 16 lanes, and a rest
each_dtype = pytest.mark.parametrize("dtype", [F4, F8], ids=str)
each_shape = pytest.mark.parametrize(("m", "n"), SHAPES)


def inputs(B, m, n, dtype):
    """W, x, targets that are often 0 or 1, and cotangents of both signs."""
    rng = np.random.default_rng([B, m, n])
    target = rng.choice([0, 1, 0.3, 0.5, 0.8, -2, 7], (B, m), p=[0.3, 0.3, *[0.08] * 5])
    return *fenced.batch(B, m, n, dtype), target.astype(dtype), rng.standard_normal(B).astype(dtype)


def kernel(*arrays, streams):
    """A whole batch by the compiled kernel of its size, on one thread."""
    W, _, target, cotangent = arrays[:4]
    B, m, n = W.shape
    given = Given(target is not None, cotangent is not None)
    launch.kernel(m, n, W.dtype, given)(*arrays, 0, B, m, streams)


def run(W, x, wanted=fenced.NAMES, *, streams=False, **given):
    return fenced.run(lambda *arrays: kernel(*arrays, streams=streams), W, x, wanted, **given)


def assert_results(shapes=((3, 3), (4, 6), (50, 5), (3, 40), (33, 33)), dtypes=(F4, F8)):
    """The accuracy contract, and the same bits whatever else is wanted, in any batch and past the caches."""
    for (m, n), dtype in product(shapes, dtypes):
        W, x, target, cotangent = inputs(BATCH, m, n, dtype)
        for y, c in ((target, None), (None, cotangent), (target, cotangent)):
            got = run(W, x, target=y, cotangent=c)
            for b in (0, 20, BATCH - 1):
                results = {name: a[b : b + 1] for name, a in got.items()}
                inputs_b = {k: a if a is None else a[b : b + 1] for k, a in (("target", y), ("cotangent", c))}
                assert_contract(W[b : b + 1], x[b : b + 1], **results, **inputs_b, backend="numba")
                fenced.assert_same_bits(run(W[b : b + 1], x[b : b + 1], **inputs_b), results)
            for k, streams in product(range(5), (False, True)):
                for wanted in combinations(fenced.NAMES, k):
                    fenced.assert_same_bits(run(W, x, wanted, streams=streams, target=y, cotangent=c), got)


@each_dtype
@each_shape
def test_results(m, n, dtype):
    assert_results([(m, n)], [dtype])


@each_dtype
@each_shape
def test_what_is_not_given(m, n, dtype):
    """A target of 0 and a cotangent of 1 have the bits of none, and dW is dq x^T."""
    W, x, *_ = inputs(BATCH, m, n, dtype)
    expected = run(W, x)
    target, cotangent = np.zeros((BATCH, m), dtype), np.ones(BATCH, dtype)
    for given in ({"target": target}, {"cotangent": cotangent}, {"target": target, "cotangent": cotangent}):
        fenced.assert_same_bits(run(W, x, **given), expected)
    np.testing.assert_array_equal(expected["dW"], expected["dq"][:, :, None] * x[:, None])


@pytest.mark.parametrize(("m", "n"), [(3, 1), (100, 1), (5, 40)])
@pytest.mark.parametrize("target", [0, 1])
def test_tails(target, m, n):
    """For the targets 0 and 1 g and the loss have full relative accuracy for q from -80 to 80, where 1 - s is 0."""
    q = np.linspace(-80, 80, 1000 * m).astype(F4).reshape(-1, m)
    W, x = np.zeros((len(q), m, n), F4), np.ones((len(q), n), F4)
    W[:, :, -1] = q
    got = run(W, x, target=np.full(q.shape, target, F4))
    wide = q.astype(float)
    s, c = 1 / (1 + np.exp(-wide)), 1 / (1 + np.exp(wide))
    e = -c if target else s
    info = np.finfo(F4)
    g, loss = 2 * e * s * c, (e * e).sum(1)
    assert (abs(got["dq"] - g) <= 7 * info.eps * abs(g) + info.tiny).all()
    assert (abs(got["loss"] - loss) <= (m / 2 + 6) * info.eps * loss + info.tiny).all()


@each_dtype
@each_shape
def test_nan(m, n, dtype):
    """A target of NaN touches its row of dW and dq, and its pair's loss and dx; a cotangent of NaN no loss."""
    W, x, target, cotangent = inputs(BATCH, m, n, dtype)
    expected = run(W, x, target=target, cotangent=cotangent)
    for b in (2, 20, BATCH - 1):
        bad_target, bad_cotangent = target.copy(), cotangent.copy()
        bad_target[b, m // 2] = bad_cotangent[b] = np.nan
        row = (b, m // 2)
        nan_of_target = {"loss": b, "dW": row, "dx": b, "dq": row}
        nan_of_cotangent = {"dW": b, "dx": b, "dq": b}
        for y, c, where in ((bad_target, cotangent, nan_of_target), (target, bad_cotangent, nan_of_cotangent)):
            outputs = [np.zeros(shape, dtype) for shape in fenced.shapes(W).values()]
            kernel(W, x, y, c, *outputs, streams=False)
            for name, a in zip(fenced.NAMES, outputs, strict=True):
                true = expected[name].copy()
                if name in where:
                    true[where[name]] = np.nan
                np.testing.assert_array_equal(a, true)


@each_dtype
@pytest.mark.parametrize("n", [1, 40])
def test_slices(n, dtype):
    """Each slice of a large pair reads its part of the target and writes its part of dq."""
    B, m = 2, 1 << 20 >> (3 if n > 1 else 0)
    assert m > 2 * rows_of_slice(m, n, dtype.itemsize)
    W, x, target, cotangent = inputs(B, m, n, dtype)
    got = fenced.run(launch.fused, W, x, target=target, cotangent=cotangent)
    for wanted in (("dq",), ("dx", "dq"), ("loss",), ("dW", "dx")):
        some = fenced.run(launch.fused, W, x, wanted, target=target, cotangent=cotangent)
        fenced.assert_same_bits(some, got)
    np.testing.assert_array_equal(got["dW"], got["dq"][:, :, None] * x[:, None])
    q = np.einsum("bij,bj->bi", W.astype(float), x.astype(float))
    s = 1 / (1 + np.exp(-q))
    g = 2 * (s - target) * s * (1 - s) * cotangent[:, None]
    assert (abs(got["dq"] - g) <= 8 * np.finfo(dtype).eps * (1 + abs(target)) * abs(cotangent[:, None])).all()
    exact = np.einsum("bi,bij->bj", got["dq"].astype(float), W.astype(float))
    sizes = np.einsum("bi,bij->bj", abs(got["dq"].astype(float)), abs(W.astype(float)))
    assert (abs(got["dx"] - exact) <= 22 * np.finfo(dtype).eps * sizes).all()


READ_NOTHING_ELSE = """
import ctypes, mmap
import numpy as np
from host import test_cpu_target as test
from sigmoid_l2.kernels import Given

libc, kept = ctypes.CDLL(None, use_errno=True), []

def guarded(a, at_end):
    "A copy of an array that ends, or begins, where memory is that nobody may read."
    page = mmap.PAGESIZE
    size = -(-a.nbytes // page) * page
    memory = mmap.mmap(-1, size + 2 * page)
    kept.append(memory)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for guard in (address, address + page + size):
        assert libc.mprotect(ctypes.c_void_p(guard), page, 0) == 0
    offset = page + (size - a.nbytes if at_end else 0)
    copy = np.frombuffer(memory, a.dtype, a.size, offset).reshape(a.shape)
    copy[...] = a
    return copy

for (m, n), dtype in test.product(test.SHAPES, (test.F4, test.F8)):
    for B in (1, 16, 37):
        arrays = test.inputs(B, m, n, dtype)
        expected = test.run(*arrays[:2], target=arrays[2], cotangent=arrays[3])
        for at_end, streams in test.product((True, False), repeat=2):
            outputs = [guarded(np.zeros_like(a), at_end) for a in expected.values()]
            test.kernel(*(guarded(a, at_end) for a in arrays), *outputs, streams=streams)
            test.fenced.assert_same_bits(dict(zip(expected, outputs)), expected)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect as Linux has it")
def test_nothing_beyond_the_arrays_is_read():
    """A process that reads or writes a byte more is ended by the system."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    run_python(READ_NOTHING_ELSE, PYTHONPATH=path)
