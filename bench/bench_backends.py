"""pytest-benchmark over backend x dtype x shape x batch, each beside a plain copy of the same bytes.

pytest bench/bench_backends.py --benchmark-json=build/bench.json && python bench/report.py build/bench.json
"""

import pytest
from measure import seconds, spread
from results import row
from workload import Case, Copy, Workload, finished

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
    call, copy = (finished(run, case.device) for run in (Workload(case).call(backend), Copy(case)))
    copies = []
    # The setup of every round times one copy: the two are interleaved, and a drift of the machine hits both alike.
    benchmark.pedantic(call, setup=lambda: copies.append(seconds(copy)), rounds=9, warmup_rounds=1, iterations=1)
    if benchmark.stats is None:  # --benchmark-disable
        return
    times = spread(benchmark.stats.stats.data)
    speeds = {"gb_per_s": case.traffic / times.median / 1e9, "fraction_of_copy": spread(copies).median / times.median}
    benchmark.extra_info |= row("backends", case, backend) | times._asdict() | speeds
