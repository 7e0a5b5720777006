"""What every benchmark here shares: the bytes of a case, its data, the plain copy of the same bytes, fair timing."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

import sigmoid_l2 as sl2


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
        size = self.case.m * self.case.n
        tolerance = 8 * size * float(np.finfo(self.case.dtype).eps)
        for got, right in zip(self.out, expected, strict=True):
            np.testing.assert_allclose(to_host(got[head]), right, rtol=tolerance, atol=tolerance)


def seconds(run: Callable[[], object]) -> float:
    """The wall time of one ``run()``."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def interleaved(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The median seconds of each of ``runs``, taken in turn, so that a drift of the machine hits all alike."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(seconds(run))
    return {name: median(values) for name, values in times.items()}
