"""What both GPU kernels move, counted from the PTX that would run: sectors of memory, and conflicts for banks.

One block of each launch is counted, over a full tile of arrays that begin on a multiple of 128 bytes.
"""

import numpy as np
import pytest
from fenced import batch, shapes

from gpu import launches
from gpu.launches import aligned
from gpu.memory import WARP, WORD
from gpu.test_proof import backend as backend
from gpu.test_proof import given, tile_pairs
from gpu.traffic import SECTOR_BYTES
from sigmoid_l2.kernels.gpu import plan
from sigmoid_l2.kernels.gpu.plan import make_plan
from sigmoid_l2.kernels.gpu.plan_types import Long, Rows, Staged

EXCESS = 1.05  # sectors moved over the least possible, at most
CONFLICTS = 1.1  # accesses to shared memory over those without bank conflicts, at most

SINGLE = [(1, 1), (3, 3), (5, 5), (16, 16), (30, 30), (64, 64), (10, 784), (784, 10), (9, 4096), (1100, 10)]
DOUBLE = [(3, 3), (16, 16), (32, 32)]
# With a target, a cotangent and dq; and those of `make test`.
EVERYTHING = [*SINGLE, (8, 8), (4, 4), (20, 1), (2, 5), (300, 3), (48, 24)]
QUICK_EVERYTHING = [(3, 3, "float32"), (4, 4, "float32"), (784, 10, "float32")]
# For `make proof`.
MORE_SHAPES = [(2, 5), (8, 8), (1, 64), (48, 256), (64, 4096), (1, 1), (1, 3), (2, 2), (4, 4), (10, 32), (24, 16)]
MORE_SHAPES += [(8, 2048), (2, 8192), (5120, 3), (784, 10)]
# Pairs whose (excess, conflicts) are greater, and why they cannot be less.
ROWS_IN_SECTORS = "a row begins within a sector, which the row before ends in; L1 has it for loads, L2 joins stores"
TEAMS_READ_X = "each of a slice's eight warps reads x before its few rows; all but the first find it in L1"
UNEVEN_LANES = "the rows of a pair are no multiple of its lanes', so lanes of several pairs are not equally far apart"
UNEVEN_PARTS = "a row's 10 columns are 6 of one lane and 4 of another, so lanes are not equally far apart"
BETWEEN = "a thread moves its vector element by element, and finds in L1 what one access leaves of a sector"
X_AGAIN = "x of a long row has no room in the registers: it is read once more for each row, from the cache"
MORE = {
    (2, 20000, "float32", True): (1.34, 1, X_AGAIN),
    (2, 10001, "float64", True): (1.38, 1, X_AGAIN),
    (20, 70, "float32", True): (1.26, 1, ROWS_IN_SECTORS),
    (100, 33, "float32", True): (1.65, 1, ROWS_IN_SECTORS),
    (10, 785, "float32", True): (1.19, 1, ROWS_IN_SECTORS),
    (100, 21, "float64", True): (1.44, 1, ROWS_IN_SECTORS),
    (48, 256, "float64", True): (1.08, 1, TEAMS_READ_X),
    (80, 256, "float64", True): (1.11, 1, TEAMS_READ_X),
    (256, 256, "float32", True): (1.11, 1, TEAMS_READ_X),
    (300, 128, "float32", True): (1.11, 1, TEAMS_READ_X),
    (256, 256, "float64", True): (1.11, 1, TEAMS_READ_X),
    (10, 10, "float32", True): (1, 1.5, UNEVEN_LANES),
    (9, 6, "float32", True): (1, 1.39, UNEVEN_LANES),
    (25, 3, "float32", True): (1, 2.28, UNEVEN_LANES),
    (5, 5, "float64", True): (1, 1.33, UNEVEN_LANES),
    (784, 10, "float64", True): (1, 1.34, UNEVEN_PARTS),
    (3, 40, "float32", False): (4, 1, BETWEEN),
    (64, 64, "float32", False): (4.01, 1, BETWEEN),
    (10, 784, "float32", False): (4, 1, BETWEEN),
}
at_length = pytest.mark.proof


