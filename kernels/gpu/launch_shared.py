"""How ``shared`` of both GPU libraries becomes launches: one W (m, n) for all x (B, n), and dW is a sum over them.

``launcher`` is the module launch_cupy or launch_numba, as in launch.py.
"""

from typing import Any

from sigmoid_l2.gpu.arrays import address
from sigmoid_l2.kernels.gpu import plan_shared
from sigmoid_l2.kernels.gpu.launch import Batch, are_aligned
from sigmoid_l2.kernels.gpu.plan_types import SharedTiny


def has_shared(m: int, n: int, itemsize: int) -> bool:
    """Whether ``shared`` takes a W (m, n)."""
    return plan_shared.make_plan(m, n, itemsize) is not None


def shared(
    launcher: Any,
    W: Any,
    x: Any,
    target: Any,
    cotangent: Any,
    loss: Any,
    dW: Any,
    dx: Any,
    dq: Any,
    stream: int | None,
) -> None:
    """Compute loss, dx and dq of all pairs, and the sum of their dW, which takes a second launch."""
    (B, n), m = x.shape, len(W)
    begins = (0 if a is None else address(a) for a in (W, x, target, cotangent, loss, dW, dx, dq))
    batch = Batch._make([*begins, B, m, n, W.dtype.itemsize])
    p = plan_shared.make_plan(m, n, batch.itemsize)
    if p is None:
        raise NotImplementedError(f"there is no GPU kernel for one W of {m} by {n} and many x")
    _tiny(launcher, p, stream, batch)


def _tiny(launcher: Any, p: SharedTiny, stream: int | None, batch: Batch) -> None:
    W, x, target, cotangent, loss, dW, dx, dq, B, m, n, itemsize = batch
    tiles = plan_shared.tiles_of_block(p, B)
    blocks = -(-B // (p.tile * tiles))
    parts = dW
    if dW and blocks > 1:
        parts = address(launcher.workspace(stream, blocks * m * n * itemsize))
    kernel = launcher.shared_tiny_kernel(p, m, n, itemsize, are_aligned(x, target, dx, dq), batch.given, batch.wanted)
    arguments = W, x, target, cotangent, loss, parts, dx, dq, B, tiles
    launcher.run(kernel, blocks, p.threads, stream, arguments)
    if parts != dW:  # parts (m * n, blocks)
        kernel = launcher.shared_sums_kernel(1, plan_shared.SUMS_THREADS, itemsize)
        launcher.run(kernel, m * n, plan_shared.SUMS_THREADS, stream, (parts, dW, m * n, blocks, blocks, 1))
