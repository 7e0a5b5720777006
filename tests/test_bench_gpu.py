"""The GPU benchmarks without a GPU: every line once on a stand-in for CuPy, the judgement, and what `make gpu` runs."""

import ctypes
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import sigmoid_l2 as sl2
from sigmoid_l2.kernels.cuda_launch import Rows, Staged, plan, size_class

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))
NAMES = "bench_gpu chips every_class gpu_calls gpu_check gpu_measure gpu_peers gpu_report gpu_results roofline"
bench_gpu, chips, every_class, gpu_calls, gpu_check, gpu_measure, gpu_peers, gpu_report, gpu_results, roofline = map(
    importlib.import_module, NAMES.split()
)
value_and_grad = sl2.value_and_grad


# --- a stand-in for CuPy, whose device is done at once --------------------------------------------------------------


class Array(np.ndarray):
    """A NumPy array with what the benchmarks use of CuPy's."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)

    def get(self):
        return np.array(self)


class Event:
    done = False

    def record(self):
        self.time = time.perf_counter()

    def synchronize(self):
        pass


class Stream:
    ptr = 0

    def __init__(self, non_blocking):
        assert non_blocking

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def synchronize(self):
        pass

    def begin_capture(self, mode):
        assert mode == "global"

    def end_capture(self):
        return SimpleNamespace(launch=lambda stream: Calls.last())


class MemoryHook:
    """Told of one allocation if ``Calls`` makes any."""

    def __enter__(self):
        Calls.hook = self

    def __exit__(self, *_):
        Calls.hook = None


class Calls:
    """The library's call in its place; ``allocates`` bytes each time."""

    last = hook = None
    allocates = 0
    wrong = 0.0

    @classmethod
    def value_and_grad(cls, W, x, *, out=None, backend, stream=None):
        if not isinstance(W, Array):
            return value_and_grad(W, x, out=out, backend=backend)
        plain = [a.view(np.ndarray) for a in (W, x, *out)]
        cls.last = lambda: value_and_grad(*plain[:2], out=tuple(plain[2:]), backend="numpy")
        cls.last()
        if backend == "cupy":
            out[1][...] += cls.wrong
        if cls.allocates and cls.hook:
            cls.hook.malloc_preprocess(device_id=0, size=cls.allocates, mem_size=512)
        return out


def device_copy(to, source, size, kind, stream):
    assert (kind, stream) == (3, 0)
    ctypes.memmove(to, source, size)


PROPERTIES = {"name": b"NVIDIA Stand-in", "major": 9, "minor": 0, "multiProcessorCount": 1, "l2CacheSize": 100}
RUNTIME = SimpleNamespace(
    memcpyDeviceToDevice=3,
    memcpyAsync=device_copy,
    memGetInfo=lambda: (10**9, 10**9),
    getDeviceProperties=lambda number: PROPERTIES | {"totalGlobalMem": 10**9},
    driverGetVersion=lambda: 13000,
    runtimeGetVersion=lambda: 13000,
    streamCaptureModeGlobal="global",
)
CUPY = SimpleNamespace(
    asarray=lambda a: np.array(a).view(Array),
    empty=lambda shape, dtype: np.empty(shape, dtype).view(Array),
    get_default_memory_pool=lambda: SimpleNamespace(free_all_blocks=lambda: None),
    ElementwiseKernel=lambda *_, no_return: lambda *arrays, size, block_size: None,
    **{name: getattr(np, name) for name in ("exp", "matmul", "multiply", "sum")},
    cuda=SimpleNamespace(
        Device=lambda: SimpleNamespace(id=0, synchronize=lambda: None),
        Event=Event,
        MemoryHook=MemoryHook,
        Stream=Stream,
        get_current_stream=lambda: SimpleNamespace(ptr=0),
        get_elapsed_time=lambda start, stop: (stop.time - start.time) * 1e3,
        runtime=RUNTIME,
    ),
)
NUMBA_CUDA = SimpleNamespace(
    jit=lambda function: {(1, 128, 0): function},
    as_cuda_array=lambda a, sync: a,
    external_stream=None,
    current_context=lambda: SimpleNamespace(memory_manager=SimpleNamespace(memalloc=lambda size: None)),
)


