"""What `make gpu` does: everything that needs a GPU, each step with a limit of its own, in less than 8 minutes.

python bench/gpu_check.py

Uses the packages of the Python that runs it and no network. A step that fails does not keep the next from running; a
tool that is not there costs one line. All output is in build/gpu/; what failed is shown. Exits with 1 if a step failed
or a GPU backend is missing, with 2 where there is no GPU backend at all.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "gpu"
PACKAGES = BUILD / "packages"
BACKENDS = ("cupy", "numba-cuda")
TESTS = ("parity", "same_bits", "cuda_arrays", "staging", "streams")
SECONDS = 465  # of all steps
SHOWN = 40  # lines of a failure

Command = list[str]


def assemble() -> None:
    """The package as it is in this checkout, for PYTHONPATH: the environment is left alone, and pip is not needed."""
    shutil.rmtree(BUILD, ignore_errors=True)
    no_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src" / "sigmoid_l2", PACKAGES / "sigmoid_l2", ignore=no_caches)
    shutil.copytree(ROOT / "kernels", PACKAGES / "sigmoid_l2" / "kernels", ignore=no_caches)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    metadata = PACKAGES / f"sigmoid_l2-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: sigmoid-l2\nVersion: {version}\n", encoding="utf-8")


def environment() -> dict[str, str]:
    """For every command: this checkout's package comes first."""
    path = os.pathsep.join(filter(None, (str(PACKAGES), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


class Steps:
    """Runs steps and remembers how they went."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.end = time.monotonic() + seconds
        self.lines: list[str] = []
        self.failed = False

    def note(self, name: str, result: str, failed: bool = False) -> None:
        """One line, now and in the summary."""
        self.lines.append(f"{name}: {result}")
        self.failed |= failed
        print(f"== {self.lines[-1]}", flush=True)

    def run(self, name: str, commands: dict[str, Command], limit: float, show: bool = False) -> None:
        """Run ``commands``, by the names of their logs, side by side; what runs after ``limit`` seconds is ended."""
        began = time.monotonic()
        limit = min(limit, self.end - began)
        if self.end - began < 5:
            self.note(name, "LEFT OUT: no time left", failed=True)
            return
        print(f"== {name}: at most {limit:.0f} s", flush=True)
        running = []
        for log, command in commands.items():
            path = BUILD / f"{log}.log"
            with path.open("w", encoding="utf-8") as file:
                streams = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
                process = subprocess.Popen(command, cwd=ROOT, env=environment(), start_new_session=True, **streams)
            running.append((log, path, process))
        for log, path, process in running:
            try:
                status = process.wait(max(0.1, began + limit - time.monotonic()))
                result = "ok" if status == 0 else f"FAILED with {status}"
            except subprocess.TimeoutExpired:
                result = f"FAILED: not done after {limit:.0f} s"
            finally:  # an interruption too ends what it had started
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            if show or result != "ok":
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
                print("\n".join(lines if show else lines[-SHOWN:]), flush=True)
            self.note(log, f"{result}, {time.monotonic() - began:.0f} s, {path.name}", result != "ok")


def measure_and_sanitize(steps: Steps, available: list[str]) -> None:
    """The steps that use CuPy's arrays, whatever the backend."""
    python = sys.executable
    steps.run("benchmark", {"benchmark": [python, "bench/bench_gpu.py"]}, 180, show=True)
    sanitizer = shutil.which("compute-sanitizer", path=f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin")
    if sanitizer is None:
        steps.note("compute-sanitizer", "left out: it is not on the PATH; it comes with the CUDA toolkit")
    else:
        options = ["--error-exitcode", "1", "--report-api-errors", "no"]  # CuPy asks what it knows may fail
        commands = {
            f"{tool}-{name}": [sanitizer, "--tool", tool, *options, python, "bench/every_class.py", name]
            for name in available
            for tool in ("memcheck", "racecheck")
        }
        steps.run("compute-sanitizer", commands, 100)
    steps.run("peers", {"peers": [python, "bench/gpu_peers.py"]}, 120, show=True)


def main() -> None:
    """All steps, in the order of their worth."""
    assemble()
    steps = Steps()
    python = sys.executable
    steps.run("what is here", {"info": [python, "-m", "sigmoid_l2", "info"]}, 60, show=True)
    ask = "import sigmoid_l2 as s; print(*(b.name for b in s.backends() if b.available and b.device == 'cuda'))"
    told = subprocess.run([python, "-c", ask], env=environment(), capture_output=True, text=True, check=False)
    available = [name for name in BACKENDS if name in told.stdout.split()]
    if not available:
        print("no GPU backend can run here: see above for the reasons")
        sys.exit(2)

    tests = [str(path) for name in TESTS if (path := ROOT / "tests" / f"test_{name}.py").exists()]
    # Warnings of versions that nobody chose are shown and do not fail; a test that forbids warnings still does.
    pytest = [python, "-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider", "--maxfail=30", "--durations=5"]
    env = ["env", "XLA_PYTHON_CLIENT_PREALLOCATE=false"]  # JAX would take most of the GPU's memory
    commands = {f"tests-{b}": [*env, f"SIGMOID_L2_TEST_BACKENDS={b}", *pytest, *tests] for b in available}
    steps.run("parity on the device", commands, 170)

    if "cupy" in available:
        measure_and_sanitize(steps, available)
    else:
        steps.note("benchmark, compute-sanitizer, peers", "left out: they need CuPy's arrays")

    print("\nSummary")
    for name in (name for name in BACKENDS if name not in available):
        steps.note(f"BACKEND {name}", "MISSING: not tested, not measured; `info` has the reasons", failed=True)
    print("\n".join(steps.lines))
    sys.exit(steps.failed)


if __name__ == "__main__":
    main()
