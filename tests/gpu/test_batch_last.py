"""The GPU kernel for arrays whose last axis is that of the pairs, without a GPU: its launches executed from PTX."""

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from contract import assert_contract
from fenced import NAMES, assert_same_bits, batch, shapes

from gpu import code, launches
from gpu.launches import aligned
from gpu.memory import WORD
from gpu.test_compile import FEW_CHIPS, PACKAGES
from gpu.test_proof import DTYPES, at_length, given
from gpu.test_proof import backend as backend
from gpu.traffic import SECTOR_BYTES
from sigmoid_l2.kernels.gpu import launch_batch_last, plan_batch_last

B = 131  # pairs: a block, and three more
SHAPES = [(3, 3), (1, 1), (2, 5), (5, 2), (8, 8), (33, 3), (3, 32), (2, 64)]
QUICK = [("cupy", m, n, "float32") for m, n in SHAPES]
QUICK += [("cupy", 3, 3, "float64"), *(("numba-cuda", *s) for s in ((3, 3, "float32"), (33, 3, "float32")))]
# Bytes of W in flight on a multiprocessor, at least: latency times bandwidth of an H200 is 23 KB (700 ns, 4.3 TB/s).
IN_FLIGHT = 25_000
BUDGET = 132 * 128 * 1.755e9 / 3e12  # instructions of a thread for each byte that an H100 moves at the speed of a copy


def fits(m, n, dtype):
    return launch_batch_last.has_batch_last(m, n, np.dtype(dtype).itemsize)


# --- where arrays lie: each makes memory full of NaN and the view of it that is the array, for a shape (..., B) ------


def alone(shape, dtype):
    """All of an array, in C order, on a multiple of 128 bytes."""
    memory = aligned(np.full(shape, np.nan, dtype))
    return memory, memory


def a_range(shape, dtype):
    """The pairs 33 ... of more, in C order; nothing begins on a multiple of 8 bytes."""
    memory = aligned(np.full((*shape[:-1], shape[-1] + 70), np.nan, dtype), np.dtype(dtype).itemsize)
    return memory, memory[..., 33 : 33 + shape[-1]]


def columns_first(shape, dtype):
    """W (m, n, B) in the order (n, m, B): what a (B, m, n) in Fortran order is."""
    memory, view = a_range((*shape[-2::-1], shape[-1]), dtype)
    return memory, view.transpose(*range(len(shape) - 2, -1, -1), len(shape) - 1)


def backwards(shape, dtype):
    """The last row first, and every other row of the memory."""
    memory, view = a_range((2 * shape[0], *shape[1:]) if len(shape) > 1 else shape, dtype)
    return memory, view[::-2] if len(shape) > 1 else view


PLACES = [alone, a_range, columns_first, backwards]


def run(backend, W, x, target=None, cotangent=None, *, wanted=NAMES, place=alone):
    """What ``batch_last`` computes of arrays (B, ...) that are put into a ``place``, as arrays (B, ...) again.

    Nothing but the outputs is written, and all of these.
    """

    def put(a):
        memory, view = place((*a.shape[1:], len(a)), a.dtype)
        view[...] = np.moveaxis(a, 0, -1)
        return memory, view

    inputs = [None if a is None else put(a) for a in (W, x, target, cotangent)]
    outputs = {name: put(np.full(s, np.nan, W.dtype)) for name, s in shapes(W).items() if name in wanted}
    before = [None if a is None else a[0].tobytes() for a in inputs]
    views = [a and a[1] for a in (*inputs, *map(outputs.get, NAMES))]
    launches.run(*launches.launches_of(backend, *views, batch_last=True))
    assert before == [None if a is None else a[0].tobytes() for a in inputs], "an input is changed"
    results = {name: np.moveaxis(view, -1, 0).copy() for name, (_, view) in outputs.items()}
    for name, (memory, view) in outputs.items():
        assert not np.isnan(view).any(), f"an element of {name} is not written"
        view[...] = np.nan
        assert np.isnan(memory).all(), f"{name} is written where it is not"
    return results