@pytest.fixture
def gpu(monkeypatch):
    """The stand-in, both backends available, and cases that take milliseconds."""
    infos = [SimpleNamespace(name=name, available=True, reasons=()) for name in gpu_measure.BACKENDS]
    monkeypatch.setattr(sl2, "backends", lambda: infos)
    monkeypatch.setattr(sl2, "value_and_grad", Calls.value_and_grad)
    monkeypatch.setitem(sys.modules, "cupy", CUPY)
    monkeypatch.setattr("numba.cuda", NUMBA_CUDA, raising=False)
    for name in ("allocates", "wrong"):
        monkeypatch.setattr(Calls, name, 0)
    monkeypatch.setattr(gpu_measure, "LEAST_BYTES_OF_W", 5000)
    monkeypatch.setattr(gpu_peers, "BYTES_OF_W", 5000)
    monkeypatch.setattr(gpu_peers, "PEERS", (*gpu_peers.PEERS[:1], ("nobody", lambda W, x, out: 1 / 0)))
    monkeypatch.setattr(bench_gpu, "SHAPES", ((3, 3), (40, 30)))
    monkeypatch.setattr(bench_gpu, "ROUNDS", 3)
    for name in ("SMALL_ROUNDS", "SMALL_CALLS", "AHEAD"):
        monkeypatch.setattr(gpu_calls, name, 3)
    gpu_results.machine.cache_clear()
    yield
    gpu_results.machine.cache_clear()


def run(program, path, monkeypatch):
    """The program's exit status and results."""
    monkeypatch.setattr(sys, "argv", ["program", "-o", str(path)])
    with pytest.raises(SystemExit) as end:
        program.main()
    return end.value.code, json.loads(path.read_text(encoding="utf-8"))


def measured(results, unit):
    return [target["measured"] for target in results["targets"] if unit in target["unit"]]


def test_every_line_of_the_benchmark(gpu, tmp_path, monkeypatch, capsys):
    path = tmp_path / "gpu.json"
    status, results = run(bench_gpu, path, monkeypatch)
    assert not [row for row in results["rows"] if "reason" in row]
    assert status == (not all(target["met"] for target in results["targets"]))
    assert len(measured(results, "of the device copy")) == 2 * 2 * 2  # backends, dtypes, classes: tiny and block
    assert len(measured(results, "x an empty kernel's launch")) == 2 * 2
    assert measured(results, "bytes allocated") == measured(results, "waits") == [0] * 4
    assert measured(results, "graph is right") == [1] * 4
    status, results = run(gpu_peers, path, monkeypatch)
    assert len(measured(results, "fastest peer")) == 2
    assert all(measured(results, "fastest peer"))
    assert {row["part"] for row in results["rows"]} == {"shapes", "small", "promises", "peers"}
    printed = capsys.readouterr().out
    for line in ("| 3x3 float32, B = 138 | tiny |", "nobody, 3x3 float32, B = 138: ZeroDivisionError", "Stand-in"):
        assert line in printed


def test_what_is_wrong_is_not_timed(gpu, tmp_path, monkeypatch):
    Calls.wrong = 1e-3
    status, results = run(bench_gpu, tmp_path / "gpu.json", monkeypatch)
    assert status == 1
    assert {row["contender"] for row in results["rows"] if "reason" in row} == {"cupy"}
    assert not [r for r in results["rows"] if r["contender"] == "cupy" and "median" in r]
    missed = {t["case"].split(":")[0] for t in results["targets"] if t["result"] == "NOT MEASURED"}
    assert missed == {"cupy"}


def test_an_allocation_is_seen(gpu, tmp_path, monkeypatch):
    Calls.allocates = 100
    status, results = run(bench_gpu, tmp_path / "gpu.json", monkeypatch)
    assert status == 1
    assert measured(results, "bytes allocated") == [1000] * 4


def test_numbas_allocations_are_seen(gpu, monkeypatch):
    manager = SimpleNamespace(memalloc=lambda size: f"{size} bytes")
    monkeypatch.setattr(NUMBA_CUDA, "current_context", lambda: SimpleNamespace(memory_manager=manager))
    asked = [0]
    with gpu_calls.numbas_allocations("numba-cuda", asked):
        assert manager.memalloc(40) == "40 bytes"
    assert manager.memalloc(2) == "2 bytes"
    assert asked == [40]


def test_the_stand_in_has_only_what_cupy_and_numba_have():
    """So that a name which the benchmarks use and the stand-in has is a name of theirs."""
    cupy = pytest.importorskip("cupy", exc_type=ImportError)
    for ours, theirs in (
        (CUPY, cupy),
        (CUPY.cuda, cupy.cuda),
        (RUNTIME, cupy.cuda.runtime),
        (Event(), cupy.cuda.Event),
        (Stream(non_blocking=True), cupy.cuda.Stream),
        (MemoryHook(), cupy.cuda.MemoryHook),
        (CUPY.cuda.Device(), cupy.cuda.Device),
        (CUPY.get_default_memory_pool(), cupy.cuda.MemoryPool),
    ):
        names = {name for name in (*vars(ours), *vars(type(ours))) if not name.startswith("_")}
        assert names <= {*dir(theirs), "time"} | ({"ptr"} if theirs is cupy.cuda.Stream else set())
    assert hasattr(cupy.cuda.graph.Graph, "launch")
    assert hasattr(cupy.cuda.MemoryHook, "malloc_preprocess")
    assert hasattr(cupy.ndarray, "get")
    assert hasattr(cupy.cuda.MemoryPointer, "ptr")


