"""``check_grad``: is a gradient written by hand right, and if not, which mistakes made it?

A recipe is the right computation with some mistakes in it. Every recipe is computed, and the one with the fewest
mistakes that gives the given values explains them.
"""

import itertools
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sigmoid_l2.kernels.reference import sigmoid_and_complement
from sigmoid_l2.problem import _as_array, validate

Array = npt.NDArray[Any]
Form = Callable[[Array, Array, Array], Array]  # W (B, m, n), x (B, n), g (B, m) -> a gradient

_WIDTH = 100  # columns of the printed report
_SMALL = 36  # true gradients of up to this many values are printed

# An explanation is believed where random values would fit it, and all that were tried before it, less often than this.
_CHANCE = 1e-3

# Recipes are tried on this many pairs first; only those that fit are computed for the whole batch.
_FIRST_PAIRS = 64

_EXTRA_2 = "an extra factor 2: the only 2 is the one in df/ds = 2s; take the other out"
_MISSING_2 = "the factor 2 is missing: f is the sum of s², so df/ds = 2s; put it in"
_TWICE = "df/ds = 2s is applied twice: the chain has each factor once, g = df/ds · ds/dq = 2s · s(1 - s)"
_NO_DS = "df/ds = 2s is left out: the chain has each factor once, g = df/ds · ds/dq = 2s · s(1 - s)"
_NO_DQ = "ds/dq = s(1 - s) is left out: the chain has each factor once, g = df/ds · ds/dq = 2s · s(1 - s)"
_NO_COMPLEMENT = "(1 - s) is missing: the derivative of the sigmoid is ds/dq = s(1 - s); put it in"
_SIGN = "the opposite sign: the gradient points to where the loss grows; leave the minus out"
_TRANSPOSED = "dW is transposed, x gᵀ instead of g xᵀ: row i belongs to g_i; use np.outer(g, x)"
_NO_OUTER = "elementwise product of g and x instead of the outer product g xᵀ; use np.outer(g, x)"
_ELEMENTWISE = "elementwise product with Wᵀ instead of the matrix product Wᵀ g, which sums over i; use W.T @ g"
_NO_TRANSPOSE = "W instead of Wᵀ: dx_j is the sum over i of W_ij g_i, along a column of W; use W.T @ g"
_CANCELS = "1 - s is computed by subtraction, which cancels where q is large; use 1 / (1 + exp(q)) for it"
_ROUNDED = "rounded to {} digits: keep every intermediate in full precision and round only what you print"


class _Chain(NamedTuple):
    """One way to compute g: factor · (2s)^ds · s^a · (1 - s)^c; the right one is 1 · (2s) · s · (1 - s)."""

    mistakes: tuple[str, ...] = ()
    factor: float = 1.0
    ds: int = 1
    a: int = 1
    c: int = 1

    def g(self, s: Array, c: Array) -> Array:
        return self.factor * (2 * s) ** self.ds * s**self.a * c**self.c

    def spread(self, s: Array, c: Array) -> Array:
        """What g may be off, in half units of the last digit, where every intermediate is rounded to that digit.

        To first order: q and s through the derivative of g, then ds/dq, the partial product, and g itself.
        """
        factor, power = abs(self.factor), self.ds + self.a
        slope = power * s ** max(power - 1, 0) * c**self.c - self.c * s**power
        by_s = factor * 2**self.ds * np.abs(slope) * (1 + s * c)
        by_ds_dq = factor * (2 * s) ** self.ds * self.a
        by_product = factor * 2 * s * (self.ds == 2)
        return np.asarray(by_s + by_ds_dq + by_product + max(factor, 1))

def _chains() -> Iterator[_Chain]:
    twos = ((1.0, ()), (2.0, (_EXTRA_2,)), (0.5, (_MISSING_2,)))
    powers = ((1, ()), (2, (_TWICE,)), (0, (_NO_DS,)))
    complements = ((1, ()), (0, (_NO_COMPLEMENT,)))
    signs = ((1.0, ()), (-1.0, (_SIGN,)))
    for two, ds, c, sign in itertools.product(twos, powers, complements, signs):
        yield _Chain(two[1] + ds[1] + c[1] + sign[1], sign[0] * two[0], ds[0], 1, c[0])
    # Combined with the others this one would give what they give together, and could not be told from them.
    yield _Chain((_NO_DQ,), 1.0, 1, 0, 0)


