"""What is timed: a case, its arrays on the CPU (NumPy's) or the GPU (CuPy's), and the plain copy of the same bytes."""

import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from math import prod
from typing import Any, Self

import numpy as np

import sigmoid_l2 as sl2

# Random numbers that are drawn; arrays repeat them, because drawing takes seconds for a large case. The count is a
# prime number, so that neighbouring pairs differ.
NUMBERS = 1_000_003
# Elements of W, at most, in the pairs that are compared with the reference on a CPU.
CHECKED_ELEMENTS = 1_000_000
# Pairs at each end of the batch that are compared with the reference on a GPU.
CHECKED_PAIRS = 16
# Error that a right result may have, relative to the largest value: roundings of the sums, not a wrong formula.
TOLERANCE = {"float32": 1e-4, "float64": 1e-10}

Run = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """B random pairs (m, n) of a dtype on a device, "cpu" or "gpu"."""

    device: str
    dtype: str
    m: int
    n: int
    B: int

    def __str__(self) -> str:
        return f"{self.m}x{self.n} {self.dtype}, B = {self.B:,}"

    @classmethod
    def sized(cls, device: str, dtype: str, m: int, n: int, size: int) -> Self:
        """So many pairs that W has about ``size`` bytes; on a GPU a multiple of 32 where there are many."""
        B = max(1, size // (m * n * np.dtype(dtype).itemsize))
        return cls(device, dtype, m, n, B // 32 * 32 if device == "gpu" and B > 1000 else B)

    @property
    def traffic(self) -> int:
        """The least bytes that must be moved: W and x read, loss, dW and dx written."""
        return self.B * (2 * self.m * self.n + 2 * self.n + 1) * np.dtype(self.dtype).itemsize


def library(device: str) -> Any:
    """The library of the arrays on ``device``."""
    return np if device == "cpu" else importlib.import_module("cupy")


def wait(device: str) -> None:
    """Until ``device`` has nothing to do."""
    if device == "gpu":
        library(device).cuda.Device().synchronize()


def finished(run: Run, device: str) -> Run:
    """``run``, returning when ``device`` is done."""
    if device == "cpu":
        return run

    def run_and_wait() -> object:
        results = run()
        wait(device)
        return results

    return run_and_wait


@cache
def _numbers(dtype: str) -> Any:
    return np.random.default_rng(0).standard_normal(NUMBERS, dtype)


class Workload:
    """W and x of a case on its device, with q about as large as 1, and the outputs."""

    def __init__(self, case: Case) -> None:
        self.case, self.xp = case, library(case.device)
        B, m, n, dtype = case.B, case.m, case.n, case.dtype
        numbers = _numbers(dtype)
        self.W = self._repeated(numbers, B, m, n)
        self.x = self._repeated(numbers[::-1] * numbers.dtype.type(n**-0.5), B, n)
        self.out = (self.xp.empty(B, dtype), self.xp.empty((B, m, n), dtype), self.xp.empty((B, n), dtype))
        self.poison()  # also, so that no page fault falls into the timing

    def _repeated(self, numbers: Any, *shape: int) -> Any:
        """An array of ``numbers``, again and again."""
        size, there = prod(shape), min(prod(shape), NUMBERS)
        array = self.xp.empty(size, numbers.dtype)
        array[:there] = self.xp.asarray(numbers[:there])
        while there < size:
            more = min(there, size - there)
            array[there : there + more] = array[:more]
            there += more
        return array.reshape(shape)

    def call(self, backend: str, given: bool = True) -> Run:
        """A call of ``backend`` into the outputs or, if they are not ``given``, new ones; compiled and checked."""
        out = self.out if given else None

        def run() -> object:
            return sl2.value_and_grad(self.W, self.x, out=out, backend=backend)

        return self.checked(run)

    def checked(self, run: Run) -> Run:
        """``run``, whose results are right: nothing wrong is timed."""
        self.poison()
        self.check(run())
        return run

    def poison(self) -> None:
        """Fill the outputs with NaN, so that an element that is not written is seen."""
        for a in self.out:
            a.fill(np.nan)

    def check(self, results: Any) -> None:
        """AssertionError where loss, dW and dx, arrays of any library, come from a wrong formula."""
        for name, got, right in zip(self.truth._fields, results, self.truth, strict=True):
            found = self._some_pairs(got)
            assert found.shape == right.shape, f"{name} has shape {found.shape}, not {right.shape}"
            error = np.abs(found - right).max() / np.abs(right).max()
            assert error <= TOLERANCE[self.case.dtype], f"{name} is wrong by {error:.2g} of its largest value"

    @cached_property
    def truth(self) -> sl2.ValueAndGrad:
        """The results of some pairs in float64."""
        return sl2.value_and_grad(*(self._some_pairs(a).astype(np.float64) for a in (self.W, self.x)), backend="numpy")

    def _some_pairs(self, a: Any) -> Any:
        """The pairs to compare, on the host: evenly spaced ones, but the ends on a GPU, where indexing compiles."""
        B, m, n = self.case.B, self.case.m, self.case.n
        if self.case.device == "cpu":
            count = min(B, max(2, CHECKED_ELEMENTS // (m * n)))
            return np.asarray(a)[np.linspace(0, B - 1, count, dtype=np.int64)]

        def on_host(part: Any) -> Any:
            return np.asarray(part.get() if hasattr(part, "get") else part.cpu() if hasattr(part, "cpu") else part)

        return np.concatenate([on_host(a[:CHECKED_PAIRS]), on_host(a[max(CHECKED_PAIRS, B - CHECKED_PAIRS) :])])


class Copy:
    """A plain copy that reads and writes together as many bytes as a case must move."""

    def __init__(self, case: Case) -> None:
        xp = library(case.device)
        self.size = case.traffic // 2
        self.to, self.source = xp.empty(self.size, np.uint8), xp.empty(self.size, np.uint8)
        for a in (self.to, self.source):
            a.fill(7)
        self.cuda = xp.cuda if case.device == "gpu" else None

    def __call__(self) -> None:
        """Copy on one thread of the host, or enqueue the copy on the device."""
        if self.cuda is None:
            np.copyto(self.to, self.source)
            return
        runtime, stream = self.cuda.runtime, self.cuda.get_current_stream()
        runtime.memcpyAsync(self.to.data.ptr, self.source.data.ptr, self.size, runtime.memcpyDeviceToDevice, stream.ptr)

    def on(self, threads: int) -> Run:
        """The copy of host arrays, cut into one part for each of ``threads``; the caller copies the first."""
        if threads == 1:
            return self
        bounds = [self.size * part // threads // 4096 * 4096 for part in range(threads)] + [self.size]
        parts = [(self.to[a:b], self.source[a:b]) for a, b in pairwise(bounds)]
        pool = ThreadPoolExecutor(threads - 1)

        def copy() -> None:
            others = [pool.submit(np.copyto, *part) for part in parts[1:]]
            np.copyto(*parts[0])
            for other in others:
                other.result()

        return copy
