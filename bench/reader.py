"""From how many bytes on results should be streamed: a call alone, and a call and then a reader of its results.

Streaming stores are faster, but a reader finds the results in memory instead of a cache. The library's threshold,
``set_stream_bytes``, belongs where the call and the reader together take as long with either kind of store.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
from copies import at_a_time
from peers import OURS
from results import Key
from workload import Case, Run, Workload

from sigmoid_l2 import settings

# W (m, n) of the tiny and of the rows kernel, and the megabytes of their results.
SHAPES = ((3, 3), (64, 64))
MEGABYTES = (1, 2, 5, 10, 20, 40, 60, 100, 200)
# The kinds of stores, and the setting that asks for them in every call.
STORES = {"ordinary": 1 << 62, "streamed": 1}
READ = ", then read"


def cases() -> list[Case]:
    """Each shape with each size of the results."""
    return [
        Case("cpu", "float32", m, n, megabytes * 10**6 // (4 * (m * n + n + 1)))
        for m, n in SHAPES
        for megabytes in MEGABYTES
    ]


def setting() -> Any:
    """The function that sets the library's threshold, if there is one."""
    return getattr(settings, "set_stream_bytes", None)


def reset() -> None:
    """Back to the library's own threshold."""
    if set_bytes := setting():
        set_bytes(None)


def reading(work: Workload, threads: int) -> dict[Key, Run]:
    """A call with given outputs with each kind of store, alone and followed by a reader on as many threads."""
    call = work.call("numba")
    shares = zip(*(np.array_split(a.reshape(-1), threads) for a in work.out), strict=True)
    read_all = at_a_time([partial(largest, share) for share in shares])
    set_bytes = setting()

    def run(nbytes: int | None, read: bool) -> None:
        if set_bytes:
            set_bytes(nbytes)
        call()
        if read:
            read_all()

    return {
        Key(OURS.name, stores + READ * read, threads): partial(run, nbytes, read)
        for stores, nbytes in (STORES.items() if set_bytes else (("as they are", None),))
        for read in (False, True)
    }


def largest(arrays: Iterable[Any]) -> None:
    """Read all of some arrays."""
    for a in arrays:
        np.max(a, initial=-np.inf)
