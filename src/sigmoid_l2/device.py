"""Where a kernel runs: in place on the arrays' own device, or on a GPU with host arrays carried over and back."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from sigmoid_l2.backends import Backend
from sigmoid_l2.problem import Problem

Compute = Callable[[Any, Any, Any, Any, Any], None]  # W, x, loss, dW, dx as a kernel's contract wants them


def stream_handle(stream: Any) -> int:
    """The integer handle of a CUDA stream of CuPy's or numba's, or of an integer; TypeError for anything else."""
    if isinstance(stream, int | np.integer) and not isinstance(stream, bool) and stream >= 0:
        return int(stream)
    for attribute in ("ptr", "handle"):  # of CuPy's and of numba's streams
        value = getattr(stream, attribute, None)
        if value is not None:
            return int(getattr(value, "value", value) or 0)
    raise TypeError(
        "stream must be a CuPy or numba stream or an integer handle, "
        f"not {type(stream).__module__}.{type(stream).__qualname__}"
    )


@contextmanager
def on(array: Any, stream: Any) -> Iterator[None]:
    """Make the device of a CuPy array current, and ``stream`` too where it is not None."""
    cuda = sys.modules["cupy"].cuda
    with array.device:
        if stream is None:
            yield
        else:
            with cuda.ExternalStream(stream_handle(stream)):
                yield


def in_place(backend: Backend, problem: Problem) -> Compute:
    """The backend's kernel on arrays that are where it runs; on a GPU, on CuPy's current device and stream."""
    kernel = backend.kernel
    fused: Compute = kernel.fused
    if problem.device == "cpu":
        return fused
    launch = partial(kernel.fused, stream=sys.modules["cupy"].cuda.get_current_stream().ptr)
    if backend.name != "numba-cuda":
        return launch

    def on_numbas_device(*arrays: Any) -> None:
        with kernel.cuda.gpus[problem.W.device.id]:  # numba keeps a current device of its own
            launch(*arrays)

    return on_numbas_device


def carried(backend: Backend, stream: Any) -> Compute:
    """The backend's kernel on host arrays: inputs copied to the GPU, results copied back, done when it returns."""
    handle = None if stream is None else stream_handle(stream)
    kernel = backend.kernel
    return partial(_carry_cupy if backend.name == "cupy" else _carry_numba, kernel, handle)


def _carry_cupy(kernel: Any, handle: int | None, W: Any, x: Any, *outputs: Any) -> None:
    cupy = kernel.cupy
    with cupy.cuda.ExternalStream(handle) if handle else cupy.cuda.get_current_stream() as stream:
        results = [None if a is None else cupy.empty(a.shape, a.dtype) for a in outputs]
        kernel.fused(cupy.asarray(W), cupy.asarray(x), *results, stream=stream.ptr)
        for result, a in zip(results, outputs, strict=True):
            if result is not None:
                result.get(out=a)


def _carry_numba(kernel: Any, handle: int | None, W: Any, x: Any, *outputs: Any) -> None:
    cuda = kernel.cuda
    stream = cuda.external_stream(handle) if handle else cuda.default_stream()
    results = [None if a is None else cuda.device_array(a.shape, a.dtype, stream=stream) for a in outputs]
    kernel.fused(cuda.to_device(W, stream=stream), cuda.to_device(x, stream=stream), *results, stream=handle)
    for result, a in zip(results, outputs, strict=True):
        if result is not None:
            result.copy_to_host(a, stream=stream)
    stream.synchronize()
