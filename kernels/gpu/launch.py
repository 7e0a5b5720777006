"""How ``fused`` of both GPU libraries becomes launches: plain Python and plain integers, the same for either library.

``launcher`` is the module launch_cupy or launch_numba. It builds the kernels (staged_kernel, rows_kernel, long_kernel,
columns_q_kernel, columns_gradients_kernel, finish_kernel), runs one (run) and keeps the workspace. A kernel's
arguments are int64: addresses, 0 for what is not wanted, and then sizes. The libraries take them in less time than
arrays.
"""

import threading
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, NamedTuple

from sigmoid_l2.gpu.arrays import address
from sigmoid_l2.kernels import Given, Wanted
from sigmoid_l2.kernels.gpu import plan
from sigmoid_l2.kernels.gpu.plan_types import Columns, Long, Plan, Rows, Staged

one_at_a_time = threading.Lock()


def once(build: Callable[..., Any]) -> Callable[..., Any]:
    """``build`` with a cache and a lock, without which threads that need a kernel at once would each compile it."""
    kept: dict[Any, Any] = {}

    @wraps(build)
    def get(*key: Any) -> Any:
        if key not in kept:
            with one_at_a_time:
                if key not in kept:
                    kept[key] = build(*key)
        return kept[key]

    return get


class Batch(NamedTuple):
    """The arrays of a batch by their addresses; that of one that is not there is 0."""

    W: int  # (B, m, n)
    x: int  # (B, n)
    target: int  # (B, m)
    cotangent: int  # (B,)
    loss: int  # (B,)
    dW: int  # (B, m, n)
    dx: int  # (B, n)
    dq: int  # (B, m)
    B: int
    m: int
    n: int
    itemsize: int

    @property
    def given(self) -> Given:
        """Which inputs there are besides W and x."""
        return Given(self.target != 0, self.cotangent != 0)

    @property
    def wanted(self) -> Wanted:
        """Which outputs are wanted."""
        return Wanted(self.loss != 0, self.dW != 0, self.dx != 0, self.dq != 0)

    def part(self, first: int, pairs: int) -> "Batch":
        """The pairs from ``first`` on."""
        m, n = self.m, self.n
        sizes = m * n, n, m, 1, 1, m * n, n, m  # elements of a pair
        begins = [a and a + first * size * self.itemsize for a, size in zip(self[:8], sizes, strict=True)]
        return Batch._make([*begins, pairs, *self[9:]])


