"""How many processors this process may use: those that Python counts, its CPU affinity, its control groups' limits.

Control groups are read from the process's own group upwards, where each ancestor may have a limit: joblib and loky read
the topmost one alone, Dask the lowest, Python (``os.process_cpu_count``) none. What a control group's cpuset leaves the
kernel takes out of the affinity, so that file need not be read. On other systems than Linux there are no such files.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath


@cache
def limits() -> dict[str, int]:
    """The processors that each limit leaves, by what it is called. They are read once in a process."""
    found = {"processors": os.cpu_count() or 1}  # from Python 3.13 on PYTHON_CPU_COUNT is in it
    with contextlib.suppress(AttributeError, NotImplementedError, OSError):  # not on every system
        found["CPU affinity"] = len(os.sched_getaffinity(0))
    limit = control_group_limit()
    if limit < math.inf:
        found["control group"] = math.ceil(limit)
    return found


@cache
def count() -> int:
    """How many processors this process may use, the least of the ``limits``."""
    return min(limits().values())


if hasattr(os, "register_at_fork"):  # what starts workers may put each on processors of its own
    os.register_at_fork(after_in_child=limits.cache_clear)
    os.register_at_fork(after_in_child=count.cache_clear)


def control_group_limit(process: str = "/proc/self") -> float:
    """The processors' worth of time that the control groups, version 1 or 2, grant; inf where there is no limit."""
    try:
        return min((limit for folder in _groups(Path(process)) for limit in _limits(folder)), default=math.inf)
    except (OSError, ValueError):  # no such files, or not in their form
        return math.inf


def _groups(process: Path) -> Iterator[Path]:
    """The folders of the groups that limit the process's time: its own and their ancestors, as far as they are seen."""
    groups: dict[str, PurePosixPath] = {}
    for line in _lines(process / "cgroup"):  # hierarchy:controllers:path, in version 2 without controllers
        _, controllers, path = line.split(":", 2)
        groups |= dict.fromkeys(controllers.split(","), PurePosixPath(path))
    for line in _lines(process / "mountinfo"):  # ... root mount ... - type source options
        where, _, what = line.partition(" - ")
        kind, *options = what.replace(",", " ").split()
        controller = "" if kind == "cgroup2" else "cpu"
        if controller not in groups or kind not in ("cgroup", "cgroup2") or controller not in ("", *options):
            continue
        root, mount = where.split()[3:5]
        group, top = groups[controller], Path(mount)
        # A container may see its own group as the topmost; then that is where the hierarchy is mounted.
        folder = top / group.relative_to(root) if group.is_relative_to(root) else top
        while folder != top:
            yield folder
            folder = folder.parent
        yield top


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8", errors="surrogateescape").strip("\n").split("\n")


def _limits(folder: Path) -> Iterator[float]:
    """The limit of one group, if it has one: quota over period, of version 2 or 1."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError):  # no such file; "max"
            quota, period = (int(word) for name in names for line in _lines(folder / name) for word in line.split())
            if quota > 0 and period > 0:  # in version 1, -1 is no limit
                yield quota / period
