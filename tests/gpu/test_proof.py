"""The GPU kernels proven without a GPU: the PTX that would run there, executed.

Each launch is that of the real host code. Results are held to the accuracy contract; whatever a GPU would leave
undefined (see ``machine``) is an error. `make test` runs one of each way through each kernel, `make proof` all borders.
"""

import dataclasses
import re
from functools import cache, partial
from types import SimpleNamespace

import numpy as np
import pytest
from contract import assert_contract
from fenced import NAMES, assert_same_bits, batch, run, shapes
from host import test_parity

from gpu import launches
from gpu.launches import aligned
from gpu.memory import FaultError
from sigmoid_l2 import dispatch
from sigmoid_l2.kernels.gpu import plan

# What the plan is for WAYS, so that pairs small enough for a quick test are cut into slices, pairs of a batch of three
# have theirs done in turn, and the kernel finish has several chunks. The real numbers are in BORDERS.
SMALL = {
    "UNIT_BYTES": 20 << 10,
    "ALONE_BYTES": 32 << 10,
    "SLICE_BYTES": 16 << 10,
    "SLICE_TEAM_ROWS": 2,
    "GROUP_ROWS": 48,
    "MANY_BLOCKS": 3,
    "FINISH_LOADS": 1,
    "FINISH_CHUNK": 2,
    "LONG_SLICE_ROWS": 2,
    "LONG_BYTES": 65600,
}
at_length = pytest.mark.proof
# One of each way through each kernel, with little work: B, m, n.
WAYS = {
    "tiny": (131, 3, 3),
    "tiny, pairs in a row": (1031, 1, 1),
    "group": (9, 10, 10),
    "group, shared rows": (9, 17, 16),  # 8 lanes of which 4 share a row; one has fewer rows
    "group, one row": (70, 1, 31),  # of 16 and 15 columns
    "block, staged": (3, 44, 30),  # lanes with 4, 2 and fewer rows
    "split, staged": (3, 1102, 10),  # the last slice has fewer rows in either dtype
    "split, shared rows": (3, 700, 17),  # lanes with 5 and 2 columns
    "group, rows": (9, 3, 40),
    "group, rows of teams": (5, 37, 35),
    "block, rows": (3, 45, 70),
    "block, a row": (2, 5, 1030),
    "split, rows": (2, 70, 128),
    "split, rows in turn": (3, 70, 128),
    "split, warps in turn": (3, 70, 258),
    "split, a row in turn": (3, 16, 1030),
    "split, groups in turn": (2, 110, 258),
    "long": (2, 2, 16386),
    "split, long": (2, 6, 16385),
    "columns": (2, 1, 16402),
    "columns, slices of rows": (2, 5, 16404),
}
# Pairs that take all ways through each kernel, and those on both sides of each border between two ways to do a pair.
SHAPES = [
    (1, 1),
    (1, 7),
    (7, 1),
    (2, 2),
    (2, 5),
    (3, 3),
    (5, 5),
    (8, 8),
    (10, 10),
    (13, 17),
    (300, 3),
    (17, 25),
    (31, 31),
    (3, 40),
    (2, 64),
]
BORDERS = {
    "float32": "9x3 tiny, 10x3 group, 20x1 tiny, 21x1 group, 1x15 tiny, 1x16 group, 416x3 group, 417x3 block, "
    "3412x3 block, 3413x3 split, 1x32 group, 1x33 group, 63x64 group, 64x64 block, 31x65 group, 32x65 block, "
    "5x128 group, 5x130 group, 3x512 group, 3x513 block, 1x4096 block, 1x4097 block, 64x512 block, 65x512 split, "
    "32x1024 block, 33x1024 split, 2x16384 block, 2x16385 long, 1x24576 long, 1x24577 columns",
    "float64": "3x3 tiny, 4x3 group, 8x1 tiny, 9x1 group, 1x7 tiny, 1x8 group, 192x3 group, 193x3 block, "
    "1705x3 block, 1706x3 split, 3x16 group, 3x17 group, 31x32 group, 31x34 group, 5x64 group, 5x66 group, "
    "7x256 group, 8x256 block, 3x256 group, 3x257 block, 1x2048 block, 1x2049 block, 64x256 block, 65x256 split, "
    "2x8192 block, 2x8193 long, 1x12288 long, 1x12289 columns",
}
MORE_SLICES = [(700, 65), (260, 128), (1000, 33), (300, 300), (50, 1000)]
SLOW = ["split, long", "columns, slices of rows"]  # for `make proof`
WANTED = [("loss",), ("dW",), ("dx",), ("dq",), ("loss", "dW", "dx"), ("loss", "dx", "dq")]
DTYPES = ["float32", "float64"]
# Ways that have a target and a cotangent in float64 too, and those of `make test`.
GIVEN_FLOAT64 = ["tiny", "group", "group, shared rows", "split, staged", "group, rows of teams", "long", "columns"]
QUICK_GIVEN = ["tiny", "group, shared rows", "split, rows in turn", "columns"]
# Ways that numba's kernels are taken in `make test` too, where each kernel takes seconds to compile: with arrays that
# begin between multiples of 16 bytes, and without a barrier. CuPy's are taken all ways.
QUICK_BETWEEN = ["tiny", "block, staged", "group, rows", "split, warps in turn", "long", "columns"]
QUICK_BARRIERS = [*QUICK_GIVEN, "group, one row", "split, shared rows", "group, rows of teams", "block, a row", "long"]


