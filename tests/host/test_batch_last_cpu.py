"""Batch-last arrays on the CPU: the kernel ``batch_last`` called directly."""

import itertools

import numpy as np
import pytest
from contract import assert_contract

pytest.importorskip("numba")

from sigmoid_l2 import threads
from sigmoid_l2.kernels.cpu import batch_last, launch
from sigmoid_l2.kernels.cpu.simd import lane_count

NAMES = ("loss", "dW", "dx", "dq")
# One tree of q and several, one chain of rows and several, with and without a rest.
SHAPES = [(1, 1), (3, 3), (2, 5), (5, 2), (8, 8), (17, 33), (1, 40), (40, 1), (200, 3), (3, 2000), (30, 600)]
DTYPES = [np.dtype("f4"), np.dtype("f8")]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
GIVEN = ["", "t", "c", "tc"]
OUTSIDE = 123.0  # what is around the arrays


def case(B, m, n, dtype, given="", seed=0):
    """W (m, n, B), x (n, B), and with ``given`` letters a target (m, B), of which some are 0 and 1, and a cotangent."""
    rng = np.random.default_rng([m, n, seed])
    W, x = rng.standard_normal((B, m, n)), rng.standard_normal((B, n)) / n**0.5
    target = rng.choice([0, 0.3, 0.5, 0.9, 1], (B, m)) if "t" in given else None
    cotangent = rng.standard_normal(B) if "c" in given else None
    return [None if a is None else np.moveaxis(a, 0, -1).astype(dtype, order="C") for a in (W, x, target, cotangent)]


def place(values, offset=0, gap=0, order="C"):
    """Memory full of OUTSIDE, and in it an array of ``values``, that begins ``offset`` elements after a line of memory.

    Between its runs are ``gap`` elements; ``order`` "F" has the first axes in the other order, "-" backwards.
    """
    *axes, B = values.shape
    memory = np.full(64 + offset + (B + gap) * int(np.prod(axes)) + 64, OUTSIDE, values.dtype)
    begin = -memory.ctypes.data % 64 // values.itemsize + 16 + offset
    runs = memory[begin:][: (B + gap) * int(np.prod(axes))].reshape(*(axes[::-1] if order == "F" else axes), B + gap)
    view = runs[..., :B]
    if order == "F":
        view = view.transpose(*range(len(axes))[::-1], -1)
    if order == "-":
        view = view[(slice(None, None, -1),) * len(axes)]
    view[...] = values
    return memory, view


def run(W, x, target=None, cotangent=None, wanted=NAMES, **layout):
    """The outputs ``wanted``, all of them written, and nothing else."""
    m, n, B = W.shape
    shapes = {"loss": (B,), "dW": (m, n, B), "dx": (n, B), "dq": (m, B)}
    inputs = [None if a is None else place(a, **layout) for a in (W, x, target, cotangent)]
    outputs = {name: place(np.full(shapes[name], np.nan, W.dtype), **layout) for name in wanted}
    before = [a and a[0].tobytes() for a in inputs]
    launch.batch_last(*(a and a[1] for a in inputs), *((outputs.get(name) or (None, None))[1] for name in NAMES))
    assert [a and a[0].tobytes() for a in inputs] == before, "an input is changed"
    results = {}
    for name, (memory, view) in outputs.items():
        assert not np.isnan(memory).any(), f"an element of {name} is not written"
        results[name] = view.copy()
        view[...] = OUTSIDE
        assert (memory == OUTSIDE).all(), f"{name} is written outside"
    return results


def assert_same_bits(results, expected, pairs=slice(None)):
    for name, a in results.items():
        assert a.tobytes() == expected[name][..., pairs].tobytes(), f"{name} has other bits"


def assert_accurate(W, x, target, cotangent, results, pairs):
    """The accuracy contract for some pairs."""
    first = [None if a is None else np.moveaxis(a, -1, 0)[pairs] for a in (W, x, target, cotangent)]
    out = {name: np.moveaxis(a, -1, 0)[pairs] for name, a in results.items()}
    assert_contract(*first[:2], **out, target=first[2], cotangent=first[3], backend="numba")


