"""The GPU kernels of the .cuh files as cupy.ElementwiseKernels.

An ElementwiseKernel wraps its body in a loop over ``size`` indices. The bodies here have barriers, so every thread must
make exactly one trip: ``size`` is the number of blocks times ``block_size``. All parameters are integers.
"""

import sys
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import cupy

from sigmoid_l2.gpu.cupy_library import CupyLibrary, cupy_stream
from sigmoid_l2.kernels import Given, Wanted
from sigmoid_l2.kernels.gpu import launch, launch_batch_last, launch_shared, plan
from sigmoid_l2.kernels.gpu.plan_types import BatchLast, Columns, Long, Product, Rows, SharedTiny, Staged

INPUTS, OUTPUTS = "W x target cotangent", "loss dW dx dq"


def fused(
    W: Any,
    x: Any,
    target: Any,
    cotangent: Any,
    loss: Any,
    dW: Any,
    dx: Any,
    dq: Any,
    *,
    stream: int | None = None,
    call_bytes: int = 0,
) -> None:
    """Compute loss, dW, dx and dq for a batch on the current GPU; the contract is in ``sigmoid_l2.kernels``.

    Arrays are CuPy's or numba's.
    """
    launch.fused(sys.modules[__name__], W, x, target, cotangent, loss, dW, dx, dq, stream=stream)


def shared(
    W: Any,
    x: Any,
    target: Any,
    cotangent: Any,
    loss: Any,
    dW: Any,
    dx: Any,
    dq: Any,
    *,
    stream: int | None = None,
    call_bytes: int = 0,
) -> None:
    """The same for pairs that all have one W (m, n), of which dW is the sum; ``has_shared`` says for which W."""
    launch_shared.shared(sys.modules[__name__], W, x, target, cotangent, loss, dW, dx, dq, stream=stream)


def batch_last(
    W: Any,
    x: Any,
    target: Any,
    cotangent: Any,
    loss: Any,
    dW: Any,
    dx: Any,
    dq: Any,
    *,
    stream: int | None = None,
    call_bytes: int = 0,
) -> None:
    """``fused`` for arrays whose last axis is that of the pairs; ``has_batch_last`` says for which (m, n)."""
    launch_batch_last.batch_last(sys.modules[__name__], W, x, target, cotangent, loss, dW, dx, dq, stream=stream)


has_shared, has_batch_last = launch_shared.has_shared, launch_batch_last.has_batch_last


# --- the kernels -----------------------------------------------------------------------------------------------------


@launch.once
def staged_kernel(p: Staged, m: int, n: int, itemsize: int, wide: bool, given: Given, wanted: Wanted) -> Any:
    """The kernel of staged.cuh for one (m, n)."""
    lanes = p.lanes, p.row_lanes, p.columns, p.lane_rows, p.lane_pairs
    template = m, n, p.rows, p.slices, p.threads, *lanes, wide, *given, *wanted
    return _kernel("fused_staged", itemsize, template, INPUTS, OUTPUTS, "units", stems=("common", "tile", "staged"))


@launch.once
def rows_kernel(p: Rows, itemsize: int, wide: bool, given: Given, wanted: Wanted) -> Any:
    """The kernel of rows.cuh, to which the plan's ``rows`` and ``slices`` are arguments."""
    template = p.threads, p.row_threads, p.teams, p.width, p.vectors, p.at_once, p.in_turn, wide, *given, *wanted
    sizes, registers = "units m n rows unit_rows slices", plan.rows_registers(p, itemsize, given, wanted)
    return _kernel("fused_rows", itemsize, template, INPUTS, OUTPUTS, sizes, registers)


@launch.once
def long_kernel(p: Long, itemsize: int, wide: bool, given: Given, wanted: Wanted) -> Any:
    """The kernel of long.cuh, to which the plan's ``rows`` and ``slices`` are arguments."""
    template = p.threads, p.width, p.vectors, p.shared, wide, *given, *wanted
    return _kernel("fused_long", itemsize, template, INPUTS, OUTPUTS, "m n rows slices", p.registers)


@launch.once
def columns_q_kernel(p: Columns, itemsize: int, wide: bool) -> Any:
    """The first kernel of columns.cuh, to which ``q_columns`` and ``q_slices`` are arguments."""
    template = p.threads, p.width, p.at_once, wide
    return _kernel("columns_q", itemsize, template, "W x", "q_parts", "m n columns slices", p.registers)


@launch.once
def columns_gradients_kernel(p: Columns, itemsize: int, wide: bool, given: Given, wanted: Wanted) -> Any:
    """The second, to which ``rows``, ``slices`` and ``q_slices`` are arguments."""
    template, sizes = (p.threads, p.width, p.vectors, wide, *given, *wanted), "m n rows slices q_slices"
    return _kernel("columns_gradients", itemsize, template, f"{INPUTS} q_parts", OUTPUTS, sizes, p.registers)


@launch.once
def finish_kernel(chunk: int, itemsize: int, wanted: Wanted) -> Any:
    """The kernel of finish.cuh."""
    template = chunk // plan.FINISH_LOADS, chunk, wanted.loss, wanted.dx
    return _kernel("finish", itemsize, template, "slice_loss slice_dx", "loss dx", "n slices group")


