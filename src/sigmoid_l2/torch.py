"""The loss as an operation of PyTorch that can be differentiated: ``sigmoid_l2.torch.value``.

Forward computes the loss alone, backward is one call of the fused kernel with the incoming gradient as the cotangent.
There are three layers, each for one part of PyTorch:

- ``_apply`` is what torch.compile writes into its graph, without a look inside: it cannot follow an autograd.Function
  in torch.func.grad.
- ``_Value`` and ``_Gradients`` are autograd.Functions. They say what is kept for backward, and how vmap works. (In the
  place of them, operators with ``register_autograd`` would fail in torch.func.grad.)
- ``_loss`` and ``_gradients`` are operators of torch.library, which compute. Whoever traces a program sees their shapes
  and dtypes, and not what they do.
"""

import inspect
from typing import Any

import numpy as np

try:
    import torch
except ImportError as error:
    raise ImportError(f"sigmoid_l2.torch needs PyTorch 2.9 or later: pip install torch ({error})") from error

from sigmoid_l2 import api
from sigmoid_l2.gpu.arrays import type_name
from sigmoid_l2.meaning import refuse
from sigmoid_l2.shapes import fit

if not hasattr(torch.library, "custom_op"):
    raise ImportError(f"sigmoid_l2.torch needs PyTorch 2.9 or later, and this is {torch.__version__}")

# The dtypes of results. W and x may also be integers or bool, which have no gradient.
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_NO_TARGET_GRADIENT = (
    "target requires a gradient, and the loss is differentiable in W and x alone; pass target.detach()"
)
_NO_SECOND_DERIVATIVE = (
    "sigmoid_l2.torch.value has no second derivative; where you need one, write the formula in PyTorch's own operations"
)
_NO_FORWARD_MODE = (
    "sigmoid_l2.torch.value has no forward mode (jvp, jacfwd, hessian); use reverse mode, as torch.func.vjp and jacrev"
)


def value(W: torch.Tensor, x: torch.Tensor, target: torch.Tensor | float | None = None) -> torch.Tensor:
    """Compute the loss ||sigmoid(W x) - target||^2 for every pair, differentiable in W and x.

    Parameters
    ----------
    W : torch.Tensor (..., m, n)
        On the CPU or a CUDA device, with any strides; m, n >= 1.
    x : torch.Tensor (..., n), or (..., n, 1) where n > 1
        On the same device. Its batch shape and that of W broadcast.
    target : torch.Tensor (..., m), or what broadcasts to it, or a number; optional
        What sigmoid(W x) should be; 0 by default. (..., m, 1) where x is a column and m > 1. It gets no gradient.

    Returns
    -------
    torch.Tensor (...)
        The loss, in the batch shape to which all inputs broadcast and the dtype to which PyTorch promotes W and x,
        float16, bfloat16, float32 or float64 (of two integers PyTorch's default dtype). Under autocast it is at least
        float32, as those of PyTorch's own losses are. W.grad and x.grad get the shape and the dtype of W and x.

    Raises
    ------
    TypeError
        W or x is no tensor, or of a dtype without gradients, such as complex; the tensors are on different devices; the
        target requires a gradient.
    ValueError
        Shapes that do not fit; while torch.compile traces, an error of PyTorch's.
    NotImplementedError
        From a second derivative, and from forward-mode differentiation.

    Notes
    -----
    The gradients are those of ``sigmoid_l2.grad``, to the last bit: right in both tails of the sigmoid, where autograd
    of the formula has 0. For backward W, x and target are kept, and nothing else. It computes only the gradients that
    are needed. CUDA kernels run on PyTorch's current stream of W's device.

    Examples
    --------
    >>> import torch, sigmoid_l2.torch
    >>> W, x = torch.zeros(5, 3, 2, requires_grad=True), torch.ones(5, 2)
    >>> loss = sigmoid_l2.torch.value(W, x, 1.0)
    >>> loss.sum().backward()
    >>> loss.shape, W.grad.shape
    (torch.Size([5]), torch.Size([5, 3, 2]))
    """
    for name, a in (("W", W), ("x", x)):
        if not isinstance(a, torch.Tensor):
            raise _not_a_tensor(name, a, "a torch.Tensor")
        if a.dtype not in _FLOATS and (a.is_floating_point() or a.is_complex()):
            raise TypeError(f"{name} has dtype {a.dtype}; supported are {', '.join(map(str, _FLOATS))} and integers")
        if a.is_quantized:
            raise TypeError(f"{name} is a quantized tensor; pass {name}.dequantize()")
        if a.is_nested:
            raise TypeError(f"{name} is a nested tensor; call once for each of {name}.unbind()")
    if x.device != W.device:
        raise TypeError(f"W is on {W.device} and x is on {x.device}; pass x.to(W.device)")
    x, target = _vectors(W, x, None if target is None else _as_target(target, W))
    device = W.device.type
    if device in ("cpu", "cuda") and torch.is_autocast_enabled(device) and _result_dtype(W, x).itemsize == 2:
        # One of them in float32 makes the loss float32. The larger one is read as it is.
        if W.numel() < x.numel():
            W = W.float()
        else:
            x = x.float()
    return _apply(W, x, target)