def fused(
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
    """Compute loss, dW, dx and dq for a batch, in one launch, or in two where pairs are cut into slices of columns.

    Where they are cut into slices of rows, and there are few, one more launch adds their sums. The batch goes through
    in parts whose sums fit the workspace.
    """
    B, m, n = W.shape
    if max(m, n) >= 1 << 32:  # in the kernels they have 32 bits
        raise ValueError(f"a GPU kernel takes m and n below 2**32, not {m} and {n}; use backend='cpu' with host arrays")
    begins = (0 if a is None else address(a) for a in (W, x, target, cotangent, loss, dW, dx, dq))
    batch = Batch._make([*begins, B, m, n, W.dtype.itemsize])
    p = plan.for_batch(plan.make_plan(m, n, batch.itemsize), B)
    has_sums = p.slices > 1 and bool(batch.loss or batch.dx)
    if not has_sums and not isinstance(p, Columns):
        _launch(launcher, p, stream, batch, batch.loss, batch.dx)
        return
    of_pair = batch.itemsize * sums_of_pair(p, m, n)
    nbytes = max(plan.WORKSPACE_BYTES, of_pair)  # rows of 128 bytes need more from 10 GB of W in a pair on
    workspace = address(launcher.workspace(stream, nbytes))
    for part, slice_loss, slice_dx, q_parts in _parts(p, workspace, nbytes // of_pair, batch):
        loss, dx = (slice_loss, slice_dx) if has_sums else (part.loss, part.dx)
        if isinstance(p, Columns):
            _launch_columns(launcher, p, stream, part, loss, dx, q_parts)
        else:
            _launch(launcher, p, stream, part, loss, dx)
        if has_sums:
            _finish(launcher, p, stream, part, slice_loss, slice_dx)


def are_aligned(*addresses: int) -> bool:
    """Whether the widest accesses can be used."""
    return not any(begin % plan.WIDE_BYTES for begin in addresses)


def _launch(launcher: Any, p: Staged | Rows | Long, stream: int | None, batch: Batch, loss: int, dx: int) -> None:
    """Run the kernel of ``p``, which writes ``loss`` and ``dx`` by unit."""
    W, x, target, cotangent, _, dW, _, dq, B, m, n, itemsize = batch
    given, wanted, units = batch.given, batch.wanted, B * p.slices
    wide = are_aligned(W, x, dW, dx)  # what is one value a row or a pair moves singly
    sizes: tuple[int, ...]
    if isinstance(p, Staged):
        wide = wide and are_aligned(target, dq)
        kernel, sizes = launcher.staged_kernel(p, m, n, itemsize, wide, given, wanted), (units,)
    elif isinstance(p, Rows):
        # rows and slices are arguments of the kernel. With 0 for them, plans that differ only there share one kernel.
        kernel = launcher.rows_kernel(p._replace(rows=0, slices=0, group=0), itemsize, wide, given, wanted)
        sizes = units, m, n, p.rows, p.rows * p.group if p.in_turn else p.rows, p.slices
    else:
        kernel = launcher.long_kernel(p._replace(rows=0, slices=0), itemsize, wide, given, wanted)
        sizes = m, n, p.rows, p.slices
    arguments = W, x, target, cotangent, loss, dW, dx, dq, *sizes
    launcher.run(kernel, -(-units // p.block_units), p.threads, stream, arguments)


def _launch_columns(
    launcher: Any, p: Columns, stream: int | None, batch: Batch, loss: int, dx: int, q_parts: int
) -> None:
    """Run both kernels of columns; the first passes ``q_parts`` to the second, which writes ``loss`` and ``dx``."""
    W, x, target, cotangent, _, dW, _, dq, B, m, n, itemsize = batch
    wide = are_aligned(W, x, dW, dx)
    registers = plan.columns_registers(p, wide, batch.given)
    key = p._replace(rows=0, slices=0, q_columns=0, q_slices=0, registers=registers)
    column_slices = -(-n // p.columns) if dW or dx else 1  # the first has loss and dq
    kernel, sizes = launcher.columns_q_kernel(key, itemsize, wide), (m, n, p.q_columns, p.q_slices)
    launcher.run(kernel, B * -(-m // p.at_once) * p.q_slices, p.threads, stream, (W, x, q_parts, *sizes))
    kernel = launcher.columns_gradients_kernel(key, itemsize, wide, batch.given, batch.wanted)
    arguments = W, x, target, cotangent, q_parts, loss, dW, dx, dq, m, n, p.rows, p.slices, p.q_slices
    launcher.run(kernel, B * p.slices * column_slices, p.threads, stream, arguments)


def _finish(launcher: Any, p: Plan, stream: int | None, batch: Batch, slice_loss: int, slice_dx: int) -> None:
    """Add the sums of the slices of each pair; a block does WARP columns of a pair's dx and loss."""
    chunk = plan.finish_chunk(p.slices)
    kernel = launcher.finish_kernel(chunk, batch.itemsize, batch.wanted._replace(dW=False, dq=False))
    blocks = batch.B * (batch.n // plan.WARP + 1)
    group = (1 if p.in_turn else p.group) if isinstance(p, Rows) else p.slices
    arguments = slice_loss, slice_dx, batch.loss, batch.dx, batch.n, p.slices, group
    launcher.run(kernel, blocks, plan.WARP * chunk // plan.FINISH_LOADS, stream, arguments)


def sums_of_pair(p: Plan, m: int, n: int) -> int:
    """Values of a pair in the workspace: slice_dx and slice_loss, and the parts of q."""
    return (p.slices * (n + 1) if p.slices > 1 else 0) + (m * p.q_slices if isinstance(p, Columns) else 0)


def _parts(p: Plan, workspace: int, pairs: int, batch: Batch) -> Iterator[tuple[Batch, int, int, int]]:
    """Cut the batch into parts of ``pairs``; yield each, and where slice_loss, slice_dx and q_parts begin.

    The workspace holds slice_dx (units, n), slice_loss (units,) and q_parts (pairs, m, q_slices).
    """
    for first in range(0, batch.B, pairs):
        part = batch.part(first, min(pairs, batch.B - first))
        units = part.B * p.slices if p.slices > 1 else 0
        slice_loss, q_parts = (workspace + units * values * batch.itemsize for values in (batch.n, batch.n + 1))
        yield part, part.loss and slice_loss, part.dx and workspace, q_parts
