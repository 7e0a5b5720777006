"""Every check of arrays, shapes, dtypes and ``out``, in one place: arguments in, one validated Problem out."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from sigmoid_l2.gpu import arrays as gpu_arrays

Device = Literal["cpu", "cuda"]

DTYPES = ("float16", "float32", "float64")
# NumPy's numbers of those three, and with bool and the integers; other libraries' dtypes share its characters.
_FLOATS = frozenset(np.dtype(name).num for name in DTYPES)
_NUMBERS = _FLOATS | {np.dtype(char).num for char in "?bBhHiIlLqQ"}


class Problem(NamedTuple):
    """A validated batch. Arrays are views of the caller's, still in their own layout, byte order and dtype.

    CUDA arrays of any library are held as CuPy's, or where there is no CuPy as ``gpu_arrays.DeviceArray``.
    """

    W: Any  # (*batch, m, n)
    x: Any  # (*batch, n)
    batch: tuple[int, ...]
    m: int
    n: int
    dtype: np.dtype[Any]  # of the results: float16, float32 or float64, native byte order
    device: Device  # where W and x live
    column: bool  # x came as columns (*batch, n, 1)
    place: gpu_arrays.Place | None  # with CUDA arrays: the device and stream of the call, and the kind of its results

    @property
    def B(self) -> int:  # noqa: N802 - the name of the mathematics
        """The number of pairs."""
        return math.prod(self.batch)

    def on_host(self, a: Any) -> Any:
        """``W`` or ``x`` in host memory."""
        return a if self.place is None else self.place.to_host(a)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that the caller gets for the output ``name`` ("loss", "dW" or "dx")."""
        if name == "loss":
            return self.batch
        shape: tuple[int, ...] = self.W.shape if name == "dW" else self.x.shape
        return (*shape, 1) if self.column and name == "dx" else shape

    @property
    def pair_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of one pair's W, x, loss, dW and dx."""
        return (self.m, self.n), (self.n,), (), (self.m, self.n), (self.n,)

    def pieces(self, pairs: int) -> Iterator[tuple[Any, ...]]:
        """Index tuples that cut the batch axes into pieces of at most ``pairs`` pairs, each pair once."""
        batch = self.batch
        if not batch:
            yield (...,)
            return
        # Cut along the first axis of which one step is small enough; take the axes before it step by step.
        axis = next(axis for axis in range(len(batch)) if math.prod(batch[axis + 1 :]) <= pairs)
        step = pairs // math.prod(batch[axis + 1 :])
        for outer in np.ndindex(*batch[:axis]):
            for first in range(0, batch[axis], step):
                # The Ellipsis keeps a single element an array, so that it can be written to.
                yield (*outer, slice(first, first + step), ...)


def validate(W: Any, x: Any, stream: Any = None) -> Problem:
    """Check W and x against each other; ``stream`` is where CUDA arrays are to be computed, as the caller gave it.

    Raises TypeError for a wrong kind of array or dtype and for W and x in different places, ValueError for
    shapes that do not fit. Nothing is copied except an array-like (a nested list), which becomes an array.
    """
    place = None
    # The common case takes a short way: a small call lasts a few microseconds.
    if not (type(W) is np.ndarray and type(x) is np.ndarray and W.dtype.num in _NUMBERS and x.dtype.num in _NUMBERS):
        place, W, x = _as_arrays(W, x, stream)
    shape, given = W.shape, x.shape
    batch = shape[:-2]
    fits = len(shape) >= 2 and given == batch + shape[-1:] and 0 not in shape[-2:]
    column = not fits and _check_shapes(shape, given)
    dtype = W.dtype if W.dtype is x.dtype and W.dtype.num in _FLOATS and W.dtype.isnative else _result_dtype(W, x)
    device: Device = "cpu" if place is None else "cuda"
    return Problem(W, x[..., 0] if column else x, batch, shape[-2], shape[-1], dtype, device, column, place)


def _as_arrays(W: Any, x: Any, stream: Any) -> tuple[gpu_arrays.Place | None, Any, Any]:
    on_cuda = [gpu_arrays.is_cuda_array(a) for a in (W, x)]
    if on_cuda == [False, False]:
        return None, _host_array("W", W), _host_array("x", x)
    if on_cuda == [True, True]:
        place = gpu_arrays.place("W", W, stream)
        return place, *(_check_dtype(name, place.take(name, a)) for name, a in (("W", W), ("x", x)))
    host, cuda, array = ("x", "W", W) if on_cuda[0] else ("W", "x", x)
    raise TypeError(
        f"W and x must be in the same place, but {host} is in host memory and {cuda} is a CUDA array of type "
        f"{_describe(array)}; pass cupy.asarray({host}), or cupy.asarray({cuda}).get()"
    )


