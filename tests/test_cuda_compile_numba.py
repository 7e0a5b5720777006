"""The numba.cuda kernels compiled to machine code for real chips, with no GPU: what they use of a multiprocessor."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ptxas import CHIPS, DTYPES, assert_fits

from sigmoid_l2.kernels import cuda_framework, cuda_launch
from sigmoid_l2.kernels.cuda_launch import Long, Rows, Staged

pytestmark = pytest.mark.skipif(
    os.environ.get("NUMBA_ENABLE_CUDASIM") == "1", reason="numba's simulator compiles nothing"
)
HERE = Path(__file__).parent
# NVVM has one compiler for chips before sm_100 and a newer one from there on.
FEW_CHIPS = ("75", "100")
if cuda_framework.package() == "numba_cuda_mlir":
    # Of these cases its 0.6.0 spills up to 56 bytes a thread in 2 for sm_100, and has local memory in 3.
    CHIPS, FEW_CHIPS = ("90",), ("90",)
TINY = {"float32": [(1, 1), (3, 3), (5, 5)], "float64": [(3, 3), (1, 7)]}
# The most that a lane owns, in rows and in columns, and what is between.
STAGED = {
    "float32": [(10, 10), (30, 30), (784, 10), (319, 32), (20000, 1)],
    "float64": [(16, 16), (2000, 16)],
}
# The most that a thread has of a row, for each size of a team; in float64, also of rows that no vector divides.
ROWS = {
    "float32": [(3, 33), (784, 100), (80, 512), (9, 511), (9, 4096), (9, 12288), (2, 16383), (100, 16000)],
    "float64": [(80, 256), (9, 2047), (2, 8192), (100, 7500)],
}


@pytest.fixture(scope="module")
def compile_pairs():
    for package in (cuda_framework.package(), "cuda.core"):
        pytest.importorskip(package, exc_type=ImportError)
    import numba_compile

    return numba_compile.compile_pairs


def cases(shapes):
    return [(m, n, dtype) for dtype in DTYPES for m, n in shapes[dtype]]


def assert_in_registers(compiled, chip, dtype, occupancy=0.0):
    """Nothing in local memory, no call, none of it in a wider type than the arrays', and enough blocks fit."""
    assert ".local" not in compiled.ptx
    assert not re.search(r"\bcall\b", compiled.ptx)
    assert dtype == "float64" or ".f64" not in compiled.ptx
    assert_fits(compiled.used, compiled.plan.threads, chip, occupancy)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize(("m", "n", "dtype"), cases(TINY))
def test_tiny(compile_pairs, m, n, dtype, chip):
    compiled = compile_pairs(m, n, dtype, chip)
    assert cuda_launch.size_class(compiled.plan) == "tiny"
    assert_in_registers(compiled, chip, dtype, occupancy=0.5)


@pytest.mark.parametrize("chip", FEW_CHIPS)
@pytest.mark.parametrize(("m", "n", "dtype"), cases(STAGED))
def test_staged(compile_pairs, m, n, dtype, chip):
    compiled = compile_pairs(m, n, dtype, chip)
    assert isinstance(compiled.plan, Staged)
    assert_in_registers(compiled, chip, dtype)


@pytest.mark.parametrize("chip", FEW_CHIPS)
@pytest.mark.parametrize(("m", "n", "dtype"), cases(ROWS))
def test_rows(compile_pairs, m, n, dtype, chip):
    compiled = compile_pairs(m, n, dtype, chip)
    assert isinstance(compiled.plan, Rows)
    assert_in_registers(compiled, chip, dtype)


