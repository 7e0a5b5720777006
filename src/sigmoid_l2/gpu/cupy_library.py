"""CuPy, whose arrays have any strides and dtypes: with it both GPU backends take the arrays of every library."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from sigmoid_l2.gpu.arrays import current_stream, from_cupy, is_instance
from sigmoid_l2.gpu.library import DType, GpuLibrary, Shape


def cupy_stream(handle: int) -> Any:
    """The stream of that handle as one of CuPy's, which does not own it."""
    protocol = SimpleNamespace(__cuda_stream__=lambda: (0, handle))  # CUDA's protocol for streams
    return sys.modules["cupy"].cuda.Stream.from_external(protocol)


class CupyLibrary(GpuLibrary):
    """CuPy, where it is imported. Its pools keep device memory and pinned memory for the next call."""

    _kept: ClassVar[dict[int, dict[Any, Any]]] = {}  # by device

    def __init__(self, W: Any = None, stream: Any = None) -> None:
        super().__init__(W, stream)
        self.cupy = sys.modules["cupy"]
        self.cuda = self.cupy.cuda
        self._current: int | None = None  # the handle of CuPy's current stream, once it was asked for

    def is_own(self, a: Any) -> bool:
        return isinstance(a, self.cupy.ndarray)

    def _take(self, a: Any) -> tuple[Any, int | None]:
        if isinstance(a, self.cupy.ndarray):
            if self._current is None:
                self._current = current_stream(a)
            return a, self._current
        if not hasattr(type(a), "__dlpack__"):
            interface = a.__cuda_array_interface__  # for its stream CuPy would make the host wait
            without = SimpleNamespace(owner=a, __cuda_array_interface__={**interface, "stream": None})
            return self.cupy.asarray(without), interface.get("stream")
        self.device = self.device or self.cuda.Device(a.__dlpack_device__()[1])
        with self.current():  # the array's library makes CuPy's current stream wait for its own
            return self.cupy.from_dlpack(a), None

    def number(self, name: str, number: Any) -> Any:
        with self.current() as xp:
            return xp.full((), float(number))

    @property
    def gives_views(self) -> bool:
        return not is_instance(self._W, "jax", "Array")  # whose layout is JAX's own

    def give(self, results: Sequence[Any]) -> list[Any]:
        return from_cupy(results, self._W)

    @contextmanager
    def current(self) -> Iterator[Any]:
        with self.device or self.cuda.Device():
            if self.cuda.get_current_stream().ptr == self.stream:
                yield self.cupy
            else:
                with cupy_stream(self.stream):
                    yield self.cupy

    stream_of = staticmethod(cupy_stream)

    def new_stream(self) -> Any:
        return self.cuda.Stream(non_blocking=True)  # neither waits for the default stream nor makes it wait

    def memory_stream(self) -> Any:
        return self.cuda.get_current_stream()

    def new_event(self) -> Any:
        return self.cuda.Event(disable_timing=True)  # quicker than an event that notes the time

    def wait(self, stream: Any, event: Any) -> None:
        stream.wait_event(event)

    def empty(self, shape: Shape, dtype: DType) -> Any:
        return self.cupy.empty(shape, dtype)

    @contextmanager
    def pinned(self, shape: Shape, dtype: DType) -> Iterator[Any]:
        memory = self.cuda.alloc_pinned_memory(prod(shape) * dtype.itemsize)
        yield np.frombuffer(memory, dtype, prod(shape)).reshape(shape)

    def copy_in(self, to: Any, values: Any, stream: Any) -> None:
        to.data.copy_from_host_async(values.ctypes.data, values.nbytes, stream)

    def copy_out(self, to: Any, values: Any, stream: Any) -> None:
        values.data.copy_to_host_async(to.ctypes.data, to.nbytes, stream)

    def kept(self) -> dict[Any, Any]:
        return self._kept.setdefault(self.cuda.Device().id, {})
