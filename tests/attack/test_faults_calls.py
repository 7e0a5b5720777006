"""Calls among many threads, without memory, under signals, in forked processes and while the interpreter ends.

`make faults` does each of these more often. Workers that are started by fork, spawn and forkserver are in
test_same_bits.py.
"""

import os
import random
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from arrays import bits, pairs
from processes import run_python

import sigmoid_l2 as sl2
from attack.test_faults_files import IN_USE, has_in_use, often
from sigmoid_l2 import dispatch, threads

NAMES = [b.name for b in dispatch.BACKENDS if b.device == "cpu" and not b.reasons()]
each_backend = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def default_number():
    yield
    sl2.set_num_threads(None)


@pytest.mark.parametrize(("callers", "times"), [(8, 20), pytest.param(64, 200, marks=pytest.mark.faults)])
def test_many_callers(callers, times):
    """Mixed shapes, dtypes, layouts and backends, while the number of threads changes: the bits of serial calls."""
    calls = []
    for B, m, n in [(1, 1, 1), (5000, 3, 3), (20_000, 2, 2), (30, 12, 12), (3, 400, 5), (2, 150, 300), (0, 3, 3)]:
        for dtype in (np.float32, np.float64):
            W, x = pairs((B,), m, n, dtype)
            calls += [(W, x, name) for name in NAMES] + [(np.asfortranarray(W), x[::-1][::-1], name) for name in NAMES]
    sl2.set_num_threads(1)
    expected = [bits(sl2.value_and_grad(W, x, backend=name)) for W, x, name in calls]
    start = threading.Barrier(callers)

    def call(seed):
        chance = random.Random(seed)
        start.wait(60)
        for _ in range(times):
            if chance.random() < 0.1:
                sl2.set_num_threads(chance.choice([1, 2, 3, 8, None]))
            i = chance.randrange(len(calls))
            W, x, name = calls[i]
            if bits(sl2.value_and_grad(W, x, backend=name)) != expected[i]:
                return False
        return True

    with ThreadPoolExecutor(callers) as pool:
        assert all(pool.map(call, range(callers)))


@pytest.mark.skipif("numba" not in NAMES, reason="about the threads of the backend numba")
def test_idle_threads_keep_no_arrays():
    sl2.set_num_threads(4)
    W, x = np.ones((100_000, 3, 3)), np.ones((100_000, 3))
    before = sys.getrefcount(W)
    sl2.value(W, x, backend="numba")
    end = time.monotonic() + 30
    while sys.getrefcount(W) > before:  # a thread may be late
        assert time.monotonic() < end
        time.sleep(0.001)


# --- memory -------------------------------------------------------------------------------------------------------

MEMORY = """
import numpy as np, sigmoid_l2 as sl2

name, layout, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
B, m, n = map(int, sys.argv[4].split("x"))
rng = np.random.default_rng(0)
W, x = rng.standard_normal((B, m, n)), rng.standard_normal((B, n))
W = W if layout == "contiguous" else np.asfortranarray(W)
expected = sl2.value_and_grad(W, x, backend=name)  # compiled, and the threads are there
small = [a.tobytes() for a in sl2.value_and_grad(W[:1, :2, :2], x[:1, :2], backend=name)]
out = [np.empty(a.shape) for a in expected]
before = in_use()
outcomes = []
for given in (out, None):
    for more in np.linspace(-4 << 20, 10 * W.nbytes, steps, dtype=int):
        for a in out:
            a.fill(np.nan)
        resource.setrlimit(resource.RLIMIT_AS, (before + more, resource.RLIM_INFINITY))
        try:
            results = sl2.value_and_grad(W, x, out=given, backend=name)
            outcome = "results"
        except MemoryError:
            results, outcome = None, "MemoryError"
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        if results is None and not all(np.isnan(a).all() for a in out):
            outcome = "MemoryError, but something was written"
        if results is not None and not all(a.tobytes() == b.tobytes() for a, b in zip(results, expected)):
            outcome = "wrong results"
        results = None
        outcomes.append(outcome)
        assert [a.tobytes() for a in sl2.value_and_grad(W[:1, :2, :2], x[:1, :2], backend=name)] == small
print(", ".join(sorted(set(outcomes))))
"""
LARGE_SHAPES = ("100000x3x3", "3x1000x1000", "3x400000x2", "2x1x1000000")
LARGE = [pytest.param(shape, 100, marks=pytest.mark.faults) for shape in LARGE_SHAPES]


@has_in_use
@each_backend
@pytest.mark.parametrize("layout", ["contiguous", "Fortran"])
@pytest.mark.parametrize(("shape", "times"), [("100000x3x3", 8), *LARGE])
def test_memory_limit(name, layout, shape, times):
    """All or nothing at every limit, with ``out`` and without, and the next call works."""
    assert run_python(IN_USE + MEMORY, name, layout, times, shape) == "MemoryError, results\n"


