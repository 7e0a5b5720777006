"""The GPU kernel for a tiny W that all pairs share, without a GPU: its launches executed from their PTX."""

import importlib
import math
from functools import cache

import numpy as np
import pytest
from contract import assert_contract
from fenced import FENCE, NAMES, assert_same_bits

from gpu import code, launches
from gpu.launches import aligned
from gpu.memory import Global
from gpu.test_compile import FEW_CHIPS, PACKAGES, SHARED_BYTES
from gpu.test_proof import DTYPES, at_length, between, given, has_race
from gpu.test_proof import backend as backend
from gpu.traffic import SECTOR_BYTES
from sigmoid_l2.kernels.gpu import plan_shared

# What the plan is here, so that a small batch has several blocks of several tiles, and runs of several tiles.
SMALL = {"TINY_THREADS": 64, "TINY_PAIRS": 2, "TINY_RUN": 4, "TINY_BLOCKS": 4, "SUMS_THREADS": 32}
SHAPES = {"float32": [(3, 3), (1, 1), (5, 2), (8, 8), (4, 16), (18, 2)], "float64": [(3, 3), (1, 1), (6, 6), (18, 2)]}
QUICK = [  # batches of `make test`
    ("cupy", 3, 3, "float32"),
    ("cupy", 5, 2, "float32"),
    ("cupy", 3, 3, "float64"),
    ("numba-cuda", 3, 3, "float32"),
]
BUDGET = 132 * 128 * 1.755e9 / 3e12  # instructions of a thread for each byte that an H100 moves at the speed of a copy


@pytest.fixture
def small(monkeypatch):
    """Small tiles and few blocks."""
    for name, value in SMALL.items():
        monkeypatch.setattr(plan_shared, name, value)
    plan_shared.make_plan.cache_clear()
    yield
    plan_shared.make_plan.cache_clear()


def case(B, m, n, dtype, everything=True):
    """W (m, n), x (B, n), and with ``everything`` a target and a cotangent."""
    rng = np.random.default_rng([B, m, n])
    W, x = rng.standard_normal((m, n)).astype(dtype), (rng.standard_normal((B, n)) / n**0.5).astype(dtype)
    return {"W": W, "x": x} | (given(B, m, dtype) if everything else {})


def run(backend, W, x, target=None, cotangent=None, *, wanted=NAMES, to_device=aligned):
    """The outputs ``wanted``, all of them written, and nothing else."""
    B, m, n = len(x), *W.shape
    shapes = {"loss": (B,), "dW": (m, n), "dx": (B, n), "dq": (B, m)}
    inputs = [None if a is None else to_device(a) for a in (W, x, target, cotangent)]
    memory = {name: to_device(np.full(math.prod(shapes[name]) + 2 * FENCE, np.nan, W.dtype)) for name in wanted}
    out = {name: a[FENCE:-FENCE].reshape(shapes[name]) for name, a in memory.items()}
    launches.fused(backend, *inputs, *map(out.get, NAMES))
    for a, before in zip(inputs, (W, x, target, cotangent), strict=True):
        assert before is None or a.tobytes() == before.tobytes(), "an input is changed"
    for name, a in memory.items():
        assert np.isnan([a[:FENCE], a[-FENCE:]]).all(), f"{name} is written beyond its ends"
    return out


