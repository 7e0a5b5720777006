"""A fuzz target: bytes as a file, which must be refused in one line or read as NumPy reads it.

They are read as a whole file (.npy, .npz, .json, text), and as the member W of an archive, because a mutation of an
archive hardly ever has the right checksum. No pickle is ever loaded. Memory: see ../test_fuzz.py and libFuzzer's
-rss_limit_mb.
"""

import contextlib
import io
import tempfile
import warnings
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np

from sigmoid_l2.cli import main as cli
from sigmoid_l2.cli.files import read_arrays
from sigmoid_l2.cli.source import InputError
from sigmoid_l2.cli.trace import STEPS

X = np.array([0.5, -1.0, 2.0])
SMALL = 1000  # elements: what the commands compute and print for this many takes a millisecond
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # quicker than a disk
PARSER = cli._parser()  # making one takes longer than all the rest

OPTIONAL = {"trace": ("target", *STEPS), "grad": ("target", "cotangent")}  # arrays that a command reads, if there


def run(data: bytes) -> bool:
    """Whether ``data`` as a whole file is good."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        whole, archive, x = (Path(folder, name) for name in ("whole", "archive.npz", "x.npy"))
        whole.write_bytes(data)
        np.save(x, X)
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("W.npy", data)
            file.write(x, "x.npy")
        is_npy = data.startswith(np.lib.format.MAGIC_PREFIX)
        with (
            mock.patch("pickle.load") as load,
            mock.patch("pickle.loads") as loads,
            mock.patch.object(cli, "_parser", return_value=PARSER),
        ):
            good = check([str(whole), str(x)] if is_npy else [str(whole)])
            check([str(archive)])
            assert not load.called, "a pickle was loaded"
            assert not loads.called, "a pickle was loaded"
    return good


def check(paths: list[str]) -> bool:
    """Read the file as each command does, and run the command on it; whether both could read it."""
    options = {"trace": [], "grad": ["-o", f"{paths[0]}.out", "--backend", "numpy"]}
    good = True
    for command, optional in OPTIONAL.items():
        arrays = read(paths, optional)
        good = good and arrays is not None
        if arrays and sum(a.size for a in arrays.values()) > SMALL:
            continue
        with (
            contextlib.redirect_stderr(io.StringIO()) as err,
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("always")
            status = cli.main([command, *paths, *options[command]])
        assert status in ([2] if arrays is None else [0, 2] if command == "grad" else [0, 1, 2]), status
        assert err.getvalue().count("\n") == (status == 2), err.getvalue()
        assert err.getvalue().rstrip("\n").isprintable(), err.getvalue()
    return good


def read(paths: list[str], optional: tuple[str, ...]) -> dict[str, np.ndarray] | None:
    """What is read, which is what NumPy reads; None where the file is refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            arrays = read_arrays(paths, optional=optional)
        except InputError as error:
            message = str(error)
            assert message.startswith(f"{paths[0]}: "), message
            assert len(message) < 1000, message
            assert "allocate" not in message, f"memory was asked for before the file was checked: {message}"
            return None
    assert_as_numpy(paths, arrays)
    return arrays


def assert_as_numpy(paths: list[str], arrays: dict[str, np.ndarray]) -> None:
    content = Path(paths[0]).read_bytes()
    if not content.startswith((b"PK", np.lib.format.MAGIC_PREFIX)):
        return  # JSON or text
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 2 wrote it
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            loaded = {"W": loaded, "x": X}
        for name, a in arrays.items():
            assert (a.shape, a.dtype) == (loaded[name].shape, loaded[name].dtype), name
            assert a.tobytes() == loaded[name].tobytes(), name
