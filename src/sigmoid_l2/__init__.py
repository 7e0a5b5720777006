"""||sigmoid(W x) - y||^2 and its gradients for large batches of pairs (W, x), in one fused pass.

>>> import numpy as np
>>> import sigmoid_l2 as sl2
>>> W, x, y = np.zeros((5, 3, 2)), np.ones((5, 2)), np.ones((5, 3))  # five pairs of a 3x2 matrix and a vector
>>> loss, dW, dx = sl2.value_and_grad(W, x, y)
>>> loss.shape, dW.shape, dx.shape
((5,), (5, 3, 2), (5, 2))

The calls
---------
value_and_grad(W, x, y)     the loss and its gradients dW and dx, a named tuple
value(W, x, y)              the loss alone
grad(W, x, y, wrt=...)      the gradients alone, or those that wrt names
torch.value(W, x, y)        the loss as an operation that PyTorch can differentiate
jax.value(W, x, y)          the loss as an operation that JAX can differentiate
trace(W, x, y)              every intermediate by name; print it
check_grad(W, x, y, dW=dW)  whether a gradient written by hand is right, and if not, how it is wrong
backends(), show_config()   what can compute here; for what cannot, why not, and the fix
warmup((m, n))              compiles ahead of the first call
set_num_threads(k)          and three more settings, each with its get_... and an environment variable

The shapes
----------
W is (..., m, n), x is (..., n), the target y is (..., m) and optional. Their leading axes, the batch, broadcast by
NumPy's rules. The loss has the batch's shape, and each gradient exactly the shape of its input: one W for many x gives
the sum over the batch. The results are arrays of W's kind (NumPy, PyTorch, JAX, CuPy), in its memory.

help(sigmoid_l2.value_and_grad) has every argument, the dtypes and the errors; README.md and docs/contract.md in the
sources have the rest; "sigmoid-l2 --help" tells what the command line can do.
"""

import importlib
from typing import Any

from sigmoid_l2.api import grad, value, value_and_grad, warmup
from sigmoid_l2.dispatch import BackendInfo, BackendUnavailableError, backends, show_config
from sigmoid_l2.explain.check_grad import check_grad
from sigmoid_l2.explain.report import ArrayCheck, GradCheck
from sigmoid_l2.explain.trace import Trace, trace
from sigmoid_l2.results import Grad, ValueAndGrad
from sigmoid_l2.settings import (
    get_device_memory_limit,
    get_kept_memory_limit,
    get_num_threads,
    get_streaming_threshold,
    set_device_memory_limit,
    set_kept_memory_limit,
    set_num_threads,
    set_streaming_threshold,
)

__all__ = [
    "ArrayCheck",
    "BackendInfo",
    "BackendUnavailableError",
    "Grad",
    "GradCheck",
    "Trace",
    "ValueAndGrad",
    "__version__",
    "backends",
    "check_grad",
    "get_device_memory_limit",
    "get_kept_memory_limit",
    "get_num_threads",
    "get_streaming_threshold",
    "grad",
    "set_device_memory_limit",
    "set_kept_memory_limit",
    "set_num_threads",
    "set_streaming_threshold",
    "show_config",
    "trace",
    "value",
    "value_and_grad",
    "warmup",
]

__version__: str


def __getattr__(name: str) -> Any:
    """What is read when it is asked for.

    importlib.metadata takes as long to import as all the rest of this, PyTorch and JAX a hundred times that. Where one
    of the two is missing or too old, the ImportError of our module says so.
    """
    if name in ("jax", "torch"):
        return importlib.import_module(f"{__name__}.{name}")
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sigmoid_l2 import version

    return version.__version__
