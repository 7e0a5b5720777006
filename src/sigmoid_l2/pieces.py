"""Calls whose arrays a kernel cannot take as they are: piece by piece, through buffers, with sums over shared inputs.

A piece is some pairs, of which each array that does not fit goes through a buffer: one in another layout, byte order or
dtype, and one that is broadcast. So what one W shares with many x is copied once a piece, and never for all of them.

The gradient of a broadcast input is the sum over the axes along which it was broadcast. These axes go last here. So
neighbouring pairs belong to one *cell*, an element of the axes that are left:

* where a cell fits in a piece, the piece has whole cells, and the terms of each are added by halves;
* else each piece of a cell is added by halves, its sum to those of the pieces before with the rounding errors summed as
  well, in up to STRANDS strands of neighbouring pieces that threads compute side by side, and then the strands.

The order of all sums depends on the shapes, the dtype and the size of a piece alone, not on the threads. A term is
rounded in ceil(log2(pairs of a piece)) additions, by eps / 2 each, and by about eps in the others.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from sigmoid_l2 import threads
from sigmoid_l2.problem import Problem

Kernel = Callable[..., None]  # the contract is in sigmoid_l2.kernels
INPUTS = 4  # of a kernel's arguments, which come first
DW = INPUTS + 1  # the place of dW among them

# Strands of a cell, at most: enough for as many threads. And bytes that the sums of all strands take, at most.
STRANDS, STRAND_BYTES = 16, 32 << 20


def pieces(batch: Sequence[int], pairs: int) -> Iterator[tuple[Any, ...]]:
    """Indices of the batch axes, each of a piece of at most ``pairs`` pairs; together they cover each pair once."""
    if not batch:
        yield (...,)
        return
    # Cut the first axis of which one element is small enough; go through the axes before it one by one.
    axis = next(axis for axis in range(len(batch)) if math.prod(batch[axis + 1 :]) <= pairs)
    step = pairs // math.prod(batch[axis + 1 :])
    for outer in np.ndindex(*batch[:axis]):
        for first in range(0, batch[axis], step):
            # The Ellipsis keeps a single element an array, so that it can be written to.
            yield (*outer, slice(first, first + step), ...)


def shared_axes(a: Any, pair_shape: tuple[int, ...], batch: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of ``batch`` along which ``a`` (..., *pair_shape) is broadcast."""
    own = a.shape[: a.ndim - len(pair_shape)]
    missing = len(batch) - len(own)
    return tuple(k for k, size in enumerate(batch) if size != 1 and (k < missing or own[k - missing] == 1))


def fits(a: Any, dtype: np.dtype[Any]) -> bool:
    """Whether a kernel can use ``a`` in place, or does not get it."""
    if a is None:
        return True
    flags = a.flags
    return (a.dtype is dtype or a.dtype == dtype) and flags.c_contiguous and getattr(flags, "aligned", True)


def full_inputs(problem: Problem, xp: Any) -> list[Any]:
    """Views of the inputs that are broadcast to (*batch, *pair_shape)."""
    shapes = [problem.batch + shape for shape in problem.pair_shapes]
    return [None if a is None else xp.broadcast_to(a, s) for a, s in zip(problem.inputs, shapes, strict=False)]


def with_batch_axes(a: Any, axes: int, pair_shape: tuple[int, ...]) -> Any:
    """A view of ``a`` (..., *pair_shape) with so many batch axes, of which the first have length 1."""
    missing = axes + len(pair_shape) - a.ndim
    return a[(None,) * missing] if missing else a


def sums_of(problem: Problem, outputs: Sequence[Any]) -> dict[int, tuple[int, ...]]:
    """Which of the ``outputs`` loss, dW, dx and dq are summed, by their places there, and over which batch axes."""
    shapes = problem.pair_shapes
    axes = {1: shared_axes(problem.W, shapes[0], problem.batch), 2: shared_axes(problem.x, shapes[1], problem.batch)}
    return {k: summed for k, summed in axes.items() if summed and outputs[k] is not None}


def has_one_W(problem: Problem) -> bool:  # noqa: N802 - the name of the mathematics
    """Whether all pairs share one W: it has no batch axes, or there are several pairs."""
    is_one = problem.W.size == problem.m * problem.n
    return is_one and (problem.W.ndim - 2 < len(problem.batch) or math.prod(problem.batch) > 1)


