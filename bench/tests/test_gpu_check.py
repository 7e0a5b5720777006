"""What `make gpu` does, without a GPU: its steps however they end, and its programs on stand-ins.

The steps run a Python that does what HOW tells, the first that fits of "WORDS OF THE COMMAND: how; ...".
"""

import importlib
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from gpu import driver

BENCH = Path(__file__).resolve().parents[1]
checkout, gpu_check, gpu_steps = map(importlib.import_module, ("checkout", "gpu_check", "gpu_steps"))

RESULTS = "2026-11-26-stand-in.json"
# Fractions of the copy, as benchmark would find them.
FRACTIONS = {("cupy", 32, "float32", 99): 0.6, ("numba-cuda", 16, "float64", 98): 0.7, ("cupy", 3, "float32", 97): 0.9}
MEASURED = {
    "rows": [
        {"part": "shapes", "contender": who, "m": n, "n": n, "dtype": dtype, "B": B, "fraction_of_copy": fraction}
        for (who, n, dtype, B), fraction in FRACTIONS.items()
    ]
}
PYTHON = f"""
import os, pathlib, signal, subprocess, sys, time
command = " ".join(sys.argv[1:])
rules = (rule.split(": ") for rule in os.environ.get("HOW", "").split("; ") if rule)
how = next((how for words, how in rules if words in command), "ok")

def hang():
    for number in (signal.SIGINT, signal.SIGABRT):
        signal.signal(number, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("child", child.pid, flush=True)
    time.sleep(600)

print(command, flush=True)
if how == "hang at once":
    hang()
if "--in-turn" in command:
    print({gpu_steps.COMPILED!r}, flush=True)
    assert sys.stdin.readline(), "nobody gave the turn"
if how == "hang":
    hang()
if how == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if "--out" in command:
    out = sys.argv[sys.argv.index("--out") + 1]
    pathlib.Path(out, {RESULTS!r}).write_text({json.dumps(MEASURED)!r})
sys.exit(3 if how == "fail" else 10 if how == "miss" else 0)
"""
# Programs that are found on the PATH.
NVIDIA_SMI = "echo 'name, driver, memory.free [MiB]'; echo 'NVIDIA Stand-in, 580.0, 81000 MiB'"
SANITIZER = 'while [ "$1" != no ]; do shift; done; shift; exec "$@"'