@cache
def case(m, n, dtype, everything=True):
    """W and x, and with ``everything`` a target and a cotangent."""
    W, x = batch(B, m, n, dtype)
    return {"W": W, "x": x} | (given(B, m, dtype) if everything else {})


@pytest.mark.parametrize(
    ("backend", "m", "n", "dtype"),
    [
        pytest.param(*c, marks=() if c in QUICK else at_length)
        for c in [(b, *s, dtype) for b in PACKAGES for dtype in DTYPES for s in SHAPES if fits(*s, dtype)]
    ],
    indirect=["backend"],
)
def test_batches(backend, m, n, dtype):
    """The contract for pairs of both blocks; the same bits for each part of the batch, wherever the arrays lie."""
    inputs = case(m, n, dtype)
    whole = run(backend, **inputs)
    some = {name: a[[0, 31, B - 1]] for name, a in (inputs | whole).items()}
    assert_contract(**some, backend=backend)
    for place, first, last in zip(PLACES, (5, 0, 3, 0), (6, B, B, B), strict=True):
        part = {name: a[first:last] for name, a in inputs.items()}
        assert_same_bits(run(backend, **part, place=place), {name: a[first:last] for name, a in whole.items()})


@cache
def of_everything(backend):
    return run(backend, **case(3, 3, "float32", False))


@pytest.mark.parametrize(
    ("backend", "wanted"),
    [
        pytest.param(backend, w, marks=() if backend == "cupy" or w == ("dW",) else at_length)
        for w in (("loss",), ("dW",), ("dx",), ("dq",), ("loss", "dW", "dx"), ("dW", "dq"))
        for backend in PACKAGES
    ],
    indirect=["backend"],
)
def test_each_set_of_outputs(backend, wanted):
    inputs = case(3, 3, "float32", False)
    assert_same_bits(run(backend, **inputs, wanted=wanted, place=a_range), of_everything(backend))


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=at_length)])
def test_target_or_cotangent(dtype, backend):
    """Each without the other; and q = 20 with a target of 1, where nothing of the error may be lost."""
    inputs = case(3, 3, dtype)
    for name in ("target", "cotangent") if backend == "cupy" else ("target",):
        some = {key: a[:4] for key, a in inputs.items() if key in ("W", "x", name)}
        assert_contract(**some, **run(backend, **some), backend=backend)
    tails = {"W": np.full((2, 3, 3), 10, dtype), "x": np.full((2, 3), 2 / 3, dtype), "target": np.ones((2, 3), dtype)}
    results = run(backend, **tails)
    assert results["dq"].all()
    assert_contract(**tails, **results, backend=backend)


def test_what_is_not_finite_stays_in_its_pair(backend):
    inputs = {name: a.copy() for name, a in case(3, 3, "float32", False).items()}
    clean = of_everything(backend)
    inputs["W"][7, 1, 2] = np.nan
    views = [np.moveaxis(a, 0, -1).copy() for a in inputs.values()]
    outputs = {name: np.moveaxis(np.empty(s, np.float32), 0, -1).copy() for name, s in shapes(inputs["W"]).items()}
    launches.run(*launches.launches_of(backend, *views, None, None, *outputs.values(), batch_last=True))
    found = {name: np.moveaxis(a, -1, 0) for name, a in outputs.items()}
    assert np.isnan(found["dq"][7]).tolist() == [False, True, False]
    assert np.isnan([found["loss"][7], *found["dx"][7], *found["dW"][7, 1]]).all()
    others = np.arange(B) != 7
    assert_same_bits({k: a[others] for k, a in found.items()}, {k: a[others] for k, a in clean.items()})