def validate_out(problem: Problem, names: Sequence[str], out: Any) -> list[Any]:
    """Check the arrays given as ``out`` for the outputs ``names``, and return them as arrays of the kind of problem.W.

    Raises ValueError for anything a result cannot go into.
    """
    if not isinstance(out, tuple | list) or len(out) != len(names):
        raise ValueError(f"out must be a tuple of {len(names)} arrays ({', '.join(names)}), not {_describe(out)}")
    on_host = problem.place is None
    arrays = list(out) if on_host else [_as_output(problem.place, *given) for given in zip(names, out, strict=True)]
    # Of CUDA arrays the bounds must do: an exact answer would have to wait for the device.
    checked = [(name, a if on_host else gpu_arrays.bounds(a)) for name, a in (("W", problem.W), ("x", problem.x))]
    for name, array in zip(names, arrays, strict=True):
        _check_output(problem, name, array)
        memory = array if on_host else gpu_arrays.bounds(array)
        for other_name, other in checked:
            if _overlap(memory, other) if on_host else max(memory[0], other[0]) < min(memory[1], other[1]):
                raise ValueError(f"out: {name} shares memory with {other_name}; every output needs memory of its own")
        checked.append((name, memory))
    return arrays


def _as_output(place: Any, name: str, a: Any) -> Any:
    if not gpu_arrays.is_cuda_array(a):
        raise ValueError(f"out: {name} must be a CUDA array, like the inputs, not {_describe(a)}")
    try:
        array = place.take(f"out: {name}", a)
    except TypeError as error:
        raise ValueError(str(error)) from error
    if gpu_arrays.is_read_only(a):
        raise ValueError(f"out: {name} is read-only")
    return array


def host_array(name: str, a: Any) -> Any:
    """``a`` as a NumPy array, copied from a device where it is on one; TypeError for a kind or dtype not supported."""
    if not gpu_arrays.is_cuda_array(a):
        return _host_array(name, a)
    place = gpu_arrays.place(name, a, None)
    return place.to_host(_check_dtype(name, place.take(name, a)))


def _host_array(name: str, a: Any) -> Any:
    if isinstance(a, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask has no meaning here; pass {name}.filled(value)")
    try:
        array = np.asarray(a)
    except ValueError as error:
        raise ValueError(f"{name} cannot be made into an array: {error}") from error
    _check_dtype(name, array)
    if isinstance(a, list | tuple) and _holds_masked(a):
        raise TypeError(f"{name} holds masked arrays, whose masks have no meaning here; pass their filled(value)")
    return array


def _holds_masked(a: list[Any] | tuple[Any, ...]) -> bool:
    """Whether there is a masked array in a nested list, which has become an array without the mask."""
    kinds = set(map(type, a))  # of millions of numbers: one
    if kinds.isdisjoint((list, tuple)):
        return any(issubclass(kind, np.ma.MaskedArray) for kind in kinds)
    return any(isinstance(b, np.ma.MaskedArray) or (isinstance(b, list | tuple) and _holds_masked(b)) for b in a)


def _check_dtype(name: str, a: Any) -> Any:
    if a.dtype.num not in _NUMBERS:
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
    dtype = dtype if dtype.kind == "f" else np.dtype(np.float64)
    if isinstance(W, gpu_arrays.DeviceArray):
        raise TypeError(
            f"W has dtype {W.dtype} and x {x.dtype}, which only CuPy can convert on the device: install it, "
            f"or pass both in {dtype}"
        )
    return dtype


def _check_output(problem: Problem, name: str, array: Any) -> None:
    on_host = problem.place is None
    if on_host and type(array) is not np.ndarray and not _is_plain(array):
        raise ValueError(f"out: {name} must be a numpy.ndarray, like the inputs, not {_describe(array)}")
    shape = problem.shape(name)
    if array.shape != shape:
        raise ValueError(f"out: {name} must have shape {shape}, not {array.shape}")
    if array.dtype.type is not problem.dtype.type:  # in either byte order
        raise ValueError(f"out: {name} must have dtype {problem.dtype}, not {array.dtype}")
    if on_host and not array.flags.writeable:
        raise ValueError(f"out: {name} is read-only")
    if _overlaps_itself(array):
        raise ValueError(f"out: {name} is a view with strides {array.strides}, in which elements share memory")


def _is_plain(a: Any) -> bool:
    return isinstance(a, np.ndarray) and not isinstance(a, np.ma.MaskedArray)


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


def _overlap(a: Any, b: Any) -> bool:
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