def compute(
    problem: Problem,
    outputs: Sequence[Any],
    kernel: Kernel,
    xp: Any,
    piece_bytes: int,
    *,
    parallel: bool = False,
    shared: bool = False,
) -> None:
    """Compute ``outputs`` loss, dW, dx and dq (None: not wanted) with ``kernel``, in pieces of so many bytes of W.

    ``xp`` has NumPy's functions for arrays of the kind of problem.W. ``parallel``: on all threads, which the kernel
    then leaves alone. ``shared``: the kernel is one for a W that all pairs share. Two gradients that are summed over
    different axes are computed one after the other.
    """
    summed = sums_of(problem, outputs)
    if shared and outputs[1] is not None:
        summed[1] = tuple(range(len(problem.batch)))
    first = True
    for axes in dict.fromkeys(summed.values()) or [()]:
        own = [a if (first and k not in summed) or summed.get(k) == axes else None for k, a in enumerate(outputs)]
        _Pass(problem, own, axes, set(summed), kernel, xp, piece_bytes, shared).run(parallel)
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
        shared: bool,
    ) -> None:
        self.kernel, self.xp, self.dtype, self.pair_shapes = kernel, xp, problem.computed, problem.pair_shapes
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
                if k - INPUTS in summed:
                    self.summed.append(k)
                    a = a[(*(slice(None),) * self.cell_axes, *(0,) * len(axes), ...)]
            self.arrays.append(a)
        # Sums stay in their buffers. So does dW where it is summed; it is most of what a piece writes.
        stored = (a for k, a in enumerate(self.arrays) if k >= INPUTS and k not in self.summed and a is not None)
        self.call_bytes = sum(a.nbytes for a in stored) if shared or DW not in self.summed else 1
        self.one_W: Any = None
        pair_size = problem.m * problem.n
        if shared:
            W = problem.W.reshape(problem.m, problem.n)
            self.one_W, self.arrays[0] = W if fits(W, self.dtype) else W.astype(self.dtype, order="C"), None
            pair_size = problem.m + problem.n
        whole = math.prod(batch)
        self.pairs = min(whole, max(1, piece_bytes // (pair_size * self.dtype.itemsize)))
        self.work = whole * problem.m * problem.n  # in elements of W

    def run(self, parallel: bool) -> None:
        """Compute all pieces."""
        indices = list(pieces(self.batch, self.pairs))
        if parallel:
            # Allocate and drop what the threads need, so that MemoryError comes before any of them has written.
            shared = () if self.one_W is None else (DW,)
            some = [math.prod(s) for k, s in enumerate(self.pair_shapes) if self._needs_buffer(k) and k not in shared]
            np.empty((min(threads.get_num_threads(), len(indices)), self.pairs * sum(some)), self.dtype)
        if not self.summed or self.terms <= self.pairs:
            self._on_threads(len(indices), self.work, parallel, lambda first, last: self._whole(indices[first:last]))
            return
        cells = math.prod(self.batch[: self.cell_axes])
        count = len(indices) // cells  # pieces of a cell
        nbytes = sum(2 * math.prod(self.pair_shapes[k]) for k in self.summed) * self.dtype.itemsize
        strands = max(1, min(STRANDS, count, STRAND_BYTES // nbytes))
        ends = [count * k // strands for k in range(strands + 1)]
        for cell in range(cells):
            own = indices[cell * count : (cell + 1) * count]
            sums: list[Any] = [None] * strands

            def add_up(first: int, last: int, own: Any = own, sums: Any = sums) -> None:
                for k in range(first, last):
                    sums[k] = self._strand(own[ends[k] : ends[k + 1]])

            self._on_threads(strands, self.work // cells, parallel, add_up)
            self._add_strands((*own[0][: self.cell_axes], ...), sums)

    def _on_threads(self, size: int, work: int, parallel: bool, run: Callable[[int, int], object]) -> None:
        if parallel and size >= 2 * threads.get_num_threads():
            threads.for_ranges(size, work, run)
        else:
            run(0, size)

    @np.errstate(all="ignore")
    def _whole(self, indices: Sequence[Any]) -> None:
        """Compute pieces of whole cells."""
        buffers = self._buffers()
        for index in indices:
            cells = (*index[:-1][: self.cell_axes], ...)
            for k, sums in zip(self.summed, self._piece(index, buffers), strict=True):
                to = self.arrays[k][cells]
                self.xp.copyto(to, sums.reshape(to.shape))

    @np.errstate(all="ignore")
    def _strand(self, indices: Sequence[Any]) -> list[Any]:
        """Compute neighbouring pieces of a cell, and return the sums over them."""
        buffers, totals = self._buffers(), [Sum(self.xp) for _ in self.summed]
        for index in indices:
            for total, sums in zip(totals, self._piece(index, buffers), strict=True):
                total.add(sums[0])
        return [total.value() for total in totals]

    @np.errstate(all="ignore")
    def _add_strands(self, cell: Any, strands: Sequence[Any]) -> None:
        for place, k in enumerate(self.summed):
            total = Sum(self.xp)
            for sums in strands:
                total.add(sums[place])
            self.xp.copyto(self.arrays[k][cell], total.value())

    def _buffers(self) -> list[Any]:
        """A buffer for each array that needs one; that of an input which is the same in all pairs is filled."""
        buffers: list[Any] = []
        for k, (a, shape) in enumerate(zip(self.arrays, self.pair_shapes, strict=True)):
            if not self._needs_buffer(k):
                buffers.append(None)
                continue
            pairs = 1 if k == DW and self.one_W is not None else self.pairs
            buffers.append(self.xp.empty((pairs, *shape), self.dtype))
            if k < INPUTS and _is_constant(a, self.batch):
                self.xp.copyto(buffers[k], a[(*(0,) * len(self.batch), ...)])
        return buffers

    def _needs_buffer(self, k: int) -> bool:
        return k in self.summed or not fits(self.arrays[k], self.dtype)

    def _piece(self, index: Any, buffers: Sequence[Any]) -> list[Any]:
        """Compute a piece; return the sums (cells, *pair_shape) of what is summed, in the memory of its buffer."""
        size = math.prod(self.arrays[1][index].shape[:-1])
        flat: list[Any] = []
        for k, (a, shape, buffer) in enumerate(zip(self.arrays, self.pair_shapes, buffers, strict=True)):
            if buffer is None:
                flat.append(None if a is None else a[index].reshape(-1, *shape))
                continue
            flat.append(buffer[:size])
            if k < INPUTS and not _is_constant(a, self.batch):
                piece = a[index]
                self.copy(flat[k].reshape(piece.shape), piece)
        if self.one_W is not None:
            flat[0] = self.one_W
            if flat[DW] is not None:
                flat[DW] = buffers[DW][0]
        self.kernel(*flat, call_bytes=self.call_bytes)
        for k in range(INPUTS, len(flat)):
            if buffers[k] is not None and k not in self.summed:
                piece = self.arrays[k][index]
                self.copy(piece, flat[k].reshape(piece.shape))
        cells = max(1, size // self.terms)
        return [
            buffers[k][:1]
            if k == DW and self.one_W is not None
            else halved(flat[k].reshape(cells, size // cells, *self.pair_shapes[k]))
            for k in self.summed
        ]


def _is_constant(a: Any, batch: Sequence[int]) -> bool:
    """Whether the input ``a`` is the same in all pairs."""
    return all(stride == 0 or size == 1 for stride, size in zip(a.strides, batch))  # noqa: B905 - of the batch axes


def halved(terms: Any) -> Any:
    """The sums over the axis 1 of ``terms``, which are overwritten."""
    while terms.shape[1] > 1:
        half = terms.shape[1] // 2
        terms[:, :half] += terms[:, -half:]
        terms = terms[:, : terms.shape[1] - half]
    return terms[:, 0]


class Sum:
    """A sum of arrays to which the error of each addition is added at the end (Knuth's TwoSum)."""

    def __init__(self, xp: Any) -> None:
        self.xp = xp
        self.high: Any = None
        self.low: Any = None

    def add(self, term: Any) -> None:
        """Add an array, which stays as it is."""
        if self.high is None:
            self.high, self.low = term.copy(), self.xp.zeros_like(term)
            return
        high = self.high + term
        added = high - self.high
        self.low += (self.high - (high - added)) + (term - added)
        self.high = high

    def value(self) -> Any:
        """The sum; where it is infinite, the errors are NaN and left out."""
        return self.xp.where(self.xp.isnan(self.low), self.high, self.high + self.low)
