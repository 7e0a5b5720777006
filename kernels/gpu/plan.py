"""How the GPU kernels cut a batch into blocks, chosen from (m, n, itemsize) in this one place for both libraries.

Each kernel reads W once, but the last two, of columns, both read it:

* *staged*, rows of up to 128 bytes: contiguous rows of W go through shared memory, a lane owns some rows or parts of
  rows;
* *rows*, longer rows: straight from global memory, 8 threads to a block own a row;
* *long*, rows of more than 64 KiB: they fill the registers of a block that has a multiprocessor to itself;
* *columns*, rows of more than 96 KiB: two kernels cut a pair into slices of columns, so both read W.

The size of a pair makes the classes *tiny* (one lane per pair), *group* (2 to 32 lanes per pair), *block* (up to one
block per pair), *split* (a pair is cut into slices of rows), *long* and *columns*. Few pairs have a block for each
slice, which stores its loss and dx in a workspace; one more kernel, *finish*, adds them. The rows kernel adds slices in
groups: many pairs have a block for each group, which does its slices in turn. The order of the sums is the same.

Nothing else depends on B, and nothing on the chip, so neither does the order of any sum: a pair's result has the same
bits in every batch. Figures: docs/performance.md.
"""

from functools import cache

from sigmoid_l2.kernels import Given, Wanted
from sigmoid_l2.kernels.gpu.plan_types import Columns, Long, Plan, Rows, Staged

# --- all kernels -----------------------------------------------------------------------------------------------------

WARP = 32  # threads
SHARED_BYTES = 48 * 1024  # that a block may declare, on every chip
REGISTERS = 65536  # of a multiprocessor, on every chip
BLOCKS = 16  # that a multiprocessor of every chip from sm_75 on can hold
# Bytes of the widest access there is. It needs a quarter of the instructions of 4-byte accesses.
WIDE_BYTES = 16
BLOCK_THREADS = 256  # threads of a block of rows, at least, and of columns
# Slices of a pair, at most: two blocks for each of 132 multiprocessors. More would make the slices' sums costly.
MAX_SLICES = 256
# Rows that a slice of a pair has, at least, where a row has more than 16 KiB. It writes 2 n values beside the 64 n of W
# and dW, and finish reads n: 5 % more.
LONG_SLICE_ROWS = 32


