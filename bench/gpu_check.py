"""What `make gpu` does: everything that needs a GPU, in the order of its worth, in at most 7 minutes.

python bench/gpu_check.py [--only STEP...] [--out DIR]

Steps: here (which backends run, and on what), parity (tests of both kernels), benchmark (beside the device copy),
few (pairs beside it; one W for many x; a target and fewer outputs), graph (a call in a CUDA graph, and that it
allocates nothing), small (calls), profile (Nsight Compute's of the two slowest cases of benchmark), sanitizer
(compute-sanitizer), peers.

Uses the packages of the Python that runs it and no network. A step that fails, hangs or is killed leaves the results
of the others.

All is written to build/gpu: a log for each command, summary.md, the results as JSON and their picture. DIR gets what
one would carry away: summary.md, the JSON and the picture of this run, each after every command, and at the end the
logs as logs.tar.gz. Without --out the JSON goes to bench/results as well. Results of the same day on the same GPU that
are in build/gpu already stay in the JSON where they are not measured again.

Exits with 1 if a step failed, a GPU backend is missing or a speed target is missed, as is predicted for columns;
with 2 where there is no GPU backend, and with 130 after Ctrl-C.
"""

import argparse
import json
import os
import re
import resource
import shutil
import signal
import sys
import tarfile
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from checkout import ROOT, assemble, commit
from gpu_steps import SHOWN, Commands, Process, Steps, text_of

BUILD, RESULTS = ROOT / "build" / "gpu", ROOT / "bench" / "results"
PACKAGES = BUILD / "packages"
TOOLKIT = Path("/usr/local/cuda")  # the usual folder of NVIDIA's CUDA toolkit
RESULTS_OF_GPU = "20??-??-??-*.json"  # as results_path names them
BACKENDS = ("cupy", "numba-cuda")
# Limit of each step in seconds, together less than 420. Expected on an H100 with 16 cores: 8, 55, 20, 20, 12, 5, 10,
# 15, 35, 0, 10, 3.
LIMITS = {
    "here": 60,
    "parity": 80,
    "compile": 40,
    "benchmark": 41,
    "few": 23,
    "graph": 16,
    "small": 24,
    "profile": 40,
    "sanitizer": 45,
    "compile peers": 10,  # in addition to the time of the sanitizer, beside which they compile
    "peers": 30,
    "report": 10,
}
STEPS = ("here", "parity", "benchmark", "few", "graph", "small", "profile", "sanitizer", "peers")
# MiB of GPU memory for a process that only tests or compiles: a context takes half a GB, the rest is for pools.
PROCESS_MIB = 2000
# Distance between the first ports of two compute-sanitizers: one tries 10 ports or, in some versions, 64.
PORTS = 100
# The share of gpu_here that is its first case alone.
ONE_CASE = "0/1000"
PYTHON = [sys.executable]


