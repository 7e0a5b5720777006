"""The loss as an operation of JAX: ``value`` under jit, grad and vmap, on CPUs and CUDA devices.

Two primitives. ``call_p`` computes what a call of this library computes, by ``buffer_callback``: the kernel reads and
writes XLA's own memory. ``tangent_p`` is the derivative of the loss, of which JAX only ever needs the transpose, and
that is ``call_p`` with the incoming gradient as the cotangent.

They are primitives, and no ``jax.custom_vjp``, because of a W that vmap shares. Its gradient of a sum over the batch is
a sum, which the kernel for one W adds up. With a custom_vjp JAX batches the backward pass itself: it asks for the dW of
each pair and adds up these K m n numbers, which took twice as long (3x3, K = 10^6).
"""

from collections.abc import Sequence
from functools import cache, partial
from typing import Any, NamedTuple, NoReturn

import numpy as np

from sigmoid_l2.dispatch import BackendUnavailableError, choose
from sigmoid_l2.execute import execute
from sigmoid_l2.gpu.arrays import is_cuda_array
from sigmoid_l2.gpu.cupy_library import cupy_stream
from sigmoid_l2.memory import use_huge_pages
from sigmoid_l2.probes import probe_cupy, why_not
from sigmoid_l2.problem import DTYPES, on_host, validate
from sigmoid_l2.shapes import Shape, broadcast, fit

__all__ = ["value"]

# The versions of JAX that the tests know, and how pip is asked for one of them.
SUPPORTED, PIP = "JAX 0.8 to 0.10", "jax>=0.8,<0.11"

try:
    import jax
    import jax.numpy as jnp
    from jax.experimental.buffer_callback import buffer_callback
    from jax.extend.core import Primitive
    from jax.interpreters import ad, batching, mlir

    # Asked for here, so that a JAX without one of them is told at once.
    ShapedArray, typeof, lower_fun = jax.core.ShapedArray, jax.typeof, mlir.lower_fun
    _JVPS, _TRANSPOSES, _BATCHERS = ad.primitive_jvps, ad.primitive_transposes, batching.primitive_batchers
except (AttributeError, ImportError) as error:
    raise ImportError(
        f"sigmoid_l2.jax needs {SUPPORTED}, and what is installed lacks an interface: pip install {PIP!r} ({error})"
    ) from error


class Call(NamedTuple):
    """What ``call_p`` computes of its inputs, which all have W's dtype but for a target of 16-bit ones."""

    names: tuple[str, ...]  # of the outputs: "loss", or of "dW" and "dx"
    given: tuple[str, ...]  # of the inputs: "W", "x" and, where they are given, "target" and "cotangent"
    W: Shape  # as which W is taken, as a view; dW has this shape
    x: Shape  # the same for x and dx


CORE_AXES = {"W": 2, "x": 1, "target": 1, "cotangent": 0}  # how many axes of an input are not the batch's


def value(W: Any, x: Any, target: Any = None) -> jax.Array:
    """Compute the loss ||sigmoid(W x) - target||^2 for every pair, as an operation that JAX can differentiate.

    Parameters
    ----------
    W : array (..., m, n)
        JAX array, or what ``jnp.asarray`` takes. m, n >= 1.
    x : array (..., n), or (..., n, 1) where n > 1
        Its batch shape and that of W broadcast by NumPy's rules.
    target : array (..., m), or what broadcasts to it, such as a number; optional
        What sigmoid(W x) should be; 0 by default. Integers and bool are labels. Nothing is differentiated in it.

    Returns
    -------
    jax.Array
        The loss (...), in the batch shape to which all inputs broadcast, in the dtype to which JAX promotes W and x:
        float16, bfloat16, float32 or, where x64 is enabled, float64; JAX's default float for integers. The 16-bit types
        are storage: computed in float32, each result rounded once.

    Raises
    ------
    TypeError
        A dtype or a kind of array that is not supported; a derivative in ``target``.
    ValueError
        Shapes that do not fit, with all shapes.
    NotImplementedError
        Forward-mode and second derivatives (jvp, linearize, jacfwd, hessian); a platform that is neither the CPU nor
        CUDA.

    Notes
    -----
    The forward pass computes the loss alone, the backward pass the gradients that are asked for, with the kernels of
    ``sigmoid_l2.grad``. A gradient has the shape and dtype of its input. A W that vmap does not map stays one W, and a
    kernel adds up its gradient of a sum over the batch.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, sigmoid_l2.jax
    >>> step = jax.jit(jax.value_and_grad(lambda W, x, y: sigmoid_l2.jax.value(W, x, y).mean()))
    >>> loss, dW = step(jnp.zeros((3, 2)), jnp.ones((5, 2)), jnp.array([0, 1, 1]))
    >>> loss.shape, dW.shape
    ((), (3, 2))
    """
    given = {"W": W, "x": x, "target": target}
    arrays = {name: _as_jax(name, a) for name, a in given.items() if a is not None or name in ("W", "x")}
    found = fit({name: a.shape for name, a in arrays.items()})
    dtype = jnp.result_type(arrays["W"], arrays["x"], float)  # ``float`` is weak: it decides for integers alone
    arrays["W"], arrays["x"] = arrays["W"].astype(dtype), arrays["x"].astype(dtype)
    if found.x_is_column:
        arrays["x"] = arrays["x"][..., 0]
    if target is not None:
        y = jnp.atleast_1d(arrays["target"]).astype(jnp.float32 if dtype.itemsize == 2 else dtype)
        arrays["target"] = y[..., 0] if found.target_is_column else y
    return _bind(("loss",), arrays)[0]


