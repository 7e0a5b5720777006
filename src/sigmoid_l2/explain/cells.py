"""Arrays as pictures for ``graph.py``: what fits of one is cut out, and drawn as cells in SVG.

A cell is tinted by its value relative to the largest that is drawn: green above 0, purple below, where a minus stands
for the colour. Few cells have their numbers in them. No work is done for values that are not drawn.
"""

from __future__ import annotations

import math
from html import escape
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

ROWS = 8  # rows that are drawn where the cells have numbers
EDGE = 16  # rows and columns that are drawn where they have none
_DIGITS = (4, 3)  # of a number; 3 where it is too wide with 4
_WIDTH = 300  # px: the widest picture with numbers
_ROW = 19  # px: the height of a cell with a number
_CELL = 10  # px: a cell without, at least, so that a minus can be seen; up to twice that where there are few
_CHARACTER = 6.8  # px: the width of a character at the 11 px of a number; of common monospaced fonts the widest
_LEVELS = 8  # tints on either side of 0
_OPACITY = 0.06  # of one level; text on the strongest, 0.48, keeps a contrast of 4.5


class Part(NamedTuple):
    """What is drawn of an array."""

    values: Array  # 2-D, a view: the matrix or the column of one pair
    start: str  # the indices in front of those of ``values``, as in "3, "
    axes: int  # how many indices ``values`` has by the array's own count: 0, 1 or 2
    captions: tuple[str, ...]  # which part of the array it is
    mark: tuple[int, int] | None = None  # the cell to outline

    def place(self, i: int, j: int) -> str:
        """The index in the array of a value, as in "[3, 0]"."""
        own = (f"{i}, {j}", f"{i}", "")[2 - self.axes]
        return f"[{(self.start + own).removesuffix(', ')}]" if self.start or own else ""


def part(array: Array, axes: int, pair: tuple[int, ...], word: str = "pair", worst: tuple[int, ...] = ()) -> Part:
    """Cut out the last ``axes`` axes at ``pair``, whose axes are aligned with the batch's last; ``worst`` is marked.

    ``word`` is what a place in the batch is called.
    """
    batch = array.shape[: array.ndim - axes]
    if 0 in array.shape:
        return Part(np.zeros((0, 0)), "", axes, ("empty",))
    at = tuple(0 if size == 1 else k for size, k in zip(batch, pair[len(pair) - len(batch) :], strict=True))
    values = array[at].reshape((1, 1) if axes == 0 else (-1, 1) if axes == 1 else array.shape[-2:])
    captions: tuple[str, ...] = ()
    if len(batch) == 1:
        captions = (f"{word} {at[0]} of {batch[0]}",)
    elif batch:
        captions = (f"{word} {at} of {batch}",)
    mark = None
    if worst and worst[: len(batch)] == at:
        i, j = (*worst[len(batch) :], 0, 0)[:2]
        mark = i, j
    return Part(values, "".join(f"{k}, " for k in at), axes, captions, mark)


class Picture(NamedTuple):
    """SVG whose upper left corner is at (0, 0)."""

    svg: str
    width: float
    height: float
    captions: tuple[str, ...]


