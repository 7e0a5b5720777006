"""The settings of the process: what the program says, else the environment, else the default."""

import math
import os

import pytest

import sigmoid_l2 as sl2
from sigmoid_l2 import dispatch, processors, settings
from sigmoid_l2.problem import validate

SETTINGS = {  # by the end of its variable's name: the functions, the argument, the least value, the default
    "NUM_THREADS": (sl2.set_num_threads, sl2.get_num_threads, "threads", 1, None),
    "DEVICE_MEMORY": (sl2.set_device_memory_limit, sl2.get_device_memory_limit, "nbytes", 1, 256 << 20),
    "KEPT_MEMORY": (sl2.set_kept_memory_limit, sl2.get_kept_memory_limit, "nbytes", 0, 1 << 30),
    "STREAMING": (sl2.set_streaming_threshold, sl2.get_streaming_threshold, "nbytes", 0, None),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_where_a_setting_comes_from(name, monkeypatch):
    (set_it, get_it, argument, least, expected), variable = SETTINGS[name], f"SIGMOID_L2_{name}"
    monkeypatch.delenv(variable, raising=False)
    default = get_it()
    assert default >= 1 if expected is None else default == expected
    monkeypatch.setenv(variable, "7")
    assert get_it() == 7
    try:
        for number in (least, 3, 1000):
            set_it(number)
            assert get_it() == number, "what the program says goes before the environment"
        for wrong in (least - 1, -2, 1.0, 2.5, "many", math.nan, math.inf, True):
            words = f"^{argument} must be a whole number of at least {least}, not {wrong!r}$"
            with pytest.raises(ValueError, match=words):
                set_it(wrong)
            assert get_it() == 1000, "an error changes nothing"
    finally:
        set_it(None)
    assert get_it() == 7
    monkeypatch.setenv(variable, "")
    assert get_it() == default, "empty is as not set"
    for wrong in (str(least - 1), "-2", "1.5", "all", "2 3", "1GB"):
        monkeypatch.setenv(variable, wrong)
        with pytest.raises(ValueError, match=f"^the environment variable {variable} must be .* not {wrong!r}$"):
            get_it()


OTHERS = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS")


@pytest.fixture
def processors_(monkeypatch):
    """Eight of them, and an environment that says nothing of threads."""
    for variable in (settings.NUM_THREADS.variable, *OTHERS):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(processors, "count", lambda: 8)
    monkeypatch.setattr(processors, "limits", lambda: {"processors": 16, "control group": 8})


@pytest.mark.parametrize(
    ("numba", "openmp", "threads", "source"),
    [
        (None, None, 8, "control group"),
        ("2", None, 2, "NUMBA_NUM_THREADS"),
        (None, "2", 2, "OMP_NUM_THREADS"),
        ("3", "2", 2, "OMP_NUM_THREADS"),
        ("2", "3", 2, "NUMBA_NUM_THREADS"),
        ("8", "8", 8, "control group"),
        ("64", "9", 8, "control group"),
        (None, "4,2", 4, "OMP_NUM_THREADS"),
        (None, " 4 , 2", 4, "OMP_NUM_THREADS"),
        *((wrong, "5", 5, "OMP_NUM_THREADS") for wrong in ("", " ", "0", "-1", "1.5", "all", ",2", "0,2", "2 3", "µ")),
        *(("5", wrong, 5, "NUMBA_NUM_THREADS") for wrong in ("", "0", "-1", "2.0", "auto", ",", "\udcff")),
    ],
)
def test_variables_of_others(numba, openmp, threads, source, processors_, monkeypatch, capsys):
    """The least of all counts; what is no number of threads is ignored."""
    for variable, text in zip(OTHERS, (numba, openmp), strict=True):
        if text is not None:
            monkeypatch.setenv(variable, text)
    assert sl2.get_num_threads() == threads
    assert settings.where_num_threads_is_from() == source
    sl2.show_config()
    assert f"\nCPU threads: {threads} ({source})\n" in capsys.readouterr().out


def test_ours_stand_above_those_of_others(processors_, monkeypatch):
    for variable in OTHERS:
        monkeypatch.setenv(variable, "1")
    monkeypatch.setenv(settings.NUM_THREADS.variable, "20")
    assert (sl2.get_num_threads(), settings.where_num_threads_is_from()) == (20, settings.NUM_THREADS.variable)
    try:
        sl2.set_num_threads(30)
        assert (sl2.get_num_threads(), settings.where_num_threads_is_from()) == (30, "set_num_threads")
    finally:
        sl2.set_num_threads(None)
    monkeypatch.setenv(settings.NUM_THREADS.variable, "")
    assert sl2.get_num_threads() == 1


def test_default_backend_of_the_environment(monkeypatch):
    problem = validate([[1.0]], [1.0])
    fastest = dispatch.choose(problem, "auto").name
    for name, expected in (("numpy", "numpy"), ("cpu", fastest), ("auto", fastest), ("", fastest)):
        monkeypatch.setenv("SIGMOID_L2_BACKEND", name)
        assert dispatch.choose(problem, "auto").name == expected
    monkeypatch.setenv("SIGMOID_L2_BACKEND", "nonsense")
    assert sl2.value([[0.0]], [0.0], backend="numpy") == 0.25, "a name in the call goes first"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("cuda", "gpu"),
        ("CUDA", "gpu"),
        ("cuda:0", "gpu"),
        ("CPU", "cpu"),
        ("host", "cpu"),
        ("torch", "auto"),
        ("jax", "auto"),
        ("Numba", "numba"),
        ("numba_cuda", "numba-cuda"),
        ("opencl", None),
    ],
)
def test_names_of_others_for_a_backend(name, meant, monkeypatch):
    words = "^{} must be one of .*, not '{}'" + (rf" \(did you mean '{meant}'\?\)$" if meant else "$")
    with pytest.raises(ValueError, match=words.format("backend", name)):
        sl2.value([[0.0]], [0.0], backend=name)
    monkeypatch.setenv("SIGMOID_L2_BACKEND", name)
    with pytest.raises(ValueError, match=words.format("the environment variable SIGMOID_L2_BACKEND", name)):
        sl2.value([[0.0]], [0.0])