@pytest.fixture(params=["cupy", "numba-cuda"])
def backend(request):
    pytest.importorskip(request.param.replace("-", "_"), exc_type=ImportError)
    return request.param


@pytest.fixture
def small_slices(monkeypatch):
    """Cut pairs into slices where they are small enough for a quick test."""
    for name, value in SMALL.items():
        monkeypatch.setattr(plan, name, value)
    plan.make_plan.cache_clear()
    yield
    plan.make_plan.cache_clear()


def execute(backend, W, x, wanted=NAMES, to_device=aligned, **given):
    return run(partial(launches.fused, backend), W, x, wanted, to_device=to_device, **given)


def given(B, m, dtype):
    """A target and a cotangent for each pair. The error is computed in two ways, below a target of 1/2 and above."""
    rng = np.random.default_rng([B, m])
    target = np.where(rng.random((B, m)) < 0.5, rng.choice([0, 0.5, 1], (B, m)), rng.uniform(-0.2, 1.2, (B, m)))
    return {"target": target.astype(dtype), "cotangent": rng.standard_normal(B).astype(dtype)}


def between(a):
    """A copy that begins between multiples of 16 bytes."""
    return aligned(a, a.itemsize)


def with_backends(is_quick, *parameters):
    """Each of the ``parameters`` with both backends, the first of them; for `make proof` alone where not is_quick()."""
    return [
        pytest.param(backend, *p, marks=() if is_quick(backend, *p) else at_length)
        for p in parameters
        for backend in ("cupy", "numba-cuda")
    ]


def tile_pairs(m, n, dtype):
    """Pairs of a block."""
    return plan.make_plan(m, n, np.dtype(dtype).itemsize).block_units


def assert_proven(backend, W, x, pairs, parts):
    """The contract for ``pairs``, the same bits in ``parts`` of the batch, and where no array begins on 16 bytes."""
    whole = assert_same_in_parts(backend, W, x, pairs, parts)
    assert_same_bits(execute(backend, W, x, to_device=between), whole)


def assert_same_in_parts(backend, W, x, pairs, parts):
    """The contract for ``pairs``, and the same bits in ``parts`` of the batch; returns the results of all of it."""
    whole = execute(backend, W, x)
    assert_contract(W[pairs], x[pairs], **{name: whole[name][pairs] for name in NAMES}, backend=backend)
    for part in parts:
        assert_same_bits(execute(backend, W[part], x[part]), {name: a[part] for name, a in whole.items()})
    return whole


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize("way", [pytest.param(way, marks=at_length if way in SLOW else ()) for way in WAYS])
def test_every_way(backend, way):
    B, m, n = WAYS[way]
    assert plan.size_class(plan.make_plan(m, n, 4)) == way.partition(",")[0]
    W, x = batch(B, m, n, np.float32)
    tile = tile_pairs(m, n, np.float32)
    parts = {(0, 1), (1, B), (0, tile), (0, max(1, tile - 1))}
    assert_same_in_parts(backend, W, x, [-1] if m * n > 1000 else [0, -1], [slice(*part) for part in sorted(parts)])


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize(
    ("backend", "way"),
    with_backends(
        lambda backend, way: way in QUICK_BETWEEN if backend == "numba-cuda" else way not in SLOW, *zip(WAYS)
    ),
    indirect=["backend"],
)
def test_every_way_between_multiples_of_16_bytes(backend, way):
    """It has the same bits as where arrays begin there."""
    assert_same_bits(execute(backend, *batch(*WAYS[way], np.float32), to_device=between), results_of(backend, way))


