"""Executes a kernel's PTX, all threads of a block as vectors, and faults at what a GPU would leave undefined.

Threads that part at a branch go on as groups, the one that is farthest behind first, and are one again where they come
to the same instruction. An undefined value (of a register or of shared memory that nobody has written) may be moved and
computed with, as of lanes whose results nobody uses; to store it in global memory, or to use it as an address or as a
condition, is a fault.
"""

from collections import Counter
from typing import Any

import numpy as np

from gpu.memory import WARP, FaultError, Global, Shared
from gpu.ptx import SPECIAL, Kernel, NotKnownError, Register
from gpu.steps import Step, steps_of

ALL_LANES = 0xFFFFFFFF
MOST_STEPS = 2_000_000  # instructions of a block; more is an endless loop


def launch(
    kernel: Kernel,
    blocks: int,
    threads: int,
    parameters: list[bytes],
    memory: Global,
    *,
    only: range | None = None,
    traffic: Any = None,
) -> Counter[str]:
    """Run the blocks, or ``only`` some of them; return how many instructions were issued to warps, by opcode.

    ``traffic`` is a ``traffic.Traffic`` that notes down the accesses to memory. Raises FaultError or, for an
    instruction that is not known, NotKnownError, each with the line.
    """
    if threads % WARP or not 0 < threads <= kernel.most_threads:
        raise FaultError(f"{threads} threads are not the whole warps of one block of at most {kernel.most_threads}")
    if not 0 < blocks < 2**31:
        raise FaultError(f"{blocks} blocks")
    if [len(p) for p in parameters] != [size for _, size in kernel.parameters]:
        raise FaultError(f"parameters of {[len(p) for p in parameters]} bytes, not {kernel.parameters}")
    given = {name: value for (name, _), value in zip(kernel.parameters, parameters, strict=True)}
    steps = steps_of(kernel)
    issued = [0] * len(steps)
    memory.accesses.clear()
    with np.errstate(all="ignore"):
        for number in range(blocks) if only is None else only:
            Block(kernel, memory, given, (number, blocks, threads), traffic).run(steps, issued)
    memory.check_races()
    opcodes: Counter[str] = Counter()
    for instruction, times in zip(kernel.code, issued, strict=True):
        opcodes[instruction.opcode] += times
    return opcodes


