"""What is wrong with a gradient, or with a step before it, in sentences: for all pairs, or pair by pair."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from sigmoid_l2.explain.program import Inputs
from sigmoid_l2.explain.search import Search

Array = npt.NDArray[Any]
DType = np.dtype[Any]

# The most groups of pairs, each with the same mistakes, that are told of a batch.
_MOST_GROUPS = 3

_ZERO = (
    "every value is 0: not computed, rounded away, in an array of integers, or s(1 - s) is 0 because s is rounded to 0 or 1 or "
    "the brackets are lost; write ds_dq = s * (1 - s)"
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

    ``given`` and ``true`` are float64; given may have any shape. ``wrong`` says which values are wrong, where the shapes
    are the same. ``dtype`` is the one that given was computed in, ``place`` names the cell of that index. Empty where no
    known mistake fits.
    """
    if wrong is not None and (broken := np.argwhere(~np.isfinite(given) & np.isfinite(true))).size:
        at = tuple(broken[0].tolist())
        return (
            f"{len(broken)} of {given.size} values are NaN or infinite, the first at {at}: look for a division by zero, an "
            "overflow of exp, or a value never computed",
        )
    found = _explain(name, given, true, inputs, rtol, dtype)
    if wrong is not None:
        if found or not given.any():
            return found or (_ZERO,)
        return _by_pair(name, given, true, wrong, inputs, rtol, dtype, place)
    shape = f"wrong shape {given.shape} instead of {true.shape}: "
    rule = _of_shape(name, given.shape, true.shape, inputs)
    if found == ():
        row = "; x was given as a row" * (name == "dx" and true.shape[-2:-1] == (1,) and given.shape[-1:] == (1,))
        return (f"{shape}the values are right{row}; give them the right shape with .reshape{true.shape}",)
    return (f"{shape}{rule}", *(found or ()))


def _of_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...], inputs: Inputs) -> str:
    m, n = inputs.W.shape[1:]
    if name not in ("dW", "dx"):
        return f"each pair has {'one value of it' if name == 'loss' else 'one value for each row of W'}"
    rule = f"a gradient has exactly the shape of its input, here of {name[1]}"
    tail = shape[-2:]
    if name == "dW" and m != n and tail == (n, m):
        return f"{rule}; this is the shape of Wᵀ"
    if name == "dW" and tail in ((n,), (n, 1)) and m != n:
        return f"{rule}; this is the shape of x: are dW and dx swapped?"
    if name == "dx" and tail == (m, n) and (m, n) != expected[-2:]:
        return f"{rule}; this is the shape of W: is a sum missing, or are dW and dx swapped?"
    return rule


def _explain(name: str, given: Array, true: Array, inputs: Inputs, rtol: float, dtype: DType) -> tuple[str, ...] | None:
    if inputs.cells == 0 or given.size == 0:
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
    cells = inputs.cells
    if cells < 2:
        return ()
    given, true, wrong = (a.reshape(cells, -1) for a in (given, true, wrong))
    left = np.flatnonzero(wrong.any(axis=1))
    sentences: list[str] = []
    for _ in range(_MOST_GROUPS):
        if not left.size:
            break
        # Where all wrong pairs have one mistake, this is one search.
        found = _explain(name, given[left], true[left], _cells(inputs, left), rtol, dtype)
        group = left
        if found is None:
            group = left[:1]
            found = _explain(name, given[group], true[group], _cells(inputs, group), rtol, dtype)
            if not found and not given[group].any():
                found = (_ZERO,)
        if not found:
            break
        names = ", ".join(place(int(k)) for k in group[:4]) + (f" and {len(group) - 4} more" if len(group) > 4 else "")
        sentences += [f"pair{'s' * (len(group) > 1)} {names}: {mistake}" for mistake in found]
        left = np.setdiff1d(left, group)
    return tuple(sentences)


def _cells(inputs: Inputs, cells: Array) -> Inputs:
    pairs = (cells[:, None] * inputs.terms + np.arange(inputs.terms)).ravel()
    return inputs.take(pairs, len(cells), inputs.terms)
