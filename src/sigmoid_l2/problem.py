"""Every check of arrays, shapes, dtypes and ``out``: the caller's arguments in, one validated Problem out."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from sigmoid_l2.gpu import library_for
from sigmoid_l2.gpu.arrays import DeviceArray, bounds, is_cuda_array, is_read_only, type_name
from sigmoid_l2.gpu.library import GpuLibrary

Device = Literal["cpu", "cuda"]

DTYPES = ("float16", "float32", "float64")
# dtype.num of these dtypes, and of these with bool and the integers. dtype.char would not do: other libraries reuse it.
_FLOATS = frozenset(np.dtype(name).num for name in DTYPES)
_NUMBERS = _FLOATS | {np.dtype(char).num for char in "?bBhHiIlLqQ"}

_SEQUENCES = (tuple, list)  # of given outputs; making a union of the two takes as long as the rest of the check


class Problem(NamedTuple):
    """A validated batch. W and x are views of the caller's arrays, in their own layout, byte order and dtype.

    CUDA arrays of any library are CuPy's here or, where there is no CuPy, of the class DeviceArray.
    """

    W: Any  # (*batch, m, n)
    x: Any  # (*batch, n)
    batch: tuple[int, ...]
    m: int
    n: int
    dtype: np.dtype[Any]  # of the results: float16, float32 or float64, native byte order
    shapes: dict[str, tuple[int, ...]]  # that the caller gets for the outputs "loss", "dW" and "dx"
    column: bool  # x came as columns (*batch, n, 1)
    gpu: GpuLibrary | None  # for CUDA arrays: the library that serves the call, on its device and stream
    out: Sequence[Any] | None  # what the results are written to, of the kind of W; None for new arrays
    plain: bool  # a kernel can surely take all of these arrays as they are, but for the number of batch axes

    @property
    def device(self) -> Device:
        """Where W and x are."""
        return "cpu" if self.gpu is None else "cuda"

    @property
    def B(self) -> int:  # noqa: N802 - the name of the mathematics
        """The number of pairs."""
        return math.prod(self.batch)

    def on_host(self, a: Any) -> Any:
        """``W`` or ``x`` in host memory."""
        return a if self.gpu is None else self.gpu.to_host(a)

    @property
    def pair_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of one pair's W, x, loss, dW and dx."""
        return (self.m, self.n), (self.n,), (), (self.m, self.n), (self.n,)

    def pieces(self, pairs: int) -> Iterator[tuple[Any, ...]]:
        """Indices of the batch axes, each of a piece of at most ``pairs`` pairs; together they cover each pair once."""
        batch = self.batch
        if not batch:
            yield (...,)
            return
        # Cut the first axis of which one element is small enough; go through the axes before it one by one.
        axis = next(axis for axis in range(len(batch)) if math.prod(batch[axis + 1 :]) <= pairs)
        step = pairs // math.prod(batch[axis + 1 :])
        for outer in np.ndindex(*batch[:axis]):
            for first in range(0, batch[axis], step):
                # The Ellipsis keeps a single element an array, so that it can be written to.
                yield (*outer, slice(first, first + step), ...)


def validate(W: Any, x: Any, stream: Any = None, names: Sequence[str] = (), out: Any = None) -> Problem:
    """Check W and x and, where it is given, ``out``, the arrays for the outputs ``names``.

    ``stream`` is where the caller wants CUDA arrays to be computed. Raises TypeError for a kind of array or a dtype
    that is not supported and for one array on the host and one on a device, ValueError for shapes that do not fit and
    for anything that a result cannot be written to. Only array-likes are copied: nested lists become arrays.
    """
    plain = _plain(W, x, names, out)
    if plain is not None:
        return plain
    gpu = None
    # NumPy arrays skip most of the checks.
    if not (type(W) is np.ndarray and type(x) is np.ndarray and W.dtype.num in _NUMBERS and x.dtype.num in _NUMBERS):
        gpu, W, x = _as_arrays(W, x, stream)
    shape, given = W.shape, x.shape
    batch = shape[:-2]
    fits = len(shape) >= 2 and given == batch + shape[-1:] and 0 not in shape[-2:]
    column = not fits and _are_columns(shape, given)
    dtype = W.dtype if W.dtype is x.dtype and W.dtype.num in _FLOATS and W.dtype.isnative else _result_dtype(W, x)
    shapes = {"loss": batch, "dW": shape, "dx": given}
    x = x[..., 0] if column else x
    problem = Problem(W, x, batch, shape[-2], shape[-1], dtype, shapes, column, gpu, None, False)
    return problem if out is None else problem._replace(out=_checked_out(problem, names, out))


