"""The computation of a trace as a graph in SVG: a box a step, and an arrow from each array to each step that uses it.

Arrows do not cross: x goes straight down to dW, and W to dx on the left of both. The SVG has no id, because ids belong
to the whole page of a notebook, and what refers to one in a hidden cell is not drawn.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from sigmoid_l2.explain.boxes import BACKWARD, BETWEEN, COLUMNS, LEFT, PAD, TEXT, Box, boxes
from sigmoid_l2.explain.trace import STEPS, Trace

if TYPE_CHECKING:
    from sigmoid_l2.explain.report import GradCheck

Corners = list[tuple[float, float]]

# px
_PORT = 8  # from the middle of a box's side to where the first of two arrows meets it
_LEGEND = 19  # a line of the legend
_RADIUS = 8  # of an arrow's turns


def arrows(b: dict[str, Box]) -> dict[tuple[str, str], Corners]:
    """The corners of each arrow, by the array that it comes from and the step that uses it."""
    e = "e" if "e" in b else "s"
    turns = [max(b[name].right for name in column if name in b) + BETWEEN / 2 for column in COLUMNS[:3]]

    def across(start: Box, end: Box, start_port: float = 0, end_port: float = 0) -> Corners:
        """From a side of ``start`` to the side of ``end`` that faces it, with a turn between the two columns."""
        x, end_x = (start.right, end.x) if start.x < end.x else (start.x, end.right)
        turn = next((turn for turn in turns if min(x, end_x) < turn < max(x, end_x)), (x + end_x) / 2)
        y, end_y = start.cy + start_port, end.cy + end_port
        return [(x, y), (turn, y), (turn, end_y), (end_x, end_y)]

    def down(start: Box, end: Box) -> Corners:
        return [(end.cx, start.bottom), (end.cx, end.y)]

    W, x, q, s, g, dW, dx = (b[name] for name in ("W", "x", "q", "s", "dloss_dq", "dW", "dx"))
    dloss_ds, ds_dq = b["dloss_ds"], b["ds_dq"]
    found = {
        ("W", "q"): across(W, q, 0, -_PORT),
        ("x", "q"): across(x, q, 0, _PORT),
        ("q", "s"): across(q, s),
        (e, "loss"): across(b[e], b["loss"]),
        ("s", "ds_dq"): down(s, ds_dq),
        ("ds_dq", "dloss_dq"): across(ds_dq, g, 0, -_PORT),
        ("dloss_ds", "dloss_dq"): across(dloss_ds, g, 0, _PORT),
        ("x", "dW"): down(x, dW),
        ("dloss_dq", "dW"): across(g, dW, -_PORT),
        ("W", "dx"): [(W.x, W.cy), (LEFT / 2, W.cy), (LEFT / 2, dx.cy), (dx.x, dx.cy)],
        ("dloss_dq", "dx"): across(g, dx, _PORT),
    }
    if e == "e":
        residual = b["e"]
        found["s", "e"] = across(s, residual)
        found["y", "e"] = down(b["y"], residual)
        found["e", "dloss_ds"] = [
            (residual.cx, residual.bottom),
            (residual.cx, dloss_ds.cy),
            (dloss_ds.right, dloss_ds.cy),
        ]
    else:
        y, turn = s.cy + 2 * _PORT, turns[2]
        found["s", "dloss_ds"] = [(s.right, y), (turn, y), (turn, dloss_ds.cy), (dloss_ds.right, dloss_ds.cy)]
    return found


def svg(trace: Trace, check: GradCheck | None = None) -> str:
    """The graph, with its legend above it."""
    placed = boxes(trace, check)
    ways = arrows(placed)
    legend, legend_width, top = _legend()
    width = max(legend_width, *(box.right + PAD for box in placed.values()))
    height = top + max(box.bottom for box in placed.values()) + PAD
    drawn = [f'<g class="{_direction(end)}">{_arrow(corners)}</g>' for (_, end), corners in ways.items()]
    for box in placed.values():
        drawn.append(
            f'<g class="{_direction(box.name)} sl2-{box.state or "unchecked"}" '
            f'transform="translate({box.x:g} {box.y:g})"><rect class="sl2-box" width="{box.width:g}" '
            f'height="{box.height:g}" rx="6"/>{box.svg}</g>'
        )
    used = {end: [start for start, other in ways if other == end] for end in placed}
    label = "The computation as a graph: " + "; ".join(
        f"{end} from {' and '.join(used[end])}" for end in used if used[end]
    )
    wrong = ", ".join(box.name for box in placed.values() if box.state == "wrong")
    label += f". Wrong: {wrong}." if wrong else "."
    return (
        f'<svg class="sl2-svg" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.6g} {height:.6g}" '
        f'width="{width:.6g}" height="{height:.6g}" role="img" aria-label="{escape(label)}">{legend}'
        f'<g transform="translate(0 {top:g})">{"".join(drawn)}</g></svg>'
    )


def _legend() -> tuple[str, float, float]:
    """The SVG, its width and its height."""
    forward, backward = (step for step in STEPS if isinstance(step, str) and step != "Given")
    texts = (
        f"{forward}: solid",
        f"{backward}: dashed",
        "Cells: green above 0; purple, with a minus, below; the stronger, the larger within the array",
    )
    y = 2 * _LEGEND + 12
    samples = (
        f'<g class="sl2-forward">{_arrow([(LEFT, 12), (LEFT + 28, 12)])}</g>',
        f'<g class="sl2-backward">{_arrow([(LEFT, _LEGEND + 12), (LEFT + 28, _LEGEND + 12)])}</g>',
        f'<path class="sl2-p" fill-opacity=".48" d="M{LEFT} {y - 6}h12v12h-12z"/>'
        f'<path class="sl2-n" fill-opacity=".48" d="M{LEFT + 16} {y - 6}h12v12h-12z"/>'
        f'<path class="sl2-k" d="M{LEFT + 20} {y}h4"/>',
    )
    lines = [
        f'{sample}<text class="sl2-small" x="{LEFT + 36}" y="{k * _LEGEND + 16}">{escape(text)}</text>'
        for k, (sample, text) in enumerate(zip(samples, texts, strict=True))
    ]
    return "".join(lines), LEFT + 36 + max(map(len, texts)) * TEXT["small"][1] + PAD, len(lines) * _LEGEND + PAD


def _direction(name: str) -> str:
    return "sl2-backward" if name in BACKWARD else "sl2-given" if name in ("W", "x", "y") else "sl2-forward"


def _arrow(corners: Corners) -> str:
    """A line through ``corners``, rounded, with a head at its end."""
    corners = [corner for k, corner in enumerate(corners) if k == 0 or corner != corners[k - 1]]
    (x, y), *_, (before_x, before_y), (end_x, end_y) = corners[0], *corners
    dx, dy = _sign(end_x - before_x), _sign(end_y - before_y)
    corners[-1] = end_x - 6 * dx, end_y - 6 * dy  # so that the line does not show at the sides of the head's tip
    d = f"M{x:g} {y:g}"
    for (ax, ay), (bx, by), (cx, cy) in zip(corners, corners[1:], corners[2:], strict=False):
        r = min(_RADIUS, abs(bx - ax + by - ay) / 2, abs(cx - bx + cy - by) / 2)
        d += f"L{bx - r * _sign(bx - ax):g} {by - r * _sign(by - ay):g}"
        d += f"Q{bx:g} {by:g} {bx + r * _sign(cx - bx):g} {by + r * _sign(cy - by):g}"
    d += f"L{corners[-1][0]:g} {corners[-1][1]:g}"
    head = f"M{end_x:g} {end_y:g}l{-8 * dx - 4.5 * dy:g} {-8 * dy - 4.5 * dx:g}l{9 * dy:g} {9 * dx:g}z"
    return f'<path class="sl2-edge" d="{d}"/><path class="sl2-head" d="{head}"/>'


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)
