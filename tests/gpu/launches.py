"""What ``fused`` of each GPU kernel launches for NumPy arrays, and those launches executed from their PTX.

The host code is the real one: it chooses the kernels and their sizes. Only what would need a device is taken from it.
"""

import importlib
import struct
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import cache
from math import prod
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from gpu import code, machine, ptx
from gpu.memory import Global
from gpu.traffic import Traffic
from sigmoid_l2.kernels.gpu import plan

NAMES = ("W", "x", "loss", "dW", "dx")
MODULES = {"cupy": "launch_cupy", "numba-cuda": "launch_numba"}
CUPY_BUILDERS = ("staged_kernel", "rows_kernel", "long_kernel", "finish_kernel")
NUMBA_BUILDERS = ("_staged", "_rows", "_long", "_finish", "_old_finish")
WORKSPACE_PAIRS = 2  # that have room for their partial sums, so that a batch of more takes several launches


class Launch(NamedTuple):
    """A kernel on its way to the device: what to compile, how it is launched, and with which arguments."""

    source: Any  # an ElementwiseKernel, or numba's Python function
    bounds: Any  # numba's launch bounds; None with CuPy
    dtype: str
    blocks: int
    threads: int
    arguments: tuple[Any, ...]  # arrays and integers

    @property
    def name(self) -> str:
        """The kernel's: "staged", "rows", "long" or "finish"."""
        return (self.source.__name__ if self.bounds else self.source.name).rpartition("_")[2]

    @property
    def types(self) -> tuple[tuple[int, ...], int]:
        """The number of dimensions of each array, and how many integers come after them."""
        dimensions = tuple(a.ndim for a in self.arguments if not isinstance(a, int))
        return dimensions, len(self.arguments) - len(dimensions)

    def text(self) -> str:
        """The PTX that would run."""
        if self.bounds is None:
            return code.cupy_ptx(self.source, self.dtype, self.types[0])
        return code.numba_ptx(self.source, self.dtype, *self.types, self.bounds)

    def parameters(self) -> list[bytes]:
        """The arguments as the kernel gets them."""
        if self.bounds is None:  # an array is a struct, and at the end comes CuPy's index
            size = self.blocks * self.threads
            return [*map(_for_cupy, self.arguments), struct.pack("<3q", size, size, 1)]
        return [struct.pack("<q", value) for a in self.arguments for value in _for_numba(a)]


def _layout(a: Any) -> tuple[int, ...]:
    return *a.shape, *(prod(a.shape[axis + 1 :]) * a.itemsize for axis in range(a.ndim))


def _for_cupy(a: Any) -> bytes:
    values = (a,) if isinstance(a, int) else (a.ctypes.data, a.size, *_layout(a))
    return struct.pack(f"<{len(values)}q", *values)


def _for_numba(a: Any) -> tuple[int, ...]:
    return (a,) if isinstance(a, int) else (0, 0, a.size, a.itemsize, a.ctypes.data, *_layout(a))


def launches_of(backend: str, *arrays: Any, wide: bool | None = None) -> tuple[list[Launch], Global]:
    """The launches of ``fused(*arrays)`` of "cupy" or "numba-cuda", and the memory that they use.

    ``wide`` says whether arrays are to be taken for aligned to 16 bytes; None: as they are.
    """
    W = arrays[0]
    memory = Global()
    for name, a in zip(NAMES, arrays, strict=True):
        if a is not None:
            memory.add(name, a)
    launched: list[Launch] = []

    def address(a: Any) -> int:
        return (0 if wide else a.itemsize) if wide is not None else a.ctypes.data

    def workspace(elements: int) -> Any:
        held = aligned(np.full(elements, np.nan, W.dtype))
        memory.add("workspace", held)
        return held.view(np.uint8) if backend == "cupy" else held

    kernels = importlib.import_module(f"sigmoid_l2.kernels.gpu.{MODULES[backend]}")
    _, m, n = W.shape
    # By pair, as each kernel reckons.
    sums = n + 1 if backend == "cupy" else kernels.unit_sums(n, W.itemsize)
    room = WORKSPACE_PAIRS * plan.make_plan(m, n, W.itemsize).slices * sums
    with ExitStack() as patches:
        for target, names in (_in_cupy if backend == "cupy" else _in_numba)(kernels, launched, W, address):
            patches.enter_context(mock.patch.multiple(target, **names))
        patches.enter_context(mock.patch.object(kernels, "_workspace", cache(lambda *_: workspace(room))))
        patches.enter_context(mock.patch.object(plan, "WORKSPACE_BYTES", room * W.itemsize))
        kernels.fused(*arrays)
    return launched, memory


