"""The package that numba.cuda comes from: numba-cuda, or its successor numba-cuda-mlir if that alone is installed."""

from importlib.util import find_spec


def package() -> str:
    """Its import name; that of numba-cuda where neither is installed."""
    return "numba_cuda_mlir" if _is_found("numba_cuda_mlir") and not _is_found("numba_cuda") else "numba_cuda"


def module() -> str:
    """Where the package has what programs use: `from numba import cuda`, or `from numba_cuda_mlir import cuda`."""
    return {"numba_cuda": "numba.cuda", "numba_cuda_mlir": "numba_cuda_mlir.cuda"}[package()]


def _is_found(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except Exception:  # a finder may raise anything; what is wrong shows in the import
        return False
