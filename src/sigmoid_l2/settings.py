"""The settings of the process.

Each has the value that the program has set, else that of an environment variable, else a default:

    set by                     environment variable       default
    set_num_threads            SIGMOID_L2_NUM_THREADS     the least of NUMBA_NUM_THREADS, OMP_NUM_THREADS
                                                          and the processors that this process may use
    set_device_memory_limit    SIGMOID_L2_DEVICE_MEMORY   256 MiB
    set_kept_memory_limit      SIGMOID_L2_KEPT_MEMORY     1 GiB
    set_streaming_threshold    SIGMOID_L2_STREAMING       twice the level 2 caches of the threads
    ``backend``, in each call  SIGMOID_L2_BACKEND         "auto", which the variable replaces; it is in dispatch.py
"""

import contextlib
import operator
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from sigmoid_l2 import processors

Value = TypeVar("Value")


@dataclass
class Setting(Generic[Value]):
    """One setting."""

    name: str  # of the argument that sets it
    variable: str  # its environment variable
    default: Callable[[], Value]
    read: Callable[[str, Any], Value]  # (what, value): the value, or a ValueError in which it is called ``what``
    when_set: Callable[[], object] = lambda: None
    value: Value | None = None  # what the program has set

    def __post_init__(self) -> None:
        """Encode the variable's name."""
        self.encoded = os.fsencode(self.variable)

    def set(self, value: Any) -> None:
        """Set it for the whole process; None goes back to the environment variable or the default."""
        self.value = None if value is None else self.read(self.name, value)
        self.when_set()

    def get(self) -> Value:
        """The value that holds now."""
        if self.value is not None:
            return self.value
        # That a variable is not set costs os.environ.get two exceptions, 0.9 us, an eighth of a small call. CPython's
        # dict in it, which has bytes but on Windows, tells that at once; where it is missing, os.environ.get is asked.
        data = getattr(os.environ, "_data", (self.variable,))
        if self.variable not in data and self.encoded not in data:
            return self.default()
        text = os.environ.get(self.variable)
        return self.read(f"the environment variable {self.variable}", text) if text else self.default()


def read_whole(least: int, what: str, value: int | str) -> int:
    """``value`` as an integer; ValueError, which calls it ``what``, where it is not a whole number >= ``least``."""
    try:
        number = int(value) if isinstance(value, str) else operator.index(value)
    except (TypeError, ValueError):
        number = least - 1
    if number < least or isinstance(value, bool):
        raise ValueError(f"{what} must be a whole number of at least {least}, not {value!r}")
    return number


def _others() -> tuple[str | bytes | None, str | bytes | None]:
    """What NUMBA_NUM_THREADS and OMP_NUM_THREADS say, by which schedulers, joblib and Dask limit each process."""
    data: Any = getattr(os.environ, "_data", os.environ)  # as in ``Setting.get``, for speed
    return (
        data.get("NUMBA_NUM_THREADS") or data.get(b"NUMBA_NUM_THREADS"),
        data.get("OMP_NUM_THREADS") or data.get(b"OMP_NUM_THREADS"),
    )


def _limit_of_others(text: str | bytes | None) -> int:
    """The number that one of them has; what is no whole number of at least 1 is theirs to complain of, and no limit."""
    with contextlib.suppress(ValueError):
        return read_whole(1, "", os.fsdecode(text or "").partition(",")[0])  # OpenMP's is a list, by nesting level
    return sys.maxsize


@lru_cache
def _least(count: int, *others: str | bytes | None) -> int:
    return min(count, *map(_limit_of_others, others))


def _default_threads() -> int:
    return _least(processors.count(), *_others())


def where_num_threads_is_from() -> str:
    """What sets the number of threads: ``set_num_threads``, an environment variable, or what limits it."""
    if NUM_THREADS.value is not None:
        return "set_num_threads"
    if os.environ.get(NUM_THREADS.variable):
        return NUM_THREADS.variable
    numba, openmp = map(_limit_of_others, _others())
    limits = processors.limits() | {"NUMBA_NUM_THREADS": numba, "OMP_NUM_THREADS": openmp}
    return min(limits, key=lambda name: limits[name])


