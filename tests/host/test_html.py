"""trace and check_grad as HTML: every step is there, what is wrong is marked, and it is legible in every case."""

import base64
import dataclasses
import functools
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from arrays import pairs

import sigmoid_l2 as sl2
from sigmoid_l2.explain import boxes, cells, example, graph, html
from sigmoid_l2.explain.trace import STEPS

FORMULAS = {step[0]: step[2] for step in STEPS if not isinstance(step, str)}
MOST = 300_000  # bytes: no fragment may be longer


def traced(W, x, target=None, wrong=(), **given):
    """A trace, and its check where anything is given; the steps in ``wrong`` are given twice too large."""
    with np.errstate(all="ignore"):
        trace = sl2.trace(W, x, target)
        given.update({name: 2 * getattr(trace, name).astype(np.float64) for name in wrong})
    return trace, sl2.check_grad(W, x, target, **given) if given else None


def first_of(*shape):
    """Zeros, but for a first value that is worse than any other."""
    a = np.zeros(shape)
    a.flat[0] = 1e6
    return a


def columns(batch, m, n):
    W, x = pairs(batch, m, n)
    return W, x[..., None]


def right(W, x, target):
    trace = sl2.trace(W, x, target)
    return {name: getattr(trace, name) for name, formula in FORMULAS.items() if formula}


def without_numbers():
    W, x = pairs((), 8, 9)
    W[0, 0], W[1, 1], W[2, 2] = np.nan, np.inf, -np.inf
    return W, x


BAD = [[np.nan, 1, 2], [np.inf, -1e-9, 3], [4, 5, -np.inf]]
W, x = pairs((), 3, 4)
MADE = {
    "1x1": lambda: traced(*pairs((), 1, 1)),
    "3x3": lambda: traced(example.W, example.x),
    "3x3, target": lambda: traced(example.W, example.x, [1, 0, 1]),
    "5x2": lambda: traced(*pairs((), 5, 2), 0.5),
    "hand-written": lambda: traced(example.W, example.x, dW=example.dW, dx=example.dx),
    "everything wrong": lambda: traced(W, x, 0.25, [name for name, formula in FORMULAS.items() if formula]),
    "everything right": lambda: traced(*columns((), 3, 4), 0.25, **right(*columns((), 3, 4), 0.25)),
    "10x784": lambda: traced(*pairs((), 10, 784), 1, ["q", "dW"]),
    "2000x2000": lambda: traced(*pairs((), 2000, 2000, np.float32)),
    "30x40": lambda: traced(*pairs((), 30, 40, np.float32), None, ["dW", "dx"]),
    "300x1": lambda: traced(*pairs((), 300, 1), 0, ["dW"]),
    "1x300": lambda: traced(*pairs((), 1, 300), 0, ["dx"]),
    "batch": lambda: traced(*pairs((1000,), 3, 4), None, ["s", "dW", "loss"]),
    "batch of columns": lambda: traced(*columns((2, 5), 3, 4), 1, ["e"]),
    "one W": lambda: traced(W, pairs((6,), 3, 4)[1], None, ["dW"]),
    "one x": lambda: traced(pairs((2, 1), 3, 4)[0], pairs((3,), 3, 4)[1], 1, ["dx"], dW=first_of(2, 1, 3, 4)),
    "no pairs": lambda: traced(np.zeros((0, 3, 4)), x, 1),
    "no pairs, wrong": lambda: traced(np.zeros((0, 3, 4)), x, dW=np.zeros((3, 4)), dx=np.ones(4)),
    "nan and inf": lambda: traced(BAD, [1.0, 1e300, 1e-300], 1, ["q"]),
    "nan and inf without numbers": lambda: traced(*without_numbers(), None, ["dx"]),
    "float16": lambda: traced(*pairs((), 3, 3, np.float16), None, ["dW"]),
    "shapes": lambda: traced(W, x, q=1.0, s=np.ones(()), dW=np.ones((2, 3, 4, 5)), dx=np.zeros((0, 4))),
    "long numbers": lambda: traced(W * 1e-300, x * -1e5, dW=W * 1e-301),
}


