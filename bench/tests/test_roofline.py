"""The prediction of the GPU kernels' speed: an audit's estimates, counts made by hand, and what it counts itself."""

import importlib

import pytest

chips, code, model, roofline, shared, tables, workload = map(
    importlib.import_module, ["gpu.chips", "gpu.code", "model", "roofline", "shared", "tables", "workload"]
)
H100, H200, T4 = (chips.CHIPS[name] for name in ("H100", "H200", "T4"))


def sectors(count, times=1):
    return [(sector, False) for sector in range(count)] * times


# Estimates that an audit made by hand for H100 and H200, fractions of a copy, of the kernels as they were then. What it
# gives as a range has its worse end here, 3x3, or its middle, CuPy's 32x32: 0.85 to 0.95.
AUDIT = [  # blocks at a time, warps, instructions a warp, bytes a block, trips, fractions
    ("3x3 float32", 12, 4, 220, 12_800, 1, (0.95, 0.95)),
    ("3x3 float64", 9, 4, 430, 25_600, 1, (0.95, 0.95)),
    ("8x8 float32, CuPy", 10, 4, 355, 18_560, 1, (0.95, 0.95)),
    ("8x8 float32, numba", 7, 4, 1103, 18_560, 1, (0.88, 0.68)),
    ("16x16 float32, numba", 5, 4, 1158, 17_440, 1, (0.87, 0.61)),
    ("32x32 float32, CuPy", 4, 4, 740, 16_904, 1, (0.90, 0.71)),
    ("32x32 float32, numba", 4, 4, 1791, 16_904, 1, (0.53, 0.37)),
    ("784x10 float32, numba", 2, 8, 2082, 62_804, 1, (0.87, 0.61)),
    ("256x256 float32, CuPy", 5, 8, 3100, 526_340, 16, (0.95, 0.95)),
    ("256x256 float32, numba", 3, 8, 3400, 526_340, 16, (0.95, 0.95)),
]


