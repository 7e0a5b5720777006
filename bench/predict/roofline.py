"""PREDICTION of the GPU kernels' speed, made without a GPU: which part of the speed of a plain copy they reach.

python bench/predict/roofline.py [-o FILE.json] [--before FILE.json]

It needs what the tests need, and takes ten minutes on two cores that do other work too. With --before it also prints
what is different from an earlier run.

For each kernel this executes the PTX of one block, as the tests do (tests/gpu), and counts its accesses to memory, its
instructions, and its trips to memory: how often a load waits for another. Registers and shared memory are those of the
machine code for each chip. ``model`` makes a time of them, and says what holds a kernel up.

The predicted fraction is that of the least bytes over the time and the chip's speed of a copy. It is a model's, and not
measured: ``make gpu`` measures.
"""

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path

import numpy as np

from sigmoid_l2.kernels.gpu import plan, plan_shared
from sigmoid_l2.kernels.gpu.plan_types import SharedTiny

sys.path += [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2] / "tests")]
import model
import tables
from gpu.chips import CHIPS, Chip, occupancy, resident_blocks
from results import Row
from shared import SharedCase
from work import Launched, launches_of
from workload import Case

# Every class of sizes in both dtypes; of each, what is most used, and what divides badly.
SHAPES: tuple[tuple[int, int], ...] = (
    (1, 1),
    (3, 3),
    (1, 32),
    (8, 8),
    (16, 16),
    (30, 30),
    (31, 31),
    (32, 32),
    (20, 70),
    (64, 64),
    (100, 33),
)
SHAPES += ((10, 784), (784, 10), (256, 256), (1000, 1000), (4, 10000), (4, 20000), (4, 30000), (8192, 8192))
BYTES_OF_W = 256 << 20  # of a batch that keeps every chip busy
FEW = ((3, 3, 1), (3, 3, 1000), (256, 256, 100), (1000, 1000, 1), (1000, 1000, 10))  # (m, n, B) that may not
DTYPES = ("float32", "float64")
CASES = [Case.sized("gpu", dtype, m, n, BYTES_OF_W) for m, n in SHAPES for dtype in DTYPES]
FEW_CASES = [Case("gpu", dtype, m, n, B) for m, n, B in FEW for dtype in DTYPES]
# One W for many x: the pairs of 3x3, and the bytes of x of the others.
ONE_W, ONE_W_PAIRS, ONE_W_BYTES = ((8, 8), (10, 784), (256, 256)), 10**8, 125 * 10**6
ONE_W_CASES = [SharedCase("gpu", "float32", 3, 3, ONE_W_PAIRS)]
ONE_W_CASES += [SharedCase.of_x("gpu", "float32", m, n, ONE_W_BYTES) for m, n in ONE_W]
BACKENDS = ("cupy", "numba-cuda")


def predict(case: Case, called: tuple[Launched, ...], chip: Chip) -> Row:
    """The prediction for a call on one chip, with what it comes from: that of the launch that takes longest."""
    used = [launch.used(chip.cc) for launch, _ in called]
    resident = [
        resident_blocks(chip.cc, launch.threads, u.registers, u.shared)
        for (launch, _), u in zip(called, used, strict=True)
    ]
    each = [model.parts(chip, work, launch.blocks, r) for (launch, work), r in zip(called, resident, strict=True)]
    durations = [model.duration(ns) for ns in each]
    total = sum(durations) + (len(called) - 1) * model.LAUNCH_NS
    k = durations.index(max(durations))
    launch, work = called[k]
    at_a_time = model.together(chip, launch.blocks, resident[k])
    moved = sum(ns["memory"] for ns in each) * model.OF_COPY * chip.copy_gb_per_s
    return {
        "predicted_fraction_of_copy": case.traffic / chip.copy_gb_per_s / total,
        "predicted_us": total / 1000,
        "limit": model.limit(each[k]),
        "launches": len(called),
        "sectors_over_least": moved / case.traffic,
        **used[k]._asdict(),
        "blocks": launch.blocks,
        "resident_blocks": at_a_time,
        "occupancy": occupancy(chip.cc, launch.threads, used[k].registers, used[k].shared),
        "instructions": work.issued,
        "trips": work.trips,
        "bytes_in_flight": at_a_time * work.read / max(1, work.trips),
        "ns": each[k],
    }


def predictions(case: Case) -> list[Row]:
    """A row for each kernel and chip."""
    size = {"one_W": isinstance(case, SharedCase), "m": case.m, "n": case.n, "dtype": case.dtype, "B": case.B}
    size["class"] = _class(case)
    return [
        {"backend": backend, **size, "chip": name, **predict(case, launches_of(backend, case), chip)}
        for backend in BACKENDS
        for name, chip in CHIPS.items()
    ]


def _class(case: Case) -> str:
    sizes = case.m, case.n, np.dtype(case.dtype).itemsize
    if isinstance(case, SharedCase):
        return "tiny" if isinstance(plan_shared.make_plan(*sizes), SharedTiny) else "blocks"
    return plan.size_class(plan.make_plan(*sizes))


def main() -> None:
    """Compile, execute, count, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[1] / "results" / "roofline-prediction.json"
    parser.add_argument("-o", type=Path, metavar="FILE", default=default, help="default: bench/results/")
    parser.add_argument("--before", type=Path, metavar="FILE", help="of an earlier run")
    args = parser.parse_args()
    before = json.loads(args.before.read_text(encoding="utf-8"))["rows"] if args.before else None

    started = time.perf_counter()
    with ProcessPoolExecutor() as pool:
        one_W, many, few = (
            [row for rows in pool.map(predictions, cases) for row in rows] for cases in (ONE_W_CASES, CASES, FEW_CASES)
        )
    took = time.perf_counter() - started
    tables.show(many, few, one_W, before)
    chips = {name: chip._asdict() for name, chip in CHIPS.items()}
    rows = [*many, *few, *one_W]
    results = {"what": "PREDICTION, not measured", "date": str(date.today()), "chips": chips, "rows": rows}
    args.o.parent.mkdir(parents=True, exist_ok=True)
    args.o.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"\n{len(rows)} predictions took {took:.0f} s")


if __name__ == "__main__":
    main()
