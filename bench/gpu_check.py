"""What `make gpu` does: everything that needs a GPU, in the order of its worth, in at most 6 minutes.

python bench/gpu_check.py [--only STEP...] [--out DIR]

Steps: here (which backends run, and on what), parity (tests of both kernels), benchmark (beside the device copy),
graph (a call in a CUDA graph, and that it allocates nothing), small (calls), sanitizer (compute-sanitizer), peers.

Uses the packages of the Python that runs it and no network. Before anything is timed, all that is timed is compiled,
in processes side by side on all cores; then each measures in its turn. A step that fails, hangs or is killed leaves
the results of the others. DIR gets summary.md, the results as JSON, the picture and the logs; without --out it is
build/gpu, and the results go to bench/results as well. Results of the same day on the same GPU that are in DIR already
stay where they are not measured again.

Exits with 1 if a step failed, a target is missed or a GPU backend is missing, with 2 where there is no GPU backend.
"""

import argparse
import os
import re
import resource
import shutil
import signal
import sys
import time
import tomllib
from collections.abc import Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

from gpu_steps import ROOT, Commands, Process, Steps

BUILD, RESULTS = ROOT / "build" / "gpu", ROOT / "bench" / "results"
PACKAGES = BUILD / "packages"
BACKENDS = ("cupy", "numba-cuda")
# Seconds of each step, in all less than 360. On an H100 with 16 cores are expected: 8, 45, 20, 20, 5, 10, 35, 0, 10, 3.
LIMITS = {
    "here": 30,
    "parity": 90,
    "compile": 40,
    "benchmark": 45,
    "graph": 16,
    "small": 24,
    "sanitizer": 50,
    "compile peers": 20,  # and the time of the sanitizer, beside which they compile
    "peers": 30,
    "report": 10,
}
STEPS = ("here", "parity", "benchmark", "graph", "small", "sanitizer", "peers")
# Of the GPU's memory that a process needs which only tests or compiles: a context of half a GB, and pools.
PROCESS_MIB = 2000
PORTS = 100  # from one compute-sanitizer to the next, which tries 10 ports or, in some versions, 64
PYTHON = [sys.executable]


