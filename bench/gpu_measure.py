"""What the GPU benchmarks share: which backends run, arrays on the device, and times taken by its own clock."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache, cached_property
from itertools import product
from math import ceil, prod
from typing import Any

import numpy as np
from gpu_results import machine
from measure import Case, Times

import sigmoid_l2 as sl2
from sigmoid_l2 import dispatch

BACKENDS = ("cupy", "numba-cuda")
# W is so many times as large as the L2, so that a call finds nothing of the one before, and at least so many bytes.
TIMES_L2, LEAST_BYTES_OF_W = 8, 400 * 10**6
# All arrays of a case are at most this many times W: at 1x1 W, x, loss, dW, dx and the two of the copy.
ARRAYS = 8
CHECKED = 16  # pairs at either end of a batch that are compared with the reference
# Random numbers that come from the host; the device repeats them, because the host takes seconds for as many as a case
# needs. A prime number, so that neighbouring pairs are not alike.
NUMBERS = 1_000_003
FEW = 64  # pairs, at most, of a call that is there to have its kernels compiled


def require_gpu(names: Iterable[str] = BACKENDS) -> list[str]:
    """Those of ``names`` that run here; ends the program with 2 and one line where none does, or CuPy does not."""
    table = {b.name: b for b in dispatch.BACKENDS}
    # CuPy's arrays, events and copies are used for both.
    reasons = {name: "; ".join(table[name].reasons()) for name in dict.fromkeys(("cupy", *names))}
    available = [name for name in names if not reasons[name]]
    if reasons["cupy"] or not available:
        print("no GPU benchmark here: " + "; ".join(f"{n}: {reason}" for n, reason in reasons.items() if reason))
        sys.exit(2)
    for name in names:
        if reasons[name]:
            print(f"backend {name} is left out: {reasons[name]}", file=sys.stderr)
    return available


def bytes_of_W() -> int:  # noqa: N802 - the name of the mathematics
    """How large W is in the cases that are compared with the copy; less where the GPU is small."""
    import cupy

    _, total = cupy.cuda.runtime.memGetInfo()  # not the free memory: a case must be the same in every run
    return int(min(max(LEAST_BYTES_OF_W, TIMES_L2 * machine()["l2_mb"] * 1e6), total / (ARRAYS + 2)))


def pairs(m: int, n: int, dtype: str, size: int) -> int:
    """So many pairs that W has about ``size`` bytes; a multiple of 32 where there are many."""
    B = max(1, size // (m * n * np.dtype(dtype).itemsize))
    return B // 32 * 32 if B > 1000 else B


@cache
def _numbers(dtype: str) -> Any:
    return np.random.default_rng(0).standard_normal(NUMBERS, dtype)


def _repeated(numbers: Any, *shape: int) -> Any:
    """A device array of ``numbers``, again and again."""
    import cupy

    size, there = prod(shape), min(prod(shape), NUMBERS)
    array = cupy.empty(size, numbers.dtype)
    array[:there] = cupy.asarray(numbers[:there])
    while there < size:
        more = min(there, size - there)
        array[there : there + more] = array[:more]
        there += more
    return array.reshape(shape)


class Arrays:
    """W and x of a case on the device, with q about as large as 1, and the outputs."""

    def __init__(self, case: Case) -> None:
        import cupy

        B, m, n = case.B, case.m, case.n
        numbers = _numbers(case.dtype)
        self.W = _repeated(numbers, B, m, n)
        self.x = _repeated(numbers[::-1] * numbers.dtype.type(n**-0.5), B, n)
        self.out = (cupy.empty(B, case.dtype), cupy.empty((B, m, n), case.dtype), cupy.empty((B, n), case.dtype))
        self.tolerance = {"float32": 1e-4, "float64": 1e-10}[case.dtype]

    def call(self, backend: str) -> Callable[[], object]:
        """The call to time, compiled and checked: a result that is wrong or not written is not timed."""

        def run() -> object:
            return sl2.value_and_grad(self.W, self.x, out=self.out, backend=backend)

        self.poison()
        self.check(run())
        return run

    def poison(self) -> None:
        """Fill the outputs with NaN, so that what is not written shows."""
        for a in self.out:
            a.fill(np.nan)

    @cached_property
    def truth(self) -> sl2.ValueAndGrad:
        """The results of the pairs at both ends, in float64."""
        return sl2.value_and_grad(*(ends(a).astype(np.float64) for a in (self.W, self.x)), backend="numpy")

    def check(self, results: Any) -> None:
        """AssertionError where loss, dW and dx, arrays of any library, come from a wrong formula; not for roundings."""
        for name, got, right in zip(self.truth._fields, results, self.truth, strict=True):
            found = ends(got)
            assert found.shape == right.shape, f"{name} has shape {found.shape}, not {right.shape}"
            error = np.abs(found - right).max() / np.abs(right).max()
            assert error <= self.tolerance, f"{name} is wrong by {error:.2g} of its largest value"


def compile_kernels(cases: Iterable[Case], backends: Iterable[str]) -> None:
    """Have the kernels of ``cases`` compiled by calls of a few pairs; what fails will fail again and be told then."""
    for case, backend in product(cases, backends):
        print(f"compiling: {backend}, {case}", file=sys.stderr)
        with suppress(Exception):
            Arrays(replace(case, B=min(case.B, FEW))).call(backend)


def ends(a: Any) -> Any:
    """The first and the last pairs, as NumPy's array; ``a`` is one of CuPy, PyTorch, JAX or NumPy."""

    def to_host(part: Any) -> Any:
        return np.asarray(part.get() if hasattr(part, "get") else part.cpu() if hasattr(part, "cpu") else part)

    return np.concatenate([to_host(a[:CHECKED]), to_host(a[max(CHECKED, len(a) - CHECKED) :])])


