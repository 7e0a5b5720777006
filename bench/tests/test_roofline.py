"""The prediction of the GPU kernels' speed, from counts made by hand, and what it counts of the kernels themselves."""

import importlib

import pytest

chips, roofline, workload = map(importlib.import_module, ["gpu.chips", "roofline", "workload"])


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
    assert roofline.moved(asked, room) == expected


CASE = workload.Case("gpu", "float32", 3, 3, 128)  # 12,800 bytes
ASKED = [(sector, False) for sector in range(400)]
GOOD = roofline.Work(None, 1, 128, ASKED, 600, 1, 400, 0)
SMALL_CODE = roofline.code.Used(registers=40, stack=0, shared=6144)


@pytest.mark.parametrize(
    ("change", "used", "chip", "expected"),
    [
        ({}, {}, "H200", (1.0, "memory")),
        ({"asked": [(sector, False) for sector in range(800)]}, {}, "H200", (0.5, "memory")),
        # 320 blocks share the 4 MiB: 409 sectors each.
        ({"asked": ASKED * 32}, {}, "T4", (12_800 / (320 / 40 / 1.59) / 10_240, "cache")),
        ({"asked": [(sector, False) for sector in range(410)] * 2}, {}, "T4", (400 / 820, "memory")),
        ({"wavefronts": 10_000}, {}, "T4", (12_800 / (320 / 40 / 1.59) / 10_000, "shared")),
        ({"float64": 160}, {}, "T4", (12_800 / (320 / 40 / 1.59) / 10_240, "float64")),
        ({"issued": 1000}, {}, "H200", (12_800 / (4800 / 132 / 1.98) / 1000, "issue")),
        # One block at a time: 700 ns and 400 instructions, four cycles each.
        ({}, {"shared": 200_000}, "H200", (12_800 / (4800 / 132 / 1.98) / (700 * 1.98 + 4 * 400), "latency")),
    ],
)
def test_prediction(monkeypatch, change, used, chip, expected):
    monkeypatch.setattr(roofline.code, "used", lambda launch, cc: SMALL_CODE._replace(**used))
    row = roofline.predict(roofline.Launches(CASE, (GOOD._replace(**change),)), chips.CHIPS[chip])
    assert (pytest.approx(row["predicted_fraction"]), row["limit"]) == expected


def test_prediction_of_two_launches(monkeypatch):
    monkeypatch.setattr(roofline.code, "used", lambda launch, cc: SMALL_CODE)
    launches = roofline.Launches(CASE, (GOOD, GOOD._replace(blocks=2, asked=ASKED[:200], wavefronts=0)))
    row = roofline.predict(launches, chips.CHIPS["A100"])
    assert (row["predicted_fraction"], row["limit"]) == (pytest.approx(0.5), "memory")


@pytest.mark.parametrize(("backend", "package"), [("cupy", "cupy"), ("numba-cuda", "numba_cuda")])
def test_what_the_prediction_counts(backend, package):
    pytest.importorskip(package, exc_type=ImportError)
    case, (work,) = roofline.launches_of(backend, 3, 3, "float32")
    assert (case.B, work.blocks, work.threads, work.trips, work.wavefronts, work.float64) == (256, 2, 128, 1, 192, 0)
    assert len(work.asked) == len(set(work.asked)) == 128 * 25 * 4 / 32
    assert 200 < work.issued < 400
    row = roofline.predict(roofline.launches_of(backend, 3, 3, "float32"), chips.CHIPS["H100"])
    assert (row["predicted_fraction"], row["limit"]) == (pytest.approx(1), "memory")


def test_the_long_class_does_not_stay_in_the_cache():
    """Between two passes the blocks of an H100 hold rows of W, x and dx that are together larger than its L2."""
    pytest.importorskip("cupy", exc_type=ImportError)
    launches, chip = roofline.launches_of("cupy", 2, 20000, "float32"), chips.CHIPS["H100"]
    ample = roofline.predict(launches, chip._replace(l2_bytes=1 << 30))
    row = roofline.predict(launches, chip)
    assert ample["sectors_over_least"] == pytest.approx(1, abs=0.01)
    assert row["limit"] == "memory"
    assert row["predicted_fraction"] == pytest.approx(1 / row["sectors_over_least"], abs=0.01)
    assert row["sectors_over_least"] > 2
