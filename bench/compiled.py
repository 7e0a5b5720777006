"""What the machine code of the GPU kernels uses of a chip, with no GPU: registers, shared memory, instructions."""

import re
import struct
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))  # for cupy_compile and ptxas

INSTRUCTION_BYTES = 16  # on every chip since Volta


class Used(NamedTuple):
    """What the compiler says of one kernel on one chip."""

    registers: int  # a thread
    shared: int  # bytes a block
    instructions: int  # in the machine code


@cache
def by_cupy(kernel: Any, dtype: str, cc: int) -> Used:
    """An ElementwiseKernel, compiled as CuPy does it."""
    from cupy_compile import compile_cupy

    code, usage = compile_cupy(kernel, dtype, str(cc))
    return Used(usage.registers, usage.shared, instructions(code))


@cache
def by_numba(m: int, n: int, dtype: str, cc: int) -> tuple[Used, ...]:
    """The kernels that a call with all outputs launches for one pair, compiled as numba does it."""
    return tuple(_compile_numba(*launch, cc) for launch in _launches(m, n, dtype))


def _launches(m: int, n: int, dtype: str) -> list[tuple[Any, tuple[int, int], tuple[Any, ...]]]:
    """Function, threads and blocks that it is compiled for, and arguments."""
    from sigmoid_l2.kernels import cuda_numba

    seen: list[Any] = []

    class Kernel:
        def __init__(self, *compiled_for: Any) -> None:
            self.compiled_for = compiled_for

        def __getitem__(self, _: Any) -> Callable[..., None]:
            return lambda *arguments: seen.append((self.compiled_for[0], self.compiled_for[1:], arguments))

    def array(*shape: int) -> Any:
        return SimpleNamespace(shape=shape, dtype=np.dtype(dtype), copy_to_host=None)

    builders = {name: getattr(cuda_numba, name).__wrapped__ for name in ("_staged", "_rows", "_long", "_finish")}
    workspace = mock.patch.multiple(cuda_numba, _workspace=lambda *_: array(1), **builders)
    framework = mock.patch.multiple(cuda_numba.framework, kernel=Kernel, address=lambda _: 0)
    with workspace, framework:
        cuda_numba.fused(array(1, m, n), array(1, n), array(1), array(1, m, n), array(1, n))
    return seen


def _compile_numba(function: Any, bounds: tuple[int, int], arguments: tuple[Any, ...], cc: int) -> Used:
    from cuda.core import Linker, LinkerOptions, ObjectCode
    from numba import cuda, from_dtype, types
    from numba.cuda import dispatcher
    from ptxas import usage

    signature = tuple(
        types.int64 if isinstance(a, int) else types.Array(from_dtype(a.dtype), len(a.shape), "C") for a in arguments
    )
    chip = divmod(cc, 10)
    # A device function that a kernel calls is compiled for the current device, of which there is none.
    with mock.patch.object(dispatcher, "get_current_device", return_value=SimpleNamespace(compute_capability=chip)):
        ptx, _ = cuda.compile_ptx(function, signature, cc=chip, launch_bounds=bounds)
    linker = Linker(ObjectCode.from_ptx(ptx.encode()), options=LinkerOptions(arch=f"sm_{cc}", ptxas_options=["-v"]))
    code = linker.link("cubin").code
    # ptxas leaves the shared arrays to the linker, whose log does not tell.
    used = usage(linker.get_info_log(), re.findall(r"\.shared .*\[(\d+)\];", ptx))
    return Used(used.registers, used.shared, instructions(code))


def instructions(machine_code: bytes) -> int:
    """How many are in the .text sections of an ELF file of 64 bits."""

    def sections() -> Iterator[tuple[int, int, int]]:  # name, offset, size
        (table,) = struct.unpack_from("<Q", machine_code, 0x28)
        size, count = struct.unpack_from("<HH", machine_code, 0x3A)
        for i in range(count):
            name, _, _, _, offset, length = struct.unpack_from("<IIQQQQ", machine_code, table + i * size)
            yield name, offset, length

    own = list(sections())
    names = own[struct.unpack_from("<H", machine_code, 0x3E)[0]][1]
    text = [length for name, _, length in own if machine_code[names + name :].startswith(b".text.")]
    return sum(text) // INSTRUCTION_BYTES
