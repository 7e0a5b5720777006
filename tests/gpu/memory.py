"""The memory of a GPU that is not there: every access checked, races found, and noted down for ``traffic``."""

from bisect import bisect_right
from typing import Any

import numpy as np

from gpu.ptx import Kernel

WARP = 32
WORD = 4  # bytes; no access here is smaller


class FaultError(Exception):
    """What a GPU would do wrong, or leave undefined."""


def _words(offsets: Any, size: int) -> Any:
    """The words of accesses of ``size`` bytes, one access after the other."""
    return (offsets[:, None] // WORD + np.arange(size // WORD)).reshape(-1)


class Global:
    """Global memory: arrays of the host at their own addresses.

    A word that a thread writes must not be touched by another one in the same launch: nothing orders blocks. Threads of
    a block could meet at a barrier in between, but no kernel here passes values from thread to thread in global memory.
    """

    def __init__(self) -> None:
        self.arrays: list[tuple[int, str, Any]] = []  # address, name and bytes, by address
        self.accesses: list[tuple[str, bool, Any, Any]] = []  # of this launch: array, written, words and who

    def add(self, name: str, array: Any) -> int:
        """Let kernels use a C-contiguous array; return its address."""
        address = array.ctypes.data
        self.arrays.append((address, name, array.reshape(-1).view(np.uint8)))
        self.arrays.sort(key=lambda a: a[0])
        return address

    def find(self, addresses: Any, size: int) -> tuple[int, str, Any]:
        """The array in which all the accesses of ``size`` bytes lie."""
        first, last = int(addresses.min()), int(addresses.max())
        k = bisect_right(self.arrays, first, key=lambda a: a[0]) - 1
        address, name, held = self.arrays[max(k, 0)]
        if k < 0 or last + size > address + held.nbytes:
            where = f"bytes {first - address} to {last + size - address}"
            raise FaultError(f"one instruction takes {where} of {name}, which has {held.nbytes}")
        return address, name, held

    def touch(self, name: str, write: bool, offsets: Any, size: int, who: Any) -> None:
        """Note down accesses of ``size`` bytes by the threads ``who``."""
        self.accesses.append((name, write, _words(offsets, size), np.repeat(who, size // WORD)))

    def touched(self, name: str, write: bool) -> Any:
        """The words of an array that this launch has read or written, once for each access."""
        return np.concatenate(
            [w for n, written, w, _ in self.accesses if (n, written) == (name, write)] or [np.zeros(0, int)]
        )

    def check_races(self) -> None:
        """Raise FaultError if two threads of the launch access a word that one of them writes."""
        for name in {n for n, written, _, _ in self.accesses if written}:
            own = [(words, who, np.full(len(words), written)) for n, written, words, who in self.accesses if n == name]
            words, who, written = (np.concatenate(column) for column in zip(*own, strict=True))
            order = np.argsort(words, kind="stable")
            words, who, written = words[order], who[order], written[order]
            starts = np.flatnonzero(np.diff(words, prepend=-1))
            several = np.minimum.reduceat(who, starts) != np.maximum.reduceat(who, starts)
            raced = several & np.logical_or.reduceat(written, starts)
            if raced.any():
                word = words[starts[raced.argmax()]]
                raise FaultError(
                    f"several threads write, or write and read, byte {word * WORD} of {name}: {set(who[words == word])}"
                )


class Shared:
    """A block's shared memory: what nobody has written yet is undefined, and unordered accesses are races.

    Two accesses of different threads to a word are in order if all threads met at a barrier in between or, within a
    warp, its lanes at a warp's barrier. A shuffle orders nothing, as CUDA's documents say.
    """

    def __init__(self, kernel: Kernel, threads: int) -> None:
        size = -(-max(kernel.shared_bytes, 1) // 16) * 4
        self.kernel = kernel
        self.words = np.zeros(size, np.uint32)
        self.undefined = np.ones(size, bool)
        self.phase = 0  # barriers passed
        self.warp_phase = np.zeros(threads // WARP, int)  # barriers of either kind that a warp has passed
        # For each word: the last writer and its phase; the last reader and its phase, and whether others read since.
        self.writer, self.write_phase, self.write_warp_phase = (np.full(size, -1) for _ in range(3))
        self.reader, self.read_phase, self.read_warp_phase = (np.full(size, -1) for _ in range(3))
        self.other_lanes, self.other_warps = np.zeros(size, bool), np.zeros(size, bool)

    def barrier(self) -> None:
        """All threads have met."""
        self.phase += 1
        self.warp_phase += 1

    def meet(self, lanes: Any) -> None:
        """Lanes have met at a warp's barrier. Here it orders nothing unless they are a whole warp."""
        self.warp_phase[lanes.reshape(-1, WARP).all(axis=1)] += 1

    def check(self, addresses: Any, size: int, who: Any, write: bool) -> None:
        """Note down accesses of ``size`` bytes by the threads ``who``; raise FaultError if one is not allowed."""
        outside = np.logical_and.reduce(
            [(addresses < first) | (addresses + size > first + held) for first, held in self.kernel.shared.values()],
            initial=True,
        )
        outside = np.broadcast_to(outside, addresses.shape)
        if outside.any():
            raise FaultError(f"byte {addresses[outside][0]} of {self.kernel.shared_bytes} of shared memory")
        words, who = _words(addresses, size), np.repeat(who, size // WORD)
        warps, now = who // WARP, self.warp_phase[who // WARP]
        other = self.writer[words] != who
        same_warp = self.writer[words] // WARP == warps
        unordered = ~same_warp | (self.write_warp_phase[words] == now)
        self._no_race(other & unordered & (self.write_phase[words] == self.phase), words, who, self.writer)
        (self._write if write else self._read)(words, who, warps, now)

    def _write(self, words: Any, who: Any, warps: Any, now: Any) -> None:
        same_warp = self.reader[words] // WARP == warps
        lanes = (self.other_lanes[words] | (self.reader[words] != who)) & (self.read_warp_phase[words] == now)
        unordered = self.other_warps[words] | ~same_warp | lanes
        self._no_race(unordered & (self.read_phase[words] == self.phase), words, who, self.reader)
        self.writer[words], self.write_phase[words], self.write_warp_phase[words] = who, self.phase, now
        self._no_race(self.writer[words] != who, words, who, self.writer)  # two lanes of this very access

    def _read(self, words: Any, who: Any, warps: Any, now: Any) -> None:
        again = self.read_phase[words] == self.phase
        same_warp = self.reader[words] // WARP == warps
        in_step = again & same_warp & (self.read_warp_phase[words] == now)
        self.other_warps[words] = again & (self.other_warps[words] | ~same_warp)
        self.other_lanes[words] = in_step & (self.other_lanes[words] | (self.reader[words] != who))
        self.reader[words], self.read_phase[words], self.read_warp_phase[words] = who, self.phase, now
        together = self.reader[words] != who  # several lanes of this very access
        self.other_lanes[words[together]] = True
        self.other_warps[words[together & (self.reader[words] // WARP != warps)]] = True

    def _no_race(self, raced: Any, words: Any, who: Any, others: Any) -> None:
        if raced.any():
            k = int(raced.argmax())
            at = int(words[k]) * WORD
            name, first = next(
                (n, first) for n, (first, size) in self.kernel.shared.items() if first <= at < first + size
            )
            raise FaultError(f"race of threads {others[words[k]]} and {who[k]} for byte {at - first} of {name}")