@pytest.mark.parametrize("chip", FEW_CHIPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_long(compile_pairs, dtype, chip):
    compiled = compile_pairs(2, 20000, dtype, chip)
    assert isinstance(compiled.plan, Long)
    assert_in_registers(compiled, chip, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_finish(compile_pairs, dtype):
    import numba_compile

    from sigmoid_l2.kernels.cuda_numba_parts import Wanted
    from sigmoid_l2.kernels.cuda_numba_rows import finish_source

    source = finish_source(np.dtype(dtype).itemsize, Wanted(True, False, True))
    ptx, used = numba_compile.compile_source(source, dtype, (1, 1, 2), 4, "90")
    assert ".local" not in ptx
    assert_fits(used, cuda_launch.BLOCK_THREADS, "90", occupancy=0.5)


@pytest.mark.parametrize(("wide", "wanted"), [(False, "all"), (True, "loss")])
@pytest.mark.parametrize(("m", "n", "dtype"), [(3, 3, "float32"), (784, 10, "float32"), (2, 16384, "float32")])
def test_other_ways(compile_pairs, m, n, dtype, wide, wanted):
    assert_in_registers(compile_pairs(m, n, dtype, "90", wide=wide, wanted=wanted), "90", dtype)


# --- how global memory is accessed ----------------------------------------------------------------------------------


def accesses(ptx, kind):
    """How many loads ("ld") or stores ("st") of global memory there are, by bytes."""
    found = re.findall(rf"\b{kind}\.global[.\w]*?(?:\.v(\d))?\.[fbu](\d+)\b", ptx)
    return Counter(int(count or 1) * int(bits) // 8 for count, bits in found)


@pytest.mark.parametrize(("m", "n", "dtype"), [*cases(TINY), (8, 8, "float32"), (784, 10, "float32")])
def test_a_full_tile_moves_by_16_bytes(compile_pairs, m, n, dtype):
    p, ptx, _ = compile_pairs(m, n, dtype, "90")
    itemsize = np.dtype(dtype).itemsize
    units = p.units * cuda_launch.lane_pairs(m, n, itemsize)
    W_rounds, x_rounds = (-(-units * size * itemsize // (16 * p.threads)) for size in (p.rows * n, n))
    x_is_wide = units * n * itemsize % 16 == 0  # else it moves by single elements
    for kind in ("ld", "st"):
        found = accesses(ptx, kind)
        assert found[16] == W_rounds + x_rounds * x_is_wide, kind
        assert set(found) == {16, itemsize}  # the last tile of a batch, and loss


@pytest.mark.parametrize(("m", "n", "dtype"), cases(ROWS))
def test_a_row_moves_by_vectors(compile_pairs, m, n, dtype):
    """There is code for the first rows and for those that are loaded while others are computed."""
    p, ptx, _ = compile_pairs(m, n, dtype, "90")
    itemsize = np.dtype(dtype).itemsize
    loads, stores, width = accesses(ptx, "ld"), accesses(ptx, "st"), p.vector * itemsize
    assert set(loads) <= {width, itemsize}
    assert set(stores) <= {width, itemsize}
    assert loads[width] >= 2 * p.at_once * p.vectors
    assert stores[width] >= p.at_once * p.vectors
    if p.vector > 1:  # x for several teams, loss, and dx of several teams, in loops that the compiler repeats 4 times
        assert loads[itemsize] <= 5 * (p.teams > 1)
        assert stores[itemsize] <= 1 + 5 * (p.teams > 1)


# --- the successor of numba-cuda, and that the tests see what they should -------------------------------------------


CLASSES = [(3, 3, "float32"), (10, 10, "float64"), (784, 10, "float32"), (2000, 16, "float64"), (80, 512, "float32")]
CLASSES += [(9, 4096, "float64"), (2, 20000, "float32")]


@pytest.mark.parametrize(("m", "n", "dtype"), CLASSES)
def test_each_class(compile_pairs, m, n, dtype):
    assert_in_registers(compile_pairs(m, n, dtype, "90"), "90", dtype)


@pytest.mark.skipif(cuda_framework.package() == "numba_cuda_mlir", reason="it is what the other tests use")
def test_each_class_with_the_successor():
    pytest.importorskip(
        "numba_cuda_mlir", reason="not installed: pip install 'numba-cuda-mlir[cu13]'", exc_type=ImportError
    )
    without_numba_cuda = "import sys, pytest; sys.modules['numba_cuda'] = None; sys.exit(pytest.main(sys.argv[1:]))"
    child = subprocess.run(
        [sys.executable, "-c", without_numba_cuda, "-p", "no:cacheprovider", __file__, "-k", "test_each_class"],
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert child.returncode == 0, child.stdout + child.stderr
    assert f"{len(CLASSES)} passed" in child.stdout


@pytest.mark.parametrize("chip", FEW_CHIPS)
def test_local_memory_is_seen(compile_pairs, chip):
    import numba_compile

    def local(W, x, loss, dW, dx):
        a = numba_compile.cuda.local.array(64, np.float32)
        for k in range(64):
            a[int(W[k])] = k
        loss[0] = a[int(W[64])]

    ptx, used = numba_compile.compile_source(local, "float32", (1,) * 5, 0, chip)
    assert ".local" in ptx
    assert used.stack == 256


def test_few_blocks_are_no_reason_to_warn():
    """numba warns of launches of fewer than 128 blocks, but a small batch is no mistake."""
    pytest.importorskip("numba_cuda", exc_type=ImportError)
    from numba import cuda

    from sigmoid_l2.kernels import cuda_numba

    launched = []

    class Kernel:
        def __getitem__(self, launch):
            configured = cuda.jit(lambda a: None)[launch]
            return lambda *arguments: launched.append((configured.griddim, arguments))

    cuda_numba._launch(Kernel(), 3, 32, 0, "W")
    assert launched == [((3, 1, 1), ("W",))]
    with pytest.warns(Warning, match="Grid size 3"):  # in other people's launches it goes on
        Kernel()[3, 32, 0]
