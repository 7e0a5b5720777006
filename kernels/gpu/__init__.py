"""The GPU kernels: for each a .cuh for CuPy and a .py of the same name for numba.cuda, of the same phases and words."""
