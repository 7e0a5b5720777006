"""The speed of this working tree beside another commit's, in turn: for everyone who changes a kernel.

python bench/compare.py --base HEAD~1
python bench/compare.py --base main --shape 3x3 784x10 --dtype float32 float64 --threads 1
python bench/compare.py --base main --backend cupy --shape 64x64        on a machine that has a GPU

Two processes, one with each package, time the same case in turn, so that a drift of the machine hits both alike. A
round is one turn of each, and its ratio is here's speed over the base's. Judged is the median over several pairs of
processes, each with its median ratio. CPU times are wall times, GPU times the device's own. Without --shape and --batch
the cases are every kernel class of the CPU, small calls, and outputs given and new: six minutes. On a busy machine the
ratios scatter by some hundredths. Exits with 1 where a case is slower than --least or could not be measured, with 2
where the backend cannot run here.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from checkout import ROOT, assemble, export, git
from copies import Copy
from measure import DeviceTurn, HostTurn, Turn
from report_tables import duration, markdown
from workload import Case, Workload

import sigmoid_l2 as sl2

# Pairs of processes for a case, because two processes with the same code differed by up to 8 % at B = 1000.
PAIRS = 5
# Rounds of a case in one pair of processes, at most, and the seconds for them; long calls get at least three.
ROUNDS, ROUNDS_S = 60, 2.5
# Load average per processor from which the machine is called busy.
BUSY = 0.3
# Bytes of W where no batch is given: outside of the caches of a CPU, and of a GPU.
BYTES_OF_W = {"cpu": 100 * 10**6, "gpu": 400 * 10**6}
# W (m, n) of the CPU's kernel classes: tiny, tall, rows that are grouped, rows that are long.
SHAPES = ((3, 3), (8, 8), (784, 4), (784, 10), (64, 16), (64, 64), (10, 784), (256, 256))
SMALL = (1, 1000)  # pairs of small calls


class Job(NamedTuple):
    """What both processes time; ``threads`` 0 stands for the default number."""

    case: Case
    backend: str
    given: bool
    threads: int

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' * (self.threads > 1)}" if self.threads else ""
        return f"{self.case}, outputs {'given' if self.given else 'new'}{threads}"


def jobs(args: argparse.Namespace, device: str) -> list[Job]:
    """What the options ask for; without them every class, small calls, and new outputs."""
    dtypes, size = args.dtype or ("float32", "float64"), BYTES_OF_W[device]
    cases: list[tuple[Case, bool]] = []  # and whether outputs are given
    for (m, n), dtype in product(args.shape or SHAPES, dtypes):
        batches = [Case(device, dtype, m, n, B) for B in args.batch or ()]
        cases += [(case, True) for case in batches or [Case.sized(device, dtype, m, n, size)]]
    if not (args.shape or args.batch):
        cases += [(Case(device, dtypes[0], 3, 3, B), given) for B in SMALL for given in (True, False)]
        cases.append((Case.sized(device, dtypes[0], 3, 3, size), False))
    return [Job(case, args.backend, given, threads) for case, given in cases for threads in args.threads]


# --- in a process with one of the two packages ----------------------------------------------------------------------

turn: Turn | None = None


def hello(backend: str) -> tuple[str, str, str]:
    """The file of the package, the device of ``backend``, and why it cannot run."""
    info = next((info for info in sl2.backends() if info.name == backend), None)
    reasons = "; ".join(info.reasons) if info else f"there is no backend {backend}"
    return sl2.__file__, "gpu" if info and info.device == "cuda" else "cpu", reasons


def prepare(job: Job) -> float:
    """Allocate, compile, check; the seconds of a turn."""
    global turn
    turn = None  # its arrays are freed before there are new ones
    sl2.set_num_threads(job.threads or None)
    call = Workload(job.case).call(job.backend, job.given)
    turn = HostTurn(call) if job.case.device == "cpu" else DeviceTurn(call, Copy(job.case))
    return turn.takes


def timed() -> float:
    """The seconds of a call, by one turn."""
    return turn()


# --- in the process that compares -----------------------------------------------------------------------------------


class Worker(ProcessPoolExecutor):
    """A process that imports the package of ``folder``/``name``."""

    def __init__(self, name: str, folder: Path, backend: str) -> None:
        super().__init__(1, mp_context=get_context("spawn"))
        packages = folder / name / "packages"
        caches = {f"{cache}_CACHE_DIR": str(folder / name / "cache") for cache in ("NUMBA", "CUPY")}
        with mock.patch.dict(os.environ, caches), mock.patch.object(sys, "path", [str(packages), *sys.path]):
            file, self.device, self.reasons = self.do(hello, backend)
        if not Path(file).is_relative_to(packages):
            sys.exit(f"{name} imports {file} instead of {packages}")

    def do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Its result from the process."""
        return self.submit(function, *arguments).result()


Rounds = list[tuple[float, float]]  # the seconds of base and here


def rounds(job: Job, base: Worker, here: Worker) -> Rounds:
    """Those of one pair of processes, which take turns at being first."""
    print(job, file=sys.stderr)
    preparing = [worker.submit(prepare, job) for worker in (base, here)]  # both compile at a time
    takes = sum(future.result() for future in preparing)
    seconds = []
    for k in range(min(ROUNDS, max(3, int(ROUNDS_S / takes)))):
        of_round = {worker: worker.do(timed) for worker in ((base, here) if k % 2 else (here, base))}
        seconds.append((of_round[base], of_round[here]))
    return seconds


def line(job: Job, pairs: list[Rounds], least: float) -> list[str]:
    """A line of the table; the last cell is empty where here is fast enough."""
    seconds = [both for pair in pairs for both in pair]
    medians = [duration(median(side)) for side in zip(*seconds, strict=True)]
    low, high = np.percentile([b / h for b, h in seconds], (20, 80))
    ratio = median(median(b / h for b, h in pair) for pair in pairs)
    told = [f"{ratio:.3f}", f"{low:.3f} to {high:.3f}", str(len(seconds))]
    return [str(job), *medians, *told, "" if ratio >= least else "SLOWER"]


def compare(folder: Path, args: argparse.Namespace) -> list[list[str]]:
    """The lines of the table; each pair of processes measures all jobs."""
    measured: dict[Job, list[Rounds]] = {}
    failed: dict[Job, list[str]] = {}
    for _ in range(PAIRS):
        with Worker("base", folder, args.backend) as base, Worker("here", folder, args.backend) as here:
            if here.reasons:
                print(f"backend {args.backend} cannot run here: {here.reasons}")
                sys.exit(2)
            wanted = jobs(args, here.device)
            for job in wanted:
                try:
                    if job not in failed:
                        measured.setdefault(job, []).append(rounds(job, base, here))
                except Exception as error:  # one of them cannot compute it
                    failed[job] = [str(job), *"-----", f"NOT MEASURED: {type(error).__name__}: {error}"]
    return [failed.get(job) or line(job, measured[job], args.least) for job in wanted]


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
    parser.add_argument(
        "--least",
        type=float,
        default=0.97,
        metavar="RATIO",
        help="the smallest accepted ratio of speeds; default: 0.97",
    )
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
        lines = compare(folder, args)
    head = ("case", "base", "here", "here's speed / base's", "p20 to p80", "rounds", "")
    print(f"base: {git('rev-parse', args.base).decode().strip()}, backend {args.backend}\n")
    print(markdown(head, lines))
    sys.exit(any(line[-1] for line in lines))


if __name__ == "__main__":
    main()
