"""The files of the command line: every way in which an input can be bad; and OUT is whole, or what it was before."""

import errno
import os
import stat
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from attack.fuzz import make_seeds
from attack.fuzz.make_seeds import saved

from host.test_cli import W, X, error_of, names
from sigmoid_l2.cli import commands, writing
from sigmoid_l2.cli import main as cli
from sigmoid_l2.cli.files import read_arrays
from sigmoid_l2.cli.source import InputError
from sigmoid_l2.cli.writing import write_npz

pytestmark = pytest.mark.usefixtures("directory")


def make(name, content):
    if isinstance(content, dict):
        np.savez(name, **content)
    else:
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    return [name]


def link(name, to):
    Path(name).symlink_to(to)
    return [name]


BAD_FILES = {
    "missing": (lambda: ["no.npz"], ["no.npz: cannot be read: No such file"]),
    "below a file": (lambda: [*make("f", "1"), "f/W.npy"][1:], ["f/W.npy: cannot be read: Not a directory"]),
    "directory": (lambda: [Path("d.npz").mkdir() or "d.npz"], ["d.npz: is a directory"]),
    "device": (lambda: [os.devnull], [f"{os.devnull}: is neither a regular file nor a pipe"]),
    "link to nowhere": (lambda: link("l.npz", "no.npz"), ["l.npz: cannot be read: No such file"]),
    "link to itself": (lambda: link("l.npz", "l.npz"), ["l.npz: cannot be read: "]),
    "link to a device": (lambda: link("l.npz", os.devnull), ["l.npz: is neither a regular file nor a pipe"]),
    "name too long": (lambda: ["n" * 300], ["File name too long"]),
    "NUL in the name": (lambda: ["a\0b"], ["null"]),
    "npz in name only": (lambda: make("a.npz", "hello"), ["a.npz: line 1 is not a row of numbers: 'hello'"]),
    "one npy": (lambda: make("W.npy", saved(W)), ["W.npy", "two of them, W first"]),
    "three files": (lambda: make("W.npy", saved(W)) * 3, ["two .npy files (W first", "W.npy (.npy), W.npy"]),
    "two npz": (lambda: make("a.npz", {"W": W, "x": X}) * 2, ["give one .npz", "a.npz (.npz), a.npz (.npz)"]),
    "a thousand names": (lambda: make("a.npz", {f"v{i}": X for i in range(1000)}), ["no W", "v0, v1", "v9, ..."]),
    "empty members": (lambda: make("a.npz", make_seeds.archive(**{"W.npy": b"", "x.npy": b""})), ["a.npz", "W"]),
    "json blank": (lambda: make("a.json", " \n"), ["a.json: invalid JSON", "line 2 column 1"]),
    "json integer": (lambda: make("a.json", '{"W": [[1%s]]}' % ("0" * 5000)), ["a.json: invalid JSON", "digits"]),
    "json no W": (lambda: make("a.json", '{"w": [[1]], "x": [1]}'), ["a.json: has no W", "w, x"]),
    "json null": (lambda: make("a.json", '{"W": [[1, 2]], "x": [1, null]}'), ["a.json: x holds", "not a number"]),
    "json deep": (lambda: make("a.json", '{"W": ' + "[" * 80 + "]" * 80 + ', "x": [1]}'), ["a.json: W is not"]),
}
NPY, MEMBER, JSON = "damaged or unsupported .npy file: ", "damaged or unsupported array W: ", "invalid JSON: "
SEEDS = {  # of the fuzzer: what is said of each
    "announces-8-TB.npz": MEMBER + "with shape (1000000000000, 1, 1) and dtype float64 it needs 8000000000082 bytes",
    "bzip2.npz": MEMBER + "it is packed in a way that NumPy does not write",
    "checksum.npz": MEMBER + "Bad CRC",
    "code.npy": NPY + "malformed",
    "cut.npz": "damaged .npz file: File is not a zip file",
    "data-cut.npy": NPY + "with shape (1, 2, 3) and dtype float64 it needs 176 bytes, but it has 175",
    "directory-says-2-GiB.npz": MEMBER + "it unpacks to 2147483730 bytes, of which at most 1073741824 are read",
    "elements-of-no-bytes.npy": NPY + "its elements are arrays themselves",
    "empty": "the file is empty",
    "encrypted.npz": MEMBER + "File <ZipInfo",
    "escapes.npy": NPY,
    "escapes.npz": r"has no W; the names in it are: \x1b[2J, longlonglonglonglonglonglonglonglonglong...",
    "header-cut.npy": NPY + "EOF: reading array header, expected 118 bytes got 40",
    "header-of-4-GiB.npy": NPY + "EOF: reading array header",
    "header-of-4-GiB.npz": MEMBER + "EOF: reading array header",
    "huge-integer.json": "W holds something that is not a number, or one that no dtype can hold",
    "itemsize.npy": NPY + "with shape (1, 1, 1) and dtype |V2147483647 it needs 2147483726 bytes",
    "list.json": "must hold an object with the keys W and x, not a list",
    "lzma.npz": MEMBER + "it is packed in a way that NumPy does not write",
    "magic.npy": NPY + "EOF: reading magic string, expected 8 bytes got 6",
    "nested.json": JSON,
    "nested.npy": NPY,
    "no-array.npz": "W is not an array",
    "no-members.npz": "has no W; the names in it are: (none)",
    "no-x.npz": "has no x; the names in it are: W, X",
    "not-ascii.npy": NPY + "with shape (2147483648,) and dtype ",
    "not-utf-8.json": JSON + "'utf-8' codec can't decode byte 0xff",
    "objects-hidden.npy": NPY + "it holds Python objects, which are never loaded",
    "objects.npy": NPY + "it holds Python objects, which are never loaded",
    "objects.npz": MEMBER + "it holds Python objects, which are never loaded",
    "pickle": r"not an .npz, .npy or .json file nor lines of numbers; it begins with b'\x80",
    "ragged.json": "W is not a rectangular array: ",
    "shape-negative.npy": NPY + "its shape (-1, 2, 3) has a negative length",
    "shape-of-10-12.npy": NPY + "with shape (1000000000000, 2, 3) and dtype float64 it needs 48000000000082 bytes",
    "shape-of-10-30.npy": NPY + "with shape (1000000000000000000000000000000, 2, 3)",
    "shape-of-70-axes.npy": NPY,
    "shape-of-floats.npy": NPY + "shape is not valid: (1.0, 2.0)",
    "shape-overflows.npy": NPY + "with shape (4294967296, 4294967296, 1)",
    "subarray.npy": NPY,
    "syntax.json": JSON + "Expecting ',' delimiter: line 1 column 19",
    "decimal-commas.csv": "line 1 is not a row of numbers: '0,1;0,5'; write 0.5, not 0,5",
    "decimal-commas.txt": r"line 1 is not a row of numbers: '0,1\t0,5'; write 0.5, not 0,5",
    "gzip.txt": r"not an .npz, .npy or .json file nor lines of numbers; it begins with b'\x1f\x8b\x08",
    "header.csv": "line 1 is not a row of numbers: 'a,b,c'",
    "missing.csv": "line 2 is not a row of numbers: '1,,2'",
    "nul-later.txt": "line 2 has 1 number, but line 1 has 80; each line is a row of W, and the last line is x",
    "only-comments.txt": "has no lines of numbers; each line is a row of W, and the last line is x",
    "ragged.txt": "line 4 has 2 numbers, but line 2 has 3; each line is a row of W, and the last line is x",
    "text.csv": "has one line of numbers; each line is a row of W, and the last line is x",
    "underscores.txt": "line 2 is not a row of numbers: '1_0 2'",
    "version-9.npy": NPY + "version (9, 0) of the format is unknown",
    "warns.npy": NPY,
    "word.json": "W holds something that is not a number, or one that no dtype can hold",
}


