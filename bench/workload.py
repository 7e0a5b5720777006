"""What is timed: a case, and its arrays on the CPU (NumPy's) or the GPU (CuPy's)."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from math import prod
from typing import Any, Self

import numpy as np

import sigmoid_l2 as sl2

# Random numbers that are drawn; arrays repeat them, because drawing takes seconds for a large case. The count is a
# prime number, so that neighbouring pairs differ.
NUMBERS = 1_000_003
# Bytes of a line of the cache; and bytes from the start of a line to that of each output, as NumPy's own large arrays
# have it. Streaming stores are easiest where that is 0.
LINE, OUT_AT = 64, 16
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
    def matrices(self) -> tuple[int, ...]:
        """The shape of W and dW."""
        return self.B, self.m, self.n

    @property
    def traffic(self) -> int:
        """The least bytes that must be moved: W and x read, loss, dW and dx written."""
        elements = 2 * prod(self.matrices) + self.B * (2 * self.n + 1)
        return elements * np.dtype(self.dtype).itemsize


def library(device: str) -> Any:
    """The library of the arrays on ``device``."""
    return np if device == "cpu" else importlib.import_module("cupy")


def on_host(a: Any) -> Any:
    """An array of any library as NumPy's."""
    return np.asarray(a.get() if hasattr(a, "get") else a.cpu() if hasattr(a, "cpu") else a)


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


def placed(xp: Any, shape: int | tuple[int, ...], dtype: Any, at: int, unit: int) -> Any:
    """A new array; on a CPU it begins ``at`` bytes past a multiple of ``unit``, whatever the allocator does."""
    if xp is not np:
        return xp.empty(shape, dtype)
    nbytes = np.dtype(dtype).itemsize * prod(np.atleast_1d(shape).tolist())
    memory = np.empty(nbytes + unit, np.uint8)
    first = (at - memory.ctypes.data) % unit
    return memory[first : first + nbytes].view(dtype).reshape(shape)


@cache
def _numbers(dtype: str) -> Any:
    return np.random.default_rng(0).standard_normal(NUMBERS, dtype)


class Workload:
    """W and x of a case on its device, and the outputs.

    W is ``scaled`` by n^-1/2, so that q is about as large as 1 and no result is subnormal: such numbers are slow on
    some processors. Without that the large q of long rows make g and dW subnormal here and there.
    """

    def __init__(self, case: Case, scaled: bool = True) -> None:
        self.case, self.xp = case, library(case.device)
        B, n, dtype, matrices = case.B, case.n, case.dtype, case.matrices
        numbers = _numbers(dtype)
        self.W = self._repeated(numbers * numbers.dtype.type(n**-0.5 if scaled else 1), *matrices)
        self.x = self._repeated(numbers[::-1], B, n)
        self.out = tuple(placed(self.xp, shape, dtype, OUT_AT, LINE) for shape in (B, matrices, (B, n)))
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
        self.compare(results, self.truth)

    def compare(self, results: Any, truth: Any) -> None:
        """The same for any results; ``truth`` is a named tuple of theirs for ``some_pairs``."""
        for name, got, right in zip(truth._fields, results, truth, strict=True):
            found = self.some_pairs(got)
            assert found.shape == right.shape, f"{name} has shape {found.shape}, not {right.shape}"
            error = np.abs(found - right).max() / np.abs(right).max()
            assert error <= self.tolerance(name), f"{name} is wrong by {error:.2g} of its largest value"

    def tolerance(self, name: str) -> float:
        """The error that a result of this name may have, relative to its largest value."""
        return TOLERANCE[self.case.dtype]

    @cached_property
    def truth(self) -> sl2.ValueAndGrad:
        """The results of some pairs in float64."""
        return sl2.value_and_grad(*(self.some_pairs(a).astype(np.float64) for a in (self.W, self.x)), backend="numpy")

    def subnormal(self) -> dict[str, float]:
        """The share of the elements of g, dW and dx that are subnormal, in the pairs that are compared."""
        W, x = (self.some_pairs(a) for a in (self.W, self.x))
        q = W @ x[..., None]
        g, _ = sl2.grad(q, np.ones_like(q[:, 0]), backend="numpy")  # dW where x is 1
        dW, dx = sl2.grad(W, x, backend="numpy")
        least = np.finfo(q.dtype).tiny
        return {k: float(((a != 0) & (abs(a) < least)).mean()) for k, a in (("g", g), ("dW", dW), ("dx", dx))}

    def some_pairs(self, a: Any) -> Any:
        """The pairs to compare, on the host: evenly spaced ones, but the ends on a GPU, where indexing compiles."""
        B, m, n = self.case.B, self.case.m, self.case.n
        if self.case.device == "cpu":
            count = min(B, max(2, CHECKED_ELEMENTS // (m * n)))
            return np.asarray(a)[np.linspace(0, B - 1, count, dtype=np.int64)]
        return np.concatenate([on_host(a[:CHECKED_PAIRS]), on_host(a[max(CHECKED_PAIRS, B - CHECKED_PAIRS) :])])