def _plain(W: Any, x: Any, names: Sequence[str], out: Any) -> Problem | None:
    """The problem where beyond doubt all is right, and NumPy's own arrays can go to a kernel as they are; else None."""
    if type(W) is not np.ndarray or type(x) is not np.ndarray:
        return None
    shape, given, dtype, W_flags, x_flags = W.shape, x.shape, W.dtype, W.flags, x.flags
    batch = shape[:-2]
    if (
        len(shape) < 2
        or 0 in shape
        or given != batch + shape[-1:]
        or x.dtype is not dtype
        or dtype.num not in _FLOATS
        or not dtype.isnative
        or not (W_flags.c_contiguous and W_flags.aligned and x_flags.c_contiguous and x_flags.aligned)
    ):
        return None
    shapes = {"loss": batch, "dW": shape, "dx": given}
    if out is not None and not (
        isinstance(out, _SEQUENCES) and len(out) == len(names) and _out_is_plain(W, x, dtype, shapes, names, out)
    ):
        return None
    return Problem(W, x, batch, shape[-2], shape[-1], dtype, shapes, False, None, out, True)


def _out_is_plain(
    W: Any, x: Any, dtype: Any, shapes: dict[str, tuple[int, ...]], names: Sequence[str], out: Sequence[Any]
) -> bool:
    """Whether ``out`` is beyond doubt: NumPy's own arrays, which need no copy, and no array in the memory of another.

    This takes 1.9 us of a small call's 7.8; all checks take as long as that call. What has another owner is other
    memory. That is quicker to see than where memory lies: NumPy takes 1.1 us to tell the address of one array, and 0.3
    to compare two.
    """
    owners = {None, id(W) if W.flags.owndata else _owner(W), id(x) if x.flags.owndata else _owner(x)}
    for name, a in zip(names, out):  # noqa: B905 - of one length; to check that takes as long as one of the arrays
        if type(a) is not np.ndarray or a.dtype is not dtype or a.shape != shapes[name]:
            return False
        flags = a.flags
        if not flags.carray:  # contiguous, aligned and writeable
            return False
        owners.add(id(a) if flags.owndata else _owner(a))
    if len(owners) == 3 + len(out):
        return True
    return not any(np.may_share_memory(a, b) for k, b in enumerate(out) for a in (W, x, *out[:k]))


def _owner(view: Any) -> int | None:
    """The identity of the array that owns the memory of ``view``; None where no array does."""
    base = view.base
    return id(base) if type(base) is np.ndarray and base.flags.owndata else None


def _as_arrays(W: Any, x: Any, stream: Any) -> tuple[GpuLibrary | None, Any, Any]:
    on_cuda = [is_cuda_array(a) for a in (W, x)]
    if on_cuda == [False, False]:
        return None, _host_array("W", W), _host_array("x", x)
    if on_cuda == [True, True]:
        gpu = library_for("W", W, stream)
        return gpu, _check_dtype("W", gpu.take("W", W)), _check_dtype("x", gpu.take("x", x))
    host, cuda, array = ("x", "W", W) if on_cuda[0] else ("W", "x", x)
    raise TypeError(
        f"W and x must be in the same place, but {host} is in host memory and {cuda} is a CUDA array of type "
        f"{_describe(array)}; pass cupy.asarray({host}), or cupy.asarray({cuda}).get()"
    )


def _checked_out(problem: Problem, names: Sequence[str], out: Any) -> Sequence[Any]:
    """``out`` as arrays of the kind of problem.W; ValueError for anything that a result cannot be written to."""
    if not isinstance(out, _SEQUENCES) or len(out) != len(names):
        raise ValueError(f"out must be a tuple of {len(names)} arrays ({', '.join(names)}), not {_describe(out)}")
    gpu = problem.gpu
    if gpu is None and _out_is_plain(problem.W, problem.x, problem.dtype, problem.shapes, names, out):
        return out
    arrays = list(out) if gpu is None else [_as_output(gpu, name, a) for name, a in zip(names, out, strict=True)]
    # The bounds of CUDA arrays decide whether they share memory: an exact answer would have to wait for the device.
    checked = [(name, a if gpu is None else bounds(a)) for name, a in (("W", problem.W), ("x", problem.x))]
    for name, array in zip(names, arrays, strict=True):
        _check_output(problem, name, array)
        memory = array if gpu is None else bounds(array)
        for other_name, other in checked:
            if _overlap(memory, other) if gpu is None else max(memory[0], other[0]) < min(memory[1], other[1]):
                raise ValueError(f"out: {name} shares memory with {other_name}; every output needs memory of its own")
        checked.append((name, memory))
    return arrays if gpu is not None else [*map(np.asarray, arrays)]  # a subclass may index differently


