"""The pages of docs/ on other libraries: the Python blocks of each run from top to bottom, as one program."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from processes import run_python

DOCS = Path(__file__).parents[2] / "docs"
# The packages that the programs of a page import.
PAGES: dict[str, tuple[str, ...]] = {
    "processes": ("joblib",),
}


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page(page):
    missing = [package for package in PAGES[page] if find_spec(package) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    run_python("\n".join(blocks))
