"""PREDICTION of the GPU kernels' speed, made without a GPU: which part of the memory's published bandwidth they reach.

python bench/predict/roofline.py [-o FILE.json]      needs what the tests need, and takes three minutes

For each kernel this executes the PTX of one block of a batch that fills it, as the tests do (tests/gpu), and counts its
accesses to memory and its instructions; registers and shared memory are those of the machine code for the chip. From
these come the cycles that a multiprocessor needs for a block if nothing but one thing held it up:

  memory   the 32-byte sectors that the block moves, at the multiprocessor's share of the published bandwidth. What it
           asks for again moves again, unless the block's share of the L2 has it still: all blocks that the chip holds
           at a time go through the same cache, which keeps what was used last
  cache    the sectors that it asks for, those again that it has had before: 40 bytes in a cycle
  latency  its trips to memory, one after the other, and the instructions between them as if each waited for the one
           before; as many blocks at a time as registers and shared memory let the multiprocessor hold (Little's law)
  issue    its instructions: four warps issue one each in a cycle
  shared   its accesses to shared memory, with their bank conflicts: 128 bytes in a cycle
  float64  its float64 arithmetic, at the rate of the chip

Instructions are PTX's, which are not the machine's. In machine code for sm_90, a step of the main loop has 0.77 to 0.91
of its instructions in PTX in the kernels for rows, and about 1.5 in the long ones, with their 64-bit addresses. All of
a kernel has 0.9 to 3, but with what is rarely executed, and with loops that were unrolled: so PTX counts as it is.

The predicted fraction is the least bytes at the published bandwidth over the longest of these. A copy has 1.00 in this
model, and on a real chip about 0.9 of the published bandwidth, so the fraction is one of the speed of a copy. On a chip
these overlap less well than here, and its clock may be lower: the prediction is an upper limit.
"""

import argparse
import json
import sys
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sigmoid_l2.kernels.gpu.plan import Plan, Rows, Staged, make_plan, size_class

sys.path += [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2] / "tests")]
from gpu import code, launches
from gpu.chips import CHIPS, PARTITIONS, WARP, Chip, occupancy, resident_blocks
from report import markdown
from results import Row
from workload import Case

# Every class of sizes in both dtypes; of each, what is most used.
SHAPES = ((1, 1), (3, 3), (8, 8), (16, 16), (32, 32), (64, 64), (10, 784), (784, 10), (256, 256), (8192, 8192))
SHAPES += ((4, 20000),)
DTYPES = ("float32", "float64")
# From memory under load, in ns. Idle, 466 cycles of an A100 and 479 of an H100, 330 and 240 ns (arXiv 2402.13499, table
# of latencies); queues about double that before the memory is saturated.
LATENCY_NS = 700
# Cycles between two instructions of which one needs the other's result (arXiv 1804.06826, for float32).
DEPENDENT_CYCLES = 4
# Bytes that the L2 gives a multiprocessor in a cycle: 5120 for the 128 of a full A100 (NVIDIA's whitepaper on Ampere).
CACHE_BYTES = 40
# float64 results a cycle and multiprocessor (CUDA C++ Programming Guide, throughput of arithmetic instructions).
FLOAT64_A_CYCLE = {75: 2, 80: 32, 86: 2, 89: 2, 90: 64, 100: 64}
FLOAT64_OPCODES = ("abs", "add", "fma", "max", "min", "mul", "neg", "rcp", "setp", "sub")  # of float64 units
LOADS_AT_ONCE = 4  # of a loop, to which the compilers unroll those of the kernels long and finish
FINISH_GROUPS = 8  # of slices, side by side
SECTOR_BYTES = 32  # that memory moves at least


class Work(NamedTuple):
    """What one block of a launch does; a call with outputs given is one launch, or two where pairs are cut up."""

    launch: Any
    blocks: int
    threads: int
    asked: list[tuple[int, bool]]  # sectors of global memory, in turn, and whether written
    wavefronts: int  # cycles of shared memory, 128 bytes in each where no banks conflict
    trips: int  # to memory, one after the other
    issued: float  # PTX instructions of a warp
    float64: float  # those of float64 arithmetic


class Launches(NamedTuple):
    """What a call on some pairs does."""

    case: Case
    works: tuple[Work, ...]


@cache
def launches_of(backend: str, m: int, n: int, dtype: str) -> Launches:
    """The launches for the fewest pairs that fill two blocks, and what the first block of each does."""
    B, launched = 1, []
    while not launched or launched[0].blocks < 2:
        B *= 2 if launched else 1
        arrays = [_zeros(shape, dtype) for shape in ((B, m, n), (B, n), (B,), (B, m, n), (B, n))]
        launched, memory = launches.launches_of(backend, *arrays)
    p = make_plan(m, n, np.dtype(dtype).itemsize)
    works = []
    for launch in launched:
        ((issued, traffic),) = launches.run([launch], memory, only=range(1), count=True)
        warps = launch.threads // WARP
        float64 = sum(
            times
            for opcode, times in issued.items()
            if opcode.endswith("f64") and opcode.partition(".")[0] in FLOAT64_OPCODES
        )
        works.append(
            Work(
                launch,
                launch.blocks,
                launch.threads,
                list(_asked(memory)),
                traffic.wavefronts,
                trips(p, m, n, launch.name),
                issued.total() / warps,
                float64 / warps,
            )
        )
    return Launches(Case("gpu", dtype, m, n, B), tuple(works))


