"""How the GPU kernel for arrays whose last axis is that of the pairs does them, from (m, n, itemsize) alone."""

from functools import cache

from sigmoid_l2.kernels.gpu.plan_types import BatchLast

THREADS = 128  # of a block
# Bytes of the longest row: its x and dx stay in registers, beside a row of W.
ROW_BYTES = 256
# Bytes of W that a thread has in flight, or one row.
FLIGHT_BYTES = 64
# Blocks of a launch, at most; a grid has fewer than 2^31. More pairs take several launches.
MOST_BLOCKS = 1 << 30


@cache
def make_plan(m: int, n: int, itemsize: int) -> BatchLast | None:
    """How the kernel does pairs of (m, n); None where it does not."""
    if n * itemsize > ROW_BYTES:
        return None
    groups = -(-m // max(1, FLIGHT_BYTES // (n * itemsize)))
    rows = -(-m // groups)
    return BatchLast(THREADS, rows, m % rows == 0)