def _not_a_tensor(name: str, a: Any, wanted: str) -> TypeError:
    """The error; or that of ``refuse``, where ``torch.as_tensor`` would lose what ``a`` carries."""
    if not torch.compiler.is_compiling():  # the compiler would follow it into its cache
        refuse(name, a)
    return TypeError(f"{name} must be {wanted}, not {type_name(a)}; pass torch.as_tensor({name})")


def _as_target(target: Any, W: Any) -> Any:
    """The target as a tensor: that of a number is on the CPU, and of float64 whatever the dtype of W."""
    if isinstance(target, (bool, int, float, np.bool_, np.integer, np.floating)):
        return torch.full((), float(target), dtype=torch.float64, device="cpu")  # whatever the default device
    if not isinstance(target, torch.Tensor):
        raise _not_a_tensor("target", target, "a tensor or a number")
    if target.requires_grad and torch.is_grad_enabled():
        raise TypeError(_NO_TARGET_GRADIENT)
    if target.is_complex():
        raise TypeError(f"target has dtype {target.dtype}, and sigmoid(W x) is real")
    if target.device != W.device and (target.ndim > 0 or target.device.type != "cpu"):
        raise TypeError(f"W is on {W.device} and target is on {target.device}; pass target.to(W.device)")
    return target


def _vectors(W: Any, x: Any, target: Any) -> tuple[Any, Any]:
    """x and target without the axis of length 1 of columns; ValueError where they could be vectors or columns."""
    m, n = W.shape[-2:] if W.ndim >= 2 else (0, 0)
    x_ends, target_ends = x.shape[-2:], () if target is None else target.shape[-2:]
    has_columns = n > 1 and x_ends == (n, 1)
    if m == 0 or n == 0 or x.ndim == 0 or (n == 1 and x_ends == (1, 1)) or (has_columns and target_ends == (1, 1)):
        fit({name: tuple(a.shape) for name, a in (("W", W), ("x", x), ("target", target)) if a is not None})
    if not has_columns:
        return x, target
    return x.squeeze(-1), target.squeeze(-1) if m > 1 and target_ends == (m, 1) else target


@torch.compiler.allow_in_graph
def _apply(W: Any, x: Any, target: Any) -> Any:
    return _Value.apply(W, x, target)


class _Value(torch.autograd.Function):
    """The loss (...) of W (..., m, n), x (..., n) and target (..., m), () or None."""

    @staticmethod
    def forward(W: Any, x: Any, target: Any) -> Any:
        return _loss(W, x, target)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, cotangent: Any) -> Any:
        needs_W, needs_x, needs_target = ctx.needs_input_grad
        if needs_target:  # of torch.func.grad of a vmap
            raise TypeError(_NO_TARGET_GRADIENT)
        return *_Gradients.apply(*ctx.saved_tensors, cotangent, needs_W, needs_x), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(_NO_FORWARD_MODE)

    @staticmethod
    def vmap(info: Any, in_dims: Any, W: Any, x: Any, target: Any) -> Any:
        given = _with_axis(info.batch_size, in_dims, (W, x, target), (False, False, False))
        return _Value.apply(*given), 0


