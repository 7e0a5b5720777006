"""The GPU kernel as a cupy.ElementwiseKernel around sigmoid_l2.cuh, which says what a block and a thread own.

An ElementwiseKernel wraps its body in a loop over ``size`` indices. The bodies here have barriers, so every thread must
make exactly one trip: ``size`` is the number of blocks times ``block_size``, and all arrays are raw.
"""

from functools import cache
from importlib.resources import files
from typing import Any

import cupy

from sigmoid_l2.kernels import cuda_launch

# As text and not by #include: CuPy's disk cache does not hash included files.
PREAMBLE = files("sigmoid_l2.kernels").joinpath("sigmoid_l2.cuh").read_text(encoding="utf-8")


@cache
def staged_kernel(m: int, n: int, pairs: int, wanted: tuple[bool, bool, bool]) -> Any:
    """The ElementwiseKernel around fused_staged for one (m, n), tile and choice of outputs."""
    return _kernel("staged", ("T", m, n, pairs, *wanted), "B")


@cache
def block_kernel(threads: int, columns: int, wanted: tuple[bool, bool, bool]) -> Any:
    """The ElementwiseKernel around fused_block for one block size, room for dx and choice of outputs."""
    return _kernel("block", ("T", threads, columns, *wanted), "m, n")


def _kernel(name: str, template: tuple[Any, ...], sizes: str) -> Any:
    arguments = ", ".join(str(a).lower() if isinstance(a, bool) else str(a) for a in template)
    return cupy.ElementwiseKernel(
        in_params="raw T W, raw T x, " + ", ".join(f"int64 {size}" for size in sizes.split(", ")),
        out_params="raw T loss, raw T dW, raw T dx",
        operation=f"sigmoid_l2::fused_{name}<{arguments}>(&W[0], &x[0], &loss[0], &dW[0], &dx[0], {sizes});",
        name=f"sigmoid_l2_{name}",
        preamble=PREAMBLE,
        no_return=True,
    )


def fused(W: Any, x: Any, loss: Any, dW: Any, dx: Any, *, stream: int | None = None) -> None:
    """Compute loss, dW and dx for a batch on the current GPU; the contract is in ``sigmoid_l2.kernels``.

    Arrays are CuPy's.
    """
    B, m, n = W.shape
    wanted = (loss is not None, dW is not None, dx is not None)
    # An output that is not wanted is never touched; W stands in for it, because a kernel's argument must be an array.
    outputs = [W if a is None else a for a in (loss, dW, dx)]
    launch_stream = None if stream is None else cupy.cuda.ExternalStream(stream)
    pairs = cuda_launch.tile_pairs(m, n, W.dtype.itemsize)
    if pairs:
        size = -(-B // pairs) * pairs
        staged_kernel(m, n, pairs, wanted)(W, x, B, *outputs, size=size, block_size=pairs, stream=launch_stream)
    else:
        threads = cuda_launch.block_threads(n)
        kernel = block_kernel(threads, cuda_launch.COLUMNS, wanted)
        kernel(W, x, m, n, *outputs, size=B * threads, block_size=threads, stream=launch_stream)