# Each raises ValueError where the shapes do not broadcast, as the same line in the user's program would.
_FORMS: dict[str, tuple[tuple[tuple[str, ...], Form], ...]] = {
    "dW": (
        ((), lambda W, x, g: g[:, :, None] * x[:, None, :]),
        ((_TRANSPOSED,), lambda W, x, g: x[:, :, None] * g[:, None, :]),
        ((_NO_OUTER,), lambda W, x, g: g * x),
    ),
    "dx": (
        ((), lambda W, x, g: (W.swapaxes(1, 2) @ g[:, :, None])[:, :, 0]),
        ((_NO_TRANSPOSE,), lambda W, x, g: (W @ g[:, :, None])[:, :, 0]),
        ((_ELEMENTWISE,), lambda W, x, g: W.swapaxes(1, 2) * g[:, None, :]),
        ((_ELEMENTWISE,), lambda W, x, g: W.swapaxes(1, 2) * g[:, :, None]),
        ((_ELEMENTWISE, _NO_TRANSPOSE), lambda W, x, g: W * g[:, :, None]),
        ((_ELEMENTWISE, _NO_TRANSPOSE), lambda W, x, g: W * g[:, None, :]),
    ),
}


@dataclass(frozen=True, eq=False)
class ArrayCheck:
    """What ``check_grad`` found out about one gradient. Indices are those of the expected shape."""

    name: str  # "dW" or "dx"
    ok: bool
    shape: tuple[int, ...]  # as given
    expected_shape: tuple[int, ...]
    wrong: int | None  # how many values are wrong; this and the next four are None where the shapes differ
    max_relative_error: float | None  # inf where the true value is 0 or the given one is not finite
    index: tuple[int, ...] | None  # of the worst value: the furthest beyond (or nearest to) the tolerance
    given_value: float | None
    true_value: float | None
    mistakes: tuple[str, ...]  # what is wrong and how to put it right; empty where no known mistake explains it
    true: Array = field(repr=False)  # the true gradient, float64

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        if self.ok:
            yield f"{self.name}: right"
            return
        yield f"{self.name}: WRONG"
        if self.wrong is not None:
            yield (
                f"  {self.wrong} of {self.true.size} values; the worst at {self.index}: given {self.given_value:.6g}, "
                f"true {self.true_value:.6g}, relative error {self.max_relative_error:.2g}"
            )
        for mistake in self.mistakes:
            yield textwrap.fill(mistake, _WIDTH, initial_indent="  - ", subsequent_indent="    ")
        if not self.mistakes:
            yield "  No known mistake explains it: compare each of your steps with print(trace(W, x))."
        if self.true.size <= _SMALL:
            yield f"  the true {self.name}:"
            yield textwrap.indent(np.array2string(self.true, precision=6, max_line_width=_WIDTH - 6), "      ")


@dataclass(frozen=True, eq=False, repr=False)
class GradCheck:
    """What ``check_grad`` returns: true where everything given is right; ``print`` it for the report."""

    dW: ArrayCheck | None  # noqa: N815 - None where it was not given
    dx: ArrayCheck | None

    @property
    def ok(self) -> bool:
        """Whether every gradient given is right."""
        return all(check.ok for check in (self.dW, self.dx) if check is not None)

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        return "\n".join(str(check) for check in (self.dW, self.dx) if check is not None)

    __repr__ = __str__  # what the REPL shows


def check_grad(W: Any, x: Any, *, dW: Any = None, dx: Any = None, rtol: float = 1e-5) -> GradCheck:
    """Say whether gradients of f(W, x) = ||sigmoid(W x)||^2 are right and, if not, which mistakes made them.

    The truth is computed in float64. A value is right within ``rtol`` times the true value plus what rounding in the
    given array's own dtype may do to it, so that a float32 gradient is not blamed for being float32.

    Parameters
    ----------
    W : array (..., m, n)
    x : array (..., n) or (..., n, 1)
    dW : array of W's shape, optional
    dx : array of x's shape, optional
        The gradients to check, at least one. NumPy or CuPy arrays, or array-likes; a wrong shape is reported.
    rtol : float
        The relative error that is still right.

    Raises
    ------
    TypeError
        W and x in different places; a complex or non-numeric dtype.
    ValueError
        Shapes of W and x that do not fit; neither dW nor dx given; a negative rtol.
    """
    problem = validate(W, x)
    if dW is None and dx is None:
        raise ValueError("nothing to check: give dW=, dx= or both")
    if not 0 <= rtol < np.inf:
        raise ValueError(f"rtol must be a finite number of at least 0, not {rtol}")
    W, x = _host(problem.device, problem.W), _host(problem.device, problem.x)
    with np.errstate(all="ignore"):
        pairs = _Pairs.of(W.reshape(-1, problem.m, problem.n), x.reshape(-1, problem.n))
        checks = {
            name: None if given is None else _check(name, given, problem.shape(name), pairs, rtol)
            for name, given in (("dW", dW), ("dx", dx))
        }
    return GradCheck(**checks)


