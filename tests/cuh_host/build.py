"""An ElementwiseKernel as a library, or as a program with a sanitizer, by the system's C++ compiler."""

import atexit
import os
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
# -fno-strict-aliasing: as in CUDA, 16 bytes of an array of float may be moved as one float4.
FLAGS = ("-std=c++20", "-O1", "-g", "-fPIC", "-fno-strict-aliasing", "-pthread", f"-I{HERE}")
# The recorder's own __tsan_* are linked in. Inlined functions, because a place in the program is an address.
RECORD = ("-fsanitize=thread", "-D__device__=__attribute__((always_inline))")

_SOURCE = """#include "cuda.h"
typedef {real} T;
#line 1 "sigmoid_l2.cuh"
{preamble}
#line 1 "operation"
extern "C" const char* launch(long long first, long long end, int threads, {parameters}) {{
    return run_grid(first, end, threads, sizeof(T) == 4, [=] {{ {operation} }});
}}
int main(int, char** argv) {{ return report(launch(0, number(argv[1]), int(number(argv[2])), {arguments})); }}
"""


@cache
def library(kernel: Any, real: str) -> Path:
    """A library with ``launch`` for an ElementwiseKernel of raw T and int64."""
    return _linked([_kernel(kernel, real), _part("grid.cpp"), _part("warp.cpp")], "-shared")


@cache
def recorder(kernel: Any, real: str) -> Path:
    """The same that notes down its accesses to memory, and has the functions of record.cpp."""
    parts = [_part(name) for name in ("grid.cpp", "warp.cpp", "record.cpp")]
    return _linked([_kernel(kernel, real, *RECORD), *parts], "-shared", "-Wl,-Bsymbolic")


@cache
def program(kernel: Any, real: str, sanitizer: str) -> Path:
    """A program with a sanitizer, to be given the number of blocks, threads and each of the kernel's arguments."""
    flags = (f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all")
    return _linked([_kernel(kernel, real, *flags), _part("grid.cpp", *flags), _part("warp.cpp")], *flags)


def _kernel(kernel: Any, real: str, *flags: str) -> Path:
    parameters = kernel.params[:-1]  # the last is CuPy's own index
    preamble = re.sub(r"__shared__ (\w+) (\w+)\[(.+)\];", r'static \1 \2[\3]; poison("\2", \2);', kernel.preamble)
    assert "__shared__ " not in re.sub("//.*", "", preamble)
    return _compiled(
        _SOURCE.format(
            real=real,
            preamble=preamble,
            parameters=", ".join(f"{'const ' * p.is_const}{p.ctype}{'*' * p.raw} {p.name}" for p in parameters),
            arguments=", ".join(
                f"zeros<T>(argv[{i}])" if p.raw else f"number(argv[{i}])" for i, p in enumerate(parameters, 3)
            ),
            operation=kernel.operation,
        ),
        *flags,
    )


@cache
def _part(name: str, *flags: str) -> Path:
    """The object file of one of the files here; skips the test where the compiler is too old for it."""
    done, _ = _compile("#include <barrier>\nint main() { std::barrier<> barrier(1); }")
    if done.returncode:
        pytest.skip(f"the C++ compiler does not have C++20 with <barrier>: {first_error(done)}")
    return _compiled((HERE / name).read_text(), *flags)


def _compiled(text: str, *flags: str) -> Path:
    done, built = _compile(text, "-c", *flags)
    assert done.returncode == 0, done.stderr
    return built


def _linked(parts: list[Path], *flags: str) -> Path:
    built = parts[0].with_name("linked")
    done = run(_compiler(), *FLAGS, *parts, *flags, "-o", built)
    assert done.returncode == 0, done.stderr
    return built


@cache
def runner(sanitizer: str) -> tuple[str, ...]:
    """The command prefix under which programs with ``sanitizer`` run here; skips the test where there is none."""
    done, built = _compile("int main() {}", f"-fsanitize={sanitizer}")
    if done.returncode:
        pytest.skip(f"-fsanitize={sanitizer} does not link here: {first_error(done)}")
    # TSan of older compilers refuses a kernel that randomizes addresses by more bits than it knows of.
    for prefix in ((), ("setarch", "-R")) if shutil.which("setarch") else ((),):
        done = run(*prefix, built)
        if done.returncode == 0:
            return prefix
    return pytest.skip(f"-fsanitize={sanitizer} does not run here: {done.stderr.strip()}")


def first_error(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stderr.splitlines()
    return next((line.partition("error: ")[2] for line in lines if "error: " in line), lines[0])


@cache
def _compiler() -> str:
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)
    return compiler or pytest.skip("no C++ compiler: neither $CXX, c++, g++ nor clang++")


@cache
def _compile(text: str, *arguments: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    directory = Path(tempfile.mkdtemp(dir=_directory()))
    (directory / "source.cpp").write_text(text)
    built = directory / "built"
    return run(_compiler(), *FLAGS, directory / "source.cpp", *arguments, "-o", built), built


def run(*command: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)


@cache
def _directory() -> str:
    directory = tempfile.mkdtemp(prefix="sigmoid_l2_cuh_host_")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory
