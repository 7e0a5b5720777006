"""Reads W and x from files, and writes results so that no file is ever half written."""

import errno
import io
import json
import math
import os
import secrets
import stat
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# The most bytes that an array of an .npz file may unpack to, and the same as a multiple of the file's size; the larger
# of the two counts. Deflate packs zeros 1000:1, so a file of megabytes could fill any memory. It packs computed numbers
# less than 100:1.
MOST_UNPACKED_BYTES = 1 << 30
MOST_EXPANSION = 100

# The most bytes of an .npy header that are read. NumPy would read a header of any size, for instance 4 GiB, before it
# refuses one of more than 10,000 characters.
_HEADER_BYTES = 1 << 16
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,  # version 3 is UTF-8, which makes a difference in field names only
}


class InputError(Exception):
    """A file does not hold what it must. The message is one line: which file, and what is wrong with it."""


def read_arrays(paths: Sequence[str | Path], optional: Sequence[str] = ()) -> dict[str, Array]:
    """Read W and x, of whatever shapes and numeric dtypes the files hold; of an .npz or .json also ``optional`` arrays.

    ``paths`` is one .npz file with the arrays W and x, one .json file with the keys W and x (nested lists of
    numbers), or two .npy files, W first. The content decides which it is, not the name. The arrays of .npy files are
    read-only memory maps. Whether W and x fit together is not checked here.

    Raises InputError for every way in which a file can be bad. Pickled objects are never loaded, and no array of
    an .npz file takes more memory than 1 GiB or, if that is more, 100 times the file's size.
    """
    files = [Path(path) for path in paths]
    formats = [_format(file) for file in files]
    match formats:
        case ["npz"]:
            return _read_npz(files[0], optional)
        case ["json"]:
            return _read_json(files[0], optional)
        case ["npy", "npy"]:
            return {"W": _read_npy(files[0]), "x": _read_npy(files[1])}
        case ["npy"]:
            raise InputError(f"{files[0]}: an .npy file holds one array; give two of them, W first, then x")
    given = ", ".join(f"{file} (.{kind})" for file, kind in zip(files, formats, strict=True))
    raise InputError(f"give one .npz or .json file, or two .npy files (W first, then x); got {given or 'none'}")


def read_array(path: str | Path) -> Array:
    """Read the array of one .npy file, as a read-only memory map; InputError for every way in which it can be bad."""
    path = Path(path)
    kind = _format(path)
    if kind != "npy":
        raise InputError(f"{path}: numbers or an .npy file are needed here, not .{kind}")
    return _read_npy(path)


def check_output(path: str | Path) -> None:
    """Raise OSError if ``write_npz(path, ...)`` could not begin, so that no long computation fails at its end."""
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
    """Write ``arrays`` (any shapes and dtypes) as an .npz file whose name is exactly ``path``: all of it, or nothing.

    The file appears under its name only when every byte is on the disk; until then a file that was there before
    stays as it was. Raises OSError, with ``path`` as its file name.
    """
    path = Path(path)
    with _errors_name(path), _temporary_beside(path) as temporary:
        # Not tempfile: its files have mode 0600, and the user's umask should decide.
        with temporary.open("xb") as file:
            _write_members(file, arrays)
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


@contextmanager
def _reading(path: Path, problem: str) -> Iterator[None]:
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
        raise InputError(f"{path}: {problem}: {_short(detail, 300)}") from error


def _short(text: str, most: int) -> str:
    """``text`` from a file, cut so that a message can quote it."""
    return text if len(text) <= most else f"{text[:most]}..."


def _format(path: Path) -> str:
    """Return "npz", "npy" or "json"; InputError for everything else."""
    with _reading(path, "cannot be read"):
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise InputError(f"{path}: is a directory, not a file")
        if not stat.S_ISREG(mode):
            raise InputError(f"{path}: is not a regular file")
        with path.open("rb") as file:
            start = file.read(16)
    if not start:
        raise InputError(f"{path}: the file is empty")
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):  # a zip archive; the second has no members
        return "npz"
    if start.startswith(np.lib.format.MAGIC_PREFIX):
        return "npy"
    if path.suffix.lower() == ".json" or start.lstrip().startswith(b"{"):
        return "json"
    named = f"named {path.suffix}" if path.suffix else "without a suffix"
    raise InputError(f"{path}: not an .npz, .npy or .json file, but a file {named} that begins with {start!r}")


def _read_npy(path: Path) -> Array:
    with _reading(path, "damaged or unsupported .npy file"):
        with path.open("rb") as file:
            _check_npy(file.read(_HEADER_BYTES), path.stat().st_size)
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _check_npy(start: bytes, size: int) -> None:
    """Check the header of an .npy file of ``size`` bytes before memory for its array is allocated."""
    file = io.BytesIO(start)
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of the format is unknown")
    shape, _, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never loaded")
    if dtype.subdtype is not None:
        raise ValueError(f"its elements are arrays themselves, {dtype}")
    if any(length < 0 for length in shape):
        raise ValueError(f"its shape {shape} has a negative length")
    announced = file.tell() + math.prod(shape) * dtype.itemsize
    if announced > size:
        raise ValueError(f"with shape {shape} and dtype {dtype} it needs {announced} bytes, but it has {size}")


def _read_npz(path: Path, optional: Sequence[str]) -> dict[str, Array]:
    arrays = {}
    with _reading(path, "damaged .npz file"), zipfile.ZipFile(path) as archive:
        most = max(MOST_UNPACKED_BYTES, MOST_EXPANSION * path.stat().st_size)
        members = archive.namelist()
        for name in _wanted(path, [member.removesuffix(".npy") for member in members], optional):
            with _reading(path, f"damaged or unsupported array {name}"):
                member = archive.getinfo(name if name in members else f"{name}.npy")
                # Other methods unpack any amount in one step: 4 KiB of bzip2 can become gigabytes.
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError("it is packed in a way that NumPy does not write")
                with archive.open(member) as file:
                    start = file.read(_HEADER_BYTES)
                if not start.startswith(np.lib.format.MAGIC_PREFIX):
                    raise InputError(f"{path}: {name} is not an array")
                _check_npy(start, member.file_size)
                if member.file_size > most:
                    raise ValueError(f"it unpacks to {member.file_size} bytes, of which at most {most} are read")
                with archive.open(member) as file:
                    arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
    return arrays


def _read_json(path: Path, optional: Sequence[str]) -> dict[str, Array]:
    with _reading(path, "invalid JSON"):
        content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold an object with the keys W and x, not a {type(content).__name__}")
    arrays = {}
    for name in _wanted(path, list(content), optional):
        with _reading(path, f"{name} is not a rectangular array"):
            # As objects first: in an array of strings one long word would make every element as long.
            kinds = set(map(type, np.asarray(content[name], object).flat))
            if kinds <= {int, float, bool, list}:
                arrays[name] = np.asarray(content[name])
        if name not in arrays or arrays[name].dtype.kind not in "biuf":
            raise InputError(f"{path}: {name} holds something that is not a number, or one that no dtype can hold")
    return arrays


def _wanted(path: Path, present: Sequence[str], optional: Sequence[str]) -> list[str]:
    for name in ("W", "x"):
        if name not in present:
            there = ", ".join(_short(key, 40) for key in present[:10]) + (", ..." if len(present) > 10 else "")
            raise InputError(f"{path}: has no {name}; the names in it are: {there or '(none)'}")
    return ["W", "x", *(name for name in optional if name in present)]