def _zeros(shape: tuple[int, ...], dtype: str) -> Any:
    """They begin on a multiple of 128 bytes, and take no memory before they are used."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    held = np.zeros(size + 128, np.uint8)
    first = -held.ctypes.data % 128
    return held[first : first + size].view(dtype).reshape(shape)


def _asked(memory: Any) -> Iterable[tuple[int, bool]]:
    """The sectors that the warps of the last launch asked for, one instruction after the other."""
    places = {name: place << 40 for place, (_, name, _) in enumerate(memory.arrays)}
    for name, write, words, threads in memory.accesses:
        sectors = places[name] + words * 4 // SECTOR_BYTES
        by_warp = np.unique(np.stack([threads // WARP, sectors]), axis=1)
        yield from ((sector, write) for sector in by_warp[1].tolist())


def trips(p: Plan, m: int, n: int, kernel: str) -> int:
    """Loads that wait for one another; independent ones are one trip."""
    if kernel == "finish":
        return -(-p.slices // (FINISH_GROUPS * LOADS_AT_ONCE))
    if isinstance(p, Staged):
        return 1
    if isinstance(p, Rows):
        return -(-p.rows // (p.teams * p.at_once))
    return 2 * m * -(-n // (p.threads * LOADS_AT_ONCE))  # it reads a row twice


def moved(asked: Iterable[tuple[int, bool]], room: int) -> int:
    """Of the sectors asked for, those that move between memory and a cache with ``room`` for those used last.

    One moves where it is read and not there, and where it was written and has to go, if only at the end.
    """
    held: OrderedDict[int, bool] = OrderedDict()  # whether it was written
    count = 0
    for sector, write in asked:
        if sector in held:
            held[sector] |= write
            held.move_to_end(sector)
        else:
            held[sector] = write
            count += not write
            if len(held) > room:
                count += held.popitem(last=False)[1]
    return count + sum(held.values())


def cycles(chip: Chip, work: Work, used: code.Used) -> dict[str, float]:
    """The cycles of a multiprocessor a block, by what would hold it up alone."""
    bytes_a_cycle = chip.gb_per_s / chip.multiprocessors / chip.ghz
    warps = work.threads // WARP
    resident = resident_blocks(chip.cc, work.threads, used.registers, used.shared)
    share = chip.l2_bytes // (resident * chip.multiprocessors)
    alone = work.trips * LATENCY_NS * chip.ghz + work.issued * max(DEPENDENT_CYCLES, warps / PARTITIONS)
    return {
        "memory": moved(work.asked, share // SECTOR_BYTES) * SECTOR_BYTES / bytes_a_cycle,
        "cache": len(work.asked) * SECTOR_BYTES / CACHE_BYTES,
        "latency": alone / resident,
        "issue": work.issued * warps / PARTITIONS,
        "shared": work.wavefronts,
        "float64": work.float64 * work.threads / FLOAT64_A_CYCLE[chip.cc],
    }


def fraction(case: Case, chip: Chip, works: Iterable[Work], needed: list[dict[str, float]]) -> float:
    """Of the published bandwidth, for a batch that keeps the chip busy."""
    total = sum(work.blocks * max(own.values()) for work, own in zip(works, needed, strict=True))
    return case.traffic * chip.multiprocessors * chip.ghz / chip.gb_per_s / total


def predictions(case: tuple[int, int, str]) -> list[Row]:
    """A row for each kernel and chip, for (m, n, dtype)."""
    m, n, dtype = case
    size = {"m": m, "n": n, "dtype": dtype, "class": size_class(make_plan(m, n, np.dtype(dtype).itemsize))}
    return [
        {"backend": backend, **size, "chip": name, **predict(launches_of(backend, *case), chip)}
        for backend in ("cupy", "numba-cuda")
        for name, chip in CHIPS.items()
    ]


def predict(called: Launches, chip: Chip) -> Row:
    """The prediction for one kernel on one chip, with what it comes from; what limits is that of the first launch."""
    case, works = called
    used = [code.used(work.launch, chip.cc) for work in works]
    needed = [cycles(chip, work, u) for work, u in zip(works, used, strict=True)]
    bytes_a_cycle = chip.gb_per_s / chip.multiprocessors / chip.ghz
    in_memory = sum(work.blocks * own["memory"] for work, own in zip(works, needed, strict=True)) * bytes_a_cycle
    return {
        "predicted_fraction": fraction(case, chip, works, needed),
        "limit": max(needed[0], key=lambda what: needed[0][what]),
        "sectors_over_least": in_memory / case.traffic,
        "occupancy": occupancy(chip.cc, works[0].threads, used[0].registers, used[0].shared),
        **used[0]._asdict(),
        "instructions": works[0].issued,
        "cycles": needed[0],
    }


def table(rows: list[Row]) -> str:
    """A line for each kernel, shape and dtype; with what limits it."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        key = (row["backend"], f"{row['m']}x{row['n']} {row['dtype']}", row["class"])
        line = lines.setdefault(key, [*key, f"{row['instructions']:.0f}"])
        line.append(f"{row['predicted_fraction']:.2f} ({row['limit']})")
    head = ("kernel", "case", "class", "instructions", *(f"PREDICTION for {chip}" for chip in CHIPS))
    return markdown(head, lines.values(), words=3)


def main() -> None:
    """Compile, execute, count, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[1] / "results" / "roofline-prediction.json"
    parser.add_argument("-o", type=Path, metavar="FILE", default=default, help="default: bench/results/")
    args = parser.parse_args()

    with ProcessPoolExecutor() as pool:
        cases = [(m, n, dtype) for m, n in SHAPES for dtype in DTYPES]
        rows = [row for of_case in pool.map(predictions, cases) for row in of_case]
    print("PREDICTION, not measured: fraction of the published bandwidth, and what limits it\n")
    print(table(rows))
    chips = {name: chip._asdict() for name, chip in CHIPS.items()}
    results = {"what": "PREDICTION, not measured", "date": str(date.today()), "chips": chips, "rows": rows}
    args.o.parent.mkdir(parents=True, exist_ok=True)
    args.o.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
