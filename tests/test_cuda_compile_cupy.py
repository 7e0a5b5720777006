"""The CuPy kernels compiled to machine code for real chips, with no GPU: what they use of a multiprocessor."""

import importlib
import os
import re
from collections import Counter

import numpy as np
import pytest
from cupy_compile import compile_cupy, ptx_of_cupy
from ptxas import CHIPS, DTYPES, WANTED, assert_fits, chips

from sigmoid_l2.kernels import cuda_launch
from sigmoid_l2.kernels.cuda_launch import Long, Rows, Staged

pytestmark = pytest.mark.skipif(
    os.environ.get("NUMBA_ENABLE_CUDASIM") == "1", reason="numba's simulator compiles nothing"
)

FEW_CHIPS = ("75", "90", "100")
# The most that a lane owns, in one row and in one column, and what is between.
TINY = {"float32": [(1, 1), (3, 3), (5, 5), (1, 15), (29, 1)], "float64": [(1, 1), (3, 3), (1, 7), (13, 1)]}
STAGED = {
    "float32": [(10, 10), (30, 30), (1, 32), (300, 3), (784, 10), (3413, 3), (20000, 1), (4096, 32)],
    "float64": [(14, 1), (5, 5), (16, 16), (1, 16), (784, 10), (1706, 3), (20000, 1), (4096, 16)],
}
# The most that a thread has of a row, for each size of a team, and with each number of rows at once.
ROWS = {
    "float32": [
        (3, 33),
        (64, 64),
        (64, 128),
        (256, 256),
        (80, 512),
        (9, 511),
        (9, 1024),
        (9, 4096),
        (9, 4095),
        (2, 16384),
    ],
    "float64": [(3, 17), (64, 64), (80, 256), (9, 255), (9, 1024), (9, 2048), (9, 2047), (2, 8192)],
}


@pytest.fixture(scope="module")
def cuda_cupy():
    pytest.importorskip("cupy", exc_type=ImportError)
    return importlib.import_module("sigmoid_l2.kernels.cuda_cupy")


def kernel_for(cuda_cupy, m, n, dtype, *, wide=True, wanted="all"):
    """The plan of pairs of (m, n), and the ElementwiseKernel for it."""
    itemsize = np.dtype(dtype).itemsize
    p = cuda_launch.plan(m, n, itemsize)
    if isinstance(p, Staged):
        lane_pairs = cuda_launch.lane_pairs(m, n, itemsize)
        return p, cuda_cupy.staged_kernel(m, n, p, lane_pairs, wide, WANTED[wanted])
    if isinstance(p, Rows):
        return p, cuda_cupy.rows_kernel(p._replace(rows=0, slices=0), wide, WANTED[wanted])
    return p, cuda_cupy.long_kernel(p, WANTED[wanted])


def cases(shapes):
    return [(m, n, dtype) for dtype in DTYPES for m, n in shapes[dtype]]


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize(("m", "n", "dtype"), cases(TINY))
def test_tiny(cuda_cupy, m, n, dtype, chip):
    p, kernel = kernel_for(cuda_cupy, m, n, dtype)
    assert cuda_launch.size_class(p) == "tiny"
    assert_fits(compile_cupy(kernel, dtype, chip).used, p.threads, chip, occupancy=0.5)


@pytest.mark.parametrize("chip", FEW_CHIPS)
@pytest.mark.parametrize(("m", "n", "dtype"), cases(STAGED))
def test_staged(cuda_cupy, m, n, dtype, chip):
    p, kernel = kernel_for(cuda_cupy, m, n, dtype)
    assert isinstance(p, Staged)
    assert_fits(compile_cupy(kernel, dtype, chip).used, p.threads, chip)


@pytest.mark.parametrize("chip", FEW_CHIPS)
@pytest.mark.parametrize(("m", "n", "dtype"), cases(ROWS))
def test_rows(cuda_cupy, m, n, dtype, chip):
    p, kernel = kernel_for(cuda_cupy, m, n, dtype)
    assert isinstance(p, Rows)
    # The threads that cuda_launch.FLIGHT_BYTES counts on.
    resident = 768 if p.threads == cuda_launch.BLOCK_THREADS else cuda_launch.LONG_ROW_THREADS
    assert_fits(compile_cupy(kernel, dtype, chip).used, p.threads, chip, resident / chips.LIMITS[int(chip)].threads)


