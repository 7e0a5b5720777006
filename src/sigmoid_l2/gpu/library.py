"""What the host side asks of a CUDA library, by CuPy and by numba: memory, streams, events, copies that do not wait."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from math import prod
from typing import Any, ClassVar, Protocol

import numpy as np


def stream_handle(stream: Any) -> int:
    """The integer handle of a CUDA stream of any library, or of an integer; TypeError for anything else."""
    if isinstance(stream, int | np.integer) and not isinstance(stream, bool) and stream >= 0:
        return int(stream)
    if hasattr(stream, "__cuda_stream__"):  # CUDA's protocol for streams
        return int(stream.__cuda_stream__()[1])
    for attribute in ("ptr", "handle", "cuda_stream"):  # of CuPy, numba and PyTorch before they had that protocol
        value = getattr(stream, attribute, None)
        if value is not None:
            return int(getattr(value, "value", value) or 0)
    raise TypeError(
        "stream must be a CuPy or numba stream or an integer handle, "
        f"not {type(stream).__module__}.{type(stream).__qualname__}"
    )


class _Handle:
    """A stream of which only the handle is known, as CUDA's protocol for streams has it."""

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


def cupy_stream(handle: int) -> Any:
    """The stream of that handle as one of CuPy's, which does not own it."""
    return sys.modules["cupy"].cuda.Stream.from_external(_Handle(handle))


class Layer(Protocol):
    """What offload.py needs of a GPU. Streams and events have ``synchronize()``, events ``record(stream)``.

    Nothing waits on the host but ``synchronize()``.
    """

    def stream(self) -> Any:
        """A new stream."""

    def kernel_stream(self) -> Any:
        """A stream for kernels, the same for every call: kernels keep memory for each stream that they have run on."""

    def external_stream(self, handle: int) -> Any:
        """The caller's stream."""

    def memory_stream(self) -> Any:
        """The stream in whose order memory is given out: work queued there may still use what it was before."""

    def event(self) -> Any:
        """A new event."""

    def wait(self, stream: Any, event: Any) -> None:
        """Let the work queued on ``stream`` from now on begin after ``event``, as it was last recorded."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """A C-contiguous array on the device, which can be sliced."""

    def pinned(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> AbstractContextManager[Any]:
        """A C-contiguous NumPy array in pinned memory, given back when the context ends."""

    def copy_in(self, to: Any, values: Any, stream: Any) -> None:
        """Queue a copy from pinned memory to the device, of C-contiguous arrays."""

    def copy_out(self, to: Any, values: Any, stream: Any) -> None:
        """Queue a copy from the device to pinned memory, of C-contiguous arrays."""

    def launch(self, arrays: Sequence[Any], stream: Any) -> None:
        """Queue the kernel on W, x, loss, dW, dx."""


def layer(name: str, kernel: Any) -> Layer:
    """The layer under the GPU backend ``name``, whose kernel's module is ``kernel``."""
    return CupyLayer(kernel) if name == "cupy" else NumbaLayer(kernel)


class CupyLayer:
    """CuPy, on its current device. Its pools keep device memory and pinned memory for the next call."""

    _kernel_streams: ClassVar[dict[int, Any]] = {}  # by device

    def __init__(self, kernel: Any) -> None:
        self.fused = kernel.fused
        self.cupy = sys.modules["cupy"]
        self.empty = self.cupy.empty
        self.external_stream = cupy_stream
        self.memory_stream = self.cupy.cuda.get_current_stream

    def stream(self) -> Any:
        """A new stream, which has no order with the default one."""
        return self.cupy.cuda.Stream(non_blocking=True)

    def kernel_stream(self) -> Any:
        """The device's stream for kernels."""
        number = self.cupy.cuda.Device().id
        if number not in self._kernel_streams:
            self._kernel_streams[number] = self.stream()
        return self._kernel_streams[number]

    def event(self) -> Any:
        """A new event, quicker for not noting the time."""
        return self.cupy.cuda.Event(disable_timing=True)

    def wait(self, stream: Any, event: Any) -> None:
        """Let the work queued on ``stream`` from now on begin after ``event``."""
        stream.wait_event(event)

    @contextmanager
    def pinned(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[Any]:
        """A NumPy array in pinned memory of CuPy's pool."""
        memory = self.cupy.cuda.alloc_pinned_memory(prod(shape) * dtype.itemsize)
        yield np.frombuffer(memory, dtype, prod(shape)).reshape(shape)

    def copy_in(self, to: Any, values: Any, stream: Any) -> None:
        """Queue a copy from pinned memory to the device."""
        to.data.copy_from_host_async(values.ctypes.data, values.nbytes, stream)

    def copy_out(self, to: Any, values: Any, stream: Any) -> None:
        """Queue a copy from the device to pinned memory."""
        values.data.copy_to_host_async(to.ctypes.data, to.nbytes, stream)

    def launch(self, arrays: Sequence[Any], stream: Any) -> None:
        """Queue the kernel."""
        self.fused(*arrays, stream=stream.ptr)


class NumbaLayer:
    """numba.cuda, on its current device. It pins anew for each call, so what was pinned is kept here for the next."""

    def __init__(self, kernel: Any) -> None:
        self.fused = kernel.fused
        self.cuda = kernel.cuda
        self.stream = self.cuda.stream
        self.memory_stream = self.cuda.default_stream
        self.event = self.cuda.event
        self.empty = self.cuda.device_array

    def external_stream(self, handle: int) -> Any:
        """The stream of that handle."""
        return self.cuda.external_stream(handle) if handle else self.cuda.default_stream()

    def _extras(self) -> dict[Any, Any]:
        """What is kept with the device's context, for as long."""
        extras: dict[Any, Any] = self.cuda.current_context().extras
        return extras

    def kernel_stream(self) -> Any:
        """The device's stream for kernels."""
        extras = self._extras()
        if "sigmoid_l2" not in extras:
            extras["sigmoid_l2"] = self.stream()
        return extras["sigmoid_l2"]

    def wait(self, stream: Any, event: Any) -> None:
        """Let the work queued on ``stream`` from now on begin after ``event``."""
        event.wait(stream)

    @contextmanager
    def pinned(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[Any]:
        """A NumPy array in pinned memory. Pinning takes as long as copying: the memory stays pinned, in its context."""
        nbytes = prod(shape) * dtype.itemsize
        size = 1 << (nbytes - 1).bit_length()  # so that there are few sizes to keep
        kept = self._extras().setdefault(("sigmoid_l2", size), [])
        try:
            memory = kept.pop()
        except IndexError:
            memory = self.cuda.pinned_array(size, np.uint8)
        try:
            yield memory[:nbytes].view(dtype).reshape(shape)
        finally:
            kept.append(memory)

    def copy_in(self, to: Any, values: Any, stream: Any) -> None:
        """Queue a copy from pinned memory to the device."""
        to.copy_to_device(values, stream=stream)

    def copy_out(self, to: Any, values: Any, stream: Any) -> None:
        """Queue a copy from the device to pinned memory."""
        values.copy_to_host(to, stream=stream)

    def launch(self, arrays: Sequence[Any], stream: Any) -> None:
        """Queue the kernel."""
        self.fused(*arrays, stream=stream_handle(stream))
