"""The CuPy kernel on the host, where there is no GPU: real threads, a real barrier, the system's C++ compiler.

All but the compiler is the real thing: ``cuda_cupy.fused`` chooses the launch, and what is compiled is the preamble and
the operation of the ElementwiseKernel that it builds. float32 runs as CuPy compiles it, with subnormals flushed to 0.
"""

import atexit
import ctypes
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any
from unittest import mock

import numpy as np
import pytest

HERE = Path(__file__).parent
FLAGS = ("-std=c++20", "-O1", "-g", "-fPIC", "-pthread", f"-I{HERE}")
_fused_lock = Lock()

_SOURCE = """#include "cuda.h"
typedef {real} T;
#line 1 "sigmoid_l2.cuh"
{preamble}
#line 1 "operation"
extern "C" void launch(long long first, long long end, int threads, {parameters}) {{
    run_grid(first, end, threads, sizeof(T) == 4, [=] {{ {operation}; }});
}}
int main(int, char** argv) {{ launch(0, number(argv[1]), int(number(argv[2])), {arguments}); }}
"""


def fused(W: Any, x: Any, loss: Any, dW: Any, dx: Any, *, stream: int | None = None) -> None:
    """Compute loss, dW and dx of NumPy arrays; the contract is in ``sigmoid_l2.kernels``."""
    _launch(call, W, x, loss, dW, dx)


def last_block(*arrays: Any) -> None:
    """What the last block of ``fused(*arrays)`` computes, and no other."""

    def run(kernel: Any, real: str, blocks: int, threads: int, *arguments: Any) -> None:
        call(kernel, real, blocks, threads, *arguments, first=blocks - 1)

    _launch(run, *arrays)


def sanitize(sanitizer: str, *arrays: Any, barrier_left_out: int = 0) -> str:
    """What ``sanitizer`` reports of the same launch, on zeros, in a program of its own; "" where that is nothing.

    ``barrier_left_out`` is the line of sigmoid_l2.cuh whose barrier is to be passed without waiting.
    """
    reports = []

    def run(kernel: Any, real: str, *arguments: Any) -> None:
        prefix = _runner(sanitizer)
        program = build(kernel, real, f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all")
        sizes = [str(getattr(a, "size", a)) for a in arguments]
        environment = {**os.environ, "BARRIER_LEFT_OUT": str(barrier_left_out), "ASAN_OPTIONS": "detect_leaks=0"}
        done = _run(*prefix, program, *sizes, env=environment)
        reports.append(done.stderr if done.returncode else "")

    _launch(run, *arrays)
    return "".join(reports)


def _launch(run: Callable[..., None], *arrays: Any) -> None:
    """``cuda_cupy.fused(*arrays)`` with its kernels run by ``run(kernel, real, blocks, threads, *arguments)``."""
    pytest.importorskip("cupy", exc_type=ImportError)
    from sigmoid_l2.kernels import cuda_cupy

    def stand_in(builder: Callable[..., Any]) -> Callable[..., Any]:
        def build_stand_in(*template: Any) -> Callable[..., None]:
            def kernel(*arguments: Any, size: int, block_size: int, stream: Any) -> None:
                assert size % block_size == 0, "a thread without a trip through CuPy's loop would miss the barriers"
                real = {"f": "float", "d": "double"}[arrays[0].dtype.char]
                run(builder(*template), real, size // block_size, block_size, *arguments)

            return kernel

        return build_stand_in

    builders = {name: stand_in(getattr(cuda_cupy, name)) for name in ("staged_kernel", "block_kernel")}
    with _fused_lock, mock.patch.multiple(cuda_cupy, **builders):
        cuda_cupy.fused(*arrays)


def call(kernel: Any, real: str, blocks: int, threads: int, *arguments: Any, first: int = 0) -> None:
    """Run the blocks from ``first`` of an ElementwiseKernel for "float" or "double"."""
    _library(kernel, real).launch(
        ctypes.c_longlong(first),
        ctypes.c_longlong(blocks),
        threads,
        *(ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else ctypes.c_longlong(a) for a in arguments),
    )


@cache
def _library(kernel: Any, real: str) -> ctypes.CDLL:
    return ctypes.CDLL(str(build(kernel, real, "-shared")))


@cache
def build(kernel: Any, real: str, *flags: str) -> Path:
    """A library with ``launch``, or without "-shared" a program, for an ElementwiseKernel of raw T and int64."""
    parameters = kernel.params[:-1]  # the last is CuPy's own index
    text = _SOURCE.format(
        real=real,
        preamble=re.sub(r"__shared__ (.+) (\w+)\[(.+)\];", r"static \1 \2[\3]; poison(\2);", kernel.preamble),
        parameters=", ".join(f"{'const ' * p.is_const}{p.ctype}{'*' * p.raw} {p.name}" for p in parameters),
        arguments=", ".join(
            f"zeros<T>(argv[{i}])" if p.raw else f"number(argv[{i}])" for i, p in enumerate(parameters, 3)
        ),
        operation=kernel.operation,
    )
    done, built = _compile(text, grid(*(flag for flag in flags if flag != "-shared")), *flags)
    assert done.returncode == 0, done.stderr
    return built


@cache
def grid(*flags: str) -> Path:
    """The object file of grid.cpp; skips the test where the compiler is too old for it."""
    done, _ = _compile("#include <barrier>\nint main() { std::barrier<> barrier(1); }")
    if done.returncode:
        pytest.skip(f"the C++ compiler does not have C++20 with <barrier>: {_first_error(done)}")
    done, built = _compile((HERE / "grid.cpp").read_text(), "-c", *flags)
    assert done.returncode == 0, done.stderr
    return built


@cache
def _runner(sanitizer: str) -> tuple[str, ...]:
    """The command prefix under which programs with ``sanitizer`` run here; skips the test where there is none."""
    done, program = _compile("int main() {}", f"-fsanitize={sanitizer}")
    if done.returncode:
        pytest.skip(f"-fsanitize={sanitizer} does not link here: {_first_error(done)}")
    # TSan of older compilers refuses a kernel that randomizes addresses by more bits than it knows of.
    for prefix in ((), ("setarch", "-R")) if shutil.which("setarch") else ((),):
        done = _run(*prefix, program)
        if done.returncode == 0:
            return prefix
    return pytest.skip(f"-fsanitize={sanitizer} does not run here: {done.stderr.strip()}")


def _first_error(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stderr.splitlines()
    return next((line.partition("error: ")[2] for line in lines if "error: " in line), lines[0])


@cache
def _compile(text: str, *arguments: str | Path) -> tuple[subprocess.CompletedProcess[str], Path]:
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)
    if compiler is None:
        pytest.skip("no C++ compiler: neither $CXX, c++, g++ nor clang++")
    directory = Path(tempfile.mkdtemp(dir=_directory()))
    (directory / "source.cpp").write_text(text)
    return _run(compiler, *FLAGS, directory / "source.cpp", *arguments, "-o", directory / "built"), directory / "built"


def _run(*command: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)


@cache
def _directory() -> str:
    directory = tempfile.mkdtemp(prefix="sigmoid_l2_cuh_host_")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory
