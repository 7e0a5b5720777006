"""What every benchmark here shares: the bytes of a case, its data, the plain copy of the same bytes, fair timing."""

import os
import platform
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import sigmoid_l2 as sl2

# A turn of a short call is as many calls as fill this time, so that the clock's own does not count.
TURN_S = 1e-3
# The pause between two turns: the threads of other libraries spin for some milliseconds before they sleep.
SETTLE_S = 0.01


@dataclass(frozen=True)
class Case:
    """One thing to time: B random pairs (m, n) of a dtype, already where the backend computes."""

    backend: str
    dtype: str
    m: int
    n: int
    B: int

    def __str__(self) -> str:
        return f"{self.backend}-{self.dtype}-{self.m}x{self.n}-{self.B:.0e}".replace("e+0", "e")

    @property
    def traffic(self) -> int:
        """The least bytes that must be moved: W and x read, loss, dW and dx written."""
        return self.B * (2 * self.m * self.n + 2 * self.n + 1) * np.dtype(self.dtype).itemsize


class Workload:
    """The arrays of a case, with the call to time and a plain copy that reads and writes as many bytes as it must."""

    def __init__(self, case: Case) -> None:
        devices = {info.name: info.device for info in sl2.backends()}
        self.case = case
        self.xp: Any = np
        if devices[case.backend] == "cuda":
            import cupy

            self.xp = cupy
        rng = np.random.default_rng(0)
        self.W = self.xp.asarray(rng.standard_normal((case.B, case.m, case.n), dtype=case.dtype))
        self.x = self.xp.asarray(rng.standard_normal((case.B, case.n), dtype=case.dtype))
        # Written once here, so that no page fault falls into the timing.
        self.out = (self.xp.zeros(case.B, case.dtype), self.xp.zeros_like(self.W), self.xp.zeros_like(self.x))
        self.copy_from = self.xp.ones(case.traffic // 2, np.uint8)
        self.copy_to = self.xp.zeros_like(self.copy_from)

    def call(self) -> None:
        """One value_and_grad into given outputs, finished when it returns."""
        sl2.value_and_grad(self.W, self.x, out=self.out, backend=self.case.backend)
        self.wait()

    def copy(self) -> None:
        """One plain copy that moves as many bytes as ``call`` must."""
        self.xp.copyto(self.copy_to, self.copy_from)
        self.wait()

    def copy_on(self, threads: int) -> Callable[[], None]:
        """The plain copy of host arrays, cut into one part for each of ``threads``; the caller copies the first."""
        if threads == 1:
            return self.copy
        size = self.copy_from.size
        bounds = [size * part // threads // 4096 * 4096 for part in range(threads)] + [size]
        parts = [(self.copy_to[a:b], self.copy_from[a:b]) for a, b in pairwise(bounds)]
        pool = ThreadPoolExecutor(threads - 1)

        def copy() -> None:
            others = [pool.submit(np.copyto, *part) for part in parts[1:]]
            np.copyto(*parts[0])
            for other in others:
                other.result()

        return copy

    def wait(self) -> None:
        """Until the device is done; the host is at once."""
        if self.xp is not np:
            self.xp.cuda.get_current_stream().synchronize()

    def check(self) -> None:
        """Compare the first pairs of a call with the NumPy reference: nothing wrong is timed."""
        self.call()
        head = slice(0, 64)
        to_host = np.asarray if self.xp is np else self.xp.asnumpy
        expected = sl2.value_and_grad(to_host(self.W[head]), to_host(self.x[head]), backend="numpy")
        for got, right in zip(self.out, expected, strict=True):
            np.testing.assert_allclose(to_host(got[head]), right, rtol=self.tolerance, atol=self.tolerance)

    @property
    def tolerance(self) -> float:
        """How far two right results may be apart, absolute and relative: roundings of the sums, not wrong formulas."""
        return 8 * self.case.m * self.case.n * float(np.finfo(self.case.dtype).eps)


class Times(NamedTuple):
    """Seconds of one call over the rounds of a measurement."""

    median: float
    p20: float
    p80: float
    rounds: int


def seconds(run: Callable[[], object], calls: int = 1) -> float:
    """The wall time of one ``run()``, the mean of ``calls``; the last result is freed when the clock has stopped."""
    start = time.perf_counter()
    for _ in range(calls):
        result = run()
    stop = time.perf_counter()
    del result
    return (stop - start) / calls


def interleaved(runs: Mapping[Any, Callable[[], object]], rounds: int, within_s: float = 60) -> dict[Any, Times]:
    """The times of each of ``runs``, taken in turn, so that a drift of the machine hits all alike.

    A turn begins with a call that is not timed, so that caches, threads and free memory are as a call of its own left
    them: new memory is ten times as dear once a virtual machine has given the free pages back to its host.

    Where ``rounds`` would not end within ``within_s`` seconds there are fewer, but at least three.
    """
    calls = {}
    one_round = 0.0
    for name, run in runs.items():
        run()
        one = seconds(run)
        if one < 10 * TURN_S:  # the best of three: short calls are easily held up
            one = min(one, seconds(run), seconds(run))
        calls[name] = max(1, int(TURN_S / one))
        one_round += SETTLE_S + one * (1 + calls[name])
    rounds = min(rounds, max(3, int(within_s / one_round)))
    times: dict[Any, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            time.sleep(SETTLE_S)
            run()
            times[name].append(seconds(run, calls[name]))
    return {name: Times(*np.percentile(t, (50, 20, 80)).tolist(), rounds) for name, t in times.items()}


def machine() -> dict[str, Any]:
    """The processor, the threads that we use of it, and the memory; what the system does not tell is left out."""
    info: dict[str, Any] = {"cpu": platform.processor() or platform.machine(), "threads": sl2.get_num_threads()}
    info |= {"cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()}
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        fields = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        told = {key.strip(): value.strip() for key, value in fields.items()}
        if "model name" in told:  # virtual machines hide the model's name, hence its number too
            info["cpu"] = f"{told['model name']} (family {told.get('cpu family')}, model {told.get('model')})"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        info["memory_gb"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
    if (pages := Path("/sys/kernel/mm/transparent_hugepage/enabled")).exists():
        info["transparent_hugepages"] = pages.read_text().strip()
    return info
