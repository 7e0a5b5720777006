"""Ours on the CPU beside the best copy of the same bytes and beside every peer, over shapes, batches and threads.

python bench/bench_cpu.py [PART...] [--no-peers] [--quick] [-o FILE.json]

Parts: shapes, huge, subnormal, outputs, layouts, wanted, fit, threads, reader, pair, small, numpy, batch, fresh,
shared, training, tails. Without any it does all; --no-peers leaves out the last five, which need other libraries, and
takes six minutes. All contenders of a case take turns, so that a drift of the machine hits all alike; the results of
each are compared with the reference before anything is timed. Prints the tables of ``report`` and exits with 1 if a
"must" is missed.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import layouts
import peers
import reader
import shared
import tails
import training
import wanted
from copies import Copy
from fit import BLOCKS, MODELS, STEPS, Fit, M, N
from measure import FRESH, GIVEN, Contender, HostTurn, contenders, rows
from report import report
from results import COPY, LOOP, RESULTS, Key, Row, cpu_machine, installed, now, results_path, write
from targets import targets
from workload import Case, Run, Workload

import sigmoid_l2 as sl2

# W (m, n) in float32 beside the copy: tiny, tall and rows kernels, and the sizes between them; and in float64.
SHAPES = ((1, 1), (2, 2), (3, 3), (2, 5), (5, 3), (4, 4), (8, 8), (12, 12), (16, 16), (20, 33), (32, 32), (64, 64))
SHAPES += ((10, 784), (784, 10), (100, 100), (256, 256))
SHAPES_64 = ((3, 3), (8, 8), (64, 64))
# One pair on all threads.
HUGE = (8192, 8192)
# Pairs of 3x3 whose outputs are new in each call of a loop.
NEW_OUTPUTS = (10**6, 10**7)
# W (m, n) with the pairs last in memory, in float32.
LAYOUT_SHAPES = ((3, 3), (8, 8), (32, 32), (256, 256))
# Pairs of 3x3 of which more or fewer outputs are wanted.
WANTED_PAIRS = 10**7
# W (m, n) of many x, in float32, and the bytes of x: more than the caches have.
SHARED_SHAPES = ((3, 3), (10, 784), (256, 256))
SHARED_BYTES = 125 * 10**6
# Pairs of 3x3 with new outputs beside those who compile.
FRESH_PAIRS = 10**7
COMPILERS = (peers.JAX_MATMUL, peers.JAX_SUM, peers.TORCH_COMPILE_VMAP, peers.TORCH_COMPILE_HAND)
# Pairs of 3x3 in a step of training.
TRAINING_PAIRS = 10**6
# W of the NumPy backend beside NumPy by hand.
NUMPY_SHAPES = ((3, 3), (8, 8), (64, 64), (10, 784), (784, 10))


class Bench:
    """The rows of one run; ``quick`` has fewer rounds, batches and bytes, but every kind of row."""

    def __init__(self, quick: bool) -> None:
        self.rounds, self.within_s = (5, 3) if quick else (15, 90)
        self.batches = (1, 100, 10**4, 10**6) if quick else tuple(10**k for k in range(8))
        self.bytes_of_W = 10**8 if quick else 4 * 10**8
        self.bytes_of_x, self.models = SHARED_BYTES, MODELS
        self.most = sl2.get_num_threads()
        self.rows: list[Row] = []

    # --- the parts ----------------------------------------------------------------------------------------------------

    def shapes(self) -> None:
        """Ours with outputs given."""
        for dtype, shapes in (("float32", SHAPES), ("float64", SHAPES_64)):
            for m, n in shapes:
                case = self.case(m, n, dtype=dtype)
                self.compare("shapes", Workload(case), [(peers.OURS, GIVEN)], self.copies(case))

    def huge(self) -> None:
        """One pair that all threads share."""
        case = self.case(*HUGE, 1)
        self.compare("huge", Workload(case), [(peers.OURS, GIVEN)], self.copies(case))

    def subnormal(self) -> None:
        """Long rows whose q is so large that g and dW are subnormal here and there."""
        case = self.case(10, 784)
        work = Workload(case, scaled=False)
        ours, *_ = self.compare("subnormal", work, [(peers.OURS, GIVEN)], self.copies(case))
        ours["subnormal"] = work.subnormal()

    def outputs(self) -> None:
        """New outputs in a loop beside given ones."""
        for B in NEW_OUTPUTS:
            case = self.case(3, 3, B)
            new = {Key(peers.OURS.name, LOOP, self.most): in_a_loop(Workload(case).call("numba", given=False))}
            self.compare("outputs", Workload(case), [(peers.OURS, GIVEN)], new | self.copies(case))

    def layouts(self) -> None:
        """The pairs last in memory, beside the pairs first."""
        for m, n in LAYOUT_SHAPES:
            work = Workload(self.case(m, n))
            self.time("layouts", work.case, layouts.runs(work, "numba", Key(peers.OURS.name, threads=self.most)))

    def wanted(self) -> None:
        """A target, and fewer outputs, beside the usual call."""
        work = Workload(self.case(3, 3, WANTED_PAIRS))
        self.time("wanted", work.case, wanted.runs(work, "numba", Key(peers.OURS.name, threads=self.most)))

    def fit(self) -> None:
        """Steps of gradient descent, by the models in a block, beside a loop by hand."""
        fit = Fit(self.models)
        for block in sorted({min(block, self.models) for block in BLOCKS}):
            self.time("fit", self.case(M, N, block), fit.runs(block, self.most), STEPS)

    def threads(self) -> None:
        """Ours and the copies on 1, 2, ... threads."""
        numbers = sorted({k for k in (*range(1, 9), *(2**i for i in range(4, 16)), self.most) if k <= self.most})

        def on(threads: int, call: Run) -> Run:
            def run() -> None:
                sl2.set_num_threads(threads)  # costs less than a microsecond
                call()

            return run

        for case in (self.case(3, 3), self.case(64, 64)):
            call = Workload(case).call("numba")
            ours = {Key(peers.OURS.name, "given", k): on(k, call) for k in numbers}
            self.time("threads", case, ours | self.copies(case, *numbers))
        sl2.set_num_threads(None)

    def reader(self) -> None:
        """Ours alone, and followed by a reader of its results; stored the ordinary way, and streamed."""
        for case in reader.cases():
            self.time("reader", case, reader.reading(Workload(case), self.most))
        reader.reset()

    def pair(self) -> None:
        """One pair without a batch axis, beside NumPy by hand."""
        by_hand = (peers.OURS_AUTO, peers.NUMPY_PAIR, peers.NUMPY_MATMUL, peers.NUMPY_EINSUM)
        self.compare("pair", Workload(self.case(3, 3, 1)), [(peer, FRESH) for peer in by_hand])

    def small(self) -> None:
        """Small batches, beside NumPy by hand."""
        ours = [(peers.OURS_AUTO, FRESH), (peers.OURS_AUTO, GIVEN)]
        for B in (1, 10, 100):
            by_hand = [(peers.NUMPY_MATMUL, FRESH), (peers.NUMPY_EINSUM, FRESH)]
            self.compare("small", Workload(self.case(3, 3, B)), ours + by_hand)

    def numpy(self) -> None:
        """The NumPy backend on all threads, beside NumPy by hand on one."""
        sizes = [Case.sized("cpu", "float32", m, n, self.bytes_of_W // 10) for m, n in NUMPY_SHAPES]
        for case in (self.case(3, 3, 1), self.case(3, 3, 1000), *sizes):
            both = [(peers.NUMPY, GIVEN), (peers.NUMPY_EINSUM, GIVEN)]
            self.compare("numpy", Workload(case), both, self.copies(case, 1, self.most))

    def batch(self) -> None:
        """Everybody over the batch."""
        everybody = [(peers.OURS, GIVEN), (peers.OURS, FRESH)]
        everybody += [(peer, FRESH) for peer in training.OURS]
        everybody += [(peer, peer.takes_out) for peer in peers.PEERS if "cpu" in peer.devices]
        for B in self.batches:
            case = self.case(3, 3, B)
            self.compare("batch", Workload(case), everybody, self.copies(case, 1, self.most))

    def fresh(self) -> None:
        """Those who compile, with new outputs, and what new memory costs a copy."""
        wanted = [(peer, FRESH) for peer in (peers.OURS, peers.NUMPY_EINSUM, *COMPILERS)]
        case = self.case(3, 3, FRESH_PAIRS)
        new = {Key(COPY["cpu"], "fresh", 1): Copy(case).source.copy}
        self.compare("fresh", Workload(case), wanted, new | self.copies(case))

    def shared(self) -> None:
        """One W for many x, beside those who multiply matrices."""
        for m, n in SHARED_SHAPES:
            case = shared.SharedCase.of_x("cpu", "float32", m, n, self.bytes_of_x)
            others = [(peer, peer.takes_out) for peer in shared.PEERS]
            self.compare("shared", shared.SharedWork(case), [(peers.OURS, GIVEN), *others], self.copies(case))

    def training(self) -> None:
        """The forward and the backward pass within a framework, beside its own formula."""
        everybody = [(peer, FRESH) for peer in (*training.OURS, *training.PEERS)]
        self.compare("training", Workload(self.case(3, 3, TRAINING_PAIRS)), everybody)

    def tails(self) -> None:
        """The wrong gradients of everybody whose accuracy is measured."""
        print("tails", file=sys.stderr)
        self.rows += tails.rows()

    # --- what they have in common -------------------------------------------------------------------------------------

    def case(self, m: int, n: int, B: int | None = None, dtype: str = "float32") -> Case:
        """B pairs, or so many that W has the bytes of the run."""
        sizes = "cpu", dtype, m, n
        return Case(*sizes, B) if B else Case.sized(*sizes, self.bytes_of_W)

    def copies(self, case: Case, *threads: int) -> dict[Key, Run]:
        """The copies on so many threads; without a number, on as many as ours."""
        return Copy(case).ways(*threads or (self.most,))

    def compare(
        self, part: str, work: Workload, wanted: Sequence[Contender], more: dict[Key, Run] | None = None
    ) -> list[Row]:
        """Time all contenders and ``more`` in turn; one that fails or is wrong gets a row with the reason."""
        runs, gaps = contenders(part, work, wanted)
        measured = self.time(part, work.case, runs | (more or {}))
        self.rows += gaps
        return measured

    def time(self, part: str, case: Case, runs: Mapping[Key, Run], steps: int = 1) -> list[Row]:
        """Add a row for each of ``runs``, which make so many ``steps``."""
        print(f"{part}: {case}", file=sys.stderr)
        turns = {key: HostTurn(run, steps) for key, run in runs.items()}
        measured = rows(part, case, turns, self.rounds, self.within_s)
        self.rows += measured
        return measured


def in_a_loop(run: Run) -> Run:
    """``run`` as in a loop of ``results = run()``: the last results are freed when the next ones are there."""
    results: list[object] = []

    def call() -> None:
        results[:] = [run()]

    return call


# Methods of Bench in the order in which they run: those of other libraries come last, because these start threads.
PARTS = (
    "shapes",
    "huge",
    "subnormal",
    "outputs",
    "layouts",
    "wanted",
    "fit",
    "threads",
    "reader",
    "pair",
    "small",
    "numpy",
)
NEED_OTHERS = ("batch", "fresh", "shared", "training", "tails")
PARTS += NEED_OTHERS


def main() -> None:
    """Measure, write, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", metavar="PART", help="default: all")
    parser.add_argument("--no-peers", action="store_true", help=f"without {', '.join(NEED_OTHERS)}")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, batches and bytes: a minute or two")
    parser.add_argument("-o", type=Path, metavar="FILE", help="default: bench/results/<date>-<cpu>.json if all is run")
    args = parser.parse_args()
    if unknown := set(args.part) - set(PARTS):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    wanted = [part for part in args.part or PARTS if not (args.no_peers and part in NEED_OTHERS)]

    bench = Bench(args.quick)
    results: dict[str, Any] = {
        "date": now(),
        "quick": args.quick,
        "machine": cpu_machine(),
        "versions": installed(dict.fromkeys(peer.library for peer in (peers.OURS, *peers.PEERS))),
        "notes": {peer.name: peer.note for peer in (*training.OURS, *peers.PEERS) if peer.note},
    }
    complete = not args.quick and set(wanted) == set(PARTS)
    path = args.o or (results_path(RESULTS, results["machine"]["cpu"]) if complete else Path("build/cpu.json"))
    for part in wanted:
        getattr(bench, part)()
    results |= {"targets": targets(bench.rows), "rows": bench.rows}
    write(results, path)
    sys.exit(not report(path))


if __name__ == "__main__":
    main()
