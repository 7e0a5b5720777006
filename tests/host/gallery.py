"""Writes what docs/gradients.md says that check_grad says: ``python tests/host/gallery.py``.

That is a row of a table for each kind of kinds.py, and what the programs of the page print. A test does the same and
compares, so that the page is never untrue.
"""

import contextlib
import io
import re
import sys
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import sigmoid_l2 as sl2
from host.kinds import GROUPS, Kind, run

PAGE = Path(__file__).parents[2] / "docs" / "gradients.md"
BEGIN, END = "<!-- written by tests/host/gallery.py -->\n", "<!-- end -->\n"


def says(kind: Kind) -> list[str]:
    """What the report of ``kind`` says, of one wrong gradient, or of both where a line of each is wrong."""
    with np.errstate(all="ignore"):
        result = run(kind, target=kind.target is not False)
    both = {"dW", "dx"} <= {line.split()[0] for line in kind.lines} and len(kind.lines) == 2
    names = kind.check if both else kind.check[:1]
    report = sl2.check_grad(*result.arguments, **{name: result.steps[name] for name in names})
    checks = [check for check in (report.dW, report.dx) if check]
    return [f"{check.name}: " * both + sentence for check in checks for sentence in (*check.mistakes, *check.known)]


# What a row says of W, x and y, where they are not those of one pair with a target.
NOTES = {
    "columns": "x and y are columns, (n, 1) and (m, 1)",
    "samples": "B samples",
    "pairs": "a batch of pairs",
    "small float32": "W is near 0, in float32",
    "integers": "W and x are integers",
    "one-hot": "y is one-hot",
    "one sample": "x is a row, (1, n)",
}


def code(lines: tuple[str, ...]) -> str:
    """Lines of Python in a cell of a table; of many the first two."""
    each = [line for text in lines for line in text.splitlines()]
    shown = each if len(each) < 6 else each[:2]
    cells = [
        "`` {} ``".format(line.replace("|", "\\|")).replace("``     ", "`` \u00a0\u00a0\u00a0\u00a0") for line in shown
    ]
    return "<br>".join([*cells, *["and so on"] * (shown != each)])


def tables() -> str:
    anchors = {group: re.sub(r"[^\w -]", "", group).lower().replace(" ", "-") for group in GROUPS}
    parts = [*(f"- [{group}](#{anchor})\n" for group, anchor in anchors.items()), "\n"]
    for group, kinds in GROUPS.items():
        parts.append(f"### {group}\n\n| wrong | what `check_grad` says | right |\n|---|---|---|\n")
        for kind in kinds:
            notes = ["without a y"] * (kind.target is False)
            notes += [NOTES[key] for key in (kind.program, kind.data) if key in NOTES]
            note = f"<br>({'; '.join(notes)})" if notes else ""
            said = (
                "<br>".join(sentence.replace("|", "\\|") for sentence in says(kind)) or "No known mistake explains it."
            )
            parts.append(f"| {code(kind.lines)}{note} | {said} | {code(kind.right)} |\n")
        parts.append("\n")
    return "".join(parts)


def outputs(text: str) -> str:
    """The page ``text``, in which each block without a language is what the Python block before it prints."""
    names: dict[str, object] = {}

    def printed(block: re.Match[str]) -> str:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(block["program"], names)
        return f"```python\n{block['program']}```\n" + (f"\n```\n{output.getvalue()}```\n" if block["output"] else "")

    return re.sub(r"```python\n(?P<program>.*?)```\n(?P<output>\n```\n.*?```\n)?", printed, text, flags=re.DOTALL)


def page(text: str) -> str:
    """The page ``text`` with all that check_grad says as it is now."""
    before, rest = text.split(BEGIN)
    return outputs(f"{before}{BEGIN}\n{tables()}{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