NCU = (
    'while [ "$1" != 1 ]; do shift; done; shift; while [ "$1" = --launch-count ] || [ "$1" = 1 ]; do shift; done; "$@"'
)


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Run gpu_check with options and HOW: its exit status, (step, name, result) of each command, and the summary."""
    python = tmp_path / "python.py"
    python.write_text(PYTHON, encoding="utf-8")
    for name, script in (("nvidia-smi", NVIDIA_SMI), ("compute-sanitizer", SANITIZER), ("ncu", NCU)):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(gpu_check, "PYTHON", [sys.executable, "-S", "-E", str(python)])
    monkeypatch.setattr(gpu_check, "BUILD", tmp_path / "build")
    monkeypatch.setattr(gpu_check, "PACKAGES", tmp_path / "packages")
    monkeypatch.setattr(gpu_check.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(gpu_check, "find_spec", lambda name: True)

    def run(*options, how="", out=("--out", str(tmp_path / "out"))):
        monkeypatch.setenv("HOW", how)
        monkeypatch.setattr(sys, "argv", ["gpu_check.py", *out, *options])
        with pytest.raises(SystemExit) as end:
            gpu_check.main()
        text = (tmp_path / "build" / "summary.md").read_text(encoding="utf-8")
        return end.value.code, re.findall(r"^\| (.+) \| (.+) \| (.+) \| \d+ \|$", text.split("\n## ")[0], re.M), text

    return run


ALL = {
    "here": "cupy numba-cuda nvidia-smi",
    "parity": "tests-arrays tests-cupy tests-numba-cuda",
    "compile": "11 processes",
    "benchmark": "shapes-0 shapes-1 shapes-2 shapes-3",
    "few": "few shared wanted",
    "graph": "promises-cupy promises-numba-cuda",
    "small": "small-cupy small-numba-cuda",
    "profile": "profile-cupy-32-32-float32-99 profile-numba-cuda-16-16-float64-98",
    "sanitizer": "memcheck-cupy-0 memcheck-cupy-1 memcheck-numba-cuda-0 memcheck-numba-cuda-1 probe "
    "racecheck-cupy-0 racecheck-cupy-1 racecheck-numba-cuda-0 racecheck-numba-cuda-1",
    "compile peers": "3 processes",
    "peers": "peers-0 peers-1 peers-2",
    "report": "targets",
}


def by_step(lines):
    """The names of the commands of each step. What runs side by side ends in any order."""
    return {step: " ".join(sorted(name for of, name, _ in lines if of == step)) for step, *_ in lines}


def test_all_steps(check):
    status, lines, text = check()
    assert status == 0
    assert by_step(lines) == ALL
    assert list(by_step(lines)) == list(ALL)
    assert {result for *_, result in lines} == {"ok"}
    assert "NVIDIA Stand-in, 580.0, 81000 MiB" in text
    assert text.splitlines()[-1].startswith("bench/report.py"), "what the report prints comes last"


@pytest.mark.parametrize(
    ("how", "status", "expected"),
    [
        (
            "gpu_here.py numba-cuda: fail",
            1,
            {"parity": "tests-arrays tests-cupy", "compile": "1 processes", "small": "small-cupy", "report": "targets"},
        ),
        ("gpu_here.py cupy: die", 1, {"parity": "tests-numba-cuda", "benchmark": "and all after it"}),
        ("gpu_here.py: fail", 2, {}),
    ],
)
def test_a_backend_that_cannot_run(check, capsys, how, status, expected):
    got, lines, _ = check("--only", "parity", "small", how=how)
    assert (got, by_step(lines)) == (status, {"here": ALL["here"]} | expected)
    printed = capsys.readouterr().out
    assert f"bench/{how.split(':')[0]}" in printed, "what it said is shown in full"
    assert ("no GPU backend can run here" in printed) == (status == 2)


@pytest.mark.parametrize("xdist", [True, False])
def test_the_tests(monkeypatch, xdist):
    monkeypatch.setattr(gpu_check, "find_spec", lambda name: xdist)
    commands = gpu_check.tests([*gpu_check.BACKENDS], 4)
    files = [""] if xdist else ["-test_parity", "-test_same_bits", "-test_whole_function"]
    assert {*commands} == {f"tests-{name}{file}" for name in gpu_check.BACKENDS for file in files} | {"tests-arrays"}
    with_jax_on_the_gpu = {name for name, words in commands.items() if "JAX_PLATFORMS=cpu" not in words}
    assert with_jax_on_the_gpu == {"tests-arrays"}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_carried_away(check, tmp_path):
    """What this run has written, and nothing of an earlier one."""
    build, out, other = (tmp_path / folder for folder in ("build", "out", "other"))
    build.mkdir()
    for name in ("earlier.log", "earlier.json", "earlier.png", "tests-cupy.log"):
        (build / name).write_text("earlier", encoding="utf-8")
        os.utime(build / name, (1, 1))
    status, lines, text = check("--only", "small", "parity")
    some = {step: ALL[step] for step in ("here", "parity", "small", "report")}
    assert (status, by_step(lines)) == (0, some | {"compile": "2 processes"})
    assert names(out) == [RESULTS, "logs.tar.gz", "summary.md"]
    with tarfile.open(out / "logs.tar.gz") as archive:
        assert archive.getnames() == sorted(path.name for path in build.glob("*.log"))
        assert "earlier.log" not in archive.getnames()
    assert (out / "summary.md").read_text(encoding="utf-8") == text
    check("--only", "parity", out=("--out", str(other)))
    assert names(other) == ["logs.tar.gz", "summary.md"]
    assert (build / RESULTS).exists()


def test_what_a_kill_and_no_out_leave(check, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check.Summary, "close", lambda self: None)
    monkeypatch.setattr(gpu_check, "RESULTS", tmp_path / "results")
    check("--only", "small")
    assert names(tmp_path / "out") == [RESULTS, "summary.md"]
    check("--only", "small", out=())
    assert names(tmp_path / "results") == [RESULTS]


def test_interrupted(check, tmp_path, monkeypatch, capsys):
    def interrupt(steps, wanted):
        steps.side_by_side("here", {"cupy": [*gpu_check.PYTHON, "bench/gpu_here.py"]})
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu_check, "run", interrupt)
    status, lines, _ = check()
    assert (status, lines) == (130, [("here", "cupy", "ok")])
    assert capsys.readouterr().err.count("\n") == 1
    assert names(tmp_path / "out") == ["logs.tar.gz", "summary.md"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--out", __file__), "error: --out: "),
        (("--only", "parity", "speed"), f"unknown step speed; there are {', '.join(gpu_check.STEPS)}"),
    ],
)
def test_wrong_options(check, capsys, options, told):
    with pytest.raises(FileNotFoundError):  # no summary
        check(out=options)
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("status", [0, 1])
def test_counters_that_the_profiler_must_not_read(check, tmp_path, status):
    """It says so once, whatever it exits with."""
    told = "ERR_NVGPUCTRPERM - The user does not have permission"
    program = tmp_path / "bin" / "ncu"
    program.write_text(f"#!/bin/sh\necho '==ERROR== {told}'; exit {status}\n", encoding="utf-8")
    _, lines, _ = check("--only", "benchmark", "profile")
    profiled = ("profile", ALL["profile"].split()[0], "FAILED with 1" if status else "ok")
    assert [line for line in lines if line[0] == "profile"] == [
        profiled,
        ("profile", "all others", f"left out: {told}"),
    ]


def test_nothing_to_profile(check):
    _, lines, _ = check("--only", "profile")
    assert lines[3:] == [("profile", "ncu", "left out: no case has been measured")]


def test_a_device_that_the_sanitizer_refuses(check, tmp_path, monkeypatch):
    program = tmp_path / "bin" / "compute-sanitizer"
    program.write_text("#!/bin/sh\necho '========= Error: Device not supported.'\nexit 1\n", encoding="utf-8")
    _, lines, _ = check("--only", "sanitizer")
    refused = ("sanitizer", "all others", "left out: Error: Device not supported.")
    assert lines[3:] == [("sanitizer", "probe", "FAILED with 1"), refused]


FAILURES = {
    "tests/host/test_cuda_arrays.py: die": {"tests-arrays": "FAILED: killed by SIGKILL"},
    "shapes --share 1/4: hang at once": {
        "11 processes": "FAILED: shapes-1 not in time, what is timed may be disturbed",
        "shapes-1": "FAILED: not done in time",
    },
    "promises --backend numba-cuda: hang": {"promises-numba-cuda": "FAILED: not done in time"},
    "small --backend cupy: fail": {"small-cupy": "FAILED with 3"},
    "gpu_here.py cupy 1/2: hang": {f"{t}check-cupy-1": "FAILED: not done in time" for t in ("mem", "race")},
    "report.py: miss": {"targets": "FAILED: a target is missed, see Targets"},
}


def test_what_fails_leaves_the_others(check, monkeypatch):
    monkeypatch.setattr(gpu_steps, "GRACE", 0.3)
    monkeypatch.setattr(gpu_check, "LIMITS", dict.fromkeys(gpu_check.LIMITS, 3.0))
    status, lines, text = check(how="; ".join(FAILURES))
    assert (status, by_step(lines)) == (1, ALL)
    expected = {name: result for failure in FAILURES.values() for name, result in failure.items()}
    assert {name: result for _, name, result in lines if result != "ok"} == expected
    assert "## small-cupy\n\n```\nbench/bench_gpu.py" in text, "the end of the log"
    assert "## small-numba-cuda" not in text
    assert text.splitlines()[-1].startswith("bench/report.py")


def lives(pid):
    stat = Path("/proc", pid, "stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_the_limit_is_kept_where_everything_hangs(check, tmp_path, monkeypatch):
    limits = dict.fromkeys(gpu_check.LIMITS, 1.2)
    monkeypatch.setattr(gpu_steps, "GRACE", 0.3)
    monkeypatch.setattr(gpu_check, "LIMITS", limits)
    began = time.monotonic()
    status, lines, _ = check(how="0/1000: hang; gpu_here: ok; : hang")
    assert time.monotonic() - began < 10 * sum(limits.values()), "600 s where a limit is not kept"
    assert status == 1
    assert {step: result for step, _, result in lines}["small"] == "FAILED: not done in time"
    children = re.findall(r"child (\d+)", "".join(log.read_text() for log in (tmp_path / "build").glob("*.log")))
    assert len(children) > 3
    assert not [pid for pid in children if lives(pid)], "what they had started is ended, too"


def test_many_that_hang_in_turn_keep_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_steps, "GRACE", 0.6)
    stubborn = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (2, 6)]; time.sleep(600)"
    with gpu_steps.Steps(tmp_path, {}, {"peers": 3.0}) as steps:
        processes = steps.start({f"peers-{k}": [sys.executable, "-S", "-c", stubborn] for k in range(30)})
        began = time.monotonic()
        steps.in_turn("peers", processes)
        assert time.monotonic() - began < 9, "one after the other they take 30 times 0.4 s; a busy machine is late"
    assert [line.result for line in steps.lines] == ["FAILED: not done in time"] * 30


def test_the_environment(tmp_path, monkeypatch):
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gpu_check, "TOOLKIT", tmp_path)
    assert "CUDA_HOME" not in gpu_check.environment()
    (tmp_path / "nvvm").mkdir()
    assert gpu_check.environment()["CUDA_HOME"] == str(tmp_path)
    monkeypatch.setenv("CUDA_PATH", "/elsewhere")
    assert "CUDA_HOME" not in gpu_check.environment()


def test_the_commit(tmp_path, monkeypatch):
    assert re.fullmatch(r"[0-9a-f]{40}(, with changes)?|unknown", checkout.commit.__wrapped__())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checkout.commit.__wrapped__() == "unknown"


def test_the_limits():
    assert sum(gpu_check.LIMITS.values()) < 420
    assert set(gpu_check.STEPS) == gpu_check.LIMITS.keys() - {"compile", "compile peers", "report"}


@pytest.mark.parametrize(
    ("told", "processes"),
    [("no nvidia-smi", 4), ("H100, 81559 MiB, 81000 MiB", 16), ("T4, 15360 MiB, 14900 MiB", 7), ("0 MiB", 1)],
)
def test_processes_at_once(monkeypatch, told, processes):
    monkeypatch.setattr(gpu_check.os, "cpu_count", lambda: 64)
    assert gpu_check.at_once(told) == processes


def test_the_assembled_package_is_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "PACKAGES", tmp_path / "packages")
    checkout.assemble(tmp_path / "packages")
    program = "import sigmoid_l2 as s; print(s.__file__, s.value([[[0.0]]], [[0.0]], backend='numpy'))"
    command, environment = [sys.executable, "-c", program], gpu_check.environment()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == [str(tmp_path / "packages" / "sigmoid_l2" / "__init__.py"), "[0.25]"], done.stderr
    assert (tmp_path / "packages" / "sigmoid_l2" / "kernels" / "gpu" / "common.cuh").exists()


# --- the programs themselves ----------------------------------------------------------------------------------------


def test_on_the_stand_in_for_cupy(check, tmp_path, monkeypatch):
    """Every line of the benchmark; all but the tests and the sanitizer, which need a GPU."""
    monkeypatch.setattr(gpu_check, "PYTHON", [sys.executable, str(BENCH / "tests" / "fake_bench.py")])
    monkeypatch.setattr(gpu_check.os, "cpu_count", lambda: 2)
    status, lines, text = check("--only", "benchmark", "few", "graph", "small", "peers")
    assert status == 1, "the stand-in misses the targets"
    assert [name for _, name, result in lines if result != "ok"] == ["targets"]
    (path,) = (tmp_path / "out").glob("*-nvidia-stand-in.json")
    results = json.loads(path.read_text(encoding="utf-8"))
    assert {row["contender"] for row in results["rows"] if "reason" in row} == {"nobody"}
    parts = {row["part"] for row in results["rows"]}
    assert parts == {"shapes", "few", "shared", "wanted", "small", "promises", "peers"}
    measured = {}
    for target in results["targets"]:
        measured.setdefault(target["unit"].removesuffix(", outputs given"), []).append(target["measured"])
    assert len(measured["of the device copy"]) == 2 * 2 * 2  # backends, dtypes, classes: tiny and block
    assert len(measured["x an empty kernel's launch, at most"]) == 2 * 2
    assert measured["bytes allocated"] == measured["waits"] == [0] * 8
    assert measured["graph is right"] == [1] * 8
    assert len(measured["x as fast as the fastest peer"]) == 2
    for words in (
        "gpu NVIDIA Stand-in, ",
        "| 3x3 float32, B = 138 | cupy | tiny |",
        "by zero: nobody not measured: 3x3 float32, B = 138",
        "cupy: 3x3 float32, B = 1 takes the host ",
    ):
        assert words in text


# A Python on a driver without a GPU, and without CuPy, which does not run on it.
ON_THE_DRIVER = f"""
import importlib, pathlib, runpy, sys
sys.path[:0] = [{str(BENCH.parent / "tests")!r}, {str(BENCH)!r}]
sys.modules["cupy"] = None
from gpu import driver
driver.load()
sys.argv = sys.argv[1:]
if sys.argv[0] == "-m":
    sys.argv = sys.argv[1:]
    runpy.run_module("pytest", run_name="__main__", alter_sys=True)
