"""The public calls: one batch in, loss and gradients out."""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sigmoid_l2.dispatch import choose, choose_for_cuda
from sigmoid_l2.execute import execute
from sigmoid_l2.gpu.direct import direct
from sigmoid_l2.problem import validate


class ValueAndGrad(NamedTuple):
    """What ``value_and_grad`` returns."""

    loss: Any  # (...)
    dW: Any  # the shape of W
    dx: Any  # the shape of x


class Grad(NamedTuple):
    """What ``grad`` returns."""

    dW: Any  # the shape of W
    dx: Any  # the shape of x


def value_and_grad(W: Any, x: Any, *, out: Any = None, backend: str = "auto", stream: Any = None) -> ValueAndGrad:
    """Compute f(W, x) = ||sigmoid(W x)||^2 and both of its gradients for every pair of a batch.

    Parameters
    ----------
    W : array (..., m, n)
        On the host: NumPy array or array-like. On a CUDA device: CuPy's, numba's, PyTorch's or JAX's array, or any with
        ``__cuda_array_interface__`` or ``__dlpack__``, used without a copy. Any strides, either byte order; m, n >= 1.
    x : array (..., n) or (..., n, 1)
        The same leading (batch) shape as W, which may be (). On the host or the device, as W is.
    out : tuple of three arrays (loss, dW, dx), optional
        Where to write the results: arrays of the shapes and dtype below, on the host or the device as W is, that share
        no memory with W, x or each other. The same objects are returned, and nothing of batch size is allocated.
    backend : str
        "auto": the fastest where the arrays are, or what the environment variable SIGMOID_L2_BACKEND says.
        "cpu", "gpu": a preference; "gpu" falls back to the CPU where there is no GPU.
        "numpy", "numba", "numba-cuda", "cupy": that one or an error. Host arrays are copied to a GPU and back in
        pieces that take at most 256 MiB of its memory (SIGMOID_L2_DEVICE_MEMORY, in bytes).
    stream : CUDA stream of any library, or its integer handle, optional
        Where the kernels run. With CUDA arrays the call is asynchronous on it; by default it is the current stream of
        W's library for CuPy and PyTorch, else the default stream. CPU backends ignore it.

    Returns
    -------
    ValueAndGrad
        ``loss`` (...), ``dW`` of W's shape, ``dx`` of x's shape, of W's kind and on W's device (CuPy arrays where W's
        library cannot take them over), in the common dtype of W and x: float32 or float64 by NumPy's promotion, float64
        for integers and bool. The backend "numpy" accepts float16. B = 0 pairs give empty results.
        Without CuPy, numba-cuda returns numba's device arrays, and takes all arrays to be on its current device.

    Raises
    ------
    TypeError
        One of W and x on the host, the other on a device; a dtype, masked array or CUDA array that is not supported: a
        tensor that requires a gradient or, without CuPy, whatever is not C-contiguous or needs another dtype.
    ValueError
        Shapes that do not fit, with both shapes; an unusable ``out`` (before anything is written); an unknown backend.
    BackendUnavailableError
        The backend asked for cannot run here, with every reason and the fix.

    Notes
    -----
    With q = W x, s = sigmoid(q), g = 2 s**2 (1 - s): loss = sum(s**2), dW = g x^T, dx = W^T g. 1 - s is computed
    without cancellation, so the gradients are right in the tails. NaN in a pair gives NaN in that pair's results alone.
    A pair's result does not depend, to the last bit, on the batch around it or the number of threads.

    With CUDA arrays the host waits for nothing, and with ``out`` a CUDA graph can capture the call. Events order the
    streams: the call runs after the work that is queued on the current streams of the arrays' libraries (or on the
    stream that an array's interface names), and work that is queued later on the call's stream, or on the current
    stream of the results' library, runs after the call. With a ``stream`` that the arrays' library does not know, free
    them only when its work is done. The partial sums of pairs of more than 128 KiB (40 KiB with rows of up to 128
    bytes) go through 32 MiB that each thread keeps for each stream it uses: call once before capturing such a call, and
    do not run two graphs captured on one stream at the same time.

    Examples
    --------
    >>> import numpy as np, sigmoid_l2 as sl2
    >>> loss, dW, dx = sl2.value_and_grad(np.zeros((5, 3, 2)), np.ones((5, 2)))
    >>> loss.shape, dW.shape, dx.shape
    ((5,), (5, 3, 2), (5, 2))
    """
    return ValueAndGrad(*_call(("loss", "dW", "dx"), W, x, out, backend, stream))


def value(W: Any, x: Any, *, out: Any = None, backend: str = "auto", stream: Any = None) -> Any:
    """Compute the loss f(W, x) = ||sigmoid(W x)||^2 alone, (...), for every pair; ``out`` is one array.

    Parameters, dtypes and errors are those of ``value_and_grad``.
    """
    return _call(("loss",), W, x, None if out is None else (out,), backend, stream)[0]


def grad(W: Any, x: Any, *, out: Any = None, backend: str = "auto", stream: Any = None) -> Grad:
    """Compute both gradients for every pair, without the loss; ``out`` is (dW, dx).

    Parameters, dtypes and errors are those of ``value_and_grad``.
    """
    return Grad(*_call(("dW", "dx"), W, x, out, backend, stream))


def warmup(shape: tuple[int, int], dtype: Any = "float32", backend: str = "auto") -> None:
    """Compile ahead of time what calls with W (..., m, n) need, so that the first of them does not wait for it.

    ``shape`` is (m, n), ``dtype`` that of the arrays, ``backend`` as for ``value_and_grad`` of host arrays. Raises what
    ``value_and_grad`` raises for such arrays.
    """
    try:
        m, n = map(operator.index, shape)
    except (TypeError, ValueError):
        raise ValueError(f"shape must be two whole numbers (m, n), not {shape!r}") from None
    value_and_grad(np.zeros((1, m, n), dtype), np.zeros((1, n), dtype), backend=backend)


def _call(names: tuple[str, ...], W: Any, x: Any, out: Any, backend: str, stream: Any) -> Sequence[Any]:
    """The outputs ``names``: problem.py checks the arguments, dispatch.py chooses a backend, execute.py runs it."""
    plain = None if out is None or type(W) is np.ndarray else direct(names, W, x, out, stream)
    chosen = choose_for_cuda(plain.dtype, backend) if plain else None
    if plain and chosen:
        with chosen.library_class.on_device(plain.device):
            chosen.kernel.fused(*plain.arrays, stream=plain.stream)
        given: Sequence[Any] = out
        return given
    problem = validate(W, x, stream, names, out)
    results: Sequence[Any] = execute(problem, names, choose(problem, backend), stream)
    return results if out is None else out  # the caller's objects
