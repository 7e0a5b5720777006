"""The GPU benchmarks without a GPU, on a stand-in for CuPy: what fails, what is judged, what is covered."""

import importlib
import io
import json
import sys
import time
from itertools import product
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from fake_bench import CUPY, NUMBA_CUDA, Calls, Stream, install, peer

from sigmoid_l2 import dispatch
from sigmoid_l2.kernels.gpu.plan import for_batch, make_plan, size_class
from sigmoid_l2.kernels.gpu.plan_types import Rows, Staged

NAMES = "bench_gpu compare gpu_calls gpu_here report results"
bench_gpu, compare, gpu_calls, gpu_here, report, results_file = map(importlib.import_module, NAMES.split())


@pytest.fixture
def gpu(monkeypatch):
    install(monkeypatch)
    yield
    results_file.gpu_machine.cache_clear()


def run(folder, monkeypatch, *arguments):
    """The program's exit status and results."""
    monkeypatch.setattr(sys, "argv", ["program", "--out", str(folder), *arguments])
    with pytest.raises(SystemExit) as end:
        bench_gpu.main()
    (path,) = folder.glob("*-nvidia-stand-in.json")
    return end.value.code, json.loads(path.read_text(encoding="utf-8"))


def measured(results, unit):
    return [target["measured"] for target in results["targets"] if unit in target["unit"]]


def test_the_tables_come_before_the_picture(gpu, tmp_path, monkeypatch, capsys):
    for there, out, err in (
        (None, "; no picture: matplotlib is not installed\n", ""),
        (1, ".json\n", "no picture: bug\n"),
    ):
        monkeypatch.setattr(report, "find_spec", lambda name, there=there: there)
        monkeypatch.setitem(sys.modules, "pictures", SimpleNamespace(draw=Mock(side_effect=ValueError("bug"))))
        run(tmp_path, monkeypatch, "shapes")
        told = capsys.readouterr()
        assert out in told.out
        assert "targets: " in told.out
        assert told.err.endswith(err)


def test_the_file_tells_of_the_newest_run(gpu, tmp_path):
    """What is measured again takes the place of what was there."""
    path = tmp_path / "results.json"
    results_file.write({"date": "old", "machine": {}, "rows": [{"part": "old"}]}, path)
    for value in (1, 2):
        results_file.add([{"part": "new", "value": value}], path)
    results = json.loads(path.read_text(encoding="utf-8"))
    assert results["rows"] == [{"part": "old"}, {"part": "new", "value": 2}]
    assert results["date"] != "old"
    assert results["machine"]["commit"]


def test_a_peer_that_hangs_costs_only_its_row(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_gpu, "COMPILE_S", 0.3)
    sleeper = peer("sleeper", lambda W, x, out: time.sleep(60))
    monkeypatch.setattr(bench_gpu, "PEERS", (*bench_gpu.PEERS[:1], sleeper))
    _, results = run(tmp_path, monkeypatch, "peers", "--share", "0/3")
    assert {row["contender"]: row.get("reason") for row in results["rows"]} == {
        **dict.fromkeys(("cupy", "numba-cuda", "CuPy matmul", "device copy")),
        "sleeper": "TimeoutError: not compiled within 0.3 s",
    }


