"""Text as numbers: a line is a row. In a file with W and x each line is a row of W, and the last line is x."""

import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sigmoid_l2.cli.source import InputError, Source, encoding_of, reading, short

Array = NDArray[Any]

# The most bytes of a text. Where it is one line of short numbers, np.loadtxt takes 20 times as much memory for it.
MOST_TEXT_BYTES = 64 << 20

_LAYOUT = "each line is a row of W, and the last line is x"


def read_rows(source: Source) -> dict[str, Array]:
    """Read W (m, n) and x (n,), float64, from m + 1 lines of n numbers.

    Blanks, tabs, commas or semicolons are between the numbers. Empty lines, and what follows a #, are skipped. UTF-8,
    or UTF-16 with its mark. Raises InputError, which names the line.
    """
    if source.size > MOST_TEXT_BYTES:
        raise InputError(f"{source.name}: more than {MOST_TEXT_BYTES} bytes of text; give .npz or .npy instead")
    with reading(source.name, "read as text"), source.open() as file:
        encoding = encoding_of(file.read(2))
        file.seek(0)
        # A byte that is no character may be in a comment; elsewhere the message quotes it.
        lines = _Lines(source.name, io.TextIOWrapper(file, encoding, "backslashreplace"))
        try:
            rows = np.loadtxt(iter(lines), delimiter=";", comments=None, ndmin=2)
        except ValueError as error:
            raise lines.not_numbers() from error
    if lines.rows < 2:
        raise InputError(f"{source.name}: has {'one line' if lines.rows else 'no lines'} of numbers; {_LAYOUT}")
    return {"W": rows[:-1], "x": rows[-1]}


class _Lines:
    """The lines of numbers of a text, as np.loadtxt takes them; and which of them it has taken last."""

    def __init__(self, name: str, text: io.TextIOWrapper) -> None:
        self.name, self.text = name, text
        self.rows = 0
        self.number, self.line = 0, ""  # of the last one
        self.first, self.columns = 0, 0  # the number of the first one, and how many numbers it has

    def __iter__(self) -> Iterator[str]:
        for number, line in enumerate(self.text, 1):
            self.number, self.line = number, line.partition("#")[0].strip()
            # Separators may end a line: programs write one after each number, and Excel fills empty lines with them.
            row = self.line.rstrip(",; \t").replace("\N{MINUS SIGN}", "-")
            if not row:
                continue
            if ";" not in row:  # where it is, a comma is that of 0,5, which is refused
                row = row.replace(",", ";") if "," in row else re.sub(r"\s+", ";", row)
            columns = row.count(";") + 1
            self.rows += 1
            if self.rows == 1:
                self.first, self.columns = self.number, columns
            if columns != self.columns:
                has = f"{columns} number{'s' * (columns > 1)}"
                raise InputError(
                    f"{self.name}: line {self.number} has {has}, but line {self.first} has {self.columns}; {_LAYOUT}"
                )
            yield row

    def not_numbers(self) -> InputError:
        """What to say of the last line."""
        message = f"{self.name}: line {self.number} is not a row of numbers: {short(self.line, 60)!r}"
        if re.search(r"\d,\d", self.line) and not set(self.line) - set("+-0123456789eE,; \t"):
            message += "; write 0.5, not 0,5"
        return InputError(message)
