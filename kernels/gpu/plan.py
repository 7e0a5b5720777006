"""How the GPU kernels cut a batch into blocks, chosen from (m, n, itemsize) in this one place for both libraries.

*staged* and *rows* read W once; *long*, for rows that a block's registers cannot hold, reads it twice:

* *staged*, rows of up to 128 bytes: contiguous rows of W go through shared memory, a lane owns some rows or parts of
  rows;
* *rows*, longer rows: straight from global memory, a warp owns a row, or for very long rows a block does;
* *long*, n > 16384 in float32 or 8192 in float64: a block owns a pair and sums dx in place.

The size of a pair makes the classes *tiny* (one lane per pair), *group* (2 to 32 lanes per pair), *block* (up to one
block per pair), *split* (many blocks per pair: each does a slice of its rows and stores its loss and dx in a workspace;
one more kernel, *finish*, adds them in a fixed order) and *long*.

Nothing here depends on B or on the chip, so neither does the order of any sum: a pair's result has the same bits in
every batch. Figures: docs/performance.md.
"""

from functools import cache
from typing import NamedTuple

WARP = 32  # threads
# Bytes of the longest row that is staged: what a warp moves in one access of 4 bytes per lane. A longer row keeps a
# warp busy by itself.
ROW_BYTES = 128
# Bytes of the widest access there is. It needs a quarter of the instructions of 4-byte accesses.
WIDE_BYTES = 16
# Values of W and x that a lane owns in a tiny pair, at most: the compilers give it 64 registers or fewer, so that half
# of 2048 threads are resident. In float64, 14x1 (15 values) needs 66.
TINY_VALUES = {4: 30, 8: 14}  # by itemsize
# Bytes of W that a lane owns in a larger pair, at most. More leave fewer lanes idle where rows do not divide evenly
# (17x20 float32 with 128 bytes: two parts of rows in each of 32 lanes, 34 of 64, and 0.85 of the copy on an H200), and
# a value takes fewer instructions. Then numba.cuda's kernels need up to 109 registers (784x10 in float32).
LANE_BYTES = 160
# Bytes of the longest row that is not shared by lanes. A lane that owns 13 columns in float32 also has 13 of x and 13
# sums of dx in registers: 33x13 kept 41 KiB of reads in flight on a multiprocessor, with rows shared by four lanes 83.
WHOLE_ROW_BYTES = 48
# Bytes of W that each of the lanes that share a row owns in a pair, at least. With 16, 1x30 in float32 kept 45 KiB in
# flight.
SHARED_ROW_BYTES = 32
# Bytes of W and x that a lane with several pairs owns, at most. It owns several because a block with one 1x1 pair per
# lane takes more instructions than the memory time of its bytes allows (137 per warp of an H200).
LANE_PAIRS_BYTES = 64
# Bytes of W and x that a block stages, at most: static shared memory is limited to 48 KiB, and sums of dx take some.
UNIT_BYTES = 40 * 1024
STAGED_THREADS = 128  # threads of a block of the staged kernel, or as many as a unit has lanes, up to 352
BLOCK_THREADS = 256  # threads of a block of the other kernels
LONG_ROW_THREADS = 512  # threads of a block whose row needs more than BLOCK_THREADS
# Bytes of W that a thread has in flight, at most. With 768 threads per multiprocessor that is 48 KiB, about
# twice memory latency times bandwidth. A LONG_ROW_THREADS block has twice as much: only one of them is resident.
FLIGHT_BYTES = 64
# Rows that a team does, at least. A team reads x once, which is a twentieth of what ten rows move. The next team finds
# x in L1, but each team adds a step to the sum of dx.
TEAM_ROWS = 10
# Bytes of W that one block does alone, at most: one multiprocessor moves 30 to 100 GB/s, so that is about 10 us, as
# long as a launch takes.
SLICE_BYTES = 512 * 1024
# Slices of a pair, at most: two blocks for each of 132 multiprocessors. More would make the slices' sums costly.
MAX_SLICES = 256
# Bytes of the workspace; a batch whose slices need more is launched in parts. A pair of the longest rows needs 17 MB.
WORKSPACE_BYTES = 32 << 20

REGISTERS = 65536  # of a multiprocessor, on every chip
MOST_REGISTERS = 255  # of a thread, on every chip
# The registers that a thread may use, by kernel; most kernels need fewer.
# Tiny pairs have no bound: the compilers use 32 for 3x3 in float32 by themselves, and 48 with a bound.
STAGED_REGISTERS = 128  # for 512 resident threads
ROWS_REGISTERS = 80  # for 768 resident threads
LONG_ROW_REGISTERS = 128  # for one block of LONG_ROW_THREADS
FINISH_REGISTERS = 64  # for 1024 resident threads; numba.cuda's kernel has 80 without a bound


