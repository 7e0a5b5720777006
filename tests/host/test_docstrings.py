"""The examples in the docstrings of what is public, each run; and that help() of the package is a page."""

import doctest
import inspect
import pydoc

import pytest

import sigmoid_l2 as sl2

# The settings say what they do in a sentence, show_config prints what the machine has, and an error is met elsewhere.
WITHOUT_EXAMPLE = {name for name in sl2.__all__ if name.startswith(("get_", "set_", "__"))}
WITHOUT_EXAMPLE |= {"show_config", "BackendUnavailableError"}
WITH_EXAMPLE = sorted({*sl2.__all__} - WITHOUT_EXAMPLE)


def run(documented, name):
    """How many examples the docstring of ``documented`` has; all of them must print what they say."""
    (test,) = doctest.DocTestFinder(recurse=False).find(documented, name, globs={})
    assert doctest.DocTestRunner().run(test).failed == 0
    return len(test.examples)


@pytest.mark.parametrize("name", WITH_EXAMPLE)
def test_examples(name):
    assert run(getattr(sl2, name), name) >= 2  # the first imports


def test_examples_of_the_package():
    assert run(sl2, "sigmoid_l2") >= 4


@pytest.mark.parametrize("name", WITH_EXAMPLE)
def test_each_argument_and_field_is_documented(name):
    documented = getattr(sl2, name)
    fields = getattr(documented, "_fields", None) or getattr(documented, "__dataclass_fields__", None)
    doc = inspect.getdoc(documented)
    for argument in fields or inspect.signature(documented).parameters:
        assert any(argument in line.partition(" : ")[0].replace(",", " ").split() for line in doc.splitlines()), (
            argument
        )


def test_help_begins_with_what_the_package_can_do():
    """It names every call, but for the settings, and fits a screen."""
    description = pydoc.plain(pydoc.render_doc(sl2)).partition("DESCRIPTION\n")[2].partition("\nPACKAGE CONTENTS")[0]
    calls = [name for name in sl2.__all__ if inspect.isfunction(getattr(sl2, name)) and not name.startswith("get_")]
    assert [name for name in calls if f"{name}(" not in description] == [
        "set_device_memory_limit",
        "set_kept_memory_limit",
        "set_streaming_threshold",
    ]
    assert len(description.splitlines()) < 45
