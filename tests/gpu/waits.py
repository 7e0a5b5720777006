"""How often a thread waits for global memory, from the instructions that it executes.

A thread goes on after a load, and waits only where it needs the value. The loads of one basic block count as issued
when the block begins, as the compiler moves them there, except where an address waits for a load itself.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

from gpu.ptx import Address, Kernel, Register

WITHOUT_RESULT = ("st.", "bra", "bar.", "ret")  # opcodes whose first operand is a source, or none


class Waits:
    """The trips to memory of one thread, one after the other: the most loads of which each waits for the one before."""

    def __init__(self) -> None:
        self.values: dict[Register, int] = {}  # trips after which a register has its value
        self.begin = 0  # trips before the present basic block
        self.trips = 0  # trips until now

    def issue(self, kernel: Kernel, at: int) -> None:
        """The thread comes to the instruction at index ``at``."""
        opcode, targets, sources, begins = _facts(kernel)[at]
        if begins:
            self.begin = self.trips
        now = max([self.begin, *(self.values.get(source, 0) for source in sources)])
        self.trips = max(self.trips, now)
        for target in targets:
            self.values[target] = now + opcode.startswith("ld.global")


@cache
def _facts(kernel: Kernel) -> list[tuple[str, list[Register], list[Register], bool]]:
    """Of each instruction the opcode, the registers written and read, and whether it begins a basic block."""
    begins = {0, *kernel.labels.values()}
    begins |= {at + 1 for at, i in enumerate(kernel.code) if i.opcode.startswith(("bra", "bar."))}
    facts = []
    for at, i in enumerate(kernel.code):
        results = 0 if i.opcode.startswith(WITHOUT_RESULT) else 1
        sources = [*_registers(i.operands[results:]), *_registers(i.predicate)]
        facts.append((i.opcode, [*_registers(i.operands[:results])], sources, at in begins))
    return facts


def _registers(operand: Any) -> Iterator[Register]:
    if isinstance(operand, tuple):
        for part in operand:
            yield from _registers(part)
    elif isinstance(operand, Address):
        yield from _registers(operand.base)
    elif isinstance(operand, Register):
        yield operand