def main() -> None:
    """All steps that are wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="STEP", help=f"of {', '.join(STEPS)}; `here` always runs")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: build/gpu and bench/results")
    args = parser.parse_args()
    wanted = args.only or STEPS
    if unknown := [step for step in wanted if step not in STEPS]:
        parser.error(f"unknown step {', '.join(unknown)}; there are {', '.join(STEPS)}")

    out = (args.out or BUILD).resolve()
    out.mkdir(parents=True, exist_ok=True)
    assemble()
    summary = Summary(out, None if args.out else RESULTS)
    with Steps(summary.out, environment(), LIMITS, summary.write) as summary.steps:
        run(summary.steps, wanted)
    print(f"\n{summary.path.read_text(encoding='utf-8')}\nall of this: {summary.path}")
    if not any(line.result == "ok" for line in summary.steps.lines if line.name in BACKENDS):
        print("no GPU backend can run here: for each the reason and the fix are above")
        sys.exit(2)
    sys.exit(summary.steps.failed)


def run(steps: Steps, wanted: Sequence[str]) -> None:
    """Each step in its turn."""
    query = "--query-gpu=name,driver_version,compute_cap,memory.total,memory.free"
    commands: Commands = {"nvidia-smi": [smi, query, "--format=csv"]} if (smi := shutil.which("nvidia-smi")) else {}
    commands |= {name: [*PYTHON, "bench/gpu_here.py", name] for name in BACKENDS}
    done = steps.side_by_side("here", commands, show="always")
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
    if results := sorted(steps.out.glob("*.json"), key=lambda path: path.stat().st_mtime):
        steps.side_by_side("report", {"report": [*PYTHON, "bench/gpu_report.py", str(results[-1])]}, show="never")


def at_once(told: str) -> int:
    """Processes for which there are cores and, by what nvidia-smi has told, room on the GPU; at most 16."""
    free = re.findall(r"(\d+) MiB$", told, re.MULTILINE)
    room = int(free[0]) // PROCESS_MIB if free else 4
    return max(1, min(16, os.cpu_count() or 1, room))


def tests(available: list[str], processes: int) -> Commands:
    """The tests that a GPU makes a difference to."""
    # Warnings of versions that nobody chose are shown and do not fail; a test that forbids warnings still does.
    pytest = [*PYTHON, "-m", "pytest", "-v", "-W", "default", "--maxfail=30", "--durations=5"]
    pytest += ["-p", "no:cacheprovider", "-p", "no:benchmark"]
    kernels = ["tests/test_parity.py", "tests/test_same_bits.py"]
    commands: Commands = {}
    for name in available:
        own = ["env", f"SIGMOID_L2_TEST_BACKENDS={name}", *pytest, "-m", "gpu"]
        if find_spec("xdist"):
            side_by_side = ["-n", str(max(1, processes // len(available))), "--dist", "worksteal"]
            commands[f"tests-{name}"] = [*own, *side_by_side, *kernels]
        else:
            commands |= {f"tests-{name}-{Path(file).stem}": [*own, file] for file in kernels}
    if "cupy" in available:
        commands["tests-arrays"] = [*pytest, "tests/test_cuda_arrays.py", "tests/test_streams.py"]
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
        "graph": {f"promises-{name}": [*benchmark, "promises", "--backend", name] for name in available},
        "small": {f"small-{name}": [*benchmark, "small", "--backend", name] for name in available},
    }
    measuring = {step: steps.start(own) for step, own in commands.items() if step in wanted}
    if measuring:
        steps.compiled("compile", [p for own in measuring.values() for p in own], LIMITS["compile"])
    for step, own in measuring.items():
        steps.in_turn(step, own)

    peers: list[Process] = []
    until = time.monotonic() + LIMITS["sanitizer"] + LIMITS["compile peers"]
    if "peers" in wanted:  # nothing is timed beside the sanitizer, so they can compile meanwhile
        command = [*PYTHON, "bench/gpu_peers.py", *out, "--backend", *available]
        peers = steps.start({f"peers-{k}": [*command, "--share", f"{k}/3"] for k in range(3)})
    if "sanitizer" in wanted:
        sanitize(steps, available, processes)
    if peers:
        steps.compiled("compile peers", peers, until - time.monotonic())
        steps.in_turn("peers", peers)


def sanitize(steps: Steps, available: list[str], processes: int) -> None:
    """Every class of sizes under two tools."""
    sanitizer = shutil.which("compute-sanitizer", path=f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin")
    if sanitizer is None:
        steps.note("sanitizer", "compute-sanitizer", "left out: not on the PATH; it comes with the CUDA toolkit")
        return
    options = ["--error-exitcode", "1", "--report-api-errors", "no"]  # CuPy asks what it knows may fail
    runs = [(tool, name) for tool in ("memcheck", "racecheck") for name in available]
    shares = max(1, processes // len(runs))
    commands: Commands = {}
    for tool, name in runs:
        for k in range(shares):
            port = ["--port", str(20_000 + PORTS * len(commands))]
            program = [*PYTHON, "bench/every_class.py", name, f"{k}/{shares}"]
            commands[f"{tool}-{name}-{k}"] = [sanitizer, "--tool", tool, *port, *options, *program]
    steps.side_by_side("sanitizer", commands)


class Summary:
    """What one would carry away to read: how each step went, what is here, the tables; results go to ``kept`` too."""

    def __init__(self, out: Path, kept: Path | None) -> None:
        self.out, self.path, self.kept = out, out / "summary.md", kept
        self.date = datetime.now().astimezone().isoformat(timespec="seconds")
        self.steps: Steps

    def write(self) -> None:
        """Anew after each command."""
        lines = [f"# gpu_check, {self.date}", "", "| step | command | result | seconds |", "| --- | --- | --- | ---: |"]
        lines += [f"| {line.step} | {line.name} | {line.result} | {line.seconds:.0f} |" for line in self.steps.lines]
        for line in self.steps.lines:
            text = self.log(line.name)
            if line.step == "here":
                lines += ["", f"## {line.name}", "", "```", text, "```"]
            if line.step == "report":
                lines += ["", text]
        self.path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        for results in self.out.glob("*.json") if self.kept else ():
            shutil.copy(results, self.kept)

    def log(self, name: str) -> str:
        """What a command has printed."""
        path = self.out / f"{name}.log"
        return path.read_text(encoding="utf-8", errors="replace").strip() if path.exists() else ""


def assemble() -> None:
    """The package as it is in this checkout, for PYTHONPATH: the environment is left alone, and pip is not needed."""
    shutil.rmtree(PACKAGES, ignore_errors=True)
    no_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src" / "sigmoid_l2", PACKAGES / "sigmoid_l2", ignore=no_caches)
    shutil.copytree(ROOT / "kernels", PACKAGES / "sigmoid_l2" / "kernels", ignore=no_caches)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    metadata = PACKAGES / f"sigmoid_l2-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: sigmoid-l2\nVersion: {version}\n", encoding="utf-8")


def environment() -> dict[str, str]:
    """For every command: this checkout's package first, output at once, where it hangs when aborted."""
    path = os.pathsep.join(filter(None, (str(PACKAGES), os.environ.get("PYTHONPATH"))))
    own = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    own["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # JAX would take most of the GPU's memory
    return {**os.environ, **own}


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # what hangs is aborted, and its core would be gigabytes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended, too
    main()
