"""The ordered table of backends, why each is or is not available here, and which one a call gets."""

import difflib
import importlib
import importlib.util
import os
import platform
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from sigmoid_l2.kernels.gpu import shim
from sigmoid_l2.offload import get_device_memory_limit
from sigmoid_l2.problem import Device, Problem
from sigmoid_l2.threads import get_num_threads
from sigmoid_l2.version import __version__

ENVIRONMENT_VARIABLE = "SIGMOID_L2_BACKEND"
PREFERENCES = ("auto", "cpu", "gpu")
_INSTALL_GPU = "pip install 'sigmoid-l2[cuda13]' (or [cuda12], to match the driver)"
_INSTALL_NUMBA_CUDA = "pip install 'numba-cuda[cu13]>=0.30.4' (or [cu12], to match the driver)"


class BackendUnavailableError(RuntimeError):
    """No backend that was asked for can run here; the message has every reason and the fix."""


@dataclass(frozen=True)
class BackendInfo:
    """What ``backends()`` tells about one backend; ``reasons`` is empty where it is available.

    ``package`` is the import name of the library that computes; "numba-cuda" has two, of which it says the one in use.
    """

    name: str
    device: Device
    available: bool
    reasons: tuple[str, ...]
    package: str


@dataclass(frozen=True, eq=False)  # compared and hashed by identity, which is quick
class Backend:
    """One way to compute a batch: the module of its kernel, where it runs, what it accepts and how to ask for it."""

    name: str
    device: Device
    module: str
    dtypes: tuple[str, ...]
    probe: Callable[[], None]  # raises _NotAvailableError where the backend cannot run

    @property
    def package(self) -> str:
        """The import name of the library that computes."""
        return shim.package() if self.name == "numba-cuda" else self.name

    @cached_property
    def kernel(self) -> Any:
        """The module whose ``fused`` keeps the contract of ``sigmoid_l2.kernels``."""
        return importlib.import_module(self.module)

    def reasons(self, dtype: np.dtype[Any] | None = None) -> tuple[str, ...]:
        """Why the backend cannot compute (in ``dtype``, where given) here; empty where it can."""
        error = _probe(self)
        reasons = [str(error)] if error else []
        if dtype is not None and dtype.name not in self.dtypes:
            reasons.append(
                f"it computes in {' and '.join(self.dtypes)}, not in {dtype.name}: "
                "convert W and x, or use backend='numpy'"
            )
        return tuple(reasons)


class _NotAvailableError(Exception):
    """One sentence: why a backend cannot run here, and the fix."""


def _import(module: str, package: str, fix: str, refit: str = "") -> Any:
    """``module`` of ``package``, which ``fix`` installs; ``refit`` helps where it looks for what another has not."""
    try:
        if importlib.util.find_spec(package) is not None:
            return importlib.import_module(module)
    except Exception as error:  # a broken installation raises anything: it must not take the other backends along
        repair = refit if refit and isinstance(error, AttributeError | ImportError) else f"reinstall it: {fix}"
        what = f"{type(error).__name__}: {str(error).strip()}"
        raise _NotAvailableError(f"importing {module} failed with {what}; {repair}") from error
    raise _NotAvailableError(f"{package} is not installed: {fix}")


def _require_device(library: str, is_available: Callable[[], bool]) -> None:
    fix = "check that nvidia-smi lists a GPU and that its driver is recent enough"
    try:
        found = is_available()
    except Exception as error:  # a driver too old for the library, for one
        raise _NotAvailableError(f"{library} cannot use the CUDA driver ({error}): {fix}") from error
    if not found:
        raise _NotAvailableError(f"{library} finds no CUDA device: {fix}")


def _probe_numpy() -> None:
    pass


def _probe_numba() -> None:
    numba = _import("numba", "numba", "pip install numba")
    if getattr(getattr(numba, "config", None), "DISABLE_JIT", False):
        raise _NotAvailableError("NUMBA_DISABLE_JIT is set, and the kernel runs compiled only: unset it")