@functools.cache
def case(name):
    """The trace and the check of a case."""
    return MADE[name]()


EVERY = pytest.mark.parametrize("name", MADE)


@functools.cache
def fragment(name):
    return html.fragment(*case(name))


def tree(text):
    """The parsed fragment; raises ParseError where it is not well-formed. Tags lose the namespace of SVG."""
    root = ElementTree.fromstring(text)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def drawn(root):
    """The text of each box, by the name at its top; and the classes of its group."""
    found = {}
    for group in root.iter("g"):
        children = list(group)
        if children and children[0].get("class") == "sl2-box":
            texts = ["".join(t.text or "") for t in group.iter("text")]
            found[texts[0]] = texts[1:], group.get("class").split()
    return found


@EVERY
def test_it_is_well_formed_and_needs_nothing_else(name):
    text = fragment(name)
    tree(text)
    assert len(text.encode()) < MOST
    assert not re.search(r"<script|<link|<img|<iframe|@import|url\(|\b(src|href|id|on\w+)=", text)
    assert set(re.findall(r"\w+://[^\"' ]*", text)) == {"http://www.w3.org/2000/svg"}


@EVERY
def test_every_step_has_its_name_its_formula_and_its_shape(name):
    trace, _ = case(name)
    found = drawn(tree(fragment(name)))
    assert found.keys() == {step for step in FORMULAS if getattr(trace, step) is not None}
    for step, (texts, classes) in found.items():
        if FORMULAS[step]:
            assert texts[0] == f"= {FORMULAS[step].format(e='s' if trace.e is None else 'e')}"
        assert any(text.endswith(str(getattr(trace, step).shape)) for text in texts), step
        direction = "backward" if step.startswith("d") else "forward" if FORMULAS[step] else "given"
        assert f"sl2-{direction}" in classes


def test_forward_and_backward_differ_without_colour():
    text = fragment("3x3")
    assert "solid" in text
    assert "dashed" in text
    rules = re.findall(r"([^{}]+)\{([^{}]*)\}", html._STYLE)
    dashed = [selector for selectors, rule in rules if "stroke-dasharray" in rule for selector in selectors.split(",")]
    assert {".sl2 .sl2-backward .sl2-edge", ".sl2 .sl2-backward .sl2-box"} <= {selector.strip() for selector in dashed}
    assert all(".sl2-backward" in selector for selector in dashed)


def test_the_graph_is_told_to_a_screen_reader():
    label = next(tree(fragment("hand-written")).iter("svg")).get("aria-label")
    assert "q from W and x; s from q; loss from s;" in label
    assert label.endswith("dx from W and dloss_dq. Wrong: dW, dx.")


@pytest.mark.parametrize("target", [None, 1])
def test_the_arrows_are_those_of_the_formulas(target):
    found = graph.arrows(boxes.boxes(sl2.trace(example.W, example.x, target)))
    expected = set()
    for name, formula in FORMULAS.items():
        words = re.findall(r"[A-Za-z_]+", formula.format(e="s" if target is None else "e"))
        used = {"dloss_dq" if word == "g" else word for word in words} - {"sigmoid"}
        if target is not None or name != "e":
            expected |= {(word, name) for word in used}
    assert found.keys() == expected


def _segments(corners):
    return list(itertools.pairwise(corners))


def _meet(a, b):
    """Whether two segments, each along an axis, have a point in common."""
    (ax, ay), (bx, by) = zip(*a, strict=True), zip(*b, strict=True)
    return max(min(ax), min(bx)) <= min(max(ax), max(bx)) and max(min(ay), min(by)) <= min(max(ay), max(by))


