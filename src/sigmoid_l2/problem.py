"""Every check of arrays, shapes and dtypes: the caller's arguments in, one validated Problem out.

outputs.py checks ``out``, shapes.py how the shapes fit together.
"""

from collections.abc import Sequence
from math import prod
from typing import Any, Literal, NamedTuple

import numpy as np

from sigmoid_l2 import outputs
from sigmoid_l2.gpu import library_for
from sigmoid_l2.gpu.arrays import DeviceArray, is_cuda_array, is_instance, type_name
from sigmoid_l2.gpu.library import GpuLibrary
from sigmoid_l2.host_arrays import HostLibrary, as_numpy, library_of, untracked
from sigmoid_l2.meaning import refuse
from sigmoid_l2.shapes import fit

Device = Literal["cpu", "cuda"]

DTYPES = ("float16", "float32", "float64")  # of results; and bfloat16, a dtype of the package ml_dtypes
# dtype.num of what is computed in, and of all that can be given. dtype.char would not do: other libraries reuse it.
_COMPUTED = frozenset(np.dtype(name).num for name in ("float32", "float64"))
_NUMBERS = frozenset(np.dtype(char).num for char in "?bBhHiIlLqQefd")

_FLOAT16, _FLOAT32 = np.dtype(np.float16), np.dtype(np.float32)


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
    plain: bool  # ``fused`` can surely take W, x and out as they are, but for the number of batch axes, and target and
    # cotangent, unless they are broadcast
    library: HostLibrary | None = None  # of W in host memory, where it is not NumPy's

    @property
    def device(self) -> Device:
        """Where the arrays are."""
        return "cpu" if self.gpu is None else "cuda"

    @property
    def computed(self) -> np.dtype[Any]:
        """The dtype that is computed in: float32 for the shorter ones, which are storage."""
        return _FLOAT32 if self.dtype.itemsize == 2 else self.dtype

    @property
    def one_W(self) -> bool:  # noqa: N802 - the name of the mathematics
        """Whether all pairs share one W: it has no batch axes, but others have, or there are several pairs."""
        is_one = self.W.size == self.m * self.n
        return is_one and (bool(self.batch) if self.W.ndim == 2 else prod(self.batch) > 1)

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
    library = library_of(given["W"])
    dtype = _result_dtype(W, x) if library is None else library.result_dtype(W, x, given["x"])
    library = library if gpu is None else None
    if library is not None and dtype is W.dtype:
        plain = _plain(W, x, target, cotangent, names, None)
        if plain is not None:
            return plain._replace(library=library) if out is None else _with_out(plain, library, names, out)
    found = fit({name: a.shape for name, a in arrays.items()})
    results = {**found.results, "dW": W.shape, "dx": x.shape}
    x = x[..., 0] if found.x_is_column else x
    target = target[..., 0] if found.target_is_column else target
    sizes = found.batch, found.m, found.n
    problem = Problem(W, x, target, cotangent, *sizes, dtype, results, found.x_is_column, gpu, None, False, library)
    if gpu is not None:
        check_for_device(problem, has_shared=True)
    if out is None:
        return problem
    return problem._replace(out=outputs.checked(out, names, arrays, dtype, results, gpu or library))


def _plain(W: Any, x: Any, target: Any, cotangent: Any, names: Sequence[str], out: Any) -> Problem | None:
    """The problem where beyond doubt all is right, else None.

    W and x are NumPy's own arrays as kernels take them, and have the same batch shape, or one of them has none. So are
    target and cotangent, or they are numbers, or the target is one row for all pairs.
    """
    if type(W) is not np.ndarray or type(x) is not np.ndarray:
        return None
    shape, given, dtype, W_flags, x_flags = W.shape, x.shape, W.dtype, W.flags, x.flags
    batch = given[:-1] if len(shape) == 2 else shape[:-2]
    plain = len(shape) - 2 == len(batch) == len(given) - 1
    if (
        len(shape) < 2
        or 0 in shape
        or (given != batch + shape[-1:] and given != shape[-1:])
        or not (plain or len(given) == 1 or (shape[-1] > 1 and 0 not in given))  # an x of (..., 1, 1) could be columns
        or x.dtype is not dtype
        or dtype.num not in _COMPUTED
        or not dtype.isnative
        or not (W_flags.c_contiguous and W_flags.aligned and x_flags.c_contiguous and x_flags.aligned)
    ):
        return None
    rows = batch + shape[-2:-1]
    if not (target is None or _is_plain(target, dtype, rows) or _is_plain(target, dtype, rows[-1:])):
        target = _number(target)
        if target is None:
            return None
    if not (cotangent is None or _is_plain(cotangent, dtype, batch)):
        cotangent = _number(cotangent)
        if cotangent is None:
            return None
    results = {"loss": batch, "dW": shape, "dx": given, "dq": rows}
    if out is not None and not outputs.are_plain((W, x, target, cotangent), dtype, results, names, out):
        return None
    return Problem(W, x, target, cotangent, batch, shape[-2], shape[-1], dtype, results, False, None, out, plain)


