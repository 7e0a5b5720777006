"""Reads W, x and what else a command takes from files, pipes and standard input."""

import io
import json
import math
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sigmoid_l2.cli.rows import read_rows
from sigmoid_l2.cli.source import KINDS, STANDARD_INPUT, InputError, Source, find, name_of, reading, short

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


def read_arrays(paths: Sequence[str | Path], optional: Sequence[str] = ()) -> dict[str, Array]:
    """Read W and x, of whatever shapes and numeric dtypes the files hold; of an .npz or .json also ``optional`` arrays.

    ``paths`` is one .npz file with the arrays W and x, one .json file with the keys W and x (nested lists of
    numbers), one text (see ``read_rows``), or two .npy files, W first. - and /dev/stdin are standard input. The content
    decides which it is, not the name. The arrays of .npy files are read-only memory maps. Whether W and x fit together
    is not checked here. Where "target" is optional, it may have the name y.

    Raises InputError for every way in which a file can be bad. Pickled objects are never loaded, and no array of
    an .npz file takes more memory than 1 GiB or, if that is more, 100 times the file's size.
    """
    if [name_of(path) for path in paths].count(STANDARD_INPUT) > 1:
        raise InputError(f"{STANDARD_INPUT}: is named twice, and can be read once")
    sources = [find(path) for path in paths]
    match [source.kind for source in sources]:
        case ["npz"]:
            return _read_npz(sources[0], optional)
        case ["json"]:
            return _read_json(sources[0], optional)
        case ["text"]:
            return read_rows(sources[0])
        case ["npy", "npy"]:
            return {"W": _read_npy(sources[0]), "x": _read_npy(sources[1])}
        case ["npy"]:
            raise InputError(f"{sources[0].name}: an .npy file holds one array; give two of them, W first, then x")
    given = ", ".join(f"{source.name} ({KINDS[source.kind]})" for source in sources)
    raise InputError(f"give one .npz, .json or text file, or two .npy files (W first, then x); got {given or 'none'}")


def read_array(path: str | Path) -> Array:
    """Read the array of one .npy file, as a read-only memory map; InputError for every way in which it can be bad."""
    source = find(path)
    if source.kind != "npy":
        raise InputError(f"{source.name}: numbers or an .npy file are needed here, not {KINDS[source.kind]}")
    return _read_npy(source)


def _read_npy(source: Source) -> Array:
    with reading(source.name, "damaged or unsupported .npy file"), source.open() as file:
        _check_npy(file.read(_HEADER_BYTES), source.size)
        file.seek(0)
        if isinstance(source.given, Path):
            array: Array = np.load(source.given, mmap_mode="r", allow_pickle=False)
        else:
            array = np.lib.format.read_array(file, allow_pickle=False)
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


def _read_npz(source: Source, optional: Sequence[str]) -> dict[str, Array]:
    arrays = {}
    with reading(source.name, "damaged .npz file"), source.open() as given, zipfile.ZipFile(given) as archive:
        most = max(MOST_UNPACKED_BYTES, MOST_EXPANSION * source.size)
        members = archive.namelist()
        wanted = _wanted(source.name, [member.removesuffix(".npy") for member in members], optional)
        for name, present in wanted.items():
            with reading(source.name, f"damaged or unsupported array {present}"):
                member = archive.getinfo(present if present in members else f"{present}.npy")
                # Other methods unpack any amount in one step: 4 KiB of bzip2 can become gigabytes.
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError("it is packed in a way that NumPy does not write")
                with archive.open(member) as file:
                    start = file.read(_HEADER_BYTES)
                if not start.startswith(np.lib.format.MAGIC_PREFIX):
                    raise InputError(f"{source.name}: {present} is not an array")
                _check_npy(start, member.file_size)
                if member.file_size > most:
                    raise ValueError(f"it unpacks to {member.file_size} bytes, of which at most {most} are read")
                with archive.open(member) as file:
                    arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
    return arrays


def _read_json(source: Source, optional: Sequence[str]) -> dict[str, Array]:
    with reading(source.name, "invalid JSON"), source.open() as file:
        content = json.loads(file.read())
    if not isinstance(content, dict):
        raise InputError(f"{source.name}: must hold an object with the keys W and x, not a {type(content).__name__}")
    arrays = {}
    for name, present in _wanted(source.name, list(content), optional).items():
        with reading(source.name, f"{present} is not a rectangular array"):
            # As objects first: in an array of strings one long word would make every element as long.
            kinds = set(map(type, np.asarray(content[present], object).flat))
            if kinds <= {int, float, bool, list}:
                arrays[name] = np.asarray(content[present])
        if name not in arrays or arrays[name].dtype.kind not in "biuf":
            raise InputError(
                f"{source.name}: {present} holds something that is not a number, or one that no dtype can hold"
            )
    return arrays


def _wanted(file: str, present: Sequence[str], optional: Sequence[str]) -> dict[str, str]:
    """The arrays to read: the name of each, and the one that it has in the file."""
    for name in ("W", "x"):
        if name not in present:
            there = ", ".join(short(key, 40) for key in present[:10]) + (", ..." if len(present) > 10 else "")
            raise InputError(f"{file}: has no {name}; the names in it are: {there or '(none)'}")
    wanted = {name: name for name in ("W", "x", *optional) if name in present}
    if "target" in optional and "y" in present:
        if "target" in wanted:
            raise InputError(f"{file}: has both target and y, which are two names of the same; leave one out")
        wanted["target"] = "y"
    for other in present:  # one that is not read would look as if it were right
        if (meant := _meant(other, optional)) not in (None, *wanted):
            raise InputError(f"{file}: has {short(other, 40)}, which is not read; name it {meant}, or leave it out")
    return wanted


# Other names of what can be read, in lower case and without other signs than letters.
_LOSS = "(d?(loss|[lfje])?d|grad)"
_NAMES = {
    "target": "y|targets?|labels?|ytrue",
    "cotangent": "cotangents?",
    "q": "q|z|wx",
    "s": "s|a|sigmoid|sigma",
    "e": "e|err|error|residual",
    "loss": "loss",
    "dloss_ds": f"{_LOSS}[sa]",
    "ds_dq": "dsdq|dadz|dsigmoid|sigmoidprime",
    "dloss_dq": f"{_LOSS}[qz]|g|delta",
    "dW": f"{_LOSS}w|wgrad",
    "dx": f"{_LOSS}x|xgrad",
}


def _meant(name: str, known: Sequence[str]) -> str | None:
    """The one of ``known`` that somebody who wrote ``name`` probably meant."""
    letters = re.sub(r"[^a-z]", "", name[:40].casefold())
    return next((meant for meant in known if re.fullmatch(_NAMES[meant], letters)), None)
