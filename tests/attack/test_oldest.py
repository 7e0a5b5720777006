"""tests/attack/oldest.txt, which `make oldest` installs, has the lower bound of every requirement of the tests."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]


def test_oldest_versions_are_the_lower_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    bounds, required = {}, set()
    for text in [*project["dependencies"], *extras["test"], *extras["cuda12"], *extras["cuda13"]]:
        requirement = Requirement(text)
        name = requirement.name.replace("cuda12x", "cuda13x")  # one CuPy for two toolkits
        required.add(name)
        for bound in requirement.specifier:
            if bound.operator == ">=":
                assert bounds.setdefault(name, bound.version) == bound.version, f"{name} has two lower bounds"
    assert set(bounds) == required, "a requirement has no lower bound"
    lines = (ROOT / "tests" / "attack" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    oldest = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {name: Version(v) for name, v in oldest.items()} == {name: Version(v) for name, v in bounds.items()}
