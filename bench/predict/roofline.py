"""PREDICTION of the GPU kernels' speed, made without a GPU: which part of the speed of a plain copy they reach.

python bench/predict/roofline.py [-o FILE.json] [--before FILE.json]

It needs what the tests need, and takes four minutes on two cores. With --before it also prints what is different from
an earlier run.

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
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from sigmoid_l2.kernels.gpu import plan
from sigmoid_l2.kernels.gpu.launch import sums_of_pair

sys.path += [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2] / "tests")]
import model
import tables
from gpu import launches
from gpu.chips import CHIPS, WARP, Chip, occupancy, resident_blocks
from model import SECTOR_BYTES, Work
from results import Row
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
BACKENDS = ("cupy", "numba-cuda")
FLOAT64_OPCODES = ("abs", "add", "fma", "max", "min", "mul", "neg", "rcp", "setp", "sub")  # of float64 units


class Launched(NamedTuple):
    """A launch of a call, and what its first block does."""

    launch: Any
    work: Work


@cache
def launches_of(backend: str, case: Case) -> tuple[Launched, ...]:
    """The launches of a call: one, or for pairs that are cut up two for each part of the batch."""
    B, m, n, dtype = case.B, case.m, case.n, case.dtype
    W, x, loss, dW, dx = (_zeros(shape, dtype) for shape in ((B, m, n), (B, n), (B,), (B, m, n), (B, n)))
    itemsize = np.dtype(dtype).itemsize
    sums = sums_of_pair(plan.make_plan(m, n, itemsize), m, n)
    pairs = max(1, min(B, plan.WORKSPACE_BYTES // (itemsize * max(1, sums))))
    with mock.patch.object(launches, "WORKSPACE_PAIRS", pairs):
        launched, memory = launches.launches_of(backend, W, x, None, None, loss, dW, dx, None)
    works: dict[tuple[str, int], Work] = {}  # the first parts of a batch do the same
    for launch in launched:
        if (launch.name, launch.blocks) not in works:
            works[launch.name, launch.blocks] = _work(launch, memory)
    return tuple(Launched(launch, works[launch.name, launch.blocks]) for launch in launched)


def _zeros(shape: tuple[int, ...], dtype: str) -> Any:
    """They begin on a multiple of 128 bytes, and take no memory before they are used."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    held = np.zeros(size + 128, np.uint8)
    first = -held.ctypes.data % 128
    return held[first : first + size].view(dtype).reshape(shape)


def _work(launch: Any, memory: Any) -> Work:
    ((issued, traffic),) = launches.run([launch], memory, only=range(1), count=True)
    warps = launch.threads // WARP
    in_float64 = [opcode for opcode in issued if opcode.endswith("f64") and opcode.split(".")[0] in FLOAT64_OPCODES]
    return Work(
        warps,
        traffic.waits.trips,
        sum(len(words) * 4 for _, write, words, _ in memory.accesses if not write),
        list(_asked(memory)),
        issued.total() / warps,
        traffic.wavefronts,
        sum(issued[opcode] for opcode in in_float64) / warps,
    )


def _asked(memory: Any) -> Iterator[tuple[int, bool]]:
    """The sectors that the warps of the last launch asked for, one instruction after the other."""
    places = {name: place << 40 for place, (_, name, _) in enumerate(memory.arrays)}
    for name, write, words, threads in memory.accesses:
        sectors = places[name] + words * 4 // SECTOR_BYTES
        by_warp = np.unique(np.stack([threads // WARP, sectors]), axis=1)
        yield from ((sector, write) for sector in by_warp[1].tolist())


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
    size = {"m": case.m, "n": case.n, "dtype": case.dtype, "B": case.B}
    size["class"] = plan.size_class(plan.make_plan(case.m, case.n, np.dtype(case.dtype).itemsize))
    return [
        {"backend": backend, **size, "chip": name, **predict(case, launches_of(backend, case), chip)}
        for backend in BACKENDS
        for name, chip in CHIPS.items()
    ]


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
        many, few = ([row for rows in pool.map(predictions, cases) for row in rows] for cases in (CASES, FEW_CASES))
    took = time.perf_counter() - started
    tables.show(many, few, before)
    chips = {name: chip._asdict() for name, chip in CHIPS.items()}
    results = {"what": "PREDICTION, not measured", "date": str(date.today()), "chips": chips, "rows": many + few}
    args.o.parent.mkdir(parents=True, exist_ok=True)
    args.o.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"\n{len(many + few)} predictions took {took:.0f} s")


if __name__ == "__main__":
    main()
