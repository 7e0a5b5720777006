"""The package where its sources are no files: in a zip archive, as bytecode alone, in a program that is packed."""

import compileall
import shutil
import zipfile
from modulefinder import ModuleFinder
from pathlib import Path

import pytest
from processes import run_python

import sigmoid_l2 as sl2
from sigmoid_l2 import kernels, probes

KERNELS = Path(kernels.__file__).parent
TESTS = Path(__file__).parents[1]

CALL = """
import numpy as np
import sigmoid_l2 as sl2
from numba.core import event

class Compilations(event.Listener):
    number = 0
    def on_start(self, event):
        self.number += 1
    def on_end(self, event):
        pass

seen = Compilations()
event.register("numba:compile", seen)
W, x = np.zeros((5, 1, 1), "f4"), np.zeros((5, 1), "f4")
loss = sl2.value_and_grad(W, x).loss[0]
assert sl2.value(W, x, backend="numba")[0] == loss
print(sl2.__file__, {info.name: info.available for info in sl2.backends()}["numba"], loss, seen.number > 0)
"""


@pytest.fixture
def package(tmp_path):
    """A folder with a copy of the package."""
    ignore = shutil.ignore_patterns("__pycache__", "kernels")
    shutil.copytree(Path(sl2.__file__).parent, tmp_path / "package" / "sigmoid_l2", ignore=ignore)
    shutil.copytree(KERNELS, tmp_path / "package" / "sigmoid_l2" / "kernels", ignore=ignore)
    return tmp_path / "package"


def archive(package, name):
    """A zip archive of the folder ``package``, which stands beside it."""
    path = package.with_name(name)
    with zipfile.ZipFile(path, "w") as file:
        for source in package.rglob("*.*"):
            file.write(source, source.relative_to(package))
    return path


def call(where, **variables):
    """Of a first call in a fresh process: whether numba is available, the loss, whether anything was compiled."""
    caches = {"NUMBA_CACHE_DIR": "", "HOME": where.parent, "XDG_CACHE_HOME": where.parent / "cache"}
    file, available, loss, compiled = run_python(CALL, PYTHONPATH=where, **caches, **variables).split()
    assert Path(file).is_relative_to(where)
    return available == "True", float(loss), compiled == "True"


def test_a_zip_archive_is_compiled_once_and_again_when_it_changes(package):
    pytest.importorskip("numba")
    path = archive(package, "package.zip")
    assert call(path) == (True, 0.25, True)
    assert call(path) == (True, 0.25, False)
    sigmoid = package / "sigmoid_l2" / "kernels" / "cpu" / "sigmoid.py"  # which numba's cache does not know of
    text = sigmoid.read_text(encoding="utf-8")
    changed = text.replace("b.fdiv(v.constant(1),", "b.fdiv(v.constant(4),")
    assert changed != text, "the sigmoid's 1 / (1 + t) is not where this test looks for it"
    sigmoid.write_text(changed, encoding="utf-8")
    assert call(archive(package, "package.zip")) == (True, 4.0, True)


def test_an_archive_that_numba_does_not_know_is_no_error(package):
    """numba finds its cache for archives by ".zip" in the name; this one is compiled in each process."""
    pytest.importorskip("numba")
    assert call(archive(package, "package.pyz")) == (True, 0.25, True)


def test_bytecode_alone_without_docstrings(package):
    pytest.importorskip("numba")
    assert compileall.compile_dir(package, quiet=1, legacy=True, optimize=2, ddir="/nowhere")
    for source in package.rglob("*.py"):
        source.unlink()
    assert call(package, PYTHONOPTIMIZE=2) == (True, 0.25, True)


GPU = """
import sys
from importlib.resources import files
import numpy as np
from gpu import code, launches

W, x, loss = np.ones((1, 3, 3), "f4"), np.ones((1, 3), "f4"), np.ones(1, "f4")
for backend in sys.argv[1:]:
    launched, _ = launches.launches_of(backend, W, x, None, None, loss, W.copy(), x.copy(), None)
    print(*(".entry" in code.ptx(launch) for launch in launched), launches.host.__file__)
if "cupy" in sys.argv:
    from sigmoid_l2.kernels.gpu.launch_cupy import _text
    print(sum(len(_text(file.name.removesuffix(".cuh")))
              for file in files("sigmoid_l2.kernels.gpu").iterdir() if file.name.endswith(".cuh")))
"""


@pytest.mark.parametrize("backend", ["cupy", "numba-cuda"])
def test_gpu_kernels_are_compiled_from_a_zip_archive(backend, package):
    pytest.importorskip(backend.replace("-", "_"), exc_type=ImportError)
    path = archive(package, "package.zip")
    lines = run_python(GPU, backend, PYTHONPATH=f"{path}:{TESTS}", PYTHONWARNINGS="ignore").splitlines()
    assert lines[0] == f"True {path / 'sigmoid_l2' / 'kernels' / 'gpu' / 'launch.py'}"
    if backend == "cupy":
        assert lines[1:] == [str(sum(len(p.read_text(encoding="utf-8")) for p in KERNELS.glob("gpu/*.cuh")))]


PACKED = """
import sys
sys.modules.update(numba=None, llvmlite=None, numba_cuda=None, cupy=None)  # which are not found then
sys.frozen = True

import sigmoid_l2 as sl2
assert sl2.value([[0.0]], [0.0]) == 0.25
print(*(reason for info in sl2.backends() for reason in info.reasons), sep="\\n")
"""


def test_a_packed_program_is_not_told_to_install_anything():
    """sys.frozen is set in what PyInstaller, cx_Freeze, py2exe and py2app make."""
    reasons = run_python(PACKED).splitlines()
    assert len(reasons) == 3
    for reason in reasons:
        assert "is not packed into this program" in reason


def test_kernels_that_nuitka_has_compiled_are_none_for_numba(monkeypatch):
    monkeypatch.setattr(kernels, "__compiled__", object(), raising=False)  # Nuitka's mark
    for probe in (probes.probe_numba, probes.probe_numba_cuda):
        with pytest.raises(probes.NotAvailableError, match=r"Nuitka .* --nofollow-import-to=sigmoid_l2\.kernels$"):
            probe()


def test_import_statements_lead_to_every_kernel(package):
    """PyInstaller and Nuitka pack what these lead to; the shims need numba-cuda, which cannot be packed."""
    finder = ModuleFinder([str(package)])
    finder.import_hook("sigmoid_l2")
    shims = {"gpu.shim_numba_cuda", "gpu.shim_numba_cuda_mlir"}
    files = {path.relative_to(KERNELS).with_suffix("") for path in KERNELS.rglob("*.py") if path.stem != "__init__"}
    names = {".".join(file.parts) for file in files} - shims
    assert len(names) > 30
    assert {f"sigmoid_l2.kernels.{name}" for name in names} <= set(finder.modules)