def _host(device: str, a: Any) -> Array:
    return np.asarray(a.get() if device == "cuda" else a)


class _Pairs(NamedTuple):
    """The right intermediates of a batch, in float64."""

    W: Array  # (B, m, n)
    x: Array  # (B, n)
    q: Array  # (B, m)
    s: Array  # (B, m)
    c: Array  # (B, m)     1 - s
    q_size: Array  # (B, m)     sum over j of |W_ij x_j|

    @classmethod
    def of(cls, W: Array, x: Array) -> "_Pairs":
        W, x = W.astype(np.float64), x.astype(np.float64)
        q = (W @ x[:, :, None])[:, :, 0]
        return cls(W, x, q, *sigmoid_and_complement(q), (np.abs(W) @ np.abs(x)[:, :, None])[:, :, 0])

    def first(self, count: int) -> "_Pairs":
        return _Pairs(*(a[:count] for a in self))

    def bound(self, form: Form, g: Array) -> Array:
        """What errors of at most |g| in g do to a gradient at most; all forms are linear in g."""
        return form(np.abs(self.W), np.abs(self.x), np.abs(g))

    def rounding(self, form: Form, g: Array, eps: float) -> Array:
        """The accuracy contract: the absolute error that arithmetic of precision eps may leave in a gradient.

        2 dq_i is what rounding q_i, a sum of n terms, does to g_i, relative to g_i. The few eps after it stand for the
        rest of the chain, and m for the sum over i. Each term of that sum brings its own error, so that of dx is
        relative to the sum of the |W_ij g_i|: dx itself may cancel to nothing.
        """
        m, n = self.W.shape[1:]
        relative = 2 * (n * eps / 2 * self.q_size) + (m + 8) * eps
        return self.bound(form, g * np.minimum(relative, 1))  # beyond 1, no digit is promised


def _check(name: str, given: Any, shape: tuple[int, ...], pairs: _Pairs, rtol: float) -> ArrayCheck:
    given = _host(*_as_array(name, given))
    dtype = given.dtype if given.dtype.kind == "f" else np.dtype(np.float64)
    form = _FORMS[name][0][1]
    g = _Chain().g(pairs.s, pairs.c)
    true = form(pairs.W, pairs.x, g).reshape(shape)
    given = given.astype(np.float64)
    ok, wrong, error, index = False, None, None, None
    if given.shape == shape:
        allowed = rtol * np.abs(true) + pairs.rounding(form, g, _eps(dtype)).reshape(shape)
        allowed += np.finfo(dtype).smallest_normal  # errors below it do not count
        same = (given == true) | (np.isnan(given) & np.isnan(true))
        beyond = np.where(same, 0, np.nan_to_num(np.abs(given - true) / allowed, nan=np.inf, posinf=np.inf))
        wrong = int((beyond > 1).sum())
        ok = wrong == 0
        if given.size:
            index = tuple(int(i) for i in np.unravel_index(np.argmax(beyond), shape))
            relative = np.abs(given[index] - true[index]) / np.abs(true[index])
            error = 0.0 if same[index] else float(np.nan_to_num(relative, nan=np.inf, posinf=np.inf))
    return ArrayCheck(
        name=name,
        ok=ok,
        shape=given.shape,
        expected_shape=shape,
        wrong=wrong,
        max_relative_error=error,
        index=index,
        given_value=None if index is None else float(given[index]),
        true_value=None if index is None else float(true[index]),
        mistakes=() if ok else _mistakes(name, given, true, pairs, rtol, dtype),
        true=true,
    )


def _eps(dtype: np.dtype[Any]) -> float:
    """The precision of the given array's dtype, and of the truth that it is compared with."""
    return float(np.finfo(dtype).eps) + float(np.finfo(np.float64).eps)


