"""Arrays of PyTorch and JAX in host memory: as views for NumPy, and results as arrays of W's library.

Neither library is imported: where it is not loaded, nobody can give its arrays. No input is copied; nor is a result,
except that JAX copies what does not begin on a line of the caches, as the results do that are allocated for it.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, TypeVar

import numpy as np

from sigmoid_l2.gpu.arrays import is_instance, type_name

DType = np.dtype[Any]
_F = TypeVar("_F", bound=Callable[..., Any])

# dtype.num of what a library need not be asked about: float16, float32 and, but for JAX, float64.
_FLOATS = tuple(np.dtype(char).num for char in "efd")

# What torch.compile(fullgraph=True) tells the caller.
_NO_GRAPH = "sigmoid_l2.torch.value can be a part of a graph, the calls that take arrays of any library cannot"


def untracked(name: str, a: Any) -> Any:
    """``a``, on the host or a device, without the gradient that nobody asks for where gradients are switched off.

    Raises TypeError for what autograd or a transform follows, since the results of a plain call would be constants for
    it: a tensor that requires a gradient, and whatever torch.func, jax.jit, jax.grad and their like pass on.
    """
    if is_instance(a, "torch", "Tensor"):
        torch, instead = sys.modules["torch"], "use sigmoid_l2.torch.value, which has a gradient"
        if _is_wrapped(torch, a):
            raise TypeError(f"{name} is a tensor of a transform of torch.func; {instead}")
        if torch.autograd.forward_ad.unpack_dual(a).tangent is not None:
            raise TypeError(f"{name} is a tensor with a tangent, which would be lost; pass it with .detach()")
        if not a.requires_grad:
            return a
        if torch.is_grad_enabled():
            raise TypeError(f"{name} is a tensor that requires a gradient; {instead}, or pass it with .detach()")
        return a.detach()
    if is_instance(a, "torch.fx", "Proxy"):
        raise TypeError(f"{name} is a value of torch.fx, which traces a program; use sigmoid_l2.torch.value")
    if is_instance(a, "jax.core", "Tracer"):
        raise TypeError(f"{name} is an array of a transform of JAX, such as jit; use sigmoid_l2.jax.value")
    return a


def _is_wrapped(torch: Any, a: Any) -> bool:
    """Whether a transform of torch.func made this tensor, which PyTorch tells nowhere in public."""
    try:
        return bool(torch._C._functorch.is_functorch_wrapped_tensor(a))
    except AttributeError:  # of another version: such a tensor has no numbers to read
        return False


def as_numpy(name: str, a: Any) -> Any:
    """A view of an array of PyTorch or JAX that is ``untracked``; anything else as it is.

    Raises TypeError where there is no such view: the array is elsewhere, or its numbers are not in one array.
    """
    if is_instance(a, "torch", "Tensor"):
        torch = sys.modules["torch"]
        try:
            if a.dtype is not torch.bfloat16:
                return a.numpy()
            view = a.view(torch.int16).numpy()
        except Exception as error:
            raise TypeError(_why_no_view(name, a, error)) from error
        return view.view(_numpy_dtype(name, a.dtype))
    if is_instance(a, "jax", "Array"):
        try:
            devices = [*a.devices()]
            if len(devices) == 1 and devices[0].platform == "cpu":
                return np.asarray(a)
            where = f"spread over {len(devices)} devices" if len(devices) > 1 else f"on {devices[0]}"
        except Exception as error:
            raise TypeError(f"{name}, an array of JAX, cannot be read: {error}") from error
        raise TypeError(f"{name} is an array of JAX {where}; pass numpy.asarray({name}), a copy in host memory")
    return a


def _why_no_view(name: str, a: Any, error: Exception) -> str:
    """Why NumPy has no view of a tensor, and what to pass."""
    if a.is_nested:
        return f"{name} is a nested tensor; call once for each of {name}.unbind()"
    if str(a.layout) != "torch.strided":
        return f"{name} is a tensor with the layout {a.layout}; pass {name}.to_dense()"
    if a.is_quantized:
        return f"{name} is a quantized tensor; pass {name}.dequantize()"
    if a.device.type == "meta":
        return f"{name} is a tensor on the device meta, which has no numbers"
    if a.device.type != "cpu":
        return f"{name} is a tensor on the device {a.device}; pass {name}.cpu()"
    if a.is_conj() or a.is_neg():
        return f"{name} is a tensor whose numbers are still to be conjugated; pass {name}.resolve_conj().resolve_neg()"
    if type_name(a) in ("torch.Tensor", "torch.nn.parameter.Parameter"):
        return f"{name} has dtype {a.dtype}, which NumPy does not have; pass {name}.float()"
    return (
        f"{name}, a tensor of type {type_name(a)}, cannot be read as an array: {error}; where tensors have no numbers "
        "yet, use sigmoid_l2.torch.value"
    )


def _numpy_dtype(name: str, dtype: Any) -> DType:
    """NumPy's dtype for one of PyTorch's; bfloat16 is of the package ml_dtypes."""
    called = str(dtype).removeprefix("torch.")
    if called != "bfloat16":
        return np.dtype(called)
    try:
        bfloat16: DType = np.dtype(import_module("ml_dtypes").bfloat16)
    except ModuleNotFoundError as error:
        message = f"{name} has dtype {dtype}, for which NumPy needs the package ml_dtypes: pip install ml_dtypes"
        raise TypeError(message) from error
    return bfloat16


class HostLibrary(ABC):
    """The library of W in host memory, for one call."""

    gives_views = True  # whether ``give`` keeps the layout of arrays whose axes lie in another order in memory
    needs_lines = False  # whether ``give`` copies results that do not begin on a line of the caches

    def __init__(self, W: Any) -> None:
        self.W = W

    @abstractmethod
    def result_dtype(self, W: Any, x: Any, given_x: Any) -> DType:
        """The dtype of W * x * 1.0 by the library's own promotion; W and x are NumPy's views of W and ``given_x``."""

    @abstractmethod
    def take_result(self, name: str, a: Any) -> Any:
        """NumPy's view of an array to write to; ValueError where there is none."""

    @abstractmethod
    def give(self, results: Sequence[Any]) -> list[Any]:
        """New NumPy arrays as the library's."""

    @abstractmethod
    def mark_written(self) -> None:
        """Let the library know that what ``take_result`` took has been written to."""


