"""What ``fused``, ``shared`` and ``batch_last`` of a GPU library launch for NumPy arrays; that executed from its PTX.

The host code is the real one: it chooses the kernels and their sizes. Only what would need a device is taken from it.
"""

import importlib
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from processes import made_once

from gpu import code, machine, ptx
from gpu.memory import Global
from gpu.traffic import Traffic
from sigmoid_l2.kernels.gpu import launch as host
from sigmoid_l2.kernels.gpu import launch_batch_last, launch_shared, plan

NAMES = ("W", "x", "target", "cotangent", "loss", "dW", "dx", "dq")
MODULES = {"cupy": "launch_cupy", "numba-cuda": "launch_numba"}
WORKSPACE_PAIRS = 2  # that the workspace has room for, so that a batch of more takes several launches


class Launch(NamedTuple):
    """A kernel on its way to the device: what to compile, how it is launched, and with which arguments."""

    kernel: Any  # an ElementwiseKernel, or numba's dispatcher
    blocks: int
    threads: int
    arguments: tuple[int, ...]  # addresses and sizes
    key: tuple[Any, ...] = ()  # what the kernel was built from: two with equal ones are the same; () is not known

    @property
    def by_numba(self) -> bool:
        """Whether it is a kernel in numba.cuda."""
        return hasattr(self.kernel, "py_func")

    @property
    def name(self) -> str:
        """The kernel's: "staged", "rows", "long", "q", "gradients" or "finish"; for one W "tiny" or "sums"; "last"."""
        return (self.kernel.py_func.__name__ if self.by_numba else self.kernel.name).rpartition("_")[2]

    def text(self) -> str:
        """The PTX that would run."""
        return made_once(partial(code.ptx, self), "PTX", *self.key) if self.key else code.ptx(self)

    def used(self, chip: int) -> code.Used:
        """What the machine code uses."""
        return made_once(partial(code.used, self, chip), "used", chip, *self.key) if self.key else code.used(self, chip)

    def parameters(self) -> list[bytes]:
        """The arguments as the kernel gets them; of CuPy's also its index at the end."""
        size = self.blocks * self.threads
        packed = [struct.pack("<q", a) for a in self.arguments]
        return packed if self.by_numba else [*packed, struct.pack("<3q", size, size, 1)]


def launches_of(
    backend: str, *arrays: Any, wide: bool | None = None, batch_last: bool = False
) -> tuple[list[Launch], Global]:
    """The launches of ``fused(*arrays)`` of "cupy" or "numba-cuda", and the memory that they use.

    Those of ``batch_last`` if that is asked for, and of ``shared`` if W is one for all pairs. ``wide`` says whether
    arrays are to be taken for aligned to 16 bytes; None: as they are.
    """
    W = arrays[0]
    memory = Global()
    for name, a in zip(NAMES, arrays, strict=True):
        if a is not None:
            memory.add(name, a if a.flags.c_contiguous else a.base)  # of a view all memory that it is of
    launched: list[Launch] = []

    launcher = importlib.import_module(f"sigmoid_l2.kernels.gpu.{MODULES[backend]}")
    m, n = W.shape[:2] if batch_last else W.shape[-2:]
    room = int(WORKSPACE_PAIRS * host.sums_of_pair(plan.make_plan(m, n, W.itemsize), m, n) * W.itemsize)

    def workspace(stream: int | None, nbytes: int) -> Any:
        held = aligned(np.full(nbytes // W.itemsize, np.nan, W.dtype))
        memory.add("workspace", held)
        return held.view(np.uint8)

    def recorded(build: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *key: _Recorded(build(*key), (backend, build.__name__, *key), launched)

    names = [name for name in vars(launcher) if name.endswith("_kernel") and not name.startswith("_")]
    builders = {name: recorded(getattr(launcher, name)) for name in names}
    with ExitStack() as patches:
        patches.enter_context(mock.patch.multiple(launcher, workspace=workspace, **builders))
        for module in (host, launch_shared, launch_batch_last):
            patches.enter_context(mock.patch.object(module, "address", lambda a: a.ctypes.data))
            if wide is not None and hasattr(module, "are_aligned"):
                patches.enter_context(mock.patch.object(module, "are_aligned", return_value=wide))
        patches.enter_context(mock.patch.object(plan, "WORKSPACE_BYTES", room))
        getattr(launcher, "batch_last" if batch_last else "shared" if W.ndim == 2 else "fused")(*arrays)
    return launched, memory


class _Recorded:
    """A kernel whose launches are noted down, by the call of either library."""

    overloads = True  # numba's, of what is compiled: the launch has nothing left to compile

    def __init__(self, kernel: Any, key: tuple[Any, ...], launched: list[Launch]) -> None:
        self.kernel, self.key, self.launched = kernel, key, launched

    def __call__(self, *arguments: Any, size: int, block_size: int, stream: Any) -> None:
        """CuPy's."""
        assert size % block_size == 0, "a thread without a trip through CuPy's loop would miss the barriers"
        self.launched.append(Launch(self.kernel, size // block_size, block_size, arguments, self.key))

    def __getitem__(self, configuration: tuple[int, int, Any]) -> Callable[..., None]:
        """numba's."""
        return lambda *arguments: self.launched.append(Launch(self.kernel, *configuration[:2], arguments, self.key))


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


def fused(backend: str, *arrays: Any, stream: int | None = None, call_bytes: int = 0) -> None:
    """``fused`` of a GPU kernel on NumPy arrays, or ``shared`` where there is one W, executed from its PTX."""
    run(*launches_of(backend, *arrays))


def aligned(a: Any, beyond: int = 0) -> Any:
    """A copy that begins ``beyond`` bytes after a multiple of 128."""
    held = np.empty(a.nbytes + 256, np.uint8)
    first = -held.ctypes.data % 128 + beyond
    copy = held[first : first + a.nbytes].view(a.dtype).reshape(a.shape)
    copy[...] = a
    return copy
