"""The public calls: one batch in, loss and gradients out."""

import operator
from collections.abc import Sequence
from sys import modules
from typing import Any

import numpy as np

from sigmoid_l2.dispatch import choose, choose_for_cuda
from sigmoid_l2.execute import execute
from sigmoid_l2.gpu.direct import direct
from sigmoid_l2.host_arrays import not_inlined, untraced
from sigmoid_l2.problem import validate
from sigmoid_l2.results import Wrt, wanted


@not_inlined
def value_and_grad(
    W: Any,
    x: Any,
    target: Any = None,
    *,
    cotangent: Any = None,
    wrt: Wrt = ("W", "x"),
    out: Any = None,
    backend: str = "auto",
    stream: Any = None,
) -> Any:
    """Compute the loss ||sigmoid(W x) - target||^2 and its gradients for every pair of a batch.

    Parameters
    ----------
    W : array (..., m, n)
        On the host: NumPy array or array-like, PyTorch tensor or JAX array. On a CUDA device: CuPy's, numba's,
        PyTorch's or JAX's array, or any with ``__cuda_array_interface__`` or ``__dlpack__``. All arrays are used
        without a copy. Any strides, either byte order; m, n >= 1.
    x : array (..., n), or (..., n, 1) where n > 1
        On the host or the device, as W is, of any library. Its batch shape and that of W broadcast by NumPy's rules.
    target : array (..., m), or what broadcasts to it, such as a number; optional
        What sigmoid(W x) should be; 0 by default. (..., m, 1) where x is a column and m > 1. Its batch shape broadcasts
        with the others.
    cotangent : array (...), optional
        The gradients are those of sum(cotangent * loss); 1 by default. It broadcasts to the shape of the loss.
    wrt : "W", "x" or "q", or a tuple or list of them
        With respect to what gradients are wanted, in this order; q is W x. Others are neither computed nor allocated.
    out : tuple of arrays (loss and the gradients), optional
        Where to write the results: arrays of the shapes and dtype below, on the host of W's kind (not JAX's, which are
        read-only), else on W's device, that share no memory with an input or each other. The same objects are returned,
        and nothing of batch size is allocated.
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
        A named tuple of ``loss`` (...), in the batch shape to which all inputs broadcast, and for each name in ``wrt``
        ``dW`` of W's shape, ``dx`` of x's shape or ``dq`` (..., m), (..., m, 1) where x is a column. A gradient of an
        input that was broadcast is the sum over the axes along which it was. They are of W's kind and on W's device
        (CuPy arrays where W's library cannot take them over), in the common dtype of W and x: float32 or float64 by
        NumPy's promotion (of bfloat16 as of float16), float64 where both are integers or bool; for a W of PyTorch or
        JAX, that of ``W * x * 1.0`` there. float16 and bfloat16 are storage: the arithmetic is that of float32, and
        each result is rounded once. B = 0 pairs give empty results, and 0 for a sum. dW and dx are dense and lie in
        memory as W and x do, as what ``np.empty_like`` makes (but C order for JAX, and for inputs whose elements share
        memory); dq has its pairs last in memory where W has and is not broadcast. Without CuPy, numba-cuda returns
        numba's device arrays, and takes all arrays to be on its current device.

    Raises
    ------
    TypeError
        One input on the host, the other on a device. A dtype that is not supported. An array that carries more than
        its numbers (labels, units, a mask), is sparse or not in memory, with what to pass. A tensor that requires a
        gradient (unless gradients are switched off) or is inside of a transform such as ``jax.jit``, which needs
        ``sigmoid_l2.torch.value`` or ``sigmoid_l2.jax.value``. Without CuPy a CUDA array that is not C-contiguous,
        needs another dtype or is broadcast, other than one W for many x.
    ValueError
        Shapes that do not fit, with all shapes; an unusable ``out`` (before anything is written); an unknown name.
    BackendUnavailableError
        The backend asked for cannot run here, with every reason and the fix.

    Notes
    -----
    With q = W x, s = sigmoid(q), e = s - target: loss = sum(e**2), g = 2 e s (1 - s), dW = g x^T, dx = W^T g, dq = g.
    Neither 1 - s nor, for the targets 0 and 1, e loses digits by cancellation, so the gradients are right in the tails.
    dW is the outer product of dq and x: ``wrt=("q", "x")`` leaves it in these factors and writes m values for m n. NaN
    in a pair gives NaN in that pair's results alone, and in sums over it. A pair's result does not depend, to the last
    bit, on the batch around it, the number of threads or what else is wanted; nor does a sum on the number of threads.
    One W for many x has a kernel of its own (with numba for rows of up to 512 KiB), and other last bits than the same
    pairs with W each. It is called for each of many W, too, where the shapes give it enough work.

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

    One W for five x, with a target; dW is the sum over the five:

    >>> loss, dW, dx = sl2.value_and_grad(np.zeros((3, 2)), np.ones((5, 2)), 1.0)
    >>> loss.shape, dW.shape, dx.shape
    ((5,), (3, 2), (5, 2))
    """
    names, _, make = wanted("ValueAndGrad", wrt)
    return make(_call(names, W, x, target, cotangent, out, backend, stream))


