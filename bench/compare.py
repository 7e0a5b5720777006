"""The speed of this working tree beside another commit's, in turn: for everyone who changes a kernel.

python bench/compare.py --base HEAD~1
python bench/compare.py --base main --shape 3x3 784x10 --dtype float32 float64 --threads 1
python bench/compare.py --base main --backend cupy --shape 64x64        on a machine that has a GPU

Two processes, one with each package, time the same case in turn, so that a drift of the machine hits both alike. A
round is one turn of each; the ratio of a round is here's speed over the base's, and the median of the ratios is judged.
CPU times are wall times, GPU times the device's own. Without options the cases are every kernel class of the CPU, small
calls, and outputs given and new: three minutes. A case that is close to --least gets more rounds. On a busy machine the
ratios scatter by several hundredths. Exits with 1 where a case is slower than --least.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from checkout import ROOT, assemble, export, git, with_package
from report import duration, markdown

# Times that both processes allocate the arrays of a case anew, because the speed depends on where they lie in memory.
# There are more, up to MOST_PLACES, until the median is clearly above or below --least.
PLACES, MOST_PLACES = 3, 12
# Rounds in one place, at most, and the seconds for them: long calls get fewer, but at least three.
ROUNDS, PLACE_S = 60, 2.5
# Load average per processor from which the machine is called busy.
BUSY = 0.3
# Bytes of W where no batch is given: outside of the caches of a CPU, and of a GPU.
BYTES_OF_W = {"cpu": 100 * 10**6, "gpu": 400 * 10**6}
# W (m, n) of the CPU's kernel classes: tiny, tall, rows that are grouped, rows that are long.
SHAPES = ((3, 3), (8, 8), (784, 10), (64, 16), (64, 64), (10, 784), (256, 256))
SMALL = (1, 1000)  # pairs of small calls


@dataclass(frozen=True)
class Job:
    """What both processes time; ``threads`` 0 stands for the default number."""

    dtype: str
    m: int
    n: int
    B: int
    given: bool = True
    threads: int = 0

    def __str__(self) -> str:
        outputs = "given" if self.given else "new"
        threads = f", {self.threads} thread{'s' * (self.threads > 1)}" if self.threads else ""
        return f"{self.m}x{self.n} {self.dtype}, B = {self.B:,}, outputs {outputs}{threads}"


def jobs(args: argparse.Namespace, device: str) -> list[Job]:
    """What the options ask for; without them every class, small calls, and new outputs."""

    def pairs(m: int, n: int, dtype: str) -> int:
        return max(1, BYTES_OF_W[device] // (m * n * np.dtype(dtype).itemsize))

    shapes, dtypes = args.shape or SHAPES, args.dtype or ("float32", "float64")
    cases = [(dtype, m, n) for (m, n), dtype in product(shapes, dtypes)]
    chosen = [(*case, B) for case in cases for B in args.batch or [pairs(case[1], case[2], case[0])]]
    table = [Job(*case, threads=threads) for case in chosen for threads in args.threads]
    if not (args.shape or args.batch):
        small = [(3, 3, B) for B in (*SMALL, pairs(3, 3, dtypes[0]))]
        table += [Job(dtypes[0], *size, given=False, threads=threads) for size in small for threads in args.threads]
        table += [Job(dtypes[0], *size, threads=threads) for size in small[:-1] for threads in args.threads]
    return table


class Worker:
    """A process that has imported one of the two packages, and answers each line of JSON with one."""

    def __init__(self, name: str, packages: Path, backend: str) -> None:
        self.name = name
        caches = {f"{cache}_CACHE_DIR": str(packages.parent / "cache") for cache in ("NUMBA", "CUPY")}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--worker", backend],
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


def work(backend: str) -> None:
    """The worker: it answers a job with the seconds a turn takes or why it cannot be timed, and null with a turn's."""
    from timing import DeviceTurn, HostTurn
    from workload import Case, Copy, Workload

    import sigmoid_l2 as sl2

    answers, sys.stdout = sys.stdout, sys.stderr  # nothing that a library prints is taken for an answer
    info = next((info for info in sl2.backends() if info.name == backend), None)
    device = "gpu" if info and info.device == "cuda" else "cpu"
    reasons = [f"there is no backend {backend}"] if info is None else list(info.reasons)

    def answer(what: Any) -> None:
        print(json.dumps(what), file=answers, flush=True)

    def prepare(job: Job) -> Callable[[], float]:
        sl2.set_num_threads(job.threads or None)
        case = Case(device, job.dtype, job.m, job.n, job.B)
        call = Workload(case).call(backend, job.given)
        return HostTurn(call) if device == "cpu" else DeviceTurn(call, Copy(case))

    answer({"package": sl2.__file__, "device": device, "reasons": reasons})
    turn: Any = None
    for line in sys.stdin:
        if (told := json.loads(line)) is None:
            answer(turn())
            continue
        turn = None  # its arrays are freed before there are new ones
        try:
            turn = prepare(Job(**told))
            answer({"takes": turn.takes})
        except Exception as error:
            answer({"reason": f"{type(error).__name__}: {error}"})


