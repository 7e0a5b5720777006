"""What type checkers see of the package: the kind of array that comes out of each call.

The docstrings are those of the calls themselves. A call that computes has an overload for each kind of array, and for
each kind of ``wrt``. No library of arrays but NumPy is imported here: the types are the same where there is none, and
no checker has to read PyTorch for those who do not use it.
"""

from typing import Any, Literal, Protocol, TypeAlias, TypeVar, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sigmoid_l2.dispatch import BackendInfo as BackendInfo
from sigmoid_l2.dispatch import BackendUnavailableError as BackendUnavailableError
from sigmoid_l2.dispatch import backends as backends
from sigmoid_l2.dispatch import show_config as show_config
from sigmoid_l2.explain.report import ArrayCheck as ArrayCheck
from sigmoid_l2.explain.report import GradCheck as GradCheck
from sigmoid_l2.explain.trace import Trace as Trace
from sigmoid_l2.results import Grad as Grad
from sigmoid_l2.results import ValueAndGrad as ValueAndGrad
from sigmoid_l2.settings import get_device_memory_limit as get_device_memory_limit
from sigmoid_l2.settings import get_kept_memory_limit as get_kept_memory_limit
from sigmoid_l2.settings import get_num_threads as get_num_threads
from sigmoid_l2.settings import get_streaming_threshold as get_streaming_threshold
from sigmoid_l2.settings import set_device_memory_limit as set_device_memory_limit
from sigmoid_l2.settings import set_kept_memory_limit as set_kept_memory_limit
from sigmoid_l2.settings import set_num_threads as set_num_threads
from sigmoid_l2.settings import set_streaming_threshold as set_streaming_threshold

__version__: str

class _DLPack(Protocol):
    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...

class _CudaArray(Protocol):
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...

# Lists, tuples and such of numbers, of NumPy arrays, or of the same again. Arrays have no ``count``, and a string does
# not take any object for ``in``.
class _Nested(Protocol):
    def __len__(self) -> int: ...
    def __contains__(self, value: object, /) -> bool: ...
    def __getitem__(self, index: int, /) -> _Number | NDArray[Any] | _Nested: ...
    def count(self, value: Any, /) -> int: ...

# Arrays of PyTorch, JAX, CuPy and so on: the results are of the same class.
_A = TypeVar("_A", bound=_DLPack | _CudaArray)
# The floating-point dtype that the NumPy arrays W and x have in common: it is that of the results.
_F = TypeVar("_F", bound=np.floating[Any])

_Number: TypeAlias = float | np.floating[Any] | np.integer[Any] | np.bool
_Host: TypeAlias = NDArray[Any] | _Nested  # gives NumPy arrays
_Array: TypeAlias = _Host | _DLPack | _CudaArray
_Optional: TypeAlias = _Array | _Number | None

_Backend: TypeAlias = Literal["auto", "cpu", "gpu", "numpy", "numba", "numba-cuda", "cupy"]
_Name: TypeAlias = Literal["W", "x", "q"]
_Names: TypeAlias = tuple[_Name, ...] | list[_Name]

# The named tuples of a call with ``wrt``. Which of the fields they have is not known to the types.
class _Gradients(tuple[_A, ...]):
    dW: _A
    dx: _A
    dq: _A

class _LossAndGradients(_Gradients[_A]):
    loss: _A

