"""Calls whose arrays a kernel cannot take as they are: in pieces, through buffers, with sums over broadcast inputs.

A piece is some pairs, of which each array that does not fit goes through a buffer: one in another layout, byte order or
dtype, and one that is broadcast. What is the same for all pairs is copied once a buffer.

The gradient of a broadcast input is the sum over the axes along which it was broadcast. These axes go last here. So
neighbouring pairs belong to one *cell*, an element of the axes that are left. A *block* is the pairs whose terms are
added by halves, in one buffer; it is a piece or, where other arrays go through buffers because of their layout, some:

* where a cell fits in a block, the block has whole cells;
* else the sum of each block of a cell is added to those of the blocks before with the rounding errors summed as well,
  in up to STRANDS strands of neighbouring blocks that threads compute side by side, and then the strands.

The order of all sums depends on the shapes, the dtype and the size of a block alone, not on the threads. A term is
rounded in ceil(log2(pairs of a block)) additions, by eps / 2 each, and by about eps in the others.

With a kernel for one W (``one_W``) a piece is a call of it, which leaves a sum of dW; these are added as those of
blocks.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from sigmoid_l2 import threads
from sigmoid_l2.arguments import (
    DW_PLACE,
    INPUTS,
    W_PLACE,
    X_PLACE,
    Kernel,
    fits,
    full_inputs,
    new_buffer,
    pieces,
    sums_of,
    with_batch_axes,
)
from sigmoid_l2.problem import Problem
from sigmoid_l2.sums import Sum, halved

# Strands of a cell, at most: enough for as many threads. And bytes that the sums of all strands take, at most.
STRANDS, STRAND_BYTES = 16, 32 << 20
# Memory of the kernel ``batch_last`` for a piece, at most, in sizes of all arrays of the piece: NumPy's takes about two
# at 1x1 and at 3x3. The blocks of the others are much smaller than a piece.
LAST_SIZES = 3
# Blocks of a call on threads, at least, where they have so much work in elements of W: enough for each thread.
BLOCKS, BLOCK_WORK = 16, 1 << 18


def is_one_block(problem: Problem, sums: Iterable[Sequence[int]]) -> bool:
    """Whether all pairs are one block, where the buffers have room, and what is summed over these axes one cell."""
    pairs = math.prod(problem.batch)
    are_cells = all(math.prod(problem.batch[k] for k in axes) == pairs for axes in sums)
    return are_cells and pairs <= max(1, BLOCK_WORK // (problem.m * problem.n))


def compute(
    problem: Problem,
    outputs: Sequence[Any],
    kernel: Kernel,
    xp: Any,
    piece_bytes: int,
    *,
    parallel: bool = False,
    one_W: bool = False,
    last: bool = False,
) -> None:
    """Compute ``outputs`` loss, dW, dx and dq (None: not wanted) with ``kernel``, through buffers of so many bytes.

    ``xp`` has NumPy's functions for arrays of the kind of problem.W. ``parallel``: on all threads, which the kernel
    then leaves alone. ``one_W``: the kernel is ``shared``, for the W of all pairs. ``last``: it is ``batch_last``. Two
    gradients that are summed over different axes are computed one after the other.
    """
    summed = sums_of(problem, outputs)
    if one_W and outputs[DW_PLACE - INPUTS] is not None:
        summed[DW_PLACE] = tuple(range(len(problem.batch)))
    first = True
    for axes in dict.fromkeys(summed.values()) or [()]:
        own = [
            a if (first and k not in summed) or summed.get(k) == axes else None for k, a in enumerate(outputs, INPUTS)
        ]
        _Pass(problem, own, axes, set(summed), kernel, xp, piece_bytes, parallel, one_W, last).run()
        first = False


class _Pass:
    """The outputs that are computed together: those that are not summed, and those that are summed over ``axes``."""

    def __init__(
        self,
        problem: Problem,
        outputs: Sequence[Any],
        axes: tuple[int, ...],
        summed: set[int],
        kernel: Kernel,
        xp: Any,
        piece_bytes: int,
        parallel: bool,
        one_W: bool,
        last: bool,
    ) -> None:
        self.kernel, self.xp, self.parallel, self.last = kernel, xp, parallel, last
        self.dtype, self.pair_shapes = problem.computed, problem.pair_shapes
        self.copy = threads.copy if xp is np else xp.copyto
        batch = problem.batch
        order = [*(k for k in range(len(batch)) if k not in axes), *axes]
        self.cell_axes = len(order) - len(axes)
        self.batch = [batch[k] for k in order]
        self.terms = math.prod(self.batch[self.cell_axes :]) if axes else 1

        self.arrays: list[Any] = []
        self.summed: list[int] = []  # places in ``arrays``
        for k, (a, shape) in enumerate(zip((*full_inputs(problem, xp), *outputs), self.pair_shapes, strict=True)):
            if a is not None:
                a = with_batch_axes(a, len(batch), shape)
                a = a.transpose(*order, *range(len(batch), a.ndim))
                if k in summed:
                    self.summed.append(k)
                    a = a[(*(slice(None),) * self.cell_axes, *(0,) * len(axes), ...)]
            self.arrays.append(a)
        # Sums stay in their buffers. So does dW where it is summed; it is most of what a piece writes.
        stored = (a for k, a in enumerate(self.arrays) if k >= INPUTS and k not in self.summed and a is not None)
        self.call_bytes = sum(a.nbytes for a in stored) if one_W or DW_PLACE not in self.summed else 1
        self.W: Any = None  # of all pairs
        if one_W:
            W = problem.W.reshape(problem.m, problem.n)
            self.W, self.arrays[W_PLACE] = W if fits(W, W.shape, self.dtype) else W.astype(self.dtype, order="C"), None
        self.work = math.prod(batch) * problem.m * problem.n  # in elements of W
        self._set_sizes(problem, piece_bytes)
        # The buffers of inputs that are the same in all pairs, which all threads read.
        self.constant: dict[int, Any] = {}
        for k, a in enumerate(self.arrays[:INPUTS]):
            if self._needs_buffer(k) and _is_constant(a, self.batch):
                self.constant[k] = self._buffer(k, self.piece)
                _fill(self.constant[k], a[(*(0,) * len(batch), ...)], xp)

    def _set_sizes(self, problem: Problem, piece_bytes: int) -> None:
        """How many pairs a block and a piece have. That of a block depends on the shapes alone, where it has sums."""
        whole = math.prod(self.batch)
        # With one W these are all, because the order of dW's sum must not depend on what else is wanted.
        of_pairs = (k for k in range(len(self.arrays)) if not self._is_of_all(k))
        buffered = [k for k in of_pairs if self.W is not None or self._needs_buffer(k)]
        inputs = enumerate(zip(problem.inputs, self.pair_shapes, strict=False))
        broadcast = {k for k, (a, shape) in inputs if a is not None and a.shape != (*problem.batch, *shape)}
        always = [k for k in buffered if k in self.summed or k in broadcast]
        most = whole
        if self.parallel:
            most = min(whole, max(whole // BLOCKS, BLOCK_WORK // (problem.m * problem.n), 1))
        sizes = [min(most, max(1, piece_bytes // max(1, self._pair_bytes(k)))) for k in (buffered, always)]
        # Whole blocks of every kernel, whole cache lines of every output.
        self.piece, self.block = (size // 64 * 64 if 256 < size < whole else size for size in sizes)
        if self.parallel and not self.summed:  # as many for each thread, which is free where nothing is summed
            ranges = threads.RANGES * threads.get_num_threads()
            count = -(-whole // self.piece)
            if count > ranges and self.piece > 256:
                count = -(-count // ranges) * ranges
                self.piece = -(-whole // (64 * count)) * 64
        if self.W is not None or not self.summed:
            self.block = self.piece

    def _pair_bytes(self, places: Sequence[int]) -> int:
        return sum(math.prod(self.pair_shapes[k]) for k in places) * self.dtype.itemsize

    def run(self) -> None:
        """Compute all blocks."""
        indices = list(pieces(self.batch, self.block))
        if self.parallel:
            # Allocate and drop what the threads need, so that MemoryError comes before any of them has written.
            places = (k for k in range(len(self.arrays)) if k not in self.constant)
            nbytes = sum(self._buffer_pairs(k) * self._pair_bytes([k]) for k in places)
            if self.last:
                nbytes += LAST_SIZES * self.piece * self._pair_bytes(range(len(self.arrays)))
            np.empty((min(threads.get_num_threads(), len(indices)), nbytes), np.uint8)
        if not self.summed or self.terms <= self.block:
            self._on_threads(len(indices), self.work, lambda first, last: self._whole(indices[first:last]))
            return
        cells = math.prod(self.batch[: self.cell_axes])
        count = len(indices) // cells  # blocks of a cell
        nbytes = 2 * self._pair_bytes(self.summed)
        strands = max(1, min(STRANDS, count, STRAND_BYTES // nbytes))
        ends = [count * k // strands for k in range(strands + 1)]
        for cell in range(cells):
            own = indices[cell * count : (cell + 1) * count]
            sums: list[Any] = [None] * strands

            def add_up(first: int, last: int, own: Any = own, sums: Any = sums) -> None:
                for k in range(first, last):
                    sums[k] = self._strand(own[ends[k] : ends[k + 1]])

            self._on_threads(strands, self.work // cells, add_up)
            self._add_strands((*own[0][: self.cell_axes], ...), sums)

    def _on_threads(self, size: int, work: int, run: Callable[[int, int], object]) -> None:
        if self.parallel and size >= 2 * threads.get_num_threads():
            threads.for_ranges(size, work, run)
        else:
            run(0, size)

    @np.errstate(all="ignore")
    def _whole(self, indices: Sequence[Any]) -> None:
        """Compute blocks of whole cells."""
        buffers = self._buffers()
        for index in indices:
            cells = (*index[:-1][: self.cell_axes], ...)
            for k, sums in zip(self.summed, self._block(index, buffers), strict=True):
                to = self.arrays[k][cells]
                self.xp.copyto(to, sums.reshape(to.shape))

    @np.errstate(all="ignore")
    def _strand(self, indices: Sequence[Any]) -> list[Any]:
        """Compute neighbouring blocks of a cell, and return the sums over them."""
        buffers, totals = self._buffers(), [Sum(self.xp) for _ in self.summed]
        for index in indices:
            for total, sums in zip(totals, self._block(index, buffers), strict=True):
                total.add(sums[0])
        return [total.value() for total in totals]

    @np.errstate(all="ignore")
    def _add_strands(self, cell: Any, strands: Sequence[Any]) -> None:
        for place, k in enumerate(self.summed):
            total = Sum(self.xp)
            for sums in strands:
                total.add(sums[place])
            self.xp.copyto(self.arrays[k][cell], total.value())

    def _is_of_all(self, k: int) -> bool:
        """Whether the kernel gets one array for all pairs of a call."""
        return self.W is not None and k in (W_PLACE, DW_PLACE)

    def _needs_buffer(self, k: int) -> bool:
        return k in self.summed or not fits(self.arrays[k], self.pair_shapes[k], self.dtype, self.last)

    def _buffer_pairs(self, k: int) -> int:
        """The length of the buffer of an array."""
        if not self._needs_buffer(k):
            return 0
        return 1 if self._is_of_all(k) else self.block if k in self.summed else self.piece

    def _buffers(self) -> list[Any]:
        """A buffer for each array that needs one."""
        buffers: list[Any] = []
        for k in range(len(self.pair_shapes)):
            own, size = self.constant.get(k), self._buffer_pairs(k)
            buffers.append(self._buffer(k, size) if own is None and size else own)
        return buffers

    def _buffer(self, k: int, pairs: int) -> Any:
        return new_buffer(pairs, self.pair_shapes[k], self.dtype, self.xp, self.last)

    def _block(self, index: Any, buffers: Sequence[Any]) -> list[Any]:
        """Compute a block; return the sums (cells, *pair_shape) of what is summed, in the memory of its buffer."""
        arrays: list[Any] = [None if a is None or k in self.summed else a[index] for k, a in enumerate(self.arrays)]
        batch, size = arrays[X_PLACE].shape[:-1], 0
        for piece in pieces(batch, self.piece):
            size += self._piece(arrays, piece, size, buffers)
        cells = max(1, size // self.terms)
        return [
            buffers[k]
            if self._is_of_all(k)
            else halved(buffers[k][:size].reshape(cells, size // cells, *self.pair_shapes[k]))
            for k in self.summed
        ]

    def _piece(self, arrays: Sequence[Any], index: Any, before: int, buffers: Sequence[Any]) -> int:
        """Compute a piece of a block's ``arrays``, with so many pairs ``before`` it; return how many it has."""
        views: list[Any] = [None if a is None else a[index] for a in arrays]
        size: int = math.prod(views[X_PLACE].shape[:-1])
        flat: list[Any] = []
        for k, (a, shape, buffer) in enumerate(zip(views, self.pair_shapes, buffers, strict=True)):
            if k in self.summed:
                flat.append(buffer[0] if self._is_of_all(k) else buffer[before : before + size])
            elif buffer is None:
                flat.append(None if a is None else a.reshape(-1, *shape))
            else:
                flat.append(buffer[:size])
                if k < INPUTS and k not in self.constant:
                    self.copy(flat[k].reshape(a.shape), a)
        if self.W is not None:
            flat[W_PLACE] = self.W
        self.kernel(*flat, call_bytes=self.call_bytes)
        for k in range(INPUTS, len(flat)):
            if buffers[k] is not None and k not in self.summed:
                self.copy(views[k], flat[k].reshape(views[k].shape))
        return size


@np.errstate(all="ignore")
def _fill(buffer: Any, a: Any, xp: Any) -> None:
    """Fill a buffer with one pair's values: twice as many at a time, because few are slow to repeat."""
    xp.copyto(buffer[:1], a[None])
    done = 1
    while done < len(buffer):
        more = min(done, len(buffer) - done)
        xp.copyto(buffer[done : done + more], buffer[:more])
        done += more


def _is_constant(a: Any, batch: Sequence[int]) -> bool:
    """Whether the input ``a`` is the same in all pairs."""
    return all(stride == 0 or size == 1 for stride, size in zip(a.strides, batch))  # noqa: B905 - of the batch axes
