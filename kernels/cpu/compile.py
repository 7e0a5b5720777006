"""From Python functions to machine code.

``vector_code`` turns a function that builds vector code into an intrinsic of numba. ``compile_kernel`` compiles a
kernel for arrays of a dtype, or loads it from numba's disk cache.
"""

import hashlib
import marshal
import os
from collections.abc import Callable
from functools import cache, wraps
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Any

import numba
import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from sigmoid_l2 import kernels
from sigmoid_l2.kernels import Given, cpu
from sigmoid_l2.kernels.cpu.simd import VectorBuilder, lane_count
from sigmoid_l2.kernels.quiet import quiet

# Free memory that a compilation needs, in bytes: the first one of a process takes 150 MiB, mostly of addresses. Where
# LLVM gets none, it ends the process.
COMPILER_BYTES = 192 << 20


def vector_code(constants: int = 0, returns_real: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Make an intrinsic of ``build(v, *arguments)``, where v is a VectorBuilder for the dtype of its arrays.

    ``build`` receives, for an array, a pointer to its first element, where it may be None, of whatever value then; for
    what is always None, None; for a number, its LLVM value (an integer's has 64 bits); for a named tuple of numbers,
    one of LLVM values; for each of the last ``constants`` arguments, a Python int. It returns the LLVM value of a real
    number, or None.
    """

    def decorate(build: Callable[..., Any]) -> Any:
        @wraps(build)
        def type_call(context: Any, *argument_types: Any) -> Any:
            real = next(type_.dtype for type_ in argument_types if isinstance(type_, types.Array))
            dtype = np.dtype(str(real))

            def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
                arguments = [_argument(context, builder, *a) for a in zip(argument_types, values, strict=True)]
                variables = len(arguments) - constants
                arguments[variables:] = [type_.literal_value for type_ in argument_types[variables:]]
                result = build(VectorBuilder(builder, dtype, lane_count(dtype)), *arguments)
                return context.get_dummy_value() if result is None else result

            return (real if returns_real else types.void)(*argument_types), generate

        return intrinsic(prefer_literal=True)(type_call)

    return decorate


def _argument(context: Any, builder: Any, type_: Any, value: Any) -> Any:
    if isinstance(type_, types.NoneType):
        return None
    if isinstance(type_, types.Optional):
        type_, value = type_.type, context.make_helper(builder, type_, value).data
    if isinstance(type_, types.Array):
        return context.make_array(type_)(context, builder, value).data
    if isinstance(type_, types.BaseNamedTuple):
        return type_.instance_class(*cgutils.unpack_tuple(builder, value))
    return context.cast(builder, value, type_, types.int64) if isinstance(type_, types.Integer) else value


@cache
def _digest() -> str:
    """What compiled code depends on: the modules of this folder, ``Wanted``, numba, and the processor."""
    modules = (kernels.__name__, *sorted(module.name for module in iter_modules(cpu.__path__, f"{cpu.__name__}.")))
    what = (*map(_content, modules), numba.__version__, cpu_target.target_context.codegen().magic_tuple())
    return hashlib.sha256(repr(what).encode()).hexdigest()[:16]


def _content(module: str) -> str | bytes:
    """The source of a module, from a file or an archive; its bytecode where there is no source."""
    spec: Any = find_spec(module)
    source: str = spec.loader.get_source(module)
    return source or marshal.dumps(spec.loader.get_code(module), 2)  # with format 3 and later not always the same bytes


def compile_kernel(function: Any, name: str, dtype: np.dtype[Any], given: Given) -> Any:
    """Compile a kernel, or load it from numba's disk cache.

    ``function(W, x, target, cotangent, loss, dW, dx, dq, first, last, slice_rows, streams)`` computes the slices
    first..last of W (B, m, n), x (B, n), target (B, m), cotangent (B,), loss (B * slices,), dW (B, m, n),
    dx (B * slices, n), dq (B, m), arrays of ``dtype``. A slice has ``slice_rows`` rows of a pair, the last one of a
    pair what is left; its loss and dx are the sums over its rows. An input that is not ``given`` is None, whose type
    leaves it out of the code. An output that is None is not wanted; which ones the code asks when it runs. (To convert
    an array takes 0.1 us, None nothing.) ``streams``: results go past the caches.
    """
    real = numba.from_dtype(dtype)
    pairs, vectors, numbers = real[:, :, ::1], real[:, ::1], real[::1]
    inputs_given = vectors if given.target else types.none, numbers if given.cotangent else types.none
    outputs = map(types.Optional, (numbers, pairs, vectors, vectors))
    integers = (types.int64,) * 3
    signature = types.void(pairs, vectors, *inputs_given, *outputs, *integers, types.boolean)
    inputs = "_target" * given.target + "_cotangent" * given.cotangent
    return compile_function(function, f"{name}{inputs}_{dtype}", signature)


def compile_function(function: Any, name: str, signature: Any) -> Any:
    """Compile a function for arguments of these types, or load it from numba's disk cache."""
    # numba's disk cache notices changes of the function's own file alone. And it numbers the variants of a function:
    # when two processes add one each at the same time, the key of one may lead to the code of the other from then on.
    # A name of its own gives each variant files of its own in the cache.
    options = {"nogil": True, "error_model": "numpy"}
    np.empty(COMPILER_BYTES, np.uint8)  # MemoryError, and the process goes on
    with global_compiler_lock, quiet():
        try:
            function.__qualname__ = f"{name}_{_digest()}"
            return njit(signature, **options, cache=True)(function)
        except Exception:  # no directory to write to, a full disk, a damaged file, an archive that numba does not know:
            # the kernel is compiled all the same
            return njit(signature, **options)(function)


@cache
def entry_point(function: Any) -> Any:
    """A compiled function as numba's dispatcher calls it once it has found the type of each argument.

    It takes read-only arrays, too, which are of another type to the dispatcher. It checks neither dtypes nor numbers of
    axes.
    """
    (compiled,) = function.overloads.values()
    return compiled.entry_point


if hasattr(os, "register_at_fork"):
    # A child forked while another thread compiles would wait for numba's lock forever.
    lock = global_compiler_lock
    os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
