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
"""

from collections.abc import Sequence
from contextlib import ExitStack
from math import prod
from typing import Any

import numpy as np

from sigmoid_l2 import threads
from sigmoid_l2.gpu.library import GpuLibrary, stream_handle
from sigmoid_l2.pieces import INPUTS, Kernel, pieces
from sigmoid_l2.problem import Problem
from sigmoid_l2.settings import get_device_memory_limit

SLOTS = 4
# Bytes that an array may take on the device besides its elements: CuPy's pool rounds up to a multiple of 512.
ROUNDING = 512


def compute(
    problem: Problem, arrays: Sequence[Any], gpu: GpuLibrary, fused: Kernel, stream: Any, piece_bytes: int
) -> None:
    """Compute host arrays (*batch, ...), a kernel's arguments, with the kernel ``fused``, and wait for the results.

    The batch is that of W. ``stream`` is where the caller wants the kernels to run, or None. A piece has at most
    ``piece_bytes`` of W, or one pair, where a pair is larger. If the GPU fails, only results of some first pieces have
    been written.
    """
    batch = arrays[0].shape[:-2]
    shapes = [None if a is None else shape for a, shape in zip(arrays, problem.pair_shapes, strict=True)]
    pair_bytes = sum(prod(shape) for shape in shapes if shape is not None) * problem.computed.itemsize
    rounding = ROUNDING * sum(shape is not None for shape in shapes)
    limit = get_device_memory_limit()
    count = max(1, min(SLOTS, limit // (pair_bytes + rounding)))
    W_bytes = problem.m * problem.n * problem.computed.itemsize
    pairs = min(prod(batch), max(1, min(piece_bytes // W_bytes, (limit // count - rounding) // pair_bytes)))
    piece_shapes = [None if shape is None else (pairs, *shape) for shape in shapes]
    slots: list[_Slot] = []
    with ExitStack() as pinned:
        kernels = gpu.kernel_stream() if stream is None else gpu.stream_of(stream_handle(stream))
        try:
            number = 0
            for number, index in enumerate(pieces(batch, pairs)):
                if number < count:
                    slots.append(_Slot(gpu, fused, kernels, pinned, piece_shapes, problem.computed))
                slot = slots[number % count]
                slot.collect()
                slot.send([None if a is None else a[index] for a in arrays])
            for later in range(1, 1 + len(slots)):  # the oldest piece first
                slots[(number + later) % len(slots)].collect()
        except BaseException:
            _drain([slot.stream for slot in slots] + [kernels])
            raise


class _Slot:
    """Pinned memory and device memory for one piece at a time."""

    def __init__(
        self, gpu: GpuLibrary, fused: Kernel, kernels: Any, pinned: ExitStack, shapes: list[Any], dtype: np.dtype[Any]
    ) -> None:
        self.gpu, self.fused, self.kernels = gpu, fused, kernels
        self.stream = gpu.new_stream()
        self.copied_in, self.computed, self.copied_out = gpu.new_event(), gpu.new_event(), gpu.new_event()
        self.on_device: list[Any] = [None if shape is None else gpu.empty(shape, dtype) for shape in shapes]
        self.on_host: list[Any] = [
            None if shape is None else pinned.enter_context(gpu.pinned(shape, dtype)) for shape in shapes
        ]
        self.results: list[tuple[Any, Any]] = []  # the caller's arrays, and the pinned memory that gets their values
        allocated = gpu.new_event()
        allocated.record(gpu.memory_stream())
        gpu.wait(self.stream, allocated)

    def send(self, pieces: Sequence[Any]) -> None:
        """Queue a piece of each of a kernel's arguments, (*batch, ...) of the caller's arrays."""
        size = prod(pieces[0].shape[:-2])
        on_device: list[Any] = [None if a is None else a[:size] for a in self.on_device]
        on_host: list[Any] = [None if a is None else a[:size] for a in self.on_host]
        copies = list(zip(pieces, on_host, on_device, strict=True))
        for piece, host, device in copies[:INPUTS]:
            if piece is None:
                continue
            threads.copy(host.reshape(piece.shape), piece)
            self.gpu.copy_in(device, host, self.stream)
        self.copied_in.record(self.stream)
        self.gpu.wait(self.kernels, self.copied_in)
        self.fused(*on_device, stream=stream_handle(self.kernels))
        self.computed.record(self.kernels)
        self.gpu.wait(self.stream, self.computed)
        for piece, host, device in copies[INPUTS:]:
            if piece is not None:
                self.gpu.copy_out(host, device, self.stream)
                self.results.append((piece, host.reshape(piece.shape)))
        self.copied_out.record(self.stream)

    def collect(self) -> None:
        """Wait for the results of the piece in the slot, if there is one, and copy them to the caller's arrays."""
        if self.results:
            self.copied_out.synchronize()
            for piece, values in self.results:
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
