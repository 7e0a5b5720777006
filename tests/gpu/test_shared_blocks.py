"""The kernels for one larger W and many x, proven as those of test_proof.py: the PTX that would run there, executed."""

import importlib
import itertools
from functools import cache

import numpy as np
import pytest
from contract import allowed_sum, assert_contract
from fenced import NAMES, assert_same_bits

from gpu import code, launches, ptx
from gpu.launches import aligned
from gpu.test_compile import FEW_CHIPS, PACKAGES, SHARED_BYTES
from gpu.test_proof import BARRIER, DTYPES, at_length, between, given, has_race
from gpu.test_proof import backend as backend
from gpu.test_shared_tiny import run
from gpu.traffic import SECTOR_BYTES
from sigmoid_l2.kernels import Given
from sigmoid_l2.kernels.gpu import plan, plan_shared

# B, m, n. Of each tile a few elements more or fewer than it holds, and rows that are whole vectors of 16 bytes or not.
CASES = {
    "few rows": (131, 10, 36),
    "one row": (70, 1, 99),
    "one column": (70, 99, 1),
    "rows": (129, 131, 12),  # two tiles of them
    "columns": (37, 20, 133),
    "vectors": (40, 68, 20),
}
cupy_first = pytest.mark.parametrize(
    "backend", ["cupy", pytest.param("numba-cuda", marks=at_length)], indirect=True
)  # kernels of numba.cuda take longer to compile
QUICK = [("few rows", "float32"), ("rows", "float32")]


@pytest.fixture
def small_parts(monkeypatch):
    """Parts and slices of a batch that is small enough for a quick test."""
    monkeypatch.setattr(plan_shared, "part_pairs", lambda m, itemsize: 48)
    monkeypatch.setattr(plan_shared, "SLICE_PAIRS", 16)


def case(name, dtype):
    """W, x, a target and a cotangent."""
    B, m, n = CASES[name]
    rng = np.random.default_rng([B, m, n])
    W, x = rng.standard_normal((m, n)).astype(dtype), (rng.standard_normal((B, n)) / n**0.5).astype(dtype)
    return [W, x, *given(B, m, dtype).values()]


def shapes(W, x):
    return {"loss": len(x), "dW": W.shape, "dx": x.shape, "dq": (len(x), len(W))}


def assert_accurate(W, x, target, cotangent, results, backend):
    """The contract: for the first and the last pair by the oracle, for dW in long doubles."""
    ends = {name: results[name][[0, -1]] for name in ("loss", "dx", "dq")}
    y, c = target.astype(np.longdouble), cotangent.astype(np.longdouble)[:, None]
    assert_contract(
        W, x[[0, -1]], dW=None, **ends, target=target[[0, -1]], cotangent=cotangent[[0, -1]], backend=backend
    )
    eps, tiny, B = float(np.finfo(W.dtype).eps), float(np.finfo(W.dtype).tiny), len(x)
    W, x = W.astype(np.longdouble), x.astype(np.longdouble)
    q, delta = x @ W.T, W.shape[1] * eps / 2 * (abs(x) @ abs(W).T)
    s, s_1 = 1 / (1 + np.exp(-q)), 1 / (1 + np.exp(q))
    g = 2 * np.where(y > 0.5, (1 - y) - s_1, s - y) * s * s_1 * c
    bound = 2 * np.minimum(s + abs(y), s_1 + abs(1 - y)) * s * s_1 * abs(c) * (2 * delta + 8.5 * eps)
    limits = bound.T @ abs(x) + B * tiny
    assert np.all(abs(results["dW"] - g.T @ x) <= allowed_sum(limits, abs(g).T @ abs(x), B, results["dW"].dtype))


@cache
def whole(backend, name, dtype):
    """All outputs, with a target and a cotangent."""
    return run(backend, *case(name, dtype))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [pytest.param(*c, marks=() if c in QUICK else at_length) for c in itertools.product(CASES, DTYPES)],
)
def test_contract(backend, name, dtype):
    assert_accurate(*case(name, dtype), whole(backend, name, dtype), backend)


@pytest.mark.parametrize(
    ("backend", "name"),
    [
        pytest.param(backend, name, marks=() if (backend, name) == ("cupy", "few rows") else at_length)
        for backend in PACKAGES
        for name in CASES
    ],
    indirect=["backend"],
)
def test_same_bits(backend, name):
    """Of a pair in any batch; of everything whatever is wanted, and wherever arrays begin."""
    W, x, target, cotangent = case(name, "float32")
    right = whole(backend, name, "float32")
    for pairs in (slice(1), slice(3, 40)):
        part = run(backend, W, x[pairs], target[pairs], cotangent[pairs])
        del part["dW"]
        assert_same_bits(part, {k: a[pairs] for k, a in right.items()})
    for wanted in (("dW",), ("dx",), ("loss",), ("dW", "dq")):
        assert_same_bits(run(backend, W, x, target, cotangent, wanted=wanted), right)
    assert_same_bits(run(backend, W, x, target, cotangent, to_device=between), right)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=at_length)])
