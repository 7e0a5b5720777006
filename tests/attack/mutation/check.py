"""Plant each mutant of mutants.py in a copy of the project, one at a time, and show that the tests catch it.

    python tests/attack/mutation/check.py [--only NAME ...] [--jobs 2] [--json FILE]

A mutant is caught when the tests named beside it fail; the same tests pass on the unchanged copy, which is run first.
Ends with an error where one survives. Nothing is written but in a temporary directory.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutants import MUTANTS, Mutant

PROJECT = Path(__file__).resolve().parents[3]
TIMEOUT = 900  # seconds for the tests of one mutant; one that hangs is caught by that


def plant(mutant: Mutant | None, directory: Path) -> None:
    """Copy what the tests need into ``directory``, and plant the mutant in the copy."""
    for name in ("tests", "bench", "pyproject.toml", "README.md", "docs", "Makefile"):
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, directory / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
        elif source.exists():
            shutil.copy(source, directory / name)
    # As installed, so that PYTHONPATH finds it before an editable installation does.
    package = directory / "site" / "sigmoid_l2"
    shutil.copytree(PROJECT / "src" / "sigmoid_l2", package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(PROJECT / "kernels", package / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    if mutant is not None:
        root = package / "kernels" if mutant.file.startswith("kernels/") else package
        file = root / mutant.file.partition("/")[2]
        text = file.read_text(encoding="utf-8")
        if text.count(mutant.old) != 1:
            raise ValueError(f"{mutant.name}: {mutant.file} has {text.count(mutant.old)} times: {mutant.old}")
        file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")


def run_tests(mutant: Mutant | None, tests: tuple[str, ...]) -> tuple[int, str]:
    """pytest's exit status (124 after TIMEOUT) and the end of its output."""
    with tempfile.TemporaryDirectory(prefix="sigmoid_l2_mutant_") as name:
        directory = Path(name)
        plant(mutant, directory)
        environment = {**os.environ, "PYTHONPATH": str(directory / "site"), "NUMBA_CACHE_DIR": str(directory / "cache")}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=line", *tests]
        try:
            done = subprocess.run(
                command, cwd=directory, env=environment, capture_output=True, text=True, timeout=TIMEOUT
            )
        except subprocess.TimeoutExpired:
            return 124, "timed out"
        return done.returncode, done.stdout[-2000:] + done.stderr[-2000:]


def check(mutant: Mutant) -> dict[str, object]:
    """The outcome for one mutant."""
    start = time.monotonic()
    status, output = run_tests(mutant, mutant.tests)
    crashed = status in (-signal.SIGABRT, -signal.SIGSEGV)  # a mutant may write where it must not
    if status not in (0, 1, 2, 124) and not crashed:  # 1: tests failed, 2: a file of tests could not be imported
        raise RuntimeError(f"{mutant.name}: pytest ended with {status}\n{output}")
    caught = next((line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))), "")
    return {
        "name": mutant.name,
        "file": mutant.file,
        "caught": status != 0,
        "by": caught.split(" - ")[0] or ("no end" if status == 124 else "a crash" if crashed else ""),
        "seconds": round(time.monotonic() - start),
    }


def main() -> int:
    """Run the command; 0 where every mutant was caught."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="the mutants whose name has one of these in it")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="mutants at a time")
    parser.add_argument("--json", type=Path, help="write the outcome to this file")
    arguments = parser.parse_args()
    mutants = [m for m in MUTANTS if any(part in m.name for part in arguments.only)]

    tests = tuple(sorted({test for m in mutants for test in m.tests}))
    status, output = run_tests(None, tests)
    if status != 0:
        print(output, f"The tests fail without any mutant: {' '.join(tests)}", sep="\n", file=sys.stderr)
        return 2
    outcomes = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for k, outcome in enumerate(pool.map(check, mutants), 1):
            outcomes.append(outcome)
            state = f"caught by {outcome['by']}" if outcome["caught"] else "SURVIVED"
            print(f"[{k}/{len(mutants)}] {outcome['name']}: {state} ({outcome['seconds']} s)", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(outcomes, indent=1) + "\n", encoding="utf-8")
    survivors = [outcome["name"] for outcome in outcomes if not outcome["caught"]]
    print(
        f"{len(outcomes) - len(survivors)} of {len(outcomes)} mutants caught" + "".join(f"\n  {s}" for s in survivors)
    )
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