@not_inlined
def value(W: Any, x: Any, target: Any = None, *, out: Any = None, backend: str = "auto", stream: Any = None) -> Any:
    """Compute the loss ||sigmoid(W x) - target||^2 for every pair of a batch, without gradients.

    Parameters
    ----------
    W : array (..., m, n)
        On the host or on a CUDA device, of NumPy or another library, or an array-like; m, n >= 1. float16, bfloat16,
        float32 or float64, or integers or bool.
    x : array (..., n), or (..., n, 1) where n > 1
        On the host or the device, as W is. Its batch shape and that of W broadcast by NumPy's rules.
    target : array (..., m), or what broadcasts to it, such as a number; optional
        What sigmoid(W x) should be; 0 by default. (..., m, 1) where x is a column and m > 1.
    out : array (...), optional
        Where to write the loss: of the shape, kind and dtype below, in memory that no input has. It is returned.
    backend : str
        "auto" (the fastest where the arrays are, or what SIGMOID_L2_BACKEND says), "cpu" or "gpu" (a preference), or
        exactly "numpy", "numba", "numba-cuda" or "cupy".
    stream : CUDA stream of any library, or its integer handle, optional
        Where the kernel runs; by default on the current stream of W's library. CPU backends ignore it.

    Returns
    -------
    array (...)
        The loss, in the batch shape to which the inputs broadcast, of W's kind and on its device, in the common dtype
        of W and x; float64 for two integers (for a W of PyTorch or JAX its default float). It has the same bits as that
        of ``value_and_grad``, whose docstring has more on each argument.

    Raises
    ------
    TypeError
        Inputs in different places; a dtype or a kind of array that is not supported; a tensor that requires a gradient,
        for which there is ``sigmoid_l2.torch.value``.
    ValueError
        Shapes that do not fit, with all shapes; an unusable ``out``, before anything is written; an unknown backend.
    BackendUnavailableError
        The backend asked for cannot run here, with every reason and the fix.

    Examples
    --------
    >>> import numpy as np, sigmoid_l2 as sl2
    >>> sl2.value(np.zeros((4, 3, 2)), np.ones((4, 2)))
    array([0.75, 0.75, 0.75, 0.75])
    >>> sl2.value(np.zeros((3, 2)), np.ones((4, 2)), 1.0).shape  # one W for four x, with a target
    (4,)
    """
    return _call(("loss",), W, x, target, None, None if out is None else (out,), backend, stream)[0]