@pytest.mark.parametrize(
    ("caches", "nbytes"),
    [
        ({}, 1 << 20),
        ({0: ("1", "48K"), 2: ("2", "2048K"), 3: ("3", "307200K")}, 2 << 20),
        ({0: ("2", "512K")}, 512 << 10),
        ({2: ("2", "large")}, 1 << 20),
        ({1: ("1", "32K"), 2: ("3", "32768K")}, 1 << 20),
    ],
)
def test_size_of_the_level_2_cache(caches, nbytes, tmp_path):
    for number, values in caches.items():
        folder = tmp_path / f"index{number}"
        folder.mkdir()
        for name, value in zip(("level", "size"), values, strict=True):
            (folder / name).write_text(value + "\n", encoding="ascii")
    assert settings._level_2_bytes(str(tmp_path)) == nbytes


def test_another_os_environ(monkeypatch, processors_):
    """A program may put a dict in the place of os.environ, whose inside tells quickly that a variable is not set."""
    for variables, number in (({settings.DEVICE_MEMORY.variable: "7"}, 7), ({}, 256 << 20)):
        monkeypatch.setattr(os, "environ", variables)
        assert sl2.get_device_memory_limit() == number
    for variables, number in (({"OMP_NUM_THREADS": "3", "NUMBA_NUM_THREADS": "4"}, 3), ({}, 8)):
        monkeypatch.setattr(os, "environ", variables)
        assert sl2.get_num_threads() == number


@pytest.mark.parametrize("variable", [settings.NUM_THREADS.variable, *OTHERS])
def test_a_variable_holds_from_the_next_call_on(variable, processors_):
    for text in ("3", "4"):
        os.environ[variable] = text
        assert sl2.get_num_threads() == int(text)
    del os.environ[variable]
    assert sl2.get_num_threads() == 8
