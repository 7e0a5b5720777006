"""Build the wheel twice, in ways that must not matter, and see that the bytes are the same; of the sdist, the contents.

Run by `make reproducible`; not a pytest file, because it builds with packages from the index. The second build is of
sources in another folder, with other times, in another time zone and locale, with another order of Python's sets. What
does matter is SOURCE_DATE_EPOCH, here the time of the last commit, and the modes of files, here those of umask 022:
setuptools puts them into the wheel. Into the sdist it puts the times of the build, so that its bytes always differ.
"""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOT_SOURCES = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
WAYS = {
    "one": (1_700_000_000, {"PYTHONHASHSEED": "1", "TZ": "UTC", "LC_ALL": "C.UTF-8"}),
    "two/and/deeper": (1_500_000_000, {"PYTHONHASHSEED": "2", "TZ": "Asia/Kathmandu", "LC_ALL": "C"}),
}


def build(original: Path, folder: Path, time: int, variables: dict[str, str]) -> dict[str, bytes]:
    """The files that a build of a copy of ``original`` in ``folder`` makes."""
    sources, built = folder / "sources", folder / "built"
    shutil.copytree(original, sources)
    for path in sources.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
        os.utime(path, (time, time))
    epoch = ["git", "log", "-1", "--format=%ct"]
    epoch = subprocess.run(epoch, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", built, sources],
        env={**os.environ, **variables, "SOURCE_DATE_EPOCH": epoch},
        umask=0o022,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return {path.name: path.read_bytes() for path in built.iterdir()}


def members(sdist: bytes) -> dict[str, bytes | None]:
    """What an sdist holds, without times."""
    with tarfile.open(fileobj=io.BytesIO(sdist)) as archive:
        return {m.name: f.read() if (f := archive.extractfile(m)) else None for m in archive}


def main() -> None:
    """Exit with the name of what differs."""
    with tempfile.TemporaryDirectory() as name:
        original = Path(name, "original")
        shutil.copytree(ROOT, original, ignore=NOT_SOURCES)
        first, second = (build(original, Path(name, folder), *way) for folder, way in WAYS.items())
    for file, content in first.items():
        same = content == second[file] if file.endswith(".whl") else members(content) == members(second[file])
        if not same:
            sys.exit(f"two builds of {file} differ")
        print(hashlib.sha256(content).hexdigest() if file.endswith(".whl") else "the same contents", file)


if __name__ == "__main__":
    main()
