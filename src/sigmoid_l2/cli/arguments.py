"""The values that options take, the arrays that they name, and what is said of them where they are wrong."""

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sigmoid_l2.cli.files import read_array
from sigmoid_l2.cli.source import InputError, is_same_file, name_of
from sigmoid_l2.cli.writing import check_output
from sigmoid_l2.results import WRT

Printed = tuple[str, int]  # what a command returns: the text, and the exit status


def at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        with contextlib.suppress(ValueError):
            if (number := int(text)) >= least:
                return number
        raise argparse.ArgumentTypeError(f"a whole number of at least {least} is needed, not {text!r}")

    return parse


def numbers_or_file(text: str) -> Any:
    """Numbers with commas between them as an array; anything else is the name of a file."""
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        return text
    return np.array(numbers if len(numbers) > 1 else numbers[0])


def wrt_names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not set(names) <= set(WRT) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(
            f"some of W, x and q are needed, each once, with commas between them, not {text!r}"
        )
    return names


def html_file(text: str) -> Path:
    """The name of an HTML file; not that of a user's input, which would be lost."""
    if Path(text).suffix.lower() not in (".html", ".htm"):
        raise argparse.ArgumentTypeError(f"the name of a file that ends in .html is needed, not {text!r}")
    return Path(text)


def read_options(args: argparse.Namespace, arrays: dict[str, Any], *names: str) -> list[str]:
    """Put what the options ``names`` give into ``arrays``; return where each comes from: its file, or the option."""
    sources = []
    for name in names:
        if (given := getattr(args, name)) is None:
            continue
        if isinstance(given, str):
            if not Path(given).exists():
                raise InputError(f"--{name}: {given} is neither numbers with commas between them nor a file")
            sources.append(name_of(given))
            given = read_array(given)
        else:
            sources.append(f"--{name}")
        arrays[name] = given
    return sources


def check_out(out: Path, option: str, sources: Sequence[Any]) -> None:
    """Raise what keeps ``out`` from being written; and InputError where it is one of the ``sources``."""
    check_output(out)
    if any(isinstance(source, str) and is_same_file(out, source) for source in sources):
        raise InputError(f"{out}: is an input too and would be lost; give another name after {option}")


@contextlib.contextmanager
def errors_name(sources: Sequence[str]) -> Iterator[None]:
    """Add the names of the files and options to an error that the library raises about their arrays."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise InputError(f"{', '.join(sources)}: {error}") from error
