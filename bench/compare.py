"""The speed of this working tree beside another commit's, in turn: for everyone who changes a kernel.

python bench/compare.py --base HEAD~1
python bench/compare.py --base main --shape 3x3 784x10 --dtype float32 float64 --threads 1
python bench/compare.py --base main --backend cupy --shape 64x64        on a machine that has a GPU

Two processes, one with each package, time the same case in turn, so that a drift of the machine hits both alike. A
round is one turn of each; the ratio of a round is here's speed over the base's, and the median of the ratios is judged.
CPU times are wall times, GPU times the device's own. Without options the cases are every kernel class of the CPU, small
calls, and outputs given and new: three minutes, and more where a case seems slower. On a busy machine the ratios
scatter by some hundredths. Exits with 1 where a case is slower than --least.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from checkout import ROOT, assemble, export, git, with_package
from compare_worker import Job
from tables import duration, markdown
from workload import pairs

# Pairs of processes for a case, at least, and at most where one pair has found it slower than --least. The median of
# the pairs is judged, because two processes with the same code differed by up to 8 % at B = 1000.
PAIRS, MOST_PAIRS = 3, 9
# Rounds of a case in one pair of processes, at most, and the seconds for them; long calls get at least three.
ROUNDS, ROUNDS_S = 60, 2.5
# Load average per processor from which the machine is called busy.
BUSY = 0.3
# Bytes of W where no batch is given: outside of the caches of a CPU, and of a GPU.
BYTES_OF_W = {"cpu": 100 * 10**6, "gpu": 400 * 10**6}
# W (m, n) of the CPU's kernel classes: tiny, tall, rows that are grouped, rows that are long.
SHAPES = ((3, 3), (8, 8), (784, 10), (64, 16), (64, 64), (10, 784), (256, 256))
SMALL = (1, 1000)  # pairs of small calls


def jobs(args: argparse.Namespace, device: str) -> list[Job]:
    """What the options ask for; without them every class, small calls, and new outputs."""
    size = BYTES_OF_W[device]
    shapes, dtypes = args.shape or SHAPES, args.dtype or ("float32", "float64")
    cases = [(dtype, m, n) for (m, n), dtype in product(shapes, dtypes)]
    chosen = [(*case, B) for case in cases for B in args.batch or [pairs(case[1], case[2], case[0], size)]]
    table = [Job(*case, threads=threads) for case in chosen for threads in args.threads]
    if not (args.shape or args.batch):
        small = [(3, 3, B) for B in (*SMALL, pairs(3, 3, dtypes[0], size))]
        table += [Job(dtypes[0], *size, given=False, threads=threads) for size in small for threads in args.threads]
        table += [Job(dtypes[0], *size, threads=threads) for size in small[:-1] for threads in args.threads]
    return table


class Worker:
    """A process that has imported one of the two packages, and answers each line of JSON with one."""

    def __init__(self, name: str, folder: Path, backend: str) -> None:
        self.name, packages = name, folder / name / "packages"
        caches = {f"{cache}_CACHE_DIR": str(folder / name / "cache") for cache in ("NUMBA", "CUPY")}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve().with_name("compare_worker.py")), backend],
            env=with_package(packages) | caches,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        hello = self.answer()
        if not Path(hello["package"]).is_relative_to(packages):
            sys.exit(f"{name} imports {hello['package']} instead of {packages}")
        self.device, self.reasons = hello["device"], hello["reasons"]

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def ask(self, what: Any) -> None:
        """Send a line."""
        print(json.dumps(what), file=self.process.stdin, flush=True)

    def answer(self) -> Any:
        """Its next answer; the program ends where it has died."""
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"the process of {self.name} has ended with {self.process.wait()}")
        return json.loads(line)


def rounds(job: Job, base: Worker, here: Worker) -> list[tuple[float, float]]:
    """The seconds of base and here, a pair a round; RuntimeError where one of them cannot compute."""
    for worker in (base, here):
        worker.ask(asdict(job))
    told = {worker.name: worker.answer() for worker in (base, here)}  # both compile at a time
    if reasons := [f"{name}: {answer['reason']}" for name, answer in told.items() if "reason" in answer]:
        raise RuntimeError("; ".join(reasons))
    takes = sum(answer["takes"] for answer in told.values())
    seconds = []
    for k in range(min(ROUNDS, max(3, int(ROUNDS_S / takes)))):
        of_round = {}
        for worker in (base, here) if k % 2 else (here, base):
            worker.ask(None)
            of_round[worker.name] = worker.answer()
        seconds.append((of_round[base.name], of_round[here.name]))
    return seconds


class Result:
    """What was measured of one job."""

    def __init__(self, job: Job) -> None:
        self.job, self.reason = job, ""
        self.seconds: list[tuple[float, float]] = []  # of base and here, a pair a round
        self.of_pairs: list[float] = []  # the median ratio of each pair of processes

    def measure(self, base: Worker, here: Worker) -> None:
        """Add the rounds of one pair of processes."""
        try:
            new = rounds(self.job, base, here)
        except RuntimeError as error:
            self.reason = str(error)
            return
        self.seconds += new
        self.of_pairs.append(median(b / h for b, h in new))

    def is_open(self, least: float) -> bool:
        """Whether it needs another pair of processes."""
        wanted = PAIRS if all(ratio >= least for ratio in self.of_pairs) else MOST_PAIRS
        return not self.reason and len(self.of_pairs) < wanted

    def is_good(self, least: float) -> bool:
        """Whether it was measured and is fast enough."""
        return not self.reason and median(self.of_pairs) >= least

    def line(self, least: float) -> list[str]:
        """Its line of the table."""
        if self.reason:
            return [str(self.job), "-", "-", "-", "-", "-", f"NOT MEASURED: {self.reason}"]
        medians = [duration(median(side)) for side in zip(*self.seconds, strict=True)]
        low, high = np.percentile([b / h for b, h in self.seconds], (20, 80))
        told = [f"{median(self.of_pairs):.3f}", f"{low:.3f} to {high:.3f}", str(len(self.seconds))]
        return [str(self.job), *medians, *told, "" if self.is_good(least) else "SLOWER"]


HEAD = ("case", "base", "here", "here's speed / base's", "p20 to p80", "rounds", "")


def shape(text: str) -> tuple[int, int]:
    """(m, n) of "MxN"."""
    m, n = map(int, text.split("x"))
    return m, n


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, metavar="REV", help="the commit to compare with: HEAD, main, a tag")
    parser.add_argument("--backend", default="numba", help="numba (default), numpy, cupy or numba-cuda")
    parser.add_argument("--shape", nargs="+", type=shape, metavar="MxN", help="of W; default: every class")
    parser.add_argument("--dtype", nargs="+", choices=("float32", "float64"), help="default: both")
    parser.add_argument("--batch", nargs="+", type=int, metavar="B", help="pairs; default: W has 100 MB, on a GPU 400")
    parser.add_argument("--threads", nargs="+", type=int, default=[0], metavar="N", help="default: the library's")
    parser.add_argument("--least", type=float, default=0.97, metavar="RATIO", help="default: 0.97")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="compare-") as temporary:
        folder = Path(temporary)
        roots = {"base": folder / "base" / "checkout", "here": ROOT}
        try:
            export(args.base, roots["base"])
        except subprocess.CalledProcessError as error:
            parser.error(f"--base {args.base}: {error.stderr.decode().strip()}")
        for name, root in roots.items():
            assemble(folder / name / "packages", root)
        if (load := os.getloadavg()[0]) > BUSY * (os.cpu_count() or 1):
            print(f"the machine is busy, the ratios will scatter: load {load:.1f}", file=sys.stderr)
        results: list[Result] = []
        while not results or (is_open := [r for r in results if r.is_open(args.least)]):
            with Worker("base", folder, args.backend) as base, Worker("here", folder, args.backend) as here:
                if here.reasons:
                    print(f"backend {args.backend} cannot run here: {'; '.join(here.reasons)}")
                    sys.exit(2)
                if not results:
                    is_open = results = [Result(job) for job in jobs(args, here.device)]
                for result in is_open:
                    print(result.job, file=sys.stderr)
                    result.measure(base, here)
        print(f"base: {git('rev-parse', args.base).decode().strip()}, backend {args.backend}\n")
        print(markdown(HEAD, [result.line(args.least) for result in results]))
    sys.exit(not all(result.is_good(args.least) for result in results))


if __name__ == "__main__":
    main()
