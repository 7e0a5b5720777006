"""pytest-benchmark over backend x dtype x shape x batch, each beside a plain copy of the same bytes.

pytest bench --benchmark-json=build/bench.json && python bench/report.py build/bench.json
"""

from statistics import median

import pytest
from measure import Case, Workload, seconds

import sigmoid_l2 as sl2

# About 100 MB of W on a CPU: far outside its caches, and three cases of 3x3 for the course over the batch.
SHAPES = ((3, 3, 1_000), (3, 3, 100_000), (3, 3, 1_000_000), (8, 8, 200_000), (64, 64, 5_000), (256, 256, 400))
CASES = [
    Case(info.name, dtype, m, n, B) for info in sl2.backends() for dtype in ("float32", "float64") for m, n, B in SHAPES
]
REASONS = {info.name: "; ".join(info.reasons) for info in sl2.backends()}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_value_and_grad(benchmark, case):
    if REASONS[case.backend]:
        pytest.skip(REASONS[case.backend])
    work = Workload(case)
    work.check()
    copies = []
    # The setup of every round times one copy: the two are interleaved, and a drift of the machine hits both alike.
    benchmark.pedantic(
        work.call, setup=lambda: copies.append(seconds(work.copy)), rounds=9, warmup_rounds=1, iterations=1
    )
    if benchmark.stats is None:  # --benchmark-disable
        return
    call = benchmark.stats.stats.median
    benchmark.extra_info.update(
        backend=case.backend,
        dtype=case.dtype,
        m=case.m,
        n=case.n,
        B=case.B,
        bytes=case.traffic,
        gb_per_s=case.traffic / call / 1e9,
        copy_gb_per_s=case.traffic / median(copies) / 1e9,
        fraction_of_copy=median(copies) / call,
    )