class Block:
    """One block. A mask says which threads; for all or no threads it is the very object ``all`` or ``none``."""

    def __init__(
        self, kernel: Kernel, memory: Global, parameters: dict[str, bytes], launch: tuple[int, int, int], traffic: Any
    ) -> None:
        self.kernel, self.memory, self.parameters, self.traffic = kernel, memory, parameters, traffic
        self.number, blocks, self.threads = launch
        self.ids = np.arange(self.threads)
        self.all, self.none = np.ones(self.threads, bool), np.zeros(self.threads, bool)
        fill = (self.ids, self.threads, self.number, blocks)
        self.special = dict(zip(SPECIAL, (np.uint32(value) for value in fill), strict=True))
        # No array is changed in place: registers may share one.
        self.registers: list[Any] = [np.zeros(self.threads, dtype) for dtype in kernel.registers]
        self.undefined: list[Any] = [self.all] * len(kernel.registers)
        self.shared = Shared(kernel, self.threads)
        self.exited = self.none
        self.ready = {0: self.all}  # groups that can go on, by the index of their instruction
        self.at_barrier: dict[int, Any] = {}
        self.at_meeting: dict[int, Any] = {}  # lanes that wait for others of their warp

    def run(self, steps: tuple[Step, ...], issued: list[int]) -> None:
        """Run to the end, and count for each instruction how many warps it was issued for."""
        left = MOST_STEPS
        while self.exited is not self.all:
            if not self.ready:
                self._pass_barrier()
            at: int | None = min(self.ready)
            mask = self.ready.pop(at)
            warps = int(np.count_nonzero(mask.reshape(-1, WARP).any(axis=1)))
            stop = min(self.ready, default=len(steps))
            while at is not None and at < stop and left >= 0:
                here = at
                issued[here] += warps
                if self.traffic is not None and mask[0]:
                    self.traffic.waits.issue(self.kernel, here)
                left -= 1
                try:
                    at = steps[here](self, mask, here)
                except (FaultError, NotKnownError) as error:
                    raise type(error)(f"{error}; block {self.number}, {self.kernel.code[here].line!r}") from error
            if at is not None:
                self.add(self.ready, at, mask)
            if left < 0 or at == len(steps):
                raise FaultError(f"block {self.number} does not end")

    def add(self, groups: dict[int, Any], at: int, mask: Any) -> None:
        """Put threads into the group at an instruction."""
        if mask is not self.none:
            groups[at] = self.normal(groups[at] | mask) if at in groups else mask

    def normal(self, mask: Any) -> Any:
        """The mask itself, or the object ``all`` or ``none`` if it equals that."""
        return self.all if mask.all() else mask if mask.any() else self.none

    def union(self, masks: tuple[Any, ...]) -> Any:
        """The threads that are in any of the masks."""
        some = [mask for mask in masks if mask is not self.none]
        return np.logical_or.reduce(some) if len(some) > 1 else some[0] if some else self.none

    def full(self, value: Any) -> Any:
        """A value for each thread, from one for all or one for each."""
        return np.broadcast_to(value, self.threads)

    def write(self, target: Register, value: Any, undefined: Any, active: Any) -> None:
        """Write new values to a register of the active threads."""
        k, dtype = target.number, self.kernel.registers[target.number]
        if value.dtype != dtype:
            if value.dtype.itemsize != dtype.itemsize:
                raise NotKnownError(f"{value.dtype} in a register of {dtype}")
            value = value.view(dtype)
        if active is not self.all:
            value = np.where(active, value, self.registers[k])
            if undefined is not self.none or self.undefined[k] is not self.none:
                undefined = self.normal(np.where(active, undefined, self.undefined[k]))
        self.registers[k], self.undefined[k] = self.full(value), undefined

    def meet(self, at: int, mask: Any, members: Any) -> Any:
        """The lanes that leave the meeting at ``at``, because all their ``members`` have come; the others wait."""
        warps = mask.reshape(-1, WARP)
        if np.array_equal(warps.all(axis=1), warps.any(axis=1)) and (members == ALL_LANES).all():
            return mask
        waiting, ready = self.at_meeting.pop(at, self.none) | mask, self.none.copy()
        for first in range(0, self.threads, WARP):
            own = slice(first, first + WARP)
            for value in set(members[own][waiting[own]].tolist()):
                expected = np.array([value >> lane & 1 for lane in range(WARP)], bool)
                same = waiting[own] & (members[own] == value)
                if (same & ~expected).any():
                    raise FaultError(f"a lane is not in its own mask, {value:#x}")
                if (expected & self.exited[own]).any():
                    raise FaultError(f"a lane of the mask {value:#x} has ended")
                if np.array_equal(same, expected):
                    ready[own] |= same
        self.add(self.at_meeting, at, self.normal(waiting & ~ready))
        return self.normal(ready)

    def _pass_barrier(self) -> None:
        waiting = self.at_meeting | self.at_barrier
        lines = ", ".join(f"{self.kernel.code[at].line!r} ({mask.sum()} threads)" for at, mask in waiting.items())
        if self.at_meeting:
            raise FaultError(f"block {self.number}: lanes wait for others that do not come: {lines}")
        if len(waiting) > 1:
            raise FaultError(f"block {self.number}: threads are at different barriers: {lines}")
        ((at, mask),) = waiting.items()
        if mask is not self.all:
            raise FaultError(f"block {self.number}: not all threads come to the barrier: {lines}")
        self.shared.barrier()
        self.at_barrier.clear()
        self.ready[at + 1] = self.all
