"""How ``fused`` of both GPU libraries becomes launches: plain Python, which slices the arrays of either library.

``launcher`` is the module launch_cupy or launch_numba. It builds the kernels (staged_kernel, rows_kernel, long_kernel,
finish_kernel), runs one (run), tells where an array begins (address) and keeps the workspace.
"""

import threading
from collections.abc import Callable, Iterator
from functools import cache, wraps
from typing import Any

from sigmoid_l2.kernels import Wanted
from sigmoid_l2.kernels.gpu import plan
from sigmoid_l2.kernels.gpu.plan import Plan, Rows, Staged

one_at_a_time = threading.Lock()


def once(build: Callable[..., Any]) -> Callable[..., Any]:
    """``build`` with a cache and a lock, without which threads that need a kernel at once would each compile it."""
    kept = cache(build)

    @wraps(build)
    def get(*key: Any) -> Any:
        with one_at_a_time:
            return kept(*key)

    return get


def fused(launcher: Any, W: Any, x: Any, loss: Any, dW: Any, dx: Any, stream: int | None) -> None:
    """Compute loss, dW and dx for a batch, in one launch.

    Where pairs are cut into slices, a second launch adds their sums; the batch then goes through in parts that fit the
    workspace.
    """
    _, m, n = W.shape
    p = plan.make_plan(m, n, W.dtype.itemsize)
    if p.slices == 1 or (loss is None and dx is None):
        _launch(launcher, p, stream, W, x, loss, dW, dx)
        return
    for part, slice_loss, slice_dx in _parts(p, launcher.workspace(stream), W, x, loss, dW, dx):
        W_part, x_part, loss_part, dW_part, dx_part = part
        _launch(launcher, p, stream, W_part, x_part, slice_loss, dW_part, slice_dx)
        _finish(launcher, p, stream, slice_loss, slice_dx, loss_part, dx_part, len(W_part), n)


def _launch(launcher: Any, p: Plan, stream: int | None, W: Any, x: Any, loss: Any, dW: Any, dx: Any) -> None:
    """Run the kernel of ``p``, which writes ``loss`` and ``dx`` by unit."""
    B, m, n = W.shape
    units, itemsize, wanted = B * p.slices, W.dtype.itemsize, Wanted.of(loss, dW, dx)
    wide = not any(launcher.address(a) % plan.WIDE_BYTES for a in (W, x, dW, dx) if a is not None)  # loss moves singly
    sizes: tuple[int, ...]
    if isinstance(p, Staged):
        kernel, sizes = launcher.staged_kernel(p, m, n, itemsize, wide, wanted), (units,)
    elif isinstance(p, Rows):
        # rows and slices are arguments of the kernel. With 0 for both, plans that differ only there share one kernel.
        kernel = launcher.rows_kernel(p._replace(rows=0, slices=0), itemsize, wide, wanted)
        sizes = units, m, n, p.rows, p.slices
    else:
        kernel, sizes = launcher.long_kernel(p, itemsize, wanted), (m, n)
    launcher.run(kernel, -(-units // p.block_units), p.threads, stream, (W, x), _filled(W, loss, dW, dx), sizes)


def _finish(
    launcher: Any, p: Plan, stream: int | None, slice_loss: Any, slice_dx: Any, loss: Any, dx: Any, B: int, n: int
) -> None:
    """Add the sums of the slices of B pairs; a block does WARP columns of a pair's dx and loss."""
    some_array = slice_loss if slice_dx is None else slice_dx
    kernel = launcher.finish_kernel(some_array.dtype.itemsize, Wanted.of(loss, None, dx))
    arrays = _filled(some_array, slice_loss, slice_dx), _filled(some_array, loss, dx)
    launcher.run(kernel, B * (n // plan.WARP + 1), plan.BLOCK_THREADS, stream, *arrays, (n, p.slices))


def _filled(other: Any, *arrays: Any) -> list[Any]:
    """Put ``other`` in place of each None: an argument must be an array, even if the kernel never touches it."""
    return [other if a is None else a for a in arrays]


def _parts(
    p: Plan, workspace: Any, W: Any, x: Any, loss: Any, dW: Any, dx: Any
) -> Iterator[tuple[list[Any], Any, Any]]:
    """Cut the batch into parts that fit the workspace; yield each part's arrays, slice_loss and slice_dx.

    The workspace holds slice_dx (units, n), then slice_loss (units,).
    """
    B, _, n = W.shape
    sums = workspace.view(W.dtype)
    pairs = sums.size // (p.slices * (n + 1))
    for first in range(0, B, pairs):
        part = [a if a is None or pairs >= B else a[first : first + pairs] for a in (W, x, loss, dW, dx)]
        units = len(part[0]) * p.slices
        slice_loss = None if loss is None else sums[units * n : units * (n + 1)]
        slice_dx = None if dx is None else sums[: units * n].reshape(units, n)
        yield part, slice_loss, slice_dx