def _as_output(gpu: GpuLibrary, name: str, a: Any) -> Any:
    if not gpu.is_own(a) and not is_cuda_array(a):
        raise ValueError(f"out: {name} must be a CUDA array, like the inputs, not {_describe(a)}")
    try:
        array = gpu.take(f"out: {name}", a)
    except TypeError as error:
        raise ValueError(str(error)) from error
    if array is not a and is_read_only(a, getattr(array, "interface", None)):
        raise ValueError(f"out: {name} is read-only")
    return array


def on_host(name: str, a: Any) -> Any:
    """``a`` as a NumPy array, copied from the device if it is on one; TypeError for a kind or dtype not supported."""
    if not is_cuda_array(a):
        return _host_array(name, a)
    gpu = library_for(name, a, None)
    return gpu.to_host(_check_dtype(name, gpu.take(name, a)))


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
    """Whether a nested list has a masked array in it, whose mask np.asarray drops."""
    kinds = set(map(type, a))  # one, of millions of numbers
    if kinds.isdisjoint((list, tuple)):
        return any(issubclass(kind, np.ma.MaskedArray) for kind in kinds)
    return any(isinstance(b, np.ma.MaskedArray) or (isinstance(b, list | tuple) and _holds_masked(b)) for b in a)


def _check_dtype(name: str, a: Any) -> Any:
    if a.dtype.num not in _NUMBERS:
        raise TypeError(
            f"{name} has dtype {a.dtype}; supported are {', '.join(DTYPES)}, integers and bool (computed in float64)"
        )
    return a


def _are_columns(W: tuple[int, ...], x: tuple[int, ...]) -> bool:
    """Return whether x, which has no vectors for W, is given as columns; ValueError where it is not."""
    if len(W) >= 2 and 0 not in W[-2:] and W[-1] != 1 and x == (*W[:-2], W[-1], 1):
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
    """The dtype that W or x must be converted to; TypeError for a DeviceArray, which cannot be converted."""
    dtype = np.result_type(W.dtype, x.dtype)
    dtype = dtype if dtype.kind == "f" else np.dtype(np.float64)
    if isinstance(W, DeviceArray):
        raise TypeError(
            f"W has dtype {W.dtype} and x {x.dtype}, which only CuPy can convert on the device: install it, "
            f"or pass both in {dtype}"
        )
    return dtype


def _check_output(problem: Problem, name: str, array: Any) -> None:
    on_host = problem.gpu is None
    if on_host and (not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray)):
        raise ValueError(f"out: {name} must be a numpy.ndarray, like the inputs, not {_describe(array)}")
    shape = problem.shapes[name]
    if array.shape != shape:
        raise ValueError(f"out: {name} must have shape {shape}, not {array.shape}")
    if array.dtype.type is not problem.dtype.type:  # in either byte order
        raise ValueError(f"out: {name} must have dtype {problem.dtype}, not {array.dtype}")
    if on_host and not array.flags.writeable:
        raise ValueError(f"out: {name} is read-only")
    if _overlaps_itself(array):
        raise ValueError(f"out: {name} is a view with strides {array.strides}, in which elements share memory")


def _overlaps_itself(a: Any) -> bool:
    """Whether elements of ``a`` may share memory; never said of a view that slicing and transposing make."""
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
    if not np.may_share_memory(a, b):  # by their bounds: it answers nearly every case, in half the time
        return False
    max_work: Any = 10_000  # the exact question is NP-hard; views that people use are answered within this limit
    try:
        return np.shares_memory(a, b, max_work=max_work)
    except np.exceptions.TooHardError:
        return True


def _describe(a: Any) -> str:
    return f"a {type(a).__name__} of {len(a)}" if isinstance(a, tuple | list) else type_name(a)
