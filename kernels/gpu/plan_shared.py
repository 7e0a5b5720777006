"""How the GPU kernels for one W cut a batch into blocks, from the shapes and the itemsize alone.

*tiny*: a thread has whole pairs, and sums of all of dW in its registers. Each block leaves one part of dW, and a second
launch, *sums*, adds the parts.

*blocks*: three products of matrices, for g, dx and dW, tile by tile. The batch goes through in parts whose g fits the
workspace. Each part is cut into slices, a block's sum of dW is one over the same slice of all parts, and *sums* adds
those of the slices.

The order of the sums of dW depends on (B, m, n, itemsize); a pair's loss, dx and dq depend on the pair alone.
"""

from functools import cache

from sigmoid_l2.kernels.gpu.plan import REGISTERS, WORKSPACE_BYTES
from sigmoid_l2.kernels.gpu.plan_types import Product, SharedBlocks, SharedPlan, SharedTiny

SUMS_THREADS = 256  # of a block that adds up parts
SUMS_COLUMNS = 32  # values of a block that adds up the sums of slices


@cache
def make_plan(m: int, n: int, itemsize: int) -> SharedPlan | None:
    """Which kernel does pairs that all have one W (m, n), and how; None where there is no kernel for it."""
    return _tiny(m, n, itemsize) or _blocks(m, n, itemsize)


# --- tiny ------------------------------------------------------------------------------------------------------------

TINY_THREADS = 128  # threads of a block, and elements of W at most
# Values in registers of a thread, at most, by itemsize: of dW, and of dW, x and dx. Then nothing is spilled: with a
# target, a cotangent and dq numba.cuda's kernels need up to 255 registers (18x2 in float64).
TINY_VALUES = {4: (100, 128), 8: (36, 64)}
# Pairs of a tile that a thread has, at most, and bytes of x that it loads at once: 48 for 3x3 in float32, which keeps
# 54 KiB in flight on a multiprocessor.
TINY_PAIRS, TINY_PAIRS_BYTES = 4, 96
TINY_TILE_BYTES = 40 * 1024  # bytes of x, a target and a cotangent that a block stages, at most; sums take some more
# Pairs whose terms of dW a thread adds one after the other, at most, before the sums over lanes. So a term is rounded
# in 7 additions, in 5 over the lanes, and once at the end of a block and of all: 14, where 2 (ceil(log2 B) + 1) are
# allowed. In a batch of up to 128 pairs a thread has one, and the term is rounded 7 times less often.
TINY_RUN = 8
# Blocks, at most, unless one would have more than MOST_TERMS runs: a launch adds up their parts of dW, in a 400th of
# the time of 10^8 pairs of 3x3, by the prediction for an H100.
TINY_BLOCKS = 4096
# Sums that are added with their errors, at most. k additions leave an error of (k eps/2)^2 of the sum of the sizes.
MOST_TERMS = 1 << 12


