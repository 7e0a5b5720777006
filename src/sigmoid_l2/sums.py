"""Sums of many terms in two ways, whose errors hardly grow with the number of terms."""

from typing import Any

import numpy as np


def halved(terms: Any) -> Any:
    """The sums over the axis 1 of ``terms``, which are overwritten."""
    while terms.shape[1] > 1:
        half = terms.shape[1] // 2
        terms[:, :half] += terms[:, -half:]
        terms = terms[:, : terms.shape[1] - half]
    return terms[:, 0]


class Sum:
    """A sum of arrays to which the error of each addition is added at the end (Knuth's TwoSum)."""

    def __init__(self, xp: Any) -> None:
        self.xp = xp
        self.high: Any = None
        self.low: Any = None

    @np.errstate(all="ignore")
    def add(self, term: Any) -> None:
        """Add an array, which stays as it is."""
        if self.high is None:
            self.high, self.low = term.copy(), self.xp.zeros_like(term)
            return
        high = self.high + term
        added = high - self.high
        self.low += (self.high - (high - added)) + (term - added)
        self.high = high

    @np.errstate(all="ignore")
    def value(self) -> Any:
        """The sum; where it is infinite, the errors are NaN and left out."""
        return self.xp.where(self.xp.isnan(self.low), self.high, self.high + self.low)
