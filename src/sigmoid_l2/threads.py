"""The threads that CPU kernels share: ranges of the batch on a pool of our own.

Not numba's prange: concurrent calls of ``parallel=True`` functions abort the process under its only guaranteed
threading layer, and GNU OpenMP kills forked children. Threads of our own have neither problem, because the compiled
kernels release the GIL.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

# Less work than this many multiply-adds is done before a second thread has woken up (about 10 us).
SERIAL_WORK = 1 << 14


def num_threads() -> int:
    """The number of threads a call may use: the processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=num_threads(), thread_name_prefix="sigmoid-l2")


if hasattr(os, "register_at_fork"):  # a forked child inherits the pool's object but none of its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def for_ranges(size: int, work: int, run: Callable[[int, int], object]) -> None:
    """Call ``run(first, last)`` on ranges that cover ``range(size)`` once, on all threads; ``work`` is the total cost.

    The calling thread takes a range itself. An exception of any range is raised here, after all have ended.
    """
    parts = 1 if work < SERIAL_WORK else min(num_threads(), size)
    bounds = [size * part // parts for part in range(parts + 1)]
    futures = [_pool().submit(run, bounds[part], bounds[part + 1]) for part in range(1, parts)]
    try:
        run(bounds[0], bounds[1])
    finally:
        errors = [future.exception() for future in futures]
    for error in errors:
        if error is not None:
            raise error