def launch_of(backend, m, n, dtype, everything, pairs, place=alone):
    """The launch for so many pairs, with or without a target, a cotangent and dq; and the memory."""
    wanted = NAMES if everything else NAMES[:3]
    sizes = {"W": (m, n), "x": (n,)} | ({"target": (m,), "cotangent": ()} if everything else {})
    sizes |= {name: s for name, s in {"loss": (), "dW": (m, n), "dx": (n,), "dq": (m,)}.items() if name in wanted}
    views = {name: place((*s, pairs), dtype)[1] for name, s in sizes.items()}
    for name in ("W", "x", "target", "cotangent"):
        if name in views:
            views[name][...] = 1
    (launch,), memory = launches.launches_of(backend, *map(views.get, launches.NAMES), batch_last=True)
    return launch, memory


@pytest.mark.parametrize(
    ("m", "n", "dtype", "everything"),
    [
        (3, 3, "float32", True),
        *(pytest.param(*c, marks=at_length) for c in ((3, 3, "float32", False), (8, 8, "float32", True))),
        *(pytest.param(*c, marks=at_length) for c in ((33, 3, "float32", True), (3, 3, "float64", True))),
    ],
)
def test_traffic(backend, m, n, dtype, everything):
    """Every element moves once, in whole sectors where rows are aligned.

    Elsewhere an access of a warp takes one sector more, at most. A thread waits for memory once for each group of rows,
    never for another thread, and takes a third of the instructions that the speed of memory has room for.
    """
    p, itemsize = plan_batch_last.make_plan(m, n, np.dtype(dtype).itemsize), np.dtype(dtype).itemsize
    sizes = {("W", False): m * n, ("x", False): n, ("loss", True): 1, ("dW", True): m * n, ("dx", True): n}
    if everything:
        sizes |= {("target", False): m, ("cotangent", False): 1, ("dq", True): m}
    for place in (alone, columns_first):
        launch, memory = launch_of(backend, m, n, dtype, everything, p.threads, place)
        ((issued, traffic),) = launches.run([launch], memory, count=True)
        assert set(traffic.sectors) == set(sizes)
        for key, size in sizes.items():
            words, often = np.unique(memory.touched(*key), return_counts=True)
            least = p.threads * size * itemsize // SECTOR_BYTES
            assert len(words) * WORD == p.threads * size * itemsize
            assert often.max() == 1
            accesses = traffic.accesses[(*key, itemsize)]
            assert accesses == p.threads // 32 * size
            assert traffic.sectors[key] <= least + (0 if place is alone else accesses)
        assert traffic.waits.trips == -(-m // p.rows)
        assert not [opcode for opcode in issued if opcode.startswith(("bar", "shfl", "ld.shared", "st.shared"))]
        if dtype == "float32":
            assert not [opcode for opcode in issued if ".f64" in opcode]
            assert issued.total() * 32 / p.threads <= BUDGET * sum(sizes.values()) * itemsize / 3


# The most values in registers: of one row, and of several; and what is most used.
FITS = {"float32": [(3, 3), (1, 64), (16, 1), (33, 1), (40, 2), (9, 4), (8, 8), (33, 3)]}
FITS["float64"] = [(3, 3), (1, 32), (8, 1), (8, 4), (9, 3)]
QUICK_FITS = [("cupy", "float32", 3, 3), ("cupy", "float32", 1, 64), ("cupy", "float64", 1, 32)]
QUICK_FITS += [("numba-cuda", "float32", 3, 3), ("numba-cuda", "float32", 33, 3)]


@pytest.mark.parametrize(
    ("backend", "dtype", "m", "n", "everything"),
    [
        pytest.param(*c, e, marks=() if e and c in QUICK_FITS else at_length)
        for c in [(b, dtype, *s) for b in PACKAGES for dtype in DTYPES for s in FITS[dtype]]
        for e in (False, True)
    ],
    indirect=["backend"],
)
def test_it_fits(backend, dtype, m, n, everything):
    """Nothing in local or shared memory, and IN_FLIGHT bytes of W in flight on a multiprocessor."""
    launch, _ = launch_of(backend, m, n, dtype, everything, 1)
    p = plan_batch_last.make_plan(m, n, np.dtype(dtype).itemsize)
    for chip in FEW_CHIPS:
        used = code.used(launch, chip)
        assert (used.stack, used.shared) == (0, 0), used
        resident = code.chips.resident_blocks(chip, launch.threads, used.registers, 0) * launch.threads
        assert resident * p.rows * n * np.dtype(dtype).itemsize >= IN_FLIGHT, used


@pytest.mark.parametrize("pairs", [1, 128, 129, 2**31, 2**37, 2**37 + 1, 2**40 + 3])
def test_grids(pairs):
    """All pairs of arrays that no memory holds, in launches that a GPU takes."""
    launched = []

    def run(kernel, blocks, threads, stream, arguments):
        launched.append((blocks, threads, stream, arguments))

    def array(begin, *shape):
        step = np.append(np.cumprod((*shape, pairs)[:0:-1], dtype=object)[::-1], 1) * 4
        dtype = np.dtype(np.float32)
        return SimpleNamespace(data=SimpleNamespace(ptr=begin), shape=(*shape, pairs), dtype=dtype, strides=(*step,))

    launcher = SimpleNamespace(run=run, batch_last_kernel=lambda p, n, itemsize, given, wanted: (given, wanted))
    x, dx = array(1 << 50, 3), array(2 << 50, 3)
    W = array(1 << 60, 3, 3)
    launch_batch_last.batch_last(launcher, W, x, None, None, None, None, dx, None, stream=7)
    done = 0
    for blocks, threads, stream, arguments in launched:
        own, (B, m), steps = arguments[:8], arguments[8:10], arguments[10:]
        assert (stream, m) == (7, 3)
        assert own == ((1 << 60) + 4 * done, (1 << 50) + 4 * done, 0, 0, 0, 0, (2 << 50) + 4 * done, 0)
        assert steps == (3 * pairs, pairs, pairs, 0, 0, 0, pairs, 0)
        assert blocks * threads >= B > (blocks - 1) * threads
        assert blocks < 2**31
        done += B
    assert done == pairs


def test_it_takes_the_rows_that_it_has_room_for():
    assert all(launch_batch_last.has_batch_last(m, n, 4) for m in (1, 7, 10**6) for n in range(1, 65))
    assert launch_batch_last.has_batch_last(5, 32, 8)
    assert not launch_batch_last.has_batch_last(1, 65, 4)
    assert not launch_batch_last.has_batch_last(1, 33, 8)
    W = SimpleNamespace(shape=(1, 65, 2), dtype=np.dtype(np.float32))
    with pytest.raises(NotImplementedError, match="1 by 65"):
        launch_batch_last.batch_last(None, W, *[None] * 7, stream=None)


@pytest.mark.parametrize(
    ("backend", "everything"),
    [("cupy", True), pytest.param("numba-cuda", False, marks=at_length)],
    indirect=["backend"],
)
def test_offsets_beyond_32_bits(backend, everything):
    """The last block of more than 2^31 elements of W: memory that is not touched is not there."""
    pairs = 2**31 // 9 + 130
    few = {name: a[-9:] for name, a in case(3, 3, "float32", everything).items()}
    wanted = NAMES if everything else NAMES[:3]
    try:
        arrays = {k: np.zeros((*a.shape[1:], pairs), np.float32) for k, a in few.items()}
        arrays |= {k: np.zeros((*s[1:], pairs), np.float32) for k, s in shapes(few["W"]).items() if k in wanted}
    except MemoryError:
        pytest.skip("the operating system does not lend memory that it may not have")
    for name, a in few.items():
        arrays[name][..., -9:] = np.moveaxis(a, 0, -1)
    (launch,), memory = launches.launches_of(backend, *map(arrays.get, launches.NAMES), batch_last=True)
    launches.run([launch], memory, only=range(launch.blocks - 1, launch.blocks))
    found = {name: np.moveaxis(arrays[name][..., -9:], -1, 0) for name in wanted}
    assert_same_bits(found, run(backend, **few, wanted=wanted))
