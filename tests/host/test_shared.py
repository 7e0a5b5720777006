"""One W for many x on the CPU: the kernel ``shared`` called directly."""

import itertools
import math
import os
import sys
import tracemalloc
from pathlib import Path

import contract
import numpy as np
import pytest
from fenced import FENCE, assert_same_bits
from processes import run_python

pytest.importorskip("numba")

from llvmlite import binding

from host.test_cpu_levels import LEVELS, child
from sigmoid_l2 import settings, threads
from sigmoid_l2.kernels.cpu import shared, shared_large
from sigmoid_l2.kernels.cpu.simd import lane_count

NAMES = ("loss", "dW", "dx", "dq")
# Tiny W, and others with one or two vectors in a panel of either side, and a row or a column beyond a tile.
SHAPES = [(1, 1), (3, 3), (3, 1), (1, 7), (12, 5), (17, 5), (5, 17), (10, 784), (40, 70), (65, 33)]


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """What the kernel computes in; float16 is converted before."""
    return np.dtype(request.param)


def case(B, m, n, dtype, given=""):
    """W (m, n), x (B, n), and with ``given`` letters a target (B, m), of which some are 0 and 1, and a cotangent."""
    rng = np.random.default_rng([B, m, n])
    W, x = rng.standard_normal((m, n)), rng.standard_normal((B, n)) / n**0.5
    target = rng.choice([0, 0.3, 0.5, 0.9, 1], (B, m)) if "t" in given else None
    cotangent = rng.standard_normal(B) if "c" in given else None
    return [None if a is None else a.astype(dtype) for a in (W, x, target, cotangent)]


def run(W, x, target=None, cotangent=None, wanted=NAMES):
    """The outputs ``wanted``, all of them written, and nothing else."""
    (B, n), m = x.shape, len(W)
    shapes = {"loss": (B,), "dW": (m, n), "dx": (B, n), "dq": (B, m)}
    inputs = [None if a is None else a.copy() for a in (W, x, target, cotangent)]
    memory = {name: np.full(math.prod(shapes[name]) + 2 * FENCE, np.nan, W.dtype) for name in wanted}
    out = {name: a[FENCE:-FENCE].reshape(shapes[name]) for name, a in memory.items()}
    shared.shared(*inputs, *map(out.get, NAMES))
    for a, before in zip(inputs, (W, x, target, cotangent), strict=True):
        assert before is None or a.tobytes() == before.tobytes(), "an input is changed"
    for name, a in memory.items():
        assert np.isnan([a[:FENCE], a[-FENCE:]]).all(), f"{name} is written beyond its ends"
    return out


