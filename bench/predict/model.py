"""PREDICTION of a launch's time on a chip, from what its blocks do: no GPU is used.

A block waits for its loads, computes, and waits until its stores are on their way. Blocks that a multiprocessor holds
together wait together, and compute in turn. So a generation of them takes

  latency  its trips to memory, one after the other, and the way of the stores
  work     the longest of four, of all its blocks:
    issue    its instructions: four warps issue one each in a cycle
    shared   its accesses to shared memory, with their bank conflicts: 128 bytes in a cycle
    float32  its float32 arithmetic, at the rate of the chip, and
    float64  its float64 arithmetic

one after the other, or, if that is longer,

  memory   the 32-byte sectors that move, at OF_COPY of the speed of a copy. What a block asks for again moves again,
           unless the block's share of the L2 has it still: all blocks that the chip holds at a time go through the same
           cache, which keeps what was used last
  cache    the sectors that it asks for, those again that it has had before: CACHE_BYTES in a cycle

Where all pairs have one W, blocks that follow each other read the same tiles: what one of them has brought into the L2
does not move again for the others.

On a chip blocks drift apart, so that some wait while others compute: what is bound by issue may be faster than this.
Instructions are PTX's, which are not the machine's. In machine code for sm_90, a step of the main loop has 0.77 to 0.91
of its instructions in PTX in the kernels for rows, and about 1.5 in the long ones, with their 64-bit addresses. All of
a kernel has 0.9 to 3, but with what is rarely executed, and with loops that were unrolled: so PTX counts as it is.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from gpu.chips import PARTITIONS, Chip

# From memory under load, in ns: the audit's figure. Idle, 466 cycles of an A100 and 479 of an H100, 330 and 240 ns
# (arXiv 2402.13499, table of latencies); queues about double that before the memory is saturated.
LOAD_NS = 700
# From the last store of a block until the next block's first load, in ns. With 500 and SHARPNESS = 10 this form gives
# the audit's estimates of 10 kernels on two chips within 0.05 (bench/tests/test_roofline.py).
STORE_NS = 500
SHARPNESS = 10  # how little the longer of two times grows by the shorter: times are added as powers of this
OF_COPY = 0.95  # of the speed of a copy, that a kernel with nothing else to wait for reaches, by the audit
# Between two launches of a call, in ns: the first drains, the second starts. From memory of empty kernels in a stream.
LAUNCH_NS = 2000
# Bytes that the L2 gives a multiprocessor in a cycle: 5120 for the 128 of a full A100 (NVIDIA's whitepaper on Ampere).
CACHE_BYTES = 40
# Results a cycle and multiprocessor (CUDA C++ Programming Guide, throughput of arithmetic instructions).
FLOAT32_A_CYCLE = {75: 64, 80: 64, 86: 128, 89: 128, 90: 128, 100: 128, 120: 128}
FLOAT64_A_CYCLE = {75: 2, 80: 32, 86: 2, 89: 2, 90: 64, 100: 64, 120: 2}
SECTOR_BYTES = 32  # that memory moves at least
WORK = ("issue", "shared", "float32", "float64")  # what a block waits for beside memory, one of them at a time


class Work(NamedTuple):
    """What one block does."""

    warps: int
    trips: int  # to memory, one after the other
    read: int  # bytes of global memory that it loads
    asked: list[tuple[int, bool]]  # sectors of global memory, in turn, and whether written
    issued: float  # instructions of a warp
    wavefronts: int  # cycles of shared memory, 128 bytes in each where no banks conflict
    float64: float  # instructions of a warp that are float64 arithmetic
    float32: float = 0  # the same of float32
    lent: float = 0  # sectors that are there because another block has asked for them; a mean over the blocks


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


def together(chip: Chip, blocks: int, resident: int) -> int:
    """How many of a launch's blocks a multiprocessor has at a time, if it can hold ``resident``."""
    return min(resident, -(-blocks // chip.multiprocessors))


def parts(chip: Chip, work: Work, blocks: int, resident: int) -> dict[str, float]:
    """The ns that a launch of ``blocks`` blocks would take if nothing but one thing held it up."""
    at_a_time = together(chip, blocks, resident)
    # Blocks of a multiprocessor, the busiest if there are few: later ones go where there is room.
    own = max(at_a_time, blocks / chip.multiprocessors)
    sectors = moved(work.asked, chip.l2_bytes // (at_a_time * chip.multiprocessors) // SECTOR_BYTES) - work.lent
    cycles = {
        "cache": len(work.asked) * SECTOR_BYTES / CACHE_BYTES,
        "issue": work.issued * work.warps / PARTITIONS,
        "shared": work.wavefronts,
        "float32": work.float32 * work.warps * 32 / FLOAT32_A_CYCLE[chip.cc],
        "float64": work.float64 * work.warps * 32 / FLOAT64_A_CYCLE[chip.cc],
    }
    return {
        "memory": blocks * sectors * SECTOR_BYTES / (OF_COPY * chip.copy_gb_per_s),
        "latency": own / at_a_time * (work.trips * LOAD_NS + STORE_NS),
        **{name: own * count / chip.ghz for name, count in cycles.items()},
    }


def alone(ns: dict[str, float]) -> float:
    """Without the limits of memory and cache."""
    return ns["latency"] + max(ns[name] for name in WORK)


def duration(ns: dict[str, float]) -> float:
    """Of a launch, from its parts."""
    return float(sum(t**SHARPNESS for t in (ns["memory"], ns["cache"], alone(ns))) ** (1 / SHARPNESS))


def limit(ns: dict[str, float]) -> str:
    """The part that holds a launch up most; of what takes place one after the other, the longest."""
    slowest = max(("memory", "cache"), key=lambda name: ns[name])
    if ns[slowest] >= alone(ns):
        return slowest
    return max(("latency", *WORK), key=lambda name: ns[name])