@pytest.mark.parametrize(("resident", "warps", "issued", "size", "trips", "expected"), [a[1:] for a in AUDIT])
def test_estimates_of_the_audit(resident, warps, issued, size, trips, expected):
    work = model.Work(warps, trips, size // 2, sectors(-(-size // model.SECTOR_BYTES)), issued, 0, 0)
    for chip, fraction in zip((H100, H200), expected, strict=True):
        blocks = 100 * resident * chip.multiprocessors
        ns = model.duration(model.parts(chip, work, blocks, resident))
        assert blocks * size / chip.copy_gb_per_s / ns == pytest.approx(fraction, abs=0.05)


@pytest.mark.parametrize(
    ("cc", "threads", "registers", "shared", "expected"),
    [  # of NVIDIA's occupancy calculator
        (75, 256, 32, 16384, 1.0),
        (75, 128, 64, 15360, 0.5),
        (80, 256, 64, 0, 0.5),
        (86, 128, 40, 0, 1.0),
        (86, 1024, 32, 0, 2 / 3),
        (89, 128, 255, 0, 1 / 6),
        (90, 512, 128, 1000, 0.25),
        (90, 128, 32, 101 * 1024, 0.125),
        (100, 64, 16, 0, 1.0),
        (120, 1024, 32, 0, 2 / 3),
    ],
)
def test_occupancy(cc, threads, registers, shared, expected):
    assert chips.occupancy(cc, threads, registers, shared) == pytest.approx(expected)


READ, WRITTEN = [(sector, False) for sector in range(4)], [(sector, True) for sector in range(4)]


@pytest.mark.parametrize(
    ("asked", "room", "expected"),
    [
        (READ, 4, 4),
        (READ * 2, 4, 4),
        (READ * 2, 3, 8),  # of four in turn, three are never those that come next
        (READ + READ[::-1], 3, 5),
        (WRITTEN * 2, 4, 4),
        (WRITTEN * 2, 3, 8),
        (READ + WRITTEN, 4, 8),
        (WRITTEN + READ, 4, 4),
        (WRITTEN + READ, 3, 8),
    ],
)
def test_what_a_cache_does_not_hold_moves_again(asked, room, expected):
    assert model.moved(asked, room) == expected


# A block of 4 warps that moves 12,800 bytes. An H200 has 132 multiprocessors, 4300 GB/s and 1.755 GHz.
GOOD = model.Work(warps=4, trips=1, read=6144, asked=sectors(400), issued=400, wavefronts=600, float64=160, float32=200)


@pytest.mark.parametrize(
    ("blocks", "resident", "generations", "own"),
    [(132_000, 10, 100, 1000), (1, 10, 1, 1), (133, 10, 1, 2), (1980, 10, 1.5, 15)],
)
def test_parts_of_a_launch(blocks, resident, generations, own):
    assert model.parts(H200, GOOD, blocks, resident) == pytest.approx(
        {
            "memory": blocks * 12_800 / 4300 / 0.95,
            "cache": own * 12_800 / 40 / 1.755,
            "latency": generations * 1200,
            "issue": own * 400 / 1.755,
            "shared": own * 600 / 1.755,
            "float32": own * 200 / 1.755,
            "float64": own * 160 * 128 / 64 / 1.755,
        }
    )


def test_what_the_blocks_of_a_chip_have_no_room_for_moves_again():
    """320 blocks share the 4 MiB of a T4: 409 sectors each."""
    memory = [
        model.parts(T4, GOOD._replace(asked=sectors(count, times)), 32_000, 8)["memory"]
        for count, times in ((409, 1), (409, 2), (410, 1), (410, 2))
    ]
    assert memory[1] == memory[0]
    assert memory[3] == pytest.approx(2 * memory[2])


def test_what_another_block_has_brought_does_not_move_again():
    alone, lent = (model.parts(T4, GOOD._replace(lent=k), 320, 8) for k in (0, 100))
    assert lent == pytest.approx(alone | {"memory": alone["memory"] * 3 / 4})


NS = dict.fromkeys(("memory", "cache", "latency", "issue", "shared", "float32", "float64"), 1.0)


@pytest.mark.parametrize(
    ("ns", "duration", "limit"),
    [
        ({"memory": 1000}, 1000, "memory"),
        ({"cache": 1000}, 1000, "cache"),
        ({"latency": 600, "issue": 400, "shared": 300}, 1000, "latency"),
        ({"latency": 400, "issue": 600, "float64": 500}, 1000, "issue"),
        ({"latency": 400, "shared": 600}, 1000, "shared"),
        ({"latency": 400, "float32": 600}, 1000, "float32"),
        ({"latency": 400, "float64": 600}, 1000, "float64"),
        ({"memory": 1000, "latency": 400, "issue": 600}, 1000 * 2**0.1, "memory"),
        ({"memory": 999, "latency": 400, "issue": 600}, 1000 * 2**0.1, "issue"),
    ],
)
def test_time_and_limit(ns, duration, limit):
    assert model.duration(NS | ns) == pytest.approx(duration, rel=0.01)
    assert model.limit(NS | ns) == limit


class Launch:
    """What the prediction wants to know of a launch."""

    def __init__(self, blocks):
        self.blocks, self.threads = blocks, 128

    def used(self, cc):
        return code.Used(registers=40, stack=0, shared=6144)  # room for 12 blocks


@pytest.mark.parametrize(("blocks", "resident"), [(1, 1), (133, 2), (13_200, 12)])
def test_prediction_of_a_call(blocks, resident):
    case = workload.Case("gpu", "float32", 3, 3, 128 * blocks)  # 12,800 bytes a block
    ns = model.parts(H200, GOOD, blocks, resident)
    one = roofline.Launched(Launch(blocks), GOOD)
    row = roofline.predict(case, (one,), H200)
    assert row["predicted_us"] == pytest.approx(model.duration(ns) / 1000)
    assert row["predicted_fraction_of_copy"] == pytest.approx(case.traffic / 4300 / model.duration(ns))
    assert (row["resident_blocks"], row["bytes_in_flight"]) == (resident, resident * 6144)
    assert (row["ns"], row["limit"], row["sectors_over_least"]) == (ns, model.limit(ns), pytest.approx(1))
    less = roofline.Launched(Launch(1), GOOD._replace(trips=0))
    twice = roofline.predict(case, (less, one), H200)
    gap = twice["predicted_us"] - row["predicted_us"] - model.duration(model.parts(H200, less.work, 1, 1)) / 1000
    assert (gap, twice["launches"], twice["ns"]) == (pytest.approx(model.LAUNCH_NS / 1000), 2, ns)


@pytest.mark.parametrize(("backend", "package"), [("cupy", "cupy"), ("numba-cuda", "numba_cuda")])
def test_what_the_prediction_counts(backend, package):
    pytest.importorskip(package, exc_type=ImportError)
    case = workload.Case("gpu", "float32", 3, 3, 256)
    ((launch, work),) = roofline.launches_of(backend, case)
    assert (launch.blocks, work.warps, work.trips, work.wavefronts, work.float64) == (2, 4, 1, 192, 0)
    assert (work.read, len(work.asked), len(set(work.asked))) == (128 * 48, 400, 400)
    assert 200 < work.issued < 400


@pytest.mark.parametrize(("backend", "package"), [("cupy", "cupy"), ("numba-cuda", "numba_cuda")])
def test_pairs_that_are_cut_up_take_two_launches(backend, package):
    pytest.importorskip(package, exc_type=ImportError)
    case = workload.Case("gpu", "float32", 1000, 1000, 10)
    (launch, work), (finish, sums) = roofline.launches_of(backend, case)
    assert (launch.name, finish.name) == ("rows", "finish")
    assert work.trips > 0 < sums.trips
    # Each of 143 slices reads x and writes its sums: once for seven rows of W and seven of dW.
    assert len(work.asked) * launch.blocks * 32 == pytest.approx(case.traffic * (1 + 1 / 7), rel=0.02)


def test_what_moves_for_one_w_of_many_x():
    """What several blocks read together moves once, on a chip whose L2 has room for the tiles."""
    pytest.importorskip("cupy", exc_type=ImportError)
    tiny, blocks = (shared.SharedCase("gpu", "float32", *sizes) for sizes in ((3, 3, 1024), (10, 768, 512)))
    called = {case: roofline.launches_of("cupy", case) for case in (tiny, blocks)}
    names = [[launch.name for launch, _ in launches] for launches in called.values()]
    assert names == [["tiny", "sums"], ["q", "dx", "parts", "sums"]]
    # x, loss and dx, and two parts of dW, written and read, of values in sectors of their own
    assert _moved(called[tiny]) == pytest.approx(tiny.traffic + 2 * 9 * 32 - 36, rel=0.01)
    x, g, of_dW = 512 * 768 * 4, 512 * 10 * 4, 10 * 768 * 4
    of_q, of_dx, of_parts = x + g + 512 * 4 + of_dW, x + g + of_dW, x + g + 4 * of_dW  # high and low of two slices
    assert [_moved([one]) for one in called[blocks][:3]] == pytest.approx([of_q, of_dx, of_parts], rel=0.03)


def _moved(called):
    """Bytes that move."""
    memory = (model.parts(H100, work, launch.blocks, 1)["memory"] for launch, work in called)
    return sum(memory) * model.OF_COPY * H100.copy_gb_per_s


ROW = {"m": 3, "n": 3, "dtype": "float32", "B": 7, "class": "tiny", "limit": "memory", "chip": "H200"}
ROW |= {"predicted_fraction_of_copy": 0.9, "predicted_us": 2, "instructions": 230, "bytes_in_flight": 2048}


def test_tables_name_both_kernels_once_where_they_agree():
    rows = [ROW, ROW | {"predicted_fraction_of_copy": 0.5, "limit": "issue"}]
    line = tables.by_chip(rows, lambda pair: "", lambda pair: tables._fractions(pair) + tables._limits(pair))
    assert line.endswith("| 3x3 float32, B = 7 |  | 0.90 / 0.50memory / issue |")
    assert tables._us(rows) == "2.0"
    assert next(iter(tables._by_case([ROW | {"one_W": True}]))) == "one W of 3x3 float32, B = 7"


def test_table_of_changes():
    same = ROW | {"m": 4}
    before = [ROW, ROW, same, same]
    after = [ROW | {"instructions": 200}, ROW | {"bytes_in_flight": 4096}, same, same, ROW | {"m": 5}]
    *_, rule, line = tables.changes(before, after, ["H200"]).splitlines()
    assert "---" in rule
    assert line == "| 3x3 float32, B = 7 | 230 → 200 / 230 | 2 → 2 / 4 | 0.90 | memory |"
