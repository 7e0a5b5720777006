"""What importing and calling costs: modules, noise and memory."""

import inspect
import tracemalloc

import numpy as np
import pytest
from arrays import strided
from processes import run_python

import sigmoid_l2 as sl2
from sigmoid_l2 import threads


def test_import_is_silent_and_imports_no_compiler():
    code = "import sys, sigmoid_l2; print(sorted({'numba', 'llvmlite', 'cupy', 'numba_cuda'} & set(sys.modules)))"
    assert run_python(code) == "[]\n"


OTHERS = "torch jax pandas xarray astropy unyt scipy polars dask distributed zarr joblib cupy numba.cuda matplotlib"


def test_a_call_of_numpy_arrays_imports_no_other_library():
    code = """
import sys, numpy as np, sigmoid_l2 as sl2
W, x = np.ones((5, 3, 2)), np.ones((5, 2))
for backend in ("numpy", "auto"):
    loss, dW, dx = sl2.value_and_grad(W, x, 1.0, backend=backend)
    sl2.value(W, x, out=loss, backend=backend), sl2.grad(W.tolist(), x.tolist(), backend=backend)
    print(*sorted(set(sys.argv[1].split()) & set(sys.modules)), sep=",")
"""
    by_numpy, by_auto = run_python(code, OTHERS).splitlines()
    assert by_numpy == ""
    assert by_auto in ("", "scipy"), "which numba itself imports, where it is installed"


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_an_operation_of_a_framework_is_imported_when_it_is_asked_for(library):
    pytest.importorskip(library)
    code = f"""
import sys, sigmoid_l2 as sl2
before = {{"{library}", "sigmoid_l2.{library}"}} & set(sys.modules)
print(before, callable(sl2.{library}.value), sl2.{library} is sys.modules["sigmoid_l2.{library}"])
"""
    assert run_python(code, PYTHONWARNINGS="ignore") == "set() True True\n"


WITHOUT_FRAMEWORKS = """
import sys
class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "jax"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, NotInstalled())

import doctest, inspect, pydoc, sigmoid_l2 as sl2
for name in ("torch", "jax"):
    try:
        getattr(sl2, name)
    except ImportError as error:
        print(f"sigmoid_l2.{name} needs" in str(error), f"No module named {name!r}" in str(error))
assert dict(inspect.getmembers(sl2)).keys() >= set(sl2.__all__) - {"__version__"}
assert "value_and_grad(W, x, y)" in pydoc.render_doc(sl2)
assert doctest.DocTestFinder().find(sl2)
"""


def test_an_operation_of_a_framework_that_is_not_installed():
    """It is an ImportError that names the framework; what inspects the package does not meet it."""
    assert run_python(WITHOUT_FRAMEWORKS) == "True True\nTrue True\n"


def test_import_reads_no_metadata():
    """importlib.metadata, with the modules for e-mail that it needs, would double the time of the import."""
    code = """
import sys, numpy
before = "importlib.metadata" in sys.modules  # a .pth file of another package may import it
import sigmoid_l2
print(("importlib.metadata" in sys.modules) == before, sigmoid_l2.__version__.count("."))
"""
    assert run_python(code) == "True 2\n"


def test_a_call_with_warnings_as_errors_is_silent():
    assert run_python("import sigmoid_l2 as s; print(s.value_and_grad([[0.0]], [0.0]).loss)") == "0.25\n"


ON_NUMPY_ALONE = """
import sys
class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("numba", "llvmlite", "numba_cuda", "cupy"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, NotInstalled())

import numpy as np, sigmoid_l2 as sl2
W, x = np.ones((5, 3, 2), "f4"), np.ones((5, 2), "f4")
for name in ("auto", "cpu", "gpu", "numpy"):
    loss, dW, dx = sl2.value_and_grad(W, x, backend=name)
    assert sl2.value(W, x, backend=name).tobytes() == loss.tobytes()
    assert sl2.grad(W, x, backend=name).dx.tobytes() == dx.tobytes()
assert "loss" in str(sl2.trace(W[0], x[0]))
assert sl2.check_grad(W, x, dW=dW, dx=dx)
sl2.show_config()
for info in sl2.backends():
    print("info", info.name, info.available, *info.reasons)
"""


def test_everything_works_on_numpy_alone():
    out = run_python(ON_NUMPY_ALONE)
    infos = {name: rest for _, name, *rest in (line.split() for line in out.splitlines() if line.startswith("info "))}
    assert infos.pop("numpy") == ["True"]
    assert sorted(infos) == ["cupy", "numba", "numba-cuda"]
    for name, (available, *reason) in infos.items():
        assert available == "False"
        assert "pip install" in " ".join(reason), name
        assert " ".join(reason) in out.replace("info", ""), "show_config() says so too"


def test_public_names():
    assert sorted(sl2.__all__) == sl2.__all__
    for name in sl2.__all__:
        assert getattr(sl2, name) is not None
        if name != "__version__":
            doc = inspect.getdoc(getattr(sl2, name)) or ""
            assert doc, f"{name} has no docstring"
            assert not doc.startswith(f"{name}("), f"{name} has only the docstring that Python writes"
    with pytest.raises(AttributeError, match="no attribute 'values'"):
        _ = sl2.values
    for call in (sl2.value_and_grad, sl2.value, sl2.grad):
        W, x, target, *others = inspect.signature(call).parameters.values()
        assert [p.name for p in (W, x, target)] == ["W", "x", "target"]
        assert all(p.kind is p.KEYWORD_ONLY for p in others)


LAYOUTS = {
    "contiguous": (lambda a: a, lambda a: a),
    "strided": (strided, strided),
    "byte-swapped": (lambda a: a.astype(">f4"), lambda a: a.astype(">f4")),
    "to be promoted": (lambda a: a.astype("f2"), lambda a: a),
}


@pytest.mark.parametrize(
    ("layout", "batch"),
    [*((layout, (300_000,)) for layout in LAYOUTS), ("strided", (600, 500)), ("strided", (150_000, 2))],
)
def test_nothing_of_batch_size_is_allocated_when_out_is_given(entry, layout, batch, monkeypatch):
    if entry.device == "cuda":
        pytest.skip("host arrays go to a GPU in pieces of 32 MB, more than this batch")
    if entry.name == "numpy":  # its temporaries are those of a block for each thread
        monkeypatch.setattr(threads, "get_num_threads", lambda: 1)
    view_in, view_out = LAYOUTS[layout]
    W, x = view_in(np.ones((*batch, 3, 3), "f4")), np.ones((*batch, 3), "f4")  # W is 11 MB, dW too
    out = tuple(view_out(np.zeros(shape, "f4")) for shape in (batch, W.shape, x.shape))
    few = (slice(2),) * len(batch)
    sl2.value_and_grad(W[few], x[few], out=tuple(a[few] for a in out), backend=entry.name)  # compiled outside
    sl2.value_and_grad(W, x, out=out, backend=entry.name)
    tracemalloc.start()
    try:
        sl2.value_and_grad(W, x, out=out, backend=entry.name)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < (2 << 20 if layout == "contiguous" else 5 << 20)
    assert all((a == a.flat[0]).all() and a.flat[0] > 0 for a in out)