class Torch(HostLibrary):
    """PyTorch."""

    def __init__(self, W: Any) -> None:
        super().__init__(W)
        self.torch = sys.modules["torch"]
        self.taken: list[Any] = []

    def result_dtype(self, W: Any, x: Any, given_x: Any) -> DType:
        if W.dtype is x.dtype and W.dtype.num in _FLOATS:
            return W.dtype  # type: ignore[no-any-return]
        torch = self.torch
        default = torch.get_default_dtype()
        of_W, of_x = (getattr(torch, a.dtype.name) for a in (W, x))
        if of_x is torch.float64 and not hasattr(given_x, "dtype"):  # a list of Python's numbers: as torch.tensor does
            of_x = default
        dtypes = {dtype for dtype in (of_W, of_x) if dtype.is_floating_point}
        dtype = torch.promote_types(*dtypes) if len(dtypes) == 2 else dtypes.pop() if dtypes else default
        return _numpy_dtype("W * x", dtype)

    def take_result(self, name: str, a: Any) -> Any:
        if not is_instance(a, "torch", "Tensor"):
            raise ValueError(f"out: {name} must be a torch.Tensor in host memory, like W, not {type_name(a)}")
        try:
            view = as_numpy(f"out: {name}", untracked(f"out: {name}", a))
        except TypeError as error:
            raise ValueError(str(error)) from error
        self.taken.append(a)
        return view

    def give(self, results: Sequence[Any]) -> list[Any]:
        torch = self.torch
        if results[0].itemsize == 2 and results[0].dtype != np.float16:  # bfloat16
            return [torch.from_numpy(a.view(np.int16)).view(torch.bfloat16) for a in results]
        return [*map(torch.from_numpy, results)]

    def mark_written(self) -> None:
        self.torch.autograd.graph.increment_version(self.taken)  # so that backward sees where it needs the old values


class Jax(HostLibrary):
    """JAX."""

    gives_views = False
    needs_lines = True

    def result_dtype(self, W: Any, x: Any, given_x: Any) -> DType:
        if W.dtype is x.dtype and W.dtype.num in _FLOATS[:2]:
            return W.dtype  # type: ignore[no-any-return]
        # JAX warns where 64 bits of its own arrays are more than it is set to have, but not for NumPy's.
        types = [
            given if is_instance(given, "jax", "Array") and a.itemsize < 8 else np.empty(0, a.dtype)
            for given, a in ((self.W, W), (given_x, x))
        ]
        try:
            dtype: DType = np.dtype(sys.modules["jax"].numpy.result_type(*types, 1.0))
        except Exception as error:  # its promotion may be set to be strict
            raise TypeError(f"W and x have no common dtype in JAX: {error}") from error
        return dtype

    def take_result(self, name: str, a: Any) -> Any:
        raise ValueError("out must be left away for a W of JAX, whose arrays cannot be written to")

    def mark_written(self) -> None:
        """Nothing is ever taken."""

    def give(self, results: Sequence[Any]) -> list[Any]:
        device = next(iter(self.W.devices())) if self.W.committed else None
        given: list[Any] = sys.modules["jax"].device_put([*results], device, may_alias=True)
        return given


def library_of(W: Any) -> HostLibrary | None:
    """The library of W, on the host or a device; None for NumPy's arrays and those of any other library."""
    if is_instance(W, "torch", "Tensor"):
        return Torch(W)
    return Jax(W) if is_instance(W, "jax", "Array") else None


def not_inlined(function: _F) -> _F:
    """``function`` as torch.compile calls it, and does not make it a part of the graph: it breaks the graph there.

    It would still look into what ``function`` calls; that is for ``untraced``, which needs PyTorch and some time.
    """
    function._torchdynamo_disable = True  # type: ignore[attr-defined]
    function._torchdynamo_disable_msg = _NO_GRAPH  # type: ignore[attr-defined]
    return function


_untraced: dict[Callable[..., Any], Callable[..., Any]] = {}


def untraced(function: _F) -> _F | Callable[..., Any]:
    """``function`` as torch.compile leaves it alone with all that it calls, where it may be at work."""
    disable = getattr(sys.modules.get("torch._dynamo"), "disable", None)
    if disable is None:
        return function
    if function not in _untraced:
        _untraced[function] = disable(function)
    return _untraced[function]