def _with_out(problem: Problem, library: HostLibrary, names: Sequence[str], out: Any) -> Problem:
    """A plain problem of a library's arrays with ``out``, which may be in any layout."""
    inputs = dict(zip(("W", "x", "target", "cotangent"), problem.inputs, strict=True))
    views = outputs.checked(out, names, inputs, problem.dtype, problem.shapes, library)
    plain = all(a.flags.carray and a.dtype is problem.dtype for a in views)
    return problem._replace(library=library, out=views, plain=problem.plain and plain)


def _is_plain(a: Any, dtype: Any, shape: tuple[int, ...]) -> bool:
    if type(a) is not np.ndarray or a.dtype is not dtype or a.shape != shape:
        return False
    flags = a.flags
    return bool(flags.c_contiguous and flags.aligned)


def _number(a: Any) -> Any:
    """A number of Python or NumPy as an array; None for anything else."""
    array = np.asarray(a) if _is_number(a) else None
    return None if array is None or array.dtype.num not in _NUMBERS else array


def _as_arrays(given: dict[str, Any], stream: Any) -> tuple[GpuLibrary | None, dict[str, Any]]:
    """The inputs as arrays, all in one place, and what serves those on a device."""
    given = {name: _plain_numbers(name, a) for name, a in given.items()}
    on_cuda = is_cuda_array(given["W"])
    for name, a in given.items():
        if is_cuda_array(a) is not on_cuda and not (on_cuda and name not in ("W", "x") and _is_number(a)):
            host, cuda = (name, "W") if on_cuda else ("W", name)
            moved = f"cupy.asarray({host}), or cupy.asarray({cuda}).get()"
            if all(is_instance(given[a], "torch", "Tensor") for a in (host, cuda)):
                moved = f"{host}.to({cuda}.device), or {cuda}.cpu()"
            raise TypeError(
                f"W and {name} must be in the same place, but {host} is in host memory and {cuda} is a CUDA array of "
                f"type {type_name(given[cuda])}; pass {moved}"
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


def check_for_device(problem: Problem, has_shared: bool) -> None:
    """Raise TypeError for inputs that only CuPy could convert or broadcast on the device, where there is no CuPy.

    ``has_shared``: pairs that all have one W have a kernel, which takes it as it is.
    """
    if not isinstance(problem.W, DeviceArray):
        return
    names = ("W", "x", "target", "cotangent")
    one_W = has_shared and problem.one_W and 0 not in problem.batch
    for name, a, shape in zip(names, problem.inputs, problem.pair_shapes[:4], strict=True):
        if a is None:
            continue
        full = (*problem.batch, *shape)
        if a.dtype != problem.computed or (a.shape != full and not (one_W and a is problem.W)):
            raise TypeError(
                f"{name} has shape {a.shape} and dtype {a.dtype}, which only CuPy can broadcast and convert on the "
                f"device: install it, or pass {name} of shape {full} in {problem.computed}"
            )


def on_host(name: str, a: Any) -> Any:
    """``a`` as a NumPy array, copied from the device if it is on one; TypeError for a kind or dtype not supported."""
    a = _plain_numbers(name, a)
    if not is_cuda_array(a):
        return _host_array(name, a)
    gpu = library_for(name, a, None)
    return gpu.to_host(_check_dtype(name, gpu.take(name, a)))


def _plain_numbers(name: str, a: Any) -> Any:
    """``a``, which is refused where it is more than its numbers."""
    refuse(name, a)
    return untracked(name, a)


def _host_array(name: str, a: Any) -> Any:
    a = as_numpy(name, a)
    try:
        array = np.asarray(a)
    except ValueError as error:
        raise ValueError(f"{name} cannot be made into an array: {error}") from error
    except (TypeError, RuntimeError) as error:  # of a list with tensors that NumPy cannot read, for one
        raise TypeError(f"{name} cannot be made into an array: {error}") from error
    return _check_dtype(name, array)


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