def _as_jax(name: str, a: Any) -> jax.Array:
    """An input as a JAX array; TypeError for what only looks like an array of numbers."""
    if not isinstance(a, jax.Array):
        is_list = isinstance(a, list | tuple) and any(isinstance(b, jax.Array) for b in jax.tree.leaves(a))
        return _as_jax(name, jnp.asarray(a if is_list or is_cuda_array(a) else on_host(name, a)))
    if not (jnp.issubdtype(a.dtype, jnp.integer) or a.dtype == bool or a.dtype.name in (*DTYPES, "bfloat16")):
        raise TypeError(f"{name} has dtype {a.dtype}; supported are {', '.join(DTYPES)}, bfloat16, integers and bool")
    kind = typeof(a)
    if getattr(kind, "vma", None) or getattr(getattr(kind, "mat", None), "varying", None):
        raise NotImplementedError(f"{name} varies over devices: under jax.shard_map pass check_vma=False to it")
    return a


def _bind(names: tuple[str, ...], arrays: dict[str, Any]) -> list[Any]:
    """The outputs ``names`` for inputs by their names, W and x first."""
    call = Call(names, tuple(arrays), arrays["W"].shape, arrays["x"].shape)
    results: list[Any] = call_p.bind(*arrays.values(), call=call)
    return results


def _types(*inputs: Any, call: Call) -> list[Any]:
    """The shapes and the dtype of the outputs."""
    y = dict(zip(call.given, inputs, strict=True)).get("target")
    loss = broadcast(call.W[:-2], call.x[:-1], () if y is None else y.shape[:-1])
    shapes = {"loss": loss, "dW": call.W, "dx": call.x}
    return [ShapedArray(shapes[name], inputs[0].dtype) for name in call.names]


def _compute(*inputs: Any, call: Call) -> Any:
    return buffer_callback(_callback(call), _types(*inputs, call=call))(*inputs)


@cache
def _callback(call: Call) -> Any:
    """What XLA calls: one function for each call, by which JAX finds what it has compiled."""
    return partial(_run, call)


def _run(call: Call, context: Any, outputs: Sequence[Any], *inputs: Any) -> None:
    """Compute in XLA's own memory; on a CUDA device on XLA's stream, for which the host does not wait."""
    if not is_cuda_array(inputs[0]):
        on_host, results = [*map(np.asarray, inputs)], [*map(np.asarray, outputs)]
        for a in results:
            use_huge_pages(a)
        if call.given[-1] == "cotangent" and on_host[-1].ndim == 0 and on_host[-1] == 1:  # what vmap of grad has
            call = call._replace(given=call.given[:-1])
            del on_host[-1]
        _execute(call, np, on_host, results)
        return
    error = why_not(probe_cupy)
    if error:
        raise BackendUnavailableError(f"sigmoid_l2.jax.value needs CuPy on a CUDA device: {error}")
    import cupy

    on_device = [*map(cupy.asarray, inputs)]
    with on_device[0].device, cupy_stream(context.stream):
        _execute(call, cupy, on_device, [*map(cupy.asarray, outputs)])


def _execute(call: Call, xp: Any, inputs: Sequence[Any], results: Sequence[Any]) -> None:
    """Compute with arrays of the library ``xp``."""
    arrays = dict(zip(call.given, inputs, strict=True))
    for name, shape in (("W", call.W), ("x", call.x)):
        if arrays[name].shape != shape:
            arrays[name] = xp.broadcast_to(arrays[name], shape)
    problem = validate(**arrays, names=call.names, out=results, vectors=True)
    execute(problem, call.names, choose(problem, "auto"), None)