def test_parts_and_slices(backend, dtype):
    """Of a batch; not the same bits of dW as in one part, but of all else, and g needs no memory where dq is wanted."""
    W, x, target, cotangent = case("few rows", dtype)
    results = run(backend, W, x, target, cotangent)
    assert_accurate(W, x, target, cotangent, results, backend)
    assert_same_bits(run(backend, W, x, target, cotangent, wanted=("loss", "dW", "dx")), results)
    right = whole(backend, "few rows", dtype)
    assert_same_bits({name: results[name] for name in ("loss", "dx", "dq")}, right)
    outputs = [np.empty(shape, dtype) for shape in shapes(W, x).values()]
    launched, memory = launches.launches_of(backend, W, x, target, cotangent, *outputs)
    assert [launch.name for launch in launched] == ["q", "dx", "parts"] * 3 + ["sums"]
    held = next(a for _, name, a in memory.arrays if name == "workspace")
    assert held.nbytes == 3 * 2 * W.nbytes  # high and low of three slices


@cupy_first
@pytest.mark.parametrize("B", [5, 100, pytest.param(3000, marks=at_length)])
def test_equal_terms(backend, B):
    """Whose sum a chain would round in each addition in the same direction."""
    W, x = np.zeros((9, 33), np.float32), np.full((B, 33), 1.1, np.float32)
    cotangent = np.full(B, 1.3, np.float32)
    dW = run(backend, W, x, None, cotangent, wanted=("dW",))["dW"].astype(float)
    term = 0.25 * float(x[0, 0]) * float(cotangent[0])
    assert abs(dW - B * term).max() <= allowed_sum(B * 8 * 2**-23 * term, B * term, B, np.float32)


@cupy_first
def test_a_sum_that_is_infinite(backend):
    """Is not NaN, though its errors are."""
    W, x = np.zeros((9, 33), np.float32), np.full((100, 33), 3e38, np.float32)
    outputs = np.empty((9, 33), np.float32)
    launches.run(*launches.launches_of(backend, *map(aligned, (W, x)), None, None, None, outputs, None, None))
    assert (outputs == np.inf).all()


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_what_is_not_finite_stays_in_its_pair(backend, value):
    W, x, target, cotangent = case("few rows", "float32")
    x[7, -1] = value
    outputs = {name: np.empty(shape, "float32") for name, shape in shapes(W, x).items() if name != "dW"}
    launches.run(*launches.launches_of(backend, *map(aligned, (W, x, target, cotangent)), *map(outputs.get, NAMES)))
    others = np.arange(len(x)) != 7
    right = whole(backend, "few rows", "float32")
    assert_same_bits({k: a[others] for k, a in outputs.items()}, {k: right[k][others] for k in outputs})
    assert np.isfinite(outputs["loss"][7]) == (value == np.inf)


@pytest.mark.parametrize("name", ["few rows", pytest.param("vectors", marks=at_length)])
def test_each_barrier_that_is_left_out_is_seen(backend, name):
    arrays = case(name, "float32")
    outputs = [np.full(shape, np.nan, np.float32) for shape in shapes(*arrays[:2]).values()]
    launched, memory = launches.launches_of(backend, *map(aligned, arrays), *outputs)
    for launch in launched[:3]:
        text = launch.text()
        launches.run([launch], memory)
        assert BARRIER.search(text)
        for barrier in BARRIER.finditer(text):
            assert has_race(launch, memory, text[: barrier.start()] + text[barrier.end() :]), (launch.name, barrier)


# --- what they use of a chip ---------------------------------------------------------------------------------------

# Of the instructions of the loop over terms, in PTX, at least; and passes through shared memory over those without bank
# conflicts, at most.
MULTIPLY_ADDS, CONFLICTS = 0.8, 1.02


def share_of_multiply_adds(kernel):
    """In the shortest loop that has any."""
    branches = [(kernel.labels.get(i.operands[0]), k) for k, i in enumerate(kernel.code) if i.opcode.startswith("bra")]
    loops = [kernel.code[first : last + 1] for first, last in branches if first is not None and first <= last]
    counts = [(len(loop), sum(i.opcode.startswith("fma.") for i in loop)) for loop in loops]
    length, multiply_adds = min(count for count in counts if count[1] >= 32)
    return multiply_adds / length


@cupy_first
def test_multiply_adds_and_traffic(backend):
    """The loop over terms is little else; x, W, g and dx move once for each tile, in whole sectors."""
    size = 128
    shapes = (size, size), (size, size), (size,), (size, size), (size, size), (size, size)
    W, x, *outputs = (aligned(np.zeros(shape, np.float32)) for shape in shapes)
    launched, memory = launches.launches_of(backend, W, x, None, None, *outputs)
    for launch, side in zip(launched[:3], plan_shared.make_plan(size, size, 4), strict=True):
        assert share_of_multiply_adds(ptx.parse(launch.text())) >= MULTIPLY_ADDS, launch.name
        ((_, traffic),) = launches.run([launch], memory, only=range(1), count=True)
        assert traffic.wavefronts <= CONFLICTS * traffic.conflict_free, launch.name
        a, b = side.a(4), side.b(4)
        written = {"q": a * b + a, "dx": a * b, "parts": 2 * a * b}
        assert traffic.sectors.total() * SECTOR_BYTES == ((a + b) * size + written[launch.name]) * 4, launch.name