@overload
def value_and_grad(
    W: NDArray[_F],
    x: NDArray[_F],
    target: _Optional = None,
    *,
    cotangent: _Optional = None,
    out: tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None = None,
    backend: _Backend = "auto",
    stream: object = None,
) -> ValueAndGrad[NDArray[_F]]: ...
@overload
def value_and_grad(
    W: _Host,
    x: _Array,
    target: _Optional = None,
    *,
    cotangent: _Optional = None,
    out: tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None = None,
    backend: _Backend = "auto",
    stream: object = None,
) -> ValueAndGrad[NDArray[Any]]: ...
@overload
def value_and_grad(
    W: _A,
    x: _Array,
    target: _Optional = None,
    *,
    cotangent: _Optional = None,
    out: tuple[_A, _A, _A] | None = None,
    backend: _Backend = "auto",
    stream: object = None,
) -> ValueAndGrad[_A]: ...
@overload
def value_and_grad(
    W: NDArray[_F],
    x: NDArray[_F],
    target: _Optional = None,
    *,
    cotangent: _Optional = None,
    wrt: _Name | _Names,
    out: tuple[NDArray[Any], ...] | None = None,
    backend: _Backend = "auto",
    stream: object = None,
) -> _LossAndGradients[NDArray[_F]]: ...
@overload
def value_and_grad(
    W: _Host,
    x: _Array,
    target: _Optional = None,
    *,
    cotangent: _Optional = None,
    wrt: _Name | _Names,
    out: tuple[NDArray[Any], ...] | None = None,
    backend: _Backend = "auto",
    stream: object = None,
) -> _LossAndGradients[NDArray[Any]]: ...
@overload
def value_and_grad(
    W: _A,
    x: _Array,
    target: _Optional = None,
    *,
    cotangent: _Optional = None,
    wrt: _Name | _Names,
    out: tuple[_A, ...] | None = None,
    backend: _Backend = "auto",
    stream: object = None,
) -> _LossAndGradients[_A]: ...
@overload
def value(
    W: NDArray[_F],
    x: NDArray[_F],
    target: _Optional = None,
    *,
    out: NDArray[Any] | None = None,
    backend: _Backend = "auto",
    stream: object = None,
) -> NDArray[_F]: ...
@overload
def value(
    W: _Host,
    x: _Array,
    target: _Optional = None,
    *,
    out: NDArray[Any] | None = None,
    backend: _Backend = "auto",
    stream: object = None,
) -> NDArray[Any]: ...
@overload
def value(
    W: _A,
    x: _Array,
    target: _Optional = None,
    *,
    out: _A | None = None,
    backend: _Backend = "auto",
    stream: object = None,
) -> _A: ...
@overload
def grad(
    W: NDArray[_F],
    x: NDArray[_F],
    target: _Optional = None,
    *,
    cotangent: _Optional = None,
    out: tuple[NDArray[Any], NDArray[Any]] | None = None,
    backend: _Backend = "auto",
    stream: object = None,
) -> Grad[NDArray[_F]]: ...
@overload
def grad(
    W: _Host,
    x: _Array,
    target: _Optional = None,
    *,
    cotangent: _Optional = None,
    out: tuple[NDArray[Any], NDArray[Any]] | None = None,
    backend: _Backend = "auto",
    stream: object = None,
) -> Grad[NDArray[Any]]: ...
@overload
def grad(
    W: _A,
    x: _Array,
    target: _Optional = None,
    *,
    cotangent: _Optional = None,
    out: tuple[_A, _A] | None = None,
    backend: _Backend = "auto",
    stream: object = None,
) -> Grad[_A]: ...
@overload
def grad(
    W: NDArray[_F],
    x: NDArray[_F],
    target: _Optional = None,
    *,
    cotangent: _Optional = None,
    wrt: _Name,
    out: NDArray[Any] | None = None,
    backend: _Backend = "auto",
    stream: object = None,
) -> NDArray[_F]: ...
@overload
def grad(
    W: _Host,
    x: _Array,
    target: _Optional = None,
    *,
    cotangent: _Optional = None,
    wrt: _Name,
    out: NDArray[Any] | None = None,
    backend: _Backend = "auto",
    stream: object = None,
) -> NDArray[Any]: ...
@overload
def grad(
    W: _A,
    x: _Array,
    target: _Optional = None,
    *,
    cotangent: _Optional = None,
    wrt: _Name,
    out: _A | None = None,
    backend: _Backend = "auto",
    stream: object = None,
) -> _A: ...
@overload
def grad(
    W: NDArray[_F],
    x: NDArray[_F],
    target: _Optional = None,
    *,
    cotangent: _Optional = None,
    wrt: _Names,
    out: tuple[NDArray[Any], ...] | None = None,
    backend: _Backend = "auto",
    stream: object = None,
) -> _Gradients[NDArray[_F]]: ...
@overload
def grad(
    W: _Host,
    x: _Array,
    target: _Optional = None,
    *,
    cotangent: _Optional = None,
    wrt: _Names,
    out: tuple[NDArray[Any], ...] | None = None,
    backend: _Backend = "auto",
    stream: object = None,
) -> _Gradients[NDArray[Any]]: ...
@overload
def grad(
    W: _A,
    x: _Array,
    target: _Optional = None,
    *,
    cotangent: _Optional = None,
    wrt: _Names,
    out: tuple[_A, ...] | None = None,
    backend: _Backend = "auto",
    stream: object = None,
) -> _Gradients[_A]: ...
def warmup(
    shape: tuple[int, int], dtype: DTypeLike = "float32", backend: _Backend = "auto", *, target: bool = False
) -> None: ...
def trace(W: _Array, x: _Array, target: _Optional = None) -> Trace: ...
def check_grad(
    W: _Array,
    x: _Array,
    target: _Optional = None,
    *,
    q: _Optional = None,
    s: _Optional = None,
    e: _Optional = None,
    loss: _Optional = None,
    dloss_ds: _Optional = None,
    ds_dq: _Optional = None,
    dloss_dq: _Optional = None,
    dW: _Optional = None,
    dx: _Optional = None,
    rtol: float | None = None,
    atol: float = 0.0,
) -> GradCheck: ...

# The modules torch.py and jax.py, as what they have to offer: a checker that were sent there would read all of PyTorch
# and JAX. Their arrays are known by what no others have.
class _Tensor(_DLPack, Protocol):
    requires_grad: bool

class _JaxArray(_DLPack, Protocol):
    @property
    def weak_type(self) -> bool: ...

_T = TypeVar("_T", bound=_Tensor)
_J = TypeVar("_J", bound=_JaxArray)

class torch:  # noqa: N801
    @staticmethod
    def value(W: _T, x: _T, target: _T | float | None = None) -> _T: ...

class jax:  # noqa: N801
    @overload
    @staticmethod
    def value(W: _J, x: _Array, target: _Optional = None) -> _J: ...
    @overload
    @staticmethod
    def value(W: _Host, x: _J, target: _Optional = None) -> _J: ...
    @overload
    @staticmethod
    def value(W: _Host, x: _Host, target: _Optional = None) -> Any: ...
