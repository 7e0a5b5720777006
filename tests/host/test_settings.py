"""The settings of the process: what the program says, else the environment, else the default."""

import math
import os
from functools import partial

import pytest

import sigmoid_l2 as sl2
from sigmoid_l2 import dispatch, settings
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


@pytest.mark.parametrize(
    ("content", "threads"),
    [
        ("150000 100000\n", 2),
        ("800000 100000\n", 8),
        *((unlimited, 16) for unlimited in ("max 100000\n", "", "nonsense\n", "1 2 3\n", "\u00b5 \u00b5", None)),
    ],
)
def test_limit_of_the_control_group(content, threads, tmp_path, monkeypatch):
    file = tmp_path / "cpu.max"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    monkeypatch.delenv(settings.NUM_THREADS.variable, raising=False)
    monkeypatch.setattr(settings, "_control_group_limit", partial(settings._control_group_limit, str(file)))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(16), raising=False)
    settings._processors.cache_clear()
    try:
        assert sl2.get_num_threads() == threads
    finally:
        settings._processors.cache_clear()


def test_default_backend_of_the_environment(monkeypatch):
    problem = validate([[1.0]], [1.0])
    fastest = dispatch.choose(problem, "auto").name
    for name, expected in (("numpy", "numpy"), ("cpu", fastest), ("auto", fastest), ("", fastest)):
        monkeypatch.setenv("SIGMOID_L2_BACKEND", name)
        assert dispatch.choose(problem, "auto").name == expected
    monkeypatch.setenv("SIGMOID_L2_BACKEND", "nonsense")
    assert sl2.value([[0.0]], [0.0], backend="numpy") == 0.25, "a name in the call goes first"


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


def test_another_os_environ(monkeypatch):
    """A program may put a dict in the place of os.environ, whose inside tells quickly that a variable is not set."""
    for variables, number in (({settings.DEVICE_MEMORY.variable: "7"}, 7), ({}, 256 << 20)):
        monkeypatch.setattr(os, "environ", variables)
        assert sl2.get_device_memory_limit() == number


def test_a_variable_holds_from_the_next_call_on(monkeypatch):
    monkeypatch.delenv(settings.NUM_THREADS.variable, raising=False)
    default = sl2.get_num_threads()
    for text in ("3", "4"):
        os.environ[settings.NUM_THREADS.variable] = text
        assert sl2.get_num_threads() == int(text)
    del os.environ[settings.NUM_THREADS.variable]
    assert sl2.get_num_threads() == default
