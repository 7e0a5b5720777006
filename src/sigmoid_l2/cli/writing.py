"""Writes results so that no file is ever half written."""

import errno
import os
import secrets
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


def check_output(path: str | Path) -> None:
    """Raise OSError if ``path`` could not be written, so that no long computation fails at its end."""
    path = Path(path)
    with _errors_name(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a directory; the name of a file is needed")
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "is not a regular file")
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, f"there is no directory {path.parent}")
        # Permission bits do not show read-only file systems and quotas. Only creating a file does.
        with _temporary_beside(path) as temporary:
            temporary.open("xb").close()


def write_npz(path: str | Path, arrays: Mapping[str, Any]) -> None:
    """Write ``arrays`` (any shapes and dtypes) as an .npz file whose name is exactly ``path``; see ``_write``."""
    _write(Path(path), lambda file: _write_members(file, arrays))


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as a UTF-8 file whose name is exactly ``path``; see ``_write``."""
    _write(Path(path), lambda file: file.write(text.encode()))


def _write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Make a file of what ``write`` writes: all of it, or nothing.

    The file appears under its name only when every byte is on the disk; until then a file that was there before
    stays as it was. Raises OSError, with ``path`` as its file name.
    """
    with _errors_name(path), _temporary_beside(path) as temporary:
        # Not tempfile: its files have mode 0600, and the user's umask should decide.
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(os.path.realpath(path))


def _write_members(file: BinaryIO, arrays: Mapping[str, Any]) -> None:
    """What ``np.savez`` does, but for Ctrl-C while a member is opened: there zipfile cannot close the archive."""
    archive = zipfile.ZipFile(file, "w")
    try:
        for name, a in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(a), allow_pickle=False)
        archive.close()
    except BaseException:
        archive.fp = None  # so it counts as closed: it would raise another error, and nobody wants what it has written
        raise


@contextmanager
def _temporary_beside(path: Path) -> Iterator[Path]:
    """A new name beside the file that ``path`` links to, because a file is replaced within one file system only."""
    temporary = Path(os.path.realpath(path)).parent / f".sigmoid-l2-{secrets.token_hex(8)}.tmp"
    try:
        yield temporary
    finally:  # also after Ctrl-C; after a success there is nothing to remove
        temporary.unlink(missing_ok=True)


@contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    """Make every OSError name the user's file; errors of a write or of the temporary file do not name it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"cannot be written: {error.strerror or error}", str(path)) from error