@pytest.fixture
def on_threads(monkeypatch):
    """A function of a number: so many threads share every call, and their results are streamed."""

    def use(number):
        monkeypatch.setattr(threads, "get_num_threads", lambda: number)
        monkeypatch.setattr(threads, "THREAD_WORK", 1)
        monkeypatch.setattr(batch_last, "SMALL", 0)
        monkeypatch.setattr(batch_last, "get_streaming_threshold", lambda: 0)
        threads._pool.cache_clear()

    yield use
    threads._pool.cache_clear()


@each_dtype
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_contract(m, n, dtype):
    for given in GIVEN if m * n <= 64 else ["", "tc"]:
        B = 3
        arrays = case(B, m, n, dtype, given)
        assert_accurate(*arrays, run(*arrays), [0] if m * n > 1000 else [0, B - 1])


@each_dtype
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_same_bits_in_any_batch(m, n, dtype, on_threads):
    """At any place of a batch of any size, and with any outputs wanted, streamed by some threads or not."""
    lanes = lane_count(dtype)
    block = batch_last.VECTORS * lanes
    largest = 5 * block + 3
    arrays = case(largest, m, n, dtype, "tc")
    expected = run(*arrays)
    on_threads(1)
    assert_same_bits(run(*arrays, gap=3), expected)
    on_threads(3)
    assert_same_bits(run(*arrays, offset=5, order="F"), expected)
    for B in (1, lanes - 1, lanes, lanes + 1, block - 1, block, block + 1, 2 * block, 3 * block - 1):
        for first in (0, largest - B):
            pairs = slice(first, first + B)
            assert_same_bits(run(*(a[..., pairs] for a in arrays)), expected, pairs)


@each_dtype
@pytest.mark.parametrize(("m", "n"), [(3, 3), (2, 5), (9, 17)])
def test_same_bits_in_any_place(m, n, dtype, on_threads):
    """Of memory: at each offset, and with runs that begin elsewhere in a line."""
    lanes = lane_count(dtype)
    for B in (1, lanes - 1, 2 * lanes + 3, 9 * lanes, 11 * lanes - 1):
        arrays = case(B, m, n, dtype, "tc")
        expected = run(*arrays)
        for offset, gap, order in itertools.product(range(0, 16, 3), (0, 1, 16), ("C", "F", "-")):
            on_threads(1 + offset % 2)
            assert_same_bits(run(*arrays, offset=offset, gap=gap, order=order), expected)


@pytest.mark.parametrize("streams", [False, True])
def test_what_is_wanted(streams, on_threads):
    arrays = case(1100, 9, 10, DTYPES[0], "tc")
    expected = run(*arrays)
    if streams:
        on_threads(2)
    for count in range(len(NAMES) + 1):
        for wanted in itertools.combinations(NAMES, count):
            assert_same_bits(run(*arrays, wanted=wanted), expected)


def test_nan_stays_in_its_pair():
    W, x, *_ = case(40, 10, 9, DTYPES[0])
    expected = run(W, x)
    W[3, 4, 17], x[5, 30] = np.nan, np.inf
    results = run_with_nan(W, x)
    others = [b for b in range(40) if b not in (17, 30)]
    for name, a in results.items():
        assert a[..., others].tobytes() == expected[name][..., others].tobytes()
    assert np.isnan(results["loss"]).tolist() == [b == 17 for b in range(40)]


def run_with_nan(W, x):
    m, n, B = W.shape
    out = [np.zeros(shape, W.dtype) for shape in ((B,), (m, n, B), (n, B), (m, B))]
    launch.batch_last(W, x, None, None, *out)
    return dict(zip(NAMES, out, strict=True))


def test_memory_error_before_anything_is_written(monkeypatch):
    W, x, *_ = case(5000, 3, 3, DTYPES[0])
    loss = np.full(5000, np.nan, "f4")

    def empty(*_):
        raise MemoryError

    monkeypatch.setattr(batch_last.np, "empty", empty)
    with pytest.raises(MemoryError):
        launch.batch_last(W, x, None, None, loss, None, None, None)
    assert np.isnan(loss).all()


def test_longest_pairs_in_bounded_memory():
    for dtype in DTYPES:
        longest = batch_last.LONGEST // dtype.itemsize
        assert launch.has_batch_last(longest, longest, dtype.itemsize)
        assert batch_last.room(longest, longest, lane_count(dtype), batch_last.VECTORS) * dtype.itemsize < 16 << 20
        assert not launch.has_batch_last(longest + 1, 1, dtype.itemsize)
        assert not launch.has_batch_last(1, longest + 1, dtype.itemsize)