def _mistakes(
    name: str, given: Array, true: Array, pairs: _Pairs, rtol: float, dtype: np.dtype[Any]
) -> tuple[str, ...]:
    if given.shape == true.shape:
        broken = np.argwhere(~np.isfinite(given) & np.isfinite(true))
        if len(broken):
            first = tuple(int(i) for i in broken[0])
            return (
                f"{len(broken)} of {given.size} values are NaN or infinite, the first at {first}: look for an overflow "
                "of exp, a division by zero, or a value never computed",
            )
    found = None
    B = len(pairs.q)
    if given.size and B and given.size % B == 0:
        digits = _digits(given, true, 4 * _eps(dtype))
        # Named mistakes are guesses where much is tolerated, and misses where less than single precision is.
        rtol = min(max(rtol, 1e-5), 1e-3)
        found = _explain(name, given.reshape(B, -1), pairs, rtol, dtype, digits)
    if given.shape == true.shape:
        return found or ()
    shape = f"wrong shape {given.shape} instead of {true.shape}: "
    if found == ():
        return (f"{shape}the values are right, so give it the right shape with .reshape{true.shape}",)
    return (f"{shape}a gradient has exactly the shape of its input, here of {name[1]}", *(found or ()))


def _digits(given: Array, true: Array, tolerance: float) -> int | None:
    """The fewest decimals (1 to 6) to which every given value is rounded, though the true ones are not."""

    def rounded(a: Array, k: int) -> bool:
        return bool(np.all(np.abs(a - np.round(a, k)) <= tolerance * np.abs(a)))

    return next((k for k in range(1, 7) if rounded(given, k) and not rounded(true, k)), None)


class _Fit(NamedTuple):
    mistakes: tuple[str, ...]
    values: Array
    tolerance: Array
    deviation: float
    ratio: float


def _explain(name, given, pairs, rtol, dtype, digits):
    noises = [None]
    if np.any((pairs.c < _eps(dtype) / rtol)):
        noises.append(_CANCELS)
    if digits:
        noises.append(_ROUNDED.format(digits))
    recipes = []
    for (fm, form), chain, noise in itertools.product(_FORMS[name], _chains(), noises):
        recipes.append((fm + chain.mistakes + ((noise,) if noise else ()), form, chain, noise))
    recipes.sort(key=lambda r: len(r[0]))
    tried = 0
    for count, group in itertools.groupby(recipes, key=lambda r: len(r[0])):
        fits = []
        for r in group:
            tried += 1
            fit = None
            for part in (_FIRST_PAIRS, None):
                fit = _fit(r, given[:part], pairs.first(part), rtol, dtype, digits, tried)
                if fit is None:
                    break
            if fit:
                fits.append(fit)
        if fits:
            best = min(fits, key=lambda f: f.deviation)
            if DEBUG:
                for f in fits: print(f.mistakes and [z[:20] for z in f.mistakes], f.deviation, f.ratio)
            return best.mistakes
    return None

DEBUG = False

def _fit(recipe, given, pairs, rtol, dtype, digits, tried):
    mistakes, form, chain, noise = recipe
    c = pairs.c
    if noise == _CANCELS:
        c = 1 - 1 / (1 + np.exp(-pairs.q.astype(dtype)))
        c = c.astype(np.float64)
    g = chain.g(pairs.s, c)
    try:
        values = form(pairs.W, pairs.x, g)
    except ValueError:
        return None
    if values.size != given.size:
        return None
    B = len(given)
    exact = rtol * np.abs(values) + pairs.rounding(form, g, _eps(dtype)) + np.finfo(dtype).smallest_normal
    tolerance = exact
    if noise == _CANCELS:
        dg = chain._replace(c=0).g(pairs.s, c) * chain.c * (pairs.c > _eps(dtype)/8)
        tolerance = exact + _eps(dtype) * pairs.bound(form, dg)
    elif noise:
        unit = .5 * 10**-digits
        tolerance = exact + unit * 1.1 * (pairs.bound(form, chain.spread(pairs.s, c)) + 1)
    deviation = np.abs(given - values.reshape(B, -1))
    if not np.all(deviation <= tolerance.reshape(B, -1)):
        return None
    pure = len(mistakes) == bool(noise) and (noise is None or noise == _CANCELS or np.all(deviation <= unit*(1+1e-6) + exact.reshape(B,-1)))
    ratio = 1.0
    size = np.maximum(np.abs(given), np.abs(values.reshape(B,-1)))
    some = size > 0
    if some.any():
        logs = np.log(np.minimum(tolerance.reshape(B,-1)[some] / size[some], 1))
        ratio = np.exp(logs.mean() * B * min(pairs.W.shape[1], values.size // B))
    if not pure and tried * ratio > _CHANCE:
        return None
    return _Fit(mistakes, values, exact, deviation.sum(), tried*ratio)
