"""How the GPU kernel for arrays whose last axis is that of the pairs does them, from (m, n, itemsize) alone."""

from functools import cache

from sigmoid_l2.kernels.gpu.plan_types import BatchLast

THREADS = 128  # of a block
# Bytes of the longest row. Its x and dx stay in a thread's registers, beside a row of W: with 64 columns in float32
# numba.cuda's kernel needs up to 255 registers (with a target, a cotangent and dq, on sm_100), CuPy's up to 249.
ROW_BYTES = 256
# Bytes of W that a thread has in flight, at most, or one row: 5 rows of 3 columns in float32. A multiprocessor of an
# H100 then has 54 KiB of W and x in flight for 3x3, 81 for 8x8. For 1x1 it has 16, for 2x1 24.
FLIGHT_BYTES = 64
# Blocks of a launch, at most: a grid has fewer than 2^31. More pairs take several launches.
MOST_BLOCKS = 1 << 30


@cache
def make_plan(m: int, n: int, itemsize: int) -> BatchLast | None:
    """How the kernel does pairs of (m, n); None where it does not."""
    if n * itemsize > ROW_BYTES:
        return None
    groups = -(-m // max(1, FLIGHT_BYTES // (n * itemsize)))
    rows = -(-m // groups)
    return BatchLast(THREADS, rows, m % rows == 0)
