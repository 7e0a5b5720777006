"""What a hardware profiler would count of one block's memory accesses, from the addresses that its threads used.

A warp makes one access of what its lanes do at the same place of the program for the same time. Global memory moves in
sectors of 32 bytes. Shared memory has 32 banks of 4 bytes: an access of 4 bytes a lane is served at once if no two
lanes want different words of one bank, of 8 bytes in two halves, of 16 bytes in four quarters of the warp.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

SECTOR_BYTES = 32
BANKS, BANK_BYTES = 32, 4


class Access(NamedTuple):
    """One thread's access to memory."""

    thread: int  # in its block
    site: Hashable  # the place in the program
    array: str  # its name; accesses of a thread to one place come in the order of the program
    shared: bool
    write: bool
    offset: int  # bytes from the array's start; arrays start on a multiple of 128 bytes
    size: int  # bytes: 4, 8 or 16


@dataclass
class Traffic:
    """The counts of one block."""

    sectors: Counter[tuple[str, bool]] = field(default_factory=Counter)  # by array of global memory and whether written
    touched: dict[tuple[str, bool], Counter[int]] = field(default_factory=lambda: defaultdict(Counter))  # 4-byte words
    instructions: Counter[tuple[str, bool, int]] = field(default_factory=Counter)  # warp accesses to global, by size
    wavefronts: int = 0  # that the accesses to shared memory took
    conflict_free: int = 0  # that they would have taken without bank conflicts

    def excess(self) -> float:
        """Sectors moved over the least possible for the same words."""
        least = sum(-(-len(words) * BANK_BYTES // SECTOR_BYTES) for words in self.touched.values())
        return sum(self.sectors.values()) / least

    def conflicts(self) -> float:
        """Wavefronts over those without bank conflicts; 1 where shared memory is not used."""
        return self.wavefronts / self.conflict_free if self.conflict_free else 1.0

    def words(self, array: str, write: bool) -> set[int]:
        """The 4-byte words of ``array`` that were accessed; AssertionError if one was more than once."""
        touched = self.touched[array, write]
        again = [word for word, times in touched.items() if times > 1]
        assert not again, f"{array} {'written' if write else 'read'} more than once at words {sorted(again)[:8]}"
        return set(touched)


def count(accesses: Iterable[Access], warp: int = 32) -> Traffic:
    """Put one block's accesses together by warp and instruction, and count what they move."""
    traffic = Traffic()
    times: Counter[Hashable] = Counter()
    warps: dict[Hashable, list[Access]] = defaultdict(list)
    for access in accesses:
        place = (access.thread, access.site, access.array, access.write, access.size)
        warps[access.thread // warp, *place[1:], times[place]].append(access)
        times[place] += 1
    for together in warps.values():
        first = together[0]
        if first.shared:
            _count_shared(traffic, together, warp)
        else:
            key = first.array, first.write
            words = [w for a in together for w in range(a.offset // BANK_BYTES, (a.offset + a.size) // BANK_BYTES)]
            traffic.touched[key].update(words)
            traffic.sectors[key] += len({word * BANK_BYTES // SECTOR_BYTES for word in words})
            traffic.instructions[*key, first.size] += 1
    return traffic


def _count_shared(traffic: Traffic, together: list[Access], warp: int) -> None:
    lanes_at_once = warp * BANK_BYTES // together[0].size
    phases: dict[int, list[Access]] = defaultdict(list)
    for a in together:
        phases[a.thread % warp // lanes_at_once].append(a)
    for phase in phases.values():
        words = {w for a in phase for w in range(a.offset // BANK_BYTES, (a.offset + a.size) // BANK_BYTES)}
        traffic.wavefronts += int(np.bincount([w % BANKS for w in words]).max())
        traffic.conflict_free += 1
