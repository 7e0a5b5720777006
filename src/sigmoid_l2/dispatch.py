"""The ordered table of backends, and which of them a call gets. probes.py says which can run here."""

import difflib
import os
import platform
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal

from sigmoid_l2 import probes
from sigmoid_l2.gpu.cupy_library import CupyLibrary
from sigmoid_l2.gpu.numba_library import NumbaLibrary
from sigmoid_l2.kernels.gpu import shim
from sigmoid_l2.probes import why_not
from sigmoid_l2.problem import Device, Problem
from sigmoid_l2.settings import (
    Setting,
    get_device_memory_limit,
    get_kept_memory_limit,
    get_num_threads,
    where_num_threads_is_from,
)

PREFERENCES = ("auto", "cpu", "gpu")
Name = Literal["numba", "numpy", "cupy", "numba-cuda"]  # of a backend, in the order of BACKENDS


class BackendUnavailableError(RuntimeError):
    """No backend that was asked for can run here; the message has every reason and the fix."""


@dataclass(frozen=True)
class BackendInfo:
    """What ``backends()`` tells about one backend.

    Attributes
    ----------
    name : "numba", "numpy", "cupy" or "numba-cuda"
        What the argument ``backend`` of a call takes.
    device : "cpu" or "cuda"
        Where it computes.
    available : bool
        Whether it can run here.
    reasons : tuple of str
        Why not, each with the fix; empty where it is available.
    package : str
        The import name of the library that computes; for "numba-cuda" the one in use of two.

    Examples
    --------
    >>> import sigmoid_l2 as sl2
    >>> infos = {info.name: info for info in sl2.backends()}
    >>> infos["numpy"]
    BackendInfo(name='numpy', device='cpu', available=True, reasons=(), package='numpy')
    """

    name: Name
    device: Device
    available: bool
    reasons: tuple[str, ...]
    package: str


@dataclass(frozen=True, eq=False)  # compared and hashed by identity, which is quick
class Backend:
    """One way to compute a batch: its name, where it runs and the module of its kernel."""

    name: Name
    device: Device
    import_kernel: Callable[[], Any]  # returns the module
    probe: Callable[[], None]  # raises probes.NotAvailableError where the backend cannot run
    library_class: Any = None  # the GpuLibrary whose streams and memory a kernel on a GPU uses

    @property
    def package(self) -> str:
        """The import name of the library that computes."""
        return shim.package() if self.name == "numba-cuda" else self.name

    @cached_property
    def kernel(self) -> Any:
        """The module whose ``fused`` keeps the contract of ``sigmoid_l2.kernels``."""
        return self.import_kernel()

    def reasons(self) -> tuple[str, ...]:
        """Why the backend cannot compute here; empty where it can."""
        error = why_not(self.probe)
        return (str(error),) if error else ()


# Imported when used, but by statements: PyInstaller and Nuitka, which pack what a program imports, look for those.


def _numba() -> Any:
    from sigmoid_l2.kernels.cpu import launch

    return launch


def _numpy() -> Any:
    from sigmoid_l2.kernels import reference

    return reference


def _cupy() -> Any:
    from sigmoid_l2.kernels.gpu import launch_cupy

    return launch_cupy


def _numba_cuda() -> Any:
    from sigmoid_l2.kernels.gpu import launch_numba

    return launch_numba


# In the order of preference, among those for arrays in the same memory.
BACKENDS = (
    Backend("numba", "cpu", _numba, probes.probe_numba),
    Backend("numpy", "cpu", _numpy, probes.probe_numpy),
    Backend("cupy", "cuda", _cupy, probes.probe_cupy, CupyLibrary),
    Backend("numba-cuda", "cuda", _numba_cuda, probes.probe_numba_cuda, NumbaLibrary),
)
NAMES = tuple(backend.name for backend in BACKENDS)
_KNOWN = (*PREFERENCES, *NAMES)
# What other libraries call a place, and libraries that are no backends, whose arrays "auto" takes: the name to use.
_MEANT = {"cuda": "gpu", "host": "cpu", "torch": "auto", "jax": "auto"}


