"""How many threads the CPU kernels use, and the pool they run on.

Not numba's prange: concurrent calls of ``parallel=True`` functions abort the process under its only guaranteed
threading layer, and GNU OpenMP kills forked children. Threads of our own have neither problem, because the compiled
kernels release the GIL.
"""

import contextlib
import math
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

ENVIRONMENT_VARIABLE = "SIGMOID_L2_NUM_THREADS"

# Elements of W for which another thread is worth waking, which takes about 20 us.
THREAD_WORK = 1 << 15
# Ranges for each thread, on average: it takes the next when it is done with one, so who is held up holds up little.
RANGES = 4

_chosen: int | None = None


def set_num_threads(threads: int | None) -> None:
    """Set how many threads a call may use on the CPU, for the whole process; None goes back to the default.

    The default is the environment variable SIGMOID_L2_NUM_THREADS or, where it is not set, the processors that this
    process may run on, by its CPU affinity and its control group's limit. Raises ValueError for less than 1.
    """
    global _chosen
    _chosen = None if threads is None else _positive("threads", threads)
    _pool.cache_clear()  # idle threads of a pool that nobody refers to end


def get_num_threads() -> int:
    """The number of threads a call may use on the CPU; see ``set_num_threads``."""
    if _chosen is not None:
        return _chosen
    setting = os.environ.get(ENVIRONMENT_VARIABLE)
    return _positive(f"the environment variable {ENVIRONMENT_VARIABLE}", setting) if setting else _processors()


def _positive(what: str, value: int | str) -> int:
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1 or isinstance(value, float):
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


@cache
def _pool(helpers: int) -> ThreadPoolExecutor:
    # As many as one call uses, which calls at the same time share. A larger pool would grow from call to call (to 57
    # threads where 3 were set): it starts one whenever none is idle, and the last call's take a moment to be so again.
    return ThreadPoolExecutor(max_workers=helpers, thread_name_prefix="sigmoid-l2")


if hasattr(os, "register_at_fork"):  # a forked child inherits the pool's object but none of its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


class _Ranges:
    """The ranges of one call: those left to do, how many helpers are at one, and what went wrong."""

    def __init__(self, size: int, step: int, run: Callable[[int, int], object]) -> None:
        self.size, self.step, self.run = size, step, run
        self.left = deque(range(0, size, step))
        self.helpers = 0
        self.errors: list[BaseException] = []
        self.changed = threading.Condition()

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
        with self.changed:
            self.helpers += 1
        try:
            while self.run_next():
                pass
        except BaseException as error:  # for the caller
            self.left.clear()
            self.errors.append(error)
        finally:
            with self.changed:
                self.helpers -= 1
                self.changed.notify_all()

    def finish(self) -> None:
        """Begin no more ranges, and wait for those that helpers are at, also through Ctrl-C."""
        interrupt = None
        self.left.clear()
        while self.helpers:
            try:
                with self.changed:
                    self.changed.wait_for(lambda: not self.helpers)
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt:
            raise interrupt


def for_ranges(size: int, work: int, run: Callable[[int, int], object]) -> None:
    """Call ``run(first, last)`` on ranges that cover ``range(size)`` once, on all threads; ``work`` is the total cost.

    The calling thread takes ranges too and needs no other to finish. An exception of any range is raised here, after
    all that were begun have ended.
    """
    most = get_num_threads() if work > THREAD_WORK else 1
    threads = min(most, work // THREAD_WORK, size)
    if threads <= 1:
        run(0, size)
        return
    step = math.ceil(size / (threads * RANGES))
    if step > 256:
        step = step // 64 * 64  # whole blocks of every kernel, whole cache lines of every output
    ranges = _Ranges(size, step, run)
    # Raised where no thread can be started: by the interpreter while it shuts down, or by the system's limit. The pool
    # may run the helper later nevertheless; it will find nothing left.
    with contextlib.suppress(RuntimeError):
        for _ in range(threads - 1):
            _pool(most - 1).submit(ranges.help)
    try:
        while ranges.run_next():
            pass
    finally:
        ranges.finish()
    if ranges.errors:
        raise ranges.errors[0]
