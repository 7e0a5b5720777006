"""The package of a checkout as a folder for PYTHONPATH: no pip, no network, and the environment stays as it is."""

import io
import shutil
import subprocess
import tomllib
import zipfile
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("src/sigmoid_l2", "kernels", "pyproject.toml")


def git(*words: str) -> bytes:
    """What git prints; OSError or SubprocessError where there is no git or no repository."""
    command = ["git", "--no-optional-locks", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=True).stdout


@cache
def commit() -> str:
    """The commit of this checkout, and whether anything but results has changed since."""
    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results")
        return git("rev-parse", "HEAD").decode().strip() + ", with changes" * bool(changed)
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def export(revision: str, folder: Path) -> None:
    """Write the sources of the package at ``revision`` to ``folder``."""
    with zipfile.ZipFile(io.BytesIO(git("archive", "--format=zip", revision, *SOURCES))) as archive:
        archive.extractall(folder)


def assemble(packages: Path, root: Path = ROOT) -> None:
    """Copy the package of the checkout at ``root`` to ``packages``, with the metadata that pip would write."""
    shutil.rmtree(packages, ignore_errors=True)
    no_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(root / "src" / "sigmoid_l2", packages / "sigmoid_l2", ignore=no_caches)
    shutil.copytree(root / "kernels", packages / "sigmoid_l2" / "kernels", ignore=no_caches)
    version = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    metadata = packages / f"sigmoid_l2-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: sigmoid-l2\nVersion: {version}\n", encoding="utf-8")
