"""CUDA arrays of any library: taken as they are, ordered after the work that makes them, given back in the same kind.

Nothing here copies an array or makes the host wait.
"""

import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np

from sigmoid_l2.gpu.library import cupy_stream, stream_handle

# DLPack's numbers of CUDA memory and of CUDA's managed memory.
_CUDA_MEMORY = (2, 13)
_INSTALL = "pip install 'sigmoid-l2[cuda13]' (or [cuda12], to match the driver)"


def is_cuda_array(a: Any) -> bool:
    """Whether ``a`` is an array on a CUDA device."""
    if _is("cupy", "ndarray", a):
        return True
    # DLPack comes first: PyTorch and JAX have both protocols, and the other one also where the array is not on a GPU.
    if hasattr(type(a), "__dlpack_device__"):
        try:
            return a.__dlpack_device__()[0] in _CUDA_MEMORY
        except Exception:  # a sharded or otherwise strange array, which NumPy may know how to read
            return False
    return hasattr(a, "__cuda_array_interface__")


def is_read_only(a: Any) -> bool:
    """Whether a CUDA array must not be written to. JAX's never may be."""
    if _is("jax", "Array", a):
        return True
    if _is("cupy", "ndarray", a):
        return False
    return bool(getattr(a, "__cuda_array_interface__", {}).get("data", (0, False))[1])


def bounds(a: Any) -> tuple[int, int]:
    """The addresses on the device between which the elements of ``a`` lie."""
    first = last = a.data.ptr
    if a.flags.c_contiguous:  # as empty arrays are
        return first, first + a.size * a.itemsize
    for size, stride in zip(a.shape, a.strides, strict=True):
        first += min(0, (size - 1) * stride)
        last += max(0, (size - 1) * stride)
    return first, last + a.itemsize


def place(name: str, W: Any, stream: Any) -> "Place":
    """Where a call with the CUDA array W runs: on W's device and on ``stream`` or, for None, W's library's current one.

    Raises TypeError where there is neither CuPy nor numba-cuda to use W with, which is called ``name`` there.
    """
    cupy = sys.modules["cupy"] if _is("cupy", "ndarray", W) else _cupy()
    if cupy is not None:
        with _usable_as_it_is(name, W):
            device = _device(cupy, W)
        return CupyPlace(cupy, device, W, stream)
    cuda = _numba_cuda()
    if cuda is not None:
        return NumbaPlace(cuda, W, stream)
    raise TypeError(
        f"{name} is a CUDA array of type {_type(W)}, and neither CuPy nor numba-cuda can be used here: {_INSTALL}; "
        "where they are installed, sigmoid_l2.show_config() tells what is wrong"
    )


class Place(ABC):
    """Where and when a call with CUDA arrays runs: one device and one stream, ordered after the arrays' producers."""

    xp: Any  # has empty(shape, dtype) and, with CuPy, copyto(to, values), on the place's device and stream
    device: Any  # the arrays' attribute ``device``

    def __init__(self, W: Any, stream: Any) -> None:
        self.stream = self._current_stream(W) if stream is None else stream_handle(stream)
        self._ordered = {_legacy(self.stream)}

    @abstractmethod
    def take(self, name: str, a: Any) -> Any:
        """The CUDA array ``a`` as a kernel can use it: the same memory, and what its producer has queued comes first.

        Raises TypeError where that cannot be, ValueError for another device than the place's.
        """

    @abstractmethod
    def give(self, result: Any) -> Any:
        """An array from ``xp.empty`` as one of W's library: the same memory."""

    @abstractmethod
    def to_host(self, array: Any) -> Any:
        """What ``take`` returned, as a NumPy array; the host waits for it."""

    @abstractmethod
    def current(self) -> Any:
        """A context in which the device and the stream are the current ones of the library that allocates."""

    @abstractmethod
    def _wait_for(self, producer: int) -> None:
        """Make the stream wait for an event on ``producer``."""

    def _current_stream(self, W: Any) -> int:
        """The stream on which W's library works."""
        if _is("torch", "Tensor", W):
            return int(sys.modules["torch"].cuda.current_stream(W.device).cuda_stream)
        return 0

    def _order(self, producer: int | None) -> None:
        """Order the stream after ``producer``, once; None: whoever made the array needs no order."""
        if producer is not None and _legacy(producer) not in self._ordered:
            self._ordered.add(_legacy(producer))
            self._wait_for(producer)