COMPILE = """
import sigmoid_l2 as sl2
from sigmoid_l2.kernels.cpu import launch  # and numba, which needs more than the compiler does

for size, more in enumerate(map(int, sys.argv[1:]), 3):
    resource.setrlimit(resource.RLIMIT_AS, (in_use() + (more << 20), resource.RLIM_INFINITY))
    try:
        sl2.warmup((size, 3), backend="numba")
        print("compiled")
    except MemoryError:
        print("MemoryError")
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
sl2.warmup((2, 2), backend="numba")
"""


@has_in_use
@pytest.mark.skipif("numba" not in NAMES, reason="about numba's compiler")
@pytest.mark.parametrize(
    "limits", [[1, 400], pytest.param([*range(0, 400, 20), 400], marks=pytest.mark.faults)], ids=len
)
def test_memory_limit_of_the_compiler(limits, tmp_path):
    """LLVM ends the process where it gets no memory, so nothing is compiled where little is left."""
    outcomes = run_python(IN_USE + COMPILE, *limits, NUMBA_CACHE_DIR=tmp_path).split()
    assert len(outcomes) == len(limits)
    assert (outcomes[0], outcomes[-1]) == ("MemoryError", "compiled")


# --- signals ------------------------------------------------------------------------------------------------------


class LimitOfTimeError(Exception):
    """What the handler of a signal raises here."""


@pytest.fixture
def alarms():
    """A list to which each SIGALRM adds the time. If LimitOfTimeError comes first in it, the handler raises that."""
    seen = []

    def handler(*_):
        seen.append(time.perf_counter())
        if seen[0] is LimitOfTimeError:
            raise LimitOfTimeError

    before = signal.signal(signal.SIGALRM, handler)
    yield seen
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@each_backend
@pytest.mark.parametrize("number", [1, 2])
def test_a_handler_runs_during_a_call(name, number, alarms, monkeypatch):
    """It runs between two ranges, also with one thread, and changes no result."""
    monkeypatch.setattr(threads, "RANGE_WORK", 1 << 16)
    sl2.set_num_threads(number)
    W, x = np.ones((300_000, 3, 3)), np.ones((300_000, 3))
    expected = sl2.value_and_grad(W, x, backend=name)
    out = tuple(map(np.empty_like, expected))
    written = []  # the share of the losses that a handler found
    signal.signal(signal.SIGALRM, lambda *_: written.append(1 - np.isnan(out[0]).mean()))
    for _ in range(500):  # on a busy machine the only alarm of a call may come before it begins or after its end
        out[0].fill(np.nan)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        results = sl2.value_and_grad(W, x, out=out, backend=name)
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert bits(results) == bits(expected)
        if any(0 < share < 1 for share in written):
            return
    pytest.fail("no handler ran while a call was half done")


@each_backend
@often(50, 3000)
def test_a_handler_that_raises(name, alarms, times):
    """At any moment of a call: its threads have stopped by the time the exception is out, and the next call works."""
    sl2.set_num_threads(4)
    W, x = pairs((100_000 if name == "numba" else 10_000,), 3, 3)
    expected = sl2.value_and_grad(W, x, backend=name)
    out = [np.empty_like(a) for a in expected]
    begin = time.perf_counter()
    sl2.value_and_grad(W, x, out=out, backend=name)
    seconds, chance = time.perf_counter() - begin, random.Random(0)
    raised = 0
    alarms.append(LimitOfTimeError)
    for _ in range(times):
        try:
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, seconds))
            sl2.value_and_grad(W, x, out=out, backend=name)
            while True:  # until the alarm, which may come after the call
                time.sleep(seconds)
        except LimitOfTimeError:
            raised += 1
            for a in out:
                a.fill(np.nan)
            time.sleep(seconds / 2)
            assert all(np.isnan(a).all() for a in out), "something was written after the call"
    assert raised == times
    assert bits(sl2.value_and_grad(W, x, out=out, backend=name)) == bits(expected)


# --- processes ----------------------------------------------------------------------------------------------------

BUSY = """
import os, random, signal, sys, threading, time
import numpy as np, sigmoid_l2 as sl2

name, what = sys.argv[1:]
sl2.set_num_threads(3)
W, x = np.ones((30_000, 3, 3)), np.ones((30_000, 3))
expected, end = sl2.value(W, x, backend=name).tobytes(), time.monotonic() + 0.3

def call():
    while what == "daemon threads" or time.monotonic() < end:
        sl2.value_and_grad(W, x, backend=name)
        sl2.value_and_grad(np.asfortranarray(W), x, backend=name)

for _ in range(4):
    threading.Thread(target=call, daemon=what == "daemon threads").start()
time.sleep(random.random() / 10)
if what == "fork":
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a process that waits for a lock of another's ends itself
        os._exit(sl2.value(W, x, backend=name).tobytes() != expected)
    assert os.waitpid(child, 0)[1] == 0
"""


@each_backend
@pytest.mark.parametrize("what", ["daemon threads", "threads", "fork"])
@often(1, 50)
def test_while_threads_are_calling(name, what, times):
    """The interpreter exits, which waits for threads that are no daemons, or the process forks."""
    if what == "fork" and not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    for _ in range(times):
        assert run_python(BUSY, name, what, PYTHONWARNINGS="ignore") == ""
