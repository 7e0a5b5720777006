"""What the compiler says a GPU kernel uses of a real chip, with no GPU, and what it may use."""

import re
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))
import chips

CHIPS = tuple(map(str, chips.LIMITS))
DTYPES = ("float32", "float64")
WANTED = {"all": (True, True, True), "loss": (True, False, False)}
SHARED_BYTES = 48 * 1024  # that a block may declare, on every chip


class Usage(NamedTuple):
    """What a kernel uses, in bytes but for the registers of a thread."""

    stack: int
    spill_stores: int
    spill_loads: int
    registers: int
    shared: int


def usage(ptxas: str, shared: list[str]) -> Usage:
    """Read what ``ptxas -v`` prints of the one kernel; ``shared`` are the sizes of its shared arrays."""
    assert ptxas.count("Function properties for") == 1, ptxas
    assert "warning" not in ptxas, ptxas
    (stack,) = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", ptxas)
    (registers,) = re.findall(r"Used (\d+) registers", ptxas)
    return Usage(*map(int, stack), int(registers), sum(map(int, shared)))


def assert_fits(used: Usage, threads: int, chip: str, occupancy: float = 0) -> None:
    """Nothing in local memory, which is as slow as global memory, and enough blocks fit on a multiprocessor.

    That is at least one, and so many that they have the part ``occupancy`` of its threads.
    """
    assert used[:3] == (0, 0, 0), used
    assert used.shared <= SHARED_BYTES, used
    got = chips.occupancy(int(chip), threads, used.registers, used.shared)
    assert got > 0, used
    assert got >= occupancy, (got, used)