def of_seed(name):
    paths = make(name, make_seeds.BAD[name])
    return [*paths, *make("x.npy", saved(X))] if name.endswith(".npy") else paths


BAD_FILES |= {name: (partial(of_seed, name), [f"{name}: {words}"]) for name, words in SEEDS.items()}


def test_all_bad_seeds_are_told_of():
    assert SEEDS.keys() == make_seeds.BAD.keys()


@pytest.mark.parametrize("command", ["grad", "trace"])
@pytest.mark.parametrize(("paths", "words"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files(capsys, command, paths, words):
    paths = paths()
    error = error_of(capsys, command, *paths, *(["-o", "out.npz", "--backend", "numpy"] if command == "grad" else []))
    for word in words:
        assert word in error
    assert len(error) < 600
    assert error[:-1].isprintable()
    with pytest.raises(InputError):
        read_arrays(paths)


BAD_ARRAYS = {
    "shapes": ({"W": W, "x": X[:, :1]}, ["(..., 2)", "(4, 1)"]),
    "complex": ({"W": W + 1j, "x": X}, ["W", "complex128"]),
    "structured": ({"W": W, "x": np.zeros((4, 2), "f4,i4")}, ["x", "dtype"]),
}


@pytest.mark.parametrize("command", ["grad", "trace"])
@pytest.mark.parametrize(("arrays", "words"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_what_the_library_rejects(capsys, command, arrays, words):
    np.savez("in.npz", **arrays)
    error = error_of(capsys, command, "in.npz", *["-o", "out.npz"] * (command == "grad"))
    assert error.startswith("sigmoid-l2: error: in.npz: ")
    assert all(word in error for word in words)
    for name in ("W", "x"):
        np.save(f"{name}.npy", arrays[name])
    error = error_of(capsys, command, "W.npy", "x.npy", *["-o", "out.npz"] * (command == "grad"))
    assert error.startswith("sigmoid-l2: error: W.npy, x.npy: ")


def test_no_permission(capsys, monkeypatch):
    np.savez("in.npz", W=W, x=X)

    def forbidden(self, *_args):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "open", forbidden)  # permission bits do not hold for root, as which CI may run
    assert "in.npz: cannot be read: Permission denied" in error_of(capsys, "trace", "in.npz")
    error = error_of(capsys, "grad", "in.npz", "-o", "out.npz")
    assert "out.npz: cannot be written: Permission denied" in error
    assert ".tmp" not in error


@pytest.mark.parametrize(
    ("out", "word"),
    [
        ("no/out.npz", "no/out.npz: cannot be written: there is no directory no"),
        ("in.npz/out.npz", "cannot be written: there is no directory in.npz"),
        (".", "is a directory"),
        (os.devnull, "is not a regular file"),
        ("in.npz", "in.npz: is an input"),
        ("./link.npz", "link.npz: is an input"),
    ],
)
def test_bad_out(capsys, out, word):
    np.savez("in.npz", W=W, x=X)
    Path("link.npz").symlink_to("in.npz")
    before = Path("in.npz").read_bytes()
    assert word in error_of(capsys, "grad", "in.npz", "-o", out)
    assert Path("in.npz").read_bytes() == before
    if "input" not in word:
        assert word in error_of(capsys, "sample", "--batch", "1", "--shape", "2", "2", "-o", out)


def test_out_is_checked_before_the_work(capsys, monkeypatch):
    np.savez("in.npz", W=W, x=X)
    monkeypatch.setattr(commands, "read_arrays", lambda *_, **__: pytest.fail("began to work"))
    error_of(capsys, "grad", "in.npz", "-o", "no/out.npz")


FAILURES = {  # of writing: the exit status, the line on standard error; test_faults_files.py has the real ones
    "disk full": (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 2, "error: out.npz: cannot be written: No space"),
    "Ctrl-C": (KeyboardInterrupt(), 130, "interrupted\n"),
}


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("command", ["grad in.npz", "sample --batch 1 --shape 2 2"])
@pytest.mark.parametrize(("error", "status", "line"), FAILURES.values(), ids=FAILURES)
def test_writing_fails(capsys, monkeypatch, error, status, line, command, exists):
    make("in.npz", {"W": W, "x": X})
    if exists:
        make("out.npz", b"the result of yesterday")
    before = names()

    def half(file, *_array, **_options):
        file.write(b"half of it")
        raise error

    monkeypatch.setattr(writing.np.lib.format, "write_array", half)
    assert cli.main([*command.split(), "-o", "out.npz"]) == status
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("sigmoid-l2: " + line)
    assert names() == before
    assert not exists or Path("out.npz").read_bytes() == b"the result of yesterday"


@pytest.mark.skipif(os.name != "posix", reason="modes and links of POSIX")
def test_written_file_is_an_ordinary_one():
    Path("data").mkdir()
    Path("link.npz").symlink_to("data/real.npz")
    mask = os.umask(0o027)
    try:
        write_npz("link.npz", {"a": X})
    finally:
        os.umask(mask)
    assert Path("link.npz").is_symlink()
    assert stat.S_IMODE(Path("data/real.npz").stat().st_mode) == 0o640
    assert names("data") == ["real.npz"]
