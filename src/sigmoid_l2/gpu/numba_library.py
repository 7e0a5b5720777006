"""numba.cuda on its current device; of the arrays of other libraries it takes those that are C-contiguous."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib import import_module
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np

from sigmoid_l2.gpu.arrays import DeviceArray, current_stream
from sigmoid_l2.gpu.library import Context, DType, GpuLibrary, Shape
from sigmoid_l2.kernels.gpu import shim
from sigmoid_l2.probes import INSTALL


@cache
def numba_cuda() -> Any:
    """The module numba.cuda, of whichever package."""
    return import_module(shim.module())


class NumbaLibrary(GpuLibrary):
    """numba.cuda, of numba-cuda or its successor."""

    fix = f"; with CuPy it can: {INSTALL}"

    def __init__(self, W: Any = None, stream: Any = None) -> None:
        super().__init__(W, stream)
        self.cuda = numba_cuda()

    def _take(self, a: Any) -> tuple[Any, int | None]:
        interface = a.__cuda_array_interface__
        array, producer = DeviceArray(a, interface), interface.get("stream")
        return array, ((current_stream(a) or None) if producer is None else producer)  # PyTorch's has no stream

    def give(self, results: Sequence[Any]) -> list[Any]:
        return [result.owner for result in results]

    def current(self) -> Context:
        def empty(shape: Shape, dtype: DType) -> Any:
            array = self.cuda.device_array(shape, dtype, stream=self.stream_of(self.stream) if self.stream else 0)
            return DeviceArray(array, array.__cuda_array_interface__)

        def asnumpy(array: DeviceArray) -> Any:
            return self.cuda.as_cuda_array(array, sync=False).copy_to_host(stream=self.stream_of(self.stream))

        return nullcontext(SimpleNamespace(empty=empty, asnumpy=asnumpy))  # no copyto: it converts no arrays

    @classmethod
    def on_device(cls, device: Any) -> Context:
        return nullcontext() if device is None else numba_cuda().gpus[device.id]

    def stream_of(self, handle: int) -> Any:
        return self.cuda.external_stream(handle) if handle else self.cuda.default_stream()

    def new_stream(self) -> Any:
        return self.cuda.stream()

    def memory_stream(self) -> Any:
        return self.cuda.default_stream()

    def new_event(self) -> Any:
        return self.cuda.event()

    def wait(self, stream: Any, event: Any) -> None:
        event.wait(stream)

    def empty(self, shape: Shape, dtype: DType) -> Any:
        return self.cuda.device_array(shape, dtype)

    @contextmanager
    def pinned(self, shape: Shape, dtype: DType) -> Iterator[Any]:
        # Pinning takes as long as copying, and numba has no pool: what is pinned once is kept for the next call.
        nbytes = prod(shape) * dtype.itemsize
        size = 1 << (nbytes - 1).bit_length()  # so that there are few sizes to keep
        free = self.kept().setdefault(("pinned", size), [])
        try:
            memory = free.pop()
        except IndexError:
            memory = self.cuda.pinned_array(size, np.uint8)
        try:
            yield memory[:nbytes].view(dtype).reshape(shape)
        finally:
            free.append(memory)

    def copy_in(self, to: Any, values: Any, stream: Any) -> None:
        to.copy_to_device(values, stream=stream)

    def copy_out(self, to: Any, values: Any, stream: Any) -> None:
        values.copy_to_host(to, stream=stream)

    def kept(self) -> dict[Any, Any]:
        kept: dict[Any, Any] = self.cuda.current_context().extras.setdefault("sigmoid_l2", {})
        return kept  # as long as the device's context lives