def rounds(job: Job, base: Worker, here: Worker) -> list[tuple[float, float]]:
    """The seconds of base and here, a pair a round, with new arrays; RuntimeError where one of them cannot compute."""
    for worker in (base, here):
        worker.ask(asdict(job))
    told = {worker.name: worker.answer() for worker in (base, here)}  # both compile at a time
    if reasons := [f"{name}: {answer['reason']}" for name, answer in told.items() if "reason" in answer]:
        raise RuntimeError("; ".join(reasons))
    takes = sum(answer["takes"] for answer in told.values())
    pairs = []
    for k in range(min(ROUNDS, max(3, int(PLACE_S / takes)))):
        seconds = {}
        for worker in (base, here) if k % 2 else (here, base):
            worker.ask(None)
            seconds[worker.name] = worker.answer()
        pairs.append((seconds[base.name], seconds[here.name]))
    return pairs


def decided(ratios: list[float], least: float) -> bool:
    """Whether ``least`` is outside of the interval that has the median in it in 19 of 20 measurements."""
    half_width = int(len(ratios) ** 0.5) + 1  # in ranks; the binomial distribution's two standard deviations
    middle, ordered = len(ratios) // 2, sorted(ratios)
    return not ordered[max(0, middle - half_width)] <= least <= ordered[min(len(ratios) - 1, middle + half_width)]


def compare(base: Worker, here: Worker, table: list[Job], least: float) -> tuple[str, bool]:
    """The table, and whether no case is slower than ``least``."""
    lines, good = [], True
    for job in table:
        print(job, file=sys.stderr)
        pairs: list[tuple[float, float]] = []
        try:
            for place in range(MOST_PLACES):
                pairs += rounds(job, base, here)
                if place + 1 >= PLACES and decided([b / h for b, h in pairs], least):
                    break
        except RuntimeError as error:
            lines.append([str(job), "-", "-", "-", "-", "-", f"NOT MEASURED: {error}"])
            good = False
            continue
        low, ratio, high = np.percentile([b / h for b, h in pairs], (20, 50, 80))
        good &= ratio >= least
        medians = [duration(median(side)) for side in zip(*pairs, strict=True)]
        told = [f"{ratio:.3f}", f"{low:.3f} to {high:.3f}", str(len(pairs)), "SLOWER" if ratio < least else ""]
        lines.append([str(job), *medians, *told])
    return markdown(("case", "base", "here", "here's speed / base's", "p20 to p80", "rounds", ""), lines), good


def shape(text: str) -> tuple[int, int]:
    """(m, n) of "MxN"."""
    m, n = map(int, text.split("x"))
    return m, n


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", metavar="REV", help="the commit to compare with: HEAD, main, a tag")
    parser.add_argument("--backend", default="numba", help="numba (default), numpy, cupy or numba-cuda")
    parser.add_argument("--shape", nargs="+", type=shape, metavar="MxN", help="of W; default: every class")
    parser.add_argument("--dtype", nargs="+", choices=("float32", "float64"), help="default: both")
    parser.add_argument("--batch", nargs="+", type=int, metavar="B", help="pairs; default: W has 100 MB, on a GPU 400")
    parser.add_argument("--threads", nargs="+", type=int, default=[0], metavar="N", help="default: the library's")
    parser.add_argument("--least", type=float, default=0.97, metavar="RATIO", help="default: 0.97")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker)
        return
    if not args.base:
        parser.error("--base REV is required")

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compare-")))
        roots = {"base": folder / "base" / "checkout", "here": ROOT}
        try:
            export(args.base, roots["base"])
        except subprocess.CalledProcessError as error:
            parser.error(f"--base {args.base}: {error.stderr.decode().strip()}")
        workers = []
        for name, root in roots.items():
            assemble(folder / name / "packages", root)
            workers.append(stack.enter_context(Worker(name, folder / name / "packages", args.backend)))
        base, here = workers
        if (load := os.getloadavg()[0]) > BUSY * (os.cpu_count() or 1):
            print(f"the machine is busy, the ratios will scatter: load {load:.1f}", file=sys.stderr)
        if here.reasons:
            print(f"backend {args.backend} cannot run here: {'; '.join(here.reasons)}")
            sys.exit(2)
        table, good = compare(base, here, jobs(args, here.device), args.least)
        print(f"base: {git('rev-parse', args.base).decode().strip()}, backend {args.backend}\n\n{table}")
    sys.exit(not good)


if __name__ == "__main__":
    main()
