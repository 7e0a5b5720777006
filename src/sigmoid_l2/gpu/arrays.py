"""CUDA arrays of any library: which arrays they are, and how those of each library are read and made from CuPy's.

Nothing here copies an array or makes the host wait.
"""

import sys
from collections.abc import Sequence
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np

# DLPack's numbers of CUDA memory and of CUDA's managed memory.
_CUDA_MEMORY = (2, 13)


def is_instance(a: Any, library: str, name: str) -> bool:
    """Whether ``a`` is an instance of ``library.name``: it cannot be one if that library is not loaded."""
    # While another thread imports the library, it has no such attribute yet.
    return isinstance(a, getattr(sys.modules.get(library), name, ()))


def type_name(a: Any) -> str:
    """The full name of the class of ``a``, for messages."""
    return f"{type(a).__module__}.{type(a).__qualname__}"


def is_cuda_array(a: Any) -> bool:
    """Whether ``a`` is an array on a CUDA device."""
    if is_instance(a, "cupy", "ndarray"):
        return True
    if is_instance(a, "torch", "Tensor"):  # torch.compile cannot look into its DLPack
        return bool(a.is_cuda)
    # DLPack comes first: PyTorch and JAX have both protocols, and the CUDA array interface also on arrays of the host.
    if hasattr(type(a), "__dlpack_device__"):
        try:
            return a.__dlpack_device__()[0] in _CUDA_MEMORY
        except Exception:  # a sharded array, for one, which NumPy may be able to read
            return False
    # On its class it is found without computing it, which takes numba's arrays microseconds.
    return hasattr(type(a), "__cuda_array_interface__") or hasattr(a, "__cuda_array_interface__")


def is_read_only(a: Any, interface: dict[str, Any] | None = None) -> bool:
    """Whether a CUDA array must not be written to, as none of JAX's may be; ``interface`` is its own, where known."""
    if is_instance(a, "jax", "Array"):
        return True
    if interface is None:
        interface = getattr(a, "__cuda_array_interface__", {})
    return bool(interface.get("data", (0, False))[1])


def address(a: Any) -> int:
    """Where an array of CuPy or of numba, or a DeviceArray, begins on the device."""
    return int(a.data.ptr if hasattr(a, "data") else a.device_ctypes_pointer.value)


def bounds(a: Any) -> tuple[int, int]:
    """The addresses on the device between which the elements of ``a`` lie; ``a`` is CuPy's or a DeviceArray."""
    first = last = a.data.ptr
    if a.flags.c_contiguous:  # as empty arrays are
        return first, first + a.size * a.itemsize
    for size, stride in zip(a.shape, a.strides, strict=True):
        first += min(0, (size - 1) * stride)
        last += max(0, (size - 1) * stride)
    return first, last + a.itemsize


def current_stream(a: Any) -> int:
    """The handle of the stream on which the library of ``a`` works now; 0, the default one, where it is not known."""
    if is_instance(a, "cupy", "ndarray"):
        return int(sys.modules["cupy"].cuda.get_current_stream(a.device.id).ptr)
    if is_instance(a, "torch", "Tensor"):
        return int(sys.modules["torch"].cuda.current_stream(a.device).cuda_stream)
    return 0


def from_cupy(arrays: Sequence[Any], like: Any) -> list[Any]:
    """CuPy arrays as arrays of the library of ``like``, if it can take them over: the same memory."""
    for cls in () if is_instance(like, "cupy", "ndarray") else type(like).__mro__:
        library = cls.__module__.partition(".")[0]
        if library in ("numba", "numba_cuda_mlir"):
            return [sys.modules[library].cuda.as_cuda_array(array, sync=False) for array in arrays]
        if library in ("jax", "jaxlib"):
            jax = sys.modules["jax"]
            with jax.enable_x64(True):  # without it JAX converts float64 to float32
                return [*map(jax.numpy.from_dlpack, arrays)]
        from_dlpack = getattr(sys.modules.get(library), "from_dlpack", None)
        if from_dlpack is not None:
            return [*map(from_dlpack, arrays)]
    return list(arrays)


class DeviceArray:
    """A C-contiguous array on numba's current device, with as many attributes of CuPy's as the host side uses.

    Its memory is that of ``owner``, an array of any library, which has this CUDA array interface.
    """

    flags = SimpleNamespace(c_contiguous=True)
    device = None

    def __init__(self, owner: Any, interface: dict[str, Any], shape: tuple[int, ...] | None = None) -> None:
        given = tuple(interface["shape"])
        self.owner, self.interface = owner, interface
        self.shape = given if shape is None else shape
        self.dtype = np.dtype(interface["typestr"])
        self.itemsize, self.size, self.ndim = self.dtype.itemsize, prod(self.shape), len(self.shape)
        self.data = SimpleNamespace(ptr=interface["data"][0])
        for axis, stride in enumerate((interface.get("strides") or ()) if self.size else ()):
            if given[axis] > 1 and stride != prod(given[axis + 1 :]) * self.itemsize:
                raise ValueError("it is not C-contiguous")
        if not self.dtype.isnative or interface.get("mask") is not None:
            raise ValueError("it has a mask or another byte order")

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self.interface, "shape": self.shape, "strides": None, "stream": None, "version": 3}

    def reshape(self, *shape: int) -> "DeviceArray":
        """The same memory in another shape, of which one size may be -1."""
        known = -prod(shape) if -1 in shape else 1
        full = tuple(self.size // max(1, known) if size == -1 else size for size in shape)
        return DeviceArray(self.owner, self.interface, full)

    def __getitem__(self, index: Any) -> "DeviceArray":
        """``a[None]``, or ``a[..., 0]`` where the last axis is 1."""
        return self.reshape(1, *self.shape) if index is None else self.reshape(*self.shape[:-1])
