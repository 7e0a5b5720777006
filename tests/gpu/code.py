"""What the compilers make of the GPU kernels, with no GPU: the PTX that really runs, and what its machine code uses.

CuPy's kernels go all the way through CuPy to NVRTC, and are stopped where they would be loaded onto a device. numba's
are compiled as at run time, with link-time optimisation, and linked by nvJitLink.
"""

import io
import os
import struct
from functools import cache
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import numpy as np

from gpu import chips
from sigmoid_l2.kernels.gpu import shim

CHIPS = tuple(chips.LIMITS)
REGISTER_COUNT, FRAME_SIZE = 0x2F, 0x11  # attributes in .nv.info


class Used(NamedTuple):
    """What a kernel's machine code uses of a chip."""

    registers: int  # per thread
    stack: int  # bytes of local memory per thread: arrays and spilled registers
    shared: int  # bytes per block


def ptx(launch):
    """The PTX of a ``launches.Launch``."""
    if launch.by_numba:
        return numba_ptx(launch.kernel, len(launch.arguments))
    return cupy_ptx(launch.kernel)


def used(launch, chip):
    """What the machine code of a ``launches.Launch`` uses."""
    if launch.by_numba:
        return numba_used(launch.kernel, len(launch.arguments), chip)
    return cupy_used(launch.kernel, chip)


@cache
def cupy_ptx(kernel, chip=90):
    """The PTX of an ElementwiseKernel."""
    return _compile_cupy(kernel, chip, "compute", "ptx").decode()


@cache
def cupy_used(kernel, chip, *options):
    """What its machine code uses, compiled with ``options`` beside its own."""
    return _used(_compile_cupy(kernel, chip, "sm", "cubin", *options), chip)


def _compile_cupy(kernel, chip, arch, method, *options):
    import cupy
    from cupy._core import _kernel, core
    from cupy.cuda import compiler

    T = np.float32  # of raw arrays, which the library's kernels do not have

    def argument(p):  # (kind, type, dtype, ndim, is contiguous, has 32-bit indices)
        if p.ctype is None:  # CuPy's own index
            return _kernel._ArgInfo(2, None, None, 1, True, False)
        if p.raw:
            return _kernel._ArgInfo(1, cupy.ndarray, T, 1, True, False)
        return _kernel._ArgInfo(3, None, np.dtype(p.dtype).type, 0, True, False)

    compile_and_load = compiler._compile_module_with_cache

    def compile_only(*args, **kwargs):
        compile_and_load(*args, **kwargs)  # what it returns is a mock, which CuPy would not take for a module

    text = _kernel._get_elementwise_kernel_code(
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
        mock.patch.object(compiler, "_get_arch_for_options_for_nvrtc", lambda cc: (f"-arch={arch}_{cc}", method)),
        mock.patch.object(compiler, "_compile_module_with_cache", compile_only),
        mock.patch.object(compiler.function, "Module") as module,
    ):
        own = kernel.kwargs.get("options", ())
        core.compile_with_cache(text, (*own, *options), arch=str(chip), log_stream=log)
    assert not log.getvalue().strip(), log.getvalue()
    (compiled,) = module.return_value.load.call_args.args
    return compiled


@cache
def numba_ptx(kernel, arguments, chip=90):
    """The PTX, after link-time optimisation, of numba's dispatcher for so many integers."""
    library = _numba_library(kernel, arguments)
    return library.get_lto_ptx((*divmod(chip, 10), "a" if chip >= 90 else ""))


@cache
def numba_used(kernel, arguments, chip):
    """What its machine code uses."""
    if shim.package() == "numba_cuda_mlir":
        return _used(_link_successor(kernel, arguments, chip), chip)
    library = _numba_library(kernel, arguments)
    cc = *divmod(chip, 10), "a" if chip >= 90 else ""  # as numba-cuda chooses it
    machine_code, log = library.get_cubin(cc).code, library.get_linkerinfo(cc)
    assert "warning" not in log.lower(), log
    return _used(machine_code, chip)


@cache
def _numba_library(kernel, arguments):
    """numba-cuda's code library of a kernel for a device that is not there; it has the same LLVM IR for every chip."""
    from numba import types
    from numba.cuda import codegen, dispatcher

    device = SimpleNamespace(compute_capability=(9, 0), id=0)
    context = SimpleNamespace(get_context=lambda: SimpleNamespace(device=device))
    with (
        mock.patch.object(dispatcher, "get_current_device", return_value=device),
        mock.patch.object(codegen, "devices", context),
    ):
        return dispatcher._Kernel(
            kernel.py_func,
            (types.int64,) * arguments,
            lto=True,
            launch_bounds=kernel.targetoptions["launch_bounds"],
        )._codelibrary


def _link_successor(kernel, arguments, chip):
    """The machine code by numba-cuda-mlir, without link-time optimisation."""
    from cuda.core import Linker, LinkerOptions, ObjectCode
    from numba_cuda_mlir import cuda, tools, types

    with mock.patch.object(tools, "_cached_cc", divmod(chip, 10)):
        text, _ = cuda.compile_ptx(
            kernel.py_func,
            (types.int64,) * arguments,
            cc=divmod(chip, 10),
            launch_bounds=kernel.targetoptions["launch_bounds"],
        )
    return Linker(ObjectCode.from_ptx(text.encode()), options=LinkerOptions(arch=f"sm_{chip}")).link("cubin").code


def _used(machine_code, chip):
    """From the ELF file of one kernel: the sizes of its sections, and the attributes in its section .nv.info.

    NVIDIA documents neither. An attribute is (format, number, size of the rest, symbol, value); the two are
    EIATTR_REGCOUNT and EIATTR_FRAME_SIZE where ``cuobjdump -elf`` prints them, and have what ``ptxas -v`` says.
    """
    table, entry_size, count, names = struct.unpack_from("<Q10xHHH", machine_code, 0x28)
    headers = [struct.unpack_from("<I20xQQ", machine_code, table + k * entry_size) for k in range(count)]
    info, shared = b"", 0
    for name, first, size in headers:
        own_name = machine_code[headers[names][1] + name :].partition(b"\0")[0]
        if own_name == b".nv.info":
            info = machine_code[first : first + size]
        elif own_name.startswith(b".nv.shared.") and b".reserved." not in own_name:
            shared += size - chips.LIMITS[chip].shared_reserved * (chip >= 90)  # from there on it is in the section
    most = {}  # the greatest value of each attribute, over the kernel and the functions that it may call
    for _, number, _, _, value in struct.iter_unpack("<BBHII", info):
        most[number] = max(most.get(number, 0), value)
    return Used(most[REGISTER_COUNT], most[FRAME_SIZE], shared)
