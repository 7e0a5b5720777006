"""As much of CuPy as the host side of the library touches, in host memory: it stands in where there is no GPU.

``ndarray`` is a NumPy array of another type, so the library must keep it apart from NumPy's. The streams are those of
fake_gpu. ``install`` puts the module, kernels and other libraries' arrays in place.
"""

import contextlib
import ctypes
import dataclasses
import sys
from types import SimpleNamespace

import numpy as np
from fake_gpu import Device, Event, Operation, Stream, current, log, queue, reset

from sigmoid_l2 import dispatch
from sigmoid_l2.gpu.arrays import address
from sigmoid_l2.kernels import reference


def order(consumer, producer):
    """What a library that exports an array does: the consumer waits for an event on the producer's stream."""
    if consumer != producer:
        event = Event()
        event.record(Stream(handle=producer))
        Stream(handle=consumer).wait_event(event)


class ndarray(np.ndarray):  # noqa: N801 - CuPy's name
    """A NumPy array that says it is on a device."""

    number = 0

    def __array_finalize__(self, base):
        self.number = getattr(base, "number", current()[0])

    @property
    def device(self):
        return Device(self.number)

    @property
    def data(self):
        return SimpleNamespace(
            ptr=self.ctypes.data,
            copy_from_host_async=lambda address, size, stream: copy("copy in", self, at(address, size), stream),
            copy_to_host_async=lambda address, size, stream: copy("copy out", at(address, size), self, stream),
        )

    @property
    def __cuda_array_interface__(self):
        return {**self.__array_interface__, "stream": current()[1] or 1}

    def __dlpack__(self, *, stream):
        order(stream, current()[1] or 1)
        return self


def copy(kind, to, values, stream):
    """Queue a copy between pinned memory and the device."""
    assert all(a.flags.c_contiguous for a in (to, values))
    assert to.nbytes == values.nbytes
    to, values = (a.reshape(-1).view(np.uint8) for a in (to, values))
    queue(stream, Operation(kind, lambda: np.copyto(to, values)))


def at(address, size):
    """The memory at an address."""
    interface = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3}
    return np.asarray(SimpleNamespace(__array_interface__=interface))


def on_host(a):
    """The memory of an array with a CUDA array interface, as a NumPy array."""
    interface = {k: v for k, v in a.__cuda_array_interface__.items() if k != "stream"}
    return np.asarray(SimpleNamespace(__array_interface__=interface, owner=a))


def asarray(a):
    """A copy of a host array; of a CUDA array, the same memory, for whose stream CuPy waits."""
    if not hasattr(a, "__cuda_array_interface__"):
        return np.array(a).view(ndarray)
    if a.__cuda_array_interface__.get("stream") is not None:
        log.append(("synchronize",))
    return on_host(a).view(ndarray)


def from_dlpack(a):
    with Device(a.__dlpack_device__()[1]):
        return a.__dlpack__(stream=current()[1] or 1, max_version=(1, 0))


def empty(shape, dtype):
    array = np.empty(shape, dtype).view(ndarray)
    log.append(("allocate", array.nbytes))
    return array


def asnumpy(a):
    return np.array(a)


def full(shape, value):
    return np.full(shape, value).view(ndarray)


def broadcast_to(a, shape):
    return np.broadcast_to(a, shape, subok=True)


def where(condition, a, b):
    return np.where(condition, a, b).view(ndarray)


zeros_like, empty_like, isnan = np.zeros_like, np.empty_like, np.isnan


def copyto(to, values):
    assert isinstance(to, ndarray)
    assert isinstance(values, ndarray), "a device array is filled from a device array"
    np.copyto(to.view(np.ndarray), values.view(np.ndarray), casting="same_kind")


cuda = SimpleNamespace(
    get_current_stream=lambda device=None: Stream(handle=current()[1]),
    alloc_pinned_memory=bytearray,
    Stream=Stream,
    Event=Event,
    Device=Device,
)


def compute_shared(W, x, target, cotangent, loss, dW, dx, dq):
    """The reference in the place of the kernel for one W."""
    terms = None if dW is None else np.empty((len(x), *W.shape), W.dtype)
    reference.fused(np.repeat(W[None], len(x), 0), x, target, cotangent, loss, terms, dx, dq)
    if dW is not None:
        np.sum(terms, 0, out=dW)


class RecordingKernel:
    """The reference in the place of GPU kernels: ``calls`` has device and stream, ``pointers`` addresses."""

    def __init__(self, computes=reference.fused):
        self.calls, self.pointers, self.names, self.computes = [], [], [], computes

    def has_shared(self, m, n, itemsize):
        return True

    def fused(self, *given, stream=None):
        self.launch("fused", self.computes, given, stream)

    def shared(self, *given, stream=None):
        self.launch("shared", compute_shared, given, stream)

    def batch_last(self, *given, stream=None):
        self.launch("batch_last", reference.batch_last, given, stream)

    def launch(self, name, computes, given, stream):
        arrays = [None if a is None else on_host(a) for a in given]
        for a in arrays:
            if name == "batch_last":
                assert a is None or a.shape[-1] == 1 or a.strides[-1] == a.itemsize
            else:
                assert a is None or a.flags.c_contiguous
        assert all(a is None or address(a) == on_host(a).ctypes.data for a in given)
        log.append(("kernel", stream))
        self.names.append(name)
        self.calls.append((current()[0], stream))
        self.pointers.append([a.ctypes.data for a in arrays if a is not None])
        queue(Stream(handle=stream), Operation("kernel", lambda: computes(*arrays)))


