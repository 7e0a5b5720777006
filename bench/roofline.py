"""PREDICTION of the GPU kernels' speed, made without a GPU: which part of the memory's published bandwidth they reach.

python bench/roofline.py [-o FILE.json]      needs what the tests need, and takes two minutes

For each kernel this compiles the machine code for a chip and counts, on the host, the memory accesses of one block.
From these come the cycles that a multiprocessor needs for a block if nothing but one thing held it up:

  memory   the 32-byte sectors that the block touches, at the multiprocessor's share of the published bandwidth
  cache    the sectors that it asks for, those again that it has had before: 40 bytes in a cycle
  latency  its trips to memory, one after the other, and the instructions between them as if each waited for the one
           before; as many blocks at a time as registers and shared memory let the multiprocessor hold (Little's law)
  issue    its instructions, estimated: four warps issue one each in a cycle
  shared   its accesses to shared memory, with their bank conflicts: 128 bytes in a cycle
  float64  its float64 arithmetic, at the rate of the chip

The predicted fraction is the least bytes at the published bandwidth over the longest of these. A copy has 1.00 in this
model, and on a real chip about 0.9 of the published bandwidth, so the fraction is one of the speed of a copy. On a chip
these overlap less well than here, and its clock may be lower: the prediction is an upper limit.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import compiled
import numpy as np
from chips import CHIPS, PARTITIONS, WARP, Chip, occupancy, resident_blocks
from compiled import Used
from measure import Case
from report import markdown
from rows import Row

from sigmoid_l2.kernels.cuda_launch import Rows, Staged, lane_pairs, plan, size_class

# Every class of sizes in both dtypes; of each, what is most used.
SHAPES = ((1, 1), (3, 3), (8, 8), (32, 32), (64, 64), (10, 784), (784, 10), (256, 256), (8192, 8192), (4, 20000))
DTYPES = ("float32", "float64")
# A load from memory under load. Idle, 466 cycles of an A100 and 479 of an H100, 330 and 240 ns (arXiv 2402.13499, table
# of latencies); queues about double that before the memory is saturated.
LATENCY_NS = 700
# Between two instructions of which one needs the other's result (arXiv 1804.06826, for float32).
DEPENDENT_CYCLES = 4
# That the L2 gives a multiprocessor in a cycle: 5120 for the 128 of a full A100 (NVIDIA's whitepaper on Ampere).
CACHE_BYTES = 40
# float64 results a cycle and multiprocessor (CUDA C++ Programming Guide, throughput of arithmetic instructions).
FLOAT64_A_CYCLE = {75: 2, 80: 32, 86: 2, 89: 2, 90: 64, 100: 64}
# Of the sigmoid and g of a row, counted in its PTX, the division as 8 float64 steps; an element is in q, dx and dW.
ROW_INSTRUCTIONS = {"float32": 40, "float64": 80}
FLOAT64_A_ROW, FLOAT64_AN_ELEMENT = 33, 3
# Estimates, by the look of the PTX: what a thread does once; an access to global memory, or to shared memory for one,
# with its address and condition; an access to an own element in shared memory; a value's part in a sum over lanes.
ONCE, COPY_ACCESS, OWN_ACCESS, LANE_SUM = 80, 4, 2, 3
BUTTERFLY = 10  # a value's sum over a warp: five shuffles and additions
LOADS_AT_ONCE = 4  # to which the compiler unrolls the loops of the kernels long and finish
FINISH_GROUPS = 8  # of slices, side by side


class Work(NamedTuple):
    """What one block of a launch does; a call with outputs given is one launch, or two where pairs are cut up."""

    kernel: Any
    blocks: int
    threads: int
    touched: int  # bytes of memory, in sectors
    moved: int  # bytes, in sectors, each time
    wavefronts: int  # cycles of shared memory, 128 bytes in each where no banks conflict
    trips: int  # to memory, one after the other
    issued: float  # instructions of a thread
    float64: float  # those of float64 arithmetic


class Launches(NamedTuple):
    """What a call on some pairs does."""

    case: Case
    works: tuple[Work, ...]


@cache
def launches_of(m: int, n: int, dtype: str) -> Launches:
    """The launches for the fewest pairs that fill two blocks, of each the first block as it runs on the host.

    They are those of CuPy's kernel; numba's cuts the work up in the same way, and the tests count its accesses too.
    """
    import cuh_host
    from traffic import BANK_BYTES, SECTOR_BYTES, count

    def arrays(B: int) -> list[Any]:
        return [np.zeros(shape, dtype) for shape in ((B, m, n), (B, n), (B,), (B, m, n), (B, n))]

    B, launched = 1, []
    while not launched or launched[0][1] < 2:
        B *= 2 if launched else 1
        launched.clear()
        cuh_host.launch(
            lambda kernel, _, *sizes: launched.append((kernel, *sizes[:2])), *arrays(B), address=lambda a: 0
        )
    recorded = cuh_host.record(*arrays(B))
    works = []
    for kernel, blocks, threads in launched:
        traffic = count(recorded[kernel.name])
        moved = sum(traffic.sectors.values()) * SECTOR_BYTES
        # What a block has written and reads again is in a cache.
        own = (
            words for (name, write), words in traffic.touched.items() if write or (name, True) not in traffic.touched
        )
        touched = sum(len({word * BANK_BYTES // SECTOR_BYTES for word in words}) for words in own) * SECTOR_BYTES
        of_a_thread = work_of_a_thread(kernel.name, m, n, dtype)
        works.append(Work(kernel, blocks, threads, touched, moved, traffic.wavefronts, *of_a_thread))
    return Launches(Case("gpu", dtype, m, n, B), tuple(works))


def work_of_a_thread(kernel: str, m: int, n: int, dtype: str) -> tuple[int, float, float]:
    """Its trips to memory, of which independent loads are one, and its instructions: all, and float64 arithmetic."""
    itemsize = np.dtype(dtype).itemsize
    p = plan(m, n, itemsize)
    if kernel.endswith("finish"):
        trips = -(-p.slices // (FINISH_GROUPS * LOADS_AT_ONCE))
        return trips, ONCE + trips * LOADS_AT_ONCE * COPY_ACCESS, trips * LOADS_AT_ONCE * (dtype == "float64")
    if isinstance(p, Staged):
        pairs = lane_pairs(m, n, itemsize) if p.lanes == 1 else 1
        trips, rows, elements = 1, pairs * p.lane_rows, pairs * p.lane_rows * n
        of_W_and_x = elements + pairs * n
        accesses = of_W_and_x * (2 * OWN_ACCESS + 4 * COPY_ACCESS * itemsize / 16)
        sums = LANE_SUM * (n + 1) * (p.lanes > 1)
    elif isinstance(p, Rows):
        trips = -(-p.rows // (p.teams * p.at_once))
        rows, columns = trips * p.at_once, p.vectors * p.vector
        elements = rows * columns
        accesses = 2 * COPY_ACCESS * elements / p.vector
        sums = BUTTERFLY * rows + 4 * OWN_ACCESS * columns * (p.teams > 1)
    else:  # reads a row twice
        trips = 2 * m * -(-n // (p.threads * LOADS_AT_ONCE))
        rows, elements = m, m * -(-n // p.threads)
        accesses, sums = 5 * COPY_ACCESS * elements, BUTTERFLY * rows
    issued = ONCE + ROW_INSTRUCTIONS[dtype] * rows + 3 * elements + accesses + sums
    return trips, issued, (FLOAT64_A_ROW * rows + FLOAT64_AN_ELEMENT * elements) * (dtype == "float64")


def cycles(chip: Chip, work: Work, used: Used) -> dict[str, float]:
    """The cycles of a multiprocessor a block, by what would hold it up alone."""
    bytes_a_cycle = chip.gb_per_s / chip.multiprocessors / chip.ghz
    warps = work.threads // WARP
    # A kernel with one trip has no loops, and so issues no more than its machine code has.
    issued = min(work.issued, used.instructions) if work.trips == 1 else work.issued
    alone = work.trips * LATENCY_NS * chip.ghz + issued * max(DEPENDENT_CYCLES, warps / PARTITIONS)
    return {
        "memory": work.touched / bytes_a_cycle,
        "cache": work.moved / CACHE_BYTES,
        "latency": alone / resident_blocks(chip.cc, work.threads, used.registers, used.shared),
        "issue": issued * warps / PARTITIONS,
        "shared": work.wavefronts,
        "float64": work.float64 * work.threads / FLOAT64_A_CYCLE[chip.cc],
    }


def fraction(chip: Chip, launches: Launches, used: list[Used]) -> tuple[float, str]:
    """Of the published bandwidth, for a batch that keeps the chip busy; and what limits the first launch."""
    needed = [cycles(chip, work, u) for work, u in zip(launches.works, used, strict=True)]
    total = sum(work.blocks * max(own.values()) for work, own in zip(launches.works, needed, strict=True))
    least = launches.case.traffic * chip.multiprocessors * chip.ghz / chip.gb_per_s
    return least / total, max(needed[0], key=lambda what: needed[0][what])


def predictions(case: tuple[int, int, str]) -> list[Row]:
    """A row for each kernel and chip, for (m, n, dtype)."""
    m, n, dtype = case
    launches = launches_of(m, n, dtype)
    size = {"m": m, "n": n, "dtype": dtype, "class": size_class(plan(m, n, np.dtype(dtype).itemsize))}
    return [
        {"backend": backend, **size, "chip": name, **predict(launches, backend, chip)}
        for backend in ("cupy", "numba-cuda")
        for name, chip in CHIPS.items()
    ]


def predict(launches: Launches, backend: str, chip: Chip) -> Row:
    """The prediction for one kernel on one chip, with what it comes from."""
    case, works = launches
    if backend == "cupy":
        used = [compiled.by_cupy(work.kernel, case.dtype, chip.cc) for work in works]
    else:
        used = [*compiled.by_numba(case.m, case.n, case.dtype, chip.cc)]
    predicted, limit = fraction(chip, launches, used)
    return {
        "predicted_fraction": predicted,
        "limit": limit,
        "sectors_over_least": sum(work.blocks * work.touched for work in works) / case.traffic,
        "occupancy": occupancy(chip.cc, works[0].threads, used[0].registers, used[0].shared),
        **used[0]._asdict(),
        "cycles": cycles(chip, works[0], used[0]),
    }


def table(rows: list[Row]) -> str:
    """A line for each kernel, shape and dtype; below 1.00 with what limits it."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        key = (row["backend"], f"{row['m']}x{row['n']} {row['dtype']}", row["class"])
        line = lines.setdefault(key, [*key, f"{row['sectors_over_least']:.2f}"])
        line.append(f"{row['predicted_fraction']:.2f} ({row['limit']})")
    head = ("kernel", "case", "class", "sectors / least", *(f"PREDICTION for {chip}" for chip in CHIPS))
    return markdown(head, lines.values(), words=3)


def main() -> None:
    """Compile, count, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parent / "results" / "roofline-prediction.json"
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
