"""Both GPU kernels compiled for real chips, with no GPU: what they use of one."""

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpu import code
from gpu.launches import launches_of
from sigmoid_l2.kernels import Given, Wanted
from sigmoid_l2.kernels.gpu import plan, shim
from sigmoid_l2.kernels.gpu.plan_types import Columns, Rows, Staged

PACKAGES = {"cupy": "cupy", "numba-cuda": shim.package()}  # without which nothing is compiled
FEW_CHIPS = (75, 90, 100, 120)
MOST_REGISTERS = 255  # of a thread, on every chip
SHARED_BYTES = 48 * 1024  # that a block may declare, on every chip

# (m, n) in float32 and in float64: for each kernel the most that a lane or a thread owns, and some in between.
TINY_4, TINY_8 = [(1, 1), (3, 3), (5, 5), (9, 3), (20, 1)], [(3, 3), (1, 7), (5, 2), (8, 1)]
STAGED_4 = [(10, 10), (30, 30), (32, 32), (33, 31), (1, 31), (500, 20), (784, 10), (319, 32), (20000, 1)]
STAGED_8 = [(14, 1), (16, 16), (33, 6), (784, 10), (2000, 16)]
# For each size of a team, and with each number of rows at once; also of rows that no vector divides.
ROWS_4 = [(3, 33), (784, 100), (80, 512), (9, 511), (9, 4096), (2, 16383), (100, 16000)]
ROWS_8 = [(80, 256), (9, 2047), (2, 8192)]
# Whose slices may be done in turn: of each size of a team those that need the most registers.
IN_TURN_4, IN_TURN_8 = [(2000, 64), (784, 100), (80, 512), (9, 4096)], [(80, 256), (9, 2048)]
LONG_4, LONG_8 = [(2, 16385), (2, 24576), (2, 24575), (4, 30000), (4, 30001)], [(2, 12288), (4, 16000), (4, 16001)]
# More of CuPy's, which are compiled sooner.
CUPY_STAGED_4 = [(1, 32), (17, 25), (300, 3), (3413, 3), (4096, 32)]
CUPY_STAGED_8 = [(5, 5), (1, 16), (17, 9), (33, 15), (1706, 3), (5120, 3), (20000, 1), (4096, 16)]
CUPY_ROWS_4 = [(64, 64), (64, 40), (64, 128), (100, 99), (256, 256), (9, 1024), (9, 4095), (2, 16384)]
CUPY_LONG_4, CUPY_LONG_8 = [(2, 20480), (2, 22527), (1, 30002)], [(2, 8193), (2, 12287), (1, 16000)]
CUPY_ROWS_8 = [(3, 17), (32, 32), (64, 64), (9, 255), (9, 1024), (9, 2048)]


# With a target, a cotangent and dq: of each kernel those that need the most registers.
EVERYTHING = {"given": (True, True), "wanted": (True, True, True, True)}
EVERYTHING_4 = [(3, 3), (9, 3), (20, 1), (784, 10), (319, 32), (9, 4096), (2, 16383), (2, 24576), (4, 30000)]
EVERYTHING_8 = [(3, 3), (8, 1), (2000, 16), (9, 2047), (2, 8192), (4, 16000)]
CUPY_EVERYTHING_4 = [(1, 1), (5, 5), (10, 10), (32, 32), (20000, 1), (784, 100), (80, 512), (100, 16000), (4, 30001)]
CUPY_EVERYTHING_8 = [(5, 2), (1, 7), (16, 16), (80, 256), (2, 12288), (4, 16001)]


def cases(of_float32, of_float64, backends=PACKAGES):
    shapes = {"float32": of_float32, "float64": of_float64}
    return [(backend, m, n, dtype) for dtype in shapes for m, n in shapes[dtype] for backend in backends]


# Those of `make test`: of each kernel and dtype the ones that need the most registers; `make proof` has all.
QUICK = cases(
    [(3, 3), (9, 3), (10, 10), (784, 10), (319, 32), (784, 100), (9, 4096), (2, 24576), (4, 30000)],
    [(8, 1), (2000, 16), (2, 8192)],
)
TINY = cases(TINY_4, TINY_8)
OTHERS = cases(STAGED_4 + ROWS_4 + LONG_4, STAGED_8 + ROWS_8 + LONG_8)
OTHERS += cases(CUPY_STAGED_4 + CUPY_ROWS_4 + CUPY_LONG_4, CUPY_STAGED_8 + CUPY_ROWS_8 + CUPY_LONG_8, ["cupy"])


def named(case):
    return "-".join(map(str, case))


def launched(backend, m, n, dtype, *, wide=True, given=(False, False), wanted=(True, True, True, False)):
    """The plan, and what a call with one pair launches."""
    pytest.importorskip(PACKAGES[backend], exc_type=ImportError)
    shapes = (1, m, n), (1, n), (1, m), (1,), (1,), (1, m, n), (1, n), (1, m)
    arrays = [
        np.zeros(shape, dtype) if is_there else None
        for shape, is_there in zip(shapes, (True, True, *given, *wanted), strict=True)
    ]
    p = plan.for_batch(plan.make_plan(m, n, arrays[0].itemsize), 1)
    return p, launches_of(backend, *arrays, wide=wide)[0]


