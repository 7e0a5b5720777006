"""One validated problem through one kernel: results allocated, layouts made right piece by piece, the kernel called."""

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from sigmoid_l2 import device
from sigmoid_l2.backends import Backend
from sigmoid_l2.problem import Problem

# What a kernel cannot read or write in place is copied in pieces of this many bytes of W, so that the copies stay in
# cache on a CPU and out of proportion to no batch.
PIECE_BYTES = 1 << 20
# Host arrays are carried to a GPU in larger pieces: a copy over PCIe costs about 10 us before its first byte.
CARRIED_PIECE_BYTES = 32 << 20

_INPUTS, _OUTPUTS = ("W", "x"), ("loss", "dW", "dx")


def execute(problem: Problem, names: Sequence[str], out: Any, backend: Backend, stream: Any) -> tuple[Any, ...]:
    """Compute the outputs ``names`` of ``problem`` with ``backend``, into ``out`` or, where it is None, new arrays."""
    on_cpu = problem.device == "cpu"
    xp = np if on_cpu else sys.modules["cupy"]
    with nullcontext() if on_cpu else device.on(problem.W, stream):
        if out is None:
            out = [xp.empty(problem.shape(name), problem.dtype) for name in names]
        if problem.B:
            _run(problem, xp, dict(zip(names, out, strict=True)), backend, stream)
    return tuple(out)


def _run(problem: Problem, xp: Any, results: dict[str, Any], backend: Backend, stream: Any) -> None:
    carried = problem.device == "cpu" and backend.device == "cuda"
    compute = device.carried(backend, stream) if carried else device.in_place(backend, problem)
    pairs = max(
        1, (CARRIED_PIECE_BYTES if carried else PIECE_BYTES) // (problem.m * problem.n * problem.dtype.itemsize)
    )
    operands = {
        name: _Operand(xp, a, problem, min(pairs, problem.B))
        for name, a in {"W": problem.W, "x": problem.x, **_without_column_axis(problem, results)}.items()
    }
    whole = not carried and all(operand.in_place for operand in operands.values())
    for index in [...] if whole else _pieces(problem.batch, pairs):
        flat = {name: operand.flat(index) for name, operand in operands.items()}
        for name in _INPUTS:
            operands[name].load(flat[name], index)
        compute(*(flat.get(name) for name in (*_INPUTS, *_OUTPUTS)))
        for name in results:
            operands[name].store(flat[name], index)


def _without_column_axis(problem: Problem, results: dict[str, Any]) -> dict[str, Any]:
    plain = {name: np.asarray(a) if isinstance(a, np.ndarray) else a for name, a in results.items()}
    if problem.column and "dx" in plain:
        plain["dx"] = plain["dx"][..., 0]
    return plain


class _Operand:
    """One array (*batch, *pair) as a kernel needs it, (pairs, *pair) and contiguous: in place or through a buffer."""

    def __init__(self, xp: Any, array: Any, problem: Problem, pairs: int) -> None:
        self.xp = xp
        self.array = array
        self.pair = array.shape[len(problem.batch) :]
        self.in_place = (
            array.dtype == problem.dtype and array.flags.c_contiguous and getattr(array.flags, "aligned", True)
        )
        self.buffer = None if self.in_place else xp.empty((pairs, *self.pair), problem.dtype)

    def flat(self, index: Any) -> Any:
        """The contiguous memory for the pairs at ``index`` of the batch axes."""
        piece = self.array[index]
        if self.buffer is None:
            return piece.reshape(-1, *self.pair)
        return self.buffer[: piece.size // math.prod(self.pair)]

    def load(self, flat: Any, index: Any) -> None:
        """Bring the pairs at ``index`` into ``flat``."""
        if self.buffer is not None:
            piece = self.array[index]
            self.xp.copyto(flat.reshape(piece.shape), piece)

    def store(self, flat: Any, index: Any) -> None:
        """Take the pairs at ``index`` out of ``flat``."""
        if self.buffer is not None:
            piece = self.array[index]
            self.xp.copyto(piece, flat.reshape(piece.shape))


def _pieces(batch: tuple[int, ...], pairs: int) -> Iterator[tuple[Any, ...]]:
    """Index tuples that cut the batch axes into pieces of at most ``pairs`` pairs, each pair once."""
    if not batch:
        yield (...,)
        return
    # Cut along the first axis of which one step is small enough; take the axes before it step by step.
    axis = next(axis for axis in range(len(batch)) if math.prod(batch[axis + 1 :]) <= pairs)
    step = pairs // math.prod(batch[axis + 1 :])
    for outer in np.ndindex(*batch[:axis]):
        for first in range(0, batch[axis], step):
            # The Ellipsis keeps a single element an array, so that it can be written to.
            yield (*outer, slice(first, first + step), ...)
