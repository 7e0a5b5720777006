"""pytest-benchmark over backend x dtype x shape x batch, each beside the best copy of the same bytes.

pytest bench/bench_backends.py --benchmark-json=build/bench.json && python bench/report.py build/bench.json
"""

import pytest
from copies import Copy
from measure import seconds, spread
from results import name, row
from workload import Case, Workload, finished

import sigmoid_l2 as sl2

# About 100 MB of W on a CPU: far outside its caches, and three cases of 3x3 for the course over the batch.
SHAPES = ((3, 3, 1_000), (3, 3, 100_000), (3, 3, 1_000_000), (8, 8, 200_000), (64, 64, 5_000), (256, 256, 400))
BACKENDS = {info.name: info for info in sl2.backends()}


@pytest.mark.parametrize("size", SHAPES, ids="{0[0]}x{0[1]}-{0[2]:,}".format)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_value_and_grad(benchmark, backend, dtype, size):
    if reasons := BACKENDS[backend].reasons:
        pytest.skip("; ".join(reasons))
    case = Case("gpu" if BACKENDS[backend].device == "cuda" else "cpu", dtype, *size)
    threads = None if case.device == "gpu" else sl2.get_num_threads()
    call, copies = Workload(case).call(backend), Copy(case).ways(1, threads or 1)
    call, *runs = (finished(run, case.device) for run in (call, *copies.values()))
    times = {key: [] for key in copies}

    def time_copies() -> None:
        for key, run in zip(copies, runs, strict=True):
            times[key].append(seconds(run))

    # The setup of every round times each copy once: a drift of the machine hits them and the call alike.
    benchmark.pedantic(call, setup=time_copies, rounds=9, warmup_rounds=1, iterations=1)
    if benchmark.stats is None:  # --benchmark-disable
        return
    call_s = spread(benchmark.stats.stats.data)
    key, copy_s = min(((key, spread(t).median) for key, t in times.items()), key=lambda way: way[1])
    told = {"gb_per_s": case.traffic / call_s.median / 1e9, "fraction_of_copy": copy_s / call_s.median}
    told["copy"] = name(key._asdict())
    benchmark.extra_info |= row("backends", case, backend, threads=threads) | call_s._asdict() | told
