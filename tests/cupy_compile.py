"""An ElementwiseKernel compiled for a chip as CuPy would, with no GPU.

Its code goes all its way through CuPy, which is stopped only where it would load the machine code onto a device.
"""

import io
import os
import re
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from ptxas import Usage, usage

_DIMENSIONS = {"W": 3, "x": 2, "dW": 3, "dx": 2, "slice_dx": 2}  # of the arrays that do not have one


class Compiled(NamedTuple):
    """Machine code, an ELF file, and what it uses."""

    code: bytes
    used: Usage


def compile_cupy(kernel: Any, dtype: str, chip: str, *options: str) -> Compiled:
    """Compile an ElementwiseKernel of arrays of ``dtype`` for a GPU ``chip``, such as "90"."""
    code, log = _compile(kernel, dtype, chip, "sm", "--ptxas-options=-v", *options)
    assert code.startswith(b"\x7fELF")
    return Compiled(code, usage(log, re.findall(r"(\d+) bytes smem", log)))


def ptx_of_cupy(kernel: Any, dtype: str, chip: str) -> str:
    """The same only as far as PTX."""
    return _compile(kernel, dtype, chip, "compute")[0].decode()


def _compile(kernel: Any, dtype: str, chip: str, arch: str, *options: str) -> tuple[bytes, str]:
    import cupy
    from cupy._core import _kernel, core
    from cupy.cuda import compiler

    T = np.dtype(dtype).type

    def argument(p: Any) -> Any:  # (kind, type, dtype, ndim, is contiguous, has 32-bit indices)
        if p.ctype is None:  # CuPy's own index
            return _kernel._ArgInfo(2, None, None, 1, True, False)
        if p.raw:
            return _kernel._ArgInfo(1, cupy.ndarray, T, _DIMENSIONS.get(p.name, 1), True, False)
        return _kernel._ArgInfo(3, None, np.dtype(p.dtype).type, 0, True, False)

    compile_and_load = compiler._compile_module_with_cache

    def compile_only(*args: Any, **kwargs: Any) -> None:
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
    method = {"sm": "cubin", "compute": "ptx"}[arch]
    with (
        mock.patch.dict(os.environ, CUPY_CACHE_IN_MEMORY="1"),  # so that it is compiled, and no file is written
        mock.patch.object(compiler, "_get_arch_for_options_for_nvrtc", lambda cc: (f"-arch={arch}_{cc}", method)),
        mock.patch.object(compiler, "_compile_module_with_cache", compile_only),
        mock.patch.object(compiler.function, "Module") as module,
    ):
        own = kernel.kwargs.get("options", ())
        core.compile_with_cache(code, (*own, *options), arch=chip, log_stream=log)
    (compiled,) = module.return_value.load.call_args.args
    return compiled, log.getvalue()