def roundings(B):
    """How often a term of dW is rounded, at most, after its product: as the plan for 3x3 adds them up."""
    p = plan_shared.make_plan(3, 3, 4)
    blocks = -(-B // (p.tile * plan_shared.tiles_of_block(p, B)))
    run = min(p.run * p.pairs, -(-B // p.threads)) - 1  # additions of one thread
    lanes = math.ceil(math.log2(min(B, 32)))
    return run + lanes + (B > 32) + (blocks > 1)  # and once for all sums that are added with their errors


def assert_sums(W, x, results):
    """dW is the sum of dq x^T: dq is there, and may be in error itself."""
    B, eps = len(x), float(np.finfo(W.dtype).eps)
    dq, x = results["dq"].astype(np.longdouble), x.astype(np.longdouble)
    limit = (roundings(B) + 1) * eps / 2 * (abs(dq).T @ abs(x))
    assert np.all(abs(results["dW"] - dq.T @ x) <= limit), "dW"


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("backend", "m", "n", "dtype"),
    [
        pytest.param(*c, marks=() if c in QUICK else at_length)
        for c in [(b, *s, dtype) for b in PACKAGES for dtype in DTYPES for s in SHAPES[dtype]]
    ],
    indirect=["backend"],
)
def test_batches(backend, m, n, dtype):
    """The contract for one pair, and for as many as end around a warp, a tile, a block and all blocks."""
    tile = plan_shared.make_plan(m, n, np.dtype(dtype).itemsize).tile
    inputs = case(9 * tile + 5, m, n, dtype)  # blocks of 3, 3, 3 and 1 tiles, in runs of 2
    B = len(inputs["x"])
    whole = run(backend, **inputs)
    assert_sums(inputs["W"], inputs["x"], whole)
    for first, last in ((0, 1), (3, 36), (0, tile - 1), (5, 5 + tile), (0, tile + 1), (70, 70 + 3 * tile)):
        part = {name: a if name == "W" else a[first:last] for name, a in inputs.items()}
        results = run(backend, **part)
        assert_sums(part["W"], part["x"], results)
        assert_same_bits({k: results[k] for k in ("loss", "dx", "dq")}, {k: a[first:last] for k, a in whole.items()})
        if last - first < 40:
            assert_contract(**part, **results, backend=backend)
    for pairs in (slice(B - 1, B), slice(tile - 2, tile + 2)):
        part = {name: a if name == "W" else a[pairs] for name, a in (inputs | whole).items()}
        assert_contract(**part | {"dW": None}, backend=backend)
    assert_same_bits(run(backend, **inputs, to_device=between), whole)


@cache
def of_everything(backend):
    return run(backend, **case(1027, 3, 3, "float32", False))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "wanted",
    [
        ("dW",),
        *(pytest.param(w, marks=at_length) for w in (("loss",), ("dx",), ("dq",), ("loss", "dW", "dx"), ("dW", "dq"))),
    ],
)
def test_each_set_of_outputs(backend, wanted):
    """The same bits, of dW, too; also where it is all that is wanted."""
    inputs = case(1027, 3, 3, "float32", False)
    assert_same_bits(run(backend, **inputs, wanted=wanted), of_everything(backend))


@pytest.mark.usefixtures("small")
def test_one_launch_where_nothing_is_to_be_added(backend):
    for B, wanted, names in ((1027, NAMES, ["tiny", "sums"]), (1027, ("dx",), ["tiny"]), (128, NAMES, ["tiny"])):
        shapes = {"loss": (B,), "dW": (3, 3), "dx": (B, 3), "dq": (B, 3)}
        inputs = case(B, 3, 3, "float32", False)
        outputs = [np.empty(shapes[name], np.float32) if name in wanted else None for name in NAMES]
        launched, memory = launches.launches_of(backend, *inputs.values(), None, None, *outputs)
        assert [launch.name for launch in launched] == names
        assert ("workspace" in [name for _, name, _ in memory.arrays]) == ("sums" in names)


@pytest.mark.usefixtures("small")
def test_what_is_not_finite(backend):
    """A NaN in x is in its pair's results and in dW, and nowhere else; threads without a pair add nothing to dW."""
    inputs = case(300, 3, 3, "float32")
    clean = run(backend, **inputs)
    inputs["x"][130, 1] = np.nan
    results = run(backend, **inputs)
    others = np.arange(300) != 130
    for name in ("loss", "dx", "dq"):
        assert np.isnan(results[name][130]).all()
        assert results[name][others].tobytes() == clean[name][others].tobytes()
    assert np.isnan(results["dW"]).all()
    W, x = np.full((3, 3), np.inf, np.float32), np.abs(clean["dx"]) + 1
    results = run(backend, W, x, inputs["target"], inputs["cotangent"])
    assert not results["dW"].any()


@pytest.mark.usefixtures("small")
def test_equal_terms(backend):
    """Whose errors all have the same sign."""
    W, x = np.full((3, 3), 0.3, np.float32), np.full((1500, 3), 0.7, np.float32)
    assert_sums(W, x, run(backend, W, x))


@pytest.mark.parametrize(
    ("columns", "loaders", "values", "count", "dtype"),
    [(1, 32, 3, 700, "float32"), pytest.param(32, 8, 70, 100, "float64", marks=at_length), (1, 256, 2, 2, "float32")],
)
def test_sums(backend, columns, loaders, values, count, dtype):
    """Rounded once, wherever the parts are; parts that are infinite make a sum that is."""
    launcher = importlib.import_module(f"sigmoid_l2.kernels.gpu.{launches.MODULES[backend]}")
    rng = np.random.default_rng([values, count])
    parts = (rng.standard_normal((values, count)) * 10.0 ** rng.uniform(-6, 6, (values, count))).astype(dtype)
    parts[0, 0] = np.inf
    true = np.array([math.fsum(row) for row in parts.astype(float)]).astype(dtype)
    for held, value_step, part_step in ((parts, count, 1), (parts.T.copy(), 1, values)):
        dW, held, memory = aligned(np.full(values, np.nan, dtype)), aligned(held), Global()
        addresses = memory.add("parts", held), memory.add("dW", dW)
        kernel = launcher.shared_sums_kernel(columns, loaders, held.itemsize)
        arguments = *addresses, values, count, value_step, part_step
        launches.run([launches.Launch(kernel, -(-values // columns), columns * loaders, arguments)], memory)
        assert np.isinf(dW[0])
        np.testing.assert_array_almost_equal_nulp(dW[1:], true[1:], 1)


@pytest.mark.parametrize("B", sorted({max(1, (1 << k) + d) for k in range(41) for d in (-1, 0, 1)} | {33, 129, 385}))
def test_roundings(B):
    """A term is rounded by eps/2 at most so often that a sum of B terms keeps the contract, for every B.

    Sums with the errors of k additions have errors of their own, (k eps/2)^2 at most: for MOST_TERMS less than eps/2.
    """
    allowed = 2 * (math.ceil(math.log2(B)) + 1)
    assert roundings(B) + (2 if B > 128 else 0) <= allowed
    assert plan_shared.MOST_TERMS * 2.0**-24 <= 2.0**-12
    p = plan_shared.make_plan(3, 3, 4)
    tiles = plan_shared.tiles_of_block(p, B)
    assert -(-tiles // p.run) <= plan_shared.MOST_TERMS
    blocks = -(-B // (p.tile * tiles))
    assert blocks * p.tile * tiles >= B > (blocks - 1) * p.tile * tiles
    assert blocks <= max(plan_shared.TINY_BLOCKS, -(-B >> 22))


def launch_of(backend, m, n, dtype, everything, B):
    """The launch for B pairs, aligned, with or without a target, a cotangent and dq; and the memory."""
    inputs = case(B, m, n, dtype, everything)
    shapes = {"loss": (B,), "dW": (m, n), "dx": (B, n), "dq": (B, m)}
    wanted = NAMES if everything else NAMES[:3]
    outputs = [aligned(np.zeros(shapes[name], dtype)) if name in wanted else None for name in NAMES]
    arrays = [aligned(inputs[k]) if k in inputs else None for k in ("W", "x", "target", "cotangent")]
    (launch, *_), memory = launches.launches_of(backend, *arrays, *outputs)
    return launch, memory


# The most values in registers, and what is most used; and those of `make test`.
FITS = {"float32": [(3, 3), (8, 8), (10, 10), (1, 42), (20, 5), (50, 2), (64, 1)]}
FITS["float64"] = [(3, 3), (6, 6), (1, 21), (18, 2)]
QUICK_FITS = [("cupy", "float32", 3, 3), ("cupy", "float32", 10, 10), ("cupy", "float64", 6, 6)]


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
    """Nothing in local memory; of 3x3 a third of the threads are resident, of any at least one block."""
    launch, _ = launch_of(backend, m, n, dtype, everything, 1)
    for chip in FEW_CHIPS:
        used = code.used(launch, chip)
        assert used.stack == 0, used
        assert used.shared <= SHARED_BYTES, used
        occupancy = code.chips.occupancy(chip, launch.threads, used.registers, used.shared)
        assert occupancy >= (0.33 if (m, n, dtype) == (3, 3, "float32") else 0.1), used


@pytest.mark.parametrize(
    ("m", "n", "dtype", "everything"),
    [
        (3, 3, "float32", False),
        *(pytest.param(8, 8, *c, marks=at_length) for c in (("float32", False), ("float32", True))),
        pytest.param(3, 3, "float64", True, marks=at_length),
    ],
)
def test_traffic(monkeypatch, backend, m, n, dtype, everything):
    """x is read once, each output is written once, in whole sectors, without bank conflicts, in few instructions."""
    monkeypatch.setattr(plan_shared, "TINY_BLOCKS", 1)
    p = plan_shared.make_plan(m, n, np.dtype(dtype).itemsize)
    pairs = p.tile * p.run * 3
    launch, memory = launch_of(backend, m, n, dtype, everything, pairs)
    assert launch.blocks == 1
    ((issued, traffic),) = launches.run([launch], memory, count=True)
    itemsize = np.dtype(dtype).itemsize
    sizes = {("x", False): n, ("loss", True): 1, ("dx", True): n}
    if everything:
        sizes |= {("target", False): m, ("cotangent", False): 1, ("dq", True): m}
    for key, size in sizes.items():
        words, often = np.unique(memory.touched(*key), return_counts=True)
        assert len(words) * 4 == pairs * size * itemsize
        assert often.max() == 1
        assert traffic.sectors[key] == pairs * size * itemsize // SECTOR_BYTES
    assert set(traffic.sectors) == {*sizes, ("W", False), ("dW", True)}
    assert traffic.sectors["dW", True] <= m * n
    assert traffic.wavefronts <= 1.05 * traffic.conflict_free
    bytes_of_pair = sum(sizes.values()) * itemsize
    assert dtype == "float64" or issued.total() * 32 / pairs <= BUDGET * bytes_of_pair


@pytest.mark.parametrize(
    ("backend", "given"), [("cupy", True), pytest.param("numba-cuda", False, marks=at_length)], indirect=["backend"]
)
def test_offsets_beyond_32_bits(backend, given):
    """The last block of more than 2^31 elements of x: memory that is not touched is not there."""
    B = 2**31 // 3 + 130
    try:
        x, dx, dq, target = (np.zeros((B, 3), np.float32) for _ in range(4))
        loss, cotangent = np.zeros(B, np.float32), np.zeros(B, np.float32)
    except MemoryError:
        pytest.skip("the operating system does not lend memory that it may not have")
    few = case(9, 3, 3, "float32", given)
    x[-9:] = few["x"]
    if given:
        target[-9:], cotangent[-9:] = few["target"], few["cotangent"]
    inputs = few["W"], x, *((target, cotangent) if given else (None, None))
    (launch,), memory = launches.launches_of(backend, *inputs, loss, None, dx, dq)
    launches.run([launch], memory, only=range(launch.blocks - 1, launch.blocks))
    found = {"loss": loss[-9:], "dx": dx[-9:], "dq": dq[-9:]}
    assert_same_bits(found, run(backend, **few, wanted=tuple(found)))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=at_length)])
def test_each_barrier_that_is_left_out_is_seen(backend, dtype):
    """Of blocks with several tiles. Those of a warp are for the compilers alone."""
    inputs = case(1700, 3, 3, dtype)
    outputs = [np.full(shape, np.nan, dtype) for shape in ((1700,), (3, 3), (1700, 3), (1700, 3))]
    launched, memory = launches.launches_of(backend, *map(aligned, inputs.values()), *outputs)
    for launch in launched:
        text = launch.text()
        launches.run([launch], memory)
        places = [k for k in range(len(text)) if text.startswith("bar.sync", k)]
        assert places
        for k in places:
            assert has_race(launch, memory, text[:k] + text[text.index(";", k) + 1 :]), (launch.name, k)
