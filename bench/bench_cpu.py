"""Ours on the CPU beside every peer and beside a plain copy of the same bytes, over batches, shapes and threads.

python bench/bench_cpu.py [--quick] [-o FILE.json]

All contenders of a case take turns, so that a drift of the machine hits all alike; the results of each are compared
with the reference before anything is timed. Prints the tables of ``report`` and exits with 1 if a "must" is missed.
"""

import argparse
import sys
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import peers
from measure import FRESH, GIVEN, Contender, HostTurn, Key, contenders, rows
from report import report
from results import COPY, RESULTS, Row, cpu_machine, installed, now, results_path, write
from targets import targets
from workload import Case, Copy, Run, Workload

import sigmoid_l2 as sl2

# W of the cases that are compared with the copy, besides 3x3: squares, and others.
SHAPES = (*((k, k) for k in (1, 2, 4, 8, 16, 32, 64, 256)), (2, 5), (5, 3), (10, 784), (784, 10))


class Bench:
    """The rows of one run; ``quick`` has fewer rounds, batches and bytes, but every kind of row."""

    def __init__(self, quick: bool) -> None:
        self.rounds, self.within_s = (5, 3) if quick else (21, 120)
        self.batches = (1, 100, 10**4, 10**6) if quick else tuple(10**k for k in range(8))
        self.bytes_of_W = 10**8 if quick else 4 * 10**8
        self.rows: list[Row] = []

    def run(self) -> None:
        """Measure all parts; ours alone first, before other libraries start their threads."""
        for dtype in ("float32", "float64"):
            for B in (10**6, 10**7):
                self.compare("shapes", Case("cpu", dtype, 3, 3, B), [(peers.OURS, GIVEN)])
        for m, n in sorted(SHAPES, key=prod):
            self.compare("shapes", self.case(m, n), [(peers.OURS, GIVEN)])
        for case in (self.case(3, 3, 10**7), self.case(64, 64)):
            self.scaling(case)

        by_hand = [(peers.NUMPY_MATMUL, FRESH), (peers.NUMPY_EINSUM, FRESH)]
        self.compare("pair", self.case(3, 3, 1), [(peers.OURS_AUTO, FRESH), (peers.NUMPY_PAIR, FRESH), *by_hand])
        for B in (1, 10, 100):
            self.compare("small", self.case(3, 3, B), [(peers.OURS_AUTO, FRESH), (peers.OURS_AUTO, GIVEN), *by_hand])

        everybody = [(peers.OURS, GIVEN), (peers.OURS, FRESH)]
        everybody += [(peer, peer.takes_out) for peer in peers.PEERS if "cpu" in peer.devices]
        for B in self.batches:
            self.compare("batch", self.case(3, 3, B), everybody)
        compilers = (peers.JAX_MATMUL, peers.JAX_SUM, peers.TORCH_COMPILE_VMAP, peers.TORCH_COMPILE_HAND)
        self.compare(
            "fresh", self.case(3, 3, 10**7), [(peer, FRESH) for peer in (peers.OURS, peers.NUMPY_EINSUM, *compilers)]
        )

    def case(self, m: int, n: int, B: int | None = None) -> Case:
        """B float32 pairs, or so many that W has the bytes of the run."""
        sizes = "cpu", "float32", m, n
        return Case(*sizes, B) if B else Case.sized(*sizes, self.bytes_of_W)

    def compare(self, part: str, case: Case, wanted: Sequence[Contender]) -> None:
        """Time all contenders and the copy in turn; one that fails or is wrong gets a row with the reason."""
        print(f"{part}: {case}", file=sys.stderr)
        copy = Copy(case)
        runs, gaps = contenders(part, Workload(case), wanted)
        for threads in sorted({1, sl2.get_num_threads()}):
            runs[Key(COPY["cpu"], "given", threads)] = copy.on(threads)
        if part == "fresh":  # what new memory costs anybody
            runs[Key(COPY["cpu"], "fresh", 1)] = copy.source.copy
        self.time(part, case, runs)
        self.rows += gaps

    def scaling(self, case: Case) -> None:
        """Ours and the copy on 1, 2, ... threads, all in turn."""
        print(f"threads: {case}", file=sys.stderr)
        call, copy, most = Workload(case).call("numba"), Copy(case), sl2.get_num_threads()
        runs: dict[Key, Run] = {}

        def on(threads: int) -> Run:
            def run() -> None:
                sl2.set_num_threads(threads)  # costs less than a microsecond
                call()

            return run

        for threads in sorted({k for k in (*range(1, 9), *(2**i for i in range(4, 16)), most) if k <= most}):
            runs[Key(peers.OURS.name, "given", threads)] = on(threads)
            runs[Key(COPY["cpu"], "given", threads)] = copy.on(threads)
        self.time("threads", case, runs)
        sl2.set_num_threads(None)

    def time(self, part: str, case: Case, runs: dict[Key, Run]) -> None:
        """Add a row for each of ``runs``."""
        self.rows += rows(part, case, {key: HostTurn(run) for key, run in runs.items()}, self.rounds, self.within_s)


def main() -> None:
    """Measure, write, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, batches and bytes: a minute or two")
    parser.add_argument("-o", type=Path, metavar="FILE", help="default: bench/results/<date>-<cpu>.json, quick: build/")
    args = parser.parse_args()

    bench = Bench(args.quick)
    results: dict[str, Any] = {
        "date": now(),
        "quick": args.quick,
        "machine": cpu_machine(),
        "versions": installed(dict.fromkeys(peer.library for peer in (peers.OURS, *peers.PEERS))),
        "notes": {peer.name: peer.note for peer in peers.PEERS if peer.note},
    }
    path = args.o or (Path("build/peers.json") if args.quick else results_path(RESULTS, results["machine"]["cpu"]))
    bench.run()
    results |= {"targets": targets(bench.rows), "rows": bench.rows}
    write(results, path)
    sys.exit(not report(path))


if __name__ == "__main__":
    main()
