"""Ours beside every peer and beside a plain copy of the same bytes, over batches, shapes and threads.

python bench/bench_peers.py [--quick] [-o FILE.json]

All contenders of a case take turns, so that a drift of the machine hits all alike; the results of each are compared
with ours before anything is timed. Prints the tables of ``report`` and exits with 1 if a target's "must" is missed.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from measure import Case, Workload, interleaved, machine, seconds
from peers import (
    JAX_MATMUL,
    JAX_SUM,
    NUMPY_EINSUM,
    NUMPY_MATMUL,
    NUMPY_PAIR,
    OURS,
    OURS_AUTO,
    PEERS,
    TORCH_COMPILE_HAND,
    TORCH_COMPILE_VMAP,
    Peer,
)
from report import report
from rows import COPY, Row
from targets import targets

import sigmoid_l2 as sl2

# W of the cases that are compared with the copy, besides 3x3: squares, and others.
SHAPES = (*((k, k) for k in (1, 2, 4, 8, 16, 32, 64, 256)), (2, 5), (5, 3), (10, 784), (784, 10))
# A contender of which one call takes longer is not timed, nor called for a larger batch.
SLOW_S = 5.0
# Results are compared in so many pairs, evenly spaced, the first and the last among them.
CHECKED = 100_000

Contender = tuple[Peer, bool]  # and whether it writes to given outputs
GIVEN, FRESH = True, False


class Key(NamedTuple):
    """Who was timed."""

    contender: str
    outputs: str
    threads: int | None


class Bench:
    """The rows of one run; ``quick`` has fewer rounds, batches and bytes, but every kind of row."""

    def __init__(self, quick: bool) -> None:
        self.rounds, self.within_s = (5, 3) if quick else (21, 120)
        self.batches = (1, 100, 10**4, 10**6) if quick else tuple(10**k for k in range(8))
        self.bytes_of_W = 10**8 if quick else 4 * 10**8
        self.rows: list[Row] = []
        self.slow: dict[str, str] = {}

    def run(self) -> None:
        """Measure all parts; ours alone first, before other libraries start their threads."""
        for dtype in ("float32", "float64"):
            for B in (10**6, 10**7):
                self.compare("shapes", Case("numba", dtype, 3, 3, B), [(OURS, GIVEN)])
        for m, n in sorted(SHAPES, key=prod):
            self.compare("shapes", Case("numba", "float32", m, n, self.pairs(m, n)), [(OURS, GIVEN)])
        for m, n, B in ((3, 3, 10**7), (64, 64, self.pairs(64, 64))):
            self.scaling(Case("numba", "float32", m, n, B))

        by_hand = [(NUMPY_MATMUL, FRESH), (NUMPY_EINSUM, FRESH)]
        self.compare("pair", Case("numba", "float32", 3, 3, 1), [(OURS_AUTO, FRESH), (NUMPY_PAIR, FRESH), *by_hand])
        for B in (1, 10, 100):
            self.compare("small", Case("numba", "float32", 3, 3, B), [(OURS_AUTO, FRESH), (OURS_AUTO, GIVEN), *by_hand])

        everybody = [(OURS, GIVEN), (OURS, FRESH), *((peer, peer.takes_out) for peer in PEERS)]
        for B in self.batches:
            self.compare("batch", Case("numba", "float32", 3, 3, B), everybody)
        compilers = (JAX_MATMUL, JAX_SUM, TORCH_COMPILE_VMAP, TORCH_COMPILE_HAND)
        fresh = [(peer, FRESH) for peer in (OURS, NUMPY_EINSUM, *compilers)]
        self.compare("fresh", Case("numba", "float32", 3, 3, 10**7), fresh)

    def pairs(self, m: int, n: int) -> int:
        """So many float32 pairs that W has the bytes of the run."""
        return self.bytes_of_W // (4 * m * n)

    def compare(self, part: str, case: Case, contenders: Sequence[Contender]) -> None:
        """Time all contenders and the copy in turn; one that fails, is wrong or is slow gets a row with the reason."""
        print(f"{part}: {case}", file=sys.stderr)
        work = Workload(case)
        work.check()
        W, x, out = (work.W[0], work.x[0], None) if part == "pair" else (work.W, work.x, work.out)
        sample = np.linspace(0, case.B - 1, min(case.B, CHECKED), dtype=np.int64)
        right = [a.reshape(case.B, -1)[sample] for a in work.out]
        runs: dict[Key, Callable[[], object]] = {}
        gaps = []
        for peer, given in contenders:
            own = peer.library == OURS.library
            key = Key(peer.name, "given" if given else "fresh", sl2.get_num_threads() if own else None)
            reason = peer.missing() or self.slow.get(peer.name)
            if not reason:
                for a in work.out:
                    a.fill(np.nan)
                try:
                    run = peer.build(W, x, out if given else None)
                    for got, expected in zip(run(), right, strict=True):
                        found = np.asarray(got).reshape(case.B, -1)[sample]
                        np.testing.assert_allclose(found, expected, rtol=work.tolerance, atol=work.tolerance)
                    if not own and (one := seconds(run)) > SLOW_S:
                        reason = self.slow[peer.name] = f"one call takes {one:.3g} s for B = {case.B:,}"
                except Exception as error:  # of any library: a compiler that is not there, results that are wrong
                    if own:
                        raise
                    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if reason:
                print(f"  {peer.name}: {reason}", file=sys.stderr)
                gaps.append(self.row(part, case, key) | {"reason": reason})
            else:
                runs[key] = run
        for threads in sorted({1, sl2.get_num_threads()}):
            runs[Key(COPY, "given", threads)] = work.copy_on(threads)
        if part == "fresh":  # what new memory costs anybody
            runs[Key(COPY, "fresh", 1)] = work.copy_from.copy
        self.time(part, case, runs)
        self.rows += gaps

    def scaling(self, case: Case) -> None:
        """Ours and the copy on 1, 2, ... threads, all in turn."""
        print(f"threads: {case}", file=sys.stderr)
        work, most, runs = Workload(case), sl2.get_num_threads(), {}
        work.check()

        def on(threads: int) -> Callable[[], None]:
            def call() -> None:
                sl2.set_num_threads(threads)  # costs less than a microsecond
                work.call()

            return call

        for threads in sorted({k for k in (*range(1, 9), *(2**i for i in range(4, 16)), most) if k <= most}):
            runs[Key(OURS.name, "given", threads)] = on(threads)
            runs[Key(COPY, "given", threads)] = work.copy_on(threads)
        self.time("threads", case, runs)
        sl2.set_num_threads(None)

    def time(self, part: str, case: Case, runs: dict[Key, Callable[[], object]]) -> None:
        """Add a row for each of ``runs``."""
        for key, times in interleaved(runs, self.rounds, self.within_s).items():
            speed = {"gb_per_s": case.traffic / times.median / 1e9}
            self.rows.append(self.row(part, case, key) | times._asdict() | speed)

    @staticmethod
    def row(part: str, case: Case, key: Key) -> Row:
        """What all rows have."""
        sizes = {"dtype": case.dtype, "m": case.m, "n": case.n, "B": case.B, "bytes": case.traffic}
        return {"part": part} | key._asdict() | sizes


def main() -> None:
    """Measure, write, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, batches and bytes: a minute or two")
    parser.add_argument("-o", type=Path, metavar="FILE", help="default: bench/results/<date>-<cpu>.json, quick: build/")
    args = parser.parse_args()

    bench = Bench(args.quick)
    results: dict[str, Any] = {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "quick": args.quick,
        "machine": machine(),
        "versions": {p.library: version(p.library) for p in (OURS, *PEERS) if not p.missing()},
        "notes": {p.name: p.note for p in PEERS if p.note},
    }
    bench.run()
    results |= {"targets": targets(bench.rows), "rows": bench.rows}
    cpu = re.sub(r"\W+", "-", results["machine"]["cpu"].lower()).strip("-")
    folder = Path(__file__).resolve().parent / "results"
    path = args.o or (Path("build/peers.json") if args.quick else folder / f"{results['date'][:10]}-{cpu}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    report(path)
    sys.exit(not all(target["met"] for target in results["targets"]))


if __name__ == "__main__":
    main()
