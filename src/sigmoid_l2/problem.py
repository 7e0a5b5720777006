"""Every check of arrays, shapes, dtypes and ``out``, in one place: arguments in, one validated Problem out."""

import math
import sys
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

Device = Literal["cpu", "cuda"]

DTYPES = ("float16", "float32", "float64")
_CHARS = "?bBhHiIlLqQefd"  # NumPy's characters of bool, the integers and those three


class Problem(NamedTuple):
    """A validated batch. Arrays are views of the caller's, still in their own layout, byte order and dtype."""

    W: Any  # (*batch, m, n)
    x: Any  # (*batch, n)
    batch: tuple[int, ...]
    m: int
    n: int
    dtype: np.dtype[Any]  # of the results: float16, float32 or float64, native byte order
    device: Device  # where W and x live
    column: bool  # x came as columns (*batch, n, 1)

    @property
    def B(self) -> int:  # noqa: N802 - the name of the mathematics
        """The number of pairs."""
        return math.prod(self.batch)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that the caller gets for the output ``name`` ("loss", "dW" or "dx")."""
        if name == "loss":
            return self.batch
        shape: tuple[int, ...] = self.W.shape if name == "dW" else self.x.shape
        return (*shape, 1) if self.column and name == "dx" else shape


def validate(W: Any, x: Any) -> Problem:
    """Check W and x against each other.

    Raises TypeError for a wrong kind of array or dtype and for W and x in different places, ValueError for
    shapes that do not fit. Nothing is copied except an array-like (a nested list), which becomes an array.
    """
    device: Device = "cpu"
    # The common case takes a short way: a small call lasts a few microseconds.
    if not (type(W) is np.ndarray and type(x) is np.ndarray and W.dtype.char in _CHARS and x.dtype.char in _CHARS):
        device, W, x = _as_arrays(W, x)
    shape, given = W.shape, x.shape
    batch = shape[:-2]
    fits = len(shape) >= 2 and given == batch + shape[-1:] and 0 not in shape[-2:]
    column = not fits and _check_shapes(shape, given)
    dtype = W.dtype if W.dtype is x.dtype and W.dtype.char in "efd" and W.dtype.isnative else _result_dtype(W, x)
    return Problem(W, x[..., 0] if column else x, batch, shape[-2], shape[-1], dtype, device, column)


def _as_arrays(W: Any, x: Any) -> tuple[Device, Any, Any]:
    device_W, W = as_array("W", W)
    device_x, x = as_array("x", x)
    if device_W != device_x:
        where = {"cpu": "in host memory", "cuda": "on a CUDA device"}
        raise TypeError(
            f"W and x must be in the same place, but W is {where[device_W]} and x is {where[device_x]}; "
            "move one of them with cupy.asarray(a) or cupy.asnumpy(a)"
        )
    if device_W == "cuda" and W.device != x.device:
        raise ValueError(f"W and x must be on the same CUDA device, but W is on {W.device} and x is on {x.device}")
    return device_W, W, x


def validate_out(problem: Problem, names: Sequence[str], out: Any) -> None:
    """Check the arrays given as ``out`` for the outputs ``names``; ValueError for anything a result cannot go into."""
    if not isinstance(out, tuple | list) or len(out) != len(names):
        raise ValueError(f"out must be a tuple of {len(names)} arrays ({', '.join(names)}), not {_describe(out)}")
    checked: list[tuple[str, Any]] = [("W", problem.W), ("x", problem.x)]
    for name, array in zip(names, out, strict=True):
        _check_output(problem, name, array)
        for other_name, other in checked:
            if _overlap(problem.device, array, other):
                raise ValueError(f"out: {name} shares memory with {other_name}; every output needs memory of its own")
        checked.append((name, array))


def as_array(name: str, a: Any) -> tuple[Device, Any]:
    """Where ``a`` lives, and ``a`` as an array; TypeError for a kind or dtype that is not supported."""
    if isinstance(a, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask has no meaning here; pass {name}.filled(value)")
    # An array of CuPy's exists only where cupy is imported; while another thread imports it, it has no ndarray yet.
    if isinstance(a, getattr(sys.modules.get("cupy"), "ndarray", ())):
        return "cuda", _check_dtype(name, a)
    if not isinstance(a, np.ndarray) and hasattr(a, "__cuda_array_interface__"):
        raise TypeError(
            f"{name} is a CUDA array of type {type(a).__module__}.{type(a).__qualname__}; "
            f"pass cupy.asarray({name}), which copies nothing"
        )
    try:
        array = np.asarray(a)
    except ValueError as error:
        raise ValueError(f"{name} cannot be made into an array: {error}") from error
    return "cpu", _check_dtype(name, array)


def _check_dtype(name: str, a: Any) -> Any:
    if a.dtype.char not in _CHARS:
        raise TypeError(
            f"{name} has dtype {a.dtype}; supported are {', '.join(DTYPES)}, integers and bool (computed in float64)"
        )
    return a


def _check_shapes(W: tuple[int, ...], x: tuple[int, ...]) -> bool:
    """Return whether x is given as columns; ValueError where W and x do not fit together."""
    if len(W) >= 2 and W[-1] and W[-2]:
        n = W[-1]
        if x == (*W[:-2], n):
            return False
        if x == (*W[:-2], n, 1) and n != 1:
            return True
    raise ValueError(f"{_why_shapes_do_not_fit(W)}; got W {W} and x {x}")


def _why_shapes_do_not_fit(W: tuple[int, ...]) -> str:
    if len(W) < 2:
        return "W must have at least 2 dimensions, (..., m, n)"
    *batch, m, n = W
    if m == 0 or n == 0:
        return "m and n must be at least 1 in W (..., m, n)"
    columns = f" or, as columns, {(*batch, n, 1)}" if n != 1 else ""
    return f"for this W, x must have shape {(*batch, n)}{columns}"


def _result_dtype(W: Any, x: Any) -> np.dtype[Any]:
    dtype = np.result_type(W.dtype, x.dtype)
    return dtype if dtype.kind == "f" else np.dtype(np.float64)


def _check_output(problem: Problem, name: str, array: Any) -> None:
    if problem.device == "cpu":
        right_kind = type(array) is np.ndarray or (
            isinstance(array, np.ndarray) and not isinstance(array, np.ma.MaskedArray)
        )
        kind = "a numpy.ndarray"
    else:
        right_kind = isinstance(array, sys.modules["cupy"].ndarray)
        kind = "a cupy.ndarray"
    if not right_kind:
        raise ValueError(f"out: {name} must be {kind}, like the inputs, not {_describe(array)}")
    shape = problem.shape(name)
    if array.shape != shape:
        raise ValueError(f"out: {name} must have shape {shape}, not {array.shape}")
    if array.dtype.type is not problem.dtype.type:  # in either byte order
        raise ValueError(f"out: {name} must have dtype {problem.dtype}, not {array.dtype}")
    if problem.device == "cpu" and not array.flags.writeable:
        raise ValueError(f"out: {name} is read-only")
    if problem.device == "cuda" and array.device != problem.W.device:
        raise ValueError(f"out: {name} is on {array.device}, but the inputs are on {problem.W.device}")
    if _overlaps_itself(array):
        raise ValueError(f"out: {name} is a view with strides {array.strides}, in which elements share memory")


def _overlaps_itself(a: Any) -> bool:
    """Whether two elements of ``a`` may share memory. Sufficient for every view that slicing and transposing make."""
    if a.flags.c_contiguous or a.size == 0:
        return False
    extent = a.itemsize
    for size, stride in sorted(zip(a.shape, a.strides, strict=True), key=lambda axis: abs(axis[1])):
        if size > 1:
            if abs(stride) < extent:
                return True
            extent += (size - 1) * abs(stride)
    return False


def _overlap(device: Device, a: Any, b: Any) -> bool:
    if device == "cuda":  # by their bounds: an exact answer would have to wait for the device
        return bool(sys.modules["cupy"].may_share_memory(a, b))
    if not np.may_share_memory(a, b):  # by their bounds, which settles nearly every case and takes half the time
        return False
    max_work: Any = 10_000  # the exact question is NP-hard; views met in practice are answered within this bound
    try:
        return np.shares_memory(a, b, max_work=max_work)
    except np.exceptions.TooHardError:
        return True


def _describe(a: Any) -> str:
    if isinstance(a, tuple | list):
        return f"a {type(a).__name__} of {len(a)}"
    return f"{type(a).__module__}.{type(a).__qualname__}"
