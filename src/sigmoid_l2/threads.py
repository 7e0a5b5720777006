"""How many threads the CPU kernels use, and the pool they run on.

Not numba's prange: concurrent calls of ``parallel=True`` functions abort the process under its only guaranteed
threading layer, and GNU OpenMP kills forked children. Threads of our own have neither problem, because the compiled
kernels release the GIL.
"""

import contextlib
import math
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
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


def for_ranges(size: int, work: int, run: Callable[[int, int], object]) -> None:
    """Call ``run(first, last)`` on ranges that cover ``range(size)`` once, on all threads; ``work`` is the total cost.

    The calling thread takes ranges too and needs no other to finish. An exception of any range is raised here, after
    all have ended.
    """
    most = get_num_threads() if work > THREAD_WORK else 1
    threads = min(most, work // THREAD_WORK, size)
    if threads <= 1:
        run(0, size)
        return
    step = math.ceil(size / (threads * RANGES))
    if step > 256:
        step = step // 64 * 64  # whole blocks of every kernel, whole cache lines of every output
    todo = deque(range(0, size, step))  # safe to take from in many threads at once

    def run_some() -> None:
        try:
            while True:
                try:
                    first = todo.popleft()
                except IndexError:
                    return
                run(first, min(first + step, size))
        finally:
            todo.clear()  # after an exception nobody need go on

    helpers: list[Future[None]] = []
    with contextlib.suppress(RuntimeError):  # raised while the interpreter shuts down: it starts no more threads
        helpers.extend(_pool(most - 1).submit(run_some) for _ in range(threads - 1))
    try:
        run_some()
    finally:
        errors = [helper.exception() for helper in helpers if not helper.cancel()]
    for error in errors:
        if error is not None:
            raise error
