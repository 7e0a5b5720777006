"""How the GPU kernels cut a batch into blocks, chosen from (m, n, itemsize) in this one place for both libraries.

*staged* and *rows* read W once; *long*, for rows that a block's registers cannot hold, reads it twice:

* *staged*, rows of up to 128 bytes: contiguous rows of W go through shared memory, a lane owns consecutive rows;
* *rows*, longer rows: straight from global memory, 8 threads to a block own a row;
* *long*, n > 16384 in float32 or 8192 in float64: a block owns a pair and sums dx in place.

The size of a pair makes the classes *tiny* (one lane per pair), *group* (2 to 32 lanes per pair), *block* (up to one
block per pair), *split* (a pair is cut into slices) and *long*. The sums of a pair are those of its slices, added one
after the other. Few pairs have a block for each slice, which stores its loss and dx in a workspace; one more kernel,
*finish*, adds them. Many pairs have a block each, which does the pair's slices in turn.

Nothing else depends on B, and nothing on the chip, so neither does the order of any sum: a pair's result has the same
bits in every batch. Figures: docs/performance.md.
"""

from functools import cache
from typing import NamedTuple

WARP = 32  # threads
# Bytes of the longest row that is staged: what a warp moves in one access of 4 bytes per lane. A longer row keeps a
# warp busy by itself.
ROW_BYTES = 128
# Bytes of the widest access there is. It needs a quarter of the instructions of 4-byte accesses.
WIDE_BYTES = 16
# Bytes of W and x that a lane owns in shared memory, at most. 128 threads own 15 KiB: with the 1 KiB that a block
# costs, six blocks fit into the 100 KiB of sm_86 and sm_89 (half of their 1536 threads), four into the 64 KiB of sm_75
# (half of 1024). Every other chip from sm_75 on has more shared memory per thread.
LANE_BYTES = 120
# Values of float64 that a lane owns alone, at most. With 15 values, 14x1 needs 66 registers; 64 are what half of 2048
# threads have.
LANE_DOUBLES = 14
# Bytes of W and x that a lane with several pairs owns, at most. It owns several because a block with one 1x1 pair per
# lane takes more instructions than the memory time of its bytes allows (137 per warp of an H200).
LANE_PAIRS_BYTES = 64
# Bytes of W and x that a block stages, at most: static shared memory is limited to 48 KiB, and sums of dx take some.
UNIT_BYTES = 40 * 1024
STAGED_THREADS = 128  # threads of a block of the staged kernel, or as many as a unit has lanes
BLOCK_THREADS = 256  # threads of a block of the other kernels, and the most lanes of a unit
LONG_ROW_THREADS = 512  # threads of a block whose row needs more than BLOCK_THREADS
# Bytes of W that a thread has in flight, at most. With 768 threads per multiprocessor that is 48 KiB, about
# twice memory latency times bandwidth. A LONG_ROW_THREADS block has twice as much: only one of them is resident.
FLIGHT_BYTES = 64
# Threads that have a row to themselves, and bytes that each owns of it, at most. Fewer threads add in fewer steps, and
# compute s and g of more rows at once: 64x64 in float32 takes 1600 instructions of a warp with 8 threads, 2100 with 16,
# 3200 with 32. With 64 bytes each, 8 or 16 threads need 72 registers instead of 60.
TEAMS = ((8, 32), (16, 32), (WARP, FLIGHT_BYTES), (BLOCK_THREADS, FLIGHT_BYTES), (LONG_ROW_THREADS, 2 * FLIGHT_BYTES))
# Accesses to a row by a team of less than a warp, at most: each begins and ends within a sector of 32 bytes if the row
# does, and what it leaves of a sector moves again between L1 and L2.
SHORT_ACCESSES = 4
# Steps of AT_ONCE rows that a team does, at least. Each team reads x, and adds a step to the sum of dx.
TEAM_STEPS = 4
# Bytes of W that one block does alone, at most: eight trips to memory, 6 us. A second launch takes about half of that.
ALONE_BYTES = 128 * 1024
# Rows of a slice, at least: its sums are written and read once more, a seventh of what seven rows move. One pair of
# 1000x1000 has 143 slices: a block for each of an H100's 132 multiprocessors.
SLICE_ROWS = 7
# Rows of each team of a slice, at least. Done in turn, 8 teams of 4 rows take 16 % more instructions than without
# slices, of 2 rows 38 % (256x256 in float32, 128x512).
SLICE_TEAM_ROWS = 4
SLICE_BYTES = 28 * 1024  # of W, at least: seven rows of 1000 in float32
# Slices of a pair, at most: two blocks for each of 132 multiprocessors. More would make the slices' sums costly.
MAX_SLICES = 256
# Slices whose sums a thread of the kernel finish loads at once, and a block, at most: MAX_SLICES take two trips to
# memory, and sums of float64 32 KiB of shared memory.
FINISH_LOADS = 8
FINISH_CHUNK = 128
# Pairs from which on a block does all slices of its own: about two blocks for each of 132 multiprocessors. 256 pairs of
# 1000x1000 in float32 are then predicted at 0.94 of an H100's copy, and with a block for each slice at 0.75.
MANY_BLOCKS = 256
# Bytes of the workspace; a batch whose slices need more is launched in parts. A pair of the longest rows needs 17 MB.
WORKSPACE_BYTES = 32 << 20

