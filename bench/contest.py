"""The contenders of one case: each is built and compared with the reference, then all take turns with a plain copy."""

import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from peers import OURS, Peer
from results import Row, one_line, row
from timing import Times, seconds
from workload import Case, Run, Workload, finished

import sigmoid_l2 as sl2

# Seconds of one call from which a contender is neither timed nor called for a larger batch.
SLOW_S = 5.0
GIVEN, FRESH = True, False

Contender = tuple[Peer, bool]  # and whether it writes to given outputs


class Key(NamedTuple):
    """Who is timed: the name, whether outputs are "given" or "fresh", and the threads where they are known."""

    contender: str
    outputs: str = "given"
    threads: int | None = None


@contextmanager
def within(limit_s: float | None) -> Iterator[None]:
    """TimeoutError after ``limit_s`` seconds, if there is a limit, where Python code runs or waits."""
    if limit_s is None:
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


def build(part: str, work: Workload, peer: Peer, given: bool) -> Run:
    """The call of one contender, finished when it returns and compared with the reference; in "pair" of one pair."""
    W, x, out = work.W, work.x, work.out if given else None
    if part != "pair":
        return work.checked(finished(peer.build(W, x, out), work.case.device))
    run: Run = peer.build(W[0], x[0], out)
    work.check([np.asarray(a)[None] for a in run()])
    return run


def contenders(
    part: str,
    work: Workload,
    wanted: Sequence[Contender],
    slow: dict[str, str],
    limit_s: float | None = None,
) -> tuple[dict[Key, Run], list[Row]]:
    """The calls of those that are right, and rows with the others' reasons; ``slow`` keeps who takes too long."""
    case, runs, gaps = work.case, {}, []
    for peer, given in wanted:
        own = peer.library == OURS.library
        threads = sl2.get_num_threads() if own and case.device == "cpu" else None
        key = Key(peer.name, "given" if given else "fresh", threads)
        reason = slow.get(peer.name)
        if not reason:
            try:
                with within(limit_s):
                    run = build(part, work, peer, given)
                    if not own and (one := seconds(run)) > SLOW_S:
                        reason = slow[peer.name] = f"one call takes {one:.3g} s for B = {case.B:,}"
            except Exception as error:  # of any library: not installed, no compiler, no memory, wrong results
                if own and case.device == "cpu":  # the benchmark is about it
                    raise
                reason = one_line(error)
        if reason:
            print(f"  {peer.name}: {reason}", file=sys.stderr)
            gaps.append(row(part, case, **key._asdict(), reason=reason))
        else:
            runs[key] = run
    return runs, gaps


def rows(part: str, case: Case, times: Iterable[tuple[Key, Times]]) -> list[Row]:
    """A row for each contender that was timed."""
    return [
        row(part, case, **key._asdict()) | t._asdict() | {"gb_per_s": case.traffic / t.median / 1e9} for key, t in times
    ]