def _batched(inputs: Sequence[Any], axes: Sequence[int | None], *, call: Call) -> tuple[list[Any], list[int]]:
    """The calls along a new batch axis as one call: the axis comes first, and what does not have it stays as it is.

    But each of these calls has a gradient of its own. So where that is wanted, W or x is taken as a view with the axis.
    """
    mapped = {name: axis for name, axis in zip(call.given, axes, strict=True) if axis is not None}
    arrays = dict(zip(call.given, inputs, strict=True))
    for name, axis in mapped.items():
        arrays[name] = jnp.moveaxis(arrays[name], axis, 0)
    size = next(arrays[name].shape[0] for name in mapped)
    # Batch axes of each of these calls: of its views, which have those of W and x, and of its other inputs.
    batch = [len(call.W) - 2, len(call.x) - 1, *(arrays[a].ndim - (a in mapped) - CORE_AXES[a] for a in call.given)]

    def with_axis(name: str, shape: Shape) -> Shape:
        return (size, *(1,) * (max(batch) + CORE_AXES[name] - len(shape)), *shape)

    for name in mapped:
        arrays[name] = arrays[name].reshape(with_axis(name, arrays[name].shape[1:]))
    W, x = (
        with_axis(name, shape) if name in mapped or f"d{name}" in call.names else shape
        for name, shape in (("W", call.W), ("x", call.x))
    )
    results = call_p.bind(*arrays.values(), call=call._replace(W=W, x=x))
    own = {"dW": (size, *call.W), "dx": (size, *call.x)}
    each = [a.reshape(own.get(name, a.shape)) for name, a in zip(call.names, results, strict=True)]
    return each, [0] * len(each)


def _differentiated(inputs: Sequence[Any], tangents: Sequence[Any], *, call: Call) -> tuple[list[Any], list[Any]]:
    """The outputs, and what their tangents would be: nothing is wrong unless these are used."""
    changes = {name: t for name, t in zip(call.given, tangents, strict=True) if type(t) is not ad.Zero}
    results = call_p.bind(*inputs, call=call)
    return results, tangent_p.bind(*inputs, *changes.values(), call=call, changing=tuple(changes))


def _transposed(cotangents: Sequence[Any], *inputs: Any, call: Call, changing: tuple[str, ...]) -> list[Any]:
    """The gradients in place of the tangents, and nothing for the other inputs."""
    given, changes = inputs[: len(call.given)], inputs[len(call.given) :]
    gradients: dict[str, Any] = {}
    if any(type(a) is not ad.Zero for a in cotangents):
        wanted = [name for name, t in zip(changing, changes, strict=True) if ad.is_undefined_primal(t)]
        if call.names != ("loss",):
            raise NotImplementedError(
                "sigmoid_l2.jax.value has no second derivatives: its gradient cannot be differentiated. Where it is "
                "meant to be a constant, pass it through jax.lax.stop_gradient; else write the formula in jax.numpy"
            )
        if "target" in wanted:
            raise TypeError(
                "sigmoid_l2.jax.value is not differentiated in target, which depends here on what is differentiated: "
                "pass jax.lax.stop_gradient(target)"
            )
        arrays = {**dict(zip(call.given, given, strict=True)), "cotangent": cotangents[0]}
        gradients = dict(zip(wanted, _bind(tuple(f"d{name}" for name in wanted), arrays), strict=True))
    return [None] * len(given) + [gradients.get(name) for name in changing]


def _no_tangent(*_: Any, **__: Any) -> NoReturn:
    raise NotImplementedError(
        "sigmoid_l2.jax.value has no forward-mode and no second derivatives (jvp, linearize, jacfwd, hessian): use "
        "jax.grad, jax.value_and_grad, jax.vjp or jax.jacrev, or write the formula in jax.numpy"
    )


def _no_platform(context: Any, *_: Any, **__: Any) -> NoReturn:
    platforms = ", ".join(context.module_context.platforms)
    raise NotImplementedError(f"sigmoid_l2.jax.value runs on the CPU and on CUDA devices, not on {platforms}")


call_p = Primitive("sigmoid_l2")
call_p.multiple_results = True
call_p.def_impl(_compute)
call_p.def_abstract_eval(_types)
_BATCHERS[call_p] = _batched
_JVPS[call_p] = _differentiated
mlir.register_lowering(call_p, _no_platform)
for _platform in ("cpu", "cuda"):
    mlir.register_lowering(call_p, lower_fun(_compute, multiple_results=True), platform=_platform)

tangent_p = Primitive("sigmoid_l2_tangent")
tangent_p.multiple_results = True
tangent_p.def_abstract_eval(lambda *inputs, call, changing: _types(*inputs[: len(call.given)], call=call))
_TRANSPOSES[tangent_p] = _transposed
tangent_p.def_impl(_no_tangent)
_BATCHERS[tangent_p] = _no_tangent
_JVPS[tangent_p] = _no_tangent
mlir.register_lowering(tangent_p, _no_tangent)
