"""Two parts of bench_gpu: what the host spends on a small call, and what a call with outputs given must not do."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any
from unittest import mock

from copies import Copy
from measure import seconds, spread
from results import Row, one_line, row
from shared import SharedCase, work_of
from workload import Case, Run, Workload, wait

import sigmoid_l2 as sl2

SMALL = [Case("gpu", "float32", 3, 3, B) for B in (1, 1000)]
# Calls in a row of which a round has the mean, and rounds.
SMALL_CALLS, SMALL_ROUNDS = 500, 11
# Calls that must keep the promises: of one kernel, of two with partial sums in a workspace, and with one W for many x.
PROMISES = [Case("gpu", "float32", m, n, B) for m, n, B in ((3, 3, 1000), (2000, 20, 50))]
PROMISES += [SharedCase("gpu", "float32", m, n, B) for m, n, B in ((5, 3, 10_000), (10, 784, 1000))]
# Copies of 130 MB that are queued before a call: 13 ms at 4.8 TB/s.
AHEAD = 500


def empty_kernel(work: Workload, backend: str) -> Run:
    """The launch of a kernel that does nothing, through the framework of ``backend``, on W, x, loss, dW and dx.

    It gets the framework's own arrays, so that nothing is converted.
    """
    import cupy

    W, x, B = work.W, work.x, len(work.W)
    if backend == "cupy":
        kernel = empty_cupy_kernel()
        return lambda: kernel(W, x, B, *work.out, size=128, block_size=128)
    from numba import cuda

    def nothing(W: Any, x: Any, loss: Any, dW: Any, dx: Any, B: Any) -> None:
        pass

    handle = cupy.cuda.get_current_stream().ptr
    launch = cuda.jit(nothing)[1, 128, cuda.external_stream(handle) if handle else 0]
    own = [cuda.as_cuda_array(a.reshape(-1), sync=False) for a in (W, x, *work.out)]
    return lambda: launch(*own, B)


def empty_cupy_kernel() -> Any:
    """A kernel that takes W, x, loss, dW and dx as one would write it, and does nothing."""
    import cupy

    inputs, outputs = "raw T W, raw T x, int64 B", "raw T loss, raw T dW, raw T dx"
    return cupy.ElementwiseKernel(inputs, outputs, ";", "sigmoid_l2_nothing", no_return=True)


def small(cases: list[Case], backends: list[str]) -> Iterator[list[Row]]:
    """What the host spends on a small call, beside the launch of an empty kernel, and the launch of a graph of it."""
    whats = {"call": Workload.call, "empty kernel": empty_kernel, "graph": graph_launch}
    for case, backend in product(cases, backends):
        print(f"small: {backend}, {case}", file=sys.stderr)
        work = Workload(case)
        runs: dict[str, Run] = {}
        rows = []
        for what, build in whats.items():
            try:
                run = build(work, backend)
                run()
                runs[what] = run
            except Exception as error:  # one of them: the others are measured
                rows.append(row("small", case, backend, what=what, reason=one_line(error)))
        times: dict[str, list[float]] = {what: [] for what in runs}
        for _ in range(SMALL_ROUNDS):
            for what, run in runs.items():
                wait("gpu")
                times[what].append(seconds(run, SMALL_CALLS))
        wait("gpu")
        yield rows + [row("small", case, backend, what=what) | spread(t)._asdict() for what, t in times.items()]


def graph_launch(work: Workload, backend: str) -> Run:
    """The launch of a CUDA graph of a call, captured in the mode that forbids allocating and synchronising.

    It has written the results again.
    """
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)
    sl2.value_and_grad(work.W, work.x, out=work.out, backend=backend, stream=stream)
    stream.synchronize()
    with stream:
        stream.begin_capture(cupy.cuda.runtime.streamCaptureModeGlobal)
        try:
            sl2.value_and_grad(work.W, work.x, out=work.out, backend=backend, stream=stream)
        finally:
            graph = stream.end_capture()
    work.poison()
    wait("gpu")
    graph.launch(stream)
    stream.synchronize()
    work.check(work.out)
    return lambda: graph.launch(stream)


def promises(cases: list[Case], backends: list[str]) -> Iterator[list[Row]]:
    """Whether a call with outputs given allocates nothing, does not wait for the device, and can be captured."""
    # Without a right graph there is an exception.
    whats = {
        "bytes allocated": allocated,
        "waits": waits,
        "graph is right": lambda *call: callable(graph_launch(*call)),
    }
    for case, backend, what in product(cases, backends, whats):
        print(f"promises: {backend}, {case}, {what}", file=sys.stderr)
        try:
            work = work_of(case)
            work.call(backend)
            value = {"value": whats[what](work, backend)}
        except Exception as error:
            value = {"reason": one_line(error)}
        yield [row("promises", case, backend, what=what, **value)]


def allocated(work: Workload, backend: str) -> int:
    """Bytes that CuPy and numba were asked for during ten calls.

    The free memory of the device is not compared, because other processes may take some. A call that allocates without
    the two libraries cannot be captured, so the graph shows it.
    """
    import cupy

    asked = [0]

    class Count(cupy.cuda.MemoryHook):
        name = "count"

        def malloc_preprocess(self, **told: Any) -> None:
            asked[0] += told["size"]

    call = work.call(backend)
    wait("gpu")
    with Count(), numbas_allocations(backend, asked):
        for _ in range(10):
            call()
    return asked[0]


@contextmanager
def numbas_allocations(backend: str, asked: list[int]) -> Iterator[None]:
    """Add the bytes that numba is asked for to ``asked``."""
    if backend != "numba-cuda":
        yield
        return
    from numba import cuda

    manager = cuda.current_context().memory_manager
    allocate = manager.memalloc

    def counted(size: int) -> Any:
        asked[0] += size
        return allocate(size)

    with mock.patch.object(manager, "memalloc", counted):
        yield


def waits(work: Workload, backend: str) -> bool:
    """Whether a call returns only after the device has finished the milliseconds of earlier work."""
    import cupy

    call = work.call(backend)
    copy = Copy(Case("gpu", "float32", 64, 64, 4000))
    before = cupy.cuda.Event()
    wait("gpu")
    for _ in range(AHEAD):
        copy()
    before.record()
    call()
    waited = before.done
    wait("gpu")
    return bool(waited)