def _probe_numba_cuda() -> None:
    numba = _import("numba", "numba", "pip install numba")
    if getattr(getattr(numba, "config", None), "ENABLE_CUDASIM", False):
        raise _NotAvailableError("NUMBA_ENABLE_CUDASIM is set, and numba's simulator has no warp shuffles: unset it")
    package = shim.package()
    library = _import(package, package, _INSTALL_GPU)
    if package == "numba_cuda":
        _require_compiler(library, numba)
    cuda = _import(shim.module(), package, _INSTALL_GPU)
    _require_device("numba-cuda", cuda.is_available)


def _require_compiler(numba_cuda: Any, numba: Any) -> None:
    """What numba-cuda needs to compile: `import numba.cuda` may succeed without it, and then every call fails.

    nvJitLink is not needed: without it numba-cuda lets the driver link.
    """

    def refit(other: Any, fix: str) -> str:
        here = " and ".join(f"{m.__name__} {getattr(m, '__version__', '')}" for m in (numba_cuda, other))
        return f"install versions that fit together (here {here}): {fix}"

    cuda = _import("numba.cuda", "numba_cuda", _INSTALL_GPU, refit(numba, _INSTALL_NUMBA_CUDA))
    if getattr(cuda, "implementation", "") == "Built-in":
        raise _NotAvailableError(
            "numba's own numba.cuda is in the way: numba-cuda takes its place by a .pth file, which Python does not "
            "read on PYTHONPATH: install numba-cuda into the environment, or site.addsitedir its folder"
        )
    _import("numba.cuda.np.arrayobj", "numba_cuda", _INSTALL_GPU, refit(np, "pip install 'numpy<2.5'"))
    paths = _import("numba.cuda.cuda_paths", "numba_cuda", _INSTALL_GPU)
    try:
        if paths.get_cuda_paths()["libdevice"].info is None:  # where libnvrtc or libnvvm is missing, it raises
            raise FileNotFoundError("Failure finding libdevice.10.bc")
    except Exception as error:
        what = str(error.__cause__ or error).partition(":")[0]  # every folder that was searched follows
        raise _NotAvailableError(
            f"numba-cuda cannot compile ({what}): {_INSTALL_NUMBA_CUDA}, or set CUDA_HOME to a CUDA toolkit that has it"
        ) from error


def _probe_cupy() -> None:
    cupy = _import("cupy", "cupy", _INSTALL_GPU)
    _require_device("CuPy", cupy.cuda.is_available)


# In the order of preference among those that live where the arrays do.
BACKENDS = (
    Backend("numba", "cpu", "sigmoid_l2.kernels.cpu.launch", ("float32", "float64"), _probe_numba),
    Backend("numpy", "cpu", "sigmoid_l2.kernels.reference", ("float16", "float32", "float64"), _probe_numpy),
    Backend("cupy", "cuda", "sigmoid_l2.kernels.gpu.launch_cupy", ("float32", "float64"), _probe_cupy),
    Backend("numba-cuda", "cuda", "sigmoid_l2.kernels.gpu.launch_numba", ("float32", "float64"), _probe_numba_cuda),
)
NAMES = tuple(backend.name for backend in BACKENDS)
_KNOWN = (*PREFERENCES, *NAMES)


@cache
def _probe(backend: Backend) -> _NotAvailableError | None:
    try:
        backend.probe()
    except _NotAvailableError as error:
        return error
    return None


def backends() -> tuple[BackendInfo, ...]:
    """Every backend: where it runs, whether it can run here, and if not, the reasons with the fix for each.

    Asking imports numba and cupy where they are installed.
    """
    return tuple(BackendInfo(b.name, b.device, not b.reasons(), b.reasons(), b.package) for b in BACKENDS)


