"""Every check of ``out``: whether results can be written to the arrays that the caller gives."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from sigmoid_l2.gpu.arrays import bounds, is_cuda_array, is_read_only, type_name
from sigmoid_l2.gpu.library import GpuLibrary
from sigmoid_l2.host_arrays import HostLibrary, untracked
from sigmoid_l2.meaning import carried

Shapes = Mapping[str, tuple[int, ...]]

_SEQUENCES = (tuple, list)  # of given outputs; making a union of the two takes as long as the rest of the check


def are_plain(inputs: Sequence[Any], dtype: Any, shapes: Shapes, names: Sequence[str], out: Any) -> bool:
    """Whether ``out`` is beyond doubt: NumPy's own arrays, which need no copy, and no array in the memory of another.

    This takes 1.9 us of a small call's 7.8; all checks take as long as that call. What has another owner is other
    memory. That is quicker to see than where memory lies: NumPy takes 1.1 us to tell the address of one array, and 0.3
    to compare two.
    """
    if not isinstance(out, _SEQUENCES) or len(out) != len(names):
        return False
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


def checked(
    out: Any,
    names: Sequence[str],
    inputs: Mapping[str, Any],
    dtype: Any,
    shapes: Shapes,
    library: GpuLibrary | HostLibrary | None,
) -> Sequence[Any]:
    """``out`` as arrays of the kind of the inputs; ValueError for anything that a result cannot be written to.

    ``library`` is that of CUDA arrays, or of a W in host memory that is not NumPy's.
    """
    gpu = library if isinstance(library, GpuLibrary) else None
    host = library if isinstance(library, HostLibrary) else None
    if not isinstance(out, _SEQUENCES) or len(out) != len(names):
        count = f"{len(names)} arrays" if len(names) > 1 else "1 array"
        raise ValueError(f"out must be a tuple of {count} ({', '.join(names)}), not {_describe(out)}")
    if gpu is not None:
        arrays: Sequence[Any] = [*map(partial(_on_device, gpu), names, out)]
    else:
        arrays = out if host is None else [*map(host.take_result, names, out)]
        if are_plain([*inputs.values()], dtype, shapes, names, arrays):
            return arrays
    # The bounds of CUDA arrays decide whether they share memory: an exact answer would have to wait for the device.
    checked = [(name, a if gpu is None else bounds(a)) for name, a in inputs.items() if a is not None]
    for name, array in zip(names, arrays, strict=True):
        _check(name, array, dtype, shapes[name], gpu is None)
        memory = array if gpu is None else bounds(array)
        for other_name, other in checked:
            if _overlap(memory, other) if gpu is None else max(memory[0], other[0]) < min(memory[1], other[1]):
                raise ValueError(f"out: {name} shares memory with {other_name}; every output needs memory of its own")
        checked.append((name, memory))
    return arrays if gpu is not None else [*map(np.asarray, arrays)]  # a subclass may index differently


def _on_device(gpu: GpuLibrary, name: str, a: Any) -> Any:
    if not gpu.is_own(a) and not is_cuda_array(a):
        raise ValueError(f"out: {name} must be a CUDA array, like the inputs, not {_describe(a)}")
    try:
        a = untracked(f"out: {name}", a)
        array = gpu.take(f"out: {name}", a)
    except TypeError as error:
        raise ValueError(str(error)) from error
    if array is not a and is_read_only(a, getattr(array, "interface", None)):
        raise ValueError(f"out: {name} is read-only")
    return array


def _check(name: str, array: Any, dtype: Any, shape: tuple[int, ...], on_host: bool) -> None:
    if on_host and (not isinstance(array, np.ndarray) or carried(array)):
        raise ValueError(f"out: {name} must be a numpy.ndarray, like the inputs, not {_describe(array)}")
    if array.shape != shape:
        raise ValueError(f"out: {name} must have shape {shape}, not {array.shape}")
    if array.dtype.type is not dtype.type:  # in either byte order
        raise ValueError(f"out: {name} must have dtype {dtype}, not {array.dtype}")
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
