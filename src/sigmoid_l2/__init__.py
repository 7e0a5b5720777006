"""||sigmoid(W x) - y||^2 and its gradients for large batches of pairs (W, x), in one fused pass."""

from sigmoid_l2.api import Grad, ValueAndGrad, grad, value, value_and_grad, warmup
from sigmoid_l2.dispatch import BackendInfo, BackendUnavailableError, backends, show_config
from sigmoid_l2.explain.check_grad import ArrayCheck, GradCheck, check_grad
from sigmoid_l2.explain.trace import Trace, trace
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


def __getattr__(name: str) -> str:
    """Read the version when it is asked for: importlib.metadata takes as long to import as all the rest of this."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sigmoid_l2 import version

    return version.__version__
