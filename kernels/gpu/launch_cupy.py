"""The GPU kernels of the .cuh files as cupy.ElementwiseKernels. Each file says what a block and a thread own.

An ElementwiseKernel wraps its body in a loop over ``size`` indices. The bodies here have barriers, so every thread must
make exactly one trip: ``size`` is the number of blocks times ``block_size``, and all arrays are raw.
"""

import threading
from functools import cache
from importlib.resources import files
from typing import Any

import cupy

from sigmoid_l2.gpu.library import cupy_stream
from sigmoid_l2.kernels.gpu import plan
from sigmoid_l2.kernels.gpu.plan import Long, Plan, Rows, Staged

FINISH_THREADS = 256  # a block
# Registers a thread of the rows kernel: for the 768 threads a multiprocessor that plan.FLIGHT_BYTES counts on,
# and for the longest rows for one block, which could not be launched otherwise. The compiler does not know block_size.
ROWS_REGISTERS = {plan.BLOCK_THREADS: 80, plan.LONG_ROW_THREADS: 128}

Wanted = tuple[bool, bool, bool]


# By thread, device and stream; kept for good, because a captured graph goes on using them.
_workspaces: dict[tuple[int, int, int], Any] = {}


@cache
def staged_kernel(m: int, n: int, p: Staged, lane_pairs: int, wide: bool, wanted: Wanted) -> Any:
    """The ElementwiseKernel around fused_staged for one (m, n) and its plan."""
    template = ("T", m, n, p.rows, p.slices, p.threads, p.lanes, p.lane_rows, lane_pairs, wide, *wanted)
    return _kernel("fused_staged", template, "W x", "units", "loss dW dx")


@cache
def rows_kernel(p: Rows, wide: bool, wanted: Wanted) -> Any:
    """The ElementwiseKernel around fused_rows for one plan; p.rows and p.slices are arguments, so they may be 0."""
    template = ("T", p.threads, p.row_threads, p.teams, p.vector, p.vectors, p.at_once, wide, *wanted)
    registers = ROWS_REGISTERS[p.threads]
    return _kernel("fused_rows", template, "W x", "units m n rows slices", "loss dW dx", registers)


@cache
def long_kernel(p: Long, wanted: Wanted) -> Any:
    """The ElementwiseKernel around fused_long."""
    return _kernel("fused_long", ("T", p.threads, *wanted), "W x", "m n", "loss dW dx")


@cache
def finish_kernel(want_loss: bool, want_dx: bool) -> Any:
    """The ElementwiseKernel around finish."""
    groups = FINISH_THREADS // plan.WARP
    return _kernel("finish", ("T", groups, want_loss, want_dx), "slice_loss slice_dx", "n slices", "loss dx")


def _kernel(
    name: str, template: tuple[Any, ...], inputs: str, sizes: str, outputs: str, registers: int | None = None
) -> Any:
    template_arguments = ", ".join(str(a).lower() if isinstance(a, bool) else str(a) for a in template)
    arrays = [f"&{a}[0]" for a in (inputs + " " + outputs).split()]
    return cupy.ElementwiseKernel(
        in_params=", ".join([f"raw T {a}" for a in inputs.split()] + [f"int64 {size}" for size in sizes.split()]),
        out_params=", ".join(f"raw T {a}" for a in outputs.split()),
        operation=f"sigmoid_l2::{name}<{template_arguments}>({', '.join(arrays + sizes.split())}); return;",
        name=f"sigmoid_l2_{name}",
        preamble=_text("common") + _text(name.removeprefix("fused_")),
        no_return=True,
        options=() if registers is None else (f"--maxrregcount={registers}",),
    )


def _text(stem: str) -> str:
    """A .cuh as text. It cannot be an #include: CuPy's disk cache does not hash included files."""
    return files("sigmoid_l2.kernels.gpu").joinpath(f"{stem}.cuh").read_text(encoding="utf-8")


