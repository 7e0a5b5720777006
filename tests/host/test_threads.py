"""How many threads a call uses, and that ranges are shared out rightly: once each, at most so many at a time."""

import gc
import os
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from processes import run_python

import sigmoid_l2 as sl2
from sigmoid_l2 import processors, settings, threads


@pytest.fixture(autouse=True)
def default_number(monkeypatch):
    """Every test begins and ends with the default, whatever the environment says."""
    monkeypatch.delenv(settings.NUM_THREADS.variable, raising=False)
    sl2.set_num_threads(None)
    yield
    sl2.set_num_threads(None)


@pytest.fixture
def any_work(monkeypatch):
    """Threads are worth waking for any work."""
    monkeypatch.setattr(threads, "THREAD_WORK", 1)
    monkeypatch.setattr("sigmoid_l2.kernels.cpu.launch.SMALL", 0)


class Recorder:
    """A ``run`` that keeps its ranges and threads and how many ran at once.

    The first ``together`` ranges wait for each other; then each calls ``then(first)``.
    """

    def __init__(self, together=1, then=lambda first: None):
        self.ranges, self.threads, self.running, self.most = [], set(), 0, 0
        self._barrier, self._then, self._lock = threading.Barrier(together), then, threading.Lock()

    def __call__(self, first, last):
        with self._lock:
            self.ranges.append((first, last))
            self.threads.add(threading.get_ident())
            self.running += 1
            self.most = max(self.most, self.running)
            waits = len(self.ranges) <= self._barrier.parties
        try:
            if waits:
                self._barrier.wait(timeout=60)
            self._then(first)
        finally:
            with self._lock:
                self.running -= 1

    def assert_covers(self, size):
        elements = [e for first, last in self.ranges for e in range(first, last)]
        assert sorted(elements) == list(range(size)), "each element once"


CALLS = """
import os, sys, threading
import numpy as np
import sigmoid_l2 as sl2

if sys.argv[1] == "affinity":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
else:
    sl2.set_num_threads(int(sys.argv[1]))
for _ in range(100):
    sl2.value(np.zeros((100_000, 2, 2)), np.zeros((100_000, 2)), backend="numba")
print(sl2.get_num_threads(), sum(t.name.startswith("sigmoid-l2") for t in threading.enumerate()))
"""


@pytest.mark.parametrize("setting", ["1", "3", "affinity"])
def test_threads_of_a_process(setting):
    """Many calls together start no more threads than one uses, and none where there is one processor for it."""
    pytest.importorskip("numba")
    if setting == "affinity" and not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no CPU affinity")
    number, helpers = map(int, run_python(CALLS, setting).split())
    assert number == (3 if setting == "3" else 1)
    assert (1 <= helpers <= 2) if setting == "3" else helpers == 0


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("size", [1, 4, 7, 40, 1000, 5000])
def test_as_many_threads_as_set(number, size, any_work):
    """All of them take part, because the first ranges wait for each other, and never one more."""
    sl2.set_num_threads(number)
    expected = min(number, size)
    run = Recorder(expected)
    threads.for_ranges(size, size + 1, run)
    run.assert_covers(size)
    assert run.most == len(run.threads) == expected
    assert threading.get_ident() in run.threads


def test_small_work_stays_in_the_calling_thread():
    sl2.set_num_threads(8)
    run = Recorder()
    threads.for_ranges(1000, threads.THREAD_WORK, run)
    assert run.ranges == [(0, 1000)]
    assert run.threads == {threading.get_ident()}


@pytest.mark.parametrize("who", ["the caller", "another thread"])
def test_exceptions_reach_the_caller(who, any_work, monkeypatch):
    """Once all ranges that had begun have ended, and without going through the others."""
    monkeypatch.setattr(threads, "RANGES", 500)
    sl2.set_num_threads(3)
    caller, lock = threading.get_ident(), threading.Lock()

    def fail(first):
        if (threading.get_ident() == caller) == (who == "the caller") and lock.acquire(blocking=False):
            raise ArithmeticError(f"range {first}")
        time.sleep(0.005)

    run = Recorder(3, fail)
    with pytest.raises(ArithmeticError, match="range"):
        threads.for_ranges(1500, 1501, run)
    assert run.running == 0
    begun = len(run.ranges)
    assert begun < 1500, "the other ranges were dropped"
    time.sleep(0.05)
    assert len(run.ranges) == begun
    after = Recorder(3)
    threads.for_ranges(100, 101, after)  # and the pool is as before
    after.assert_covers(100)


@pytest.mark.parametrize("started", [0, 1])
def test_without_new_threads(started, any_work, monkeypatch):
    """As while the interpreter shuts down: those that there are finish, the caller alone if need be."""
    sl2.set_num_threads(4)
    with ThreadPoolExecutor(1) as real:
        left = [real.submit] * started

        class Pool:
            def __init__(self, helpers):
                assert helpers == 3

            def submit(self, function):
                if not left:
                    raise RuntimeError("cannot schedule new futures after interpreter shutdown")
                return left.pop()(function)

        monkeypatch.setattr(threads, "_pool", Pool)
        run = Recorder(1 + started)
        threads.for_ranges(100, 101, run)
    run.assert_covers(100)
    assert len(run.threads) == 1 + started


def test_many_callers_at_once(any_work):
    """Each call has its own ranges and at most its own number of threads."""
    sl2.set_num_threads(3)
    start = threading.Barrier(8)

    def call(k):
        start.wait(timeout=60)
        for size in range(1, 60):
            run = Recorder(then=lambda first: time.sleep(0) if first % 3 == k % 3 else None)
            threads.for_ranges(size, size + 1, run)
            run.assert_covers(size)
            assert run.most <= 3
        return True

    with ThreadPoolExecutor(8) as callers:
        assert all(callers.map(call, range(8)))


def test_threads_of_all_callers_together(any_work):
    """Callers at once share the helpers: 4 of them with 3 threads each run on 4 + 2, which meet here."""
    sl2.set_num_threads(3)
    run = Recorder(4 + 2)
    with ThreadPoolExecutor(4) as callers:
        list(callers.map(lambda _: threads.for_ranges(40, 41, run), range(4)))
    assert run.most == len(run.threads) == 4 + 2


@pytest.mark.parametrize("variable", ["SIGMOID_L2_NUM_THREADS", "OMP_NUM_THREADS"])
def test_another_number_ends_the_helpers_of_the_last(variable, any_work, monkeypatch):
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    monkeypatch.setattr(processors, "count", lambda: 8)

    def helpers():
        return sum(thread.name == "sigmoid-l2" for thread in threading.enumerate())

    for number in (5, 3, 4):
        monkeypatch.setenv(variable, str(number))
        run = Recorder(number)
        threads.for_ranges(40, 41, run)
        assert run.most == number
        deadline = time.monotonic() + 60
        while helpers() > number - 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert helpers() == number - 1


def test_an_error_keeps_nothing_alive(any_work):
    """What a range holds goes with the exception, and waits for no run of the garbage collector."""

    class Held:
        pass

    held, raised = Held(), threading.Event()
    watch = weakref.ref(held)

    def run(first, last, held=held):
        if threading.current_thread() is threading.main_thread():
            raised.wait(10)
        else:
            raised.set()
            raise ValueError

    sl2.set_num_threads(2)
    gc.disable()
    try:
        caught = False
        try:
            threads.for_ranges(8, 1 << 20, run)
        except ValueError:
            caught = True
        assert caught
        del run, held
        deadline = time.monotonic() + 10  # until the helper has left its function
        while watch() is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert watch() is None
    finally:
        gc.enable()
