"""That `make mutation` can plant each mutant; whether the tests notice it is what that shows."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MUTANTS = runpy.run_path(str(ROOT / "tests" / "attack" / "mutation" / "mutants.py"))["MUTANTS"]


@pytest.mark.skipif(not (ROOT / "kernels").is_dir(), reason="the sources are not here")
def test_each_mutant_can_be_planted():
    for mutant in MUTANTS:
        folder = ROOT if mutant.file.startswith("kernels/") else ROOT / "src"
        assert (folder / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1, mutant.name
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.skipif(not (ROOT / "docs" / "reliability.md").is_file(), reason="the documents are not here")
def test_the_documents_tell_how_many_there_are():
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert f"has {len(MUTANTS)} mistakes" in text
