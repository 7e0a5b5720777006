"""How many threads the CPU kernels use, and the pool they run on.

Not numba's prange: concurrent calls of ``parallel=True`` functions abort the process under its only guaranteed
threading layer, and GNU OpenMP kills forked children. Threads of our own have neither problem, because the compiled
kernels release the GIL.
"""

import contextlib
import math
import operator
import os
import threading
from collections import deque
from collections.abc import Callable
from functools import cache
from pathlib import Path
from queue import SimpleQueue

ENVIRONMENT_VARIABLE = "SIGMOID_L2_NUM_THREADS"

# Elements of W for which another thread is worth waking, which takes about 20 us.
THREAD_WORK = 1 << 15
# Ranges for each thread, on average: it takes the next when it is done with one, so who is held up holds up little.
RANGES = 4
# Threads of one call at most, whatever is set: memory does not keep more busy, on any machine.
MAX_THREADS = 1024
# Elements of W in a range at most, about 50 ms of work, because the handler of a signal runs between two ranges.
RANGE_WORK = 1 << 26

_chosen: int | None = None


def set_num_threads(threads: int | None) -> None:
    """Set how many threads a call may use on the CPU, for the whole process; None goes back to the default.

    The default is the environment variable SIGMOID_L2_NUM_THREADS or, where it is not set, the processors that this
    process may run on, by its CPU affinity and its control group's limit. Raises ValueError for less than 1.
    """
    global _chosen
    _chosen = None if threads is None else positive("threads", threads)
    _pool.cache_clear()  # idle threads of a pool that nobody refers to end


def get_num_threads() -> int:
    """The number of threads a call may use on the CPU; see ``set_num_threads``."""
    if _chosen is not None:
        return _chosen
    setting = os.environ.get(ENVIRONMENT_VARIABLE)
    return positive(f"the environment variable {ENVIRONMENT_VARIABLE}", setting) if setting else _processors()


def positive(what: str, value: int | str) -> int:
    """``value`` as an integer; ValueError, which says what it is, where it is not a whole number of at least 1."""
    try:
        number = int(value) if isinstance(value, str) else operator.index(value)
    except (TypeError, ValueError):
        number = 0
    if number < 1 or isinstance(value, bool):
        raise ValueError(f"{what} must be a whole number of at least 1, not {value!r}")
    return number


@cache
def _processors() -> int:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(available, _control_group_limit())))


def _control_group_limit(path: str = "/sys/fs/cgroup/cpu.max") -> float:
    """The processors' worth of time that control group v2 grants (a container, say); inf where there is no limit."""
    try:
        quota, period = Path(path).read_text(encoding="ascii").split()
        return float(quota) / float(period)
    except (OSError, ValueError):  # no such file; "max"
        return math.inf


class _Pool:
    """Daemon threads, at most ``helpers``, that run what is submitted; all calls at a time share those of one pool.

    Not concurrent.futures': a signal's handler that raises within its ``submit`` can leave a lock of it locked, and the
    next call waits for that lock forever. What is used here of a queue and a list is one step, done or not.
    """

    def __init__(self, helpers: int) -> None:
        self.work: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self.helpers = helpers
        self.to_start = [None] * helpers

    def submit(self, function: Callable[[], object]) -> None:
        """Have ``function`` run, which raises nothing. RuntimeError where no thread can be started for it."""
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
    """What a thread of a pool does; it does not refer to the pool, so that it ends with it."""
    while True:
        function = work.get()
        if function is None:
            return
        function()
        del function  # and with it the call's arrays


@cache
def _pool(helpers: int) -> _Pool:
    return _Pool(helpers)


if hasattr(os, "register_at_fork"):  # a forked child inherits the pool's object but none of its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


class _Ranges:
    """The ranges of one call: those left to do, the helpers that are at one, and what went wrong."""

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
        self.run(first, min(first + self.step, self.size))
        return True

    def help(self) -> None:
        """Run ranges on a thread of the pool until none is left."""
        self.helping.add(threading.get_ident())
        try:
            while self.run_next():
                pass
        except BaseException as error:  # for the caller
            self.left.clear()
            self.errors.append(error)
        finally:
            self.helping.remove(threading.get_ident())
            self.ended.put(None)

    def finish(self) -> None:
        """Begin no more ranges, and wait for those that helpers are at, whatever the handler of a signal raises."""
        raised = None
        self.left.clear()
        while self.helping:
            try:
                self.ended.get()
            except BaseException as error:  # Ctrl-C, or somebody's time limit
                raised = error
        if raised:
            raise raised


def for_ranges(size: int, work: int, run: Callable[[int, int], object]) -> None:
    """Call ``run(first, last)`` on ranges that cover ``range(size)`` once, on all threads; ``work`` is the total cost.

    The calling thread takes ranges too and needs no other to finish. An exception of any range is raised here, after
    all that were begun have ended. So is one of a signal's handler, which runs between two ranges.
    """
    most = min(get_num_threads(), MAX_THREADS) if work > THREAD_WORK else 1
    threads = min(most, work // THREAD_WORK, size)
    count = max(threads * RANGES if threads > 1 else 1, work // RANGE_WORK)
    if count == 1:
        run(0, size)
        return
    step = math.ceil(size / count)
    if step > 256:
        step = step // 64 * 64  # whole blocks of every kernel, whole cache lines of every output
    ranges = _Ranges(size, step, run)
    try:
        # Raised where no thread can be started: by the interpreter while it shuts down, or by the system's limit. The
        # pool may run the helper later nevertheless; it will find nothing left.
        with contextlib.suppress(RuntimeError):
            for _ in range(threads - 1):
                _pool(most - 1).submit(ranges.help)
        while ranges.run_next():
            pass
        ranges.finish()
    finally:
        ranges.finish()  # again: an exception on the way into the first must not leave a helper at work
    if ranges.errors:
        raise ranges.errors[0]
