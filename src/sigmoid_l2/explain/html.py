"""A trace, and what a check found out, as HTML: for notebooks, and as a page of its own.

It needs nothing else: no script, no font, no address. Where a notebook is not trusted, JupyterLab and others leave out
<style> and <svg>; then the attribute hidden hides what remains of the graph, and the verdict and the text are read.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from sigmoid_l2.explain.boxes import first_wrong_step
from sigmoid_l2.explain.graph import svg

if TYPE_CHECKING:
    from sigmoid_l2.explain.report import ArrayCheck, GradCheck
    from sigmoid_l2.explain.trace import Trace

# Each colour by its use, in light and in dark. Text has a contrast of at least 4.5 to what it stands on.
_COLOURS = {
    "ground": ("#ffffff", "#15191e"),  # of everything, because what a notebook has behind it is not known
    "box": ("#ffffff", "#1d2228"),
    "text": ("#1b1f24", "#eef1f4"),
    "muted": ("#4f5861", "#aeb8c2"),  # shapes and captions
    "line": ("#7b858f", "#77828d"),  # borders of cells, and of the boxes of what was given
    "forward": ("#0b5cad", "#7cb7ff"),
    "backward": ("#994700", "#ffb057"),
    "wrong": ("#b3001b", "#ff8a91"),
    "positive": ("#1f9d57", "#2fae6b"),  # both are mixed with the box
    "negative": ("#8a4fc0", "#9a6fe0"),
}


def _variables(dark: bool) -> str:
    return "".join(f"--sl2-{name}:{both[dark]};" for name, both in _COLOURS.items())


_DARK = ('html[theme="dark"]', '[data-theme="dark"]', '[data-jp-theme-light="false"]', ".vscode-dark")
_LIGHT = ('[data-theme="light"]', '[data-jp-theme-light="true"]', ".vscode-light")

# Every selector begins with a class of ours, or ends with .sl2. Where a theme is named it wins over the system's.
_STYLE = f"""
.sl2 {{ {_variables(False)} }}
@media screen and (prefers-color-scheme: dark) {{ .sl2 {{ {_variables(True)} }} }}
{", ".join(f"{where} .sl2" for where in _LIGHT)} {{ {_variables(False)} }}
@media screen {{ {", ".join(f"{where} .sl2" for where in _DARK)} {{ {_variables(True)} }} }}
body.sl2 {{ margin: 0 auto; }}
.sl2 {{ background: var(--sl2-ground); color: var(--sl2-text); padding: 12px; border-radius: 6px; max-width: 1200px;
  font: 14px/1.45 system-ui, sans-serif; }}
.sl2 p, .sl2 ul {{ margin: 0 0 8px; color: inherit; }}
.sl2 ul {{ padding-left: 22px; }}
.sl2 li li {{ white-space: pre-wrap; }}
.sl2 code, .sl2 pre {{ font: 12px/1.35 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; color: inherit;
  background: none; padding: 0; }}
