"""Finds the known mistakes that made a wrong gradient.

A recipe is the right computation with some mistakes in it. Every recipe is computed; of those that give the values in
question, the one with the fewest mistakes is the explanation.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sigmoid_l2.kernels.reference import sigmoid_and_complement

Array = npt.NDArray[Any]
DType = np.dtype[Any]

# The largest accepted probability that a random wrong gradient fits the explanation, or one tried before it.
# Measured on 3x3 gradients rounded to 3 digits: 4 of 5 combinations of mistakes are found. A mistake that is not there
# is found in no random gradient, and in 1 of 70 that are the true gradient times a random number. Gradients of one or
# two digits rarely hold enough information to name anything.
_CHANCE = 1e-2

_EXTRA_2 = "an extra factor 2: the only 2 is the one in df/ds = 2s; take the other out"
_MISSING_2 = "the factor 2 is missing: f is the sum of s², so df/ds = 2s; put it in"
_TWICE = "df/ds = 2s is applied twice: the chain has each factor once, g = df/ds · ds/dq = 2s · s(1 - s)"
_NO_DS = "df/ds = 2s is left out: the chain has each factor once, g = df/ds · ds/dq = 2s · s(1 - s)"
_NO_DQ = "ds/dq = s(1 - s) is left out: the chain has each factor once, g = df/ds · ds/dq = 2s · s(1 - s)"
_NO_COMPLEMENT = "(1 - s) is missing: the derivative of the sigmoid is ds/dq = s(1 - s); put it in"
_SIGN = "the opposite sign: the gradient points to where f grows; take the minus out"
_TRANSPOSED = "dW is transposed, x gᵀ instead of g xᵀ: row i belongs to g_i; use np.outer(g, x)"
_NO_OUTER = "elementwise product of g and x instead of the outer product g xᵀ; use np.outer(g, x)"
_ELEMENTWISE = "elementwise product with Wᵀ instead of the matrix product Wᵀ g, which sums over i; use W.T @ g"
_NO_TRANSPOSE = "W instead of Wᵀ: dx_j is the sum over i of W_ij g_i, along a column of W; use W.T @ g"
_NO_SUM = "W_ij g_i are the right terms, but their sum over i is missing: use W.T @ g, or (W * g).sum(axis=0)"
_CANCELS = "1 - s is computed by subtraction, which cancels where q is large; use 1 / (1 + exp(q)) for it"
_ZERO = "every value is 0: not computed, or rounded away"


class Pairs(NamedTuple):
    """The right intermediates of a batch, in float64."""

    W: Array  # (B, m, n)
    x: Array  # (B, n)
    q: Array  # (B, m)
    s: Array  # (B, m)
    c: Array  # (B, m)     1 - s
    q_size: Array  # (B, m)     sum over j of |W_ij x_j|

    @classmethod
    def of(cls, W: Array, x: Array) -> "Pairs":
        terms = W * x[:, None, :]
        q = terms.sum(axis=2)
        return cls(W, x, q, *sigmoid_and_complement(q), np.abs(terms).sum(axis=2))


class _Chain(NamedTuple):
    """One way to compute g, factor · (2s)^ds · s^a · (1 - s)^c, and the mistakes in it."""

    mistakes: tuple[str, ...]
    factor: float
    ds: int
    a: int
    c: int

    def g(self, s: Array, c: Array) -> Array:
        return np.asarray(self.factor * (2 * s) ** self.ds * s**self.a * c**self.c)

    def spread(self, s: Array, c: Array) -> Array:
        """The largest error of g, in units of u, where every intermediate is rounded with an error of up to u.

        It is of first order and holds for every order of the multiplications. The errors of q and s act through dg/ds;
        to them add those of ds/dq, of the product of two factors where there are three, and of g itself.
        """
        factor, power = abs(self.factor), self.ds + self.a
        slope = power * s ** max(power - 1, 0) * c**self.c - self.c * s**power
        by_s = factor * 2**self.ds * np.abs(slope) * (1 + s * c)
        by_ds_dq = factor * (2 * s) ** self.ds * self.a
        by_product = factor * 2 * s * (self.ds == 2)
        return np.asarray(by_s + by_ds_dq + by_product + max(factor, 1))


# The first chain is right. The last is not combined with the other mistakes: it would equal a combination of others,
# and nothing could tell the two apart.
_CHAINS = (
    *(
        _Chain(two + twice + complement + sign, factor * plus, ds, 1, c)
        for (factor, two), (ds, twice), (c, complement), (plus, sign) in itertools.product(
            ((1.0, ()), (2.0, (_EXTRA_2,)), (0.5, (_MISSING_2,))),
            ((1, ()), (2, (_TWICE,)), (0, (_NO_DS,))),
            ((1, ()), (0, (_NO_COMPLEMENT,))),
            ((1, ()), (-1, (_SIGN,))),
        )
    ),
    _Chain((_NO_DQ,), 1.0, 1, 0, 0),
)

# How a gradient is made of W (B, m, n), x (B, n) and g (B, m), linear in each. The first form is right. A form raises
# ValueError where its shapes do not broadcast, as the user's program would.
_Form = Callable[[Array, Array, Array], Array]
_FORMS: dict[str, tuple[tuple[tuple[str, ...], _Form], ...]] = {
    "dW": (
        ((), lambda W, x, g: g[:, :, None] * x[:, None, :]),
        ((_TRANSPOSED,), lambda W, x, g: x[:, :, None] * g[:, None, :]),
        ((_NO_OUTER,), lambda W, x, g: g * x),
    ),
    "dx": (
        ((), lambda W, x, g: (W.swapaxes(1, 2) @ g[:, :, None])[:, :, 0]),
        ((_NO_TRANSPOSE,), lambda W, x, g: (W @ g[:, :, None])[:, :, 0]),
        ((_ELEMENTWISE,), lambda W, x, g: W.swapaxes(1, 2) * g[:, None, :]),  # g as a row
        ((_ELEMENTWISE,), lambda W, x, g: W.swapaxes(1, 2) * g[:, :, None]),  # g as a column
        ((_NO_SUM,), lambda W, x, g: W * g[:, :, None]),
        ((_ELEMENTWISE, _NO_TRANSPOSE), lambda W, x, g: W * g[:, None, :]),
    ),
}


class _Recipe(NamedTuple):
    """A form and a chain, and the precision in which they are computed."""

    mistakes: tuple[str, ...]  # those of the form, of the chain and of the precision
    form: _Form
    chain: _Chain
    cancels: bool = False  # 1 - s was subtracted
    digits: int = 0  # every intermediate was rounded to this many digits; 0: none was

    def exact(self, pairs: Pairs, rtol: float, dtype: np.dtype[Any]) -> tuple[Array, Array]:
        """The recipe's values without rounding, and the largest error of values computed in ``dtype``.

        That error is rtol and what sums in any order may lose: 2 dq_i is the relative error of g_i that the
        rounding of q_i, a sum of n terms, causes; 8 eps stand for the rest of the chain, and m eps for the sum over i.
        Each term of that sum has its own error, so the error of dx is relative to the sum of the |W_ij g_i|: dx itself
        may cancel to 0. Errors below the smallest normal number do not count.
        """
        c = pairs.c
        if self.cancels:
            c = (1 - 1 / (1 + np.exp(-pairs.q.astype(dtype)))).astype(np.float64)
        g = self.chain.g(pairs.s, c)
        values = self.form(pairs.W, pairs.x, g)
        m, n = pairs.W.shape[1:]
        eps = _eps(dtype)
        dq = n * (eps / 2) * pairs.q_size
        error = np.abs(g) * np.minimum(2 * dq + (m + 8) * eps, 1)  # at 1 no digit is promised
        if self.cancels:
            # Where the subtraction left anything of c, c is off by at most one spacing of the numbers just below 1.
            error += np.abs(self.chain._replace(c=0).g(pairs.s, c)) * np.where(pairs.c > eps / 8, eps, 0)
        return values, rtol * np.abs(values) + self._spread(pairs, error) + np.finfo(dtype).smallest_normal

    def rounded(self, pairs: Pairs) -> Array:
        """The error that comes on top where every intermediate is rounded to ``digits``."""
        if not self.digits:
            return np.zeros(())
        # The factor 1.1 covers the terms beyond first order, which at one digit are that large.
        return np.asarray(1.1 * 0.5 * 10**-self.digits * (self._spread(pairs, self.chain.spread(pairs.s, pairs.c)) + 1))

    def _spread(self, pairs: Pairs, error: Array) -> Array:
        """The error of the gradient where the error of g_i is up to ``error[i]``."""
        return np.nan_to_num(self.form(np.abs(pairs.W), np.abs(pairs.x), error))


def true_gradient(name: str, pairs: Pairs, rtol: float, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """The right ``name`` ("dW" or "dx") of a batch, and the largest error of values computed in ``dtype``."""
    return _Recipe((), _FORMS[name][0][1], _CHAINS[0]).exact(pairs, rtol, dtype)


def _eps(dtype: np.dtype[Any]) -> float:
    return float(np.finfo(dtype).eps) + float(np.finfo(np.float64).eps)  # of the user, and of the true values


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
    B = len(pairs.q)
    if B == 0 or given.size == 0 or given.size % B:
        return None
    # A large rtol would accept nearly every recipe, and an explanation need not be better than single precision.
    rtol = min(max(rtol, 1e-5), 1e-3)
    digits = _digits(given, true, 4 * _eps(dtype))
    precisions: list[tuple[tuple[str, ...], bool, int]] = [((), False, 0)]
    if np.any(pairs.c < _eps(dtype) / rtol):
        precisions.append(((_CANCELS,), True, 0))
    if digits:
        keep = "keep every intermediate in full precision and round only what you print"
        precisions.append(((f"rounded to {digits} digit{'s' * (digits > 1)}: {keep}",), False, digits))
    recipes = [
        _Recipe(by_form + chain.mistakes + by_precision, form, chain, cancels, k)
        for (by_form, form), chain, (by_precision, cancels, k) in itertools.product(_FORMS[name], _CHAINS, precisions)
    ]
    given = given.reshape(B, -1)
    few = Pairs(*(a[:64] for a in pairs))  # tried first: they rule out most recipes
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
    values: Array  # (B, values of a pair)
    near: Array  # values closer than this cannot be told apart


def _fit(recipe: _Recipe, given: Array, pairs: Pairs, rtol: float, dtype: np.dtype[Any], chance: float) -> _Fit | None:
    """Compare given (B, values of a pair) with a recipe; None where it does not fit, or would fit too much else."""
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
    # g_i of a pair or, where a pair's dx has fewer values, those values.
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