class Owned:
    """An array of some library that has the CUDA array interface: ``held`` is its memory, ``stream`` what it says."""

    __module__ = "somebody"

    def __init__(self, held, stream=None, read_only=False):
        self.held, self.stream, self.read_only = held, stream, read_only
        self.shape, self.dtype, self.device = held.shape, held.dtype, held.device

    @property
    def __cuda_array_interface__(self):
        interface = self.held.__cuda_array_interface__
        return {**interface, "data": (interface["data"][0], self.read_only), "stream": self.stream}


class DeviceNDArray(Owned):
    """numba's."""

    __module__ = "numba.cuda.cudadrv.devicearray"

    @property
    def nbytes(self):
        return self.held.nbytes

    @property
    def device_ctypes_pointer(self):
        return ctypes.c_void_p(self.held.ctypes.data)

    def is_c_contiguous(self):
        return self.held.flags.c_contiguous

    def __getitem__(self, index):
        return DeviceNDArray(self.held[index], self.stream)

    def copy_to_device(self, values, stream):
        copy("copy in", on_host(self), values, stream)

    def copy_to_host(self, to, stream):
        copy("copy out", to, on_host(self), stream)


class Tensor(Owned):
    """PyTorch's: what requires a gradient is not exported."""

    __module__ = "torch"
    requires_grad = False
    is_cuda = True
    current_stream = 5

    def detach(self):
        return Tensor(self.held)

    def __dlpack_device__(self):
        return 2, self.held.number

    def __dlpack__(self, *, stream=-1, max_version=None):
        if self.requires_grad:
            raise BufferError("Can't export tensors that require gradient, use tensor.detach()")
        order(stream, self.current_stream)
        return self.held


class Array:
    """JAX's: immutable, which DLPack does not tell."""

    __module__ = "jaxlib._jax"
    work_stream = 9

    def __init__(self, held):
        self.held = held

    def __dlpack_device__(self):
        return 2, self.held.number

    def __dlpack__(self, *, stream=None, max_version=None):
        order(stream, self.work_stream)
        return self.held


def _numba_cuda():
    def as_cuda_array(a, sync=True):
        assert not sync
        return DeviceNDArray(asarray(Owned(a)), a.__cuda_array_interface__.get("stream"))

    class Devices:
        def __len__(self):
            return 2

        @contextlib.contextmanager
        def __getitem__(self, number):
            log.append(("numba device", number))
            yield

    context = SimpleNamespace(extras={})

    return SimpleNamespace(
        gpus=Devices(),
        as_cuda_array=as_cuda_array,
        device_array=lambda shape, dtype, stream=0: DeviceNDArray(empty(shape, dtype), stream.ptr if stream else None),
        pinned_array=np.empty,
        current_context=lambda: context,
        stream=Stream,
        external_stream=lambda handle: Stream(handle=handle),
        default_stream=lambda: Stream(handle=0),
        event=Event,
    )


def install(monkeypatch):
    """Put this module in CuPy's place, numba-cuda, PyTorch and JAX beside it; it gets ``kernels`` by backend name."""
    numba_cuda = _numba_cuda()
    kernels = {b.name: RecordingKernel() for b in dispatch.BACKENDS if b.device == "cuda"}
    table = [dataclasses.replace(b, probe=lambda: None) if b.name in kernels else b for b in dispatch.BACKENDS]
    for b in table:
        if b.name in kernels:
            vars(b)["kernel"] = kernels[b.name]  # which it would import
    module = sys.modules[__name__]
    torch = SimpleNamespace(
        Tensor=Tensor,
        cuda=SimpleNamespace(current_stream=lambda device: SimpleNamespace(cuda_stream=Tensor.current_stream)),
        from_dlpack=lambda a: Tensor(a.__dlpack__(stream=Tensor.current_stream)),
        autograd=SimpleNamespace(forward_ad=SimpleNamespace(unpack_dual=lambda a: SimpleNamespace(tangent=None))),
        is_grad_enabled=lambda: True,
    )
    jax_numpy = SimpleNamespace(from_dlpack=lambda a: Array(a.__dlpack__(stream=Array.work_stream)))
    jax = SimpleNamespace(Array=Array, numpy=jax_numpy, enable_x64=contextlib.nullcontext)
    modules = {"cupy": module, "numba": SimpleNamespace(cuda=numba_cuda), "torch": torch, "jax": jax}
    for name, stand_in in {**modules, "jax.numpy": jax_numpy}.items():
        monkeypatch.setitem(sys.modules, name, stand_in)
    monkeypatch.setattr(dispatch, "BACKENDS", tuple(table))
    monkeypatch.setattr("sigmoid_l2.gpu.why_not", lambda probe: None)
    monkeypatch.setattr("sigmoid_l2.gpu.numba_library.numba_cuda", lambda: numba_cuda)
    monkeypatch.setattr("sigmoid_l2.gpu.cupy_library.CupyLibrary._kept", {})
    monkeypatch.setattr(module, "kernels", kernels, raising=False)
    reset()
    return module