def arrays_of(W, x, everything=False):
    """The arrays of a call for loss, dW and dx, or for ``everything`` with a target and a cotangent."""
    inputs = given(*W.shape[:2], W.dtype).values() if everything else (None, None)
    outputs = [np.zeros(s, W.dtype) if everything or name != "dq" else None for name, s in shapes(W).items()]
    return [None if a is None else aligned(a) for a in (W, x, *inputs, *outputs)]


def assert_moves(backend, m, n, dtype, *, wide=True, everything=False, excess=EXCESS, conflicts=CONFLICTS):
    """W is read once, outputs are written once, nothing else is touched; the bounds; the greatest that was found.

    With ``everything`` there are a target, a cotangent and dq too.
    """
    itemsize, p = np.dtype(dtype).itemsize, make_plan(m, n, np.dtype(dtype).itemsize)
    pairs = tile_pairs(m, n, dtype)
    W, x = batch(pairs, m, n, dtype)
    launched, memory = launches.launches_of(backend, *arrays_of(W, x, everything), wide=wide)
    found = []
    for launch in launched:
        ((issued, traffic),) = launches.run([launch], memory, only=range(1), count=True)
        words = {key: np.unique(memory.touched(*key), return_counts=True) for key in traffic.sectors}
        assert dtype == "float64" or not [opcode for opcode in issued if ".f64" in opcode]
        often = ("x", "target", "cotangent")  # by each team, and by lanes that share a row; L1 has them
        once = {key[0]: count.max() == 1 for key, (_, count) in words.items() if key[0] not in often}
        assert all(once.values()), once
        least = sum(-(-len(own) * WORD // SECTOR_BYTES) for own, _ in words.values())
        moved = {name: len(own) * WORD // itemsize for (name, _), (own, _) in words.items()}
        if launch.name == "finish":
            assert set(words) == {("workspace", False), ("dx", True), *([("loss", True)] if n < WARP else [])}
            assert moved["dx"] == min(n, WARP)
        else:
            rows, partial = p.rows * pairs, ["workspace"] if p.slices > 1 else ["loss", "dx"]
            more = {("target", False), ("cotangent", False), ("dq", True)} if everything else set()
            assert set(words) == {("W", False), ("x", False), ("dW", True), *((name, True) for name in partial), *more}
            assert (moved["W"], moved["x"], moved["dW"]) == (rows * n, pairs * n, rows * n)
            assert not everything or (moved["target"], moved["cotangent"], moved["dq"]) == (rows, pairs, rows)
            assert sum(map(moved.get, partial)) == pairs * (n + 1)
            width = p.width * itemsize if isinstance(p, (Rows, Long)) else plan.WIDE_BYTES
            fits = isinstance(p, (Rows, Long)) or W[0].nbytes * pairs % 16 == 0
            # For the smallest pairs x and dx are as much as W, and must move as widely.
            checked = ("W", "dW", "x", "dx") if isinstance(p, Staged) and p.lanes == 1 else ("W", "dW")
            sizes = {size for name, _, size in traffic.accesses if name in checked}
            assert sizes == {width if wide and fits else itemsize}
        if launch.name != "finish" or n >= WARP:  # the partial sums of short rows are no whole sectors
            found.append(sum(traffic.sectors.values()) / least)
            assert found[-1] <= excess, launch.name
        found.append(traffic.wavefronts / max(1, traffic.conflict_free))
        assert found[-1] <= conflicts, launch.name
    return found


@pytest.mark.parametrize(
    ("m", "n", "dtype"), [(*s, "float32") for s in SINGLE] + [(*s, "float64") for s in DOUBLE], ids=str
)
def test_everything_moves_once(backend, m, n, dtype):
    assert_moves(backend, m, n, dtype)


@pytest.mark.parametrize(
    ("m", "n", "dtype"),
    [
        pytest.param(*case, marks=() if case in QUICK_EVERYTHING else at_length)
        for case in [(*s, "float32") for s in EVERYTHING] + [(*s, "float64") for s in DOUBLE]
    ],
    ids=str,
)
def test_target_cotangent_and_dq_move_once(backend, m, n, dtype):
    assert_moves(backend, m, n, dtype, everything=True)


@at_length
@pytest.mark.parametrize(("m", "n", "excess"), [(10000, 1, 4.5), (3412, 3, 2.75)])
def test_target_and_dq_of_many_short_rows(backend, m, n, excess):
    """There is no room for them beside W: a lane has eight rows in a sector. L1 has it for loads, L2 joins stores."""
    moved, *_ = assert_moves(backend, m, n, "float32", everything=True, excess=excess)
    assert moved > EXCESS, "it belongs into the other table"


@at_length
@pytest.mark.parametrize(
    ("m", "n", "dtype"),
    [(*s, dtype) for s in MORE_SHAPES for dtype in ("float32", "float64") if (*s, dtype, True) not in MORE],
    ids=str,
)
def test_everything_moves_once_in_more_shapes(backend, m, n, dtype):
    assert_moves(backend, m, n, dtype)


@pytest.mark.parametrize(("m", "n"), [(3, 3), (784, 10)])
def test_staged_tiles_move_once_element_by_element(backend, m, n):
    assert_moves(backend, m, n, "float32", wide=False)


QUICK = [(2, 20000, "float32", True), (20, 70, "float32", True), (10, 10, "float32", True), (64, 64, "float32", False)]


@pytest.mark.parametrize("case", [pytest.param(case, marks=() if case in QUICK else at_length) for case in MORE])
def test_what_moves_more(backend, case):
    excess, conflicts, _ = MORE[case]
    *shape, wide = case
    found = assert_moves(backend, *shape, wide=wide, excess=max(excess, EXCESS), conflicts=max(conflicts, CONFLICTS))
    assert max(found) > EXCESS, "it belongs into the other table"


def test_slices_of_columns_are_read_twice(backend):
    """W once for q and once for the gradients; every output is written once. All blocks of a pair are counted."""
    m, n = 2, 26656
    launched, memory = launches.launches_of(backend, *arrays_of(*batch(1, m, n, np.float32)))
    found = []
    for launch in launched:
        ((issued, traffic),) = launches.run([launch], memory, count=True)
        assert not [opcode for opcode in issued if ".f64" in opcode]
        words = {key: memory.touched(*key) for key in traffic.sectors}
        found.append({f"{'write' if write else 'read'} {name}": len(own) for (name, write), own in words.items()})
        assert all(len(np.unique(own)) == len(own) for (name, _), own in words.items() if name in ("W", "dW", "dx"))
        sizes = {size for name, _, size in traffic.accesses if name in ("W", "dW", "dx")}
        assert sizes == {plan.WIDE_BYTES}
        sectors = {key: -(-len(np.unique(own)) * WORD // SECTOR_BYTES) for key, own in words.items()}
        assert traffic.sectors["W", False] == sectors["W", False]
    q, gradients = found
    p = make_plan(m, n, 4)
    slices = -(-n // p.columns)
    assert q == {"read W": m * n, "read x": n, "write workspace": m * p.q_slices}
    parts = m * p.q_slices * slices
    assert gradients == {
        "read W": m * n,
        "read x": n,
        "read workspace": parts,
        "write dW": m * n,
        "write dx": n,
        "write loss": 1,
    }


@pytest.mark.parametrize(("m", "n"), [(70, 500), pytest.param(256, 96, marks=at_length), (20, 2048)])
def test_slices_in_turn(backend, monkeypatch, m, n):
    """W is read once and dW written once; the first slice writes dx and each later one adds to it."""
    monkeypatch.setattr(plan, "ALONE_BYTES", 64 << 10)
    monkeypatch.setattr(plan, "MANY_BLOCKS", 1)
    plan.make_plan.cache_clear()
    try:
        slices = make_plan(m, n, 4).slices
        (launch,), memory = launches.launches_of(backend, *arrays_of(*batch(1, m, n, "float32")))
    finally:
        plan.make_plan.cache_clear()
    launches.run([launch], memory, count=True)
    often = {("W", False): 1, ("dW", True): 1, ("loss", False): slices - 1, ("loss", True): slices}
    often |= {("dx", False): slices - 1, ("dx", True): slices}
    for key, times in often.items():
        words, counts = np.unique(memory.touched(*key), return_counts=True)
        assert slices > 1
        assert len(words) == {"W": m * n, "dW": m * n, "loss": 1, "dx": n}[key[0]]
        assert (counts == times).all(), key
