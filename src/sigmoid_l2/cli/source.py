"""Where a command's numbers come from: files, pipes and standard input; and which format each of them has."""

import codecs
import errno
import io
import os
import stat
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

Kind = Literal["npz", "npy", "json", "text"]
KINDS: dict[Kind, str] = {"npz": ".npz", "npy": ".npy", "json": ".json", "text": "text"}  # as messages name them

STANDARD_INPUT = "standard input"  # as messages name it
_AS_ARGUMENT = ("-", "/dev/stdin")

# The most bytes that are read from standard input or a pipe. A file of any size can be named.
MOST_PIPED_BYTES = 1 << 30

# Seconds after which a command whose input has not ended says that it waits for it.
WAITING_SECONDS = 2.0

# Bytes from which the format is told. JSON may begin with blank lines.
_START = 128


class InputError(Exception):
    """The input is not what it must be. The message is one line: which file, and what is wrong with it."""


class EmptyInputError(InputError):
    """Standard input ends before its first byte."""


@dataclass(frozen=True)
class Source:
    """A regular file, or what standard input or a pipe has given.

    Attributes
    ----------
    name : as messages name it.
    kind : its format, which the content decides, and not the name.
    size : of its content, in bytes.
    given : the file, or the content.
    """

    name: str
    kind: Kind
    size: int
    given: Path | bytes

    def open(self) -> BinaryIO:
        return io.BytesIO(self.given) if isinstance(self.given, bytes) else self.given.open("rb")


def name_of(path: str | Path) -> str:
    """What messages call the argument ``path``."""
    return STANDARD_INPUT if str(path) in _AS_ARGUMENT else str(path)


def has_input() -> bool:
    """Whether standard input is a pipe, a file or a socket; not a terminal or another device such as /dev/null."""
    try:
        return sys.stdin is not None and not stat.S_ISCHR(os.fstat(0).st_mode)
    except OSError:  # it is closed
        return False


def is_same_file(path: Path, argument: str) -> bool:
    """Whether a result that replaces ``path`` would destroy the input that ``argument`` names."""
    given = "/dev/stdin" if argument == "-" else argument
    return os.path.exists(given) and path.exists() and path.samefile(given)  # noqa: PTH110 - that of a bad name is False


def find(path: str | Path) -> Source:
    """Look at a file, or read a pipe or, for - and /dev/stdin, standard input; raises InputError.

    What is no input at all is refused before more than its start is read.
    """
    name = name_of(path)
    with reading(name, "cannot be read"):
        if name == STANDARD_INPUT:
            mode = os.fstat(0).st_mode if sys.stdin is not None else 0
            if not mode:
                raise InputError(f"{name} is closed")
        else:
            mode = Path(path).stat().st_mode
        if stat.S_ISDIR(mode):
            raise InputError(f"{name}: is a directory, not a file")
        if name == STANDARD_INPUT or stat.S_ISFIFO(mode):
            return _read(name, 0 if name == STANDARD_INPUT else Path(path))
        if not stat.S_ISREG(mode):
            raise InputError(f"{name}: is neither a regular file nor a pipe")
        with Path(path).open("rb") as file:
            return Source(name, _kind(name, file.read(_START)), Path(path).stat().st_size, Path(path))


def _read(name: str, where: int | Path) -> Source:
    content, kind = io.BytesIO(), None
    # A pipe without a writer waits already while it is opened.
    with _telling_that_it_waits(name), open(where, "rb", buffering=0, closefd=where != 0) as file:
        while chunk := file.read(1 << 20):
            content.write(chunk)
            if kind is None and content.tell() >= _START:
                kind = _kind(name, content.getvalue()[:_START])
            if content.tell() > MOST_PIPED_BYTES:
                raise InputError(f"{name}: more than {MOST_PIPED_BYTES} bytes; give a file instead")
    if chunk is None:  # a pipe that another process has set so; what follows would be lost
        raise OSError(errno.EAGAIN, "it gives nothing, but it has not ended")
    given = content.getvalue()
    return Source(name, kind or _kind(name, given[:_START]), len(given), given)


@contextmanager
def _telling_that_it_waits(name: str) -> Iterator[None]:
    """One line on standard error where the input takes long, so that nobody takes the program for hung."""

    def tell() -> None:
        with suppress(OSError, ValueError):  # standard error is full or closed
            if sys.stderr is not None:
                print(f"sigmoid-l2: waiting for input on {name}; Ctrl-C stops", file=sys.stderr, flush=True)

    timer = threading.Timer(WAITING_SECONDS, tell)
    timer.daemon = True
    with suppress(RuntimeError):  # no thread can be started
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def encoding_of(start: bytes) -> str:
    """The encoding of a text that begins with ``start``: UTF-8, but for the mark of UTF-16, which Windows writes."""
    return "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def _kind(name: str, start: bytes) -> Kind:
    """The format of what begins with ``start``; InputError for none."""
    if not start:
        raise (
            EmptyInputError(f"{name} is empty") if name == STANDARD_INPUT else InputError(f"{name}: the file is empty")
        )
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):  # a zip archive; the second has no members
        return "npz"
    if start.startswith(np.lib.format.MAGIC_PREFIX):
        return "npy"
    text = start.decode(encoding_of(start), "ignore")  # the last character may be cut
    if name.lower().endswith(".json") or text.lstrip().startswith(("{", "[")):
        return "json"
    if all(c.isprintable() or c.isspace() for c in text):
        return "text"
    raise InputError(f"{name}: not an .npz, .npy or .json file nor lines of numbers; it begins with {start[:16]!r}")


@contextmanager
def reading(name: str, problem: str) -> Iterator[None]:
    """Turn whatever a reader raises into an InputError that names the file.

    Every exception is caught, because damaged bytes make NumPy and zipfile raise nearly anything: BadZipFile,
    zlib.error, EOFError, NotImplementedError, SyntaxError, OverflowError, MemoryError for a shape of any size...
    """
    try:
        with warnings.catch_warnings():  # NumPy warns of headers that Python 2 wrote or that look like bad Python
            warnings.simplefilter("ignore")
            yield
    except InputError:
        raise
    except Exception as error:
        detail = error.strerror if isinstance(error, OSError) else None  # without "[Errno 2]" and the path again
        detail = detail or " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name}: {problem}: {short(detail, 300)}") from error


def short(text: str, most: int) -> str:
    """``text`` from a file, cut so that a message can quote it."""
    return text if len(text) <= most else f"{text[:most]}..."
