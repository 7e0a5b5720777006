"""Published figures of GPUs, and how many blocks of a kernel one multiprocessor holds.

Limits: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; how registers and shared memory
are given out: the CUDA toolkit's cuda_occupancy.h.
"""

from typing import NamedTuple


class Limits(NamedTuple):
    """What a multiprocessor of a compute capability has; all have 65536 registers."""

    threads: int
    blocks: int
    shared: int  # bytes
    shared_unit: int  # a block's shared memory is rounded up to a multiple
    shared_reserved: int  # bytes of each block that the system takes


class Chip(NamedTuple):
    """One GPU."""

    cc: int
    multiprocessors: int
    gb_per_s: float  # of its memory, as published
    copy_gb_per_s: float  # of a plain copy: what it reads and what it writes
    ghz: float  # under load
    l2_bytes: int
    source: str


LIMITS = {
    75: Limits(threads=1024, blocks=16, shared=64 << 10, shared_unit=256, shared_reserved=0),
    80: Limits(threads=2048, blocks=32, shared=164 << 10, shared_unit=128, shared_reserved=1024),
    86: Limits(threads=1536, blocks=16, shared=100 << 10, shared_unit=128, shared_reserved=1024),
    89: Limits(threads=1536, blocks=24, shared=100 << 10, shared_unit=128, shared_reserved=1024),
    90: Limits(threads=2048, blocks=32, shared=228 << 10, shared_unit=128, shared_reserved=1024),
    100: Limits(threads=2048, blocks=32, shared=228 << 10, shared_unit=128, shared_reserved=1024),
    120: Limits(threads=1536, blocks=24, shared=100 << 10, shared_unit=128, shared_reserved=1024),
}
# Of H100 and H200 the speed of a copy and the clock are what an audit took for its estimates, below the 1.98 GHz that
# NVIDIA publishes as the highest. Of the others a copy has 0.9 of the published bandwidth, as those two have about, and
# the clock is the highest.
CHIPS = {
    "T4": Chip(75, 40, 320, 288, 1.59, 4 << 20, "NVIDIA T4 datasheet; Turing architecture whitepaper"),
    "A100": Chip(80, 108, 2039, 1835, 1.41, 40 << 20, "NVIDIA A100 80GB SXM datasheet; Ampere architecture whitepaper"),
    "L4": Chip(89, 58, 300, 270, 2.04, 48 << 20, "NVIDIA L4 datasheet; multiprocessors and L2: from memory"),
    "H100": Chip(90, 132, 3350, 3000, 1.755, 50 << 20, "NVIDIA H100 SXM datasheet; Hopper architecture whitepaper"),
    "H200": Chip(90, 132, 4800, 4300, 1.755, 50 << 20, "NVIDIA H200 SXM datasheet; the L2: the same chip as H100's"),
    "B200": Chip(
        100, 148, 8000, 7200, 1.965, 126 << 20, "from memory; multiprocessors: chipsandcheese.com on the B200"
    ),
}
REGISTERS = 65536  # of a multiprocessor
REGISTERS_UNIT = 256  # a warp's registers are rounded up to a multiple
WARP = 32  # threads
PARTITIONS = 4  # of a multiprocessor, each with a quarter of the registers


def resident_blocks(cc: int, threads: int, registers: int, shared: int) -> int:
    """Blocks of ``threads`` threads, ``registers`` per thread and ``shared`` bytes that a multiprocessor holds."""
    limits = LIMITS[cc]
    warps = -(-threads // WARP)
    warp_registers = -(-registers * WARP // REGISTERS_UNIT) * REGISTERS_UNIT
    warps_with_registers = REGISTERS // PARTITIONS // warp_registers * PARTITIONS
    block_shared = -(-(shared + limits.shared_reserved) // limits.shared_unit) * limits.shared_unit
    by_shared = limits.shared // block_shared if block_shared else limits.blocks
    return min(limits.blocks, limits.threads // (warps * WARP), warps_with_registers // warps, by_shared)


def occupancy(cc: int, threads: int, registers: int, shared: int) -> float:
    """The part of a multiprocessor's threads that are resident."""
    return resident_blocks(cc, threads, registers, shared) * threads / LIMITS[cc].threads
