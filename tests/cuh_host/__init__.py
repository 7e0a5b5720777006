"""The CuPy kernels on the host, where there is no GPU: real threads, real barriers, the system's C++ compiler.

All but the compiler is the real thing: ``cuda_cupy.fused`` chooses the launches, and what is compiled is the preamble
and the operation of the ElementwiseKernels that it builds. float32 runs as CuPy compiles it, with subnormals flushed to
0. Shuffles wait for all lanes of their warp, but to a sanitizer they do not order accesses to memory.
"""

import ctypes
import os
from collections.abc import Callable
from functools import cache
from threading import Lock
from typing import Any
from unittest import mock

import numpy as np
import pytest
from traffic import Access

from sigmoid_l2.kernels import cuda_launch

from . import build

REALS = {"f": "float", "d": "double"}  # by the dtype's character
BUILDERS = ("staged_kernel", "rows_kernel", "long_kernel", "finish_kernel")
_fused_lock = Lock()


def fused(W: Any, x: Any, loss: Any, dW: Any, dx: Any, *, stream: int | None = None) -> None:
    """Compute loss, dW and dx of NumPy arrays; the contract is in ``sigmoid_l2.kernels``."""
    launch(call, W, x, loss, dW, dx)


def last_pair(*arrays: Any) -> None:
    """What the blocks of the last pair compute in the last launches of ``fused(*arrays)``, and no others."""
    launches = []
    launch(lambda *a: launches.append(a), *arrays)
    _, m, n = arrays[0].shape
    slices = cuda_launch.plan(m, n, arrays[0].itemsize).slices
    for kernel, real, blocks, threads, *arguments in launches[-2 if slices > 1 else -1 :]:
        of_pair = n // cuda_launch.WARP + 1 if kernel.name.endswith("finish") else slices
        call(kernel, real, blocks, threads, *arguments, first=blocks - of_pair)


def record(*arrays: Any, wide: bool = True) -> dict[str, list[Access]]:
    """What the first block of each kernel that ``fused(*arrays)`` launches does with memory, by the kernel's name.

    Arrays are taken for aligned to 16 bytes, or for not, whatever they are.
    """
    seen = {}

    def run(kernel: Any, real: str, blocks: int, threads: int, *arguments: Any) -> None:
        names = [p.name for p in kernel.params]
        of_arrays = {name: a for name, a in zip(names, arguments, strict=False) if isinstance(a, np.ndarray)}
        seen.setdefault(kernel.name, _record(kernel, real, threads, arguments, of_arrays))

    launch(run, *arrays, address=lambda a: 0 if wide else 4)
    return seen


def sanitize(sanitizer: str, *arrays: Any, barrier_left_out: int = 0) -> str:
    """What ``sanitizer`` reports of the same launches, on zeros, in programs of their own; "" where that is nothing.

    ``barrier_left_out`` is the line of sigmoid_l2.cuh whose barrier is to be passed without waiting.
    """
    reports = []

    def run(kernel: Any, real: str, *arguments: Any) -> None:
        prefix = build.runner(sanitizer)
        sizes = [str(getattr(a, "size", a)) for a in arguments]
        environment = {**os.environ, "BARRIER_LEFT_OUT": str(barrier_left_out), "ASAN_OPTIONS": "detect_leaks=0"}
        done = build.run(*prefix, build.program(kernel, real, sanitizer), *sizes, env=environment)
        reports.append(done.stderr if done.returncode else "")

    launch(run, *arrays)
    return "".join(reports)


def _address(a: Any) -> int:
    return a.ctypes.data if isinstance(a, np.ndarray) else 0


def launch(run: Callable[..., None], *arrays: Any, address: Callable[[Any], int] = _address) -> None:
    """``cuda_cupy.fused(*arrays)`` with its kernels run by ``run(kernel, real, blocks, threads, *arguments)``.

    The workspace has room for two pairs, so that a larger batch whose pairs are cut into slices takes several launches.
    """
    pytest.importorskip("cupy", exc_type=ImportError)
    from sigmoid_l2.kernels import cuda_cupy

    def stand_in(builder: Callable[..., Any]) -> Callable[..., Any]:
        def build_stand_in(*key: Any) -> Callable[..., None]:
            def kernel(*arguments: Any, size: int, block_size: int, stream: Any) -> None:
                assert size % block_size == 0, "a thread without a trip through CuPy's loop would miss the barriers"
                run(builder(*key), REALS[arrays[0].dtype.char], size // block_size, block_size, *arguments)

            return kernel

        return build_stand_in

    _, m, n = arrays[0].shape
    itemsize = arrays[0].dtype.itemsize
    workspace = _aligned(2 * cuda_launch.plan(m, n, itemsize).slices * (n + 1) * itemsize)
    with (
        _fused_lock,
        mock.patch.multiple(cuda_cupy, **{name: stand_in(getattr(cuda_cupy, name)) for name in BUILDERS}),
        mock.patch.multiple(cuda_cupy, _address=address, _workspace=lambda stream: workspace),
    ):
        cuda_cupy.fused(*arrays)


def _aligned(size: int) -> np.ndarray:
    memory = np.full(size + 128, 0xFF, np.uint8)  # NaN
    first = -memory.ctypes.data % 128
    return memory[first : first + size]


def call(kernel: Any, real: str, blocks: int, threads: int, *arguments: Any, first: int = 0) -> None:
    """Run the blocks from ``first`` of an ElementwiseKernel for "float" or "double"."""
    _run(_library(kernel, real), first, blocks, threads, arguments)


@cache
def _library(kernel: Any, real: str) -> ctypes.CDLL:
    return _with_types(ctypes.CDLL(str(build.library(kernel, real))))


@cache
def _recorder(kernel: Any, real: str) -> ctypes.CDLL:
    recorder = _with_types(ctypes.CDLL(str(build.recorder(kernel, real))))
    recorder.count_accesses.restype = ctypes.c_longlong
    recorder.all_accesses.restype = ctypes.POINTER(ctypes.c_longlong)
    recorder.array_name.restype = ctypes.c_char_p
    return recorder


def _with_types(library: ctypes.CDLL) -> ctypes.CDLL:
    library.launch.restype = ctypes.c_char_p
    return library


def _run(library: ctypes.CDLL, first: int, end: int, threads: int, arguments: tuple[Any, ...]) -> None:
    failure = library.launch(
        ctypes.c_longlong(first),
        ctypes.c_longlong(end),
        threads,
        *(ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else ctypes.c_longlong(a) for a in arguments),
    )
    assert failure == b"", failure


def _record(
    kernel: Any, real: str, threads: int, arguments: tuple[Any, ...], arrays: dict[str, np.ndarray]
) -> list[Access]:
    recorder = _recorder(kernel, real)
    recorder.forget()
    names = [name.encode() for name in arrays]
    for name, a in zip(names, arrays.values(), strict=True):
        recorder.see_global(name, ctypes.c_void_p(a.ctypes.data), ctypes.c_longlong(a.nbytes))
    _run(recorder, 0, 1, threads, arguments)
    columns = ("thread", "site", "array", "write", "offset", "size")
    rows = np.ctypeslib.as_array(recorder.all_accesses(), (recorder.count_accesses(), len(columns))).tolist()
    seen = {a: (recorder.array_name(a).decode(), a >= len(names)) for a in {row[2] for row in rows}}
    return [Access(thread, site, *seen[a], bool(write), offset, size) for thread, site, a, write, offset, size in rows]