def _power_of_two_from(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _power_of_two_to(size: int) -> int:
    return 1 << (size.bit_length() - 1) if size else 0


# --- staged ----------------------------------------------------------------------------------------------------------

# Bytes of the longest row that is staged: what a warp moves in one access of 4 bytes per lane. A longer row keeps a
# warp busy by itself.
ROW_BYTES = 128
# Bytes of W and x that a block stages, at most: static shared memory is limited to 48 KiB, and sums of dx take some.
UNIT_BYTES = 40 * 1024
STAGED_THREADS = 128  # threads of a block, or as many as a unit has lanes, up to 352
# Registers that a thread may use, for 512 resident threads. Tiny pairs have no bound: the compilers use 32 for 3x3 in
# float32 by themselves, and 48 with a bound.
STAGED_REGISTERS = 128
# Values of W and x, and of W, x and q, that a lane owns in a tiny pair, at most: the compilers give it 64 registers or
# fewer, so that half of 2048 threads are resident. 14x2 in float32 needs 66, 10x1 in float64 68.
TINY_VALUES = {4: (30, 41), 8: (14, 17)}  # by itemsize
# Bytes of W and x that a lane with several pairs owns, at most. It owns several because a block with one 1x1 pair per
# lane takes more instructions than the memory time of its bytes allows (137 per warp of an H200).
LANE_PAIRS_BYTES = 64
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


def _staged(m: int, n: int, itemsize: int) -> Staged:
    rows, slices = m, 1
    if (m + 1) * n * itemsize > UNIT_BYTES:
        # The rows that fit: a multiple of 4, so that every slice begins as well aligned as its pair.
        room = (UNIT_BYTES // (n * itemsize) - 1) // 4 * 4
        slices = -(-m // room)
        rows = -(-m // (4 * slices)) * 4
        slices = -(-m // rows)
    W_and_x, with_q = TINY_VALUES[itemsize]
    if (m + 1) * n <= W_and_x and (m + 1) * n + m <= with_q:
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


# --- rows ------------------------------------------------------------------------------------------------------------

LONG_ROW_THREADS = 512  # threads of a block whose row needs more than BLOCK_THREADS
# Registers that a thread may use: for 768 resident threads, and for one block of LONG_ROW_THREADS.
ROWS_REGISTERS = 80
LONG_ROW_REGISTERS = 128
# The same where a thread with FLIGHT_BYTES of a row does slices in turn, for 512 resident threads: with ROWS_REGISTERS
# 80x512 in float32 spills 8 bytes on sm_120.
IN_TURN_REGISTERS = 88
# The same where such a thread has a target, a cotangent or dq, as many resident: with 80, 9x4096 in float32 spills 8
# bytes on sm_100 and sm_120; with 88, in turn, so does 80x256 in float64 on sm_100.
GIVEN_REGISTERS = 96
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
SLICE_BYTES = 28 * 1024  # of W, at least: seven rows of 1000 in float32
# Rows of each team of a slice, at least. Done in turn, 8 teams of 4 rows take 16 % more instructions than without
# slices, of 2 rows 38 % (256x256 in float32, 128x512).
SLICE_TEAM_ROWS = 4
# Rows of a group of slices, about: a block that does them in turn writes their sums once, 1/128 of what it moves. A
# pair of up to twice as many is one group.
GROUP_ROWS = 128
# Blocks from which on one does a group of slices in turn: about two for each of 132 multiprocessors.
MANY_BLOCKS = 256


def _rows(m: int, n: int, itemsize: int) -> Rows | None:
    """The smallest teams that can hold a row; None if none can."""
    for row_threads, most in TEAMS:
        width = _width(n, itemsize, row_threads)
        vectors = -(-n // (row_threads * width))
        if vectors * width * itemsize <= most and (row_threads >= WARP or vectors <= SHORT_ACCESSES):
            return _rows_of_teams(m, n, itemsize, row_threads, width, vectors)
    return None


def rows_registers(p: Rows, itemsize: int, given: Given, wanted: Wanted) -> int:
    """Registers that a thread may use."""
    if p.width * p.vectors * itemsize < FLIGHT_BYTES or p.threads > BLOCK_THREADS:
        return p.registers
    return GIVEN_REGISTERS if any(given) or wanted.dq else IN_TURN_REGISTERS if p.in_turn else p.registers


def _width(n: int, itemsize: int, row_threads: int) -> int:
    """The widest vectors that a row consists of, if they leave no thread of a team within a warp without a column."""
    widths = (w for w in (WIDE_BYTES // itemsize, 2, 1) if n % w == 0 and (row_threads > WARP or n >= row_threads * w))
    return next(widths, 1)


def _rows_of_teams(m: int, n: int, itemsize: int, row_threads: int, width: int, vectors: int) -> Rows:
    threads = max(BLOCK_THREADS, row_threads)
    flight = FLIGHT_BYTES * threads // BLOCK_THREADS
    at_once = min(4, _power_of_two_from(m), max(1, _power_of_two_to(flight // (vectors * width * itemsize))))
    rows, teams = m, threads // row_threads
    if m * n * itemsize > ALONE_BYTES:
        rows = max(SLICE_BYTES // (n * itemsize), SLICE_ROWS, -(-m // MAX_SLICES))
        if threads > BLOCK_THREADS:
            rows = max(rows, LONG_SLICE_ROWS)
        if teams > 1:  # as many for each, and for each step of one
            step = teams * at_once
            rows = -(-max(rows, teams * SLICE_TEAM_ROWS) // step) * step
    else:
        teams = min(teams, _power_of_two_to(max(1, m // (at_once * TEAM_STEPS))))
    rows = min(m, rows)
    slices = -(-m // rows)
    group = slices if m <= 2 * GROUP_ROWS else -(-GROUP_ROWS // rows)
    if threads > BLOCK_THREADS:
        group = 1  # not in turn: in float64 the registers are not enough for that on sm_100
    registers = ROWS_REGISTERS if threads == BLOCK_THREADS else LONG_ROW_REGISTERS
    return Rows(threads, row_threads, teams, width, vectors, at_once, rows, slices, group, registers)


# --- long ------------------------------------------------------------------------------------------------------------

# Its blocks have LONG_ROW_THREADS threads of LONG_ROW_REGISTERS registers.
# Bytes of the longest row that one block does: 96 KiB. A thread then holds 48 values of W and 28 of dx, and the
# compilers find room for them in LONG_ROW_REGISTERS; with 50 and 30, numba.cuda's kernel spills 16 bytes on sm_120.
LONG_BYTES = 24 * 4096
# Bytes of an access for these rows, at most. With 16 bytes, which take four neighbouring registers that begin on a
# multiple of four, both compilers spill 8 to 24 bytes. At 128 bytes a cycle for any access of a whole warp, W, x and dW
# take the level 1 cache a fifth of the time that W and dW take an H200's memory.
LONG_WIDE_BYTES = 8
# Bytes of dx that such a block keeps in shared memory instead of registers: 20 values a thread of the 48 KiB that a
# block may declare. Without them the longest row would have 76 KiB.
LONG_SHARED_BYTES = 40 * 1024


def _long(m: int, n: int, itemsize: int) -> Long:
    width = LONG_WIDE_BYTES // itemsize if n % 2 == 0 else 1
    vectors, shared = -(-n // (LONG_ROW_THREADS * width)), LONG_SHARED_BYTES // (LONG_ROW_THREADS * width * itemsize)
    rows = -(-m // min(MAX_SLICES, max(1, m // LONG_SLICE_ROWS)))
    return Long(LONG_ROW_THREADS, width, vectors, shared, rows, -(-m // rows), LONG_ROW_REGISTERS)


# --- columns ---------------------------------------------------------------------------------------------------------

# Registers that a thread may use, for 1024 resident threads; and for 768, where vectors move element by element: with
# 64 registers 4x30000 in float32 spills 8 bytes on sm_100 and sm_120. With a
# cotangent, as many resident: with 64 it spills 8 bytes on sm_75, with 72 on sm_120.
COLUMNS_REGISTERS = 64
NARROW_COLUMNS_REGISTERS = 72
COTANGENT_COLUMNS_REGISTERS = 80
# Bytes of a row that a thread has in a slice of columns: 48 KiB in flight in four blocks of a multiprocessor. Where
# rows are no whole vectors it is two thirds: more conditions leave fewer registers.
COLUMNS_BYTES = 48
# Values of a pair's parts of q, at most (or one a row): half of the workspace in float64.
Q_PARTS = 1 << 21


def _columns(m: int, n: int, itemsize: int) -> Columns:
    width = _width(n, itemsize, BLOCK_THREADS)
    vectors = (COLUMNS_BYTES if width * itemsize == WIDE_BYTES else COLUMNS_BYTES * 2 // 3) // (width * itemsize)
    columns = BLOCK_THREADS * vectors * width
    q_slices = max(1, min(WARP, n // (2 * columns), Q_PARTS // m))
    q_columns = -(-n // (q_slices * columns)) * columns
    rows = -(-m // max(1, min(MAX_SLICES * columns // n, m // LONG_SLICE_ROWS)))
    at_once = min(4, _power_of_two_to(m))
    sizes = q_columns, -(-n // q_columns), rows, -(-m // rows)
    return Columns(BLOCK_THREADS, width, vectors, at_once, *sizes, COLUMNS_REGISTERS)


def columns_registers(p: Columns, wide: bool, given: Given) -> int:
    """Registers that a thread may use."""
    if given.cotangent:
        return COTANGENT_COLUMNS_REGISTERS
    return p.registers if wide else NARROW_COLUMNS_REGISTERS


# --- finish ----------------------------------------------------------------------------------------------------------

FINISH_REGISTERS = 64  # registers that a thread may use, for 1024 resident threads
# Slices whose sums a thread loads at once, and a block, at most: MAX_SLICES take two trips to memory, and sums of
# float64 32 KiB of shared memory.
FINISH_LOADS = 8
FINISH_CHUNK = 128
# Bytes of the workspace; a batch whose slices need more is launched in parts. A pair of long rows needs up to 25 MB. A
# pair of short rows may need more, and gets it.
WORKSPACE_BYTES = 32 << 20


def finish_chunk(slices: int) -> int:
    """Slices that a block loads at once: FINISH_LOADS by each thread of a column."""
    return min(FINISH_CHUNK, _power_of_two_from(max(slices, FINISH_LOADS)))


# --- the plan of a pair ----------------------------------------------------------------------------------------------


@cache
def make_plan(m: int, n: int, itemsize: int) -> Plan:
    """Which kernel does pairs of (m, n), and how."""
    if n * itemsize <= ROW_BYTES:
        return _staged(m, n, itemsize)
    if n * itemsize <= LONG_BYTES:
        return _rows(m, n, itemsize) or _long(m, n, itemsize)
    return _columns(m, n, itemsize)


def for_batch(p: Plan, B: int) -> Plan:
    """Who does the slices of B pairs: for few pairs a block each, for many a block a group of slices, in turn.

    The sums of a slice are the same either way, and so is the order in which they are added.
    """
    if isinstance(p, Rows) and p.slices > 1 and p.group > 1:
        groups = -(-p.slices // p.group)
        if B * groups >= MANY_BLOCKS:
            return p._replace(slices=groups, in_turn=True)
    return p


def size_class(p: Plan) -> str:
    """The plan's class: "tiny", "group", "block", "split", "long" or "columns"."""
    if isinstance(p, Columns):
        return "columns"
    if p.slices > 1:
        return "split"
    if isinstance(p, Long):
        return "long"
    lanes = p.lanes if isinstance(p, Staged) else p.row_threads * p.teams
    return "tiny" if lanes == 1 else "group" if lanes <= WARP else "block"
