"""What is kept of the errors of one contender in one dtype: counts, maxima and where they are, never single values.

The error of a result is counted in ulp: the spacing of the dtype at the truth. Where loss, g or dx, or the g that dx
is made from, is below the smallest normal number, its error is not counted but only held to the contract, which allows
for it. For a GPU backend that flushes subnormal numbers to 0, that is so below 4 times the smallest normal number.
"""

import math
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import contract
import numpy as np
import oracle
from numba import njit

from accuracy import truth

OUTPUTS = ("loss", "g", "dx")
KEPT = ("classes", "profile", "ulp", "eps", "broken")  # the arrays of a Tally
BINS = 1024  # of q, for the picture
SPAN = {"float32": 105.0, "float64": 750.0}  # the bins cover -SPAN to SPAN; values beyond are in the outermost bins
# Errors are counted by powers of 2: class 0 is below 2^FIRST ulp, class k from 2^(FIRST + k - 1) to twice that.
FIRST, CLASSES = -3, 64
EXPONENT_BIAS = 1023
POWERS = 2.0 ** (EXPONENT_BIAS - np.arange(2047.0))  # 2^-e, by the biased exponent e of a float64


@cache
def allowed_eps(dtype: np.dtype[Any]) -> np.ndarray:
    """What the contract allows for a 1x1 pair with x = 1: the relative errors of loss, g and dx, in eps."""
    W, x = np.full((1, 1), 0.5, dtype), np.ones(1, dtype)
    true = oracle.pair(W, x)
    limits = contract.allowed(W, x, true)
    values = zip(limits[: len(OUTPUTS)], (true.loss, true.dW[0][0], true.dx[0]), strict=True)
    return np.array([np.ravel(limit)[0] / float(value) for limit, value in values]) / np.finfo(dtype).eps


@dataclass
class Tally:
    """The errors so far; the first axis of every array is that of OUTPUTS."""

    dtype: np.dtype[Any]
    flushes: bool = False  # the contract's word for GPUs in float32: subnormal numbers become 0
    values: int = 0
    classes: np.ndarray = field(default_factory=lambda: np.zeros((3, CLASSES), np.int64))
    profile: np.ndarray = field(default_factory=lambda: np.zeros((3, BINS)))  # the largest error in ulp, by q
    ulp: np.ndarray = field(default_factory=lambda: np.zeros((3, 2)))  # the largest error, and the q that it is at
    eps: np.ndarray = field(default_factory=lambda: np.zeros((3, 2)))  # the same for the relative error in eps
    broken: np.ndarray = field(default_factory=lambda: np.zeros((3, 2)))  # values out of contract, and one such q

    def add(self, q: np.ndarray, results: tuple[np.ndarray, ...], true: truth.Truth) -> None:
        """Count the ``results`` (loss, g, dx), each (size,) as q is."""
        info = np.finfo(self.dtype)
        floor, lost = (4, 2) if self.flushes else (1, 1)  # smallest normal numbers
        numbers = float(info.eps), floor * float(info.tiny), lost * float(info.tiny), SPAN[info.dtype.name]
        state = [getattr(self, name) for name in KEPT]
        for k, allowed in enumerate(allowed_eps(self.dtype)):
            _count(k, q, results[k], *true, allowed, numbers, *state)
        self.values += len(q)

    def merge(self, other: "Tally") -> None:
        """Take in what another thread has counted."""
        self.values += other.values
        self.classes += other.classes
        np.maximum(self.profile, other.profile, out=self.profile)
        for own, theirs in ((self.ulp, other.ulp), (self.eps, other.eps)):
            larger = theirs[:, 0] > own[:, 0]
            own[larger] = theirs[larger]
        self.broken[:, 0] += other.broken[:, 0]
        self.broken[:, 1] = np.where(other.broken[:, 0] > 0, other.broken[:, 1], self.broken[:, 1])


@njit
def _scaled(value, exponent):
    return value if exponent == 0 else math.ldexp(value, exponent)


@njit(nogil=True, error_model="numpy")
def _count(k, q, results, high, low, exponent, allowed, numbers, classes, profile, ulp, eps, broken):
    """Count all results of output k."""
    epsilon, floor, tiny, span = numbers
    per_ulp = 1 / epsilon
    scratch = np.empty(1)
    bits = scratch.view(np.int64)
    for i in range(len(q)):
        value, got, true = np.float64(q[i]), np.float64(results[i]), high[k, i]
        error = relative = 0.0
        if not np.isfinite(value):
            fine = got == true or (np.isnan(got) and np.isnan(true))
        elif min(abs(_scaled(true, exponent[k, i])), abs(_scaled(high[min(k, 1), i], exponent[min(k, 1), i]))) < floor:
            true = _scaled(true, exponent[k, i])
            extra = tiny * max(1.0, abs(value)) if k == 2 else tiny
            fine = abs(got - true) <= allowed * epsilon * abs(true) + extra
        else:
            # In units of 2^exponent, where nothing underflows; the difference of two numbers near each other is exact.
            error = abs((_scaled(got, -exponent[k, i]) - true) - low[k, i])
            relative = error / (abs(true) * epsilon)
            fine = relative <= allowed
            if np.isnan(relative):
                error = relative = np.inf
            scratch[0] = true
            error *= per_ulp * POWERS[(bits[0] >> 52) & 2047]
            scratch[0] = error
            classes[k, min(max((bits[0] >> 52) - EXPONENT_BIAS - FIRST + 1, 0), CLASSES - 1)] += 1
            where = int(min(max((value + span) * (BINS / (2 * span)), 0.0), BINS - 1.0))
            profile[k, where] = max(profile[k, where], error)
            if error > ulp[k, 0]:
                ulp[k, 0], ulp[k, 1] = error, value
            if relative > eps[k, 0]:
                eps[k, 0], eps[k, 1] = relative, value
        if not fine:
            broken[k, 0] += 1
            broken[k, 1] = value