class Staged(NamedTuple):
    """A tile of units, each some contiguous rows of one pair, which one block carries through shared memory."""

    threads: int  # per block
    lanes: int  # per unit: a power of two up to WARP, or whole warps
    row_lanes: int  # that share a row; a power of two
    columns: int  # neighbouring columns that each of them owns; the last ones may have fewer, or none
    lane_rows: int  # rows that a lane owns, or has columns of
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
    row_threads: int  # per team: WARP, or all of the block
    teams: int  # per unit; a power of two. Team k does rows k * at_once + (0 .. at_once - 1), then skips the others'
    width: int  # neighbouring columns that a thread owns: 1, 2 or 4
    vectors: int  # of ``width`` columns that a thread has of a row, row_threads * width columns apart
    at_once: int  # rows whose loads are in flight before the first is used
    rows: int  # per unit: m, or those of a slice
    slices: int  # units per pair
    registers: int | None  # that a thread may use; None leaves it to the compiler

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
    for row_threads, flight in (
        (WARP, FLIGHT_BYTES),
        (BLOCK_THREADS, FLIGHT_BYTES),
        (LONG_ROW_THREADS, 2 * FLIGHT_BYTES),
    ):
        if n * itemsize <= row_threads * flight:
            return _rows(m, n, itemsize, row_threads, flight)
    return Long(BLOCK_THREADS)


def size_class(p: Plan) -> str:
    """The plan's class: "tiny", "group", "block", "split" or "long"."""
    if isinstance(p, Long):
        return "long"
    if p.slices > 1:
        return "split"
    lanes = p.lanes if isinstance(p, Staged) else p.row_threads * p.teams
    return "tiny" if lanes == 1 else "group" if lanes <= WARP else "block"


def _staged(m: int, n: int, itemsize: int) -> Staged:
    rows, slices = m, 1
    if (m + 1) * n * itemsize > UNIT_BYTES:
        # The rows that fit: a multiple of 4, so that every slice begins as well aligned as its pair.
        room = (UNIT_BYTES // (n * itemsize) - 1) // 4 * 4
        slices = -(-m // room)
        rows = -(-m // (4 * slices)) * 4
        slices = -(-m // rows)
    if (m + 1) * n <= TINY_VALUES[itemsize]:
        pairs = max(1, _power_of_two_to(LANE_PAIRS_BYTES // ((m + 1) * n * itemsize)))
        return Staged(STAGED_THREADS, 1, 1, n, m, pairs, m, 1, None)
    row_lanes, columns = _share_row(m, n, itemsize)
    parts = rows * row_lanes
    # Eight accesses of 16 bytes that belong to one unit have no bank conflicts.
    least = min(parts, 2) if row_lanes == 1 else max(row_lanes, min(8, _power_of_two_to(parts // 2)))
    lanes = max(least, -(-parts // (LANE_BYTES // (columns * itemsize))))
    lanes = _power_of_two_from(lanes) if lanes <= WARP else -(-lanes // WARP) * WARP
    threads = max(1, STAGED_THREADS // lanes) * lanes
    # The warps of two blocks or of 512 threads are dealt out to four parts of a multiprocessor, each with a quarter of
    # its registers; a thread gets a multiple of 8.
    warps = -(-max(2, 512 // threads) * threads // (4 * WARP))
    registers = min(STAGED_REGISTERS, REGISTERS // (4 * WARP * warps) // 8 * 8)
    return Staged(threads, lanes, row_lanes, columns, -(-parts // lanes), 1, rows, slices, registers)


def _share_row(m: int, n: int, itemsize: int) -> tuple[int, int]:
    """How many lanes share a row, and the columns of each: as many lanes as have 16 bytes and are rarely idle."""
    grain = min(n & -n, WIDE_BYTES // itemsize)  # what moves in one access divides a lane's columns
    most = m * n * itemsize // SHARED_ROW_BYTES if n * itemsize > WHOLE_ROW_BYTES else 1
    for lanes in (8, 4, 2):
        columns = -(-n // (grain * lanes)) * grain
        # 25 columns in 8 lanes of 4 have room for 32, 1.28 times as many.
        if lanes <= most and columns * itemsize >= WIDE_BYTES and 10 * lanes * columns <= 13 * n:
            return lanes, columns
    return 1, n


def _rows(m: int, n: int, itemsize: int, row_threads: int, flight: int) -> Rows:
    # The widest vectors that a row consists of, if they leave no thread of the team without a column.
    widths = (w for w in (WIDE_BYTES // itemsize, 2, 1) if n % w == 0 and (row_threads > WARP or n >= row_threads * w))
    width = next(widths, 1)
    vectors = -(-n // (row_threads * width))
    at_once = min(4, max(1, _power_of_two_to(flight // (vectors * width * itemsize))))
    slices = min(MAX_SLICES, -(-m * n * itemsize // SLICE_BYTES))
    rows = -(-m // slices)
    slices = -(-m // rows)
    threads = max(BLOCK_THREADS, row_threads)
    teams = min(threads // row_threads, _power_of_two_to(max(1, rows // max(at_once, TEAM_ROWS))))
    registers = ROWS_REGISTERS if threads == BLOCK_THREADS else LONG_ROW_REGISTERS
    return Rows(threads, row_threads, teams, width, vectors, at_once, rows, slices, registers)


def _power_of_two_from(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _power_of_two_to(size: int) -> int:
    return 1 << (size.bit_length() - 1) if size else 0
