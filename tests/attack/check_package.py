"""Build the wheel and the sdist, see that they hold what they must, and use both in empty environments: `make package`.

`make reproducible`, which is check_package.py twice, builds them twice, in ways that must not matter, and compares the
bytes of the wheels and the contents of the sdists. The second build is of sources in another folder, with other times,
in another time zone and locale, with another order of Python's sets. What does matter is SOURCE_DATE_EPOCH, here the
time of the last commit, and the modes of files, here those of umask 022: setuptools puts them into the wheel. Into the
sdist it puts the times of the build, so that its bytes always differ.

Not a pytest file, because it builds and installs from the package index.
"""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for folder in ("src/sigmoid_l2", "kernels") for path in (ROOT / folder).rglob("*.*")]
CODE = {p.relative_to(ROOT).as_posix() for p in SOURCES if p.suffix in (".py", ".pyi", ".cuh", ".typed")}
IN_WHEEL = {name.removeprefix("src/").replace("kernels/", "sigmoid_l2/kernels/", 1) for name in CODE}
IN_SDIST = CODE | {"pyproject.toml", "README.md", "LICENSE"}

NOT_SOURCES = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
WAYS = {
    "one": (1_700_000_000, {"PYTHONHASHSEED": "1", "TZ": "UTC", "LC_ALL": "C.UTF-8"}),
    "two/and/deeper": (1_500_000_000, {"PYTHONHASHSEED": "2", "TZ": "Asia/Kathmandu", "LC_ALL": "C"}),
}

# From a folder that is not the checkout: what runs is what was installed.
USE = """
import numpy as np, sigmoid_l2 as sl2
from importlib.resources import files
assert "sigmoid_l2" in files("sigmoid_l2.kernels.gpu").joinpath("common.cuh").read_text(encoding="utf-8")
loss, dW, dx = sl2.value_and_grad(np.zeros((5, 3, 2)), np.ones((5, 2)))
assert loss.shape == (5,) and dW.shape == (5, 3, 2) and dx.shape == (5, 2)
np.testing.assert_array_equal(loss, 0.75)
np.testing.assert_array_equal(dW, 0.25)
print("installed and used:", sl2.__file__)
"""


# What a user writes who has neither PyTorch nor JAX; mypy finds the types in the wheel alone.
TYPED = ROOT / "tests" / "typing" / "right.py"


def run(*command: str | Path, cwd: Path) -> None:
    """Run a command; an error ends the script."""
    subprocess.run([str(part) for part in command], cwd=cwd, check=True)


def check_contents(wheel: Path, sdist: Path) -> None:
    """Exit with the names of what is missing, or of what a wheel must not bring along."""
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    code = {name for name in in_wheel if ".dist-info/" not in name}
    if code != IN_WHEEL:
        sys.exit(f"{wheel.name}: missing {sorted(IN_WHEEL - code)}, unexpected {sorted(code - IN_WHEEL)}")
    if not any(name.endswith("licenses/LICENSE") for name in in_wheel):
        sys.exit(f"{wheel.name}: no LICENSE")
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    if not in_sdist >= IN_SDIST:
        sys.exit(f"{sdist.name}: missing {sorted(IN_SDIST - in_sdist)}")
    print(f"{wheel.name}: {len(code)} files; {sdist.name}: {len(in_sdist)} entries")


def check_uses(folder: Path) -> None:
    """Build, look, install, use."""
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    check_contents(wheel, sdist)
    for package in (wheel, sdist):
        environment = folder / f"env-{package.suffix[1:]}"
        run(sys.executable, "-m", "venv", environment, cwd=folder)
        python = environment / "bin" / "python"
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", package, cwd=folder)
        run(python, "-W", "error", "-c", USE, cwd=folder)
        run(environment / "bin" / "sigmoid-l2", "info", cwd=folder)
        mypy = sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={folder / 'mypy'}"
        run(*mypy, "--python-executable", python, TYPED, cwd=folder)


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


def check_two_builds(folder: Path) -> None:
    """Exit with the name of what differs."""
    shutil.copytree(ROOT, folder / "original", ignore=NOT_SOURCES)
    first, second = (build(folder / "original", folder / name, *way) for name, way in WAYS.items())
    for file, content in first.items():
        same = content == second[file] if file.endswith(".whl") else members(content) == members(second[file])
        if not same:
            sys.exit(f"two builds of {file} differ")
        print(hashlib.sha256(content).hexdigest() if file.endswith(".whl") else "the same contents", file)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        (check_two_builds if sys.argv[1:] == ["twice"] else check_uses)(Path(name))