def assert_fits(case, chips, **how):
    """Nothing in local memory, which is as slow as global memory, and enough blocks fit on a multiprocessor."""
    p, launches = launched(*case, **how)
    itemsize = np.dtype(case[3]).itemsize
    given, wanted = Given(*how.get("given", (False, False))), Wanted(*how.get("wanted", (True, True, True, False)))
    for launch in launches:
        budget = p.registers
        if isinstance(p, Rows):
            budget = plan.rows_registers(p, itemsize, given, wanted)
        if isinstance(p, Columns):
            budget = plan.columns_registers(p, how.get("wide", True), given)
        if launch.name == "finish" or budget is None:
            budget = MOST_REGISTERS
        blocks = max(1, plan.REGISTERS // (launch.threads * budget))  # that are to fit, which is what numba is told
        least = 0.5 if launch.name == "finish" else 0.0
        if isinstance(p, Staged) and p.lanes == 1:  # a lane that has as many targets as rows needs more registers
            least = 0.3 if any(given) or wanted.dq else 0.5
        for chip in chips:
            used = launch.used(chip)
            assert used.stack == 0, used
            assert used.shared <= SHARED_BYTES, used
            assert used.registers <= plan.REGISTERS // (launch.threads * blocks), used
            occupancy = code.chips.occupancy(chip, launch.threads, used.registers, used.shared)
            assert occupancy >= max(least, 1e-9), used


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=() if c in QUICK else pytest.mark.proof) for c in TINY + OTHERS], ids=named
)
def test_it_fits(case):
    """The kernel, and the kernel finish where pairs are cut into slices; for tiny pairs on every chip."""
    assert_fits(case, code.CHIPS if case in TINY else FEW_CHIPS)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, marks=() if c in QUICK and c[1:3] in ((9, 3), (9, 4096)) else pytest.mark.proof)
        for c in cases(EVERYTHING_4, EVERYTHING_8) + cases(CUPY_EVERYTHING_4, CUPY_EVERYTHING_8, ["cupy"])
    ],
    ids=named,
)
def test_it_fits_with_everything(case):
    """With a target, a cotangent and dq."""
    assert_fits(case, FEW_CHIPS, **EVERYTHING)


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=() if c[1:3] == (80, 512) else pytest.mark.proof) for c in cases(IN_TURN_4, IN_TURN_8)],
    ids=named,
)
def test_slices_in_turn(monkeypatch, case):
    monkeypatch.setattr(plan, "ALONE_BYTES", 0)  # for few of the longest rows
    monkeypatch.setattr(plan, "SLICE_ROWS", 2)
    monkeypatch.setattr(plan, "MANY_BLOCKS", 1)
    plan.make_plan.cache_clear()
    try:
        assert_fits(case, FEW_CHIPS)
        if case[0] == "cupy":
            assert_fits(case, FEW_CHIPS, **EVERYTHING)
    finally:
        plan.make_plan.cache_clear()


OTHER_WAYS = [
    pytest.param(case, how, marks=pytest.mark.proof if "wanted" in how and case[0] == "numba-cuda" else ())
    for how in ({"wide": False}, {"wanted": (True, False, False, False)})
    for case in cases([(3, 3), (784, 10), (2, 24576)], [(2, 8192)])
]


@pytest.mark.parametrize(("case", "how"), OTHER_WAYS, ids=named)
def test_other_ways(case, how):
    assert_fits(case, [90], **how)


@pytest.mark.parametrize("case", cases([(4, 30000)], [(4, 16000)]), ids=named)
def test_columns_that_are_not_aligned(case):
    assert_fits(case, FEW_CHIPS, wide=False)


def test_each_class_with_the_successor():
    """For one chip: version 0.6.0 spills up to 56 bytes per thread for sm_100."""
    pytest.importorskip(
        "numba_cuda_mlir", reason="not installed: pip install 'numba-cuda-mlir[cu13]'", exc_type=ImportError
    )
    program = """if True:
        import sys
        sys.modules["numba_cuda"] = None
        from gpu.test_compile import *
        for case in cases([(3, 3), (10, 10), (784, 10), (2, 20000)], [(2000, 16), (2, 8192)], ["numba-cuda"]):
            assert_fits(case, [90])
        print(shim.package())"""
    child = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=600
    )
    assert child.stdout == "numba_cuda_mlir\n", child.stderr


def test_local_memory_is_seen():
    cupy, _ = (pytest.importorskip(package, exc_type=ImportError) for package in ("cupy", "numba_cuda"))
    cuda = importlib.import_module("numba.cuda")

    def local(size):
        a = cuda.local.array(64, np.int32)
        for k in range(64):
            a[(size >> k) & 63] = k
        if a[size & 63] == 64:
            cuda.syncthreads()

    text = "int a[64]; for (int k = 0; k < 64; ++k) a[(size >> k) & 63] = k; if (a[size & 63] == 64) __syncthreads();"
    kernel = cupy.ElementwiseKernel("int64 size", "", text, "local", no_return=True)
    in_numba = cuda.jit(launch_bounds=(32, 1))(local)
    for chip in FEW_CHIPS:
        assert code.cupy_used(kernel, chip).stack == code.numba_used(in_numba, 1, chip).stack == 256


def test_spills_are_seen():
    (launch,) = launched("cupy", 5, 5, "float32")[1]
    assert code.cupy_used(launch.kernel, 90, "--maxrregcount=24").stack > 0
