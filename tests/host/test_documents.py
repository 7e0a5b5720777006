"""What a program can check in the documents: files, functions and commands that they name, and code that they show."""

import re
from pathlib import Path

import numpy as np
import pytest

import sigmoid_l2 as sl2
from sigmoid_l2.explain import example

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))
FOLDERS = ("bench", "docs", "examples", "kernels", "src", "tests")
FILES = {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")}
PATH = re.compile(rf"(?<![\w/])(?:(?:{'|'.join(FOLDERS)})/[\w./*-]*|[\w./*-]*\w\.(?:py|cuh|c|md|txt|toml|json|png)\b)")
# Named although they are not in the repository: what commands write, and files that the reader writes.
NOT_HERE = re.compile(r"build/|summary\.md$|mine\.(json|py|html)$|trace\.html$|kernels/cpu/one_row\.py$")
# An sdist and the copies in which mutants are planted leave some of them out.
COMPLETE = "CONTRIBUTING.md" in DOCUMENTS and (ROOT / "bench" / "results").is_dir()
pytestmark = pytest.mark.skipif(not COMPLETE, reason="some of the documents or what they name are not here")


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def code_of(document):
    """The parts in backticks: blocks and words."""
    return re.findall(r"```\w*\n(.*?)```|`([^`\n]+)`", text_of(document), re.DOTALL)


def exists(path, document):
    here = (ROOT, (ROOT / document).parent)
    return any(any(folder.glob(path)) for folder in here) or ("/" not in path and path in FILES)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_exists(document):
    paths = {path.rstrip(".") for path in PATH.findall(text_of(document)) if not NOT_HERE.search(path)}
    missing = sorted(path for path in paths if not exists(path, document))
    assert not missing, f"{document} names what is not there"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(document)):
        name, _, heading = target.partition("#")
        path = (ROOT / document).parent / name if name else ROOT / document
        assert path.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}, target


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_make_target_exists(document):
    targets = set(re.findall(r"^([a-z]+)(?=.*:)|^QUICK_([\w-]+)", text_of("Makefile"), re.MULTILINE))
    code = "\n".join(block + words for block, words in code_of(document))
    named = {(target, "") for target in re.findall(r"\bmake ([a-z]+)", code)}
    named |= {("", part) for part in re.findall(r"\bmake quick K=([\w-]+)", code)}
    assert named <= targets


def test_every_function_is_where_contributing_says():
    rows = re.findall(r"^\|(.*)\|$", text_of("CONTRIBUTING.md"), re.MULTILINE)
    places = [(PATH.findall(cells[1]), re.findall(r"`(\w+)`", cells[2])) for cells in (row.split("|") for row in rows)]
    places += [([path], [name]) for path, name in re.findall(r"`([\w/]+\.py)`: `(\w+)`", "\n".join(rows))]
    places = [(paths, names) for paths, names in places if paths and names]
    assert len(places) > 15
    for paths, names in places:
        text = "\n".join(text_of(path) for path in paths if not path.endswith("/"))
        missing = [name for name in names if not re.search(rf"\b{name}\b", text)]
        assert not missing, f"not in {', '.join(paths)}"


def test_code_that_contributing_quotes_is_ours():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "kernels").rglob("*.py")]
    blocks = re.findall(r"```python\n(.*?)```", text_of("CONTRIBUTING.md"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        assert any(block in source for source in sources), block


def blocks_of_the_readme():
    program, frameworks, session = re.findall(r"```python\n(.*?)```", text_of("README.md"), re.DOTALL)
    return program, frameworks, session


def test_frameworks_in_the_readme():
    for package in ("torch", "jax"):
        pytest.importorskip(package)
    names = {}
    exec(blocks_of_the_readme()[1], names)
    assert (names["W"].grad.shape, names["loss"].shape, names["dW"].shape) == ((3, 3), (), (3, 3))


def test_code_of_the_readme():
    program, _, session = blocks_of_the_readme()
    names = {}
    exec(program, names)
    assert (names["loss"].shape, names["dW"].shape, names["dx"].shape) == ((10**6,), (10**6, 3, 3), (10**6, 3))
    start = np.zeros_like(names["W"])
    start[..., -1] = 20
    mean_loss = [sl2.value(W, names["x"], names["y"]).mean(dtype=float) for W in (start, names["W"])]
    assert [f"{loss:.1g}" for loss in mean_loss] == ["3", "0.003"]
    s = 1 / (1 + np.exp(-(start @ names["x"][..., None])[..., 0]))
    assert not (s * (1 - s)).any()  # autograd stalls
    answer = session[session.index("dx: WRONG") :].removesuffix("  ...\n")
    report = str(sl2.check_grad(example.W, example.x, dx=example.dx))
    assert " ".join(report.split()).startswith(" ".join(answer.split()))
