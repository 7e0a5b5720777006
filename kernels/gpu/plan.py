"""How the GPU kernels cut a batch into blocks, chosen from (m, n, itemsize) in this one place for both of them.

Each of three kernels goes through W once, as far as a row fits into a block's registers:

* *staged*, rows of up to 128 bytes: contiguous rows of W go through shared memory, a lane owns consecutive rows;
* *rows*, longer rows: straight from global memory, a warp, or for very long rows a block, owns a row;
* *long*, n > 16384 in float32 or 8192 in float64: a block owns a pair, reads W twice and sums dx in place.

By the size of a pair that makes the classes *tiny* (a lane a pair), *group* (2 to 32 lanes a pair), *block* (up to a
block a pair), *split* (many blocks a pair: each does a slice of its rows and leaves partial sums in a workspace, which
one more kernel, *finish*, adds in a fixed order) and *long*.

Nothing here depends on B or on the chip, so neither does the order of any sum: a pair's result has the same bits in
every batch. Figures: docs/performance.md.
"""

from functools import cache
from typing import NamedTuple

WARP = 32  # lanes
# What the lanes of a warp move in one access of 4 bytes each. A row as long as this keeps a warp busy by itself.
ROW_BYTES = 128
# A 16-byte access is the widest there is; it quarters the number of instructions for the same bytes.
WIDE_BYTES = 16
# Of W and x that a lane owns in shared memory, at most. 128 threads own 15 KiB: with the 1 KiB that a block costs, six
# blocks fit into the 100 KiB of sm_86 and sm_89 (half of their 1536 threads), four into the 64 KiB of sm_75 (half of
# 1024). Every other chip from sm_75 on has more a thread.
LANE_BYTES = 120
# Values of float64 that a lane owns alone, at most: with 15, 14x1 needs 66 registers, and half of 2048 threads have 64.
LANE_DOUBLES = 14
STAGED_THREADS = 128
# The same where a lane owns several pairs, because one of 1x1 has fewer instructions' worth of memory time (137 a warp
# of an H200) than its own block needs.
LANE_PAIRS_BYTES = 64
# Of W and x that a block stages, at most: static shared memory is limited to 48 KiB, and dx needs some for its sums.
UNIT_BYTES = 40 * 1024
BLOCK_THREADS = 256
LONG_ROW_THREADS = 512  # for the longest rows: 128 registers a thread, on every chip
# Of W that a thread has in flight: 768 threads a multiprocessor make 48 KiB, about twice what latency times bandwidth
# asks for. Rows of the longest kind have twice as much, because one block of them fills a multiprocessor.
FLIGHT_BYTES = 64
# Rows that a team should do at least: it reads x once, a twentieth of what these move. The next team finds x in L1, but
# each also costs a step of adding up dx.
TEAM_ROWS = 10
# Of W that one block should do alone: at the 30 to 100 GB/s of one multiprocessor, 10 us, as long as a launch takes.
SLICE_BYTES = 512 * 1024
# Slices of a pair: two blocks for each of 132 multiprocessors. More would make the partial sums of dx costly.
MAX_SLICES = 256
# Partial sums that exist at a time; a batch that needs more is launched in parts. The longest rows need 17 MB a pair.
WORKSPACE_BYTES = 32 << 20


class Staged(NamedTuple):
    """A tile of units, each some contiguous rows of one pair, carried through shared memory by one block."""

    threads: int  # a block
    lanes: int  # a unit; a power of two
    lane_rows: int  # consecutive rows that a lane owns
    rows: int  # a unit: m, or those of a slice (the last slice of a pair may have fewer)
    slices: int  # units a pair

    @property
    def units(self) -> int:
        """Units a block."""
        return self.threads // self.lanes


class Rows(NamedTuple):
    """Rows straight from global memory: teams of threads a pair, each with a row (or several at once) to itself."""

    threads: int  # a block
    row_threads: int  # a team: WARP, or all of the block
    teams: int  # a unit; a power of two. Team k does the rows k * at_once + (0 .. at_once - 1), then skips the others'
    vector: int  # neighbouring columns that a thread owns: 1, 2 or 4
    vectors: int  # of them a thread has in a row, row_threads * vector columns apart
    at_once: int  # rows whose loads are in flight before the first is used
    rows: int  # a unit: m, or those of a slice
    slices: int  # units a pair

    @property
    def units(self) -> int:
        """Units a block."""
        return self.threads // (self.row_threads * self.teams)


class Long(NamedTuple):
    """A block a pair, for rows that the registers of a block do not hold."""

    threads: int  # a block
    slices: int = 1
    units: int = 1


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


def lane_pairs(m: int, n: int, itemsize: int) -> int:
    """Pairs that a lane of the tiny class owns: lane t of each block those at t, t + threads, ... of its tile."""
    return max(1, _power_of_two_to(LANE_PAIRS_BYTES // ((m + 1) * n * itemsize)))


def size_class(p: Plan) -> str:
    """The plan's name in the table above: "tiny", "group", "block", "split" or "long"."""
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
        # A multiple of 4, so that every slice begins as well aligned as its pair.
        room = (UNIT_BYTES // (n * itemsize) - 1) // 4 * 4
        slices = -(-m // room)
        rows = -(-m // (4 * slices)) * 4
        slices = -(-m // rows)
    return Staged(max(STAGED_THREADS, lanes), lanes, -(-rows // lanes), rows, slices)


def _rows(m: int, n: int, itemsize: int, row_threads: int, flight: int) -> Rows:
    # The widest that a row consists of, if that leaves no thread of the team without a column.
    widths = (w for w in (WIDE_BYTES // itemsize, 2, 1) if n % w == 0 and (row_threads > WARP or n >= row_threads * w))
    vector = next(widths, 1)
    vectors = -(-n // (row_threads * vector))
    at_once = min(4, max(1, _power_of_two_to(flight // (vectors * vector * itemsize))))
    slices = min(MAX_SLICES, -(-m * n * itemsize // SLICE_BYTES))
    rows = -(-m // slices)
    slices = -(-m // rows)
    threads = max(BLOCK_THREADS, row_threads)
    teams = min(threads // row_threads, _power_of_two_to(max(1, rows // max(at_once, TEAM_ROWS))))
    return Rows(threads, row_threads, teams, vector, vectors, at_once, rows, slices)


def _power_of_two_from(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _power_of_two_to(size: int) -> int:
    return 1 << (size.bit_length() - 1) if size else 0
