"""The table of backends: what it says about each, what a call gets, and how a backend that cannot run refuses."""

import importlib
import importlib.abc
import importlib.machinery
import re
import sys
import types
from types import SimpleNamespace

import numpy as np
import pytest

import sigmoid_l2 as sl2
from sigmoid_l2 import dispatch
from sigmoid_l2.problem import validate

W, X = np.linspace(-1, 1, 60).reshape(5, 3, 4), np.linspace(-2, 1, 20).reshape(5, 4)


def test_backends_and_their_reasons():
    infos = sl2.backends()
    assert isinstance(infos, tuple)
    devices = {"numpy": "cpu", "numba": "cpu", "cupy": "cuda", "numba-cuda": "cuda"}
    assert {info.name: info.device for info in infos} == devices
    assert all(info.available == (info.reasons == ()) for info in infos)
    assert {info.name: info.available for info in infos}["numpy"]


def forget():
    """Let the dispatcher look again at what is installed."""
    for function in vars(dispatch).values():
        getattr(function, "cache_clear", int)()


def library(name, **attributes):
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__dict__.update(attributes)
    return module


def old_driver():
    raise RuntimeError("cudaErrorInsufficientDriver")


def found_in(**places):
    """numba.cuda.cuda_paths, where ``places`` are None or the paths of what numba-cuda compiles with."""
    found = {name: SimpleNamespace(info=place) for name, place in places.items()}
    return library("numba.cuda.cuda_paths", get_cuda_paths=lambda: found)


def no_libnvvm():
    found = RuntimeError('Failure finding "libnvvm.so.4": No such file\n  listdir("/usr/lib"): ...')
    raise RuntimeError(f"cannot infer CUDA_HOME; original nvvm error: {found}") from found