class CupyPlace(Place):
    """With CuPy, as whose arrays all others are used: any strides and dtypes, by either GPU backend."""

    def __init__(self, cupy: Any, device: Any, W: Any, stream: Any) -> None:
        self.xp, self.device = cupy, device
        super().__init__(W, stream)
        self._give = None if isinstance(W, cupy.ndarray) else _from_cupy(W)

    def _current_stream(self, W: Any) -> int:
        if isinstance(W, self.xp.ndarray):
            return int(self.xp.cuda.get_current_stream(self.device.id).ptr)
        return super()._current_stream(W)

    def take(self, name: str, a: Any) -> Any:
        """``a`` as a CuPy array."""
        if isinstance(a, self.xp.ndarray):
            producer, array = int(self.xp.cuda.get_current_stream(a.device.id).ptr), a
        else:
            with _usable_as_it_is(name, a):
                if hasattr(type(a), "__dlpack__"):
                    with self.current():  # the producer orders CuPy's current stream after its own
                        producer, array = None, self.xp.from_dlpack(a)
                else:
                    producer, array = a.__cuda_array_interface__.get("stream"), self.xp.asarray(_Unordered(a))
        if array.device != self.device:
            raise ValueError(
                f"{name} is on {array.device} and W is on {self.device}; all arrays must be on the same CUDA device"
            )
        self._order(producer)
        return array

    def give(self, result: Any) -> Any:
        """A CuPy array as one of W's library."""
        return result if self._give is None else self._give(result)

    def to_host(self, array: Any) -> Any:
        """A CuPy array as a NumPy array."""
        with self.current():
            return self.xp.asnumpy(array)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the device and the stream CuPy's current ones."""
        with self.device:
            if self.xp.cuda.get_current_stream().ptr == self.stream:
                yield
            else:
                with cupy_stream(self.stream):
                    yield

    def _wait_for(self, producer: int) -> None:
        with self.device:
            stream = cupy_stream(self.stream)
            if not stream.is_capturing():  # a graph runs later, and cannot wait for what is queued now
                event = self.xp.cuda.Event(disable_timing=True)
                event.record(cupy_stream(producer))
                stream.wait_event(event)


class NumbaPlace(Place):
    """With numba-cuda alone, on its current device: C-contiguous arrays with a CUDA array interface."""

    device = None

    def __init__(self, cuda: Any, W: Any, stream: Any) -> None:
        self.cuda, self.xp = cuda, self
        super().__init__(W, stream)

    def take(self, name: str, a: Any) -> Any:
        """``a`` as a DeviceArray."""
        with _usable_as_it_is(name, a, f"; with CuPy it can: {_INSTALL}"):
            interface = a.__cuda_array_interface__
            array = DeviceArray(a, interface)
        producer = interface.get("stream")
        if producer is None:  # PyTorch does not tell
            producer = self._current_stream(a) or None
        self._order(producer)
        return array

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """A new array on numba's device."""
        array = self.cuda.device_array(shape, dtype, stream=self._stream(self.stream) if self.stream else 0)
        return DeviceArray(array, array.__cuda_array_interface__)

    def give(self, result: Any) -> Any:
        """numba's device array."""
        return result.owner

    def to_host(self, array: Any) -> Any:
        """A DeviceArray as a NumPy array."""
        on_device = self.cuda.as_cuda_array(array, sync=False)
        return on_device.copy_to_host(stream=self._stream(self.stream))

    @contextmanager
    def current(self) -> Iterator[None]:
        """numba's device is current already, and its functions are told the stream."""
        yield

    def _stream(self, handle: int) -> Any:
        return self.cuda.external_stream(handle) if handle else self.cuda.default_stream()

    def _wait_for(self, producer: int) -> None:
        event = self.cuda.event()
        event.record(self._stream(producer))
        event.wait(self._stream(self.stream))


