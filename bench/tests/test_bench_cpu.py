"""bench_cpu: what it times, and every part in miniature."""

import importlib
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import sigmoid_l2 as sl2
from sigmoid_l2 import settings

NAMES = "bench_cpu fit layouts measure peers reader report report_cpu results shared training wanted workload"
bench_cpu, fit, layouts, measure, peers, reader, report, report_cpu, results, shared, training, wanted, workload = map(
    importlib.import_module, NAMES.split()
)
Case, Workload = workload.Case, workload.Workload
SHAPES = [("float32", *shape) for shape in bench_cpu.SHAPES] + [("float64", *shape) for shape in bench_cpu.SHAPES_64]

# --- what is timed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("B", [1, 7, 3000])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_outputs_begin_16_bytes_past_a_line(dtype, B):
    """As NumPy's own large arrays do, whatever the allocator does with small ones."""
    work = Workload(Case("cpu", dtype, 5, 3, B))
    assert [a.ctypes.data % 64 for a in work.out] == [16, 16, 16]
    assert [a.shape for a in work.out] == [(B,), (B, 5, 3), (B, 3)]
    assert {a.dtype for a in work.out} == {np.dtype(dtype)}
    large = np.empty(10**7)
    assert large.ctypes.data % 64 == 16 or sys.platform != "linux"


@pytest.mark.parametrize(("dtype", "m", "n"), [*SHAPES, ("float32", *bench_cpu.HUGE)])
def test_no_case_times_subnormal_numbers_by_accident(dtype, m, n):
    pairs = 2 if m * n > 10**6 else 1 + 2 * 10**6 // (m * n)
    assert Workload(Case("cpu", dtype, m, n, pairs)).subnormal() == {"g": 0, "dW": 0, "dx": 0}


def test_one_case_times_them_on_purpose():
    found = Workload(Case("cpu", "float32", 10, 784, 300), scaled=False).subnormal()
    assert 0.01 < found["g"] < 0.1
    assert 0.01 < found["dW"] < 0.1


def test_a_loop_keeps_its_results_until_it_has_the_next():
    """As ``results = value_and_grad(W, x)`` does."""
    events = []

    class Results:
        def __init__(self):
            self.number = sum(event == "made" for event, _ in events)
            events.append(("made", self.number))

        def __del__(self):
            events.append(("freed", self.number))

    call = bench_cpu.in_a_loop(Results)
    for _ in range(3):
        call()
    assert events == [("made", 0), ("made", 1), ("freed", 0), ("made", 2), ("freed", 1)]


# --- a reader of the results ----------------------------------------------------------------------------------------


def test_the_sizes_of_a_reader_are_those_of_the_results():
    written = [4 * case.B * (case.m * case.n + case.n + 1) / 1e6 for case in reader.cases()]
    assert [round(megabytes) for megabytes in written] == [*reader.MEGABYTES] * 2
    assert (reader.MEGABYTES[0], reader.MEGABYTES[-1]) == (1, 200)


def test_a_reader_meets_both_kinds_of_stores(monkeypatch):
    asked, read = [], []
    monkeypatch.setattr(settings, "set_streaming_threshold", asked.append, raising=False)
    monkeypatch.setattr(reader, "largest", lambda arrays: read.extend(a.size for a in arrays))
    runs = reader.reading(Workload(Case("cpu", "float32", 3, 3, 7)), threads=2)
    kinds = ("ordinary", "ordinary, then read", "streamed", "streamed, then read")
    assert [key.outputs for key in runs] == [*kinds]
    for run, elements in zip(runs.values(), (0, 7 * 13, 0, 7 * 13), strict=True):
        read.clear()
        run()
        assert sum(read) == elements  # loss, dW and dx, each once
    assert asked == [1 << 62, 1 << 62, 1, 1]
    reader.reset()
    assert asked[-1] is None


def test_a_reader_where_the_library_has_no_threshold(monkeypatch):
    monkeypatch.delattr(settings, "set_streaming_threshold", raising=False)
    runs = reader.reading(Workload(Case("cpu", "float32", 3, 3, 7)), threads=1)
    assert [key.outputs for key in runs] == ["as they are", "as they are, then read"]
    for run in runs.values():
        run()


# --- other outputs, a target ----------------------------------------------------------------------------------------


def test_bytes_of_what_is_wanted():
    """Of a pair of 3x3 float32: W and x, and what the name of the outputs says."""
    sizes = {"m": 3, "n": 3, "dtype": "float32"}
    moved = [wanted.bytes_of_pair(sizes | {"outputs": what}) for what in wanted.CALLS]
    assert moved == [100, 112, 76, 64, 88]