@pytest.mark.parametrize("way", ["tiny", "group", "block, rows", "split, staged"])
def test_float64(backend, way):
    W, x = batch(*WAYS[way], np.float64)
    whole = execute(backend, W, x)
    assert_contract(W[-1:], x[-1:], **{name: whole[name][-1:] for name in NAMES}, backend=backend)


GIVEN = [(way, dtype) for way in WAYS for dtype in DTYPES if dtype == "float32" or way in GIVEN_FLOAT64]


def assert_given_proven(backend, W, x, wanted, inputs):
    results = execute(backend, W, x, wanted, **inputs)
    last = {name: a[-1:] for name, a in (inputs | results).items()}
    assert_contract(W[-1:], x[-1:], **dict.fromkeys(NAMES) | last, backend=backend)
    return results


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize(
    ("way", "dtype"),
    [
        pytest.param(way, dtype, marks=() if dtype == "float32" and way in QUICK_GIVEN else at_length)
        for way, dtype in GIVEN
    ],
)
def test_target_and_cotangent(backend, way, dtype):
    """The contract; the same bits in a part."""
    B, m, n = WAYS[way]
    W, x = batch(B, m, n, dtype)
    inputs = given(B, m, dtype)
    whole = assert_given_proven(backend, W, x, NAMES, inputs)
    part = {name: a[1:] for name, a in inputs.items()}
    assert_same_bits(execute(backend, W[1:], x[1:], **part), {name: a[1:] for name, a in whole.items()})


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize(
    ("backend", "way", "dtype"),
    with_backends(
        lambda backend, way, dtype: dtype == "float32" and way in (QUICK_GIVEN if backend == "cupy" else ["tiny"]),
        *GIVEN,
    ),
    indirect=["backend"],
)
def test_target_or_cotangent(backend, way, dtype):
    """The contract for each alone; with both the same bits where no array begins on 16 bytes."""
    B, m, n = WAYS[way]
    W, x = batch(B, m, n, dtype)
    both = given(B, m, dtype)
    assert_given_proven(backend, W, x, ("loss", "dx", "dq"), {"target": both["target"]})
    assert_given_proven(backend, W, x, ("dq",), {"cotangent": both["cotangent"]})
    assert_same_bits(execute(backend, W, x, ("dW", "dq"), between, **both), execute(backend, W, x, **both))


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=at_length)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_targets_in_the_tails(backend, dtype, sign):
    """q = 20 and target 1, q = -20 and target 0: s has all digits of the target, and the error is right."""
    W, x = np.full((3, 2, 2), 10 * sign, dtype), np.ones((3, 2), dtype)
    target = np.full((3, 2), sign > 0, dtype)
    results = execute(backend, W, x, target=target)
    assert (results["dq"] != 0).all()
    assert_contract(W, x, **results, target=target, backend=backend)


@pytest.mark.usefixtures("small_slices")
def test_a_target_that_is_not_a_number_stays_in_its_pair(backend):
    """And in its row."""
    B, m, n = WAYS["tiny"]
    W, x = batch(B, m, n, np.float32)
    inputs = given(B, m, np.float32)
    clean = execute(backend, W, x, **inputs)
    inputs["target"][5, 1] = np.nan
    outputs = {name: aligned(np.empty(shape, np.float32)) for name, shape in shapes(W).items()}
    launches.fused(backend, *map(aligned, (W, x, *inputs.values())), *outputs.values())
    assert np.isnan(outputs["dq"][5]).tolist() == [False, True, False]
    assert np.isnan([outputs["loss"][5], *outputs["dx"][5], *outputs["dW"][5, 1]]).all()
    others = np.arange(B) != 5
    assert_same_bits({name: a[others] for name, a in outputs.items()}, {name: a[others] for name, a in clean.items()})


@at_length
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_tiles(backend, dtype, m, n):
    """Batches that end around the end of a tile."""
    tile = tile_pairs(m, n, dtype)
    W, x = batch(2 * tile + 3, m, n, dtype)
    ends = (slice(1), slice(tile - 1 or 1), slice(tile), slice(tile + 1), slice(1, None), slice(tile + 2, None))
    assert_proven(backend, W, x, sorted({0, tile - 1, tile, 2 * tile + 2}), ends)


@at_length
@pytest.mark.parametrize(
    ("dtype", "pair"), [(dtype, pair) for dtype, pairs in BORDERS.items() for pair in pairs.split(", ")]
)
def test_class_borders(backend, dtype, pair):
    shape, size_class = pair.split()
    m, n = map(int, shape.split("x"))
    W, x = batch(3, m, n, dtype)
    assert plan.size_class(plan.make_plan(m, n, W.itemsize)) == size_class
    assert_proven(backend, W, x, [2], [slice(2, None)])