def test_a_turn_that_nobody_gives(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(SystemExit, match="nobody is there"):
        bench_gpu.wait_for_turn()
    assert capsys.readouterr().out == f"{bench_gpu.COMPILED}\n"


def test_one_small_call_that_fails_leaves_the_others(gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_calls, "graph_launch", lambda work, backend: 1 / 0)
    _, results = run(tmp_path, monkeypatch, "small")
    assert {row["what"] for row in results["rows"] if "reason" in row} == {"graph"}
    assert {row["what"] for row in results["rows"] if "median" in row} == {"call", "empty kernel"}
    assert (
        "ZeroDivisionError: division by zero: cupy, graph not measured: 3x3 float32, B = 1" in capsys.readouterr().out
    )


def test_what_is_wrong_is_not_timed(gpu, tmp_path, monkeypatch):
    Calls.wrong = 1
    status, results = run(tmp_path, monkeypatch)
    assert status == 1
    assert {row["contender"] for row in results["rows"] if "reason" in row} == {"cupy"}
    timed = [r.get("what", "call") for r in results["rows"] if r["contender"] == "cupy" and "median" in r]
    assert "call" not in timed
    missed = {t["case"].split(":")[0] for t in results["targets"] if t["result"] == "NOT MEASURED"}
    assert missed == {"cupy"}


def test_an_allocation_is_seen(gpu, tmp_path, monkeypatch):
    Calls.allocates = 100
    status, results = run(tmp_path, monkeypatch, "promises")
    assert status == 1
    assert measured(results, "bytes allocated") == [1000] * 8


def test_compare_times_a_gpu_by_its_own_clock(gpu):
    job = compare.Job(compare.Case("gpu", "float32", 3, 3, 50), "cupy", True, 0)
    assert compare.prepare(job) > 0
    assert compare.timed() > 0
    assert isinstance(compare.turn, compare.DeviceTurn)


def test_the_stand_in_has_only_what_cupy_and_numba_have():
    """So that a name which the benchmarks use and the stand-in has is a name of theirs."""

    def names(ours, theirs):
        for name, value in vars(ours).items():
            if not name.startswith("_") and (ours, name) != (Stream, "ptr"):  # set by its __init__
                assert hasattr(theirs, name), f"{theirs} has no {name}"
                if isinstance(value, SimpleNamespace | type):
                    names(value, getattr(theirs, name))

    cupy = pytest.importorskip("cupy", exc_type=ImportError)
    names(CUPY, cupy)
    assert hasattr(cupy.cuda.graph.Graph, "launch")
    pytest.importorskip("numba_cuda", exc_type=ImportError)
    from numba import cuda
    from numba.cuda.cudadrv.driver import Context, NumbaCUDAMemoryManager

    assert set(vars(NUMBA_CUDA)) <= set(dir(cuda))
    assert "memory_manager" in Context.__init__.__code__.co_names
    assert hasattr(NumbaCUDAMemoryManager, "memalloc")


def test_the_empty_kernel_compiles():
    pytest.importorskip("cupy", exc_type=ImportError)
    from gpu import code

    assert code.cupy_used(gpu_calls.empty_cupy_kernel(), 90).shared == 0


def test_without_a_gpu_it_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(dispatch.Backend, "reasons", lambda self, dtype=None: (f"no {self.name}",))
    with pytest.raises(SystemExit) as end:
        bench_gpu.require_gpu()
    assert end.value.code == 2
    assert capsys.readouterr().out == "no GPU benchmark here: cupy: no cupy; numba-cuda: no numba-cuda\n"


def ways(sizes):
    """What distinguishes the plans of these m, n and B. Slices of one kind of rows are enough."""
    for m, n, B in sizes:
        for p in (for_batch(make_plan(m, n, itemsize), B) for itemsize in (4, 8)):
            if isinstance(p, Staged):
                yield "staged", p.lanes > 1, p.lanes > 32, p.slices > 1
            elif isinstance(p, Rows):
                yield from (("rows", p.row_threads, p.teams > 1), ("slices", p.slices > 1, p.in_turn))
            else:
                yield type(p).__name__


def test_the_sanitizer_meets_every_way():
    grid = (1, 2, 3, 5, 8, 10, 16, 20, 32, 41, 64, 100, 256, 700, 784, 2000, 5000, 8192, 20000)
    assert set(ways(gpu_here.CLASSES)) == set(ways(product(grid, grid, (1, 1000))))


@pytest.mark.parametrize("size", [10**6, 5 * 10**8])
def test_the_shapes_have_every_class_and_the_size(size):
    for dtype, itemsize in (("float32", 4), ("float64", 8)):
        classes = {size_class(make_plan(m, n, itemsize)) for m, n in bench_gpu.SHAPES}
        assert classes == {"tiny", "group", "block", "split", "long", "columns"}
        for m, n in bench_gpu.SHAPES:
            B = bench_gpu.Case.sized("gpu", dtype, m, n, size).B
            assert B == 1 or size * 0.5 < B * m * n * itemsize <= size