def main() -> None:
    """All steps that are wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="STEP", help=f"of {', '.join(STEPS)}; `here` always runs")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for what one would carry away; see above")
    args = parser.parse_args()
    wanted = args.only or STEPS
    if unknown := [step for step in wanted if step not in STEPS]:
        parser.error(f"unknown step {', '.join(unknown)}; there are {', '.join(STEPS)}")

    out = args.out.resolve() if args.out else None
    try:
        for folder in (BUILD, out or RESULTS):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out: {error}")
    for old in (*BUILD.glob("*.log"), BUILD / "summary.md"):  # they would be taken for those of this run
        old.unlink(missing_ok=True)
    assemble(PACKAGES)
    summary = Summary(out)
    try:
        with summary:
            run(summary, wanted)
    except KeyboardInterrupt:
        print(f"interrupted; what is there so far: {out or BUILD}", file=sys.stderr)
        sys.exit(130)
    finally:
        summary.close()
    print(f"\nall of this: {out or BUILD}\n\n{summary.path.read_text(encoding='utf-8')}")
    if not any(line.result == "ok" for line in summary.lines if line.name in BACKENDS):
        print("no GPU backend can run here: for each the reason and the fix are above")
        sys.exit(2)
    sys.exit(summary.failed)


def run(steps: Steps, wanted: Sequence[str]) -> None:
    """Each step in its turn."""
    query = "--query-gpu=name,driver_version,compute_cap,memory.total,memory.free"
    commands: Commands = {"nvidia-smi": [smi, query, "--format=csv"]} if (smi := shutil.which("nvidia-smi")) else {}
    commands |= {name: [*PYTHON, "bench/gpu_here.py", name] for name in BACKENDS}
    done = steps.side_by_side("here", commands)
    available = [p.name for p in done if p.name in BACKENDS and p.result() == "ok"]
    if not available:
        return
    processes = at_once(done[0].text())
    if "parity" in wanted:
        steps.side_by_side("parity", tests(available, processes))
    if "cupy" in available:
        measure(steps, wanted, available, processes)
    else:
        steps.note("benchmark", "and all after it", "left out: they need CuPy's arrays")
    if results := sorted(steps.written(RESULTS_OF_GPU), key=lambda path: path.stat().st_mtime):
        steps.side_by_side("report", {"targets": [*PYTHON, "bench/report.py", str(results[-1])]})


def at_once(told: str) -> int:
    """The number of processes side by side: at most 16, the cores, and what fits into the free memory in ``told``."""
    free = re.findall(r"(\d+) MiB$", told, re.MULTILINE)
    room = int(free[0]) // PROCESS_MIB if free else 4
    return max(1, min(16, os.cpu_count() or 1, room))


def tests(available: list[str], processes: int) -> Commands:
    """The tests that a GPU makes a difference to."""
    # The versions here are not ours to choose, so their warnings are shown and do not fail a test.
    pytest = [*PYTHON, "-m", "pytest", "-v", "-W", "default", "--maxfail=30", "--durations=5"]
    pytest += ["-p", "no:cacheprovider", "-p", "no:benchmark"]
    kernels = ["tests/host/test_parity.py", "tests/host/test_same_bits.py"]
    kernels += ["tests/host/test_whole_function.py::test_contract"]
    commands: Commands = {}
    for name in available:
        # These tests compare with JAX, for which the CPU is enough; on the GPU each process would start it anew.
        own = ["env", "JAX_PLATFORMS=cpu", f"SIGMOID_L2_TEST_BACKENDS={name}", *pytest, "-m", "gpu"]
        if find_spec("xdist"):
            side_by_side = ["-n", str(max(1, processes // len(available))), "--dist", "worksteal"]
            commands[f"tests-{name}"] = [*own, *side_by_side, *kernels]
        else:
            commands |= {f"tests-{name}-{Path(file).stem}": [*own, file] for file in kernels}
    if "cupy" in available:
        operations = ["tests/host/test_torch_cuda.py::test_on_a_gpu", "tests/host/test_jax.py::test_on_a_gpu"]
        operations = [test for test, library in zip(operations, ("torch", "jax"), strict=True) if find_spec(library)]
        arrays = ["tests/host/test_cuda_arrays.py", "tests/host/test_streams.py", *operations]
        commands["tests-arrays"] = [*pytest, *arrays]
    return commands


def measure(steps: Steps, wanted: Sequence[str], available: list[str], processes: int) -> None:
    """The steps that use CuPy's arrays, whatever the backend."""
    out = ["--out", str(steps.out), "--in-turn"]
    benchmark = [*PYTHON, "bench/bench_gpu.py", *out]
    shares = max(4, processes - 2 * len(available))
    commands: dict[str, Commands] = {
        "benchmark": {
            f"shapes-{k}": [*benchmark, "shapes", "--share", f"{k}/{shares}", "--backend", *available]
            for k in range(shares)
        },
        "few": {part: [*benchmark, part, "--backend", *available] for part in ("few", "shared", "wanted")},
        "graph": {f"promises-{name}": [*benchmark, "promises", "--backend", name] for name in available},
        "small": {f"small-{name}": [*benchmark, "small", "--backend", name] for name in available},
    }
    measuring = {step: steps.start(own) for step, own in commands.items() if step in wanted}
    if measuring:
        steps.compiled("compile", [p for own in measuring.values() for p in own], LIMITS["compile"])
    for step, own in measuring.items():
        steps.in_turn(step, own)

    if "profile" in wanted:
        profile(steps)
    peers: list[Process] = []
    until = time.monotonic() + LIMITS["sanitizer"] + LIMITS["compile peers"]
    if "peers" in wanted:  # they compile beside the sanitizer, because nothing is timed meanwhile
        command = [*benchmark, "peers", "--backend", *available]
        peers = steps.start({f"peers-{k}": [*command, "--share", f"{k}/3"] for k in range(3)})
    if "sanitizer" in wanted:
        sanitize(steps, available, processes)
    if peers:
        steps.compiled("compile peers", peers, until - time.monotonic())
        steps.in_turn("peers", peers)


