"""Calls that a kernel computes at once: with the arrays as they are, or with copies of those that do not fit."""

import math
from collections.abc import Container, Sequence
from typing import Any

import numpy as np

from sigmoid_l2 import threads
from sigmoid_l2.arguments import DW_PLACE, INPUTS, W_PLACE, Kernel, fits, new_buffer, with_batch_axes
from sigmoid_l2.problem import Problem
from sigmoid_l2.sums import halved


def compute_at_once(
    problem: Problem,
    outputs: Sequence[Any],
    kernel: Kernel,
    xp: Any,
    most_bytes: int,
    *,
    sums: Container[int] = (),
    one_W: bool = False,
    last: bool = False,
) -> bool:
    """Compute in one call, with copies of the arrays that do not fit, where these have at most so many bytes.

    Return whether it was done. ``sums`` are the places of outputs that are sums over all pairs; they are added up as in
    pieces. With ``one_W`` the kernel is ``shared``, which adds up dW; with ``last`` it is ``batch_last``.
    """
    dtype, batch = problem.computed, problem.batch
    axes, pairs = len(batch), math.prod(batch)
    flat: list[Any] = [*problem.inputs, *outputs]
    nbytes = 0
    copies: list[tuple[int, Any, tuple[int, ...]]] = []  # of what does not fit: its place, a view, the copy's shape
    for k, (a, shape) in enumerate(zip(flat, problem.pair_shapes, strict=True)):
        if a is None:
            continue
        of_all = one_W and k in (W_PLACE, DW_PLACE)
        full, shape = (shape, shape) if of_all else ((*batch, *shape), (pairs, *shape))
        size = math.prod(shape)
        if k not in sums and a.size == size and fits(a, problem.pair_shapes[k], dtype, last):
            flat[k] = a.reshape(*shape)
            continue
        nbytes += size * dtype.itemsize
        view = a.reshape(*shape) if of_all else with_batch_axes(a, axes, problem.pair_shapes[k])
        flat[k] = shape
        copies.append((k, view, full))
    if not copies:
        kernel(*flat)
        return True
    if one_W:  # the order of dW's sum, which follows, must not depend on what else is wanted
        of_pair = sum(math.prod(s) for k, s in enumerate(problem.pair_shapes) if k not in (W_PLACE, DW_PLACE))
        nbytes = pairs * of_pair * dtype.itemsize
    if nbytes > most_bytes:
        return False
    copy = threads.copy if xp is np else xp.copyto
    for k, view, full in copies:
        flat[k] = new_buffer(pairs, flat[k][1:], dtype, xp, last) if last else xp.empty(flat[k], dtype)
        if k < INPUTS:
            copy(flat[k].reshape(full), view)
    kernel(*flat)
    for k, view, full in copies:
        if k in sums:
            with np.errstate(all="ignore"):
                xp.copyto(view, halved(flat[k][None]).reshape(view.shape))
        elif k >= INPUTS:
            copy(view, flat[k].reshape(full))
    return True