def _tiny(m: int, n: int, itemsize: int) -> SharedTiny | None:
    of_dW, of_all = TINY_VALUES[itemsize]
    room = TINY_TILE_BYTES // ((m + n + 1) * itemsize * TINY_THREADS)  # pairs of a thread
    if m * n > of_dW or m * n + 2 * n > of_all or room == 0:
        return None
    pairs = max(1, min(TINY_PAIRS, TINY_PAIRS_BYTES // (n * itemsize), room))
    pairs = 1 << (pairs.bit_length() - 1)
    return SharedTiny(TINY_THREADS, pairs, TINY_RUN // pairs)


def tiles_of_block(p: SharedTiny, B: int) -> int:
    """How many tiles a block does."""
    tiles = -(-B // p.tile)
    return min(-(-tiles // TINY_BLOCKS), MOST_TERMS * p.run)


# --- blocks ----------------------------------------------------------------------------------------------------------

# Threads of a tile along each side, and groups of 16 bytes that each owns, at most: 8 x 8 elements in float32, which
# take 4 loads from shared memory for 64 multiply-adds. More have no room in 128 registers.
MOST_THREADS, MOST_GROUPS = 16, 2
# The same along the rows of dW, of which a thread owns 8 x 4 elements, with two more values each.
DW_THREADS = 8
# Groups of a side of which a thread has one, at most: W is small then, and memory the limit.
FEW_GROUPS = 4
PAIRS = 128  # of a tile of q or dx in float32, and a multiple of those in float64
# Registers that a thread may use: of a block of 256 threads for 512 resident ones, of smaller blocks for 384.
BLOCKS_REGISTERS, SMALL_BLOCKS_REGISTERS = 128, 168
# The same of parts of dW in float64, of one row, or that move element by element, for 256 resident ones: with 168 tiles
# of 64x64 that do spill 8 bytes on sm_90 in float32, with 200 those of 16x128 in float64 16 bytes on sm_100.
NARROW_PARTS_REGISTERS = 248
# Terms in shared memory at a time. Two lanes load 32 bytes of a line, so 8 is the least in float32.
STEP = 8
# The same of q of few rows, by their threads: 4 have 16 KiB in flight in a block.
FEW_ROWS_STEPS = {1: 8, 2: 16, 4: 32}
# The same of dW in float32, where the batch is not small: half as many barriers. And of one row in float64, of which a
# thread has much of x in flight.
DW_STEP, ONE_ROW_STEP = 16, 4
CHIP = 132  # multiprocessors that are to have work
SLICE_PAIRS = 256  # of a slice, at least: its sums are 2 m n values
MOST_SLICES = 256


def _side(extent: int, itemsize: int, most: int) -> tuple[int, int]:
    """Threads along a side of a tile, a power of two, and groups that each owns."""
    groups = -(-extent * itemsize // 16)
    of_thread = 1 if groups <= FEW_GROUPS else MOST_GROUPS
    return min(most, 1 << (-(-groups // of_thread) - 1).bit_length()), of_thread


def _of_pairs(extent: int, itemsize: int, steps: dict[int, int], terms: int) -> Product:
    """The product of tiles of PAIRS, or half as many, and a side of ``extent``."""
    threads, groups = _side(extent, itemsize, MOST_THREADS)
    if groups > 1:
        registers = BLOCKS_REGISTERS if threads == MOST_THREADS else SMALL_BLOCKS_REGISTERS
        return Product(MOST_THREADS, threads, groups, groups, STEP, registers)
    step = min(steps.get(threads, STEP), max(STEP, 1 << (terms - 1).bit_length()))
    return Product(2 * MOST_THREADS, threads, groups, groups, step, SMALL_BLOCKS_REGISTERS)


def _blocks(m: int, n: int, itemsize: int) -> SharedBlocks | None:
    if max(2 * m * n, PAIRS * m) * itemsize > WORKSPACE_BYTES:  # sums of dW, and g of a tile
        return None
    rows, groups = _side(m, itemsize, DW_THREADS)
    columns = MOST_THREADS if rows == DW_THREADS else 2 * MOST_THREADS
    step = DW_STEP if itemsize == 4 and rows >= FEW_GROUPS else ONE_ROW_STEP if (itemsize, rows) == (8, 1) else STEP
    registers = SMALL_BLOCKS_REGISTERS if itemsize == 4 and rows > 1 else NARROW_PARTS_REGISTERS
    dW = Product(rows, columns, groups, itemsize // 4, step, registers)
    return SharedBlocks(_of_pairs(m, itemsize, FEW_ROWS_STEPS, n), _of_pairs(n, itemsize, {}, m), dW)


def part_pairs(m: int, itemsize: int) -> int:
    """Pairs whose g fits the workspace, a multiple of PAIRS."""
    return WORKSPACE_BYTES // (m * itemsize * PAIRS) * PAIRS


def of_parts(p: Product, wide: bool) -> Product:
    """The product for parts of dW that move 16 bytes at a time, or not."""
    return p if wide else p._replace(registers=NARROW_PARTS_REGISTERS)


def chain_of_sums(B: int, p: Product) -> tuple[Product, int]:
    """The product for dW of B pairs, and after how many of its steps a chain of terms ends.

    The k terms of a chain are rounded in k - 1 additions, and the total once. Sums of chains are added without an
    error, but for those of the errors, which are less than another rounding. So k may be 2 ceil(log2 B) + 1, or B.
    """
    most = 2 * (B - 1).bit_length() + 1
    if most < p.step:
        p = p._replace(step=STEP)
    return p, max(1, most // p.step)


def slice_pairs(p: Product, B: int, m: int, n: int, itemsize: int) -> int:
    """Pairs of a slice of a part of B pairs: enough slices for a chip, but not more than the workspace has room for."""
    tiles = -(-m // p.a(itemsize)) * -(-n // p.b(itemsize))
    resident = REGISTERS // (p.threads * p.registers)
    slices = min(CHIP * resident // tiles, MOST_SLICES, WORKSPACE_BYTES // (2 * m * n * itemsize), B // SLICE_PAIRS)
    return -(-B // (max(1, slices) * p.step)) * p.step