@not_inlined
def grad(
    W: Any,
    x: Any,
    target: Any = None,
    *,
    cotangent: Any = None,
    wrt: Wrt = ("W", "x"),
    out: Any = None,
    backend: str = "auto",
    stream: Any = None,
) -> Any:
    """Compute the gradients of the loss ||sigmoid(W x) - target||^2 for every pair of a batch, without the loss.

    Parameters
    ----------
    W, x, target, backend, stream
        As those of ``value``.
    cotangent : array (...), or what broadcasts to it, optional
        The gradients are those of sum(cotangent * loss); 1 by default.
    wrt : "W", "x" or "q", or a tuple or list of them
        With respect to what gradients are wanted, in this order; q is W x. Others are neither computed nor allocated.
    out : tuple of arrays, or for one bare name an array; optional
        Where to write the gradients: of the shapes, kind and dtype below, in memory of their own. They are returned.

    Returns
    -------
    Grad, or array
        A named tuple of ``dW`` of W's shape and ``dx`` of x's shape, or of what ``wrt`` names; ``dq`` is (..., m), or
        (..., m, 1) where x is a column. Where ``wrt`` is one name and no tuple, the array itself. A gradient of an
        input that was broadcast is the sum over the axes along which it was. All are of W's kind and on its device, in
        the common dtype of W and x, with the same bits as those of ``value_and_grad``.

    Raises
    ------
    TypeError, ValueError, BackendUnavailableError
        What ``value`` raises; ValueError also for an unknown name in ``wrt``.

    Examples
    --------
    >>> import numpy as np, sigmoid_l2 as sl2
    >>> W, x = np.zeros((4, 3, 2)), np.ones((4, 2))
    >>> dW, dx = sl2.grad(W, x)
    >>> dW.shape, dx.shape
    ((4, 3, 2), (4, 2))
    >>> sl2.grad(W, x, wrt="x").shape
    (4, 2)
    """
    names, is_bare, make = wanted("Grad", wrt)
    results = _call(names, W, x, target, cotangent, (out,) if is_bare and out is not None else out, backend, stream)
    return results[0] if is_bare else make(results)


def warmup(shape: tuple[int, int], dtype: Any = "float32", backend: str = "auto", *, target: bool = False) -> None:
    """Compile ahead of time what calls with pairs W (..., m, n) need, so that the first of them does not wait for it.

    Parameters
    ----------
    shape : (m, n)
        The shape of one W.
    dtype : dtype
        That of the arrays.
    backend : str
        As for ``value_and_grad`` of host arrays.
    target : bool
        Whether the calls have one. Calls with a cotangent, and with one W for many x, have other kernels.

    Raises
    ------
    TypeError, ValueError, BackendUnavailableError
        What ``value_and_grad`` raises for such arrays; ValueError also for another ``shape``.

    Examples
    --------
    >>> import sigmoid_l2 as sl2
    >>> sl2.warmup((3, 3), "float32")
    """
    try:
        m, n = map(operator.index, shape)
    except (TypeError, ValueError):
        raise ValueError(f"shape must be two whole numbers (m, n), not {shape!r}") from None
    W, x = np.zeros((1, m, n), dtype), np.zeros((1, n), dtype)
    value_and_grad(W, x, np.zeros((1, m), W.dtype) if target else None, backend=backend)


def _call(
    names: tuple[str, ...], W: Any, x: Any, target: Any, cotangent: Any, out: Any, backend: str, stream: Any
) -> Sequence[Any]:
    """The outputs ``names``. What torch.compile might follow goes another way, which costs NumPy's small calls time."""
    if type(W) is np.ndarray and "torch._dynamo" not in modules:
        return _call_checked(names, W, x, target, cotangent, out, backend, stream)
    return untraced(_call_with_any)(names, W, x, target, cotangent, out, backend, stream)


def _call_with_any(
    names: tuple[str, ...], W: Any, x: Any, target: Any, cotangent: Any, out: Any, backend: str, stream: Any
) -> Sequence[Any]:
    """The outputs for a W of any kind: CUDA arrays that are as a kernel takes them go straight to it."""
    plain = None if out is None or type(W) is np.ndarray else direct(names, (W, x, target, cotangent), out, stream)
    chosen = choose_for_cuda(backend) if plain else None
    if plain and chosen:
        with chosen.library_class.on_device(plain.device):
            chosen.kernel.fused(*plain.arrays, stream=plain.stream)
        given: Sequence[Any] = out
        return given
    return _call_checked(names, W, x, target, cotangent, out, backend, stream)


def _call_checked(
    names: tuple[str, ...], W: Any, x: Any, target: Any, cotangent: Any, out: Any, backend: str, stream: Any
) -> Sequence[Any]:
    """The outputs: problem.py checks the arguments, dispatch.py chooses a backend, execute.py runs it."""
    problem = validate(W, x, target, cotangent, stream=stream, names=names, out=out)
    results: Sequence[Any] = execute(problem, names, choose(problem, backend), stream)
    return results if out is None else out  # the caller's objects