StandIns = Iterable[tuple[Any, dict[str, Any]]]  # what to replace, and its attributes


def _in_cupy(kernels: Any, launched: list[Launch], W: Any, address: Any) -> StandIns:
    def stand_in(builder: Any) -> Any:
        def build(*key: Any) -> Any:
            def kernel(*arguments: Any, size: int, block_size: int, stream: Any) -> None:
                assert size % block_size == 0, "a thread without a trip through CuPy's loop would miss the barriers"
                launched.append(Launch(builder(*key), None, W.dtype.name, size // block_size, block_size, arguments))

            return kernel

        return build

    yield kernels, {name: stand_in(getattr(kernels, name)) for name in CUPY_BUILDERS} | {"_address": address}


class _NumbaKernel:
    """In place of framework.kernel's, kept from call to call; the class has what is a call's own."""

    launched: list[Launch]
    dtype: str

    def __init__(self, function: Any, threads: int, blocks: int) -> None:
        self.function, self.bounds = function, (threads, blocks)

    def __getitem__(self, launch: tuple[int, int, Any]) -> Any:
        def kernel(*arguments: Any) -> None:
            self.launched.append(Launch(self.function, self.bounds, self.dtype, *launch[:2], arguments))

        return kernel


@cache
def _numba_builders() -> dict[str, Any]:
    """With caches of their own: those of launch_numba may have kernels for a device."""
    kernels = importlib.import_module("sigmoid_l2.kernels.gpu.launch_numba")
    return {name: cache(getattr(kernels, name).__wrapped__) for name in NUMBA_BUILDERS}


def _in_numba(kernels: Any, launched: list[Launch], W: Any, address: Any) -> StandIns:
    _NumbaKernel.launched, _NumbaKernel.dtype = launched, W.dtype.name
    yield kernels.framework, {"kernel": _NumbaKernel, "address": address}
    yield kernels, {"_device_array": lambda a: a, **_numba_builders()}


def run(
    launched: list[Launch],
    memory: Global,
    *,
    only: range | None = None,
    count: bool = False,
    change: Callable[[str], str] = lambda text: text,
) -> list[tuple[Counter[str], Any]]:
    """Execute the launches, or ``only`` some blocks of each, from their PTX after ``change``.

    For each the instructions issued to warps, by opcode, and (None if not ``count``) the Traffic.
    """
    done = []
    for launch in launched:
        kernel, traffic = ptx.parse(change(launch.text())), Traffic() if count else None
        sizes = launch.blocks, launch.threads
        issued = machine.launch(kernel, *sizes, launch.parameters(), memory, only=only, traffic=traffic)
        done.append((issued, traffic))
    return done


def fused(backend: str, *arrays: Any, stream: int | None = None) -> None:
    """``fused`` of a GPU kernel on NumPy arrays, executed from its PTX."""
    run(*launches_of(backend, *arrays))


def aligned(a: Any, beyond: int = 0) -> Any:
    """A copy that begins ``beyond`` bytes after a multiple of 128."""
    held = np.empty(a.nbytes + 256, np.uint8)
    first = -held.ctypes.data % 128 + beyond
    copy = held[first : first + a.nbytes].view(a.dtype).reshape(a.shape)
    copy[...] = a
    return copy
