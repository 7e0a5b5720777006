"""Ranges of the batch on all threads of a pool: how the CPU kernels, and copies to and from a GPU, run in parallel.

This is not numba's prange: concurrent calls of ``parallel=True`` functions abort the process under the only threading
layer that numba always has, and GNU OpenMP kills forked children. Threads of our own have neither problem, because the
compiled kernels release the GIL.
"""

import contextlib
import math
import os
import threading
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from queue import SimpleQueue
from typing import Any

import numpy as np

from sigmoid_l2.settings import NUM_THREADS
from sigmoid_l2.settings import get_num_threads as get_num_threads  # for the kernels too

# Elements of W for each thread, at least. A helper begins 10 to 20 us after it is called, the caller goes on 10 us
# after its end, and two cores are at most 1.65 times as fast as one here (Intel Xeon, Sapphire Rapids). With 2^18
# elements two threads take 1.0 of the time of one at 3x3, 0.9 at 32x32 and 256x256, 1.04 at 10x784, and with 2^17 up to
# 1.5 times as long.
THREAD_WORK = 1 << 17
# Ranges per thread, on average, of a large call. A slow thread takes fewer, and the others do not wait long for it.
RANGES = 4
# Size of a range, in units of THREAD_WORK, at least, where there are more ranges than threads. Between two ranges a
# thread may wait for the interpreter's lock: with 8 ranges in place of 2, 3x3 takes 1.5 times as long with 2^17
# elements, 1.2 times with 2^19 and 1.1 times with 2^21.
RANGE_LEAST = 8
# Threads of one call, at most, whatever the setting: we know of no machine whose memory is faster with more.
MAX_THREADS = 1024
# Elements of W in a range, at most: about 50 ms of work, because a signal's handler waits until the range has ended.
RANGE_WORK = 1 << 26


class _Pool:
    """Daemon threads, at most ``helpers``, that run what is submitted to them; concurrent calls share them.

    It is not a ThreadPoolExecutor: when the handler of a signal raises within ``submit``, a lock of the executor can
    stay locked, and the next call waits for it forever. Here each use of the queue and of the list is one step.
    """

    def __init__(self, helpers: int) -> None:
        self.work: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self.helpers = helpers
        self.to_start = [None] * helpers

    def submit(self, function: Callable[[], object]) -> None:
        """Let a thread run ``function``, which must not raise. RuntimeError where a thread is needed and cannot start.

        ``function`` may still run later, although this raised.
        """
        self.work.put(function)
        with contextlib.suppress(IndexError):
            self.to_start.pop()
            try:
                threading.Thread(target=_work, args=(self.work,), name="sigmoid-l2", daemon=True).start()
            except RuntimeError:
                self.to_start.append(None)
                raise

    def __del__(self) -> None:
        for _ in range(self.helpers):
            self.work.put(None)


def _work(work: "SimpleQueue[Callable[[], object] | None]") -> None:
    """Run what is submitted. A thread of a pool has no reference to the pool: it ends when the pool is deleted."""
    for function in iter(work.get, None):
        function()
        del function  # and with it the arrays of the call


@lru_cache(maxsize=1)  # one pool at a time: another number of helpers deletes it, as the environment's may come to be
def _pool(helpers: int) -> _Pool:
    return _Pool(helpers)


NUM_THREADS.when_set = _pool.cache_clear  # it deletes the pool of the old number
if hasattr(os, "register_at_fork"):  # a forked child inherits the pool's object but none of its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


_here = threading.local()  # of each thread


def _is_in_range() -> bool:
    """Whether this thread runs a range: then others run the other ranges, and within one there is nothing to share."""
    return getattr(_here, "is_in_range", False)


class _Ranges:
    """The ranges of one call: those that nobody has begun, the threads that help, and the errors."""

    def __init__(self, size: int, step: int, run: Callable[[int, int], object]) -> None:
        self.size, self.step, self.run = size, step, run
        self.left = deque(range(0, size, step))
        self.helping: set[int] = set()
        self.ended: SimpleQueue[None] = SimpleQueue()
        self.errors: list[BaseException] = []

    def run_next(self) -> bool:
        """Run one range, if any is left."""
        try:
            first = self.left.popleft()
        except IndexError:
            return False
        outer, _here.is_in_range = _is_in_range(), True
        try:
            self.run(first, min(first + self.step, self.size))
        finally:
            _here.is_in_range = outer
        return True

    def help(self) -> None:
        """Run ranges on a thread of the pool until none is left."""
        self.helping.add(threading.get_ident())
        try:
            while self.run_next():
                pass
        except BaseException as error:  # the calling thread raises it
            self.left.clear()
            self.errors.append(error)
        finally:
            self.helping.remove(threading.get_ident())
            self.ended.put(None)

    def finish(self) -> None:
        """Begin no more ranges, and wait for those that helpers run, whatever the handler of a signal raises."""
        raised = None
        self.left.clear()
        while self.helping:
            try:
                self.ended.get()
            except BaseException as error:  # Ctrl-C, or a time limit
                raised = error
        if raised:
            try:
                raise raised
            finally:
                del raised  # else it refers to itself through this frame, and so to the arrays of the call


def for_ranges(size: int, work: int, run: Callable[[int, int], object]) -> None:
    """Call ``run(first, last)`` on ranges that cover ``range(size)`` once, on all threads.

    ``work`` is the total work in elements of W. The calling thread runs ranges too, and can run all of them alone. An
    exception in any range is raised here, once every range that has begun has ended; so is an exception of a signal's
    handler, which runs between two ranges. Within a range, this runs all of it on the thread that it is called on.
    """
    most = min(get_num_threads(), MAX_THREADS) if work > THREAD_WORK and not _is_in_range() else 1
    threads = max(1, min(most, work // THREAD_WORK, size))
    count = min(threads * RANGES, work // (RANGE_LEAST * THREAD_WORK)) if threads > 1 else 1
    count = max(count, threads, work // RANGE_WORK)
    if count == 1:
        run(0, size)
        return
    step = min(math.ceil(size / count), size // threads)  # a range for each thread, however small the size
    if step > 256:
        step = step // 64 * 64  # whole blocks of every kernel, whole cache lines of every output
    ranges = _Ranges(size, step, run)
    try:
        # submit() raises where no thread can start: while the interpreter shuts down, or at a limit of the system.
        with contextlib.suppress(RuntimeError):
            for _ in range(threads - 1):
                _pool(most - 1).submit(ranges.help)
        while ranges.run_next():
            pass
        ranges.finish()
    finally:
        ranges.finish()  # again: where an exception comes before the first, no helper may go on
    if ranges.errors:
        try:
            raise ranges.errors[0]
        finally:
            ranges.errors.clear()  # else the exception refers to itself, and so to the arrays of the call


def copy(to: Any, values: Any) -> None:
    """Copy NumPy's array ``values``, which broadcasts to ``to``, and convert the values, on all threads."""

    def copy_range(first: int, last: int) -> None:
        with np.errstate(all="ignore"):  # of this thread: a value beyond the range of a shorter dtype is infinite
            np.copyto(to[first:last], values[first:last])

    if to.size <= THREAD_WORK:
        with np.errstate(all="ignore"):
            np.copyto(to, values)
        return
    values = np.broadcast_to(values, to.shape)
    while len(to) == 1:
        to, values = to[0], values[0]
    for_ranges(len(to), to.size, copy_range)
