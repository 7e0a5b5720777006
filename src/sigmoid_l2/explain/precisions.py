"""How a program rounds: as its dtype does, or in one of the ways that lose digits."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from sigmoid_l2.explain.program import Inputs, Precision, Values

Array = npt.NDArray[Any]

_COST = 1  # of a precision that is a mistake: less than any other, as rounding alone explains what it can
_SOME = 1000  # values that are looked at, at most
_KEEP = "keep every step in full precision and round only what you print"


def own_error(name: str, values: Values, eps: float) -> Array:
    """The error of one step in arithmetic of ``eps``: q is a sum of n terms, the others are a few operations."""
    here = np.abs(getattr(values, name))
    match name:
        case "q":
            return np.asarray(values.n * (eps / 2) * values.q_size)
        case "s" | "c":
            return np.asarray(4 * eps * here)
        case "e":  # s - y loses digits where both are large; for 0 and 1 it need not
            if not values.target:
                return np.zeros_like(here)
            ends = (values.y == 0) | (values.y == 1)
            return np.asarray(2 * eps * np.where(ends, here, np.abs(values.s) + np.abs(values.y)))
    return np.asarray(2 * eps * here)


exact = Precision((), own_error, lambda a: np.zeros_like(a), complement=True)


def _cancelling(target: bool) -> Precision:
    lost = "1 - s is computed by subtraction, which cancels where q is large; use 1 / (1 + exp(q)) for it"
    e = ", c, and for s - y, where y is more than 1/2, (1 - y) - c"

    def error(name: str, values: Values, eps: float) -> Array:
        own = own_error(name, values, eps)
        return own + eps if name == "c" else own

    return Precision((lost + e * target,), error, exact.last, complement=True, cost=_COST)


def _decimals(digits: int) -> Precision:
    unit = 1.1 * 0.5 * 10.0**-digits  # 1.1 covers the terms beyond first order

    def error(name: str, values: Values, eps: float) -> Array:
        is_exact = name == "e" and not values.target
        return own_error(name, values, eps) + unit * (not is_exact)

    text = f"rounded to {digits} digit{'s' * (digits > 1)}: {_KEEP}"
    return Precision(
        (text,), error, lambda a: np.full_like(a, unit), complement=False, cost=_COST, coarse=unit, certain=digits > 1
    )


def _significant(digits: int) -> Precision:
    unit = 1.1 * 5 * 10.0**-digits

    def error(name: str, values: Values, eps: float) -> Array:
        is_exact = name == "e" and not values.target
        return np.asarray(own_error(name, values, eps) + unit * np.abs(getattr(values, name)) * (not is_exact))

    text = f"rounded to {digits} significant digit{'s' * (digits > 1)}, as by %.{digits - 1}e: {_KEEP}"
    return Precision((text,), error, lambda a: unit * np.abs(a), complement=False, cost=_COST + 1, certain=digits > 1)


def _float16() -> Precision:
    def error(name: str, values: Values, eps: float) -> Array:
        return own_error(name, values, 2.0**-10)

    text = "the values are float16 numbers, of about 3 digits: compute in float32 or float64"
    return Precision((text,), error, lambda a: 2.0**-10 * np.abs(a) + 2.0**-24, complement=False, cost=_COST)


def _whole() -> Precision:
    text = (
        "every value is a whole number, in an array of integers: fractions are cut off; give W, x and the gradient the "
        "dtype float"
    )
    return Precision((text,), own_error, lambda a: np.ones_like(a), complement=True, cost=_COST)


def _noise(step: float, ulp: float) -> Precision:
    text = (
        f"differences of the loss with a step of about {step:.0e}, which is too small: the loss has "
        f"{-math.log10(2 * ulp):.0f} digits after the point, and rounding eats up the difference; use a step of about "
        "1e-5, and allow for an error of 1e-9"
    )
    return Precision(
        (text,),
        own_error,
        lambda a: np.full_like(a, 8 * ulp / step),
        complement=True,
        cost=_COST + 1,
        alone=True,
        certain=False,
    )


def wrong_precisions(
    given: Array, true: Array, loss: Array, inputs: Inputs, c: Array, eps: float, rtol: float, dtype: np.dtype[Any]
) -> Iterator[Precision]:
    """The precisions that are a mistake and that the given values may have, judged by some of them."""
    every = max(1, -(-given.size // _SOME))
    given = given[::every]
    true = true[::every] if true.size > _SOME else true
    if np.any(c < eps / rtol):
        yield _cancelling(inputs.target)
    if not given.any() or given.size == 0:
        return
    if digits := _digits(given, true, 4 * eps, _decimal):
        yield _decimals(digits)
    if (leading := _digits(given, true, 4 * eps, _leading)) > 2:  # fewer fit nearly anything
        coarse = 5 * 10.0**-leading * float(np.abs(given).max())
        yield _significant(leading)._replace(alone=digits > 0, coarse=coarse)
    if dtype.itemsize > 2 and np.all(given == given.astype(np.float16)) and not np.all(given == np.trunc(given)):
        yield _float16()
    if given.shape == true.shape and np.all(given == np.trunc(true)) and not np.all(given == true):
        yield _whole()
    has_ulp = dtype.itemsize > 2 and loss.size and np.isfinite(loss).all()
    ulp = float(np.spacing(dtype.type(loss.max()))) / 2 if has_ulp else 0.0
    if ulp and (step := _step_of_differences(given, ulp)):
        yield _noise(step, ulp)


def _decimal(a: Array, digits: int) -> Array:
    return np.round(a, digits)


def _leading(a: Array, digits: int) -> Array:
    return np.array([float(f"{value:.{digits - 1}e}") for value in a.tolist()])


def _digits(given: Array, true: Array, tolerance: float, rounded: Any) -> int:
    """The fewest digits (1 to 6) to which all given values are rounded and the true ones are not; 0 for none."""

    def fits(a: Array, digits: int) -> bool:
        return bool(np.all(np.abs(a - rounded(a, digits)) <= tolerance * np.abs(a)))

    return next((k for k in range(1, 7) if fits(given, k) and not fits(true, k)), 0)


def _step_of_differences(given: Array, ulp: float) -> float:
    """The step h where all given values are differences of two numbers with the spacing ``ulp``, divided by h or 2h."""
    a = given[np.isfinite(given)]
    if len(np.unique(np.abs(a[a != 0]))) < 3:
        return 0.0
    for k in range(16, 4, -1):  # multiples of the step fit, too, so the smallest comes first
        for h in (10.0**-k, 2 * 10.0**-k):
            whole = a * h / ulp
            most = np.abs(whole).max()
            # Rounding of the quotient moves these numbers by less than 1e-4; others are not this near to whole ones.
            if 1 <= most < 1e11 and np.abs(whole - np.round(whole)).max() < 1e-4:
                return h if h == 10.0**-k else h / 2
    return 0.0