class _Gradients(torch.autograd.Function):
    """dW and dx, None for what is not needed. Their own derivative is an error, and never silently wrong."""

    @staticmethod
    def forward(W: Any, x: Any, target: Any, cotangent: Any, needs_W: bool, needs_x: bool) -> Any:
        found = iter(_gradients(W, x, target, cotangent, "W" * needs_W + "x" * needs_x))
        return next(found) if needs_W else None, next(found) if needs_x else None

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept: there is no backward."""

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        raise NotImplementedError(_NO_SECOND_DERIVATIVE)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(_NO_SECOND_DERIVATIVE)

    @staticmethod
    def vmap(info: Any, in_dims: Any, W: Any, x: Any, target: Any, cotangent: Any, needs_W: Any, needs_x: Any) -> Any:
        # Each step along the axis of vmap has a gradient of its own, also with respect to what all steps share.
        wanted = (needs_W, needs_x, False, False)
        given = _with_axis(info.batch_size, in_dims[:4], (W, x, target, cotangent), wanted)
        found = _Gradients.apply(*given, needs_W, needs_x)
        results = []
        for a, of, dim in zip(found, (W, x), in_dims[:2], strict=True):
            own = of.ndim - (dim is not None)
            results.append(None if a is None else a.flatten(0, -1 - own))  # without axes of length 1 behind the first
        return tuple(results), tuple(None if a is None else 0 for a in found)


# PyTorch asks for the signature in each call of ``apply``, which takes 100 us where it has to be made.
_forwards: list[Any] = [_Value.forward, _Gradients.forward]
for _forward in _forwards:
    _forward.__signature__ = inspect.signature(_forward)


def _with_axis(size: int, in_dims: Any, tensors: Any, wanted: Any) -> list[Any]:
    """W, x, target and perhaps cotangent with the axis of vmap, of ``size``, before all other batch axes.

    What does not have that axis gets it, as a view, if it is ``wanted``. Else all steps share it as it is.
    """
    cores = (2, 1, 1, 0)[: len(tensors)]  # how many axes a pair's own W, x, target and cotangent have
    given = [*zip(tensors, in_dims, cores, wanted, strict=True)]
    batches = [0 if a is None else max(0, a.ndim - (dim is not None) - core) for a, dim, core, _ in given]
    results = []
    for (a, dim, core, want), batch in zip(given, batches, strict=True):
        if a is not None and (want or dim is not None):
            a = a.expand(size, *a.shape) if dim is None else a.movedim(dim, 0)
            if a.ndim == core:  # a target of one number for each step
                a = a[:, None]
            a = a.reshape(size, *(1,) * (max(batches) - batch), *a.shape[1:])
        results.append(a)
    return results


@torch.library.custom_op("sigmoid_l2::loss", mutates_args=(), schema="(Tensor W, Tensor x, Tensor? target) -> Tensor")
def _loss(W: Any, x: Any, target: Any) -> Any:
    W, x, target = _as_given(W, x, target)
    out = None
    if W.is_cuda:
        given = {"W": W.shape, "x": x.shape, "target": getattr(target, "shape", ())}
        batch = fit({name: tuple(shape) for name, shape in given.items()}).batch
        out = torch.empty(batch, dtype=_result_dtype(W, x), device=W.device)
    return api.value(W, x, target, out=out)


@torch.library.custom_op(
    "sigmoid_l2::gradients",
    mutates_args=(),
    schema="(Tensor W, Tensor x, Tensor? target, Tensor cotangent, str wrt) -> Tensor[]",
)
def _gradients(W: Any, x: Any, target: Any, cotangent: Any, wrt: str) -> Any:
    of = _of(wrt, W, x)
    W, x, target = _as_given(W, x, target)
    out = tuple(_empty_like(a, _result_dtype(W, x)) for a in _of(wrt, W, x)) if W.is_cuda else None
    found = api.grad(W, x, target, cotangent=_dense(cotangent), wrt=tuple(wrt), out=out)
    results = []
    for g, a in zip(found, of, strict=True):
        if g.shape == a.shape:
            results.append(g.to(a.dtype))  # where W and x differ in dtype
        else:  # of the ambiguous shapes of _as_given: the sum, as the compiler is told that it lies in memory
            results.append(_empty_like(a, a.dtype).copy_(g.sum_to_size(a.shape)))
    return results


@_loss.register_fake
def _fake_loss(W: Any, x: Any, target: Any) -> Any:
    n = W.shape[-1]
    torch._check(x.shape[-1] == n, lambda: f"for this W, x must have shape (..., {n}), not {tuple(x.shape)}")
    batch = torch.broadcast_shapes(W.shape[:-2], x.shape[:-1], () if target is None else target.shape[:-1])
    return W.new_empty(batch, dtype=_result_dtype(W, x))


@_gradients.register_fake
def _fake_gradients(W: Any, x: Any, target: Any, cotangent: Any, wrt: str) -> Any:
    return [_empty_like(a, a.dtype) for a in _of(wrt, W, x)]


def _of(wrt: str, W: Any, x: Any) -> list[Any]:
    return [{"W": W, "x": x}[name] for name in wrt]


def _result_dtype(W: Any, x: Any) -> Any:
    dtype = torch.promote_types(W.dtype, x.dtype)
    return dtype if dtype.is_floating_point else torch.get_default_dtype()


def _empty_like(a: Any, dtype: Any) -> Any:
    """New memory for the gradient of ``a``: in its layout, but in C order where elements of ``a`` share memory."""
    shares = any(step == 0 and size > 1 for step, size in zip(a.stride(), a.shape, strict=True))
    return torch.empty(a.shape, dtype=dtype, device=a.device) if shares else torch.empty_like(a, dtype=dtype)


def _as_given(W: Any, x: Any, target: Any) -> tuple[Any, Any, Any]:
    """The inputs as a plain call takes them."""
    dtype = _result_dtype(W, x)
    W, x = (a.detach() if a.dtype in _FLOATS else a.to(dtype) for a in (W, x))
    if x.shape[-2:] == (1, 1) and x.shape[:-1] != W.shape[:-2]:
        # They are vectors, but could be columns too. With the batch shape of W they could not.
        batch = torch.broadcast_shapes(W.shape[:-2], x.shape[:-1])
        W, x = W.expand(*batch, *W.shape[-2:]), x.expand(*batch, 1)
    if target is not None:
        target = target.detach()
        if target.ndim == 0 and not target.is_cuda:
            target = target.item()  # a number goes with tensors on any device
    return W, x, target


def _dense(cotangent: Any) -> Any:
    """The cotangent, contiguous; None if it is 1 for all pairs, as it is for ``loss.sum().backward()``.

    There it is one number in memory, which is expanded. 10^6 such numbers of 3x3 pairs take 0.2 of the whole backward.
    """
    cotangent = cotangent.detach()
    if (
        not cotangent.is_cuda
        and cotangent.numel()
        and not any(cotangent.stride())
        and cotangent[(0,) * cotangent.ndim] == 1
    ):
        return None
    return cotangent.contiguous()