def test_each_call_makes_what_its_name_says(monkeypatch):
    asked = []

    def value_and_grad(W, x, target, *, wrt, **options):
        asked.append((target is not None, wrt))
        return called(W, x, target, wrt=wrt, **options)

    called = sl2.value_and_grad
    runs = wanted.runs(Workload(Case("cpu", "float32", 3, 3, 70)), "numba", results.Key("ours", threads=2))
    monkeypatch.setattr(sl2, "value_and_grad", value_and_grad)
    for run in runs.values():
        run()
    assert [key.outputs for key in runs] == [*wanted.CALLS]
    assert asked == [(what.startswith("target"), wrt) for what, wrt in wanted.CALLS.items()]


def test_each_layout_is_what_its_name_says(monkeypatch):
    called, strides = sl2.value_and_grad, []

    def value_and_grad(W, x, *, out, **options):
        strides.append([tuple(k // a.itemsize for k in a.strides) for a in (W, x, *out)])
        return called(W, x, out=out, **options)

    runs = layouts.runs(Workload(Case("cpu", "float32", 2, 3, 70)), "numba", results.Key("ours", threads=2))
    monkeypatch.setattr(sl2, "value_and_grad", value_and_grad)
    for run in runs.values():
        run()
    assert [key.outputs for key in runs] == ["W (B, m, n)", "W (m, n, B)", "W (n, m, B)"]
    assert strides[0] == [(6, 3, 1), (3, 1), (1,), (6, 3, 1), (3, 1)]
    assert strides[1] == [(1, 210, 70), (1, 70), (1,), (1, 210, 70), (1, 70)]
    assert strides[2] == [(1, 70, 140), (1, 70), (1,), (1, 70, 140), (1, 70)]


# --- one W for many x -----------------------------------------------------------------------------------------------


def test_the_traffic_of_a_shared_matrix():
    case = shared.SharedCase.of_x("cpu", "float32", 10, 784, 10 * 4 * 784)
    assert (case.B, case.traffic) == (10, 4 * (10 * (2 * 784 + 1) + 2 * 10 * 784))


@pytest.mark.parametrize("peer", [*shared.PEERS, peers.OURS], ids=lambda peer: peer.name)
@pytest.mark.parametrize("given", [False, True])
def test_everybody_computes_the_sum_over_all_x(peer, given):
    pytest.importorskip(peer.library.replace("-", "_"))
    if peer.name.startswith("torch.compile"):
        pytest.skip("compiles for half a minute")
    work = shared.SharedWork(shared.SharedCase("cpu", "float32", 4, 5, 3000))
    results = work.checked(peer.build(work.W, work.x, work.out if given else None))()
    assert np.asarray(results[1]).shape == (4, 5)
    if given and peer.takes_out:
        assert all(a is b for a, b in zip(results, work.out, strict=True))


def test_a_sum_that_lacks_a_sample_is_wrong():
    work = shared.SharedWork(shared.SharedCase("cpu", "float32", 4, 5, 300))
    loss, dW, dx = sl2.value_and_grad(work.W, work.x)
    work.check((loss, dW, dx))
    with pytest.raises(AssertionError, match="dW is wrong"):
        work.check((loss, sl2.grad(work.W, work.x[1:]).dW, dx))


# --- within a framework ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", [*training.OURS, *training.PEERS], ids=lambda peer: peer.name)
def test_everybody_makes_the_same_step_of_training(peer):
    pytest.importorskip(peer.library)
    if peer.name.startswith("torch.compile"):
        pytest.skip("compiles for half a minute")
    work = Workload(Case("cpu", "float32", 4, 5, 3000))
    loss, dW, dx = work.checked(peer.build(work.W, work.x, None))()
    assert (loss.shape, dW.shape, dx.shape) == ((3000,), (3000, 4, 5), (3000, 5))
    assert {type(a).__module__.partition(".")[0] for a in (loss, dW, dx)} <= {peer.library, f"{peer.library}lib"}


# --- a fit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [30, 100, 101])
def test_every_way_of_a_fit_does_the_same(block):
    models = fit.Fit(101)
    start, fitted = models.W.copy(), []
    for run in models.runs(block, threads=2).values():
        models.W[...] = start
        run()
        fitted.append(models.W.copy())
    assert len(fitted) == 4
    for W in fitted:
        np.testing.assert_allclose(W, fitted[0], rtol=0, atol=1e-6)
    assert np.abs(fitted[0] - start).max() > 0.01


def test_a_fit_that_forgets_a_step_is_not_timed(monkeypatch):
    models = fit.Fit(101)
    run = models.run(fit.scaled, 50, slice(0, 101))
    models.checked(run)
    monkeypatch.setattr(fit, "STEPS", fit.STEPS + 1)
    with pytest.raises(AssertionError, match="W is wrong"):
        models.checked(lambda: None)


def test_a_time_is_that_of_one_step(monkeypatch):
    monkeypatch.setattr(measure, "seconds", lambda run, calls=1: 12.0)
    monkeypatch.setattr(measure, "SETTLE_S", 0)
    assert (measure.HostTurn(int)(), measure.HostTurn(int, 4)()) == (12, 3)


# --- a run, and what it tells ---------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """The exit status, the results and what is printed of a run in miniature."""
    for name, value in {
        "SHAPES": ((3, 3), (4, 20)),
        "SHAPES_64": ((3, 3),),
        "HUGE": (30, 40),
        "NEW_OUTPUTS": (50,),
        "FRESH_PAIRS": 50,
        "WANTED_PAIRS": 50,
        "SHARED_SHAPES": ((3, 3), (10, 20)),
        "TRAINING_PAIRS": 50,
        "COMPILERS": (peers.NUMPY_MATMUL, peers.Peer("nobody", "numpy", lambda W, x, out: 1 / 0)),
        "NUMPY_SHAPES": ((3, 3),),
        "results_path": lambda folder, cpu: tmp_path / "complete.json",
    }.items():
        monkeypatch.setattr(bench_cpu, name, value)
    monkeypatch.setattr(reader, "MEGABYTES", (1,))
    monkeypatch.setattr(peers, "PEERS", (peers.NUMPY_EINSUM,))
    monkeypatch.setattr(shared, "PEERS", shared.PEERS[:1])
    monkeypatch.setattr(training, "PEERS", (training.TORCH_EAGER, peers.JAX_SUM))
    monkeypatch.setattr(measure, "SETTLE_S", 0)
    monkeypatch.setattr(report, "find_spec", lambda name: None)  # no pictures
    made = bench_cpu.Bench.__init__

    def small(self, quick):
        made(self, quick)
        self.rounds, self.batches, self.bytes_of_W = 3, (1, 100), 20_000
        self.bytes_of_x, self.models = 20_000, 2_500

    monkeypatch.setattr(bench_cpu.Bench, "__init__", small)
    monkeypatch.chdir(tmp_path)

    def ran(*options):
        monkeypatch.setattr(sys, "argv", ["bench_cpu.py", *options])
        with pytest.raises(SystemExit) as end:
            bench_cpu.main()
        (path,) = tmp_path.rglob("*.json")
        return SimpleNamespace(
            status=end.value.code, path=path, rows=json.loads(path.read_text())["rows"], told=capsys.readouterr()
        )

    return ran


def test_a_complete_run(run):
    done = run()
    assert done.status in (0, 1)
    assert done.path.name == "complete.json"
    parts = list(dict.fromkeys(row["part"] for row in done.rows))
    assert parts == [*bench_cpu.PARTS]
    for part, (title, _) in report_cpu.OF_CPU.items():
        assert f"## {title}\n" in done.told.out, part
    assert "ZeroDivisionError: division by zero: nobody not measured: 3x3 float32, B = 50" in done.told.out
    copies = {(row["part"], row["contender"]) for row in done.rows if results.is_copy(row)}
    for part in ("shapes", "huge", "subnormal", "outputs", "threads", "numpy", "batch", "fresh", "shared"):
        assert {(part, "np.copyto"), (part, "streamed copy")} <= copies
    wrong = {(row["contender"], row["target"]): row["wrong"] for row in done.rows if row["part"] == "tails"}
    assert {wrong["sigmoid-l2, numba", target] for target in (0, 1)} == {0}
    assert min(wrong["textbook formula in NumPy", target] for target in (0, 1)) > 0.2
    assert "| sigmoid-l2, numba | none | none | none | none |" in done.told.out
    (subnormal,) = (row["subnormal"] for row in done.rows if "subnormal" in row)
    assert subnormal["dW"] > 0
    assert {row["threads"] for row in done.rows if row["contender"] == "numpy"} == {sl2.get_num_threads()}


def test_a_run_without_other_libraries_leaves_the_results_alone(run):
    done = run("--no-peers")
    assert done.path.parts[-2:] == ("build", "cpu.json")
    assert {row["part"] for row in done.rows} == set(bench_cpu.PARTS) - {
        "batch",
        "fresh",
        "shared",
        "training",
        "tails",
    }


def test_some_parts(run):
    done = run("huge", "small", "-o", "some.json")
    assert {row["part"] for row in done.rows} == {"huge", "small"}
    assert "\n\n5 targets: " in done.told.out


def test_a_part_that_there_is_not(run, capsys):
    with pytest.raises(ValueError, match="unpack"):
        run("shape")
    assert "unknown: shape; there are shapes, huge, " in capsys.readouterr().err
