"""What the host side asks of a library that runs GPU code; cupy_library.py and numba_library.py implement it."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from sigmoid_l2.gpu.arrays import current_stream, type_name

Context = AbstractContextManager[Any]
Shape = tuple[int, ...]
DType = np.dtype[Any]


def stream_handle(stream: Any) -> int:
    """The integer handle of a CUDA stream of any library, or of an integer; TypeError for anything else."""
    if isinstance(stream, (int, np.integer)) and not isinstance(stream, bool) and stream >= 0:
        return int(stream)
    if hasattr(stream, "__cuda_stream__"):  # CUDA's protocol for streams
        return int(stream.__cuda_stream__()[1])
    for attribute in ("ptr", "handle", "cuda_stream"):  # of CuPy, numba and PyTorch before they had that protocol
        value = getattr(stream, attribute, None)
        if value is not None:
            return int(getattr(value, "value", value) or 0)
    raise TypeError(f"stream must be a CuPy or numba stream or an integer handle, not {type_name(stream)}")


class GpuLibrary(ABC):
    """A library that runs GPU code, as one call uses it. Only ``to_host`` and ``synchronize`` make the host wait.

    A call with CUDA arrays runs on W's device, on ``stream`` or, where that is None, the current stream of W's library.
    A call with host arrays has no W here; it runs on the library's current device, on streams that it makes. Streams
    and events are the library's own objects: both have ``synchronize()``, events ``record(stream)``. A handle is the
    integer by which kernels and other libraries know a stream.
    """

    fix = ""  # what to do about an array that this library cannot use

    def __init__(self, W: Any = None, stream: Any = None) -> None:
        self.device: Any = None  # W's, once ``take`` has it; None: the library's current one
        self.stream = current_stream(W) if stream is None else stream_handle(stream)  # the handle
        self._W = W
        self._waited_for = {0, 1} if self.stream in (0, 1) else {self.stream}  # 0 and 1 are both the default stream

    # CUDA arrays of any library

    def is_own(self, a: Any) -> bool:
        """Whether ``a`` is of a class that ``take`` returns as it is."""
        return False

    def take(self, name: str, a: Any) -> Any:
        """The CUDA array ``a`` as kernels can use it: the same memory, after the work that its library has queued.

        The first must be W. Raises TypeError where it cannot be used without a copy, ValueError for another device.
        """
        try:
            array, producer = self._take(a)
        except Exception as error:
            message = f"{name}, a CUDA array of type {type_name(a)}, cannot be used as it is: {error}{self.fix}"
            raise TypeError(message) from error
        device = array.device
        if self.device is None:
            self.device = device
        elif device != self.device:
            raise ValueError(
                f"{name} is on {device} and W is on {self.device}; all arrays must be on the same CUDA device"
            )
        if producer is not None and producer not in self._waited_for:
            self._waited_for.add(producer)
            with self.current():
                stream = self.stream_of(self.stream)
                is_capturing = getattr(stream, "is_capturing", bool)  # numba's streams cannot tell
                if not is_capturing():  # a graph runs later, and cannot wait for what is queued now
                    event = self.new_event()
                    event.record(self.stream_of(producer))
                    self.wait(stream, event)
        return array

    @abstractmethod
    def _take(self, a: Any) -> tuple[Any, int | None]:
        """The array, and the handle of the stream to wait for; None where there is nothing left to wait for."""

    def number(self, name: str, number: Any) -> Any:
        """The argument ``name``, a number of Python or NumPy, as an array of shape () on the device of ``take``'s."""
        raise TypeError(f"{name} is a number, of which only CuPy can make an array on the device: install it")

    @property
    def gives_views(self) -> bool:
        """Whether ``give`` takes arrays whose axes lie in another order in memory."""
        return False

    @abstractmethod
    def give(self, results: Sequence[Any]) -> list[Any]:
        """Arrays made in ``current`` as arrays of W's library, where it can take them over: the same memory."""

    def to_host(self, array: Any) -> Any:
        """What ``take`` returned as a NumPy array."""
        with self.current() as xp:
            return xp.asnumpy(array)

    @abstractmethod
    def current(self) -> Context:
        """A context for the call's device and stream. Gives CuPy's ``empty``, ``asnumpy`` and, of CuPy, ``copyto``."""

    @classmethod
    def on_device(cls, device: Any) -> Context:
        """A context for a kernel of this library, on arrays of ``device`` that another library has taken."""
        return nullcontext()

    # Streams and events

    @abstractmethod
    def stream_of(self, handle: int) -> Any:
        """The stream of that handle, which belongs to whoever made it."""

    @abstractmethod
    def new_stream(self) -> Any:
        """A new stream."""

    @abstractmethod
    def memory_stream(self) -> Any:
        """The stream whose queued work may still use what ``empty`` returns: another stream must wait for it first."""

    @abstractmethod
    def new_event(self) -> Any:
        """A new event."""

    @abstractmethod
    def wait(self, stream: Any, event: Any) -> None:
        """Let the work queued on ``stream`` from now on begin after ``event`` as it was last recorded."""

    # Memory

    @abstractmethod
    def empty(self, shape: Shape, dtype: DType) -> Any:
        """A new C-contiguous array of the library's own class on the current device, for ``offload`` and workspaces."""

    @abstractmethod
    def pinned(self, shape: Shape, dtype: DType) -> Context:
        """A C-contiguous NumPy array in pinned memory, which is free again when the context ends."""

    @abstractmethod
    def copy_in(self, to: Any, values: Any, stream: Any) -> None:
        """Queue a copy from pinned memory to the device, of C-contiguous arrays."""

    @abstractmethod
    def copy_out(self, to: Any, values: Any, stream: Any) -> None:
        """Queue a copy from the device to pinned memory, of C-contiguous arrays."""

    # What later calls use again

    @abstractmethod
    def kept(self) -> dict[Any, Any]:
        """What this package keeps on the current device, by name."""

    def kernel_stream(self) -> Any:
        """The current device's stream for the kernels of all calls: a workspace is kept for each stream."""
        kept = self.kept()
        if "stream" not in kept:
            kept["stream"] = self.new_stream()
        return kept["stream"]

    @classmethod
    def workspace(cls, handle: int, nbytes: int) -> Any:
        """Memory for partial sums, flat uint8, for this thread and this stream of the current device.

        It is kept for good: a second call allocates nothing, and a captured graph with a call in it stays valid.
        """
        library, key = cls(stream=handle), (threading.get_ident(), handle, nbytes)
        kept = library.kept()
        if key not in kept:
            with library.current():
                kept[key] = library.empty((nbytes,), np.dtype(np.uint8))
        return kept[key]
