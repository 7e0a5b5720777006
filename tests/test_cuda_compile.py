"""Both GPU kernels compiled to machine code for real chips, with no GPU: ptxas says what they use of a multiprocessor.

CuPy's code goes all its way through CuPy, which is stopped only where it would load the machine code onto a device.
"""

import importlib
import io
import os
import re
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest

from sigmoid_l2.kernels import cuda_launch

pytestmark = pytest.mark.skipif(
    os.environ.get("NUMBA_ENABLE_CUDASIM") == "1", reason="numba's simulator compiles nothing"
)

WANTED = {"all": (True, True, True), "loss": (True, False, False)}
CHIPS = ("75", "80", "90", "100")
DTYPES = ("float32", "float64")
# The float64 of 16x16 is for the block kernel.
STAGED = [(m, n, d) for m, n in [(1, 1), (3, 3), (2, 5), (8, 8), (16, 16)] for d in DTYPES if (m, d) != (16, "float64")]
REGISTERS = 65536  # of a multiprocessor, on every chip here; a block's must fit


class Usage(NamedTuple):
    """What a kernel uses, in bytes but for the registers of a thread."""

    stack: int
    spill_stores: int
    spill_loads: int
    registers: int
    shared: int


def usage(ptxas: str, shared: list[str]) -> Usage:
    """Read what ``ptxas -v`` prints of the one kernel; ``shared`` are the sizes of its shared arrays."""
    assert ptxas.count("Function properties for") == 1, ptxas
    assert "warning" not in ptxas, ptxas
    (stack,) = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", ptxas)
    (registers,) = re.findall(r"Used (\d+) registers", ptxas)
    return Usage(*map(int, stack), int(registers), sum(map(int, shared)))


def assert_fits(used: Usage, threads: int) -> None:
    """Nothing in local memory, which is as slow as global memory, and a block fits on a multiprocessor."""
    assert used[:3] == (0, 0, 0), used
    assert 0 < used.shared <= cuda_launch.SHARED_BYTES, used
    assert used.registers * threads <= REGISTERS, used


# --- CuPy ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cuda_cupy():
    pytest.importorskip("cupy", exc_type=ImportError)
    return importlib.import_module("sigmoid_l2.kernels.cuda_cupy")