def test_numba_has_what_the_stand_in_has():
    pytest.importorskip("numba_cuda", exc_type=ImportError)
    from numba import cuda
    from numba.cuda.cudadrv.driver import Context, NumbaCUDAMemoryManager

    assert set(vars(NUMBA_CUDA)) <= set(dir(cuda))
    assert "memory_manager" in Context.__init__.__code__.co_names
    assert hasattr(NumbaCUDAMemoryManager, "memalloc")


def test_the_empty_kernel_compiles():
    pytest.importorskip("cupy", exc_type=ImportError)
    from cupy_compile import compile_cupy

    assert compile_cupy(gpu_calls.empty_cupy_kernel(), "float32", "90").used.shared == 0


def test_without_a_gpu_it_says_so_in_one_line(monkeypatch, capsys):
    infos = [SimpleNamespace(name=n, available=False, reasons=(f"no {n}",)) for n in gpu_measure.BACKENDS]
    monkeypatch.setattr(sl2, "backends", lambda: infos)
    with pytest.raises(SystemExit) as end:
        gpu_measure.require_gpu()
    assert end.value.code == 2
    assert capsys.readouterr().out == "no GPU benchmark here: cupy: no cupy; numba-cuda: no numba-cuda\n"


# --- what `make gpu` runs -------------------------------------------------------------------------------------------


def test_steps(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "BUILD", tmp_path)
    steps = gpu_check.Steps()
    say = [sys.executable, "-c", "print('said')"]
    steps.run("good", {"a": say}, 60, show=True)
    assert not steps.failed
    steps.run("bad", {"b": [sys.executable, "-c", "exit(3)"], "c": say}, 60)
    steps.run("slow", {"d": [sys.executable, "-c", "import time; time.sleep(600)"]}, 0.3)
    gpu_check.Steps.run(late := gpu_check.Steps(seconds=1), "late", {"e": say}, 60)
    assert [line.split(",")[0] for line in steps.lines] == [
        "a: ok",
        "b: FAILED with 3",
        "c: ok",
        "d: FAILED: not done after 0 s",
    ]
    assert steps.failed
    assert late.failed
    assert capsys.readouterr().out.count("\nsaid\n") == 1


@pytest.mark.parametrize(
    ("backends", "status", "steps"),
    [
        (
            "cupy numba-cuda",
            0,
            "info tests-cupy tests-numba-cuda benchmark memcheck-cupy racecheck-cupy "
            "memcheck-numba-cuda racecheck-numba-cuda peers",
        ),
        ("cupy", 1, "info tests-cupy benchmark memcheck-cupy racecheck-cupy peers"),
        ("numba-cuda", 1, "info tests-numba-cuda"),
        ("", 2, "info"),
    ],
)
def test_make_gpu(monkeypatch, capsys, backends, status, steps):
    """Every step, with commands that do nothing."""
    ran = []
    told = SimpleNamespace(stdout=backends)
    monkeypatch.setattr(gpu_check, "assemble", lambda: None)
    monkeypatch.setattr(gpu_check.Steps, "run", lambda self, name, commands, limit, show=False: ran.extend(commands))
    monkeypatch.setattr(gpu_check.subprocess, "run", lambda *_, **__: told)
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name, path: f"/bin/{name}")
    with pytest.raises(SystemExit) as end:
        gpu_check.main()
    assert end.value.code == status
    assert ran == steps.split()
    printed = capsys.readouterr().out
    assert ("MISSING" in printed) == (status == 1)