def pictures(name: str, parts: list[Part], differ: tuple[float | None, float | None] = (None, None)) -> list[Picture]:
    """Draw ``parts`` with one scale and cells of one size. The numbers get so many digits that ``differ`` do."""
    windows = [np.asarray(p.values[:ROWS, :EDGE], np.float64) for p in parts]
    needed = _DIGITS[-1]
    given, true = differ
    if given is not None and true is not None:
        needed = next((d for d in (*reversed(_DIGITS), 6, 9) if f"{given:.{d}g}" != f"{true:.{d}g}"), 17)
    columns = max(p.values.shape[1] for p in parts)
    for digits in [d for d in _DIGITS if d >= needed] or [needed]:
        texts = [[_texts(row, digits) for row in window] for window in windows]
        longest = max((len(text) for rows in texts for row in rows for text in row), default=0)
        width = longest * _CHARACTER + 10
        if columns * width <= _WIDTH:
            largest = _largest(windows)
            return [
                _picture(name, p, window, text, digits, (width, _ROW), largest)
                for p, window, text in zip(parts, windows, texts, strict=True)
            ]
    windows = [np.asarray(p.values[:EDGE, :EDGE], np.float64) for p in parts]
    largest, size = _largest(windows), max(_CELL, min(2 * _CELL, _CELL * EDGE // columns))
    return [_picture(name, p, w, None, 0, (size, size), largest) for p, w in zip(parts, windows, strict=True)]


def _largest(windows: list[Array]) -> float:
    return max(float(np.max(np.abs(w), initial=0, where=np.isfinite(w))) for w in windows)


def _texts(values: Any, digits: int) -> list[str]:
    return [f"{value + 0.0:.{digits}g}" for value in values]  # + 0.0: -0 is written as 0


def _picture(
    name: str,
    p: Part,
    window: Array,
    texts: list[list[str]] | None,
    digits: int,
    size: tuple[float, float],
    largest: float,
) -> Picture:
    w, h = size
    rows, columns = window.shape
    tints: dict[tuple[str, int], str] = {}
    minus, cross, numbers = "", "", []
    for i, j in np.ndindex(rows, columns):
        value, x, y = float(window[i, j]), j * w, i * h
        level = _level(value, largest)
        if level:
            key = "n" if value < 0 else "p", level
            tints[key] = tints.get(key, "") + f"M{x:g} {y:g}h{w:g}v{h:g}h-{w:g}z"
        if texts is not None:
            numbers.append(
                f'<text class="sl2-v" x="{x + w - 5:.6g}" y="{y + h - 6:g}">{texts[i][j]}'
                f"<title>{escape(name)}{p.place(i, j)} = {value:.{max(9, digits)}g}</title></text>"
            )
        elif math.isnan(value):
            cross += f"M{x + w / 2 - 3:g} {y + h / 2 - 3:g}l6 6m0-6l-6 6"
        elif math.isinf(value):
            numbers.append(f'<text class="sl2-i" x="{x + w / 2:g}" y="{y + h / 2 + 3:g}">∞</text>')
        if texts is None and value < 0:
            minus += f"M{x + w / 2 - 2:g} {(y + h - 1.5 if math.isinf(value) else y + h / 2):g}h4"
    svg = [
        f'<path class="sl2-{sign}" fill-opacity="{level * _OPACITY:.2f}" d="{d}"/>'
        for (sign, level), d in sorted(tints.items())
    ]
    lines = [f"M{j * w:g} 0v{rows * h:g}" for j in range(columns + 1)]
    lines += [f"M0 {i * h:g}h{columns * w:g}" for i in range(rows + 1)]
    svg += [f'<path class="sl2-l" d="{"".join(lines)}"/>'] if rows else []
    svg += [f'<path class="sl2-k" d="{minus}{cross}"/>'] if minus or cross else []
    svg += numbers
    captions = list(p.captions)
    for shown, whole, axis in ((rows, p.values.shape[0], "rows"), (columns, p.values.shape[1], "columns")):
        if shown < whole:
            captions.append(f"first {shown} of {whole} {axis}")
    if p.mark and p.mark[0] < rows and p.mark[1] < columns:
        i, j = p.mark
        svg.append(f'<rect class="sl2-o" x="{j * w:g}" y="{i * h:g}" width="{w:g}" height="{h:g}"/>')
        captions.append("outlined: the worst")
    if texts is None:
        captions += ["× nan"] * bool(cross) + ["∞ infinite"] * bool(np.isinf(window).any())
    return Picture("".join(svg), columns * w, rows * h, tuple(captions))


def _level(value: float, largest: float) -> int:
    """The tint, 0 for none: that of 0 and of nan."""
    if math.isnan(value) or value == 0:
        return 0
    return _LEVELS if math.isinf(value) else math.ceil(abs(value) / largest * _LEVELS)
