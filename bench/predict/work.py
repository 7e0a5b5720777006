"""What the launches of a call do: the PTX of the first block of each is executed, as the tests do, and counted."""

import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from sigmoid_l2.kernels.gpu import plan, plan_shared
from sigmoid_l2.kernels.gpu.launch import sums_of_pair
from sigmoid_l2.kernels.gpu.plan_types import SharedBlocks

sys.path += [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2] / "tests")]
from gpu import launches
from gpu.chips import WARP
from model import SECTOR_BYTES, Work
from shared import SharedCase
from workload import Case

FLOAT64_OPCODES = ("abs", "add", "fma", "max", "min", "mul", "neg", "rcp", "setp", "sub")  # of float64 units
FLOAT32_OPCODES = ("add", "fma", "mul", "sub")  # of float32 units


class Launched(NamedTuple):
    """A launch of a call, and what its first block does."""

    launch: Any
    work: Work


@cache
def launches_of(backend: str, case: Case) -> tuple[Launched, ...]:
    """The launches of a call: one, or several where pairs are cut up, or where all have one W."""
    B, m, n, dtype = case.B, case.m, case.n, case.dtype
    itemsize = np.dtype(dtype).itemsize
    W, x, loss, dW, dx = (_zeros(shape, dtype) for shape in (case.matrices, (B, n), (B,), case.matrices, (B, n)))
    one_W, dq, pairs = isinstance(case, SharedCase), None, launches.WORKSPACE_PAIRS
    if not one_W:
        sums = sums_of_pair(plan.make_plan(m, n, itemsize), m, n)
        pairs = max(1, min(B, plan.WORKSPACE_BYTES // (itemsize * max(1, sums))))
    elif isinstance(plan_shared.make_plan(m, n, itemsize), SharedBlocks):
        dq = _zeros((B, m), dtype)  # in place of g in the workspace: the kernels are the same, and g has a name
    with mock.patch.object(launches, "WORKSPACE_PAIRS", pairs):
        launched, memory = launches.launches_of(backend, W, x, None, None, loss, dW, dx, dq)
    # Parts of a batch do the same, but the first one's sums begin with nothing: its last argument says so.
    works: dict[tuple[str, int, int], Work] = {}
    called = []
    for launch in launched:
        key = launch.name, launch.blocks, launch.arguments[-1]
        if key not in works:
            works[key] = _work(launch, memory, _readers(launch, case) if one_W else {})
        called.append(Launched(launch, works[key]))
    return tuple(called)


def _zeros(shape: tuple[int, ...], dtype: str) -> Any:
    """They begin on a multiple of 128 bytes, and take no memory before they are used."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    held = np.zeros(size + 128, np.uint8)
    first = -held.ctypes.data % 128
    return held[first : first + size].view(dtype).reshape(shape)


def _readers(launch: Any, case: Case) -> dict[str, int]:
    """By how many blocks each input of a launch for one W is read, where that is more than one."""
    if launch.name not in ("dx", "parts"):
        return {"W": launch.blocks}
    side, itemsize = launch.key[2], np.dtype(case.dtype).itemsize  # tiles of pairs or rows, and of columns
    columns = -(-case.n // side.b(itemsize))
    if launch.name == "dx":
        return {"W": launch.blocks // columns, "dq": columns}
    return {"x": -(-case.m // side.a(itemsize)), "dq": columns}


def _work(launch: Any, memory: Any, readers: Mapping[str, int]) -> Work:
    ((issued, traffic),) = launches.run([launch], memory, only=range(1), count=True)
    warps = launch.threads // WARP

    def in_units(dtype: str, opcodes: tuple[str, ...]) -> float:
        return sum(issued[o] for o in issued if o.endswith(dtype) and o.split(".")[0] in opcodes) / warps

    return Work(
        warps,
        traffic.waits.trips,
        sum(len(words) * 4 for _, write, words, _ in memory.accesses if not write),
        list(_asked(memory)),
        issued.total() / warps,
        traffic.wavefronts,
        in_units("f64", FLOAT64_OPCODES),
        in_units("f32", FLOAT32_OPCODES),
        sum(_distinct(memory, name) * (1 - 1 / count) for name, count in readers.items()),
    )


def _asked(memory: Any) -> Iterator[tuple[int, bool]]:
    """The sectors that the warps of the last launch asked for, one instruction after the other."""
    places = {name: place << 40 for place, (_, name, _) in enumerate(memory.arrays)}
    for name, write, words, threads in memory.accesses:
        sectors = places[name] + words * 4 // SECTOR_BYTES
        by_warp = np.unique(np.stack([threads // WARP, sectors]), axis=1)
        yield from ((sector, write) for sector in by_warp[1].tolist())


def _distinct(memory: Any, name: str) -> int:
    """The sectors of an input that the last launch read."""
    return len(np.unique(memory.touched(name, False) * 4 // SECTOR_BYTES))
