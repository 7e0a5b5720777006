"""Memory for new results: large ones begin on a line of the caches, and the memory of very large ones is used again.

The system clears each page of new memory when it is first written, which takes about as long as the kernel takes to
write it. So the memory of a very large result stays when nobody holds the result any longer, for the next result that
fits. Until then it is marked as free (MADV_FREE): the system takes its pages when it needs them, and what it has not
taken costs nothing to use again.

All arrays in a block of memory, and all that other libraries make of them, hold one array, the root: it is the base of
each view. NumPy's arrays are out of the garbage collector's reach, so the root goes only when nothing holds it.
"""

import ctypes
import errno
import math
import mmap
import os
import weakref
from functools import partial
from typing import Any

import numpy as np

from sigmoid_l2.settings import KEPT_MEMORY

# Bytes of a line of the caches. Streaming stores write whole lines.
LINE = 64
# Bytes of the smallest result that begins on a line. A call that writes as much takes 100 us, finding the line 1 us.
ALIGNED_BYTES = 1 << 20
# Elements of W in the largest call that is small: none of its results has as many bytes as that.
SMALL = ALIGNED_BYTES // 8 - 1
# Bytes of the smallest result whose memory is kept. glibc keeps what is smaller itself: calls with new dW of 0.4 to 29
# MB take 0.8 to 1.1 times as long as with given ones, and with dW of 36 MB 1.7 times.
KEPT_BYTES = 32 << 20
# Bytes of a huge page on x86-64 and most other machines. A block is a whole number of them, so that no page belongs to
# two blocks: marking a part of a page as free first splits it, which takes as long as a call.
HUGE_PAGE = 2 << 20

# Whether the system can take memory back that is marked as free: Linux.
_CAN_KEEP = hasattr(mmap, "MADV_FREE") and hasattr(mmap, "MADV_HUGEPAGE")
_madvise = ctypes.CDLL(None).madvise if _CAN_KEEP else None  # of the C library, for memory of others
# Where there is no memory, and of a kernel without MADV_FREE or huge pages, or a process that locks its memory.
_REFUSED = errno.ENOMEM, errno.EAGAIN, errno.EINVAL


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """A new array with arbitrary contents, like ``np.empty``; see the top of this file."""
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < ALIGNED_BYTES:
        return np.empty(shape, dtype)
    whole = -(-nbytes // HUGE_PAGE) * HUGE_PAGE
    if _CAN_KEEP and nbytes >= KEPT_BYTES and whole <= KEPT_MEMORY.get():
        try:
            return np.ndarray(shape, dtype, _take(whole))
        except OSError as error:
            if error.errno not in _REFUSED:  # a TimeoutError of a signal's handler
                raise
    return _on_a_line(shape, dtype)


def empty_on_a_line(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """As ``empty``, but what is small begins on a line, too."""
    return (empty if math.prod(shape) * dtype.itemsize >= ALIGNED_BYTES else _on_a_line)(shape, dtype)


def _on_a_line(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    memory = np.empty(math.prod(shape) * dtype.itemsize + LINE, np.uint8)
    return np.ndarray(shape, dtype, memory, -memory.ctypes.data % LINE)


def use_huge_pages(a: Any) -> None:
    """Let the system give huge pages to a large new array of another library, as it does to NumPy's, where it can.

    The system clears a huge page quicker than 512 small ones: loss and gradients of 10^6 pairs of 3x3 in new memory of
    XLA's took 0.6 times as long.
    """
    if _madvise is None or a.nbytes < 2 * HUGE_PAGE:  # as NumPy, from 4 MiB on
        return
    first = -(-a.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    whole = (a.ctypes.data + a.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
    _madvise(ctypes.c_void_p(first), ctypes.c_size_t(whole), mmap.MADV_HUGEPAGE)  # a wish: nothing depends on it


def give_back() -> bool:
    """Keep nothing that there is now, and return whether anything was kept. What is lent is freed as any memory."""
    kept = bool(_kept)
    _kept.clear()
    return kept


class _Block:
    """Memory for one result after the other; OSError where there is none."""

    def __init__(self, nbytes: int) -> None:
        self.memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # not shared with a child
        self.memory.madvise(mmap.MADV_HUGEPAGE)
        self.memory.madvise(mmap.MADV_FREE)
        self.free: list[Any] = []  # has an element while nobody holds the memory

    def lend(self) -> Any:
        """The root of all arrays in this memory. When it goes, the memory is marked as free, and is free only then.

        Python calls the youngest callback first. Neither runs a step of Python code, in which a signal's handler could
        raise an exception that nobody would see. A callback gets the reference: for ``next`` that is the default.
        """
        root = np.frombuffer(self.memory, np.uint8)
        mark = map(self.memory.madvise, [mmap.MADV_FREE])  # calls it at next()
        self.watches = weakref.ref(root, self.free.append), weakref.ref(root, partial(next, mark))
        return root


# The blocks that are lent or free, the last used at the end; their bytes are at most KEPT_MEMORY. A lent block that is
# no longer here is as any memory. Each use is one step that raises nothing: a lock might be held when the process
# forks, and whoever catches an exception might catch that of a signal's handler. (A list of it is made in one step also
# by a Python without the global lock, a tuple is not.)
_kept: dict[_Block, bool] = {}


def _take(nbytes: int) -> Any:
    """The root of a block for ``nbytes``; OSError where there is no memory."""
    # The smallest that fits; of those the last used, so that the system can take the others.
    for block in sorted(reversed(list(_kept)), key=lambda block: len(block.memory)):
        # The second look at ``free`` is for a block that another thread has taken, lent and put back between the steps.
        # A block that is taken is forgotten if a handler raises before it is put back.
        if nbytes <= len(block.memory) <= 2 * nbytes and block.free and _kept.pop(block, False) and block.free:
            block.free.clear()
            break
    else:
        block = _Block(nbytes)
    root = block.lend()
    _kept[block] = True
    _trim()
    return root


def _trim() -> None:
    """Forget the blocks that have not been used for the longest time, until what is kept is within the limit."""
    limit = KEPT_MEMORY.get()
    for block in list(_kept):
        if sum(len(kept.memory) for kept in list(_kept)) <= limit:
            break
        _kept.pop(block, None)


KEPT_MEMORY.when_set = _trim
if hasattr(os, "register_at_fork"):  # what is shared with a child is copied page by page when it is written
    os.register_at_fork(before=give_back)