@cache
def results_of(backend, way, dtype="float32"):
    return execute(backend, *batch(*WAYS[way], dtype))


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize(
    ("way", "wanted", "dtype"),
    [
        pytest.param(
            way, wanted, dtype, marks=() if (way, dtype) == ("tiny", "float32") and len(wanted) == 1 else at_length
        )
        for way in WAYS
        for wanted in WANTED
        for dtype in DTYPES
    ],
)
def test_each_set_of_outputs(backend, way, wanted, dtype):
    assert_same_bits(execute(backend, *batch(*WAYS[way], dtype), wanted), results_of(backend, way, dtype))


class Executed(dispatch.Backend):
    """A GPU backend for host arrays, without a GPU."""

    @property
    def kernel(self):
        return SimpleNamespace(fused=partial(launches.fused, self.name))


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("cupy", "float32"),
        ("numba-cuda", "float64"),
        pytest.param("cupy", "float64", marks=at_length),
        pytest.param("numba-cuda", "float32", marks=at_length),
    ],
    indirect=["backend"],
)
def test_parity_tests_that_meet_the_ends_of_the_range(backend, monkeypatch, dtype):
    """Those of test_parity.py where the arithmetic decides."""
    dtype = np.dtype(dtype)
    fields = [f.name for f in dataclasses.fields(dispatch.Backend)]
    executed = tuple(
        Executed(**{name: getattr(b, name) for name in fields} | {"device": "cpu", "probe": lambda: None})
        if b.name == backend
        else b
        for b in dispatch.BACKENDS
    )
    monkeypatch.setattr(dispatch, "BACKENDS", executed)
    test_parity.test_whole_range_of_q(backend, dtype)
    test_parity.test_large_q_of_several_terms(backend, dtype)
    test_parity.test_tiny_and_huge_factors(backend, dtype)
    test_parity.test_nan_touches_no_other_pair(backend, dtype)
    test_parity.test_infinite_q(backend, dtype)
    for m, n in ((3, 3), (13, 40)):
        test_parity.test_infinite_x_with_rows_that_fill_no_vector(backend, dtype, m, n)


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize(
    ("way", "value"),
    [pytest.param(way, np.inf, marks=at_length if way in SLOW else ()) for way in WAYS]
    + [pytest.param(way, np.nan, marks=() if way == "block, staged" else at_length) for way in WAYS],
)
def test_what_is_not_finite_stays_in_its_pair(backend, way, value):
    """Also where a lane or a thread has rows or columns that are not there."""
    W, x = batch(*WAYS[way], np.float32)
    x[-1] = value
    outputs = [np.empty(shape, np.float32) for shape in shapes(W).values()]
    launches.fused(backend, *map(aligned, (np.abs(W), np.abs(x))), None, None, *outputs)
    if value == np.inf:  # so q = inf, s = 1, g = 0, except that 0 * inf = NaN in dW
        assert outputs[0][-1] == W.shape[1]
        assert (outputs[2][-1] == 0).all()
        assert (outputs[3][-1] == 0).all()
    launches.fused(backend, *map(aligned, (W, x)), None, None, *outputs)
    found = {name: a[:-1] for name, a in zip(NAMES, outputs, strict=True)}
    assert_same_bits(found, {name: a[:-1] for name, a in results_of(backend, way).items()})


@pytest.mark.parametrize(
    ("backend", "m", "n"),
    [
        ("cupy", 3, 3),
        ("cupy", 33, 4096),
        ("numba-cuda", 1100, 10),
        ("numba-cuda", 20, 70),
        ("cupy", 2, 20000),
        pytest.param("cupy", 1100, 10, marks=at_length),
        pytest.param("cupy", 20, 70, marks=at_length),
        pytest.param("numba-cuda", 3, 3, marks=at_length),
        pytest.param("numba-cuda", 33, 4096, marks=at_length),
        pytest.param("numba-cuda", 2, 20000, marks=at_length),
    ],
    indirect=["backend"],
)
def test_offsets_beyond_32_bits(backend, m, n):
    """The blocks of the last pair of 2^31 elements of W: memory that is not touched is not there."""
    B = 2**31 // (m * n) + 130
    try:
        W, x = np.zeros((B, m, n), np.float32), np.zeros((B, n), np.float32)
        results = {name: np.zeros(shape, np.float32) for name, shape in shapes(W).items()}
        inputs = {"target": np.zeros((B, m), np.float32), "cotangent": np.zeros(B, np.float32)}
    except MemoryError:
        pytest.skip("the operating system does not lend memory that it may not have")
    W[-1:], x[-1:] = batch(1, m, n, np.float32)
    for name, a in given(1, m, np.float32).items():
        inputs[name][-1:] = a
    expected = execute(backend, W[-1:], x[-1:], **{name: a[-1:] for name, a in inputs.items()})
    launched, memory = launches.launches_of(backend, W, x, *inputs.values(), *results.values())
    slices = plan.for_batch(plan.make_plan(m, n, 4), B).slices
    for launch in launched[-2 if slices > 1 else -1 :]:
        of_pair = n // plan.WARP + 1 if launch.name == "finish" else slices
        launches.run([launch], memory, only=range(launch.blocks - of_pair, launch.blocks))
    assert_same_bits({name: a[-1:] for name, a in results.items()}, expected)


