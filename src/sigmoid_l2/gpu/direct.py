"""Calls that need no preparation: contiguous arrays of CuPy or of numba, with results given.

The host takes longer over a small call than the device. Checking whatever may be given, and converting it, takes some
30 us; a few comparisons recognise the plain call, of which loops consist. Every other call goes the long way, and so
do those with a mistake, which gets its message there.
"""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sigmoid_l2.gpu import numba_library
from sigmoid_l2.gpu.arrays import is_instance
from sigmoid_l2.gpu.library import stream_handle

_REALS = frozenset(np.dtype(name).num for name in ("float32", "float64"))


class Direct(NamedTuple):
    """A call as a kernel takes it."""

    arrays: Sequence[Any]  # W, x, target, cotangent, loss, dW, dx, dq; None for what is not given or not wanted
    dtype: np.dtype[Any]
    device: Any  # of CuPy's arrays
    stream: int  # its handle


def direct(names: Sequence[str], inputs: Sequence[Any], out: Any, stream: Any) -> Direct | None:
    """The call, if a kernel can take its arrays as they are and nothing has to be waited for; else None.

    ``inputs`` are W, x, target and cotangent, of which the last two may be None.
    """
    W = inputs[0]
    if not isinstance(out, tuple | list) or len(out) != len(names):
        return None
    if is_instance(W, "cupy", "ndarray"):
        cuda = sys.modules["cupy"].cuda
        address, device, handle = _cupy_address, cuda.Device(), int(cuda.get_current_stream().ptr)
        if stream is not None and stream_handle(stream) != handle:
            return None
    elif _is_numba(W) and len(numba_library.numba_cuda().gpus) == 1:  # such an array does not tell where it is
        address, device, handle = _numba_address, None, 0 if stream is None else stream_handle(stream)
    else:
        return None
    dtype, shape, kind = W.dtype, W.shape, type(W)
    if dtype.num not in _REALS or not dtype.isnative or len(shape) != 3 or 0 in shape:
        return None
    B, m, n = shape
    shapes = {"loss": (B,), "dW": shape, "dx": (B, n), "dq": (B, m)}
    given = [pair for pair in zip(inputs, (shape, (B, n), (B, m), (B,)), strict=True) if pair[0] is not None]
    intervals: list[tuple[int, int, bool]] = []  # begin, end, whether it is a result
    for a, expected in (*given, *zip(out, map(shapes.get, names), strict=True)):
        if type(a) is not kind or a.shape != expected or a.dtype != dtype:
            return None
        begin = address(a, device)
        if begin is None:
            return None
        intervals.append((begin, begin + a.nbytes, len(intervals) >= len(given)))
    if _overlap(intervals):
        return None
    results = dict(zip(names, out, strict=True))
    return Direct((*inputs, *map(results.get, shapes)), dtype, device, handle)


def _cupy_address(a: Any, device: Any) -> int | None:
    """Where a contiguous array on that device begins; None for any other."""
    return int(a.data.ptr) if a.flags.c_contiguous and a.device == device else None


def _numba_address(a: Any, device: None) -> int | None:
    """Where a contiguous array begins; None for any other, and where it names a stream, which a call waits for."""
    return int(a.device_ctypes_pointer.value) if a.is_c_contiguous() and not a.stream else None


def _is_numba(a: Any) -> bool:
    kind = type(a)
    return kind.__name__ == "DeviceNDArray" and kind.__module__.partition(".")[0] in ("numba", "numba_cuda_mlir")


def _overlap(intervals: Sequence[tuple[int, int, bool]]) -> bool:
    """Whether a result shares memory with another array."""
    ends = [0, 0]  # of all arrays so far, of the results
    for begin, end, is_result in sorted(intervals):
        if begin < ends[not is_result]:
            return True
        ends[0] = max(ends[0], end)
        if is_result:
            ends[1] = max(ends[1], end)
    return False
