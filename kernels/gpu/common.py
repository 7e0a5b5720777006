"""What the kernels in numba.cuda have in common: the framework, and the arithmetic that they share."""

import math
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from sigmoid_l2.kernels.gpu.shim import package

framework: Any = import_module(f"sigmoid_l2.kernels.gpu.shim_{package()}")
cuda, device, forget_memory = framework.cuda, framework.device, framework.forget_memory
multiply_add, shuffle_xor, about_reciprocal = framework.multiply_add, framework.shuffle_xor, framework.about_reciprocal
SECTOR_BYTES = 32  # that memory moves at least
TYPES: dict[int, Any] = {4: np.float32, 8: np.float64}  # by itemsize


class Wanted(NamedTuple):
    """Which outputs a kernel computes; the arrays of the others are never touched."""

    loss: bool
    dW: bool
    dx: bool


def unit_sums(n: int, itemsize: int) -> int:
    """Elements of the workspace for a unit: n partial sums of dx and one of loss, up to a whole sector of memory."""
    sector = SECTOR_BYTES // itemsize
    return -(-(n + 1) // sector) * sector


@device
def sigmoid_and_complement(q: Any, one: Any) -> Any:
    t = math.exp(-abs(q))
    d = one + t
    # A division would first look for d that is subnormal, huge or NaN, and call a function then; see about_reciprocal.
    r = about_reciprocal(d)
    for _ in range(2):  # Newton's steps, in float64: 20 bits, 40, all
        r = multiply_add(r, multiply_add(-d, r, one), r)
    return (t * r, r) if q < 0 else (r, t * r)


@cache
def mover(count: int, wide: bool = True) -> Any:
    """The function that copies ``count`` elements, ``wide``: in one access, of an aligned address.

    It takes contiguous arrays of any shape, global, shared or in registers, and goes through them in C order.
    """
    move = framework.MOVERS[count if wide else 1]
    if wide or count == 1:
        return move

    def move_each(target: Any, to: Any, source: Any, at: Any) -> None:
        for k in range(count):
            move(target, to + k, source, at + k)

    return device(move_each)


@cache
def sum_over_lanes(lanes: int, width: int) -> Any:
    """The function that adds up sums[0 .. width - 1] of ``lanes`` neighbouring lanes, both powers of two.

    Each lane is left with its share, lane l with the sums from l * width // lanes on, in sums[0 ...]. In each step two
    lanes halve what they have: each sends the half that the other keeps. So `width` sums take about as many shuffles,
    where the usual butterfly would take `width` * log2(lanes); the order is that of the butterfly.
    """
    half, kept = lanes // 2, width // 2
    rest: Any = sum_over_lanes(half, max(1, kept)) if lanes > 1 else None

    def alone(sums: Any, lane: Any) -> None:
        pass

    def halve(sums: Any, lane: Any) -> None:
        for j in range(kept):
            mine, theirs = (sums[j + kept], sums[j]) if lane & half else (sums[j], sums[j + kept])
            sums[j] = mine + shuffle_xor(theirs, half)
        rest(sums, lane)

    def add(sums: Any, lane: Any) -> None:
        sums[0] += shuffle_xor(sums[0], half)
        rest(sums, lane)

    return device(alone if lanes == 1 else halve if kept else add)