@pytest.mark.parametrize("slices", [1, 2])
def test_columns_of_many_rows(backend, monkeypatch, slices):
    """More rows than a block of gradients has g of at once."""
    m = 70
    monkeypatch.setattr(plan, "make_plan", plan._columns)
    monkeypatch.setattr(plan, "LONG_SLICE_ROWS", m // slices)
    assert plan.make_plan(m, 300, 4).slices == slices
    W, x = batch(2, m, 300, np.float32)
    assert_proven(backend, W, x, [1], [slice(1, None)])


# --- that the proof sees what is wrong -----------------------------------------------------------------------------

BARRIER = re.compile(r"bar\.(?:warp\.)?sync[^;]*;")


def has_race(launch, memory, text):
    try:
        launches.run([launch], memory, change=lambda _: text)
    except FaultError as fault:
        return "race of threads" in str(fault)
    return False


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize(
    ("backend", "way", "dtype"),
    with_backends(
        lambda backend, way, dtype: dtype == "float32" and (backend == "cupy" or way in QUICK_BARRIERS),
        *((way, dtype) for way in WAYS for dtype in DTYPES),
    ),
    indirect=["backend"],
)
def test_each_barrier_that_is_left_out_is_seen(backend, way, dtype):
    W, x = batch(*WAYS[way], dtype)
    outputs = [np.full(shape, np.nan, dtype) for shape in shapes(W).values()]
    arrays = W, x, *given(*W.shape[:2], dtype).values(), *outputs
    launched, memory = launches.launches_of(backend, *map(aligned, arrays))
    for launch in launched[:2]:  # further ones are the same again
        text = launch.text()
        launches.run([launch], memory)
        assert BARRIER.search(text) or way in ("group, rows", "group, one row")  # of one team a pair in float64
        for barrier in BARRIER.finditer(text):
            assert has_race(launch, memory, text[: barrier.start()] + text[barrier.end() :]), (launch.name, barrier)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=at_length)])
@pytest.mark.parametrize(
    ("m", "n"),
    [(65, 512), (300, 128), *(pytest.param(*size, marks=at_length) for size in MORE_SLICES)],
)
def test_slices_in_turn_have_the_same_bits(backend, monkeypatch, dtype, m, n):
    """As slices side by side, whose sums the kernel finish adds; with the real plan. dx of the second pair is -0."""
    W, x = batch(2, m, n, dtype)
    W[1] = -np.finfo(dtype).smallest_subnormal
    assert plan.make_plan(m, n, W.itemsize).slices > 1
    side_by_side = execute(backend, W, x)
    monkeypatch.setattr(plan, "MANY_BLOCKS", 2)
    for wanted in (NAMES, *WANTED[:3]):
        assert_same_bits(execute(backend, W, x, wanted), side_by_side)
    assert_same_bits(execute(backend, W, x, to_device=between), side_by_side)


@pytest.mark.parametrize(("pairs", "parts"), [(2, 2), (1, 3), (0.9, 3)])
def test_a_batch_of_more_pairs_than_the_workspace_has_room_for(backend, monkeypatch, pairs, parts):
    """Goes through in parts; a pair that alone needs more than the workspace gets more."""
    monkeypatch.setattr(launches, "WORKSPACE_PAIRS", pairs)
    W, x = batch(3, 1100, 10, np.float32)
    outputs = (np.empty(s, np.float32) for s in shapes(W).values())
    launched, _ = launches.launches_of(backend, W, x, None, None, *outputs)
    assert [launch.name for launch in launched] == ["staged", "finish"] * parts