def test_the_assembled_package_is_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "BUILD", tmp_path)
    monkeypatch.setattr(gpu_check, "PACKAGES", tmp_path / "packages")
    gpu_check.assemble()
    command = [sys.executable, "-c", "import sigmoid_l2 as s; print(s.__file__, s.value([[[0.0]]], [[0.0]]))"]
    done = subprocess.run(command, env=gpu_check.environment(), capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == [str(tmp_path / "packages" / "sigmoid_l2" / "__init__.py"), "[0.25]"], done.stderr
    assert (tmp_path / "packages" / "sigmoid_l2" / "kernels" / "sigmoid_l2.cuh").exists()


def test_the_sanitizer_meets_every_way():
    plans = [plan(m, n, itemsize) for m, n, _ in every_class.CASES for itemsize in (4, 8)]
    staged = [p for p in plans if isinstance(p, Staged)]
    rows = [p for p in plans if isinstance(p, Rows)]
    assert {(p.lanes > 1, p.lanes > 32, p.slices > 1) for p in staged} == {
        (False, False, False),
        (True, False, False),
        (True, True, False),
        (True, True, True),
    }
    assert {(p.row_threads, p.teams > 1, p.slices > 1) for p in rows} >= {
        (32, False, False),
        (32, True, False),
        (256, False, False),
        (512, False, False),
        (256, False, True),
    }
    assert len(staged) + len(rows) < len(plans), "and the long ones"


def test_the_shapes_have_every_class():
    for itemsize in (4, 8):
        classes = {size_class(plan(m, n, itemsize)) for m, n in bench_gpu.SHAPES}
        assert classes == {"tiny", "group", "block", "split", "long"}


@pytest.mark.parametrize("size", [10**6, 5 * 10**8])
def test_sizes(size):
    for m, n in bench_gpu.SHAPES:
        B = gpu_measure.pairs(m, n, "float32", size)
        assert B == 1 or size * 0.5 < B * m * n * 4 <= size


# --- the prediction -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cc", "threads", "registers", "shared", "expected"),
    [  # of NVIDIA's occupancy calculator
        (75, 256, 32, 16384, 1.0),
        (75, 128, 64, 15360, 0.5),
        (80, 256, 64, 0, 0.5),
        (86, 128, 40, 0, 1.0),
        (86, 1024, 32, 0, 2 / 3),
        (89, 128, 255, 0, 1 / 6),
        (90, 512, 128, 1000, 0.25),
        (90, 128, 32, 101 * 1024, 0.125),
        (100, 64, 16, 0, 1.0),
    ],
)
def test_occupancy(cc, threads, registers, shared, expected):
    assert chips.occupancy(cc, threads, registers, shared) == pytest.approx(expected)


CASE = gpu_measure.Case("gpu", "float32", 3, 3, 128)  # 12,800 bytes
GOOD = roofline.Work(None, 1, 128, 12_800, 12_800, 600, 1, 400, 0)
SMALL_CODE = roofline.Used(registers=40, shared=6144, instructions=500)


@pytest.mark.parametrize(
    ("change", "code", "chip", "expected"),
    [
        ({}, {}, "H200", (1.0, "memory")),
        ({"touched": 25_600}, {}, "H200", (0.5, "memory")),
        ({"moved": 400_000}, {}, "T4", (12_800 / (320 / 40 / 1.59) / 10_000, "cache")),
        ({"wavefronts": 10_000}, {}, "T4", (12_800 / (320 / 40 / 1.59) / 10_000, "shared")),
        ({"float64": 160}, {}, "T4", (12_800 / (320 / 40 / 1.59) / 10_240, "float64")),
        ({"issued": 1000}, {"instructions": 2000}, "H200", (12_800 / (4800 / 132 / 1.98) / 1000, "issue")),
        # One block at a time: 700 ns and 400 instructions, four cycles each.
        ({}, {"shared": 200_000}, "H200", (12_800 / (4800 / 132 / 1.98) / (700 * 1.98 + 4 * 400), "latency")),
    ],
)
def test_prediction(change, code, chip, expected):
    launches = roofline.Launches(CASE, (GOOD._replace(**change),))
    predicted, limit = roofline.fraction(chips.CHIPS[chip], launches, [SMALL_CODE._replace(**code)])
    assert (pytest.approx(predicted), limit) == expected


def test_prediction_of_two_launches():
    launches = roofline.Launches(CASE, (GOOD, GOOD._replace(blocks=2, touched=6400, wavefronts=0)))
    assert roofline.fraction(chips.CHIPS["A100"], launches, [SMALL_CODE] * 2) == (pytest.approx(0.5), "memory")


def test_what_the_prediction_counts():
    pytest.importorskip("cupy", exc_type=ImportError)
    (work,) = roofline.launches_of(3, 3, "float32").works
    assert (work.blocks, work.threads, work.trips) == (2, 128, 1)
    assert work.touched == work.moved == 128 * 25 * 4
    assert 100 < roofline.compiled.by_cupy(work.kernel, "float32", 90).instructions < 1000
    pytest.importorskip("cuda.core", exc_type=ImportError)
    rows = roofline.predictions((3, 3, "float32"))
    assert "3x3 float32" in roofline.table(rows)
    assert all(0.5 < row["predicted_fraction"] < 1.001 for row in rows)
