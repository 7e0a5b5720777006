"""How ``shared`` of both GPU libraries becomes launches: one W (m, n) for all x (B, n), and dW is a sum over them.

``launcher`` is the module launch_cupy or launch_numba, as in launch.py.
"""

from typing import Any

from sigmoid_l2.gpu.arrays import address
from sigmoid_l2.kernels.gpu import plan, plan_shared
from sigmoid_l2.kernels.gpu.launch import Batch, are_aligned
from sigmoid_l2.kernels.gpu.plan_types import SharedBlocks, SharedTiny


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
    if isinstance(p, SharedBlocks):
        _blocks(launcher, p, stream, batch)
    else:
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


def _blocks(launcher: Any, p: SharedBlocks, stream: int | None, batch: Batch) -> None:
    """For each part of the batch q, e, g and the loss, then dx and the sums of dW; in the end the total of the sums."""
    *_, dW, dx, dq, B, m, n, itemsize = batch
    most = min(B, plan_shared.part_pairs(m, itemsize))
    product, chain = plan_shared.chain_of_sums(B, p.dW)
    of_slice = plan_shared.slice_pairs(product, most, m, n, itemsize)
    slices = -(-most // of_slice)
    has_g = bool(dW or dx) and not dq
    g_bytes = -(-most * m * itemsize // plan.WIDE_BYTES) * plan.WIDE_BYTES if has_g else 0
    sums_bytes = slices * 2 * m * n * itemsize if dW else 0
    workspace = address(launcher.workspace(stream, g_bytes + sums_bytes)) if g_bytes + sums_bytes else 0
    sums = workspace + g_bytes
    for first in range(0, B, most):
        part = batch.part(first, min(most, B - first))._replace(W=batch.W, dW=dW)
        g = part.dq or (has_g and workspace)
        _products(launcher, p._replace(dW=product), stream, part, g, (sums, slices, of_slice, chain, first == 0))
    if dW:
        columns, loaders = plan_shared.SUMS_COLUMNS, plan_shared.SUMS_THREADS // plan_shared.SUMS_COLUMNS
        kernel = launcher.shared_sums_kernel(columns, loaders, itemsize)
        arguments = sums, dW, m * n, 2 * slices, 1, m * n
        launcher.run(kernel, -(-m * n // columns), plan_shared.SUMS_THREADS, stream, arguments)


def _products(
    launcher: Any, p: SharedBlocks, stream: int | None, part: Batch, g: int, of_dW: tuple[int, int, int, int, bool]
) -> None:
    """Run the kernels of shared_blocks for a part of the batch; g is dq, in the workspace, or 0."""
    W, x, target, cotangent, loss, dW, dx, _, B, m, n, itemsize = part
    tiles = [(-(-B // side.a(itemsize)), -(-n // side.b(itemsize)), side) for side in (p.q, p.dx)]
    width = plan.WIDE_BYTES // itemsize
    sums, slices, of_slice, chain, is_first = of_dW
    wide, wide_g = n % width == 0 and are_aligned(W, x, dx), m % width == 0 and are_aligned(target, g)
    if loss or g:
        blocks, _, side = tiles[0]
        kernel = launcher.shared_blocks_q_kernel(side, itemsize, wide, wide_g, part.given, loss != 0, g != 0)
        launcher.run(kernel, blocks, side.threads, stream, (W, x, target, cotangent, loss, g, B, m, n))
    if dx:
        blocks, columns, side = tiles[1]
        kernel = launcher.shared_blocks_dx_kernel(side, itemsize, wide, wide_g)
        launcher.run(kernel, blocks * columns, side.threads, stream, (W, g, dx, B, m, n))
    if dW:
        side = plan_shared.of_parts(p.dW, wide and wide_g)
        kernel = launcher.shared_blocks_parts_kernel(side, itemsize, wide, wide_g)
        blocks = slices * -(-m // side.a(itemsize)) * -(-n // side.b(itemsize))
        launcher.run(kernel, blocks, side.threads, stream, (x, g, sums, B, m, n, of_slice, chain, int(is_first)))