@EVERY
def test_boxes_and_arrows_do_not_meet(name):
    placed = boxes.boxes(*case(name))
    for a, b in itertools.combinations(placed.values(), 2):
        apart_x = max(a.x - b.right, b.x - a.right)
        apart_y = max(a.y - b.bottom, b.y - a.bottom)
        assert max(apart_x, apart_y) >= 20, (a.name, b.name)
    arrows = graph.arrows(placed)
    for (start, end), corners in arrows.items():
        for step, box in placed.items():
            corner = ((box.x, box.y), (box.right, box.bottom))
            touched = [k for k, segment in enumerate(_segments(corners)) if _meet_box(segment, corner)]
            allowed = [0] * (step == start) + [len(corners) - 2] * (step == end)
            assert touched == allowed, (start, end, step)
        assert min(x for x, _ in corners) > 0
    for a, b in itertools.combinations(arrows, 2):
        for one, other in itertools.product(_segments(arrows[a]), _segments(arrows[b])):
            assert not _meet(one, other), (a, b)


def _meet_box(segment, box):
    (left, top), (right, bottom) = box
    (ax, ay), (bx, by) = segment
    return min(ax, bx) <= right and max(ax, bx) >= left and min(ay, by) <= bottom and max(ay, by) >= top


@EVERY
def test_what_is_wrong_is_marked_and_nothing_else(name):
    _, check = case(name)
    root = tree(fragment(name))
    first, steps = None, () if check is None else check.steps
    if {step.name for step in steps} - {"dW", "dx"}:
        first = check.first_wrong
        assert first is None or f"; the first wrong step is {first}" in "".join(root.itertext())
    verdicts = {step.name: "right" if step.ok else "follows" if step.follows else "WRONG" for step in steps}
    for step, (texts, classes) in drawn(root).items():
        assert [word for word in texts if word in ("right", "follows", "WRONG")] == [
            verdicts[s] for s in verdicts if s == step
        ]
        assert ("sl2-wrong" in classes) == (verdicts.get(step) == "WRONG")
        assert ("first wrong step" in texts) == (step == first)
        compared = verdicts.get(step) in ("follows", "WRONG")
        assert [text.split(" (")[0] for text in texts if text.startswith(("given", "true"))] == [
            *["given", "true"] * compared
        ]
    said = ["".join(item.itertext()) for item in root.iter("li")]
    for step in steps:
        assert set(step.mistakes + step.known) <= set(said)


def test_the_given_and_the_true_values_of_a_wrong_step_are_shown():
    trace, check = traced(example.W, example.x, [1, 0, 1], q=[[0.24], [0.5], [0.21]])
    texts, _ = drawn(tree(html.fragment(trace, check)))["q"]
    assert [text for text in texts if re.fullmatch(r"[\d.]+", text)] == ["0.24", "0.5", "0.21", "0.24", "0.31", "0.21"]
    assert "outlined: the worst" in texts


def test_a_step_that_differs_in_its_last_digits_is_shown_with_them():
    trace = sl2.trace(example.W, example.x)
    q = trace.q * (1 + 1e-4)
    texts, _ = drawn(tree(html.fragment(*traced(example.W, example.x, q=q))))["q"]
    assert {f"{q[1, 0]:.6g}", f"{trace.q[1, 0]:.6g}"} <= set(texts)


def test_the_pair_of_the_worst_value_is_drawn():
    W, x = pairs((1000,), 3, 4)
    trace = sl2.trace(W, x, 1)
    g = trace.dloss_dq.copy()
    g[3, 1] *= 2
    found = drawn(tree(html.fragment(*traced(W, x, 1, dloss_dq=g, dW=trace.dW))))
    for name, (texts, _) in found.items():
        assert "pair 3 of 1000" in texts, name
    assert f"{trace.q[3, 1]:.4g}" in found["q"][0]
    assert "pair 0 of 1000" in drawn(tree(html.fragment(trace)))["q"][0]


