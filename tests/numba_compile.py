"""The kernels of numba.cuda compiled for a chip that is not there, by numba-cuda or, if in use, its successor."""

import importlib
import re
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from cuda.core import Linker, LinkerOptions, ObjectCode
from ptxas import WANTED, Usage, usage

from sigmoid_l2.kernels import cuda_framework, cuda_launch
from sigmoid_l2.kernels.cuda_launch import Rows, Staged

cuda = importlib.import_module(cuda_framework.module())
types = importlib.import_module(
    {"numba_cuda": "numba.types", "numba_cuda_mlir": "numba_cuda_mlir.types"}[cuda_framework.package()]
)


class Compiled(NamedTuple):
    """A kernel: how it is launched, its PTX, and what its machine code uses."""

    plan: Any
    ptx: str
    used: Usage


@cache
def compile_pairs(m: int, n: int, dtype: str, chip: str, *, wide: bool = True, wanted: str = "all") -> Compiled:
    """The kernel for pairs of (m, n), compiled for a GPU ``chip``."""
    from sigmoid_l2.kernels import cuda_numba
    from sigmoid_l2.kernels.cuda_numba_parts import Wanted
    from sigmoid_l2.kernels.cuda_numba_rows import long_source, rows_source
    from sigmoid_l2.kernels.cuda_numba_staged import staged_source

    itemsize, outputs = np.dtype(dtype).itemsize, Wanted(*WANTED[wanted])
    p = cuda_launch.plan(m, n, itemsize)
    if isinstance(p, Staged):
        source, sizes = staged_source(p, m, n, itemsize, outputs, wide), 2
    elif isinstance(p, Rows):
        source, sizes = rows_source(p._replace(rows=0, slices=min(2, p.slices)), n, itemsize, outputs, wide), 5
    else:
        source, sizes = long_source(p, itemsize, outputs), 2
    dimensions = (3, 2, 1, 3, 1 if p.slices > 1 else 2)  # of W, x, loss, dW, dx
    bounds = p.threads, cuda_numba.blocks_at_once(p)
    return Compiled(p, *compile_source(source, dtype, dimensions, sizes, chip, bounds))


def compile_source(function, dtype, dimensions, sizes, chip, bounds=None):
    """A function of C-contiguous arrays and of ``sizes`` integers: its PTX, and what its machine code uses."""
    cc = int(chip[:-1]), int(chip[-1])
    real = getattr(types, dtype)
    arrays = (real[(slice(None),) * (d - 1) + (slice(None, None, 1),)] if d > 1 else real[::1] for d in dimensions)
    with _device(cc):
        ptx, _ = cuda.compile_ptx(function, (*arrays, *(types.int64,) * sizes), cc=cc, launch_bounds=bounds)
    linker = Linker(ObjectCode.from_ptx(ptx.encode()), options=LinkerOptions(arch=f"sm_{chip}", ptxas_options=["-v"]))
    assert linker.link("cubin").code.startswith(b"\x7fELF")
    # The successor leaves device functions in the PTX that are part of the kernel already; ptxas has them before it.
    _, log = linker.get_info_log().split("Compiling entry function")
    # ptxas leaves the shared arrays to the linker, whose log does not tell.
    return ptx, usage(log, re.findall(r"\.shared .*\[(\d+)\];", ptx))


def _device(cc):
    """Device functions are compiled for the current device, of which there is none."""
    if cuda_framework.package() == "numba_cuda":
        from numba.cuda import dispatcher

        return mock.patch.object(dispatcher, "get_current_device", return_value=SimpleNamespace(compute_capability=cc))
    from numba_cuda_mlir import tools

    return mock.patch.object(tools, "_cached_cc", cc)
