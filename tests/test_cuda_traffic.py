"""What the GPU kernels' code moves, with no GPU: counted from the addresses that it uses when it is executed.

One block of each launch is recorded, over a full tile of arrays that begin on a multiple of 128 bytes.
"""

import os

import cuh_host
import numpy as np
import pytest
from fenced import batch, shapes
from traffic import BANK_BYTES, count

from sigmoid_l2.kernels import cuda_launch
from sigmoid_l2.kernels.cuda_launch import Rows, Staged

pytestmark = pytest.mark.skipif(
    os.environ.get("NUMBA_ENABLE_CUDASIM") == "1", reason="conftest.py makes launches small for numba's simulator"
)

EXCESS = 1.05  # sectors moved over the least possible, at most
CONFLICTS = 1.1  # accesses to shared memory over those without bank conflicts, at most

TINY = [(1, 1), (1, 3), (2, 2), (3, 3), (2, 5), (4, 4)]
GROUP = [(8, 8), (16, 16), (10, 32), (24, 16), (1, 64)]
BLOCK = [(784, 10), (64, 64), (256, 256), (10, 784), (8, 2048), (2, 8192)]
SPLIT = [(5120, 3), (3000, 10), (64, 4096)]

# By how much it is more than that, and why it cannot be less: (excess, conflicts).
MORE = {
    # Rows of 8.75 and of 4.125 sectors, straight from global memory: they touch one or two more. Those that two rows
    # share are read from L1 the second time; L2 puts the parts that are written together.
    (20, 70, "float32", True): (1.24, 1),
    (100, 33, "float32", True): (1.55, 1),
    (100, 21, "float64", True): (1.21, 1),
    # The lanes of a pair have not equally many rows, so that their addresses are not evenly spaced.
    (10, 10, "float32", True): (1, 1.49),
    (9, 6, "float32", True): (1, 1.5),
    (5, 3, "float64", True): (1, 1.32),
    (5, 5, "float64", True): (1, 1.33),
    # Memory that begins between multiples of 16 bytes: a thread moves the elements of its vector one by one, so that
    # what one access leaves of a sector the next finds in L1.
    (64, 64, "float32", False): (2.04, 1),
    (10, 784, "float32", False): (4, 1),
    (10, 784, "float64", False): (2, 1),
}


def aligned(a):
    """A copy that begins on a multiple of 128 bytes."""
    memory = np.empty(a.nbytes + 128, np.uint8)
    first = -memory.ctypes.data % 128
    copy = memory[first : first + a.nbytes].view(a.dtype).reshape(a.shape)
    copy[...] = a
    return copy


def cupy_traffic(m, n, dtype, *, wide=True):
    """By the kernel's name, what the first block moves of a batch of one full tile."""
    p = cuda_launch.plan(m, n, np.dtype(dtype).itemsize)
    lane_pairs = cuda_launch.lane_pairs(m, n, np.dtype(dtype).itemsize) if isinstance(p, Staged) else 1
    W, x = batch(max(1, p.units * lane_pairs), m, n, dtype)
    arrays = [W, x, *(np.zeros(shape, dtype) for shape in shapes(W).values())]
    recorded = cuh_host.record(*map(aligned, arrays), wide=wide)
    return {name.removeprefix("sigmoid_l2_"): count(accesses) for name, accesses in recorded.items()}


def assert_once(traffic, array, elements, itemsize, *, write):
    """The first ``elements`` of ``array``, each of them exactly once, and no others."""
    assert traffic.words(array, write) == set(range(elements * itemsize // BANK_BYTES)), array


def assert_moves_a_tile(traffic, m, n, dtype):
    itemsize = np.dtype(dtype).itemsize
    p = cuda_launch.plan(m, n, itemsize)
    units = p.units * (cuda_launch.lane_pairs(m, n, itemsize) if isinstance(p, Staged) else 1)
    assert_once(traffic, "W", units * p.rows * n, itemsize, write=False)
    assert_once(traffic, "dW", units * p.rows * n, itemsize, write=True)
    assert_once(traffic, "dx", units * n, itemsize, write=True)
    assert_once(traffic, "loss", units, itemsize, write=True)


@pytest.mark.parametrize(
    ("m", "n", "dtype"),
    [(m, n, dtype) for m, n in TINY + GROUP + BLOCK + SPLIT for dtype in ("float32", "float64")]
    + [(5, 3, "float32"), (5, 5, "float32")],
)
def test_cupy_moves_each_sector_once(m, n, dtype):
    traffic = cupy_traffic(m, n, dtype)
    tile = next(iter(traffic.values()))
    assert_moves_a_tile(tile, m, n, dtype)
    for kernel in traffic.values():
        assert kernel.conflicts() <= CONFLICTS
    assert tile.excess() <= EXCESS
    p = cuda_launch.plan(m, n, np.dtype(dtype).itemsize)
    width = p.vector * np.dtype(dtype).itemsize if isinstance(p, Rows) else cuda_launch.WIDE_BYTES
    for array, write in (("W", False), ("dW", True)):
        moved = len(tile.words(array, write)) * BANK_BYTES
        rows = moved // (n * np.dtype(dtype).itemsize) if isinstance(p, Rows) else 1  # a warp's access is of one row
        accesses = {size: k for (a, w, size), k in tile.instructions.items() if (a, w) == (array, write)}
        assert accesses == {width: rows * -(-moved // rows // (width * cuda_launch.WARP))}
    if isinstance(p, Staged) and p.lanes == 1:  # as much as W, for the smallest pairs
        for array, write in (("x", False), ("dx", True)):
            assert {size for (a, w, size) in tile.instructions if (a, w) == (array, write)} == {width}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 3), (4, 4), (8, 8), (784, 10), (5120, 3), (3, 40)])
def test_cupy_moves_each_sector_once_element_by_element(m, n, dtype):
    traffic = cupy_traffic(m, n, dtype, wide=False)
    tile = next(iter(traffic.values()))
    assert_moves_a_tile(tile, m, n, dtype)
    assert tile.conflicts() <= CONFLICTS
    assert tile.excess() <= EXCESS


@pytest.mark.parametrize(("m", "n", "dtype", "wide"), MORE)
def test_cupy_moves_more_where_it_must(m, n, dtype, wide):
    tile = next(iter(cupy_traffic(m, n, dtype, wide=wide).values()))
    assert_moves_a_tile(tile, m, n, dtype)
    excess, conflicts = MORE[m, n, dtype, wide]
    assert tile.excess() <= excess + 0.01
    assert tile.conflicts() <= conflicts + 0.01
    assert tile.excess() > EXCESS or tile.conflicts() > CONFLICTS, "it belongs into the other table"


def test_cupy_finish_moves_each_sector_once():
    m, n, dtype = 64, 4096, "float32"
    slices = cuda_launch.plan(m, n, 4).slices
    traffic = cupy_traffic(m, n, dtype)["finish"]
    columns = {slice_ * n + j for slice_ in range(slices) for j in range(cuda_launch.WARP)}
    assert traffic.words("slice_dx", write=False) == columns
    assert_once(traffic, "dx", cuda_launch.WARP, 4, write=True)
    assert traffic.excess() <= EXCESS
    assert traffic.conflicts() <= CONFLICTS
