"""numba's loggers: at DEBUG they tell thousands of lines of each compilation, and nothing to users of a kernel."""

import contextlib
import logging
import threading
from collections.abc import Iterator

# All loggers of numba and numba-cuda are below the first, those of numba-cuda's successor below the second.
_LOGGERS = tuple(map(logging.getLogger, ("numba", "numba_cuda_mlir")))
_lock = threading.Lock()
_within: set[object] = set()
_levels: dict[logging.Logger, int] = {}  # of those that are silent now: what was set


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within this, numba's loggers tell of warnings and errors alone. Any number of threads may be within.

    What another thread compiles meanwhile is not told either, so on a CPU hold numba's lock, which lets one compile at
    a time. Where nobody listens to INFO or DEBUG nothing is changed.
    """
    this = object()
    try:
        with _lock:
            _within.add(this)
            for logger in _LOGGERS:
                if logger not in _levels and logger.getEffectiveLevel() < logging.WARNING:
                    _levels[logger] = logger.level
                    logger.setLevel(logging.WARNING)
        yield
    finally:
        with _lock:
            _within.discard(this)
            while _levels and not _within:
                logger, level = _levels.popitem()
                if logger.level == logging.WARNING:  # else the program has set another one meanwhile
                    logger.setLevel(level)