@pytest.mark.parametrize("chip", FEW_CHIPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_and_finish(cuda_cupy, dtype, chip):
    p, kernel = kernel_for(cuda_cupy, 2, 20000, dtype)
    assert isinstance(p, Long)
    assert_fits(compile_cupy(kernel, dtype, chip).used, p.threads, chip)
    finish = cuda_cupy.finish_kernel(True, True)
    assert_fits(compile_cupy(finish, dtype, chip).used, cuda_cupy.FINISH_THREADS, chip)


@pytest.mark.parametrize(("wide", "wanted"), [(False, "all"), (True, "loss")])
@pytest.mark.parametrize(
    ("m", "n", "dtype"), [(3, 3, "float32"), (784, 10, "float32"), (9, 4096, "float32"), (2, 8192, "float64")]
)
def test_other_ways(cuda_cupy, m, n, dtype, wide, wanted):
    p, kernel = kernel_for(cuda_cupy, m, n, dtype, wide=wide, wanted=wanted)
    assert_fits(compile_cupy(kernel, dtype, "90").used, p.threads, "90")


# --- how global memory is accessed ----------------------------------------------------------------------------------


def accesses(kernel, dtype, kind):
    """How many loads ("ld") or stores ("st") of global memory there are in the PTX, by bytes."""
    found = re.findall(rf"\b{kind}\.global[.\w]*?(?:\.v(\d))?\.[fbu](\d+)\b", ptx_of_cupy(kernel, dtype, "90"))
    return Counter(int(count or 1) * int(bits) // 8 for count, bits in found)


@pytest.mark.parametrize(
    ("m", "n", "dtype"), [*cases(TINY), (8, 8, "float32"), (784, 10, "float32"), (5120, 3, "float64")]
)
def test_a_tile_moves_by_16_bytes(cuda_cupy, m, n, dtype):
    """There is code for a full tile and for the last of a batch, which ends in single elements."""
    p, kernel = kernel_for(cuda_cupy, m, n, dtype)
    itemsize = np.dtype(dtype).itemsize
    lane_pairs = cuda_launch.lane_pairs(m, n, itemsize)
    units = p.units * lane_pairs
    W_rounds, x_rounds = (-(-units * size * itemsize // (16 * p.threads)) for size in (p.rows * n, n))
    x_is_wide = units * n * itemsize % 16 == 0  # else it moves by single elements
    several_warps = p.lanes > cuda_launch.WARP  # then dx does not go through the tile, and has one store
    loads = accesses(kernel, dtype, "ld")
    stores = accesses(kernel, dtype, "st")
    assert loads[16] == 2 * (W_rounds + x_rounds * x_is_wide)
    assert stores[16] == 2 * (W_rounds + x_rounds * (x_is_wide and not several_warps))
    # Single elements of W and x; of dW and dx, and loss. The compiler leaves out those that no batch can end in.
    assert loads.total() - loads[16] <= 2 + (not x_is_wide)
    assert lane_pairs <= stores.total() - stores[16] <= lane_pairs + 2


@pytest.mark.parametrize(("m", "n", "dtype"), cases(ROWS))
def test_a_row_moves_by_vectors(cuda_cupy, m, n, dtype):
    p, kernel = kernel_for(cuda_cupy, m, n, dtype)
    itemsize = np.dtype(dtype).itemsize
    width = p.vector * itemsize
    assert accesses(kernel, dtype, "ld") == {width: (1 + p.at_once) * p.vectors}
    stores = Counter({width: p.at_once * p.vectors})
    stores[itemsize] += 1  # loss
    stores[itemsize if p.teams > 1 else width] += 1 if p.teams > 1 else p.vectors  # dx
    assert accesses(kernel, dtype, "st") == stores


# --- that the tests see it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chip", FEW_CHIPS)
def test_local_memory_is_seen(cuda_cupy, chip):
    local = "T a[64]; for (int k = 0; k < 64; ++k) a[int(W[k])] = k; loss[0] = a[int(W[64])];"
    kernel = cuda_cupy.cupy.ElementwiseKernel("raw T W", "raw T loss", local, "local", no_return=True)
    used = compile_cupy(kernel, "float32", chip).used
    assert used.stack == 256
    with pytest.raises(AssertionError):
        assert_fits(used, 1, chip)


def test_spills_are_seen(cuda_cupy):
    used = compile_cupy(kernel_for(cuda_cupy, 5, 5, "float32")[1], "float32", "90", "--maxrregcount=24").used
    assert used.spill_stores > 0
    assert used.spill_loads > 0
