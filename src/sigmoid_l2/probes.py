"""Whether the libraries of each backend are installed and can run here, and if not, the reason and the fix."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from sigmoid_l2 import kernels
from sigmoid_l2.kernels.gpu import shim

INSTALL = "pip install 'sigmoid-l2[cuda13]' (or [cuda12], to match the driver)"
_INSTALL_NUMBA_CUDA = "pip install 'numba-cuda[cu13]>=0.30.4' (or [cu12], to match the driver)"


class NotAvailableError(Exception):
    """One sentence: why a backend cannot run here, and the fix."""


@cache
def why_not(probe: Callable[[], None]) -> NotAvailableError | None:
    """What ``probe``, one of the functions below, raises; None where the backend can run."""
    try:
        probe()
    except NotAvailableError as error:
        return error
    return None


def _import(module: str, package: str, fix: str, refit: str = "") -> Any:
    """Import ``module`` of ``package``, which ``fix`` installs.

    ``refit`` is the fix where the import misses something in another package: versions that fit together.
    """
    try:
        if importlib.util.find_spec(package) is not None:
            return importlib.import_module(module)
    except Exception as error:  # a broken installation may raise anything, and the other backends can still run
        repair = refit if refit and isinstance(error, AttributeError | ImportError) else f"reinstall it: {fix}"
        what = f"{type(error).__name__}: {str(error).strip()}"
        raise NotAvailableError(f"importing {module} failed with {what}; {repair}") from error
    if getattr(sys, "frozen", False):  # by PyInstaller and its kind: nobody can install anything into the program
        raise NotAvailableError(f"{package} is not packed into this program: pack it where {package} is installed")
    raise NotAvailableError(f"{package} is not installed: {fix}")


def _require_device(library: str, is_available: Callable[[], bool]) -> None:
    fix = "check that nvidia-smi lists a GPU and that its driver is recent enough"
    try:
        found = is_available()
    except Exception as error:  # the driver is too old for the library, for one
        raise NotAvailableError(f"{library} cannot use the CUDA driver ({error}): {fix}") from error
    if not found:
        raise NotAvailableError(f"{library} finds no CUDA device: {fix}")


def probe_numpy() -> None:
    """NumPy is always there."""


def probe_numba() -> None:
    """numba, with its compiler on."""
    _require_bytecode()
    numba = _import("numba", "numba", "pip install numba")
    if getattr(getattr(numba, "config", None), "DISABLE_JIT", False):
        raise NotAvailableError("NUMBA_DISABLE_JIT is set, and the kernel runs compiled only: unset it")


def _require_bytecode() -> None:
    """Check that the kernels are Python, which numba compiles: Nuitka makes C of it, and leaves this mark."""
    if hasattr(kernels, "__compiled__"):
        raise NotAvailableError(
            "Nuitka has compiled the kernels, of which numba needs the bytecode: compile the program without "
            "--standalone and with --nofollow-import-to=sigmoid_l2.kernels"
        )


def probe_numba_cuda() -> None:
    """numba-cuda or its successor, with its compiler and a device."""
    _require_bytecode()
    numba = _import("numba", "numba", "pip install numba")
    if getattr(getattr(numba, "config", None), "ENABLE_CUDASIM", False):
        raise NotAvailableError("NUMBA_ENABLE_CUDASIM is set, and numba's simulator has no warp shuffles: unset it")
    package = shim.package()
    library = _import(package, package, INSTALL)
    if package == "numba_cuda":
        _require_compiler(library, numba)
    cuda = _import(shim.module(), package, INSTALL)
    _require_device("numba-cuda", cuda.is_available)


def _require_compiler(numba_cuda: Any, numba: Any) -> None:
    """Check what numba-cuda needs to compile: without it `import numba.cuda` may succeed, and then every call fails.

    It does not need nvJitLink: without that the driver links.
    """

    def refit(other: Any, fix: str) -> str:
        here = " and ".join(f"{m.__name__} {getattr(m, '__version__', '')}" for m in (numba_cuda, other))
        return f"install versions that fit together (here {here}): {fix}"

    cuda = _import("numba.cuda", "numba_cuda", INSTALL, refit(numba, _INSTALL_NUMBA_CUDA))
    if getattr(cuda, "implementation", "") == "Built-in":
        raise NotAvailableError(
            "numba's own numba.cuda is in the way: numba-cuda takes its place by a .pth file, which Python does not "
            "read on PYTHONPATH: install numba-cuda into the environment, or site.addsitedir its folder"
        )
    _import("numba.cuda.np.arrayobj", "numba_cuda", INSTALL, refit(np, "pip install 'numpy<2.5'"))
    paths = _import("numba.cuda.cuda_paths", "numba_cuda", INSTALL)
    try:
        if paths.get_cuda_paths()["libdevice"].info is None:  # it raises where libnvrtc or libnvvm is missing
            raise FileNotFoundError("Failure finding libdevice.10.bc")
    except Exception as error:
        what = str(error.__cause__ or error).partition(":")[0]  # without the list of folders that were searched
        raise NotAvailableError(
            f"numba-cuda cannot compile ({what}): {_INSTALL_NUMBA_CUDA}, or set CUDA_HOME to a CUDA toolkit that has it"
        ) from error


def probe_cupy() -> None:
    """CuPy and a device."""
    cupy = _import("cupy", "cupy", INSTALL)
    _require_device("CuPy", cupy.cuda.is_available)
