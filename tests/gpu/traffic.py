"""What a hardware profiler would count of the accesses to memory, from the addresses that were used.

Global memory moves in sectors of 32 bytes. Shared memory has 32 banks of 4 bytes: an access of 4 bytes a lane is served
at once if no two lanes want different words of one bank, of 8 bytes in two halves, of 16 bytes in four quarters of the
warp.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpu.memory import WARP, WORD
from gpu.waits import Waits

SECTOR_BYTES = 32
BANKS = 32


@dataclass
class Traffic:
    """The counts of the blocks of a launch."""

    sectors: Counter[tuple[str, bool]] = field(default_factory=Counter)  # by array and whether written
    accesses: Counter[tuple[str, bool, int]] = field(default_factory=Counter)  # of warps to global memory, by size
    wavefronts: int = 0  # passes that the accesses to shared memory took
    conflict_free: int = 0  # passes that they would have taken without bank conflicts
    waits: Waits = field(default_factory=Waits)  # of the first thread of each block

    def add(self, name: str | None, write: bool, threads: Any, offsets: Any, size: int) -> None:
        """One instruction of one block: ``offsets`` of the ``threads`` in an array, or (None) in shared memory."""
        if name is not None:
            sectors = np.unique(threads // WARP * (1 << 40) + offsets // SECTOR_BYTES)
            self.sectors[name, write] += len(sectors)
            self.accesses[name, write, size] += len(np.unique(threads // WARP))
            return
        phases = threads * size // (WARP * WORD)  # that are served one after the other
        words = (offsets[:, None] // WORD + np.arange(size // WORD)).reshape(-1)
        wanted = np.unique(np.repeat(phases, size // WORD) * (1 << 20) + words)
        phase, bank = wanted >> 20, wanted % BANKS
        of_bank = np.bincount(phase * BANKS + bank).astype(int)
        of_bank = np.pad(of_bank, (0, -len(of_bank) % BANKS)).reshape(-1, BANKS)
        self.wavefronts += int(of_bank.max(axis=1).sum())
        self.conflict_free += len(np.unique(phases))
