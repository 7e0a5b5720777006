"""Finds the known mistakes that made a wrong gradient.

Every recipe of recipes.py is computed; of those that give the values in question, the one with the fewest mistakes is
the explanation.
"""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sigmoid_l2.explain.recipes import CHAINS, FORMS, DType, Pairs, Recipe, eps_of

Array = npt.NDArray[Any]

# The largest accepted probability that a random wrong gradient fits the explanation, or one tried before it.
# Measured on 3x3 gradients rounded to 3 digits: 4 of 5 combinations of mistakes are found. A mistake that is not there
# is found in no random gradient, and in 1 of 70 that are the true gradient times a random number. Gradients of one or
# two digits rarely hold enough information to name anything.
_CHANCE = 1e-2

_CANCELS = "1 - s is computed by subtraction, which cancels where q is large; use 1 / (1 + exp(q)) for it"
_E_CANCELS = f"{_CANCELS}, c, and for s - y, where y is more than 1/2, (1 - y) - c"
_ZERO = "every value is 0: not computed, or rounded away"


def name_mistakes(name: str, given: Array, true: Array, pairs: Pairs, rtol: float, dtype: DType) -> tuple[str, ...]:
    """The mistakes that made the wrong gradient ``given`` of ``name`` ("dW" or "dx"), a sentence each.

    ``given`` is float64, of any shape; ``dtype`` is the one it was computed in. Empty where no known mistake fits.
    """
    broken = np.argwhere(~np.isfinite(given) & np.isfinite(true)) if given.shape == true.shape else np.array([])
    if broken.size:
        return (
            f"{len(broken)} of {given.size} values are NaN or infinite, the first at {tuple(broken[0].tolist())}: look "
            "for a division by zero, an overflow of exp, or a value never computed",
        )
    found = _explain(name, given, true, pairs, rtol, dtype)
    if given.shape == true.shape:
        return found or ((_ZERO,) if not given.any() else ())
    shape = f"wrong shape {given.shape} instead of {true.shape}: "
    if found == ():
        return (f"{shape}the values are right; give them the right shape with .reshape{true.shape}",)
    return (f"{shape}a gradient has exactly the shape of its input, here of {name[1]}", *(found or ()))


def _explain(name: str, given: Array, true: Array, pairs: Pairs, rtol: float, dtype: DType) -> tuple[str, ...] | None:
    """The fewest mistakes that give the values of ``given``, whatever its shape; None where no recipe does."""
    if pairs.cells == 0 or given.size == 0 or given.size % pairs.cells:
        return None
    # A large rtol would accept nearly every recipe, and an explanation need not be better than single precision.
    rtol = min(max(rtol, 1e-5), 1e-3)
    digits = _digits(given, true, 4 * eps_of(dtype))
    precisions: list[tuple[tuple[str, ...], bool, int]] = [((), False, 0)]
    if np.any(pairs.c < eps_of(dtype) / rtol):
        precisions.append(((_E_CANCELS if pairs.target else _CANCELS,), True, 0))
    if digits:
        keep = "keep every intermediate in full precision and round only what you print"
        precisions.append(((f"rounded to {digits} digit{'s' * (digits > 1)}: {keep}",), False, digits))
    recipes = [
        Recipe(by_form + chain.mistakes + by_precision, form, chain, cancels, k)
        for (by_form, form), chain, (by_precision, cancels, k) in itertools.product(
            FORMS[name], CHAINS[pairs.target], precisions
        )
    ]
    given = given.reshape(pairs.cells, -1)
    few = pairs.first(64)  # tried first: they rule out most recipes
    for count, group in itertools.groupby(sorted(recipes, key=lambda r: len(r.mistakes)), lambda r: len(r.mistakes)):
        tried = sum(len(r.mistakes) <= count for r in recipes) / len(precisions)
        fits = [
            fit
            for recipe in group
            if _fit(recipe, given[:64], few, rtol, dtype, math.inf)
            and (fit := _fit(recipe, given, pairs, rtol, dtype, _CHANCE / tried))
        ]
        if fits:
            best = min(fits, key=lambda fit: fit.deviation)
            twins = {fit.mistakes for fit in fits if np.all(np.abs(fit.values - best.values) <= fit.near)}
            return _either([best.mistakes, *sorted(twins - {best.mistakes})])
    return None


class _Fit(NamedTuple):
    mistakes: tuple[str, ...]
    deviation: float  # sum over all values
    values: Array  # (cells, values of a cell)
    near: Array  # values closer than this cannot be told apart


def _fit(recipe: Recipe, given: Array, pairs: Pairs, rtol: float, dtype: np.dtype[Any], chance: float) -> _Fit | None:
    """Compare given (cells, values of a cell) with a recipe; None where it does not fit, or would fit too much else."""
    try:
        values, near = recipe.exact(pairs, rtol, dtype)
    except ValueError:
        return None
    if values.size != given.size:
        return None
    tolerance = (near + recipe.rounded(pairs)).reshape(given.shape)
    values, near = values.reshape(given.shape), near.reshape(given.shape)
    deviation = np.where(np.isclose(given, values, 0, 0, equal_nan=True), 0, np.abs(given - values))
    if not np.all((deviation <= tolerance) | (deviation == 0)):
        return None
    fit = _Fit(recipe.mistakes, float(deviation.sum()), values, near + 0.5 * 10**-recipe.digits * bool(recipe.digits))
    if len(recipe.mistakes) == recipe.cancels + bool(recipe.digits):
        return fit  # only the precision is wrong: that can be said of the values in any case
    # A random value of this size fits with the probability tolerance / size. Only a few numbers are independent: the
    # g_i of a pair or, where a pair's dx has fewer values, those values; a sum over pairs has no more.
    size = np.maximum(np.abs(given), np.abs(values))
    odds = np.log(np.minimum(tolerance[size > 0] / size[size > 0], 1))
    numbers = len(given) * min(pairs.W.shape[1], given.shape[1])
    return fit if odds.size and odds.mean() * numbers <= math.log(chance) else None


def _either(explanations: list[tuple[str, ...]]) -> tuple[str, ...]:
    """One explanation; of several equally good ones the mistakes in all of them, and one sentence with the others."""
    first = explanations[0]
    if len(explanations) == 1:
        return first
    common = [mistake for mistake in first if all(mistake in other for other in explanations)]
    rest = ["; and ".join(m for m in explanation if m not in common) for explanation in explanations]
    return (*common, f"one of these, which this W and x cannot tell apart: {' | '.join(rest)}")


def _digits(given: Array, true: Array, tolerance: float) -> int:
    """The fewest decimals (1 to 6) to which all given values are rounded and the true ones are not; 0 for none."""

    def rounded(a: Array, digits: int) -> bool:
        return bool(np.all(np.abs(a - np.round(a, digits)) <= tolerance * np.abs(a)))

    return next((k for k in range(1, 7) if given.any() and rounded(given, k) and not rounded(true, k)), 0)
