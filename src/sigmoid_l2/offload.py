"""Host arrays on a GPU: the batch goes over in pieces, and copies in and out run beside the kernel.

A piece passes through a slot, which has pinned memory and device memory for it and a stream for its copies; all kernels
share one stream:

    host                 copies W and x into pinned memory, in the dtype and layout that the kernel wants
    the slot's stream    copies them to the device
    the kernels' stream  waits for that and computes
    the slot's stream    waits for that and copies loss, dW and dx to pinned memory
    host                 when the slot's turn comes round: waits for that and copies them to the caller's arrays

Only the host touches the caller's arrays. A slot is filled anew when the host has waited for the last copy out of it,
so that nothing in it is overwritten too early. With four slots the host can be at one while the others are copied in,
computed and copied out.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from math import prod
from typing import Any

import numpy as np

from sigmoid_l2.gpu.library import Layer
from sigmoid_l2.problem import Problem
from sigmoid_l2.threads import for_ranges, positive

ENVIRONMENT_VARIABLE = "SIGMOID_L2_DEVICE_MEMORY"
DEFAULT_LIMIT = 256 << 20

SLOTS = 4
# What an array may take on the device beyond its elements: CuPy's pool gives memory out in multiples of it.
ROUNDING = 512

_chosen: int | None = None


def set_device_memory_limit(nbytes: int | None) -> None:
    """Set how many bytes of device memory a call with host arrays may use, for the whole process; None: the default.

    The default is the environment variable SIGMOID_L2_DEVICE_MEMORY or, where it is not set, 256 MiB. Up to twice as
    much pinned host memory is used. A single pair that needs more than the limit gets what it needs, and the workspace
    that a kernel needs for pairs which many blocks share comes on top. Raises ValueError for less than 1.
    """
    global _chosen
    _chosen = None if nbytes is None else positive("nbytes", nbytes)


def get_device_memory_limit() -> int:
    """The bytes of device memory that a call with host arrays may use; see ``set_device_memory_limit``."""
    if _chosen is not None:
        return _chosen
    setting = os.environ.get(ENVIRONMENT_VARIABLE)
    return positive(f"the environment variable {ENVIRONMENT_VARIABLE}", setting) if setting else DEFAULT_LIMIT


def carry(problem: Problem, arrays: Sequence[Any], layer: Layer, handle: int | None, piece_bytes: int) -> None:
    """Compute host arrays W, x, loss, dW, dx (None: not wanted) on a GPU; they are complete when it returns.

    ``handle`` is the caller's stream for the kernels. A piece has at most ``piece_bytes`` of W. Where the GPU fails,
    outputs have the results of the first pieces, as many as had come back, and nothing of the others.
    """
    wanted = [None if a is None else shape for a, shape in zip(arrays, problem.pair_shapes, strict=True)]
    pair_bytes = sum(prod(shape) for shape in wanted if shape is not None) * problem.dtype.itemsize
    limit = get_device_memory_limit()
    room = ROUNDING * len(arrays)
    most = max(1, min(SLOTS, limit // (pair_bytes + room)))
    W_bytes = problem.m * problem.n * problem.dtype.itemsize
    pairs = min(problem.B, max(1, min(piece_bytes // W_bytes, (limit // most - room) // pair_bytes)))
    slots: list[_Slot] = []
    with ExitStack() as pinned:
        kernels = layer.kernel_stream() if handle is None else layer.external_stream(handle)
        try:
            turn = 0
            for turn, index in enumerate(problem.pieces(pairs)):
                if turn < most:
                    slots.append(_Slot(layer, kernels, pinned, wanted, pairs, problem.dtype))
                slot = slots[turn % most]
                slot.collect()
                slot.send([None if a is None else a[index] for a in arrays])
            for later in range(1, 1 + len(slots)):  # the oldest first
                slots[(turn + later) % len(slots)].collect()
        except BaseException:
            _settle([slot.stream for slot in slots] + [kernels])
            raise


class _Slot:
    """Room for one piece at a time, in pinned memory and on the device."""

    def __init__(
        self,
        layer: Layer,
        kernels: Any,
        pinned: ExitStack,
        wanted: Sequence[tuple[int, ...] | None],
        pairs: int,
        dtype: np.dtype[Any],
    ) -> None:
        self.layer, self.kernels = layer, kernels
        self.stream = layer.stream()
        self.copied_in, self.computed, self.copied_out = layer.event(), layer.event(), layer.event()
        shapes = [None if shape is None else (pairs, *shape) for shape in wanted]
        self.on_device: list[Any] = [None if shape is None else layer.empty(shape, dtype) for shape in shapes]
        self.on_host: list[Any] = [
            None if shape is None else pinned.enter_context(layer.pinned(shape, dtype)) for shape in shapes
        ]
        self.results: list[tuple[Any, Any]] = []  # (the caller's array, pinned memory) on their way
        given_out = layer.event()
        given_out.record(layer.memory_stream())
        layer.wait(self.stream, given_out)

    def send(self, pieces: Sequence[Any]) -> None:
        """Queue a piece of W, x, loss, dW, dx, each (*batch, ...) of the caller's arrays."""
        batch = pieces[0].shape[:-2]
        size = prod(batch)
        on_device: list[Any] = [None if a is None else a[:size] for a in self.on_device]
        on_host: list[Any] = [None if a is None else a[:size] for a in self.on_host]
        all_five = list(zip(pieces, on_host, on_device, strict=True))
        for piece, host, buffer in all_five[:2]:
            _copy(host.reshape(piece.shape), piece)
            self.layer.copy_in(buffer, host, self.stream)
        self.copied_in.record(self.stream)
        self.layer.wait(self.kernels, self.copied_in)
        self.layer.launch(on_device, self.kernels)
        self.computed.record(self.kernels)
        self.layer.wait(self.stream, self.computed)
        for piece, host, buffer in all_five[2:]:
            if piece is not None:
                self.layer.copy_out(host, buffer, self.stream)
                self.results.append((piece, host.reshape(piece.shape)))
        self.copied_out.record(self.stream)

    def collect(self) -> None:
        """Wait for the results of the piece in the slot, if there is one, and copy them to the caller's arrays."""
        if self.results:
            self.copied_out.synchronize()
            for piece, values in self.results:
                _copy(piece, values)
            self.results.clear()


def _copy(to: Any, values: Any) -> None:
    """Copy between the caller's memory and pinned memory, on all threads: one is slower than the way to the GPU."""
    to, values = np.atleast_1d(to, values)

    def copy(first: int, last: int) -> None:
        np.copyto(to[first:last], values[first:last])

    for_ranges(len(to), to.size, copy)


def _settle(streams: list[Any]) -> None:
    """Wait for all that is queued, whatever comes in between: it uses memory that is about to be given back."""
    interrupt, failures = None, 0
    while streams:
        try:
            streams[-1].synchronize()
        except Exception:  # the GPU has failed, and the first error is on its way; or a signal's handler raised this
            failures += 1
            if failures == 1:
                continue
        except BaseException as error:
            interrupt = error
            continue
        streams.pop()
    if interrupt:
        raise interrupt
