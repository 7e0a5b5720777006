"""Which machines get numba from `pip install`: those for which it has a wheel. Others install without it."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]

# The system, processor and Pythons, and the newest numba that they may get; None where there is no wheel. As of numba
# 0.68.1, whose wheels are cp311 to cp315 for Linux (glibc), macOS (arm64) and Windows; on ARM64 cp312 to cp314.
PLATFORMS = [
    ("linux", "x86_64", "CPython", "3.11 3.12 3.13 3.14 3.15", "0.68.1"),
    ("linux", "aarch64", "CPython", "3.11 3.15", "0.68.1"),
    ("darwin", "arm64", "CPython", "3.11 3.15", "0.68.1"),
    ("win32", "AMD64", "CPython", "3.11 3.15", "0.68.1"),
    ("win32", "ARM64", "CPython", "3.12 3.14", "0.68.1"),
    ("darwin", "x86_64", "CPython", "3.11 3.13", "0.62.1"),
    ("linux", "x86_64", "CPython", "3.16", None),
    ("win32", "ARM64", "CPython", "3.11 3.15", None),
    ("darwin", "x86_64", "CPython", "3.14", None),
    ("linux", "riscv64", "CPython", "3.13", None),
    ("linux", "ppc64le", "CPython", "3.13", None),
    ("linux", "armv7l", "CPython", "3.13", None),
    ("linux", "i686", "CPython", "3.13", None),
    ("win32", "x86", "CPython", "3.13", None),
    ("emscripten", "wasm32", "CPython", "3.13", None),
    ("linux", "x86_64", "PyPy", "3.11", None),
]


@pytest.mark.parametrize(("system", "machine", "python", "versions", "newest"), PLATFORMS)
def test_numba_is_asked_for_where_it_has_a_wheel(system, machine, python, versions, newest):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for version in versions.split():
        environment = {
            "sys_platform": system,
            "platform_machine": machine,
            "platform_python_implementation": python,
            "python_version": version,
        }
        asked = [Requirement(text) for text in project["dependencies"]]
        asked = [one for one in asked if one.marker is None or one.marker.evaluate(environment)]
        assert {"numpy", "tqdm"} <= {one.name for one in asked}
        numba = [one for one in asked if one.name == "numba"]
        assert len(numba) == (newest is not None)
        newer = "0.63.1" if newest == "0.62.1" else "0.61.1"
        assert all(newest in one.specifier and newer not in one.specifier for one in numba)
