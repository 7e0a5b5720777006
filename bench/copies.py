"""The limit that everything is measured by: the best copy of as many bytes that the machine can do.

On a CPU two take turns with every case, and the faster one counts. NumPy's copy is glibc's on Linux, which streams
pieces of more than about 120 MB and stores smaller ones in the ordinary way. A copy of our own always streams: whole
lines go past the caches, so that they are not read before they are written. It loses where all data stay in a cache.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import pairwise, product
from typing import Any

import numpy as np
from results import COPY, STREAMED, Key
from workload import Case, Run, library, placed

# Bytes of a page.
PAGE = 4096
# Pages that the streamed copy goes through side by side. With 2 it is 9 % faster than with 1 on an Intel Xeon (Sapphire
# Rapids, 400 MB, 2 threads: 41.8 against 38.5 GB/s), and as fast as with 4.
PAGES = 2
# Vectors that the streamed copy loads before it stores them: 2, 4 and 8 were as fast.
VECTORS = 4


class Copy:
    """Plain copies that read and write together as many bytes as a case must move."""

    def __init__(self, case: Case) -> None:
        self.xp = library(case.device)
        self.size = case.traffic // 2
        self.source, memory = (placed(self.xp, self.size + more, np.uint8, 0, PAGE) for more in (0, 16))
        # The streamed copy writes whole lines. NumPy's is 1.35 times as fast (20 MB, the same Intel) where the target
        # is not as far into its page as the source.
        self.to, self.to_numpy = memory[:-16], memory[16:]
        for a in (self.source, memory):
            a.fill(7)

    def __call__(self) -> None:
        """Enqueue the copy on the device."""
        cuda = self.xp.cuda
        runtime, stream = cuda.runtime, cuda.get_current_stream()
        runtime.memcpyAsync(self.to.data.ptr, self.source.data.ptr, self.size, runtime.memcpyDeviceToDevice, stream.ptr)

    def ways(self, *threads: int) -> dict[Key, Run]:
        """Every copy that there is: on a CPU each on so many threads of the host."""
        if self.xp is not np:
            return {Key(COPY["gpu"]): self}

        def numpy_copy(part: slice) -> None:
            np.copyto(self.to_numpy[part], self.source[part])

        def streamed_copy(part: slice) -> None:
            to, source = self.to[part], self.source[part]
            whole = to.size // (PAGE * PAGES) * PAGE * PAGES
            stream()(to[:whole].view(np.float32), source[:whole].view(np.float32))
            to[whole:] = source[whole:]

        def on(threads: int, copy: Callable[[slice], None]) -> Run:
            bounds = [self.size * k // threads // PAGE * PAGE for k in range(threads)] + [self.size]
            return at_a_time([partial(copy, slice(*ends)) for ends in pairwise(bounds)])

        copies = {COPY["cpu"]: numpy_copy, STREAMED: streamed_copy}
        return {Key(name, "given", k): on(k, copies[name]) for k, name in product(sorted(set(threads)), copies)}


def at_a_time(runs: Sequence[Run]) -> Run:
    """All ``runs``, each on a thread of its own; the caller's runs the first."""
    first, *others = runs
    if not others:
        return first
    pool = ThreadPoolExecutor(len(others))

    def run_all() -> None:
        running = [pool.submit(run) for run in others]
        first()
        for run in running:
            run.result()

    return run_all


@cache
def stream() -> Any:
    """The compiled ``copy(to, source)`` of float32 arrays of so many whole pages, which streams to whole lines."""
    from llvmlite import ir
    from numba import float32, njit, types
    from numba.core import cgutils

    from sigmoid_l2.kernels.cpu.compile import vector_code  # compare imports older packages as well
    from sigmoid_l2.kernels.cpu.simd import INDEX

    page = PAGE // 4  # float32 elements

    @vector_code()
    def copy_pages(v: Any, to: Any, source: Any, size: Any) -> None:
        b = v.builder
        streaming = b.module.add_metadata([ir.Constant(ir.IntType(32), 1)])

        def copy_vectors(first: Any) -> None:
            places = [b.add(first, INDEX(k * v.width)) for k in range(VECTORS)]
            values = [v.load(source, place) for place in places]
            for value, place in zip(values, places, strict=True):
                store = b.store(value, b.bitcast(v.at(to, place), v.vector.as_pointer()))
                store.align = 4 * v.width
                store.set_metadata("nontemporal", streaming)

        with cgutils.for_range_slice(b, INDEX(0), size, INDEX(PAGES * page), intp=INDEX) as (pages, _):
            step = INDEX(VECTORS * v.width)
            with cgutils.for_range_slice(b, INDEX(0), INDEX(page), step, intp=INDEX) as (column, _):
                for k in range(PAGES):
                    copy_vectors(b.add(b.add(pages, INDEX(k * page)), column))
        b.fence("seq_cst")  # streamed lines are in memory before the copy has ended

    @njit(types.void(float32[::1], float32[::1]), nogil=True)
    def copy(to: Any, source: Any) -> None:
        copy_pages(to, source, to.size)

    return copy