def assert_accurate(W, x, target, cotangent, results):
    """The contract, where a term of q is rounded n times: some pairs by the oracle, and dW in long doubles."""
    (m, n), B = W.shape, len(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contract, "roundings_of_q", lambda m, n, *_: n)
        pairs = sorted({0, B // 2, B - 1})
        of_pairs = {name: results[name][pairs] for name in ("loss", "dx", "dq")}
        given = [None if a is None else a[pairs] for a in (target, cotangent)]
        contract.assert_contract(W, x[pairs], dW=None, **of_pairs, target=given[0], cotangent=given[1], backend="numba")
    eps, tiny = float(np.finfo(W.dtype).eps), float(np.finfo(W.dtype).tiny)
    W, x = W.astype(np.longdouble), x.astype(np.longdouble)
    y = np.zeros((B, m)) if target is None else target.astype(np.longdouble)
    factor = np.ones((B, 1)) if cotangent is None else cotangent.astype(np.longdouble)[:, None]
    q = x @ W.T
    s, c = 1 / (1 + np.exp(-q)), 1 / (1 + np.exp(q))
    g = 2 * np.where(y > 0.5, (1 - y) - c, s - y) * s * c * factor
    G = 2 * np.minimum(s + y, c + abs(1 - y)) * s * c * abs(factor)
    delta = n * eps / 2 * (abs(x) @ abs(W).T)
    limit = (G * (2 * delta + 7.5 * eps)).T @ abs(x) + B * tiny
    limit += (math.ceil(math.log2(B)) + 1) * eps * (abs(g).T @ abs(x)) * (B > 1)
    assert np.all(abs(results["dW"] - g.T @ x) <= limit), "dW"


@pytest.mark.parametrize("given", ["", "t", "tc"])
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_accuracy(dtype, m, n, given):
    """Every output, for a batch of one pair, of about a vector's lanes, and of primes that fill no block."""
    lanes = lane_count(dtype)
    batches = (1, lanes - 1, lanes, lanes + 1, 97, 211) if m * n < 1000 else (1, 101)
    for B in batches:
        inputs = case(B, m, n, dtype, given)
        assert_accurate(*inputs, run(*inputs))


@pytest.mark.parametrize(("m", "n"), [(3, 3), (40, 70)])
def test_many_units(dtype, m, n, monkeypatch):
    """dW over more units than the memory of a wave has room for."""
    monkeypatch.setattr(shared, "UNIT", 100)
    monkeypatch.setattr(shared, "MOST_BYTES", 1 << 20)
    inputs = case(5003, m, n, dtype, "tc")
    results = run(*inputs)
    assert_accurate(*inputs, results)
    for number in (1, 2, 3):
        monkeypatch.setattr(threads, "get_num_threads", lambda number=number: number)
        assert_same_bits(run(*inputs), results)


@pytest.mark.parametrize("wanted", [c for k in (1, 2, 3) for c in itertools.combinations(NAMES, k)])
def test_wanted(wanted):
    """The same bits whatever else is wanted."""
    for m, n in ((3, 3), (17, 5), (40, 70)):
        inputs = case(331, m, n, np.float32, "tc")
        assert_same_bits(run(*inputs, wanted=wanted), run(*inputs))


def test_read_only_inputs():
    """Arrays that cannot be written are of another type to numba."""
    for m, n in ((3, 3), (17, 5)):
        inputs = case(33, m, n, np.float32, "tc")
        expected = run(*inputs)
        for a in inputs:
            a.flags.writeable = False
        out = [np.empty_like(expected[name]) for name in NAMES]
        shared.shared(*inputs, *out)
        assert_same_bits(dict(zip(NAMES, out, strict=True)), expected)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize(("m", "n"), [(3, 3), (10, 784), (40, 70)])
def test_threads(number, m, n, monkeypatch):
    """The same bits for any number of threads, of dW, too."""
    monkeypatch.setattr(shared, "UNIT", 200)
    inputs = case(3001, m, n, np.float32)
    expected = run(*inputs)
    monkeypatch.setattr(threads, "get_num_threads", lambda: number)
    assert_same_bits(run(*inputs), expected)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_place_in_the_batch(dtype, m, n):
    """A pair's results have the same bits in every batch, streamed or not."""
    W, x, target, cotangent = case(307, m, n, dtype, "tc")
    whole = run(W, x, target, cotangent)
    for first, last in ((0, 1), (1, 3), (5, 36), (90, 210), (306, 307)):
        part = run(W, *(a[first:last] for a in (x, target, cotangent)))
        assert_same_bits(
            {name: part[name] for name in ("loss", "dx", "dq")}, {k: a[first:last] for k, a in whole.items()}
        )
    try:
        settings.set_streaming_threshold(0)
        assert_same_bits(run(W, x, target, cotangent), whole)
    finally:
        settings.set_streaming_threshold(None)


@pytest.mark.parametrize(("m", "n"), [(3, 3), (17, 5), (40, 70)])
def test_not_finite(dtype, m, n):
    """A NaN in x is in its pair's results and in dW, and nowhere else; an infinite W has gradients of 0."""
    W, x, target, cotangent = case(101, m, n, dtype, "tc")
    clean = run(W, x, target, cotangent)
    x[37, n // 2] = np.nan
    results = run_not_finite(W, x, target, cotangent)
    for name in ("loss", "dx", "dq"):
        others = np.arange(101) != 37
        assert np.isnan(results[name][37]).all()
        assert results[name][others].tobytes() == clean[name][others].tobytes()
    assert np.isnan(results["dW"]).all()
    W, x = np.full_like(W, np.inf), abs(x)
    x[37] = 1
    results = run_not_finite(W, x, None, None)
    assert np.array_equal(results["loss"], np.full(101, m))
    assert not results["dW"].any()


def run_not_finite(*inputs):
    """The outputs, of which some are NaN."""
    B, n = inputs[1].shape
    m, dtype = len(inputs[0]), inputs[0].dtype
    out = {"loss": (B,), "dW": (m, n), "dx": (B, n), "dq": (B, m)}
    out = {name: np.empty(shape, dtype) for name, shape in out.items()}
    shared.shared(*inputs, *out.values())
    return out


@pytest.mark.parametrize(("B", "m", "n"), [(1 << 22, 1, 1), (3 << 20, 2, 1), (1 << 18, 1, 65)])
def test_equal_terms(B, m, n):
    """A sum of many equal terms, whose errors all have the same sign: (ceil(log2 B) + 1) eps, and that of a term."""
    W, x = np.full((m, n), 0.3, np.float32), np.full((B, n), 0.7, np.float32)
    dW = np.empty_like(W)
    shared.shared(W, x, None, None, None, dW, None, None)
    one = np.empty_like(W)
    shared.shared(W, x[:1], None, None, None, one, None, None)
    true = B * one.astype(float)
    assert np.all(abs(dW - true) <= (math.ceil(math.log2(B)) + 1 + 1) * np.finfo(np.float32).eps * true)


@pytest.mark.parametrize(("B", "m", "n"), [(1 << 17, 3, 3), (1 << 14, 256, 256), (40, 1500, 1500), (300, 3, 100_000)])
def test_memory(B, m, n):
    """A call allocates at most 64 MiB for some samples and a part of W."""
    inputs = case(B, m, n, np.float32)
    out = [np.empty(shape, np.float32) for shape in ((B,), (m, n), (B, n), (B, m))]
    shared.shared(*inputs, *out)  # compiles
    tracemalloc.start()
    try:
        shared.shared(*inputs, *out)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= 64 << 20, f"{peak / 2**20:.0f} MiB"


def large(monkeypatch, samples=256):
    """Cut the work by the rows and columns of W, for so many samples at a time."""
    monkeypatch.setattr(shared, "LARGE", 1)
    monkeypatch.setattr(shared_large, "SAMPLES", samples)
    shared_large.plan.cache_clear()


@pytest.mark.parametrize(("m", "n", "dtype"), [(17, 5, "f8"), (40, 70, "f4"), (300, 33, "f4")])
def test_large(m, n, dtype, monkeypatch):
    """The contract, and the bits of blocks of samples, whatever else is wanted and for any number of threads."""
    for B in (1, 5, 12, 100):
        inputs = case(B, m, n, np.dtype(dtype), "tc")
        of_blocks = run(*inputs, wanted=("loss", "dx", "dq"))
        with monkeypatch.context() as patch:
            large(patch, samples=48)
            results = run(*inputs)
            assert_accurate(*inputs, results)
            assert_same_bits({name: results[name] for name in of_blocks}, of_blocks)
            for wanted in itertools.combinations(NAMES, 2):
                assert_same_bits(run(*inputs, wanted=wanted), results)
            patch.setattr(threads, "THREAD_WORK", 1)
            for number in (1, 2, 3):
                patch.setattr(threads, "get_num_threads", lambda number=number: number)
                assert_same_bits(run(*inputs), results)


def test_more_threads_are_set_meanwhile(monkeypatch):
    """The memory for the threads is there before they start."""
    inputs = case(100, 40, 70, np.float32)
    large(monkeypatch)
    expected = run(*inputs)
    numbers = itertools.chain([1], itertools.repeat(3))
    monkeypatch.setattr(threads, "get_num_threads", lambda: next(numbers))
    monkeypatch.setattr(threads, "THREAD_WORK", 1)
    assert_same_bits(run(*inputs), expected)


def test_large_sums(monkeypatch):
    """dW over so many parts of a batch that the errors of their additions are kept."""
    large(monkeypatch, samples=32)
    inputs = case(3001, 17, 40, np.float32, "tc")
    assert shared_large.plan(3001, 17, 40, np.dtype("f4"), 8).keeps_errors
    assert_accurate(*inputs, run(*inputs))


def assert_right():
    """What a process with narrower vectors checks."""
    for m, n in ((3, 3), (17, 5), (5, 17), (40, 70)):
        for dtype in (np.float32, np.float64):
            inputs = case(101, m, n, np.dtype(dtype), "tc")
            results = run(*inputs)
            assert_accurate(*inputs, results)
            W, *others = inputs
            part = run(W, *(a[33:60] for a in others), wanted=("loss", "dx", "dq"))
            assert_same_bits(part, {name: a[33:60] for name, a in results.items()})
    with pytest.MonkeyPatch.context() as patch:
        large(patch)
        whole = run(*inputs)
    assert_accurate(*inputs, whole)
    assert_same_bits({name: whole[name] for name in part}, {name: results[name] for name in part})


@pytest.mark.parametrize("level", LEVELS)
def test_runs_on(level, tmp_path):
    """The same with the vectors of a lower level."""
    cpu, features, _ = LEVELS[level]
    here = binding.get_host_cpu_features()
    if not binding.get_process_triple().startswith("x86_64") or not all(
        here.get(f[1:], True) for f in features.split(",")
    ):
        pytest.skip(f"{level} is not of this machine")
    assert (
        child("from host import test_shared; test_shared.assert_right(); print('right')", tmp_path, cpu, features)
        == "right\n"
    )


# An array that ends where memory ends, or begins where it begins: a read or write beyond it kills the process.
AT_THE_EDGE = """
import ctypes, mmap, sys
import numpy as np
from host import test_shared
from sigmoid_l2 import settings
from sigmoid_l2.kernels.cpu import shared

libc, maps = ctypes.CDLL(None), []

def edge(a, at_end):
    size = -(-a.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + 2 * mmap.PAGESIZE)
    maps.append(memory)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (address, address + mmap.PAGESIZE + size):
        assert libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    begin = mmap.PAGESIZE + (size - a.nbytes if at_end else 0)
    b = np.frombuffer(memory, a.dtype, a.size, begin).reshape(a.shape)
    b[...] = a
    return b

for threshold in (0, 1 << 40):
    settings.set_streaming_threshold(threshold)
    for m, n in ((3, 3), (1, 7), (17, 5), (5, 17), (40, 70)):
        for B in (1, 17, 101):
            inputs = test_shared.case(B, m, n, np.float32, "tc")
            expected = test_shared.run(*inputs)
            for at_end in (False, True):
                out = [edge(np.zeros_like(expected[name]), at_end) for name in test_shared.NAMES]
                shared.shared(*(edge(a, at_end) for a in inputs), *out)
                test_shared.assert_same_bits(dict(zip(test_shared.NAMES, out)), expected)
print("nothing beyond")
import os; sys.stdout.flush(); os._exit(0)  # the maps have views
"""


def test_touches_nothing_beyond_its_arrays():
    """Neither reads nor writes, at either end of every array."""
    if not sys.platform.startswith("linux"):
        pytest.skip("pages are protected by Linux's mprotect")
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    assert run_python(AT_THE_EDGE, PYTHONPATH=path) == "nothing beyond\n"
