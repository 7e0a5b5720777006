"""CUDA arrays of any library, and the libraries that run GPU code: one interface, one adapter for each."""

from typing import Any

from sigmoid_l2.gpu.arrays import is_instance, type_name
from sigmoid_l2.gpu.cupy_library import CupyLibrary
from sigmoid_l2.gpu.library import GpuLibrary
from sigmoid_l2.gpu.numba_library import NumbaLibrary
from sigmoid_l2.probes import INSTALL, probe_cupy, probe_numba_cuda, why_not


def library_for(name: str, W: Any, stream: Any) -> GpuLibrary:
    """The library that serves a call with the CUDA array W: CuPy or, where it cannot be used, numba.cuda.

    Raises TypeError where there is neither, in which W is called ``name``.
    """
    if is_instance(W, "cupy", "ndarray") or not why_not(probe_cupy):
        return CupyLibrary(W, stream)
    if not why_not(probe_numba_cuda):
        return NumbaLibrary(W, stream)
    raise TypeError(
        f"{name} is a CUDA array of type {type_name(W)}, and neither CuPy nor numba-cuda can be used here: {INSTALL}; "
        "where they are installed, sigmoid_l2.show_config() tells what is wrong"
    )