def compile_cupy(kernel, dtype, chip, *options):
    """An ElementwiseKernel of arrays of ``dtype`` compiled as CuPy would for a GPU ``chip``."""
    import cupy
    from cupy._core import _kernel, core
    from cupy.cuda import compiler

    T = np.dtype(dtype).type

    def argument(p):  # (kind, type, dtype, ndim, is contiguous, has 32-bit indices)
        if p.ctype is None:  # CuPy's own index
            return _kernel._ArgInfo(2, None, None, 1, True, False)
        if p.raw:
            return _kernel._ArgInfo(1, cupy.ndarray, T, {"W": 3, "x": 2, "dW": 3, "dx": 2}.get(p.name, 1), True, False)
        return _kernel._ArgInfo(3, None, p.dtype.type, 0, True, False)

    compile_and_load = compiler._compile_module_with_cache

    def compile_only(*args, **kwargs):
        compile_and_load(*args, **kwargs)  # what it returns is a mock, which CuPy would not take for a module

    code = _kernel._get_elementwise_kernel_code(
        tuple(map(argument, kernel.params)),
        _kernel._TypeMap((("T", T),)),
        kernel.params,
        kernel.operation,
        kernel.name,
        kernel.preamble,
    )
    log = io.StringIO()
    with (
        mock.patch.dict(os.environ, CUPY_CACHE_IN_MEMORY="1"),  # so that it is compiled, and no file is written
        mock.patch.object(compiler, "_get_arch_for_options_for_nvrtc", lambda arch: (f"-arch=sm_{arch}", "cubin")),
        mock.patch.object(compiler, "_compile_module_with_cache", compile_only),
        mock.patch.object(compiler.function, "Module") as module,
    ):
        core.compile_with_cache(code, ("--ptxas-options=-v", *options), arch=chip, log_stream=log)
    (machine_code,) = module.return_value.load.call_args.args
    assert machine_code.startswith(b"\x7fELF")
    return usage(log.getvalue(), re.findall(r"(\d+) bytes smem", log.getvalue()))


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize(("m", "n", "dtype"), STAGED)
def test_cupy_staged(cuda_cupy, m, n, dtype, wanted, chip):
    pairs = cuda_launch.tile_pairs(m, n, np.dtype(dtype).itemsize)
    assert_fits(compile_cupy(cuda_cupy.staged_kernel(m, n, pairs, WANTED[wanted]), dtype, chip), threads=pairs)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("threads", [32, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cupy_block(cuda_cupy, dtype, threads, wanted, chip):
    assert_fits(
        compile_cupy(cuda_cupy.block_kernel(threads, cuda_launch.COLUMNS, WANTED[wanted]), dtype, chip), threads
    )


@pytest.mark.parametrize("chip", CHIPS)
def test_cupy_local_memory_is_seen(cuda_cupy, chip):
    local = "T a[64]; for (int k = 0; k < 64; ++k) a[int(W[k])] = k; loss[0] = a[int(W[64])];"
    kernel = cuda_cupy.cupy.ElementwiseKernel("raw T W", "raw T loss", local, "local", no_return=True)
    used = compile_cupy(kernel, "float32", chip)
    assert used.stack == 256
    with pytest.raises(AssertionError):
        assert_fits(used._replace(shared=1), threads=1)


def test_cupy_spills_and_too_much_shared_memory_are_seen(cuda_cupy):
    kernel = cuda_cupy.staged_kernel(16, 16, 32, WANTED["all"])
    used = compile_cupy(kernel, "float32", "90", "--maxrregcount=24")
    assert used.spill_stores > 0
    assert used.spill_loads > 0
    with pytest.raises(cuda_cupy.cupy.cuda.compiler.CompileException, match="too much shared data"):
        compile_cupy(cuda_cupy.staged_kernel(16, 16, 64, WANTED["all"]), "float32", "90")


# --- numba-cuda ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cuda_numba():
    for package in ("numba_cuda", "cuda.core"):
        pytest.importorskip(package, exc_type=ImportError)
    return importlib.import_module("sigmoid_l2.kernels.cuda_numba")


def compile_numba(function, dtype, sizes, chip):
    """A function of five arrays of ``dtype`` and of ``sizes`` integers; the PTX, and what its machine code uses."""
    from cuda.core import Linker, LinkerOptions, ObjectCode
    from numba import cuda, from_dtype, int64
    from numba.cuda import dispatcher

    cc = int(chip[:-1]), int(chip[-1])
    signature = (from_dtype(np.dtype(dtype))[::1],) * 5 + (int64,) * sizes
    # A device function that a kernel calls is compiled for the current device, of which there is none.
    with mock.patch.object(dispatcher, "get_current_device", return_value=SimpleNamespace(compute_capability=cc)):
        ptx, _ = cuda.compile_ptx(function, signature, cc=cc)
    linker = Linker(ObjectCode.from_ptx(ptx.encode()), options=LinkerOptions(arch=f"sm_{chip}", ptxas_options=["-v"]))
    assert linker.link("cubin").code.startswith(b"\x7fELF")
    # ptxas leaves the shared arrays to the linker, whose log does not tell.
    return ptx, usage(linker.get_info_log(), re.findall(r"\.shared .*\[(\d+)\];", ptx))


def check_numba(function, dtype, sizes, chip, threads):
    ptx, used = compile_numba(function, dtype, sizes, chip)
    assert ".local" not in ptx
    assert_fits(used, threads)


# 3x3 on every chip, the others on the oldest and the newest: a compilation takes half a second.
@pytest.mark.parametrize(
    ("m", "n", "dtype", "wanted", "chip"),
    [(*case, "all", chip) for case in STAGED for chip in (CHIPS if case[:2] == (3, 3) else CHIPS[::3])]
    + [(3, 3, dtype, "loss", "90") for dtype in DTYPES],
)
def test_numba_staged(cuda_numba, m, n, dtype, wanted, chip):
    pairs = cuda_launch.tile_pairs(m, n, np.dtype(dtype).itemsize)
    check_numba(cuda_numba.staged_source(m, n, np.dtype(dtype), pairs, WANTED[wanted]), dtype, 1, chip, threads=pairs)


@pytest.mark.parametrize(
    ("threads", "columns", "wanted", "chip"),
    [(256, columns, "all", chip) for columns in (cuda_launch.COLUMNS, 0) for chip in CHIPS] + [(32, 0, "loss", "90")],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_numba_block(cuda_numba, dtype, threads, columns, wanted, chip):
    check_numba(cuda_numba.block_source(np.dtype(dtype), threads, columns, WANTED[wanted]), dtype, 2, chip, threads)


@pytest.mark.parametrize("chip", CHIPS)
def test_numba_local_memory_is_seen(cuda_numba, chip):
    def local(W, x, loss, dW, dx):
        a = cuda_numba.cuda.local.array(64, np.float32)
        for k in range(64):
            a[int(W[k])] = k
        loss[0] = a[int(W[64])]

    ptx, used = compile_numba(local, "float32", 0, chip)
    assert ".local" in ptx
    assert used.stack == 256