def program(name: str) -> str | None:
    """Where a program of the CUDA toolkit is."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{TOOLKIT / 'bin'}")


def profile(steps: Steps) -> None:
    """Where the time of the two slowest cases goes."""
    ncu = program("ncu")
    if ncu is None:
        steps.note("profile", "ncu", "left out: not on the PATH; it comes with the CUDA toolkit")
        return
    options = ["--set", "full", "--kernel-name", "regex:fused", "--launch-skip", "1", "--launch-count", "1"]
    commands = {}
    for row in slowest(steps):
        case = [row["contender"], *(str(row[key]) for key in ("m", "n", "dtype", "B"))]
        commands["-".join(["profile", *case])] = [ncu, *options, *PYTHON, "bench/gpu_here.py", *case]
    if not commands:
        steps.note("profile", "ncu", "left out: no case has been measured")
    for name, command in commands.items():  # one after the other: each has the device to itself
        (process,) = steps.side_by_side("profile", {name: command}, steps.limits["profile"] / len(commands))
        # Without permission for the counters it says so, and goes on or not.
        if told := [line for line in process.text().splitlines() if line.startswith("==ERROR==")]:
            steps.note("profile", "all others", f"left out: {told[0].removeprefix('==ERROR==').strip()}")
            return


def slowest(steps: Steps) -> list[dict[str, Any]]:
    """The rows of the two cases that are furthest below the copy."""
    rows = [
        row for path in steps.written(RESULTS_OF_GPU) for row in json.loads(path.read_text(encoding="utf-8"))["rows"]
    ]
    shapes = [row for row in rows if row["part"] == "shapes" and "fraction_of_copy" in row]
    return sorted(shapes, key=lambda row: row["fraction_of_copy"])[:2]


def sanitize(steps: Steps, available: list[str], processes: int) -> None:
    """Every class of sizes under two tools."""
    sanitizer = program("compute-sanitizer")
    if sanitizer is None:
        steps.note("sanitizer", "compute-sanitizer", "left out: not on the PATH; it comes with the CUDA toolkit")
        return
    options = ["--error-exitcode", "1", "--report-api-errors", "no"]  # CuPy makes API calls that it expects to fail
    runs = [(tool, name) for tool in ("memcheck", "racecheck") for name in available]
    shares = max(1, processes // len(runs))
    commands: Commands = {}

    def command(tool: str, name: str, part: str) -> list[str]:
        port = ["--port", str(20_000 + PORTS * len(commands))]
        return [sanitizer, "--tool", tool, *port, *options, *PYTHON, "bench/gpu_here.py", name, part]

    # It refuses some virtualised devices. One case finds that out, so that the refusal is reported once.
    limit = steps.limits["sanitizer"]
    until = time.monotonic() + limit
    (probe,) = steps.side_by_side("sanitizer", {"probe": command("memcheck", available[0], ONE_CASE)}, limit=limit / 2)
    if probe.result() != "ok":
        told = [line for line in probe.text().splitlines() if "error" in line.lower()] or ["it said nothing"]
        steps.note("sanitizer", "all others", f"left out: {told[0].strip('= ')}")
        return
    for tool, name in runs:
        for k in range(shares):
            commands[f"{tool}-{name}-{k}"] = command(tool, name, f"{k}/{shares}")
    steps.side_by_side("sanitizer", commands, limit=until - time.monotonic())


class Summary(Steps):
    """The steps and summary.md: the commit, the result of each command, the backends, the ends of logs, the tables.

    summary.md and the results of this run are copied to ``out``, or without one the results to bench/results.
    """

    def __init__(self, out: Path | None) -> None:
        super().__init__(BUILD, environment(), LIMITS)
        self.copies, self.path = out, BUILD / "summary.md"
        self.date = datetime.now().astimezone().isoformat(timespec="seconds")

    def note(self, step: str, name: str, result: str, seconds: float = 0) -> None:
        """The line, and the summary anew."""
        super().note(step, name, result, seconds)
        self.write()

    def write(self) -> None:
        """Write summary.md and copy what there is."""
        lines = [f"# gpu_check, {self.date}", "", f"Commit: {commit()}", ""]
        lines += ["| step | command | result | seconds |", "| --- | --- | --- | ---: |"]
        lines += [f"| {line.step} | {line.name} | {line.result} | {line.seconds:.0f} |" for line in self.lines]
        report: list[str] = []
        for line in self.lines:
            text = text_of(BUILD / f"{line.name}.log").strip().splitlines()
            if line.step == "report":
                report = ["", *text]
            elif text and (line.step == "here" or line.result.startswith("FAILED")):
                lines += ["", f"## {line.name}", "", "```", *(text if line.step == "here" else text[-SHOWN:]), "```"]
        self.path.write_text("\n".join(lines + report) + "\n", encoding="utf-8")
        for pattern in ("summary.md", "*.json", "*.png") if self.copies else ("*.json",):
            for path in self.written(pattern):
                with suppress(shutil.SameFileError):  # DIR is build/gpu
                    shutil.copy(path, self.copies or RESULTS)

    def close(self) -> None:
        """Copy the results, however the steps ended, and put the logs into one file."""
        self.write()
        if self.copies:
            with tarfile.open(self.copies / "logs.tar.gz", "w:gz") as archive:
                for log in sorted(BUILD.glob("*.log")):
                    archive.add(log, log.name)


def environment() -> dict[str, str]:
    """The environment of every command: this checkout's package first, unbuffered output, a traceback on SIGABRT."""
    path = os.pathsep.join(filter(None, (str(PACKAGES), os.environ.get("PYTHONPATH"))))
    own = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    own["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # JAX would take most of the GPU's memory
    own["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # torch would start a process for each core
    if not {"CUDA_HOME", "CUDA_PATH"} & os.environ.keys() and (TOOLKIT / "nvvm").is_dir():
        own["CUDA_HOME"] = str(TOOLKIT)  # without it numba-cuda finds only pip's libnvvm
    return {**os.environ, **own}


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no core files of gigabytes from commands that are aborted
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the commands are ended, too
    main()
