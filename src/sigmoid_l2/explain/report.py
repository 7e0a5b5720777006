"""What ``check_grad`` returns: what was found out about each array, to print or to look at in a notebook."""

from __future__ import annotations  # help() then shows the name of a type

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sigmoid_l2.explain.trace import Trace

Array = npt.NDArray[Any]

_WIDTH = 80  # columns of the printed report
_SMALL = 36  # arrays of up to this many values are printed

# The letters of the axes of one pair, as in the formulas.
_LETTERS = {"loss": "", "dW": "ij", "dx": "j"}


@dataclass(frozen=True, eq=False, repr=False)
class ArrayCheck:
    """What ``check_grad`` found out about one array; ``print`` it for the report.

    Attributes
    ----------
    name : str
        "dW" or "dx", or the name of a step as ``trace`` prints it: "q", "s", "e", "loss", "dloss_ds", "ds_dq",
        "dloss_dq".
    ok : bool
        Whether the shape and all values are right.
    shape, expected_shape : tuple of int
        The shape of the given array, and the right one: for a gradient, that of its input.
    wrong : int, or None
        The number of wrong values. None where the shapes differ, as the next four.
    index : tuple of int, or None
        The place of the worst value: the one whose error is the largest multiple of its tolerance.
    max_relative_error : float, or None
        That of the worst value; inf where the true one is 0 or the given one is not finite.
    given_value, true_value : float, or None
        The worst value, and what it should be.
    mistakes : tuple of str
        What was done, why it is wrong, and the right line; empty where no known mistake explains it.
    known : tuple of str
        What is known of a wrong array where no mistake explains it: the rows that are right, the order, where to look.
    follows : str, or None
        The first wrong step, where this one is what follows from it, and so right itself.
    given : array
        What was given, in float64.
    true : array, of the expected shape
        What is right, in float64.
    column : bool
        Whether it is of columns (..., m, 1) or (..., n, 1).

    Examples
    --------
    >>> import numpy as np, sigmoid_l2 as sl2
    >>> W, x = np.zeros((2, 2)), np.ones(2)
    >>> check = sl2.check_grad(W, x, dW=np.full((2, 2), 0.5)).dW
    >>> check.ok, check.wrong, check.given_value, check.true_value
    (False, 4, 0.5, 0.25)
    """

    name: str
    ok: bool
    shape: tuple[int, ...]
    expected_shape: tuple[int, ...]
    wrong: int | None
    max_relative_error: float | None
    index: tuple[int, ...] | None
    given_value: float | None
    true_value: float | None
    mistakes: tuple[str, ...]
    known: tuple[str, ...]
    follows: str | None
    given: Array
    true: Array

    def __str__(self) -> str:
        return "\n".join(self._lines())

    __repr__ = __str__  # what the REPL shows

    def _lines(self) -> Iterator[str]:
        if self.ok:
            yield f"{self.name}: right"
            return
        if self.follows is not None:
            yield _wrap("", f"{self.name}: WRONG, because your {self.follows} is; this step itself is right")
            return
        yield f"{self.name}: WRONG"
        if self.wrong:
            values = f"given {self.given_value:.6g}, true {self.true_value:.6g}"
            place = f" at {place}" if (place := self.place()) else ""
            worst = f"the worst{place}: {values}, relative error {self.max_relative_error:.2g}"
            count = f"{self.wrong} of {self.true.size} values wrong, " if self.true.size > 1 else ""
            yield _wrap("  ", f"{count}{worst}")
        for mistake in self.mistakes:
            yield _wrap("  - ", mistake)
        if not self.mistakes:
            yield "  No known mistake explains it. What is known:"
        for fact in self.known:
            yield _wrap("  - ", fact)
        for title, a in (("your", self.given), ("the true", self.true)):
            if a.size <= _SMALL:
                yield f"  {title} {self.name}:"
                yield textwrap.indent(np.array2string(a, precision=6, max_line_width=_WIDTH - 6), "      ")

    def place(self) -> str:
        """The place of the worst value by the indices of the formulas, as "i = 1, j = 2"; empty where there is none."""
        if self.index is None:
            return ""
        letters = _LETTERS.get(self.name, "i")
        axes = len(self.index)
        # A column (..., n, 1) has an axis more than its letters; which axes are the batch's follows from their number.
        is_column = self.column
        batch = self.index[: axes - len(letters) - is_column]
        own = self.index[len(batch) :]
        pair = [f"pair {batch[0] if len(batch) == 1 else batch}"] if batch else []
        return ", ".join([*pair, *(f"{letter} = {k}" for letter, k in zip(letters, own, strict=False))])

    column: bool = False


def _wrap(indent: str, text: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=indent, subsequent_indent=" " * len(indent))


@dataclass(frozen=True, eq=False, repr=False)
class GradCheck:
    """What ``check_grad`` returns: true where all that was given is right; ``print`` it for the report.

    Attributes
    ----------
    steps : tuple of ArrayCheck
        What was found out about each array that was given, in the order of the computation.
    dW, dx : ArrayCheck, or None
        The same of the gradients; None for one that was not given.
    ok : bool
        Whether all that was given is right; ``bool(check)`` is the same.
    first_wrong : str, or None
        The name of the first wrong array in the order of the computation.
    trace : Trace
        The right values of every step.

    Examples
    --------
    >>> import numpy as np, sigmoid_l2 as sl2
    >>> check = sl2.check_grad(np.zeros((2, 2)), np.ones(2), dW=np.full((2, 2), 0.25))
    >>> check.ok, check.dx
    (True, None)
    >>> print(check)
    dW: right
    """

    steps: tuple[ArrayCheck, ...]
    trace: Trace

    @property
    def dW(self) -> ArrayCheck | None:  # noqa: N802 - the name of the mathematics
        """What was found out about dW; None where it was not given."""
        return next((check for check in self.steps if check.name == "dW"), None)

    @property
    def dx(self) -> ArrayCheck | None:
        """What was found out about dx; None where it was not given."""
        return next((check for check in self.steps if check.name == "dx"), None)

    @property
    def ok(self) -> bool:
        """Whether all that was given is right."""
        return all(check.ok for check in self.steps)

    @property
    def first_wrong(self) -> str | None:
        """The name of the first wrong array in the order of the computation; None where all are right."""
        return next((check.name for check in self.steps if not check.ok), None)

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        lines = [str(check) for check in self.steps]
        if not self.ok and any(check.name not in ("dW", "dx") for check in self.steps):
            lines.insert(0, f"The first wrong step is {self.first_wrong}.")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:  # what a notebook shows
        from sigmoid_l2.explain import html  # it needs the names of this module

        return html.fragment(self.trace, self)
