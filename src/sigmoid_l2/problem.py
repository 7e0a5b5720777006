"""Every check of arrays, shapes, dtypes and ``out``: the caller's arguments in, one validated Problem out."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from sigmoid_l2.gpu import library_for
from sigmoid_l2.gpu.arrays import DeviceArray, bounds, is_cuda_array, is_read_only, type_name
from sigmoid_l2.gpu.library import GpuLibrary
from sigmoid_l2.shapes import fit

Device = Literal["cpu", "cuda"]

DTYPES = ("float16", "float32", "float64")  # of results; and bfloat16, a dtype of the package ml_dtypes
# dtype.num of what is computed in, and of all that can be given. dtype.char would not do: other libraries reuse it.
_COMPUTED = frozenset(np.dtype(name).num for name in ("float32", "float64"))
_NUMBERS = frozenset(np.dtype(char).num for char in "?bBhHiIlLqQefd")

_FLOAT16, _FLOAT32 = np.dtype(np.float16), np.dtype(np.float32)
_SEQUENCES = (tuple, list)  # of given outputs; making a union of the two takes as long as the rest of the check


class Problem(NamedTuple):
    """A validated call. Its inputs are views of the caller's arrays, in their own layout, byte order and dtype.

    Each has its own batch shape, and all of these broadcast to ``batch``. No input has an axis of length 1 of columns.
    CUDA arrays of any library are CuPy's here or, where there is no CuPy, of the class DeviceArray.
    """

    W: Any  # (..., m, n)
    x: Any  # (..., n)
    target: Any  # (..., m), (..., 1) or (); None where there is none
    cotangent: Any  # (...); None where there is none
    batch: tuple[int, ...]
    m: int
    n: int
    dtype: np.dtype[Any]  # of the results: float16, bfloat16, float32 or float64, native byte order
    shapes: dict[str, tuple[int, ...]]  # that the caller gets for the outputs "loss", "dW", "dx" and "dq"
    column: bool  # x came as columns (..., n, 1), so dx and dq are columns
    gpu: GpuLibrary | None  # for CUDA arrays: the library that serves the call, on its device and stream
    out: Sequence[Any] | None  # what the results are written to, of the kind of W; None for new arrays
    plain: bool  # a kernel can surely take all of these arrays as they are, but for the number of batch axes

    @property
    def device(self) -> Device:
        """Where the arrays are."""
        return "cpu" if self.gpu is None else "cuda"

    @property
    def computed(self) -> np.dtype[Any]:
        """The dtype that is computed in: float32 for the shorter ones, which are storage."""
        return _FLOAT32 if self.dtype.itemsize == 2 else self.dtype

    @property
    def inputs(self) -> tuple[Any, ...]:
        """W, x, target and cotangent: the inputs in the order of a kernel's arguments."""
        return self.W, self.x, self.target, self.cotangent

    @property
    def pair_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of one pair's W, x, target, cotangent, loss, dW, dx and dq: a kernel's arguments."""
        m, n = self.m, self.n
        return (m, n), (n,), (m,), (), (), (m, n), (n,), (m,)

    def on_host(self, a: Any) -> Any:
        """An input in host memory."""
        return a if self.gpu is None else self.gpu.to_host(a)


def validate(
    W: Any,
    x: Any,
    target: Any = None,
    cotangent: Any = None,
    *,
    stream: Any = None,
    names: Sequence[str] = (),
    out: Any = None,
) -> Problem:
    """Check the inputs and, where it is given, ``out``, the arrays for the outputs ``names``.

    ``stream`` is where the caller wants CUDA arrays to be computed. Raises TypeError for a kind of array or a dtype
    that is not supported and for one array on the host and one on a device, ValueError for shapes that do not fit and
    for anything that a result cannot be written to. Only array-likes are copied: nested lists become arrays.
    """
    plain = _plain(W, x, target, cotangent, names, out)
    if plain is not None:
        return plain
    given = {"W": W, "x": x, "target": target, "cotangent": cotangent}
    gpu, arrays = _as_arrays({name: a for name, a in given.items() if a is not None or name in ("W", "x")}, stream)
    W, x, target, cotangent = map(arrays.get, given)
    found = fit({name: a.shape for name, a in arrays.items()})
    results = {**found.results, "dW": W.shape, "dx": x.shape}
    x = x[..., 0] if found.x_is_column else x
    target = target[..., 0] if found.target_is_column else target
    sizes = found.batch, found.m, found.n
    problem = Problem(
        W, x, target, cotangent, *sizes, _result_dtype(W, x), results, found.x_is_column, gpu, None, False
    )
    if gpu is not None:
        _check_for_device(problem)
    return problem if out is None else problem._replace(out=_checked_out(problem, names, out))


def _plain(W: Any, x: Any, target: Any, cotangent: Any, names: Sequence[str], out: Any) -> Problem | None:
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
        or dtype.num not in _COMPUTED
        or not dtype.isnative
        or not (W_flags.c_contiguous and W_flags.aligned and x_flags.c_contiguous and x_flags.aligned)
        or not (target is None or _is_plain(target, dtype, shape[:-1]))
        or not (cotangent is None or _is_plain(cotangent, dtype, batch))
    ):
        return None
    results = {"loss": batch, "dW": shape, "dx": given, "dq": shape[:-1]}
    if out is not None and not (
        isinstance(out, _SEQUENCES)
        and len(out) == len(names)
        and _out_is_plain((W, x, target, cotangent), dtype, results, names, out)
    ):
        return None
    return Problem(W, x, target, cotangent, batch, shape[-2], shape[-1], dtype, results, False, None, out, True)


def _is_plain(a: Any, dtype: Any, shape: tuple[int, ...]) -> bool:
    if type(a) is not np.ndarray or a.dtype is not dtype or a.shape != shape:
        return False
    flags = a.flags
    return bool(flags.c_contiguous and flags.aligned)


def _out_is_plain(
    inputs: Sequence[Any], dtype: Any, shapes: dict[str, tuple[int, ...]], names: Sequence[str], out: Sequence[Any]
) -> bool:
    """Whether ``out`` is beyond doubt: NumPy's own arrays, which need no copy, and no array in the memory of another.

    This takes 1.9 us of a small call's 7.8; all checks take as long as that call. What has another owner is other
    memory. That is quicker to see than where memory lies: NumPy takes 1.1 us to tell the address of one array, and 0.3
    to compare two.
    """
    given = [a for a in inputs if a is not None]
    owners = {None, *(id(a) if a.flags.owndata else _owner(a) for a in given)}
    different = 1 + len(given) + len(out)
    for name, a in zip(names, out):  # noqa: B905 - of one length; to check that takes as long as one of the arrays
        if type(a) is not np.ndarray or a.dtype is not dtype or a.shape != shapes[name]:
            return False
        flags = a.flags
        if not flags.carray:  # contiguous, aligned and writeable
            return False
        owners.add(id(a) if flags.owndata else _owner(a))
    if len(owners) == different:
        return True
    return not any(np.may_share_memory(a, b) for k, b in enumerate(out) for a in (*given, *out[:k]))


def _owner(view: Any) -> int | None:
    """The identity of the array that owns the memory of ``view``; None where no array does."""
    base = view.base
    return id(base) if type(base) is np.ndarray and base.flags.owndata else None


def _as_arrays(given: dict[str, Any], stream: Any) -> tuple[GpuLibrary | None, dict[str, Any]]:
    """The inputs as arrays, all in one place, and what serves those on a device."""
    on_cuda = is_cuda_array(given["W"])
    for name, a in given.items():
        if is_cuda_array(a) is not on_cuda and not (on_cuda and name not in ("W", "x") and _is_number(a)):
            host, cuda = (name, "W") if on_cuda else ("W", name)
            raise TypeError(
                f"W and {name} must be in the same place, but {host} is in host memory and {cuda} is a CUDA array of "
                f"type {_describe(given[cuda])}; pass cupy.asarray({host}), or cupy.asarray({cuda}).get()"
            )
    if not on_cuda:
        return None, {name: _host_array(name, a) for name, a in given.items()}
    gpu, arrays = library_for("W", given["W"], stream), {}
    for name, a in given.items():
        if _is_number(a):
            arrays[name] = gpu.number(name, a)
        else:
            arrays[name] = _check_dtype(name, gpu.take(name, a))
    return gpu, arrays


def _is_number(a: Any) -> bool:
    """Whether ``a`` is a number of Python or NumPy, which is in no place."""
    return isinstance(a, (bool, int, float, np.bool_, np.integer, np.floating))


def _check_for_device(problem: Problem) -> None:
    """Raise TypeError for inputs that only CuPy could convert or broadcast on the device, where there is no CuPy."""
    if not isinstance(problem.W, DeviceArray):
        return
    names = ("W", "x", "target", "cotangent")
    for name, a, shape in zip(names, problem.inputs, problem.pair_shapes[:4], strict=True):
        if a is not None and (a.dtype != problem.computed or a.shape != problem.batch + shape):
            full = (*problem.batch, *shape)
            raise TypeError(
                f"{name} has shape {a.shape} and dtype {a.dtype}, which only CuPy can broadcast and convert on the "
                f"device: install it, or pass {name} of shape {full} in {problem.computed}"
            )


def _checked_out(problem: Problem, names: Sequence[str], out: Any) -> Sequence[Any]:
    """``out`` as arrays of the kind of problem.W; ValueError for anything that a result cannot be written to."""
    if not isinstance(out, _SEQUENCES) or len(out) != len(names):
        count = f"{len(names)} arrays" if len(names) > 1 else "1 array"
        raise ValueError(f"out must be a tuple of {count} ({', '.join(names)}), not {_describe(out)}")
    gpu = problem.gpu
    if gpu is None and _out_is_plain(problem.inputs, problem.dtype, problem.shapes, names, out):
        return out
    arrays = list(out) if gpu is None else [_as_output(gpu, name, a) for name, a in zip(names, out, strict=True)]
    # The bounds of CUDA arrays decide whether they share memory: an exact answer would have to wait for the device.
    inputs = zip(("W", "x", "target", "cotangent"), problem.inputs, strict=True)
    checked = [(name, a if gpu is None else bounds(a)) for name, a in inputs if a is not None]
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
    if a.dtype.num not in _NUMBERS and a.dtype.name != "bfloat16":
        raise TypeError(
            f"{name} has dtype {a.dtype}; supported are {', '.join(DTYPES)}, bfloat16, integers and bool (computed in "
            "float64)"
        )
    return a


def _result_dtype(W: Any, x: Any) -> np.dtype[Any]:
    """The common dtype of W and x, in native byte order; float64 for integers and bool."""
    given: list[np.dtype[Any]] = [W.dtype, x.dtype]
    bfloat16 = [dtype for dtype in given if dtype.name == "bfloat16"]
    # bfloat16 is promoted as float16 is; the two together are float32.
    dtype: np.dtype[Any] = np.result_type(*(_FLOAT16 if dtype in bfloat16 else dtype for dtype in given))
    if bfloat16 and dtype == _FLOAT16:
        return _FLOAT32 if _FLOAT16 in given else bfloat16[0]
    return dtype if dtype.kind == "f" else np.dtype(np.float64)


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
