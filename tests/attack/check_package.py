"""Build the wheel and the sdist, see that they hold what they must, and use both in empty environments.

Run by `make package`; not a pytest file, because it builds and installs from the package index.
"""

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for folder in ("src/sigmoid_l2", "kernels") for path in (ROOT / folder).rglob("*.*")]
CODE = {p.relative_to(ROOT).as_posix() for p in SOURCES if p.suffix in (".py", ".cuh", ".typed")}
IN_WHEEL = {name.removeprefix("src/").replace("kernels/", "sigmoid_l2/kernels/", 1) for name in CODE}
IN_SDIST = CODE | {"pyproject.toml", "README.md", "LICENSE"}

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


def main() -> None:
    """Build, look, install, use."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
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


if __name__ == "__main__":
    main()