REGISTERS = 65536  # of a multiprocessor, on every chip
# The registers that a thread may use, by kernel; most kernels need fewer.
# Units of one lane have no bound: the compilers use 32 for 3x3 in float32 by themselves, and 48 with a bound.
STAGED_REGISTERS = 128  # for 512 resident threads; 32x32 in float32 needs 112
HELD_BYTES = 160  # of W that a lane with STAGED_REGISTERS may hold
MOST_REGISTERS = 255  # for lanes that hold more: 2000x16 in float64 needs 154
ROWS_REGISTERS = 80  # for 768 resident threads
LONG_ROW_REGISTERS = 128  # for one block of LONG_ROW_THREADS
FINISH_REGISTERS = 64  # for 1024 resident threads


class Staged(NamedTuple):
    """A tile of units, each some contiguous rows of one pair, which one block carries through shared memory."""

    threads: int  # per block
    lanes: int  # per unit; a power of two
    lane_rows: int  # consecutive rows that a lane owns
    lane_pairs: int  # pairs that a lane owns, if it owns whole pairs: lane t those at t, t + threads, ... of its tile
    rows: int  # per unit: m, or those of a slice (the last slice of a pair may have fewer)
    slices: int  # units per pair
    registers: int | None  # that a thread may use; None leaves it to the compiler

    @property
    def block_units(self) -> int:
        """Units per block."""
        return self.threads // self.lanes * self.lane_pairs


class Rows(NamedTuple):
    """Rows straight from global memory: a pair has teams of threads, each with a row (or several at once) to itself."""

    threads: int  # per block
    row_threads: int  # per team: 8, 16, WARP, or all of the block
    teams: int  # per unit; a power of two. Team k does rows k * at_once + (0 .. at_once - 1), then skips the others'
    width: int  # neighbouring columns that a thread owns: 1, 2 or 4
    vectors: int  # of ``width`` columns that a thread has of a row, row_threads * width columns apart
    at_once: int  # rows whose loads are in flight before the first is used
    rows: int  # per unit: m, or those of a slice
    slices: int  # units per pair
    registers: int | None  # that a thread may use; None leaves it to the compiler
    in_turn: bool = False  # whether a unit is a pair that has slices, which it does one after the other

    @property
    def block_units(self) -> int:
        """Units per block."""
        return self.threads // (self.row_threads * self.teams)


class Long(NamedTuple):
    """One block per pair, for rows that the registers of a block do not hold."""

    threads: int  # per block
    slices: int = 1
    block_units: int = 1
    registers: int | None = None


Plan = Staged | Rows | Long