importlib.import_module(pathlib.Path(sys.argv[0]).stem).main()
"""


FILES = ("parity", "same_bits", "whole_function")


def test_on_the_driver_with_numba_cuda(check, tmp_path, monkeypatch):
    pytest.importorskip("numba_cuda", exc_type=ImportError)
    if not driver.compiler():
        pytest.skip("there is no C compiler for the driver")
    python = tmp_path / "on_the_driver.py"
    python.write_text(ON_THE_DRIVER, encoding="utf-8")
    monkeypatch.setattr(gpu_check, "PYTHON", [sys.executable, str(python)])
    monkeypatch.setattr(gpu_check, "find_spec", lambda name: None)
    monkeypatch.setenv(
        "PYTEST_ADDOPTS", "-k '(nan_touches or chunks and 100-batch0 or test_contract and 3-4-pairs) and float32'"
    )
    status, lines, text = check()
    assert status == 1, "CuPy is missing"
    assert {name: result for _, name, result in lines if name not in ("cupy", "and all after it")} == {
        name: "ok" for name in ("nvidia-smi", "numba-cuda", *(f"tests-numba-cuda-test_{k}" for k in FILES))
    }
    assert "cupy is not available: cupy is not installed: pip install" in text
    assert "numba-cuda: a call of one pair is right" in text
    assert "1 passed" in (tmp_path / "build" / "tests-numba-cuda-test_parity.log").read_text(encoding="utf-8")


def test_the_tests_are_where_the_commands_look(monkeypatch):
    for name, command in gpu_check.tests([*gpu_check.BACKENDS], 2).items():
        done = subprocess.run([*command, "--collect-only", "-q"], cwd=BENCH.parent, capture_output=True, text=True)
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
