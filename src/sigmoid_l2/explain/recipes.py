"""The ways to compute a gradient that people take, right and wrong: a form and a chain are a recipe.

Each mistake has a sentence, in the words of the formula, that says what is wrong and how to correct it.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sigmoid_l2.explain.trace import residual
from sigmoid_l2.kernels.reference import sigmoid_and_complement

Array = npt.NDArray[Any]
DType = np.dtype[Any]

# In these {e} is the error: e = s - y where there is a target, else s.
_EXTRA_2 = "an extra factor 2: the only 2 is the one in df/ds = 2{e}; take the other out"
_MISSING_2 = "the factor 2 is missing: f is the sum of {e}², so df/ds = 2{e}; put it in"
_TWICE = "df/ds = 2{e} is applied twice: the chain has each factor once, g = df/ds · ds/dq = 2{e} · s(1 - s)"
_NO_DS = "df/ds = 2{e} is left out: the chain has each factor once, g = df/ds · ds/dq = 2{e} · s(1 - s)"
_NO_DQ = "ds/dq = s(1 - s) is left out: the chain has each factor once, g = df/ds · ds/dq = 2{e} · s(1 - s)"
_NO_COMPLEMENT = "(1 - s) is missing: the derivative of the sigmoid is ds/dq = s(1 - s); put it in"
_SIGN = "the opposite sign: the gradient points to where f grows; take the minus out"
# With a target.
_HALF = "the factor 2 is missing, as in the gradient of ½||s - y||²: f is the sum of e², so df/ds = 2e; put it in"
_NO_E = "the error e is left out, the derivative is taken of s only: df/ds = 2e with e = s - y; put e in"
_NO_Y = "y is left out, as in the gradient of ||s||²: df/ds = 2e with the error e = s - y, not 2s; put y in"
_ERROR_SIGN = "the opposite sign: the error is e = s - y, not y - s, and no minus stands in front; take the minus out"

_TRANSPOSED = "dW is transposed, x gᵀ instead of g xᵀ: row i belongs to g_i; use np.outer(g, x)"
_NO_OUTER = "elementwise product of g and x instead of the outer product g xᵀ; use np.outer(g, x)"
_ELEMENTWISE = "elementwise product with Wᵀ instead of the matrix product Wᵀ g, which sums over i; use W.T @ g"
_NO_TRANSPOSE = "W instead of Wᵀ: dx_j is the sum over i of W_ij g_i, along a column of W; use W.T @ g"
_NO_SUM = "W_ij g_i are the right terms, but their sum over i is missing: use W.T @ g, or (W * g).sum(axis=0)"


class Pairs(NamedTuple):
    """The right intermediates of a batch, in float64: ``cells`` sums, each of neighbouring pairs that share an input.

    A cell has ``terms`` pairs: one where the gradient in question is not summed.
    """

    W: Array  # (B, m, n)
    x: Array  # (B, n)
    y: Array  # (B, m)     0 without a target
    q: Array  # (B, m)
    s: Array  # (B, m)
    c: Array  # (B, m)     1 - s
    e: Array  # (B, m)     s - y
    e_size: Array  # (B, m)     what the error of e is relative to: |s| + |y|, but |e| where y is 0 or 1
    q_size: Array  # (B, m)     sum over j of |W_ij x_j|
    target: bool
    cells: int
    terms: int

    @classmethod
    def of(cls, W: Array, x: Array, y: Array | None, cells: int, terms: int) -> "Pairs":
        """The pairs of W (B, m, n), x (B, n) and the target y (B, m), if there is one."""
        products = W * x[:, None, :]
        q = products.sum(axis=2)
        s, c = sigmoid_and_complement(q)
        target, y = y is not None, np.zeros_like(q) if y is None else y
        e = residual(s, c, y)
        e_size = np.where((y == 0) | (y == 1), np.abs(e), s + np.abs(y))
        return cls(W, x, y, q, s, c, e, e_size, np.abs(products).sum(axis=2), target, cells, terms)

    def first(self, cells: int) -> "Pairs":
        """The first ``cells`` alone."""
        cells = min(cells, self.cells)
        pairs = cells * self.terms
        arrays: dict[str, Any] = {name: a[:pairs] for name, a in self._asdict().items() if isinstance(a, np.ndarray)}
        return self._replace(cells=cells, **arrays)

    def summed(self, a: Array) -> Array:
        """The sum of ``a`` (B, ...) over the pairs of each cell."""
        return a if self.terms == 1 else a.reshape(self.cells, self.terms, *a.shape[1:]).sum(axis=1)


class Chain(NamedTuple):
    """One way to compute g, factor · (2e)^ds · s^a · (1 - s)^c, and the mistakes in it."""

    mistakes: tuple[str, ...]
    factor: float
    ds: int
    a: int
    c: int
    with_y: bool = True  # else e is s

    def g(self, pairs: Pairs) -> Array:
        e = pairs.e if self.with_y else pairs.s
        return np.asarray(self.factor * (2 * e) ** self.ds * pairs.s**self.a * pairs.c**self.c)

    def size(self, pairs: Pairs) -> Array:
        """What the error of g is relative to: |g|, but with e_size for one of its e."""
        if not (self.ds and self.with_y):
            return np.abs(self.g(pairs))
        return np.abs(self._replace(ds=self.ds - 1).g(pairs)) * 2 * pairs.e_size

    def spread(self, pairs: Pairs) -> Array:
        """The largest error of g, in units of u, where every intermediate is rounded with an error of up to u.

        It is of first order and holds for every order of the multiplications. The errors of q and s act through dg/ds;
        to them add those of s - y, of ds/dq, of the product of two factors where there are three, and of g itself.
        """
        s, factor = pairs.s, abs(self.factor)
        e = pairs.e if self.with_y else s
        chain = s**self.a * pairs.c**self.c
        by_e = factor * 2**self.ds * self.ds * e ** max(self.ds - 1, 0) * chain
        slope = by_e + factor * (2 * e) ** self.ds * (self.a * pairs.c**self.c - self.c * s**self.a)
        by_s = np.abs(slope) * (1 + s * pairs.c)
        by_ds_dq = factor * np.abs(2 * e) ** self.ds * self.a
        by_product = factor * 2 * np.abs(e) * (self.ds == 2)
        return np.asarray(by_s + np.abs(by_e) * pairs.target + by_ds_dq + by_product + max(factor, 1))


def _chains(target: bool) -> tuple[Chain, ...]:
    """All chains, with a target or without; the first is right."""
    half, sign = (_HALF, _ERROR_SIGN) if target else (_MISSING_2, _SIGN)
    twos = (1.0, ()), (2.0, (_EXTRA_2,)), (0.5, (half,))
    errors = ((True, ()), (False, (_NO_Y,))) if target else ((True, ()),)
    slopes = [  # df/ds: its 2, its power of 2e, and whether e has y in it
        (factor, ds, with_y, two + twice + y)
        for (factor, two), (ds, twice), (with_y, y) in itertools.product(twos, ((1, ()), (2, (_TWICE,))), errors)
    ]
    if target:
        slopes += [(1.0, 0, True, (_NO_DS,)), (2.0, 0, True, (_NO_E,))]
    else:
        slopes += [(factor, 0, True, (*two, _NO_DS)) for factor, two in twos]
    # Without a target, what leaves ds/dq out and has one more mistake would equal a combination of others, and nothing
    # could tell the two apart.
    sigmoids = (1, 1, ()), (1, 0, (_NO_COMPLEMENT,)), *[(0, 0, (_NO_DQ,))] * target
    chains = [
        Chain(by_slope + by_sigmoid + minus, factor * plus, ds, a, c, with_y)
        for (factor, ds, with_y, by_slope), (a, c, by_sigmoid), (plus, minus) in itertools.product(
            slopes, sigmoids, ((1, ()), (-1, (sign,)))
        )
        if ds or a
    ]
    if not target:
        chains.append(Chain((_NO_DQ,), 1.0, 1, 0, 0))
    e = "e" if target else "s"
    return tuple(chain._replace(mistakes=tuple(text.replace("{e}", e) for text in chain.mistakes)) for chain in chains)


CHAINS = {target: _chains(target) for target in (False, True)}

# How a gradient is made of W (B, m, n), x (B, n) and g (B, m), linear in each. The first form is right. A form raises
# ValueError where its shapes do not broadcast, as the user's program would.
Form = Callable[[Array, Array, Array], Array]
FORMS: dict[str, tuple[tuple[tuple[str, ...], Form], ...]] = {
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


class Recipe(NamedTuple):
    """A form and a chain, and the precision in which they are computed."""

    mistakes: tuple[str, ...]  # those of the form, of the chain and of the precision
    form: Form
    chain: Chain
    cancels: bool = False  # 1 - s was subtracted
    digits: int = 0  # every intermediate was rounded to this many digits; 0: none was

    def exact(self, pairs: Pairs, rtol: float, dtype: DType) -> tuple[Array, Array]:
        """The recipe's values without rounding, and the largest error of values computed in ``dtype``.

        That error is rtol and what sums in any order may lose: 2 delta_i is the relative error of g_i that the
        rounding of q_i, a sum of n terms, causes; 8 eps stand for the rest of the chain, and m eps for the sum over i.
        Each term of that sum has its own error, so the error of dx is relative to the sum of the |W_ij g_i|: dx itself
        may cancel to 0. So is that of a sum over pairs, of which a long one loses its square root in eps, as random
        errors add up. Errors below the smallest normal number do not count.
        """
        given = pairs
        if self.cancels:
            s = 1 / (1 + np.exp(-pairs.q.astype(dtype)))
            c, e = (1 - s).astype(np.float64), (s - pairs.y.astype(dtype)).astype(np.float64)
            given = pairs._replace(c=c, e=np.where(pairs.y > 0.5, e, pairs.e))
        values = pairs.summed(self.form(pairs.W, pairs.x, self.chain.g(given)))
        m, n = pairs.W.shape[1:]
        eps = eps_of(dtype)
        delta = n * (eps / 2) * pairs.q_size
        rest = m + 7 + math.sqrt(pairs.terms)
        error = self.chain.size(given) * np.minimum(2 * delta + rest * eps, 1)  # at 1 no digit is promised
        if self.cancels:
            # Where the subtraction left anything of c, c is off by at most one spacing of the numbers just below 1.
            # So is e where it cancels.
            spacing = np.where(pairs.c > eps / 8, eps, 0)
            error += np.abs(self.chain._replace(c=0).g(given)) * spacing
            if self.chain.ds and self.chain.with_y:
                e_spacing = np.where(pairs.y > 0.5, spacing, 0)
                error += np.abs(self.chain._replace(ds=self.chain.ds - 1).g(given)) * 2 * self.chain.ds * e_spacing
        return values, rtol * np.abs(values) + self._spread(pairs, error) + np.finfo(dtype).smallest_normal

    def rounded(self, pairs: Pairs) -> Array:
        """The error that comes on top where every intermediate is rounded to ``digits``."""
        if not self.digits:
            return np.zeros(())
        # The factor 1.1 covers the terms beyond first order, which at one digit are that large.
        return np.asarray(1.1 * 0.5 * 10**-self.digits * (self._spread(pairs, self.chain.spread(pairs)) + 1))

    def _spread(self, pairs: Pairs, error: Array) -> Array:
        """The error of the gradient where the error of g_i is up to ``error[i]``."""
        return np.nan_to_num(pairs.summed(self.form(np.abs(pairs.W), np.abs(pairs.x), error)))


def true_gradient(name: str, pairs: Pairs, rtol: float, dtype: DType) -> tuple[Array, Array]:
    """The right ``name`` ("dW" or "dx") of a batch, and the largest error of values computed in ``dtype``."""
    return Recipe((), FORMS[name][0][1], CHAINS[pairs.target][0]).exact(pairs, rtol, dtype)


def eps_of(dtype: DType) -> float:
    return float(np.finfo(dtype).eps) + float(np.finfo(np.float64).eps)  # of the user, and of the true values