def test_the_pair_of_the_worst_value_is_drawn_of_arrays_that_pairs_share():
    (W, _), (_, x) = pairs((2, 1), 3, 4), pairs((3,), 3, 4)
    q = sl2.trace(W, x).q
    q[1, 2, 0] += 1
    found = drawn(tree(html.fragment(*traced(W, x, q=q))))
    for step, caption in {"W": "item (1, 0) of (2, 1)", "x": "item 2 of 3", "q": "pair (1, 2) of (2, 3)"}.items():
        assert caption in found[step][0]
    assert f"{W[1, 0, 0, 0]:.4g}" in found["W"][0]


CAPTIONS = {
    "10x784": {"x": ["first 8 of 784 rows"], "W": ["first 16 of 784 columns"], "s": ["first 8 of 10 rows"]},
    "2000x2000": {"W": ["first 16 of 2000 rows", "first 16 of 2000 columns"]},
    "batch of columns": {"q": ["pair (1, 1) of (2, 5)"]},
    "one W": {"W": [], "x": ["pair 0 of 6"], "dW": ["summed over the", "pairs that share W"]},
    "one x": {"W": ["item (0, 0) of (2, 1)"], "x": ["item 0 of 3"], "q": ["pair (0, 0) of (2, 3)"]},
    "no pairs": {"q": ["empty"], "dx": ["summed over the", "pairs that share x"]},
    "nan and inf without numbers": {"W": ["× nan", "∞ infinite"], "dW": ["× nan"]},
    "shapes": {"dW": ["item (0, 0) of (2, 3)"], "dx": ["empty"]},
    "3x3": {"W": [], "dx": []},
}


@pytest.mark.parametrize("name", CAPTIONS)
def test_what_is_shown_of_an_array_is_said(name):
    found = drawn(tree(fragment(name)))
    for step, captions in CAPTIONS[name].items():
        said = [t for t in found[step][0] if re.match(r"(first \d|pair|item|summed|empty|× nan|∞ inf)", t)]
        assert said == captions, step


def test_the_cells_have_the_values_and_their_places():
    trace = sl2.trace(*columns((2, 5), 3, 4))
    text = html.fragment(trace)
    for name, index in {"W": (0, 0, 2, 3), "q": (0, 0, 1, 0), "loss": (0, 0)}.items():
        assert f"<title>{name}{list(index)} = {getattr(trace, name)[index]:.9g}</title>" in text