.sl2 pre {{ overflow-x: auto; margin: 8px 0 0; }}
.sl2 summary {{ cursor: pointer; color: var(--sl2-muted); }}
.sl2 .sl2-title {{ font-size: 16px; font-weight: 600; }}
.sl2 .sl2-no {{ color: var(--sl2-wrong); font-weight: 700; }}
.sl2 .sl2-graph {{ display: block !important; overflow-x: auto; }}
.sl2 .sl2-svg {{ max-width: 100%; min-width: 520px; height: auto; display: block; margin: 8px 0; }}
.sl2 text {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: var(--sl2-text); }}
.sl2 .sl2-name {{ font-size: 15px; font-weight: 700; }}
.sl2 .sl2-formula {{ font-size: 13px; }}
.sl2 .sl2-small {{ font-size: 11px; fill: var(--sl2-muted); }}
.sl2 .sl2-bold {{ font-size: 11px; font-weight: 700; fill: var(--sl2-wrong); }}
.sl2 .sl2-v {{ font-size: 11px; text-anchor: end; }}
.sl2 .sl2-i {{ font-size: 9px; text-anchor: middle; }}
.sl2 .sl2-p {{ fill: var(--sl2-positive); }}
.sl2 .sl2-n {{ fill: var(--sl2-negative); }}
.sl2 .sl2-l {{ fill: none; stroke: var(--sl2-line); stroke-width: .5; }}
.sl2 .sl2-k {{ fill: none; stroke: var(--sl2-text); stroke-width: 1.2; }}
.sl2 .sl2-o {{ fill: none; stroke: var(--sl2-wrong); stroke-width: 2.5; }}
.sl2 .sl2-box {{ fill: var(--sl2-box); stroke: var(--sl2-line); stroke-width: 1.5; }}
.sl2 .sl2-edge {{ fill: none; stroke-width: 1.8; }}
.sl2 .sl2-forward .sl2-edge, .sl2 .sl2-forward .sl2-box {{ stroke: var(--sl2-forward); }}
.sl2 .sl2-backward .sl2-edge, .sl2 .sl2-backward .sl2-box {{ stroke: var(--sl2-backward); stroke-dasharray: 6 4; }}
.sl2 .sl2-forward .sl2-head, .sl2 .sl2-forward .sl2-name {{ fill: var(--sl2-forward); }}
.sl2 .sl2-backward .sl2-head, .sl2 .sl2-backward .sl2-name {{ fill: var(--sl2-backward); }}
.sl2 .sl2-follows .sl2-badge {{ stroke: var(--sl2-wrong); }}
.sl2 .sl2-follows .sl2-verdict {{ fill: var(--sl2-wrong); }}
.sl2 .sl2-wrong .sl2-box {{ stroke: var(--sl2-wrong); stroke-width: 5; }}
.sl2 .sl2-backward.sl2-wrong .sl2-box {{ stroke-dasharray: 18 6; }}
.sl2 .sl2-verdict {{ font-size: 12px; font-weight: 700; text-anchor: middle; }}
.sl2 .sl2-badge {{ fill: none; stroke: var(--sl2-muted); }}
.sl2 .sl2-wrong .sl2-badge {{ fill: var(--sl2-wrong); stroke: none; }}
.sl2 .sl2-wrong .sl2-verdict {{ fill: var(--sl2-ground); }}
"""


def fragment(trace: Trace, check: GradCheck | None = None) -> str:
    """The HTML of ``trace``, with what ``check`` found out about the same problem, for a notebook.

    Of a long array the first rows and columns are drawn, of a batch one pair: that of the worst value of the first
    wrong step, else the first one. So the size does not grow with the arrays; it is below 300 kB.
    """
    return f'<div class="sl2"><style>{_STYLE}</style>{_content(trace, check)}</div>'


def page(trace: Trace, check: GradCheck | None = None) -> str:
    """The same as a whole document."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(_function(trace))}</title>'
        f'<style>{_STYLE}</style></head>\n<body class="sl2">{_content(trace, check)}</body>\n</html>\n'
    )


def _function(trace: Trace) -> str:
    return f"f(W, x) = ||sigmoid(W x){'' if trace.e is None else ' - y'}||²"


def _content(trace: Trace, check: GradCheck | None) -> str:
    title = f"{_function(trace)} and its gradients, in {trace.loss.dtype}"
    text = str(trace) if check is None else f"{check}\n\n{trace}"
    return (
        f'<p class="sl2-title">{escape(title)}</p>{"" if check is None else _verdict(check)}'
        f'<div class="sl2-graph" hidden="">{svg(trace, check)}</div>'
        f"<details><summary>The same as text</summary><pre>{escape(text)}</pre></details>"
    )


def _verdict(check: GradCheck) -> str:
    """What is right and what is wrong, and why."""
    wrong = [step for step in check.steps if not step.ok]
    right = ", ".join(step.name for step in check.steps if step.ok)
    html = ""
    if wrong:
        first = f"; the first wrong step is {name}" if (name := first_wrong_step(check)) else ""
        count = f"{len(wrong)} of {len(check.steps)} checked"
        html += f'<p><b class="sl2-no">WRONG:</b> {escape(count + first)}</p><ul>{"".join(map(_wrong, wrong))}</ul>'
    if right:
        html += f"<p><b>right:</b> {escape(right)}</p>"
    return html


def _wrong(step: ArrayCheck) -> str:
    where = ""
    if step.wrong:
        place = f" at {place}" if (place := step.place()) else ""
        where = f"the worst{place}: given {step.given_value:.6g}, true {step.true_value:.6g}"
        where = f": {step.wrong} of {step.true.size} values wrong, {where}" if step.true.size > 1 else f": {where}"
    if step.follows is not None:
        return (
            f"<li><b>{escape(step.name)}</b> is wrong because {escape(step.follows)} is; the step itself is right</li>"
        )
    reasons = [*step.mistakes, *(["No known mistake explains it."] * (not step.mistakes)), *step.known]
    items = "".join(f"<li>{escape(reason)}</li>" for reason in reasons)
    return f'<li><b>{escape(step.name)}</b> <b class="sl2-no">WRONG</b>{escape(where)}<ul>{items}</ul></li>'
