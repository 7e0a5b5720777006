"""How the GPU kernels cut a batch into blocks, chosen from (m, n, itemsize) in this one place for both of them."""

# Static shared memory that a block may have on every chip from sm_75 on.
SHARED_BYTES = 48 * 1024
# Pairs a tile of the staged kernel, the largest that fits: fewer than a warp would leave lanes idle.
TILES = (128, 64, 32)
# Threads a block of the block kernel, at most; fewer for short rows.
BLOCK_THREADS = 256
# Columns of dx that the block kernel keeps in shared memory: 32 KiB in float64, which leaves room for its sums.
COLUMNS = 4096


def odd(size: int) -> int:
    """The stride at which pairs of ``size`` elements lie in shared memory: odd strides have no bank conflicts."""
    return size | 1


def tile_pairs(m: int, n: int, itemsize: int) -> int:
    """How many pairs of (m, n) a block stages through shared memory; 0 where the block kernel must do them."""
    pair_bytes = (odd(m * n) + 2 * odd(n)) * itemsize  # W (then dW), x, dx
    return next((pairs for pairs in TILES if pairs * pair_bytes <= SHARED_BYTES), 0)


def block_threads(n: int) -> int:
    """Threads a block for rows of n: the power of two from 32 to BLOCK_THREADS that covers a row soonest."""
    return min(BLOCK_THREADS, max(32, 1 << (n - 1).bit_length()))