@cache
def make_plan(m: int, n: int, itemsize: int) -> Plan:
    """Which kernel does pairs of (m, n), and how."""
    if n * itemsize <= ROW_BYTES:
        return _staged(m, n, itemsize)
    for row_threads, most in TEAMS:
        width = _width(n, itemsize, row_threads)
        vectors = -(-n // (row_threads * width))
        if vectors * width * itemsize <= most and (row_threads >= WARP or vectors <= SHORT_ACCESSES):
            return _rows(m, n, itemsize, row_threads, width, vectors)
    return Long(BLOCK_THREADS)


def for_batch(p: Plan, B: int) -> Plan:
    """Who does the slices of B pairs: for few a block each, for many a block those of a pair, in the same order."""
    if isinstance(p, Rows) and p.slices > 1 and B >= MANY_BLOCKS:
        return p._replace(slices=1, in_turn=True)
    return p


def finish_chunk(slices: int) -> int:
    """Slices that a block of the kernel finish loads at once: FINISH_LOADS by each thread of a column."""
    return min(FINISH_CHUNK, _power_of_two_from(max(slices, FINISH_LOADS)))


def size_class(p: Plan) -> str:
    """The plan's class: "tiny", "group", "block", "split" or "long"."""
    if isinstance(p, Long):
        return "long"
    if p.slices > 1:
        return "split"
    lanes = p.lanes if isinstance(p, Staged) else p.row_threads * p.teams
    return "tiny" if lanes == 1 else "group" if lanes <= WARP else "block"


def _staged(m: int, n: int, itemsize: int) -> Staged:
    lanes = min(BLOCK_THREADS, _power_of_two_from(-(-(m + 1) * n // (LANE_BYTES // itemsize))))
    if itemsize == 8 and (m + 1) * n > LANE_DOUBLES:
        lanes = max(2, lanes)
    rows, slices = m, 1
    if (m + 1) * n * itemsize > UNIT_BYTES:
        # The rows that fit: a multiple of 4, so that every slice begins as well aligned as its pair.
        room = (UNIT_BYTES // (n * itemsize) - 1) // 4 * 4
        slices = -(-m // room)
        rows = -(-m // (4 * slices)) * 4
        slices = -(-m // rows)
    lane_pairs = max(1, _power_of_two_to(LANE_PAIRS_BYTES // ((m + 1) * n * itemsize)))
    lane_rows = -(-rows // lanes)
    registers = STAGED_REGISTERS if lane_rows * n * itemsize <= HELD_BYTES else MOST_REGISTERS
    threads = max(STAGED_THREADS, lanes)
    return Staged(threads, lanes, lane_rows, lane_pairs, rows, slices, registers if lanes > 1 else None)


def _width(n: int, itemsize: int, row_threads: int) -> int:
    """The widest vectors that a row consists of, if they leave no thread of a team within a warp without a column."""
    widths = (w for w in (WIDE_BYTES // itemsize, 2, 1) if n % w == 0 and (row_threads > WARP or n >= row_threads * w))
    return next(widths, 1)


def _rows(m: int, n: int, itemsize: int, row_threads: int, width: int, vectors: int) -> Rows:
    threads = max(BLOCK_THREADS, row_threads)
    flight = FLIGHT_BYTES * threads // BLOCK_THREADS
    at_once = min(4, _power_of_two_from(m), max(1, _power_of_two_to(flight // (vectors * width * itemsize))))
    rows, teams = m, threads // row_threads
    if m * n * itemsize > ALONE_BYTES:
        rows = max(SLICE_BYTES // (n * itemsize), SLICE_ROWS, -(-m // MAX_SLICES))
        if teams > 1:  # as many for each, and for each step of one
            step = teams * at_once
            rows = -(-max(rows, teams * SLICE_TEAM_ROWS) // step) * step
    else:
        teams = min(teams, _power_of_two_to(max(1, m // (at_once * TEAM_STEPS))))
    rows = min(m, rows)
    registers = ROWS_REGISTERS if threads == BLOCK_THREADS else LONG_ROW_REGISTERS
    return Rows(threads, row_threads, teams, width, vectors, at_once, rows, -(-m // rows), registers)


def _power_of_two_from(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _power_of_two_to(size: int) -> int:
    return 1 << (size.bit_length() - 1) if size else 0