def test_a_cell_is_tinted_by_its_sign_and_its_size():
    (picture,) = cells.pictures("W", [cells.part(np.array([[8.0, -4.0, 0.0, 1e-9]]), 2, ())])
    tints = re.findall(r'class="sl2-([pn])" fill-opacity="([\d.]+)" d="M(\d*)', picture.svg)
    width = picture.width / 4
    assert f'd="M0 0h{width:g}v19h-{width:g}z"' in picture.svg
    assert [(sign, float(opacity), float(x) // width) for sign, opacity, x in tints] == [
        ("n", 0.24, 1),
        ("p", 0.06, 3),
        ("p", 0.48, 0),
    ]


def test_numbers_get_as_many_digits_as_fit():
    def made(given, true=None):
        parts = [cells.part(np.array([row]), 2, ()) for row in (given, true) if row]
        return cells.pictures("W", parts, (given[0], true and true[0]))

    def texts(*values):
        return [re.findall(r">([^<]+)<title", picture.svg) for picture in made(*values)]

    assert texts([0.123456] * 4) == [["0.1235"] * 4]
    assert texts([-0.000123456] * 4) == [["-0.000123"] * 4]
    assert texts([0.123456, 1], [0.123457, 1]) == [["0.123456", "1"], ["0.123457", "1"]]
    assert texts([-0.000123456] * 6) == [[]]
    assert made([-0.000123456] * 6)[0].width == 6 * 20


def test_a_cell_without_a_number_shows_its_sign_without_colour():
    (picture,) = cells.pictures("W", [cells.part(np.where(np.arange(40) % 2, -1.0, 1.0)[None], 2, ())])
    assert picture.svg.count("h4") == 8  # every other of 16


def test_no_work_is_done_for_values_that_are_not_drawn():
    endless = np.broadcast_to(1.5, (10**6, 10**6))  # 8 TB if anything were computed for all of them
    picture, column = (cells.pictures("W", [cells.part(a, 2, ())])[0] for a in (endless, endless[:, :1]))
    assert picture.captions == ("first 16 of 1000000 rows", "first 16 of 1000000 columns")
    assert column.captions == ("first 8 of 1000000 rows",)


class Balance(HTMLParser):
    """Fails where an element is not closed in its turn."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.hidden, self.text = [], [], 0, ""

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag != "meta":
            self.open.append((tag, "hidden" in dict(attrs) or tag == "style"))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if not any(hidden for _, hidden in self.open):
            self.text += data


@pytest.mark.parametrize("name", ["3x3, target", "everything wrong"])
def test_the_page_is_a_document(name):
    trace, check = case(name)
    text = html.page(trace, check)
    assert text.startswith("<!DOCTYPE html>\n")
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    assert (
        parser.seen.count("svg")
        == parser.seen.count("body")
        == parser.seen.count("title") - text.count("<title>", text.index("<svg"))
        == 1
    )
    assert '<meta charset="utf-8">' in text
    assert graph.svg(trace, check) in text


def test_a_notebook_that_is_not_trusted_shows_the_verdict_and_the_text():
    """There <style> and <svg> are left out, and the texts of the SVG would remain but for ``hidden``."""
    trace, check = traced(example.W, example.x, q=[[1.0]] * 3, dW=example.dW, dx=example.dx)
    parser = Balance()
    parser.feed(
        re.sub(
            r"</?(svg|style|g|path|rect|text|title)\b[^>]*>", "", html.fragment(trace, check).replace(html._STYLE, "")
        )
    )
    assert parser.text.count("first wrong step") == 1 + str(check).count("first wrong step")
    for step in check.steps:
        assert all(reason in parser.text for reason in (step.name, *step.mistakes, *step.known))
    assert str(trace) in parser.text


def test_what_comes_from_elsewhere_is_escaped():
    trace, check = traced(example.W, example.x, q=[[1.0]] * 3)
    evil = "<script>alert('\"')</script>&lt;"
    check = dataclasses.replace(check, steps=(dataclasses.replace(check.steps[0], mistakes=(evil,), known=(evil,)),))
    text = html.page(trace, check)
    assert "<script" not in text
    items = ["".join(item.itertext()) for item in tree(html.fragment(trace, check)).iter("li")]
    assert items.count(evil) == 2


def test_a_trace_is_shown_in_a_notebook():
    trace = sl2.trace(example.W, example.x)
    assert trace._repr_html_() == html.fragment(trace)


def test_bfloat16():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    trace = sl2.trace(*pairs((), 3, 3, ml_dtypes.bfloat16))
    assert f"{float(trace.q[0]):.4g}" in drawn(tree(html.fragment(trace)))["q"][0]


def test_the_style_stays_within():
    style = re.sub(r"@media[^{]*", "", html._STYLE)
    for selectors in re.findall(r"([^{};]+)\{(?=[^{}]*\})", style):
        for selector in selectors.split(","):
            assert re.search(r"\.sl2\b", selector), selector


def _luminance(rgb):
    parts = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def _contrast(a, b):
    light, dark = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_contrast(dark):
    """WCAG 2: 4.5 for text, 3 for what else must be seen."""
    colour = {name: [int(both[dark][k : k + 2], 16) / 255 for k in (1, 3, 5)] for name, both in html._COLOURS.items()}
    grounds = [colour["ground"], colour["box"]]
    for name in ("text", "muted", "forward", "backward", "wrong"):
        for ground in grounds:
            assert _contrast(colour[name], ground) >= 4.5, name
    for name in ("positive", "negative"):
        strongest = cells._LEVELS * cells._OPACITY
        tint = [strongest * c + (1 - strongest) * b for c, b in zip(colour[name], colour["box"], strict=True)]
        assert _contrast(colour["text"], tint) >= 4.5, name
    for ground in grounds:
        assert _contrast(colour["line"], ground) >= 3


# Measures, in a browser, how far each text is outside its box, and the colours that apply below each theme.
MEASURE = """<script>
const out = {texts: 0, outside: [], colours: {}, wider: 0};
for (const box of document.querySelectorAll(".sl2-box")) {
  const b = box.getBoundingClientRect();
  for (const text of box.parentNode.querySelectorAll("text")) {
    const t = text.getBoundingClientRect();
    out.texts += 1;
    const inside = t.left >= b.left && t.right <= b.right && t.top >= b.top && t.bottom <= b.bottom;
    if (!inside) out.outside.push(text.textContent);
  }
}
for (const badge of document.querySelectorAll(".sl2-badge")) {
  const name = badge.parentNode.querySelector(".sl2-name");
  const inside = name.getBoundingClientRect().right <= badge.getBoundingClientRect().left;
  if (!inside) out.outside.push(name.textContent);
}
for (const svg of document.querySelectorAll("svg")) {
  const b = svg.getBoundingClientRect();
  for (const part of svg.querySelectorAll("text, path, rect")) {
    const p = part.getBoundingClientRect();
    const inside = p.left >= b.left && p.right <= b.right && p.top >= b.top && p.bottom <= b.bottom;
    if (!inside) out.outside.push(part.outerHTML);
  }
  if (b.right > innerWidth) out.wider += 1;
}
for (const theme of document.querySelectorAll("[data-theme], [data-jp-theme-light], .vscode-dark")) {
  out.colours[theme.dataset.name] = getComputedStyle(theme.querySelector(".sl2")).backgroundColor;
}
out.colours.none = getComputedStyle(document.querySelector(".sl2")).backgroundColor;
const numbers = [...document.querySelectorAll(".sl2-v")];
out.cut = numbers.filter(n => n.getBBox().width > 10 + 6.8 * n.firstChild.length).length;
document.body.dataset.out = btoa(unescape(encodeURIComponent(JSON.stringify(out))));
</script>"""

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
THEMES = {
    "jupyter dark": ('data-jp-theme-light="false"', True),
    "jupyter light": ('data-jp-theme-light="true"', False),
    "sphinx dark": ('data-theme="dark"', True),
    "sphinx light": ('data-theme="light"', False),
    "vscode": ('class="vscode-dark"', True),
}


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_in_a_browser_everything_is_in_its_box(tmp_path):
    """Also: 700 px are wide enough, and the theme of the notebook wins over the system's, which is light here."""
    short = fragment("1x1")
    themed = [f'<div data-name="{name}" {where}>{short}</div>' for name, (where, _) in THEMES.items()]
    page = tmp_path / "page.html"
    body = "".join(map(fragment, MADE)) + "".join(themed) + MEASURE
    page.write_text(f'<!DOCTYPE html><meta charset="utf-8"><body>{body}</body>', encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=700,900", "--dump-dom"]
    done = subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()], capture_output=True, text=True, timeout=60
    )
    out = json.loads(base64.b64decode(re.search(r'data-out="([^"]*)"', done.stdout)[1]))
    assert out["texts"] > 1000
    assert out["outside"] == []
    assert out["cut"] == out["wider"] == 0
    grounds = {
        f"rgb({', '.join(str(int(c[k : k + 2], 16)) for k in (1, 3, 5))})": dark
        for dark, c in enumerate(html._COLOURS["ground"])
    }
    assert {name: grounds[colour] for name, colour in out["colours"].items()} == {
        "none": False,
        **{name: dark for name, (_, dark) in THEMES.items()},
    }
