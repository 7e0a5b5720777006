"""Many W, each for many x: the kernel for one W is called for each of them, on its samples.

The axes of the batch along which W has elements of its own go first here: an element of them is a *model*, and those of
the other axes are its *samples*. Where models share their x, dx is a sum over models, too, with the rounding errors of
its additions; it is computed after the other results, for some samples at a time.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sigmoid_l2 import threads
from sigmoid_l2.arguments import DX_PLACE, INPUTS, W_PLACE, X_PLACE, broadcast_axes, pieces, with_batch_axes
from sigmoid_l2.problem import Problem
from sigmoid_l2.sums import Sum

# Computes the outputs loss, dW, dx and dq of a problem whose pairs all have one W.
OneModel = Callable[[Problem, Sequence[Any]], None]

# Work of a model, in elements of W, from which on all threads compute it; else each thread has models of its own.
THREADED = 1 << 22
# Bytes of a dx for which sums over models are computed at a time, at most.
SUM_BYTES = 1 << 20


def samples_of_a_model(problem: Problem) -> int:
    """How many pairs share each W."""
    return math.prod(problem.batch) * problem.m * problem.n // int(problem.W.size)


def compute(problem: Problem, outputs: Sequence[Any], compute_model: OneModel, xp: Any, parallel: bool) -> None:
    """Compute the ``outputs`` that are wanted; ``parallel``: with threads. ``xp`` has NumPy's functions."""
    batch, shapes = problem.batch, problem.pair_shapes
    shared = broadcast_axes(problem.W, shapes[W_PLACE], batch)
    of_x = broadcast_axes(problem.x, shapes[X_PLACE], batch)
    # Those along which x is broadcast are the last of the models.
    models = sorted((k for k in range(len(batch)) if batch[k] > 1 and k not in shared), key=of_x.__contains__)
    samples = [k for k in range(len(batch)) if k not in models]
    count, own_x = len(models), sum(k not in of_x for k in models)

    arrays: list[Any] = []  # (*models, *samples, ...), where the axes of models have their whole length
    for k, (a, shape) in enumerate(zip((*problem.inputs, *outputs), shapes, strict=True)):
        if a is not None:
            a = with_batch_axes(a, len(batch), shape)
            a = a.transpose(*models, *samples, *range(len(batch), a.ndim))
            if k < INPUTS:
                a = xp.broadcast_to(a, (*(batch[j] for j in models), *a.shape[count:]))
        arrays.append(a)
    sizes = [batch[k] for k in models]
    dx = arrays[DX_PLACE]
    sums_dx = dx is not None and own_x < count
    if sums_dx:
        arrays[DX_PLACE] = None

    def run(first: int, last: int) -> None:
        for number in range(first, last):
            model = np.unravel_index(number, sizes)
            part = [None if a is None else a[(*model, ...)] for a in arrays]
            compute_model(_part(problem, part, tuple(batch[k] for k in samples)), part[INPUTS:])

    if any(a is not None for a in arrays[INPUTS:]):
        work = math.prod(batch) * problem.m * problem.n
        _on_threads(math.prod(sizes), work, parallel and work < THREADED * math.prod(sizes), run)
    if sums_dx:
        inputs = [*arrays[:INPUTS], *[None] * len(outputs)]
        for model in np.ndindex(*sizes[:own_x]):
            to = dx[(*model, *(0,) * (count - own_x), ...)]
            part = [None if a is None else a[(*model, ...)] for a in inputs]
            _sum_dx(problem, part, sizes[own_x:], [batch[k] for k in samples], to, compute_model, xp, parallel)


def _sum_dx(
    problem: Problem,
    inputs: Sequence[Any],
    models: Sequence[int],
    samples: Sequence[int],
    dx: Any,
    compute_model: OneModel,
    xp: Any,
    parallel: bool,
) -> None:
    """Compute the sum over ``models`` of the gradient with respect to an x that they share."""
    parts = [(...,)]
    if dx.shape[:-1] == tuple(samples):
        parts = list(pieces(samples, max(1, SUM_BYTES // (problem.n * problem.computed.itemsize))))
        full = [(*models, *samples, *shape) for shape in problem.pair_shapes]
        inputs = [
            None if a is None else a if k == W_PLACE else xp.broadcast_to(a, full[k]) for k, a in enumerate(inputs)
        ]

    def run(first: int, last: int) -> None:
        for index in parts[first:last]:
            total, to = Sum(xp), dx[index]
            term = xp.empty(to.shape, problem.computed)
            for model in np.ndindex(*models):
                part: list[Any] = [None if a is None else a[(*model, ...)] for a in inputs]
                part = [a if a is None or k == W_PLACE else a[index] for k, a in enumerate(part)]
                batch = part[X_PLACE].shape[:-1] if len(parts) > 1 else tuple(samples)
                part[DX_PLACE] = term
                compute_model(_part(problem, part, batch), part[INPUTS:])
                total.add(term)
            with np.errstate(all="ignore"):
                xp.copyto(to, total.value())

    work = math.prod([*models, *samples, problem.m, problem.n])
    _on_threads(len(parts), work, parallel, run)


def _part(problem: Problem, arrays: Sequence[Any], batch: tuple[int, ...]) -> Problem:
    """The problem of some samples of a model."""
    W, x, target, cotangent = arrays[:INPUTS]
    return problem._replace(W=W, x=x, target=target, cotangent=cotangent, batch=batch)


def _on_threads(size: int, work: int, parallel: bool, run: Callable[[int, int], object]) -> None:
    if parallel and size >= 2 * threads.get_num_threads():
        threads.for_ranges(size, work, run)
    else:
        run(0, size)
