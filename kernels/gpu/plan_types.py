"""What a plan is: for each GPU kernel a class of the numbers that it gets. plan.py chooses them."""

from typing import NamedTuple


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
    row_threads: int  # per team: 8, 16, WARP, or all of the block
    teams: int  # per unit; a power of two. Team k does rows k * at_once + (0 .. at_once - 1), then skips the others'
    width: int  # neighbouring columns that a thread owns: 1, 2 or 4
    vectors: int  # of ``width`` columns that a thread has of a row, row_threads * width columns apart
    at_once: int  # rows whose loads are in flight before the first is used
    rows: int  # per slice: m, where a pair is not cut
    slices: int  # units per pair
    group: int  # slices that are added before their sums are added to the pair's
    registers: int  # that a thread may use
    in_turn: bool = False  # whether a unit is a group of slices, not a slice

    @property
    def block_units(self) -> int:
        """Units per block."""
        return self.threads // (self.row_threads * self.teams)


class Long(NamedTuple):
    """Rows that fill the registers of a block, with the part of dx that has no room there in shared memory."""

    threads: int  # per block; all of them own a row
    width: int  # neighbouring columns that a thread owns: 1, 2 or 4
    vectors: int  # of ``width`` columns that a thread has of a row, threads * width columns apart
    shared: int  # of these, whose dx is in shared memory
    rows: int  # per unit: m, or those of a slice
    slices: int  # units per pair
    registers: int  # that a thread may use

    @property
    def block_units(self) -> int:
        """Units per block."""
        return 1


class Columns(NamedTuple):
    """Slices of columns, for rows that no block can hold: one kernel computes q, another the gradients."""

    threads: int  # per block
    width: int  # neighbouring columns that a thread owns: 1, 2 or 4
    vectors: int  # of ``width`` columns that a thread has of a slice of the gradients, threads * width columns apart
    at_once: int  # rows of which a block computes q
    q_columns: int  # of a slice of q
    q_slices: int  # of a row, at most WARP
    rows: int  # per unit: m, or those of a slice
    slices: int  # units per pair
    registers: int  # that a thread may use

    @property
    def columns(self) -> int:
        """Columns of a slice of the gradients."""
        return self.threads * self.width * self.vectors

    @property
    def block_units(self) -> int:
        """Units per block."""
        return 1


Plan = Staged | Rows | Long | Columns


class SharedTiny(NamedTuple):
    """One W for all pairs: a thread owns whole pairs, and sums of all of dW in registers."""

    threads: int  # per block
    pairs: int  # of a tile that a thread owns; thread t those at t, t + threads, ...
    run: int  # tiles whose terms of dW a thread adds up before they are added over the lanes of a warp

    @property
    def tile(self) -> int:
        """Pairs of a tile."""
        return self.threads * self.pairs


class Product(NamedTuple):
    """How a block does a tile of a product of matrices, A x B elements, each of which is a sum over k."""

    threads_a: int  # that share the tile's A
    threads_b: int  # that share its B
    groups_a: int  # of 16 bytes of neighbours along A that a thread owns
    groups_b: int  # the same along B
    step: int  # terms of the sums that are in shared memory at a time
    registers: int  # that a thread may use

    @property
    def threads(self) -> int:
        """Per block."""
        return self.threads_a * self.threads_b

    def a(self, itemsize: int) -> int:
        """Elements of A."""
        return self.threads_a * self.groups_a * (16 // itemsize)

    def b(self, itemsize: int) -> int:
        """Elements of B."""
        return self.threads_b * self.groups_b * (16 // itemsize)


class SharedBlocks(NamedTuple):
    """One W for all pairs: products of matrices, tile by tile."""

    q: Product  # pairs x rows, summed over columns
    dx: Product  # pairs x columns, summed over rows
    dW: Product  # rows x columns, summed over pairs


SharedPlan = SharedTiny | SharedBlocks


class BatchLast(NamedTuple):
    """Arrays whose last axis is that of the pairs: a thread owns a pair."""

    threads: int  # per block
    rows: int  # whose loads are in flight before the first is used
    even: bool  # whether m is a multiple of ``rows``
