"""The copies that are the limit: they copy every byte, the streamed one streams, and the faster one is the limit."""

import importlib
import platform
import re
import subprocess
import sys

import numpy as np
import pytest

checkout, copies, report_cpu, results, throughput, workload = map(
    importlib.import_module, ("checkout", "copies", "report_cpu", "results", "throughput", "workload")
)
BOTH = {"np.copyto", "streamed copy"}


@pytest.mark.parametrize("pairs", [1, 81, 82, 163, 164, 245, 246, 5000])  # 100 bytes each: around whole pages
def test_each_way_copies_every_byte(pairs):
    copy = copies.Copy(workload.Case("cpu", "float32", 3, 3, pairs))
    assert copy.size == 50 * pairs
    copy.source[:] = np.random.default_rng(pairs).integers(0, 256, copy.size, np.uint8)
    ways = copy.ways(3, 1, 2, 1)
    assert {(key.contender, key.threads) for key in ways} == {(name, k) for name in BOTH for k in (1, 2, 3)}
    for key, run in ways.items():
        to = copy.to if key.contender == "streamed copy" else copy.to_numpy
        to[:] = ~copy.source
        run()
        np.testing.assert_array_equal(to, copy.source, err_msg=str(key))


def test_the_streamed_copy_goes_past_the_caches():
    """LLVM drops the mark of a streaming store without a word where it folds or splits the store."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("the instructions of x86")
    (assembly,) = copies.stream().inspect_asm().values()
    loop = re.findall(r"\b(v?mov\w+)\s+[^,]*[xyz]mm\d+, [^,]*\(", assembly)
    assert {name.removeprefix("v") for name in loop} >= {"movntps"}
    assert loop.count("vmovntps") + loop.count("movntps") >= copies.VECTORS


SPREAD = {"p20": 1.0, "p80": 1.0, "gb_per_s": 1.0}


def rows(**seconds):
    """Rows of one case: ours on 2 threads takes a second, and copies as many as are given."""
    case = {"part": "shapes", "dtype": "float32", "m": 3, "n": 3, "B": 7, "bytes": 700}
    ours = {"contender": "sigmoid-l2", "outputs": "given", "threads": 2, "median": 1.0, **SPREAD, **case}
    kinds = {
        "numpy": ("np.copyto", "given", 2),
        "streamed": ("streamed copy", "given", 2),
        "alone": ("np.copyto", "given", 1),
        "more_threads": ("streamed copy", "given", 3),
        "fresh": ("np.copyto", "fresh", 1),
    }
    keys = ("contender", "outputs", "threads")
    return [ours] + [dict(zip(keys, kinds[kind], strict=True), median=s, **case) for kind, s in seconds.items()]


@pytest.mark.parametrize(
    ("seconds", "best", "part"),
    [
        ({"numpy": 0.5, "streamed": 0.4}, "streamed copy, 2 threads", 0.4),
        ({"numpy": 0.3, "streamed": 0.4}, "np.copyto, 2 threads", 0.3),
        ({"numpy": 0.3, "streamed": 0.4, "alone": 0.2}, "np.copyto, 1 thread", 0.2),
        ({"numpy": 0.5, "streamed": 0.4, "more_threads": 0.1, "fresh": 0.1}, "streamed copy, 2 threads", 0.4),
        ({"numpy": 0.5}, "np.copyto, 2 threads", 0.5),  # files of before there was a streamed copy
    ],
)
def test_the_limit_is_the_fastest_copy_on_no_more_threads(seconds, best, part):
    measured = rows(**seconds)
    assert results.copy_name(measured, measured[0]) == best
    assert results.fraction(measured, measured[0]) == part
    if "streamed" in seconds:
        of_numpy = min(seconds["numpy"], seconds.get("alone", 1))
        assert report_cpu.beside_copy(measured).endswith(f"| {part:.2f} | {of_numpy:.2f} |")


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_make_run_says_which_copy_is_the_limit(backend, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["throughput.py", "--backend", backend, "--batch", "60000"])
    monkeypatch.setenv("SIGMOID_L2_NUM_THREADS", "2")
    throughput.main()
    told = capsys.readouterr().out
    assert re.search(r"60,000 random 3x3 float32 .*\n.* of the speed of the best copy of the same 6 MB\n", told)
    assert re.search(r"\n\((np.copyto|streamed copy), (1 thread|2 threads): \d+\.\d GB/s\)\n$", told)


def test_the_table_of_backends_says_which_copy_is_the_limit(tmp_path, monkeypatch):
    """bench_backends in a pytest of its own, one case for each CPU backend, and its report."""
    json = tmp_path / "bench.json"
    test = "bench/bench_backends.py::test_value_and_grad"
    tests = [f"{test}[{backend}-float32-3x3-1,000]" for backend in ("numba", "numpy")]
    commands = (
        ("-m", "pytest", "-q", "-p", "no:cacheprovider", f"--benchmark-json={json}", *tests),
        ("bench/report.py", str(json)),
    )
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # in its workers pytest-benchmark measures nothing
    options = {"cwd": checkout.ROOT, "capture_output": True, "text": True}
    for command in commands:
        done = subprocess.run([sys.executable, *command], check=False, **options)
        assert done.returncode == 0, done.stdout + done.stderr
    lines = re.findall(r"^\| 3x3 float32, B = 1,000 \| (\w+) \| (.*?), 1 thread", done.stdout, re.MULTILINE)
    assert [backend for backend, _ in lines] == ["numba", "numpy"]
    assert {copy for _, copy in lines} <= BOTH