def choose(problem: Problem, backend: str) -> Backend:
    """The backend that computes ``problem`` when the user asks for ``backend``.

    Raises ValueError for an unknown name, TypeError for CUDA arrays and a CPU backend, BackendUnavailableError where
    nothing that was asked for can run.
    """
    name = _resolve(backend)
    chosen = _first_available(name, problem.device, problem.dtype, BACKENDS)
    if chosen is not None:
        return chosen
    candidates = _candidates(name, problem.device, BACKENDS)
    if not candidates:
        raise TypeError(
            f"backend {name!r} computes in host memory, but W and x are on a CUDA device; "
            "pass cupy.asnumpy(W) and cupy.asnumpy(x), or use backend='auto'"
        )
    raise BackendUnavailableError(_why_none(problem, name, candidates)) from _probe(candidates[0])


@cache
def _first_available(name: str, device: Device, dtype: np.dtype[Any], table: tuple[Backend, ...]) -> Backend | None:
    get_num_threads()  # raises for nonsense in the environment at once, not at the first large batch
    return next((b for b in _candidates(name, device, table) if not b.reasons(dtype)), None)


def _candidates(name: str, device: Device, table: tuple[Backend, ...]) -> list[Backend]:
    """The backends that ``name`` allows for arrays on ``device``, the preferred one first."""
    if name not in PREFERENCES:
        devices: tuple[Device, ...] = ("cpu", "cuda") if device == "cpu" else ("cuda",)
        return [b for b in table if b.name == name and b.device in devices]
    if device == "cuda":  # nothing is moved to the host
        devices = () if name == "cpu" else ("cuda",)
    else:
        devices = ("cuda", "cpu") if name == "gpu" else ("cpu",)
    return [b for d in devices for b in table if b.device == d]


def _resolve(backend: str) -> str:
    """The name to go by: the caller's, or for "auto" that of the environment variable where it is set."""
    source = "backend"
    if isinstance(backend, str) and backend == "auto" and (default := os.environ.get(ENVIRONMENT_VARIABLE)):
        backend, source = default, f"the environment variable {ENVIRONMENT_VARIABLE}"
    if not isinstance(backend, str) or backend not in _KNOWN:
        close = difflib.get_close_matches(str(backend), _KNOWN, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"{source} must be one of {', '.join(map(repr, _KNOWN))}, not {backend!r}{hint}")
    return backend


def _why_none(problem: Problem, name: str, candidates: Iterable[Backend]) -> str:
    where = {"cpu": "in host memory", "cuda": "on a CUDA device"}[problem.device]
    lines = [
        f"backend {name!r} cannot compute W {tuple(problem.W.shape)} and x {problem.shape('dx')}, "
        f"{problem.dtype.name}, {where}:"
    ]
    lines += [f"  {b.name}: {reason}" for b in candidates for reason in b.reasons(problem.dtype)]
    return "\n".join(lines)


def show_config() -> None:
    """Print the versions in use and every backend with its state; the same as ``backends()``, for people."""
    print(f"sigmoid-l2 {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    infos = backends()  # imports what is installed
    packages = ("numpy", *sorted({info.package for info in infos} - {"numpy"}))
    versions = {name: getattr(sys.modules.get(name), "__version__", None) for name in packages}
    print(", ".join(f"{name} {version or '-'}" for name, version in versions.items()))
    print(f"CPU threads: {get_num_threads()}")
    print(f"GPU memory for host arrays: {get_device_memory_limit() / 2**20:g} MiB")
    default = os.environ.get(ENVIRONMENT_VARIABLE)
    print(f"default backend: {f'{default} (from {ENVIRONMENT_VARIABLE})' if default else 'auto'}\n")
    print(f"{'backend':<12}{'device':<8}state")
    for info in infos:
        print(f"{info.name:<12}{info.device:<8}{'available' if info.available else 'not available'}")
        for reason in info.reasons:
            print(f"{'':20}{reason}")
