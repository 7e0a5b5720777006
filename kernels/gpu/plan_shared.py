"""How the GPU kernels for one W cut a batch into blocks, from the shapes and the itemsize alone.

*tiny*: a thread has whole pairs, and sums of all of dW in its registers. Each block leaves one part of dW, and a second
launch, *sums*, adds the parts.

The order of the sums of dW depends on (B, m, n, itemsize); a pair's loss, dx and dq depend on the pair alone.
"""

from functools import cache

from sigmoid_l2.kernels.gpu.plan_types import SharedPlan, SharedTiny

TINY_THREADS = 128  # threads of a block
# Values of dW that a thread of the tiny kernel owns, and of dW, x and dx, at most: its registers.
TINY_VALUES = {4: (100, 128), 8: (50, 64)}  # by itemsize
# Pairs of a tile that a thread has, at most, bytes of x that it loads at once, and bytes of a block's tiles.
TINY_PAIRS, TINY_PAIRS_BYTES, TINY_TILE_BYTES = 4, 160, 40 * 1024
# Pairs that a thread adds up one after the other before the sums over lanes, at most. So a term of dW is rounded in 7
# additions, in 5 over the lanes, and once at the end of a block and of all: 14 = 2 (log2(64) + 1), and a batch of fewer
# than 129 pairs has one in each thread.
TINY_RUN = 8
# Parts of dW, about: some for each multiprocessor, and little to add.
TINY_BLOCKS = 4096
# Sums that are added with their errors, at most: the errors of the errors grow with the square of the number.
MOST_TERMS = 1 << 12
SUMS_THREADS = 256  # of a block that adds up parts


@cache
def make_plan(m: int, n: int, itemsize: int) -> SharedPlan | None:
    """Which kernel does pairs that all have one W (m, n), and how; None where there is no kernel for it."""
    return _tiny(m, n, itemsize)  # where that is None is the place of SharedBlocks


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