class DeviceArray:
    """A C-contiguous array on numba's current device: as much of CuPy's ndarray as is asked of one, without CuPy."""

    flags = SimpleNamespace(c_contiguous=True)
    device = None

    def __init__(self, owner: Any, interface: dict[str, Any], shape: tuple[int, ...] | None = None) -> None:
        given = tuple(interface["shape"])
        self.owner, self._interface = owner, interface
        self.shape = given if shape is None else shape
        self.dtype = np.dtype(interface["typestr"])
        self.itemsize, self.size = self.dtype.itemsize, prod(self.shape)
        self.data = SimpleNamespace(ptr=interface["data"][0])
        contiguous = _contiguous_strides(given, self.itemsize)
        strides = interface.get("strides") or contiguous
        if self.size and any(s > 1 and a != b for s, a, b in zip(given, strides, contiguous, strict=True)):
            raise ValueError("it is not C-contiguous")
        if not self.dtype.isnative or interface.get("mask") is not None:
            raise ValueError("it has a mask or another byte order")

    @property
    def strides(self) -> tuple[int, ...]:
        """The strides, which follow from the shape."""
        return _contiguous_strides(self.shape, self.itemsize)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self._interface, "shape": self.shape, "strides": None, "stream": None, "version": 3}

    def reshape(self, *shape: int) -> "DeviceArray":
        """The same memory in another shape, of which one axis may be -1."""
        known = -prod(shape) if -1 in shape else 1
        full = tuple(self.size // max(1, known) if size == -1 else size for size in shape)
        return DeviceArray(self.owner, self._interface, full)

    def __getitem__(self, index: Any) -> "DeviceArray":
        """``a[None]``, or ``a[..., 0]`` where the last axis is 1."""
        return self.reshape(1, *self.shape) if index is None else self.reshape(*self.shape[:-1])


class _Unordered:
    """An array as its CUDA array interface tells, less the stream: CuPy would make the host wait for that."""

    def __init__(self, a: Any) -> None:
        self.owner = a
        self.__cuda_array_interface__ = {**a.__cuda_array_interface__, "stream": None}


@contextmanager
def _usable_as_it_is(name: str, a: Any, fix: str = "") -> Iterator[None]:
    """Say of which array an error tells that it cannot be used as it is, and what to do."""
    try:
        yield
    except Exception as error:
        if getattr(a, "requires_grad", False):
            fix = "; pass it with .detach()"
        raise TypeError(f"{name}, a CUDA array of type {_type(a)}, cannot be used as it is: {error}{fix}") from error


def _device(cupy: Any, W: Any) -> Any:
    """The device of a CUDA array, as CuPy's."""
    if isinstance(W, cupy.ndarray):
        return W.device
    if hasattr(type(W), "__dlpack_device__"):
        return cupy.cuda.Device(W.__dlpack_device__()[1])
    return cupy.asarray(_Unordered(W)).device


def _from_cupy(W: Any) -> Callable[[Any], Any] | None:
    """How to make an array of W's library from one of CuPy's; None where it is not known."""
    for cls in type(W).__mro__:
        root = cls.__module__.partition(".")[0]
        if root in ("numba", "numba_cuda_mlir"):
            return partial(sys.modules[root].cuda.as_cuda_array, sync=False)
        if root in ("jax", "jaxlib"):
            return _jax_from_cupy
        from_dlpack: Callable[[Any], Any] | None = getattr(sys.modules.get(root), "from_dlpack", None)
        if from_dlpack is not None:
            return from_dlpack
    return None


def _jax_from_cupy(result: Any) -> Any:
    """The same memory as an array of JAX's, which would else convert float64 to float32."""
    jax = sys.modules["jax"]
    with jax.enable_x64(True):
        return jax.numpy.from_dlpack(result)


def _is(library: str, name: str, a: Any) -> bool:
    """Whether ``a`` is of that class of a library, which is imported only where the answer may be yes."""
    # While another thread imports the library, it has no such attribute yet.
    return isinstance(a, getattr(sys.modules.get(library), name, ()))


def _type(a: Any) -> str:
    return f"{type(a).__module__}.{type(a).__qualname__}"


def _legacy(handle: int) -> int:
    """The default stream has two handles."""
    return 0 if handle == 1 else handle


def _contiguous_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    return tuple(prod(shape[axis + 1 :]) * itemsize for axis in range(len(shape)))


@cache
def _cupy() -> Any:
    return _import("cupy", lambda cupy: cupy.cuda.is_available())


@cache
def _numba_cuda() -> Any:
    kernel = _import("sigmoid_l2.kernels.gpu.launch_numba", lambda kernel: kernel.cuda.is_available())
    return None if kernel is None else kernel.cuda


def _import(module: str, can_run: Callable[[Any], bool]) -> Any:
    """The module, or None where it cannot be used: the table of backends tells why."""
    try:
        imported = importlib.import_module(module)
        return imported if can_run(imported) else None
    except Exception:
        return None
