"""Compiling ahead of time and the disk cache: code is compiled once, and again only when it has changed."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from processes import run_python

import sigmoid_l2 as sl2

numba = pytest.importorskip("numba")

COUNT = """
import sys
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

def call(shape, dtype):
    rng = np.random.default_rng(0)
    W, x = (rng.standard_normal(s).astype(dtype) for s in ((21, *shape), (21, shape[1])))
    results = sl2.value_and_grad(W, x, backend="numba")
    sl2.value(W, x, backend="numba")
    sl2.grad(W, x, backend="numba")
    W.flags.writeable = x.flags.writeable = False
    sl2.value_and_grad(W[:, ::-1], x[0:], out=tuple(np.empty_like(a) for a in results), backend="numba")
    sl2.value_and_grad(W[3], x[3], backend="numba")
    return results
"""

KINDS = """
for shape, dtype in (((3, 3), "f4"), ((5, 2), np.float64), ((20, 30), "float32"), ((20, 30), "f8")):
    before = seen.number
    sl2.warmup(shape, dtype, "numba")
    warm = seen.number
    results = call(shape, dtype)
    print(warm > before, seen.number == warm, results.loss.dtype == dtype)
"""


def child(script, cache, **variables):
    """What ``script`` prints in a fresh process with numba's cache in ``cache``."""
    return run_python(COUNT + script, NUMBA_CACHE_DIR=cache, **variables)


def test_nothing_is_compiled_after_warmup_nor_by_the_next_process(tmp_path):
    assert child(KINDS, tmp_path) == "True True True\n" * 4
    assert child(KINDS, tmp_path) == "False True True\n" * 4


@pytest.mark.parametrize("backend", ["auto", "cpu", "numpy", "numba"])
def test_warmup_takes_what_calls_take(backend):
    assert sl2.warmup((2, 3), backend=backend) is None
    sl2.warmup((2, 3), "float64", backend)
    sl2.warmup([2, 1], ">f4", backend=backend)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (((0, 3),), ValueError),
        (((3, 0),), ValueError),
        (((3,),), ValueError),
        (((-1, 3),), ValueError),
        (((3, 3), "complex64"), TypeError),
        (((3, 3), "no such type"), TypeError),
        (((3, 3), "float32", "nimba"), ValueError),
    ],
)
def test_warmup_raises_what_calls_raise(arguments, error):
    with pytest.raises(error):
        sl2.warmup(*arguments)


@pytest.fixture
def package(tmp_path):
    """A folder with a copy of the package, in which its files may be changed."""
    source = Path(sl2.__file__).parent
    kernels = Path(sys.modules["sigmoid_l2.kernels"].__file__).parent
    ignore = shutil.ignore_patterns("__pycache__", "kernels")
    shutil.copytree(source, tmp_path / "copy" / "sigmoid_l2", ignore=ignore)
    shutil.copytree(kernels, tmp_path / "copy" / "sigmoid_l2" / "kernels", ignore=ignore)
    return tmp_path / "copy"


LOSS = """
print(seen.number, sl2.value([[0.0]], [0.0], backend="numba"), seen.number > 0, sl2.__file__)
"""


def loss(package, cache):
    """f(0, 0) by a copy of the package, and whether anything was compiled for it."""
    _, value, compiled, file = child(LOSS, cache, PYTHONPATH=package).split()
    assert Path(file).parents[1] == package
    return float(value), compiled == "True"


def test_changed_code_is_no_stale_hit(package, tmp_path):
    """One digit changes in sigmoid.py, which numba's cache does not know of; the kernels' files stay as they are."""
    cache, sigmoid = tmp_path / "cache", package / "sigmoid_l2" / "kernels" / "cpu" / "sigmoid.py"
    assert loss(package, cache) == (0.25, True)
    assert loss(package, cache) == (0.25, False)
    text, times = sigmoid.read_text(encoding="utf-8"), sigmoid.stat()
    changed = text.replace("b.fdiv(v.constant(1),", "b.fdiv(v.constant(4),")
    assert changed != text, "the sigmoid's 1 / (1 + t) is not where this test looks for it"
    sigmoid.write_text(changed, encoding="utf-8")
    os.utime(sigmoid, ns=(times.st_atime_ns, times.st_mtime_ns + 10**9))  # Python's own cache goes by the time
    assert loss(package, cache) == (4.0, True)
    sigmoid.write_text(text, encoding="utf-8")
    os.utime(sigmoid, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert loss(package, cache) == (0.25, False)


INTERLEAVED = """
from numba.core.caching import IndexDataCacheFile as File

call((3, 3), "f8")
call((20, 30), "f4")
File._load_index = lambda self: {}
File._save_data = lambda self, name, data: None
call((5, 3), "f8")
call((20, 30), "f8")
"""

CHECK = """
for shape, dtype in (((5, 3), "f8"), ((3, 3), "f8"), ((20, 30), "f8"), ((20, 30), "f4")):
    rng = np.random.default_rng(0)
    W, x = (rng.standard_normal(s).astype(dtype) for s in ((21, *shape), (21, shape[1])))
    for got, true in zip(call(shape, dtype), sl2.value_and_grad(W, x, backend="numpy"), strict=True):
        np.testing.assert_allclose(got, true, rtol=1e-3, atol=1e-5)
print("right")
"""


def test_processes_that_fill_the_cache_at_the_same_time(tmp_path):
    """One process reads the index before the other writes it; it writes its data before the other's, its index after.

    Here one process does that, with the other's view of the files.
    """
    child(INTERLEAVED, tmp_path)
    assert child(CHECK, tmp_path) == "right\n"


@pytest.mark.parametrize("where", ["NUMBA_CACHE_DIR", "HOME"])
def test_no_directory_for_the_cache_is_no_error(where, package, tmp_path):
    """A file stands where the directory would have to be made: that stops root as well."""
    blocked = tmp_path / "file"
    blocked.touch()
    (package / "sigmoid_l2" / "kernels" / "cpu" / "__pycache__").touch()
    variables = {"PYTHONPATH": package, "HOME": blocked, "XDG_CACHE_HOME": blocked / "cache"}
    cache = blocked / "cache" if where == "NUMBA_CACHE_DIR" else ""
    assert child("sl2.warmup((1, 1), 'f8', 'numba')" + LOSS, cache, **variables).split()[1] == "0.25"
