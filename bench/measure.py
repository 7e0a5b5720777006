"""How it is timed: each contender is built and compared with the reference, then all take turns, one each a round."""

import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import ceil
from typing import Any, NamedTuple

import numpy as np
from copies import Copy
from peers import OURS, Peer
from results import Key, Row, is_ours, one_line, row
from workload import Case, Run, Workload, finished, library, wait

import sigmoid_l2 as sl2

# Seconds of a turn, at least: shorter calls are repeated, so that the clock's own time does not count.
TURN_S = 1e-3
# Seconds between two turns, because the threads of other libraries spin for some milliseconds before they sleep.
SETTLE_S = 0.01
GIVEN, FRESH = True, False

Contender = tuple[Peer, bool]  # and whether it writes to given outputs


# --- turns ----------------------------------------------------------------------------------------------------------


class Times(NamedTuple):
    """Seconds of one call over the rounds of a measurement."""

    median: float
    p20: float
    p80: float
    rounds: int


def spread(times: list[float]) -> Times:
    """The median and the spread of ``times``, one a round."""
    return Times(*np.percentile(times, (50, 20, 80)).tolist(), len(times))


def seconds(run: Run, calls: int = 1) -> float:
    """The wall time of one ``run()``, the mean of ``calls``; the last result is freed when the clock has stopped."""
    start = time.perf_counter()
    for _ in range(calls):
        result = run()
    stop = time.perf_counter()
    del result
    return (stop - start) / calls


class HostTurn:
    """One timed turn of ``run`` by the host's clock: the mean of as many calls as fill ``TURN_S``.

    Where ``run`` makes several ``steps``, the time is that of one.

    A turn begins with an untimed call, so that caches, threads and free memory are in the state that a call leaves. New
    memory takes ten times as long after a virtual machine has given its free pages back to the host.
    """

    def __init__(self, run: Run, steps: int = 1) -> None:
        self.run, self.steps = run, steps
        run()
        one = seconds(run)
        if one < 10 * TURN_S:  # the best of three, because an interruption is long beside a short call
            one = min(one, seconds(run), seconds(run))
        self.calls = max(1, int(TURN_S / one))
        self.takes = SETTLE_S + one * (1 + self.calls)  # seconds of a turn

    def __call__(self) -> float:
        time.sleep(SETTLE_S)
        self.run()
        return seconds(self.run, self.calls) / self.steps


class DeviceTurn:
    """One timed turn of ``run`` by the GPU's clock: a single call between two events.

    Untimed copies are queued before it. They keep the device busy while the host prepares the call, so that the launch
    is not part of the time, and they clear the caches. ``held_up`` counts the turns in which the device was idle before
    the call was launched.
    """

    def __init__(self, run: Run, copy: Copy) -> None:
        self.run, self.copy, self.copies, self.held_up = run, copy, 1, 0
        wait("gpu")
        launching = seconds(run)
        copying = min(self._events(copy)[0] for _ in range(3))
        self.copies = min(50, 1 + ceil(3 * launching / copying))
        self.takes = launching + copying * (1 + self.copies)

    def __call__(self) -> float:
        elapsed, held_up = self._events(self.run)
        self.held_up += held_up
        return elapsed

    def _events(self, run: Run) -> tuple[float, bool]:
        """The device's seconds of ``run``, and whether the device was idle before the launch was complete."""
        cuda = library("gpu").cuda
        for _ in range(self.copies):
            self.copy()
        start, stop = cuda.Event(), cuda.Event()
        start.record()
        run()
        stop.record()
        held_up = bool(start.done)
        stop.synchronize()
        return cuda.get_elapsed_time(start, stop) * 1e-3, held_up


Turn = HostTurn | DeviceTurn


def in_turn(turns: Mapping[Any, Turn], rounds: int, within_s: float = 60) -> dict[Any, Times]:
    """The times of all ``turns``, one of each a round, so that a drift of the machine hits all alike.

    Where ``rounds`` would not end within ``within_s`` seconds there are fewer, but at least three.
    """
    rounds = min(rounds, max(3, int(within_s / sum(turn.takes for turn in turns.values()))))
    times: dict[Any, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            times[name].append(turn())
    return {name: spread(t) for name, t in times.items()}


# --- contenders -----------------------------------------------------------------------------------------------------


@contextmanager
def within(limit_s: float) -> Iterator[None]:
    """TimeoutError after ``limit_s`` seconds, 0 for no limit, where Python code runs or waits."""
    if not limit_s:  # Windows has no such signal
        yield
        return

    def late(*_: object) -> None:
        raise TimeoutError(f"not compiled within {limit_s:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def contenders(
    part: str, work: Workload, wanted: Sequence[Contender], limit_s: float = 0
) -> tuple[dict[Key, Run], list[Row]]:
    """The calls of those that are right, which return when they are finished, and rows with the others' reasons."""
    case, runs, gaps = work.case, {}, []
    for peer, given in wanted:
        own = peer.library == OURS.library and case.device == "cpu"
        threads = sl2.get_num_threads() if is_ours({"contender": peer.name}) and case.device == "cpu" else None
        key = Key(peer.name, "given" if given else "fresh", threads)
        try:
            with within(limit_s):
                if part == "pair":  # without a batch axis
                    run = peer.build(work.W[0], work.x[0], None)
                    work.check([np.asarray(a)[None] for a in run()])
                else:
                    run = work.checked(finished(peer.build(work.W, work.x, work.out if given else None), case.device))
                runs[key] = run
        except Exception as error:  # of any library: not installed, no compiler, no memory, wrong results
            if own:  # the benchmark is about it
                raise
            print(f"  {peer.name}: {one_line(error)}", file=sys.stderr)
            gaps.append(row(part, case, **key._asdict(), reason=one_line(error)))
    return runs, gaps


def rows(part: str, case: Case, turns: Mapping[Key, Turn], rounds: int, within_s: float = 60) -> list[Row]:
    """Take the turns; a row for each contender."""
    return [
        row(part, case, **key._asdict()) | t._asdict() | {"gb_per_s": case.traffic / t.median / 1e9}
        for key, t in in_turn(turns, rounds, within_s).items()
    ]