NO_DEVICE, OLD_DRIVER = SimpleNamespace(is_available=lambda: False), SimpleNamespace(is_available=old_driver)
INSTALLED = {"numba_cuda": library("numba_cuda", __version__="0.30.4")}
# Each finds no device.
SUCCESSOR = {
    "numba_cuda": None,
    "numba_cuda_mlir": library("numba_cuda_mlir", __path__=[]),
    "numba_cuda_mlir.cuda": NO_DEVICE,
}
COMPILES = {
    **INSTALLED,
    "numba.cuda": library("numba.cuda", __path__=[], is_available=NO_DEVICE.is_available),
    "numba.cuda.np": library("numba.cuda.np", __path__=[]),
    "numba.cuda.np.arrayobj": library("numba.cuda.np.arrayobj"),
    "numba.cuda.cuda_paths": found_in(libdevice="libdevice.10.bc"),
}
# numba-cuda 0.30.3 beside numba 0.68.1, and 0.30.4 beside NumPy 2.5.
NPDATETIME = AttributeError("module 'numba.cuda.types' has no attribute 'NPDatetime'")
ROW_STACK = AttributeError("module 'numpy' has no attribute 'row_stack'")
INSTALL, DRIVER = r"pip install 'sigmoid-l2\[cuda13\]'", "check that nvidia-smi lists a GPU"
NUMBA_CUDA = r"pip install 'numba-cuda\[cu13\]>=0\.30\.4' \(or \[cu12\], to match the driver\)"
TOOLKIT = NUMBA_CUDA + ", or set CUDA_HOME to a CUDA toolkit that has it$"
FIT = r"install versions that fit together \(here numba_cuda 0\.30\.4 and "
UNAVAILABLE = {  # by backend: the modules that are found, words of the reason, the type of its cause
    "cupy": [
        ({"cupy": None}, "cupy is not installed: " + INSTALL, []),
        ({"cupy": OSError("libnvrtc")}, "cupy failed with OSError: libnvrtc; reinstall it: " + INSTALL, [OSError]),
        ({"cupy": library("cupy", cuda=NO_DEVICE)}, "CuPy finds no CUDA device: " + DRIVER, []),
        ({"cupy": library("cupy", cuda=OLD_DRIVER)}, r"driver \(cudaErrorInsu.*\): " + DRIVER, [RuntimeError]),
    ],
    "numba": [({"numba": None}, "numba is not installed: pip install numba", [])],
    "numba-cuda": [
        ({"numba": None}, "numba is not installed: pip install numba", []),
        (
            {"numba": library("numba", config=SimpleNamespace(ENABLE_CUDASIM=1))},
            "NUMBA_ENABLE_CUDASIM is set, .*: unset it$",
            [],
        ),
        ({"numba_cuda": None}, "numba_cuda is not installed: " + INSTALL, []),
        (
            {**COMPILES, "numba.cuda": NPDATETIME},
            rf"numba\.cuda failed with .*NPDatetime'; {FIT}numba \S+\): {NUMBA_CUDA}$",
            [AttributeError],
        ),
        (
            {**COMPILES, "numba.cuda": library("numba.cuda", __path__=[], implementation="Built-in")},
            "numba's own numba.cuda is in the way: .*: install numba-cuda into the environment, or site.addsitedir",
            [],
        ),
        (
            {**COMPILES, "numba.cuda": OSError("libcudart")},
            rf"numba\.cuda failed with OSError: libcudart; reinstall it: {INSTALL}",
            [OSError],
        ),
        (
            {**COMPILES, "numba.cuda.np.arrayobj": ROW_STACK},
            rf"arrayobj failed with .*row_stack'; {FIT}numpy {re.escape(np.__version__)}\): pip install 'numpy<2\.5'$",
            [AttributeError],
        ),
        (
            {**COMPILES, "numba.cuda.cuda_paths": library("numba.cuda.cuda_paths", get_cuda_paths=no_libnvvm)},
            rf'numba-cuda cannot compile \(Failure finding "libnvvm\.so\.4"\): {TOOLKIT}',
            [RuntimeError],
        ),
        (
            {**COMPILES, "numba.cuda.cuda_paths": found_in(libdevice=None)},
            rf"numba-cuda cannot compile \(Failure finding libdevice\.10\.bc\): {TOOLKIT}",
            [FileNotFoundError],
        ),
        (COMPILES, "numba-cuda finds no CUDA device: " + DRIVER, []),
        (SUCCESSOR, "numba-cuda finds no CUDA device: " + DRIVER, []),
        ({**COMPILES, "numba.cuda": OLD_DRIVER}, r"driver \(cudaErrorInsu.*\): " + DRIVER, [RuntimeError]),
    ],
}


class Broken(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module whose import raises ``error``."""

    def __init__(self, module, error):
        self.module, self.error = module, error

    def find_spec(self, name, path, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name == self.module else None

    def exec_module(self, module):
        raise self.error


@pytest.mark.parametrize(
    ("name", "modules", "words", "cause"), [(name, *row) for name, rows in UNAVAILABLE.items() for row in rows]
)
def test_each_reason_is_told_and_nothing_is_substituted(name, modules, words, cause, monkeypatch):
    for module, content in modules.items():
        if isinstance(content, Exception):
            monkeypatch.setattr(sys, "meta_path", [Broken(module, content), *sys.meta_path])
            monkeypatch.delitem(sys.modules, module, raising=False)
        else:
            monkeypatch.setitem(sys.modules, module, content)
    forget()
    try:
        with pytest.raises(sl2.BackendUnavailableError, match=f"(?s)  {name}: .*{words}") as error:
            sl2.value_and_grad(W, X, backend=name)
        assert f"backend {name!r} cannot compute W (5, 3, 4) and x (5, 4), float64, in host memory" in str(error.value)
        root = error.value.__cause__.__cause__
        assert ([] if root is None else [type(root)]) == cause
        (info,) = (info for info in sl2.backends() if info.name == name)
        assert not info.available
        assert str(error.value).endswith(f"{name}: {info.reasons[0]}")
        with pytest.raises(sl2.BackendUnavailableError):
            sl2.value_and_grad(W[:0], X[:0], backend=name)  # an empty batch does not hide it
        for preference in ("auto", "cpu", "gpu"):
            assert dispatch.choose(validate(W, X), preference).name != name
    finally:
        monkeypatch.undo()
        forget()