def fused(W: Any, x: Any, loss: Any, dW: Any, dx: Any, *, stream: int | None = None) -> None:
    """Compute loss, dW and dx for a batch on the current GPU; the contract is in ``sigmoid_l2.kernels``.

    Arrays are CuPy's.
    """
    _, m, n = W.shape
    p = plan.make_plan(m, n, W.dtype.itemsize)
    launch_stream = None if stream is None else cupy_stream(stream)
    if p.slices > 1 and (loss is not None or dx is not None):
        _fused_in_slices(p, launch_stream, W, x, loss, dW, dx)
    else:
        _launch(p, launch_stream, W, x, loss, dW, dx)


def _launch(p: Plan, stream: Any, W: Any, x: Any, loss: Any, dW: Any, dx: Any) -> None:
    """Run the kernel of ``p``, for which ``loss`` and ``dx`` are by unit."""
    B, m, n = W.shape
    wanted = (loss is not None, dW is not None, dx is not None)
    # An output that is not wanted is never touched; W stands in for it, because a kernel's argument must be an array.
    arrays = (W, x, *(W if a is None else a for a in (loss, dW, dx)))
    wide = not any(_address(a) % plan.WIDE_BYTES for a in (W, x, *arrays[3:]))  # loss moves one by one
    units, block_units = B * p.slices, p.units
    sizes: tuple[int, ...]
    if isinstance(p, Staged):
        lane_pairs = plan.lane_pairs(m, n, W.dtype.itemsize)
        kernel, sizes = staged_kernel(m, n, p, lane_pairs, wide, wanted), (units,)
        block_units *= lane_pairs
    elif isinstance(p, Rows):
        kernel, sizes = rows_kernel(p._replace(rows=0, slices=0), wide, wanted), (units, m, n, p.rows, p.slices)
    else:
        kernel, sizes = long_kernel(p, wanted), (m, n)
    size = -(-units // block_units) * p.threads
    kernel(*arrays[:2], *sizes, *arrays[2:], size=size, block_size=p.threads, stream=stream)


def _fused_in_slices(p: Plan, stream: Any, W: Any, x: Any, loss: Any, dW: Any, dx: Any) -> None:
    """Let each slice leave its loss and dx in the workspace, and add them: as many pairs at a time as have room."""
    B, _, n = W.shape
    workspace = _workspace(stream).view(W.dtype)
    finish = finish_kernel(loss is not None, dx is not None)
    at_once = workspace.size // (p.slices * (n + 1))
    for first in range(0, B, at_once):
        part = slice(first, first + at_once)
        W_part, x_part = W[part], x[part]
        loss_part, dW_part, dx_part = (None if a is None else a[part] for a in (loss, dW, dx))
        units = len(W_part) * p.slices
        slice_dx = None if dx is None else workspace[: units * n].reshape(units, n)
        slice_loss = None if loss is None else workspace[units * n : units * (n + 1)]
        _launch(p, stream, W_part, x_part, slice_loss, dW_part, slice_dx)
        arrays = [workspace if a is None else a for a in (slice_loss, slice_dx, loss_part, dx_part)]
        size = len(W_part) * (n // plan.WARP + 1) * FINISH_THREADS
        finish(*arrays[:2], n, p.slices, *arrays[2:], size=size, block_size=FINISH_THREADS, stream=stream)


def _address(a: Any) -> int:
    return int(a.data.ptr)


def _workspace(stream: Any) -> Any:
    """WORKSPACE_BYTES of this thread, device and stream."""
    launch_stream = cupy.cuda.get_current_stream() if stream is None else stream
    key = threading.get_ident(), cupy.cuda.runtime.getDevice(), launch_stream.ptr
    if key not in _workspaces:
        with launch_stream:  # CuPy's pool gives what is free when this stream comes to it
            _workspaces[key] = cupy.empty(plan.WORKSPACE_BYTES, cupy.uint8)
    return _workspaces[key]