@launch.once
def shared_tiny_kernel(p: SharedTiny, m: int, n: int, itemsize: int, wide: bool, given: Given, wanted: Wanted) -> Any:
    """The kernel of shared_tiny.cuh for one (m, n)."""
    template = m, n, p.threads, p.pairs, p.run, wide, *given, *wanted
    outputs, stems = "loss parts dx dq", ("common", "tile", "shared_sums", "shared_tiny")
    return _kernel("shared_tiny", itemsize, template, INPUTS, outputs, "B tiles", stems=stems)


@launch.once
def shared_blocks_q_kernel(
    p: Product, itemsize: int, wide: bool, wide_g: bool, given: Given, want_loss: bool, want_g: bool
) -> Any:
    """The first kernel of shared_blocks.cuh."""
    return _blocks_kernel("q", p, itemsize, (wide, wide_g, *given, want_loss, want_g), INPUTS, "loss g", "B m n")


@launch.once
def shared_blocks_dx_kernel(p: Product, itemsize: int, wide: bool, wide_g: bool) -> Any:
    """The second, for dx."""
    return _blocks_kernel("dx", p, itemsize, (wide, wide_g), "W g", "dx", "B m n")


@launch.once
def shared_blocks_parts_kernel(p: Product, itemsize: int, wide: bool, wide_g: bool) -> Any:
    """The kernel of shared_parts.cuh."""
    return _blocks_kernel("parts", p, itemsize, (wide, wide_g), "x g", "parts", "B m n pairs chain is_first")


def _blocks_kernel(
    name: str, p: Product, itemsize: int, how: Sequence[int], inputs: str, outputs: str, sizes: str
) -> Any:
    own = ("shared_sums", "shared_parts") if name == "parts" else ("shared_blocks",)
    stems, template = ("common", "shared_operand", "shared_product", *own), (*p[:5], *how)
    return _kernel(f"shared_blocks_{name}", itemsize, template, inputs, outputs, sizes, p.registers, stems)


@launch.once
def shared_sums_kernel(columns: int, loaders: int, itemsize: int) -> Any:
    """The kernel of shared_sums.cuh."""
    sizes, stems = "values count value_step part_step", ("common", "shared_sums")
    return _kernel("shared_sums", itemsize, (columns, loaders), "parts", "dW", sizes, stems=stems)


@launch.once
def batch_last_kernel(p: BatchLast, n: int, itemsize: int, given: Given, wanted: Wanted) -> Any:
    """The kernel of batch_last.cuh for rows of n."""
    template, stems = (p.threads, n, p.rows, p.even, *given, *wanted), ("common", "batch_last")
    sizes = "B m W_row_step W_step x_step target_step dW_row_step dW_step dx_step dq_step"
    return _kernel("batch_last", itemsize, template, INPUTS, OUTPUTS, sizes, stems=stems)


def _kernel(
    name: str,
    itemsize: int,
    template: Sequence[int],
    inputs: str,
    outputs: str,
    sizes: str,
    registers: int | None = None,
    stems: Sequence[str] = (),
) -> Any:
    """The kernel of ``stems``; without them of common and the file that ``name`` begins with."""
    real = {4: "float", 8: "double"}[itemsize]
    pointers = [f"reinterpret_cast<const {real}*>({a})" for a in inputs.split()]
    pointers += [f"reinterpret_cast<{real}*>({a})" for a in outputs.split()]
    template_arguments = ", ".join([real, *(str(int(a)) for a in template)])
    stems = stems or ("common", name.removeprefix("fused_").partition("_")[0])
    return cupy.ElementwiseKernel(
        in_params=", ".join(f"int64 {a}" for a in f"{inputs} {outputs} {sizes}".split()),
        out_params="",
        operation=f"sigmoid_l2::{name}<{template_arguments}>({', '.join(pointers + sizes.split())}); return;",
        name=f"sigmoid_l2_{name}",
        preamble="".join(map(_text, stems)),
        no_return=True,
        options=() if registers is None else (f"--maxrregcount={registers}",),
    )


def _text(stem: str) -> str:
    """A .cuh as text. It cannot be an #include: CuPy's disk cache does not hash included files."""
    return files("sigmoid_l2.kernels.gpu").joinpath(f"{stem}.cuh").read_text(encoding="utf-8")


# --- what launch.py asks of a launcher -------------------------------------------------------------------------------


def run(kernel: Any, blocks: int, threads: int, stream: int | None, arguments: Sequence[int]) -> None:
    """Launch a kernel."""
    if stream is not None and stream == cupy.cuda.get_current_stream().ptr:
        stream = None  # the current one, of which no object has to be made
    queue = None if stream is None else cupy_stream(stream)
    kernel(*arguments, size=blocks * threads, block_size=threads, stream=queue)


def workspace(stream: int | None, nbytes: int) -> Any:
    """Memory for the sums of slices, of this thread, on the current device, for one stream."""
    handle = cupy.cuda.get_current_stream().ptr if stream is None else stream
    return CupyLibrary.workspace(handle, nbytes)
