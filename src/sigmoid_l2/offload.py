"""Host arrays on a GPU: the batch goes there in pieces, and copies in both directions overlap with the kernel.

A piece passes through a slot, which has pinned memory and device memory for one piece, and a stream for its copies. All
kernels run on one stream:

    host                 copies W and x into pinned memory, in the dtype and layout that the kernel wants
    the slot's stream    copies them to the device
    the kernels' stream  waits for that and computes
    the slot's stream    waits for that and copies loss, dW and dx to pinned memory
    host                 waits for that, before the next piece comes to the slot, and copies them to the caller's arrays

Only the host touches the caller's arrays. It waits for the last copy out of a slot before it fills the slot again, so
nothing is overwritten too early. With four slots the host can work on one while the second is copied in, the third
computed and the fourth copied out.

Where all pairs have one W, it is copied to the device once, and the host adds up the dW of the pieces.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from math import prod
from typing import Any

import numpy as np

from sigmoid_l2 import threads
from sigmoid_l2.arguments import DW_PLACE, INPUTS, W_PLACE, X_PLACE, Kernel, pieces
from sigmoid_l2.gpu.library import GpuLibrary, stream_handle
from sigmoid_l2.problem import Problem
from sigmoid_l2.settings import get_device_memory_limit
from sigmoid_l2.sums import Sum

SLOTS = 4
# Bytes that an array may take on the device besides its elements: CuPy's pool rounds up to a multiple of 512.
ROUNDING = 512


def compute(
    problem: Problem,
    arrays: Sequence[Any],
    gpu: GpuLibrary,
    kernel: Kernel,
    stream: Any,
    piece_bytes: int,
    *,
    one_W: bool = False,
) -> None:
    """Compute host arrays (*batch, ...), a kernel's arguments, with ``kernel``, and wait for the results.

    The batch is that of x. ``stream`` is where the caller wants the kernels to run, or None. A piece has at most
    ``piece_bytes`` of W, or one pair, where a pair is larger. With ``one_W`` the kernel is ``shared``, W and dW are (m,
    n), and a piece has ``piece_bytes`` of the other arrays, or as many as W has. If the GPU fails, only results of some
    first pieces have been written.
    """
    of_all = (W_PLACE, DW_PLACE) if one_W else ()
    batch, dtype = arrays[X_PLACE].shape[:-1], problem.computed
    shapes = [None if a is None else shape for a, shape in zip(arrays, problem.pair_shapes, strict=True)]
    pairs, count = _sizes(problem, shapes, of_all, prod(batch), piece_bytes)
    piece_shapes = [s if s is None or k in of_all else (pairs, *s) for k, s in enumerate(shapes)]
    dW = Sum(np) if one_W and arrays[DW_PLACE] is not None else None
    slots: list[_Slot] = []
    with ExitStack() as pinned:
        kernels = gpu.kernel_stream() if stream is None else gpu.stream_of(stream_handle(stream))
        try:
            number = 0
            for number, index in enumerate(pieces(batch, pairs)):
                if number < count:
                    W = slots[0].on_device[W_PLACE] if one_W and slots else None
                    slots.append(_Slot(gpu, kernel, kernels, pinned, piece_shapes, dtype, of_all, W))
                slot = slots[number % count]
                slot.collect()
                piece = [None if a is None or k in of_all else a[index] for k, a in enumerate(arrays)]
                if one_W:
                    piece[W_PLACE], piece[DW_PLACE] = None if number else arrays[W_PLACE], dW
                slot.send(piece)
            for later in range(1, 1 + len(slots)):  # the oldest piece first
                slots[(number + later) % len(slots)].collect()
        except BaseException:
            _drain([slot.stream for slot in slots] + [kernels])
            raise
    if dW is not None:
        threads.copy(arrays[DW_PLACE], dW.value())


def _sizes(
    problem: Problem, shapes: Sequence[Any], of_all: Sequence[int], whole: int, piece_bytes: int
) -> tuple[int, int]:
    """How many pairs a piece has, and how many slots there are, within the limit for memory on the device.

    With one W the pairs of a piece depend on the shapes alone, unless the limit is lower than a piece: so does then the
    order in which dW is added up.
    """
    itemsize, limit = problem.computed.itemsize, get_device_memory_limit()
    nbytes = [0 if shape is None else prod(shape) * itemsize for shape in shapes]
    pair_bytes = sum(a for k, a in enumerate(nbytes) if k not in of_all)
    rounding = ROUNDING * sum(shape is not None for shape in shapes)
    if not of_all:
        count = max(1, min(SLOTS, limit // (pair_bytes + rounding)))
        most = min(piece_bytes // nbytes[W_PLACE], (limit // count - rounding) // pair_bytes)
        return min(whole, max(1, most)), count
    limit -= nbytes[W_PLACE]
    rounding += nbytes[DW_PLACE]
    pairs = min(whole, max(piece_bytes, nbytes[W_PLACE]) // pair_bytes, (limit - rounding) // pair_bytes)
    pairs = max(1, pairs)
    return pairs, max(1, min(SLOTS, limit // (pairs * pair_bytes + rounding)))


class _Slot:
    """Pinned memory and device memory for one piece at a time.

    ``of_all`` are the places of arrays that a kernel gets for all pairs. ``W`` is one that the device has already.
    """

    def __init__(
        self,
        gpu: GpuLibrary,
        kernel: Kernel,
        kernels: Any,
        pinned: ExitStack,
        shapes: Sequence[Any],
        dtype: np.dtype[Any],
        of_all: Sequence[int],
        W: Any,
    ) -> None:
        self.gpu, self.kernel, self.kernels, self.of_all = gpu, kernel, kernels, of_all
        self.stream = gpu.new_stream()
        self.copied_in, self.computed, self.copied_out = gpu.new_event(), gpu.new_event(), gpu.new_event()
        own = [None if k == W_PLACE and W is not None else shape for k, shape in enumerate(shapes)]
        self.on_device: list[Any] = [None if shape is None else gpu.empty(shape, dtype) for shape in own]
        self.on_host: list[Any] = [
            None if shape is None else pinned.enter_context(gpu.pinned(shape, dtype)) for shape in own
        ]
        if W is not None:
            self.on_device[W_PLACE] = W
        self.results: list[tuple[Any, Any]] = []  # the caller's arrays, and the pinned memory that gets their values
        allocated = gpu.new_event()
        allocated.record(gpu.memory_stream())
        gpu.wait(self.stream, allocated)

    def send(self, pieces: Sequence[Any]) -> None:
        """Queue a piece of each of a kernel's arguments, (*batch, ...) of the caller's arrays.

        What is None stays on the device. Where all have one W, its place for dW has the sum to which dW is added.
        """
        size = prod(pieces[X_PLACE].shape[:-1])
        on_device, on_host = (
            [a if a is None or k in self.of_all else a[:size] for k, a in enumerate(arrays)]
            for arrays in (self.on_device, self.on_host)
        )
        copies = list(zip(pieces, on_host, on_device, strict=True))
        for piece, host, device in copies[:INPUTS]:
            if piece is None:
                continue
            threads.copy(host.reshape(piece.shape), piece)
            self.gpu.copy_in(device, host, self.stream)
        self.copied_in.record(self.stream)
        self.gpu.wait(self.kernels, self.copied_in)
        self.kernel(*on_device, stream=stream_handle(self.kernels))
        self.computed.record(self.kernels)
        self.gpu.wait(self.stream, self.computed)
        for piece, host, device in copies[INPUTS:]:
            if piece is not None:
                self.gpu.copy_out(host, device, self.stream)
                self.results.append((piece, host if isinstance(piece, Sum) else host.reshape(piece.shape)))
        self.copied_out.record(self.stream)

    def collect(self) -> None:
        """Wait for the results of the piece in the slot, if there is one, and copy them to the caller's arrays."""
        if self.results:
            self.copied_out.synchronize()
            for piece, values in self.results:
                if isinstance(piece, Sum):
                    piece.add(values)
                else:
                    threads.copy(piece, values)
            self.results.clear()


def _drain(streams: list[Any]) -> None:
    """Wait until all streams are done, whatever interrupts it: their work uses memory that is about to be freed."""
    interrupt, failures = None, 0
    while streams:
        try:
            streams[-1].synchronize()
        except Exception:  # the GPU has failed, which its first error tells; or a signal's handler has raised, once
            failures += 1
            if failures == 1:
                continue
        except BaseException as error:
            interrupt = error
            continue
        streams.pop()
    if interrupt:
        raise interrupt