def backends() -> tuple[BackendInfo, ...]:
    """Every backend: where it runs, whether it can run here, and if not, the reasons with the fix for each.

    This imports numba and cupy where they are installed.

    Examples
    --------
    >>> import sigmoid_l2 as sl2
    >>> [info.name for info in sl2.backends()]
    ['numba', 'numpy', 'cupy', 'numba-cuda']
    """
    return tuple(BackendInfo(b.name, b.device, not b.reasons(), b.reasons(), b.package) for b in BACKENDS)


def choose(problem: Problem, backend: str) -> Backend:
    """The backend that computes ``problem`` when the user asks for ``backend``.

    Raises ValueError for an unknown name, TypeError for CUDA arrays and a CPU backend, BackendUnavailableError where
    nothing that was asked for can run.
    """
    name = _asked_for(backend)
    chosen = _first_available(name, problem.device, BACKENDS)
    if chosen is not None:
        return chosen
    candidates = _candidates(name, problem.device, BACKENDS)
    if not candidates:
        raise TypeError(
            f"backend {name!r} computes in host memory, but W and x are on a CUDA device; "
            "pass cupy.asnumpy(W) and cupy.asnumpy(x), or use backend='auto'"
        )
    raise BackendUnavailableError(_why_none(problem, name, candidates)) from why_not(candidates[0].probe)


def choose_for_cuda(backend: str) -> Backend | None:
    """What ``choose`` returns for CUDA arrays, or None where it raises."""
    return _first_available(_asked_for(backend), "cuda", BACKENDS)


def _asked_for(backend: str) -> str:
    name = _known_name("backend", backend)
    return DEFAULT_BACKEND.get() if name == "auto" else name


@cache
def _first_available(name: str, device: Device, table: tuple[Backend, ...]) -> Backend | None:
    get_num_threads()  # nonsense in the environment raises at the first call of each kind, however small
    return next((b for b in _candidates(name, device, table) if not b.reasons()), None)


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


def _known_name(what: str, name: Any) -> str:
    """The name of a backend or a preference; ValueError, which calls it ``what``, for anything else."""
    if not isinstance(name, str) or name not in _KNOWN:
        small = str(name).lower()
        meant = _MEANT.get(small.partition(":")[0])  # "cuda:0"
        close = [meant] if meant else difflib.get_close_matches(small, _KNOWN, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"{what} must be one of {', '.join(map(repr, _KNOWN))}, not {name!r}{hint}")
    return name


DEFAULT_BACKEND = Setting("backend", "SIGMOID_L2_BACKEND", lambda: "auto", _known_name)


def _why_none(problem: Problem, name: str, candidates: Iterable[Backend]) -> str:
    where = {"cpu": "in host memory", "cuda": "on a CUDA device"}[problem.device]
    lines = [
        f"backend {name!r} cannot compute W {tuple(problem.W.shape)} and x {problem.shapes['dx']}, "
        f"{problem.dtype.name}, {where}:"
    ]
    lines += [f"  {b.name}: {reason}" for b in candidates for reason in b.reasons()]
    return "\n".join(lines)


def show_config() -> None:
    """Print the versions in use, the settings and what ``backends()`` tells, for people to read."""
    from sigmoid_l2.version import __version__  # slow to import

    print(f"sigmoid-l2 {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    infos = backends()  # imports what is installed
    packages = ("numpy", *sorted({info.package for info in infos} - {"numpy"}))
    versions = {name: getattr(sys.modules.get(name), "__version__", None) for name in packages}
    print(", ".join(f"{name} {version or '-'}" for name, version in versions.items()))
    print(f"CPU threads: {get_num_threads()} ({where_num_threads_is_from()})")
    print(f"memory kept for new results: {get_kept_memory_limit() / 2**20:g} MiB")
    print(f"GPU memory for host arrays: {get_device_memory_limit() / 2**20:g} MiB")
    default = os.environ.get(DEFAULT_BACKEND.variable)
    print(f"default backend: {f'{default} (from {DEFAULT_BACKEND.variable})' if default else 'auto'}\n")
    print(f"{'backend':<12}{'device':<8}state")
    for info in infos:
        print(f"{info.name:<12}{info.device:<8}{'available' if info.available else 'not available'}")
        for reason in info.reasons:
            print(f"{'':20}{reason}")