MORE = {"q": (Given(True, True), True, True)}  # that a kernel is compiled for


# Of a thread, of the elements in flight of parts of dW that numba.cuda moves one by one: for sm_100 and sm_120 the
# compiler finds no registers for them in some plans, though there are enough.
LOCAL_BYTES = 64


def products_of(m, n, itemsize):
    """The itemsize, the kernel and the numbers of each product of a plan."""
    return [(itemsize, *named) for named in zip(("q", "dx", "parts"), plan_shared._blocks(m, n, itemsize), strict=True)]


def products():
    """Those of every plan, and of small batches."""
    sizes = itertools.product((1, 4, 8, 9, 16, 17, 33, 65, 500), repeat=2)
    found = {p for m, n in sizes for itemsize in (4, 8) for p in products_of(m, n, itemsize)}
    return sorted(
        found | {(size, name, plan_shared.chain_of_sums(20, p)[0]) for size, name, p in found if name == "parts"}
    )


@pytest.mark.parametrize(
    ("itemsize", "name", "product", "wide"),
    [
        pytest.param(*p, wide, marks=() if p in products_of(256, 256, 4) and wide else at_length)
        for p in products()
        for wide in (True, False)
    ],
    ids=str,
)
def test_it_fits(backend, itemsize, name, product, wide):
    """Nothing in local memory, and as many threads at a time as the plan is for; with all inputs and outputs."""
    if name == "parts":
        product = plan_shared.of_parts(product, wide)
    launcher = importlib.import_module(f"sigmoid_l2.kernels.gpu.{launches.MODULES[backend]}")
    kernel = getattr(launcher, f"shared_blocks_{name}_kernel")(product, itemsize, wide, wide, *MORE.get(name, ()))
    launch = launches.Launch(kernel, 1, product.threads, (0,) * (6 if name == "dx" else 9))
    blocks = plan.REGISTERS // (product.threads * product.registers)
    for chip in FEW_CHIPS:
        used = code.used(launch, chip)
        may_be_local = name == "parts" and not wide and backend == "numba-cuda" and chip >= 100
        assert used.stack <= (LOCAL_BYTES if may_be_local else 0), used
        assert used.shared <= SHARED_BYTES, used
        assert used.registers <= plan.REGISTERS // (product.threads * blocks), used


# --- the plan --------------------------------------------------------------------------------------------------------

CHAINS = 8  # after which low goes into high
BATCHES = [*range(1, 5000), *(2**k + d for k in range(13, 27) for d in (-1, 0, 1)), 10**8]
SHAPES = [(1, 105), (10, 784), (784, 10), (256, 256), (1000, 1000), (30, 60_000), (30_000, 30)]


@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_roundings_of_sums(m, n, itemsize):
    """A term of dW is rounded in fewer than 2 (ceil(log2 B) + 1) additions, for every B."""
    p = plan_shared.make_plan(m, n, itemsize)
    half_eps = np.finfo(f"f{itemsize}").eps / 2
    for B in BATCHES:
        part = min(B, plan_shared.part_pairs(m, itemsize))
        product, chain = plan_shared.chain_of_sums(B, p.dW)
        of_slice = plan_shared.slice_pairs(product, part, m, n, itemsize)
        chains, parts, slices = -(-of_slice // (chain * product.step)), -(-B // part), -(-part // of_slice)
        roundings = min(B, chain * product.step) - 1
        if max(chains, parts, slices) > 1:
            # Of the total; and of low, which in k additions is at most k + 1 roundings of high.
            groups = parts * -(-chains // CHAINS)
            roundings += 1 + (groups * CHAINS * (CHAINS + 3) / 2 + slices * (2 * slices + 3)) * half_eps
        assert roundings <= 2 * ((B - 1).bit_length() + 1), (B, roundings)


@pytest.mark.parametrize("itemsize", [4, 8])
def test_the_workspace_is_bounded(itemsize):
    """By 64 MiB, and a W for which it would not be has no plan."""
    for m, n in SHAPES:
        p = plan_shared.make_plan(m, n, itemsize)
        part = plan_shared.part_pairs(m, itemsize)
        assert part > 0
        slices = -(-part // plan_shared.slice_pairs(p.dW, part, m, n, itemsize))
        assert part * m * itemsize <= plan.WORKSPACE_BYTES
        assert slices * 2 * m * n * itemsize <= plan.WORKSPACE_BYTES
    assert plan_shared.make_plan(3000, 3000, itemsize) is plan_shared.make_plan(100_000, 2, itemsize) is None
