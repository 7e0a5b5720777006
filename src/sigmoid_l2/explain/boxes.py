"""The boxes of the graph that ``graph.py`` draws: what is written in each, and where it stands.

Every gradient stands below what it is the gradient of. The forward steps go to the right, the backward steps to the
left:

    W              y
       q     s     e     loss
    x
    dW          ds_dq
       dloss_dq
    dx          dloss_ds
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, NamedTuple

from sigmoid_l2.explain.cells import Picture, part, pictures
from sigmoid_l2.explain.trace import STEPS, Trace

if TYPE_CHECKING:
    from sigmoid_l2.explain.report import ArrayCheck, GradCheck

COLUMNS = (("W", "x", "dW", "dx"), ("q", "dloss_dq"), ("s", "ds_dq", "dloss_ds"), ("y", "e"), ("loss",))
BACKWARD = frozenset(("dloss_ds", "ds_dq", "dloss_dq", "dW", "dx"))
_ALSO = {"dloss_dq": "g for short"}  # as the formulas of dW and dx call it

# All px
LEFT = 30  # in front of the first column: the way from W to dx
BETWEEN = 46  # between columns, where the arrows turn
_STACKED = 26  # between boxes that stand on each other
_BANDS = 44  # between the forward and the backward steps
PAD = 10  # between a box's border and what is in it
_BADGE = 60  # the width of a verdict, "WRONG", "right" or "follows"
_SIDE_BY_SIDE = 180  # the given and the true values stand side by side up to this width
# Of each class of text the height of a line, and the width of a character, of common monospaced fonts the widest
TEXT = {"name": (18, 9.3), "formula": (17, 8.0), "small": (15, 6.8), "bold": (16, 6.8)}


class Box(NamedTuple):
    """A step, and where its box stands."""

    name: str
    svg: str  # what is in the box, as if its upper left corner were at (0, 0)
    width: float
    height: float
    state: str = ""  # "wrong", "right" or nothing
    x: float = 0
    y: float = 0

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def bottom(self) -> float:
        return self.y + self.height

    @property
    def cx(self) -> float:
        return self.x + self.width / 2

    @property
    def cy(self) -> float:
        return self.y + self.height / 2


def boxes(trace: Trace, check: GradCheck | None = None) -> dict[str, Box]:
    """A box for each array of the trace, in its place."""
    first = None if check is None else _checks(check).get(check.first_wrong or "")
    steps = [step for step in STEPS if not isinstance(step, str) and getattr(trace, step[0]) is not None]
    # The pair that is drawn is that of the worst value of the first wrong step, else the first one.
    own: tuple[int, ...] = ()
    for name, axes, *_ in steps:
        if first is not None and first.index is not None and first.name == name:
            own = first.index[: len(first.index) - len(trace._pair_axes(axes))]
    pair = (0,) * (trace.loss.ndim - len(own)) + own
    return _place([_box(trace, step, pair, check) for step in steps])


def first_wrong_step(check: GradCheck | None) -> str | None:
    """Its name, where steps before the gradients were checked: without them it is not known where those went wrong."""
    if check is None or all(step.name in ("dW", "dx") for step in check.steps):
        return None
    return check.first_wrong


def _checks(check: GradCheck | None) -> dict[str, ArrayCheck]:
    return {} if check is None else {step.name: step for step in check.steps}


def _box(
    trace: Trace,
    step: tuple[str, str, str, str],
    pair: tuple[int, ...],
    whole: GradCheck | None,
) -> Box:
    name, axes, formula, meaning = step
    check = _checks(whole).get(name)
    e = "s" if trace.e is None else "e"
    array = getattr(trace, name)
    batch, count = trace._batch(axes, array), len(trace._pair_axes(axes))
    lines = [("name", name)]
    lines += [("formula", f"= {formula.format(e=e)}")] if formula else []
    lines += [("small", _ALSO[name])] if name in _ALSO else []
    lines += [("small", trace._shape(axes, array))]
    lines += [("bold", "first wrong step")] if name == first_wrong_step(whole) else []
    word = "pair" if batch == trace.loss.shape else "item"
    if check is None or check.ok:
        titles, drawn = [""], pictures(name, [part(array, count, pair, word)])
    else:
        worst, titles = check.index or (), ["given", "true"]
        given = part(check.given, count, pair, word, worst) if check.shape == check.expected_shape else None
        if given is None:
            titles = [f"given {check.shape}", f"true {check.expected_shape}"]
            given = part(check.given, min(len(check.shape), 2), (0,) * len(check.shape), "item")
        true = part(check.true, count, pair, word, worst)
        drawn = pictures(name, [given, true], (check.given_value, check.true_value))
    captions = list(dict.fromkeys(caption for picture in drawn for caption in picture.captions))
    if name in ("dW", "dx") and batch != trace.loss.shape:
        captions += ["summed over the", f"pairs that share {name[1]}"]
    state = "" if check is None else "right" if check.ok else "follows" if check.follows else "wrong"
    return _written(name, meaning.format(e=e), lines, list(zip(titles, drawn, strict=True)), captions, state)


def _written(
    name: str,
    meaning: str,
    lines: list[tuple[str, str]],
    drawn: list[tuple[str, Picture]],
    captions: list[str],
    state: str,
) -> Box:
    """Write ``lines``, the pictures below their titles, and ``captions`` from the top; the box is as wide as those."""
    svg = [f"<title>{escape(meaning)}</title>"] if meaning else []
    width, y = 0.0, float(PAD)

    def write(kind: str, text: str, x: float, y: float) -> float:
        nonlocal width
        height, character = TEXT[kind]
        width = max(width, x + len(text) * character)
        svg.append(f'<text class="sl2-{kind}" x="{PAD + x:g}" y="{y + height - 5:g}">{escape(text)}</text>')
        return y + height

    for kind, text in lines:
        y = write(kind, text, 0, y)
    if state:
        width = max(width, len(name) * TEXT["name"][1] + _BADGE + 12)
    x, y = 0.0, y + 4
    bottom = y
    beside = len(drawn) == 2 and sum(picture.width for _, picture in drawn) <= _SIDE_BY_SIDE
    for title, picture in drawn:
        top = write("small", title, x, y) if title else y
        svg.append(f'<g transform="translate({PAD + x:g} {top:g})">{picture.svg}</g>')
        width, bottom = max(width, x + picture.width), max(bottom, top + picture.height + 5)
        if beside:
            x += max(picture.width, len(title) * TEXT["small"][1]) + 8
        else:
            y = bottom
    for caption in captions:
        bottom = write("small", caption, 0, bottom)
    width += 2 * PAD
    if state:
        x, word = width - _BADGE - 8, "WRONG" if state == "wrong" else state
        svg.append(f'<rect class="sl2-badge" x="{x:g}" y="8" width="{_BADGE}" height="18" rx="3"/>')
        svg.append(f'<text class="sl2-verdict" x="{x + _BADGE / 2:g}" y="21">{word}</text>')
    return Box(name, "".join(svg), width, bottom + PAD - 5, state)


def _place(made: list[Box]) -> dict[str, Box]:
    """Give each box its place. The forward steps have their middle at one height, and so have the backward steps."""
    heights = {box.name: box.height for box in made}
    tops = {name: -height / 2 for name, height in heights.items()}
    for upper, lower in (("W", "x"), ("dW", "dx"), ("ds_dq", "dloss_ds")):
        tops[upper], tops[lower] = -_STACKED / 2 - heights[upper], _STACKED / 2
    if "y" in tops:
        tops["y"] = tops["e"] - _STACKED - heights["y"]
    top = 0.0
    for band in (heights.keys() - BACKWARD, heights.keys() & BACKWARD):
        down = top - min(tops[name] for name in band)
        tops.update({name: tops[name] + down for name in band})
        top = max(tops[name] + heights[name] for name in band) + _BANDS
    left, placed = float(LEFT), {}
    for column in COLUMNS:
        there = [box for box in made if box.name in column]
        if there:
            width = max(box.width for box in there)
            for box in there:
                placed[box.name] = box._replace(x=left + (width - box.width) / 2, y=tops[box.name])
            left += width + BETWEEN
    return {box.name: placed[box.name] for box in made}
