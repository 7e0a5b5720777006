"""What is wrong with a gradient, or with a step before it, in sentences: for all pairs, or pair by pair."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from sigmoid_l2.explain.program import Inputs
from sigmoid_l2.explain.search import Search

Array = npt.NDArray[Any]
DType = np.dtype[Any]

# The most groups of pairs, each with mistakes of its own, that are told of a batch.
_MOST_GROUPS = 3


def _zero(name: str) -> str:
    if name in ("q", "s", "e", "loss", "dloss_ds"):
        return "every value is 0: not computed, or rounded away"
    return (
        "every value is 0: not computed, rounded away, in an array of integers, or s(1 - s) is 0, because s is rounded "
        "to 0 or 1 or the brackets are lost; write ds_dq = s * (1 - s)"
    )


def name_mistakes(
    name: str,
    given: Array,
    true: Array,
    wrong: Array | None,
    inputs: Inputs,
    rtol: float,
    dtype: DType,
    place: Callable[[int], str],
) -> tuple[str, ...]:
    """The mistakes that made the wrong ``given`` of ``name``, a sentence each.

    ``given`` and ``true`` are float64; given may have any shape. ``wrong`` says which values are wrong, where the
    shapes are the same. ``dtype`` is the one that given was computed in, ``place`` names the sum of that number. Empty
    where no known mistake fits.
    """
    if wrong is not None and (broken := np.argwhere(~np.isfinite(given) & np.isfinite(true))).size:
        at = tuple(broken[0].tolist())
        return (
            f"{len(broken)} of {given.size} values are NaN or infinite, the first at {at}: look for a division by "
            "zero, an overflow of exp, or a value never computed",
        )
    if not np.isfinite(true).all():
        return (f"wrong shape {given.shape} instead of {true.shape}",) if wrong is None else ()
    found = _explain(name, given, true, inputs, rtol, dtype)
    if wrong is None:
        return (_about_shape(name, given.shape, true.shape, inputs, is_right=found == ()), *(found or ()))
    if not given.any():
        return found or (_zero(name),)
    return found or _by_pair(name, given, true, wrong, inputs, rtol, dtype, place)


def _about_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...], inputs: Inputs, is_right: bool) -> str:
    m, n = inputs.W.shape[1:]
    wrong = f"wrong shape {shape} instead of {expected}: "
    if is_right:
        row = " (x was given as a row)" * (name == "dx" and expected[-2:] == (1, n) and shape[-2:] == (n, 1) and n > 1)
        return f"{wrong}the values are right{row}; give them the right shape with .reshape{expected or '(())'}"
    if name not in ("dW", "dx"):
        return f"{wrong}each pair has {'one loss' if name == 'loss' else 'one value for each row of W'}"
    rule = f"{wrong}a gradient has exactly the shape of its input, here of {name[1]}"
    if name == "dW" and m != n and shape[-2:] == (n, m):
        return f"{rule}; this is the shape of Wᵀ"
    if name == "dx" and shape[-2:] == (m, n) != expected[-2:]:
        return f"{rule}; this is the shape of W, so a sum is missing"
    return rule


def _explain(name: str, given: Array, true: Array, inputs: Inputs, rtol: float, dtype: DType) -> tuple[str, ...] | None:
    if inputs.cells * inputs.terms == 0 or given.size == 0:
        return None
    return Search(name, given, true, inputs, rtol, dtype).explanation()


def _by_pair(
    name: str,
    given: Array,
    true: Array,
    wrong: Array,
    inputs: Inputs,
    rtol: float,
    dtype: DType,
    place: Callable[[int], str],
) -> tuple[str, ...]:
    """The mistakes of each group of pairs that have the same, where the pairs of a batch differ."""
    if inputs.cells < 2:
        return ()
    given, true, wrong = (a.reshape(inputs.cells, -1) for a in (given, true, wrong))
    left = np.flatnonzero(wrong.any(axis=1))
    sentences: list[str] = []
    for _ in range(_MOST_GROUPS):
        for group in (left, left[:1]):  # all that are left may have one mistake
            found = _explain(name, given[group], true[group], inputs.at(group), rtol, dtype)
            found = found or ((_zero(name),) if group.size and not given[group].any() else None)
            if found or len(group) < 2:
                break
        if not found:
            break
        sentences += [f"{_named(group, place)}: {mistake}" for mistake in found]
        left = np.setdiff1d(left, group)
    return tuple(sentences)


def _named(group: Array, place: Callable[[int], str]) -> str:
    more = f" and {len(group) - 4} more" if len(group) > 4 else ""
    return f"pair{'s' * (len(group) > 1)} {', '.join(place(int(k)) for k in group[:4])}{more}"