class Copy:
    """A device-to-device copy that reads and writes together as many bytes as a case must move."""

    def __init__(self, case: Case) -> None:
        import cupy

        self.size = case.traffic // 2
        self.to, self.source = cupy.empty(self.size, np.uint8), cupy.empty(self.size, np.uint8)
        self.source.fill(7)
        self.runtime, self.stream = cupy.cuda.runtime, cupy.cuda.get_current_stream()

    def __call__(self) -> None:
        """Enqueue the copy."""
        kind = self.runtime.memcpyDeviceToDevice
        self.runtime.memcpyAsync(self.to.data.ptr, self.source.data.ptr, self.size, kind, self.stream.ptr)


def device_times(runs: Mapping[str, Callable[[], object]], copy: Copy, rounds: int) -> dict[str, dict[str, Any]]:
    """The device's own times of single calls, taken in turn, each by a pair of events.

    Before every timed call the device gets untimed copies to do: so it is busy while the host prepares the call, whose
    launch has no part in the time then, and the caches hold nothing of the call. ``held_up`` counts the calls for which
    that did not suffice.
    """
    import cupy

    def once(run: Callable[[], object], copies: int) -> tuple[Any, Any, bool]:
        for _ in range(copies):
            copy()
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        run()
        stop.record()
        return start, stop, start.done

    def seconds(start: Any, stop: Any, _: bool) -> float:
        stop.synchronize()
        return cupy.cuda.get_elapsed_time(start, stop) * 1e-3

    copying = min(seconds(*once(copy, 1)) for _ in range(3))
    launching = 0.0
    for run in runs.values():
        cupy.cuda.Device().synchronize()
        launching = max(launching, host_seconds(run, 1))
    copies = min(50, 1 + ceil(3 * launching / copying))
    rows: dict[str, Any] = {name: ([], []) for name in runs}
    for _ in range(rounds):
        taken = {name: once(run, copies) for name, run in runs.items()}
        for name, events in taken.items():
            rows[name][0].append(seconds(*events))
            rows[name][1].append(events[2])
    return {
        name: Times(*np.percentile(t, (50, 20, 80)).tolist(), rounds)._asdict() | {"held_up": sum(held_up)}
        for name, (t, held_up) in rows.items()
    }


def host_seconds(run: Callable[[], object], calls: int) -> float:
    """The host's time of one call, the mean of ``calls``; nobody waits for the device."""
    began = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - began) / calls