@cache
def _level_2_bytes(folder: str = "/sys/devices/system/cpu/cpu0/cache") -> int:
    """The size of a processor's level 2 cache; 1 MiB where the system does not tell."""
    for cache_ in Path(folder).glob("index*"):
        with contextlib.suppress(OSError, ValueError):
            if (cache_ / "level").read_text(encoding="ascii").strip() == "2":
                return int((cache_ / "size").read_text(encoding="ascii").strip().removesuffix("K")) << 10
    return 1 << 20


NUM_THREADS = Setting("threads", "SIGMOID_L2_NUM_THREADS", _default_threads, partial(read_whole, 1))
DEVICE_MEMORY = Setting("nbytes", "SIGMOID_L2_DEVICE_MEMORY", lambda: 256 << 20, partial(read_whole, 1))
# The default is enough for a loop that holds results of 500 MB, 10^7 pairs of 3x3 in float32, while it computes the
# next. The system can take what is kept, whenever it needs memory.
KEPT_MEMORY = Setting("nbytes", "SIGMOID_L2_KEPT_MEMORY", lambda: 1 << 30, partial(read_whole, 0))
# On 2 cores of an Intel Xeon, with 2 MiB of level 2 each, a call and a reader of its results take as long with either
# kind of store at 10 MB of 3x3 pairs and below 5 MB of 64x64 pairs (python bench/bench_cpu.py reader).
STREAMING = Setting(
    "nbytes", "SIGMOID_L2_STREAMING", lambda: 2 * get_num_threads() * _level_2_bytes(), partial(read_whole, 0)
)


def set_num_threads(threads: int | None) -> None:
    """Set how many threads a call may use on the CPU, for the whole process; None goes back to the default.

    The default is the environment variable SIGMOID_L2_NUM_THREADS or, where it is not set, the least of what
    NUMBA_NUM_THREADS and OMP_NUM_THREADS say, if they do, and of the processors that this process may run on, by its
    CPU affinity and the limits of its control groups. Raises ValueError for less than 1.
    """
    NUM_THREADS.set(threads)


def get_num_threads() -> int:
    """The number of threads a call may use on the CPU; see ``set_num_threads``."""
    return NUM_THREADS.get()


def set_device_memory_limit(nbytes: int | None) -> None:
    """Set how many bytes of device memory a call with host arrays may use, for the whole process; None: the default.

    The default is the environment variable SIGMOID_L2_DEVICE_MEMORY or, where it is not set, 256 MiB. Up to twice as
    much pinned host memory is used. A single pair that needs more than the limit gets what it needs, and the workspace
    that a kernel needs for pairs which many blocks share comes on top. Raises ValueError for less than 1.
    """
    DEVICE_MEMORY.set(nbytes)


def get_device_memory_limit() -> int:
    """The bytes of device memory that a call with host arrays may use; see ``set_device_memory_limit``."""
    return DEVICE_MEMORY.get()


def set_kept_memory_limit(nbytes: int | None) -> None:
    """Set how many bytes of memory of earlier results the process may keep for later ones; None: the default, 0: none.

    The default is the environment variable SIGMOID_L2_KEPT_MEMORY or, where it is not set, 1 GiB. Results of at least
    32 MiB count from the call that returns them, the latest first; those within the limit leave their memory to later
    calls when nobody holds them any longer. The system can take such memory back at any time. Raises ValueError for
    less than 0.
    """
    KEPT_MEMORY.set(nbytes)


def get_kept_memory_limit() -> int:
    """The bytes of memory of earlier results that the process may keep; see ``set_kept_memory_limit``."""
    return KEPT_MEMORY.get()


def set_streaming_threshold(nbytes: int | None) -> None:
    """Set from how many bytes of results on a call on the CPU writes past the caches; None goes back to the default.

    That is faster, but who reads the results finds them in memory and not in a cache. The default is the environment
    variable SIGMOID_L2_STREAMING or, where it is not set, twice the size of the threads' level 2 caches. A call with at
    most 2**15 elements of W never writes past the caches; nor does one on a processor without AVX2. Raises ValueError
    for less than 0.
    """
    STREAMING.set(nbytes)


def get_streaming_threshold() -> int:
    """The bytes of results from which on a call on the CPU writes past the caches; see ``set_streaming_threshold``."""
    return STREAMING.get()
