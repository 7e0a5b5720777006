"""The command line: every command, every way its input can be bad, and that no half-written file is ever left."""

import errno
import itertools
import json
import os
import pickle
import signal
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sigmoid_l2 as sl2
from sigmoid_l2.cli import files
from sigmoid_l2.cli import main as cli
from sigmoid_l2.cli.files import InputError, read_pair, write_npz

W, X = np.arange(24.0).reshape(4, 3, 2) / 24, np.arange(8.0).reshape(4, 2) - 3


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SIGMOID_L2_BACKEND", raising=False)


def names(directory: str = ".") -> list[str]:
    return sorted(path.name for path in Path(directory).iterdir())


def run(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([sys.executable, "-m", "sigmoid_l2", *args], text=True, timeout=60, **options)


def error_of(capsys, *args: str) -> str:
    """Run ``args``, which must fail in one line and leave every file as it was; return that line."""
    before = names()
    assert cli.main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("sigmoid-l2: error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert names() == before
    return err


def load(path: str) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


# --- what works ---------------------------------------------------------------------------------------------------


def test_version_help_and_usage_errors_from_a_shell():
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"sigmoid-l2 {sl2.__version__}\n", "")
    done = run()
    assert done.returncode == 2
    assert "COMMAND" in done.stderr


@pytest.mark.parametrize("command", ["info", "trace", "grad", "sample"])
def test_help_has_an_example_that_parses(capsys, command):
    assert cli.main([command, "--help"]) == 0
    example = capsys.readouterr().out.split("example:\n")[1].split()
    assert example[:2] == ["sigmoid-l2", command]
    assert cli._parser().parse_args(example[1:]).run is not None


def test_version_and_help_load_no_compiler():
    code = (
        "import sys; from sigmoid_l2.cli.main import main; main(['--version']); "
        "sys.exit(any(name in sys.modules for name in ['numba', 'tqdm', 'cupy']))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, timeout=60).returncode == 0


def test_info_is_show_config(capsys):
    assert cli.main(["info"]) == 0
    printed = capsys.readouterr().out
    sl2.show_config()
    assert printed == capsys.readouterr().out
    assert all(info.name in printed for info in sl2.backends())


def test_trace_of_the_example_checks_the_handwritten_gradient(capsys):
    from sigmoid_l2.explain import example

    assert cli.main(["trace"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(str(sl2.trace(example.W, example.x)))
    assert str(sl2.check_grad(example.W, example.x, dW=example.dW, dx=example.dx)) in printed


def test_trace_of_files(capsys):
    Path("pair.json").write_text(json.dumps({"about": "a pair", "W": W[0].tolist(), "x": X[0].tolist()}))
    assert cli.main(["trace", "pair.json"]) == 0
    assert capsys.readouterr().out == f"{sl2.trace(W[0], X[0])}\n"
    np.save("W.npy", W)
    np.save("x.npy", X)
    assert cli.main(["trace", "W.npy", "x.npy"]) == 0
    assert capsys.readouterr().out == f"{sl2.trace(W, X)}\n"


@pytest.mark.parametrize("given", [("dW",), ("dx",), ("dW", "dx")])
@pytest.mark.parametrize("suffix", ["npz", "json"])
def test_trace_checks_the_gradients_that_a_file_holds(capsys, given, suffix):
    wrong = {name: np.full((3, 2), 0.25) for name in given}  # right shape for dW, the classic wrong one for dx
    arrays = {"W": W[0], "x": X[0], **wrong}
    if suffix == "npz":
        np.savez("mine.npz", **arrays)
    else:
        Path("mine.json").write_text(json.dumps({name: a.tolist() for name, a in arrays.items()}))
    assert cli.main(["trace", f"mine.{suffix}"]) == 0
    assert str(sl2.check_grad(W[0], X[0], **wrong)) in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(3, 2), (0, 3, 2), (1, 3, 2), (7, 3, 2), (5, 2, 3, 2), (0, 4, 3, 2), (4, 0, 3, 2)])
@pytest.mark.parametrize("column", [False, True])
def test_grad_is_value_and_grad(capsys, monkeypatch, dtype, shape, column):
    monkeypatch.setattr(cli, "PIECE_BYTES", 100)  # a piece of one to four pairs: several pieces, an odd last one
    rng = np.random.default_rng(1)
    a = rng.standard_normal(shape).astype(dtype)
    b = rng.standard_normal((*shape[:-2], 2, *[1] * column)).astype(dtype)
    np.savez("in.npz", W=a, x=b)
    assert cli.main(["grad", "in.npz", "-o", "out.npz", "--backend", "numpy"]) == 0
    results, expected = load("out.npz"), sl2.value_and_grad(a, b, backend="numpy")._asdict()
    assert list(results) == ["loss", "dW", "dx"]
    for name, result in results.items():
        assert result.dtype == dtype, name
        assert result.shape == expected[name].shape, name
        assert result.tobytes() == np.asarray(expected[name]).tobytes(), name
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("\n") == 1
    for word in (f"{count_of(a)}:", str(a.shape), str(b.shape), dtype, "backend numpy", " s;", "out.npz"):
        assert word in out
    assert names() == ["in.npz", "out.npz"]


def count_of(a: np.ndarray) -> str:
    pairs = int(np.prod(a.shape[:-2]))
    return "1 pair" if pairs == 1 else f"{pairs} pairs"


def test_grad_of_memory_mapped_files_on_the_default_backend():
    np.save("W.npy", np.asfortranarray(W.astype(">f4")))
    np.save("x.npy", X.astype(np.float32))
    done = run("grad", "W.npy", "x.npy", "-o", "gradients")
    assert (done.returncode, done.stderr) == (0, "")
    assert "backend auto" in done.stdout
    expected = sl2.value_and_grad(W.astype(np.float32), X.astype(np.float32))._asdict()
    assert names() == ["W.npy", "gradients", "x.npy"]  # exactly the name that was typed
    for name, result in load("gradients").items():
        np.testing.assert_array_equal(result, expected[name], err_msg=name)


def test_pieces_cover_the_batch_once_and_are_large():
    big = np.broadcast_to(np.float32(0), (10**8, 3, 3))
    pieces = cli._pieces(big)
    assert pieces[0].start == 0
    assert all(a.stop == b.start for a, b in itertools.pairwise(pieces))
    assert pieces[-1].stop >= len(big) > pieces[-1].start
    assert pieces[0].stop * 36 > 0.99 * cli.PIECE_BYTES


def test_sample_is_reproducible(capsys):
    for name, options in {"a": [], "b": ["--seed", "0"], "c": ["--seed", "1"], "d": ["--dtype", "float32"]}.items():
        assert cli.main(["sample", "--batch", "5", "--shape", "3", "2", "-o", name, *options]) == 0
        assert name in capsys.readouterr().out.split()[-1]
    a, b, c, d = (load(name) for name in "abcd")
    assert {name: (array.shape, array.dtype) for name, array in a.items()} == {
        "W": ((5, 3, 2), np.float64),
        "x": ((5, 2), np.float64),
    }
    assert d["W"].dtype == d["x"].dtype == np.float32
    assert a["W"].tobytes() == b["W"].tobytes() != c["W"].tobytes()
    assert a["x"].tobytes() == b["x"].tobytes() != c["x"].tobytes()
    assert cli.main(["grad", "d", "-o", "out.npz", "--backend", "numpy"]) == 0
    assert load("out.npz")["loss"].shape == (5,)


# --- what is bad and must say so ----------------------------------------------------------------------------------


def damaged(content: bytes, cut: int | None = None, at: int | None = None) -> bytes:
    content = bytearray(content[:cut])
    if at is not None:
        content[at] ^= 0xFF
    return bytes(content)


def make(name: str, content: bytes | str | dict[str, Any]) -> list[str]:
    if isinstance(content, dict):
        np.savez(name, **content)
    else:
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    return [name]


def good_npz() -> bytes:
    np.savez("good", W=W, x=X)
    return Path("good.npz").read_bytes()


def good_npy() -> bytes:
    np.save("good", W)
    return Path("good.npy").read_bytes()


def npy_then_x(content: bytes) -> list[str]:
    np.save("x", X)
    return [*make("W.npy", content), "x.npy"]


def npy(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


def npy_of(shape: tuple[int, ...]) -> bytes:
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}"
    return npy(f"{header:<117}\n")


def zip_of(method: int = zipfile.ZIP_DEFLATED, sizes: dict[str, int] | None = None, **members: bytes) -> list[str]:
    """An archive of ``members`` whose directory lies about the unpacked ``sizes``."""
    with zipfile.ZipFile("a.npz", "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        for name, size in (sizes or {}).items():
            archive.getinfo(name).file_size = size
    return ["a.npz"]


def link(name: str, to: str) -> list[str]:
    Path(name).symlink_to(to)
    return [name]


def objects(name: str) -> list[str]:
    np.save(name, np.array([{}, []], dtype=object))
    return [name]


BAD_FILES = {
    "missing": (lambda: ["no.npz"], ["no.npz: cannot be read: No such file"]),
    "below a file": (lambda: [*make("f", "1"), "f/W.npy"][1:], ["f/W.npy: cannot be read: Not a directory"]),
    "directory": (lambda: [Path("d.npz").mkdir() or "d.npz"], ["d.npz: is a directory"]),
    "pipe": (lambda: [os.mkfifo("p.npz") or "p.npz"], ["p.npz: is not a regular file"]),
    "link to nowhere": (lambda: link("l.npz", "no.npz"), ["l.npz: cannot be read: No such file"]),
    "link to itself": (lambda: link("l.npz", "l.npz"), ["l.npz: cannot be read: "]),
    "link to a pipe": (lambda: [os.mkfifo("p.npz") or link("l.npz", "p.npz")][0], ["l.npz: is not a regular file"]),
    "name too long": (lambda: ["n" * 300], ["File name too long"]),
    "NUL in the name": (lambda: ["a\0b"], ["null"]),
    "empty": (lambda: make("a.npz", ""), ["a.npz: the file is empty"]),
    "csv": (lambda: make("a.csv", "1,2,3\n"), ["a.csv: not an .npz, .npy or .json", ".csv", "1,2,3"]),
    "npz in name only": (lambda: make("a.npz", "hello"), ["a.npz: not an .npz", "hello"]),
    "pickle": (lambda: make("pickled", pickle.dumps(W)), ["pickled: not an .npz", "without a suffix", r"\x80"]),
    "one npy": (lambda: make("W.npy", good_npy()), ["W.npy", "two of them, W first"]),
    "three files": (lambda: [*make("W.npy", good_npy())] * 3, ["two .npy files (W first", "W.npy (.npy), W.npy"]),
    "two npz": (lambda: [*make("a.npz", good_npz())] * 2, ["give one .npz", "a.npz (.npz), a.npz (.npz)"]),
    "no x": (lambda: make("a.npz", {"W": W, "b": X}), ["a.npz: has no x", "W, b"]),
    "no name": (lambda: zip_of(), ["a.npz: has no W", "(none)"]),
    "a thousand names": (lambda: make("a.npz", {f"v{i}": X for i in range(1000)}), ["no W", "v0, v1", "v9, ..."]),
    "member no array": (lambda: zip_of(W=b"1 2 3", x=b"4 5"), ["a.npz: W is not an array"]),
    "member empty": (lambda: zip_of(**{"W.npy": b"", "x.npy": b""}), ["a.npz", "W"]),
    "object in npz": (lambda: make("a.npz", {"W": np.array([{}, []], object), "x": X}), ["a.npz", "array W", "bject"]),
    "object npy": (lambda: objects("W.npy") * 2, ["W.npy", "objects"]),
    "truncated zip": (lambda: make("a.npz", damaged(good_npz(), cut=300)), ["a.npz: damaged .npz", "zip"]),
    "flipped byte in zip": (lambda: make("a.npz", damaged(good_npz(), at=200)), ["a.npz: damaged", "W", "CRC"]),
    "npy magic alone": (lambda: npy_then_x(b"\x93NUMPY"), ["W.npy: damaged"]),
    "npy of version 9": (lambda: npy_then_x(damaged(good_npy(), at=6)), ["W.npy: damaged", "version"]),
    "npy header": (lambda: npy_then_x(good_npy().replace(b"{'descr'", b"{'descr")), ["W.npy: damaged"]),
    "npy header cut": (lambda: npy_then_x(damaged(good_npy(), cut=50)), ["W.npy: damaged", "header"]),
    "npy data cut": (
        lambda: npy_then_x(damaged(good_npy(), cut=-8)),
        ["W.npy: damaged", "needs 320 bytes, but it has 312"],
    ),
    "npy header of 4 GiB": (
        lambda: npy_then_x(b"\x93NUMPY\x02\x00\xff\xff\xff\xff{'descr'"),
        ["W.npy: damaged", "header"],
    ),
    "npy header is code": (lambda: npy_then_x(npy("exit(3)")), ["W.npy: damaged", "malformed"]),
    "npy header too deep": (lambda: npy_then_x(npy("(" * 9000)), ["W.npy: damaged"]),
    "npy header of escapes": (lambda: npy_then_x(npy("{'\\d\x1b[2J': 1}")), ["W.npy: damaged", r"\x1b"]),
    "npy negative shape": (lambda: npy_then_x(npy_of((-4, 3))), ["W.npy: damaged", "(-4, 3) has a negative length"]),
    "npy shape of 10^12": (
        lambda: npy_then_x(npy_of((10**12, 3, 2))),
        ["W.npy: damaged", "needs 48000000000128 bytes"],
    ),
    "npy shape of 10^30": (
        lambda: npy_then_x(good_npy().replace(b"(4, 3, 2), }" + b" " * 30, b"(4, %d, 2), }" % 10**30)),
        ["W.npy: damaged"],
    ),
    "npz array larger than memory": (
        lambda: zip_of(
            **{"W.npy": good_npy().replace(b"(4, 3, 2), }" + b" " * 17, b"(4, %d, 2), }" % 10**17), "x.npy": b""}
        ),
        ["a.npz: damaged or unsupported array W", "bytes, but it has 320"],
    ),
    "npz header of 4 GiB": (
        lambda: zip_of(**{"W.npy": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 10**7, "x.npy": b""}),
        ["a.npz: damaged or unsupported array W", "header"],
    ),
    "npz of 2 GiB in 1 KiB": (
        lambda: zip_of(sizes={"W.npy": 2**31 + 128}, **{"W.npy": npy_of((2**27, 1, 2)), "x.npy": b""}),
        ["a.npz: damaged or unsupported array W", "unpacks to 2147483776 bytes"],
    ),
    "npz of bzip2": (
        lambda: zip_of(method=zipfile.ZIP_BZIP2, **{"W.npy": good_npy(), "x.npy": b""}),
        ["a.npz: damaged or unsupported array W", "packed in a way that NumPy does not write"],
    ),
    "npz names of escapes": (lambda: zip_of(**{"\x1b[2J": b"", "long" * 1000: b""}), [r"\x1b[2J, longlong", "long..."]),
    "json syntax": (lambda: make("a.json", '{"W": [[1]],\n "x": [1,]}'), ["a.json: invalid JSON", "line 2 column"]),
    "json cut": (lambda: make("a.json", '{"W": [[1'), ["a.json: invalid JSON", "line 1 column"]),
    "json blank": (lambda: make("a.json", " \n"), ["a.json: invalid JSON", "line 2 column 1"]),
    "json not text": (lambda: make("a.json", b'{"W": "\xff\xfe"}'), ["a.json: invalid JSON", "utf-8"]),
    "json too deep": (lambda: make("a.json", "[" * 100_000), ["a.json: invalid JSON", "recursion"]),
    "json huge integer": (lambda: make("a.json", '{"W": [[1%s]]}' % ("0" * 5000)), ["a.json: invalid JSON", "digits"]),
    "json list": (lambda: make("a.json", "[1, 2]"), ["a.json: must hold an object", "not a list"]),
    "json no W": (lambda: make("a.json", '{"w": [[1]], "x": [1]}'), ["a.json: has no W", "w, x"]),
    "json ragged": (lambda: make("a.json", '{"W": [[1, 2], [3]], "x": [1, 2]}'), ["a.json: W is not a rectangular"]),
    "json word": (lambda: make("a.json", '{"W": [[1, "two"]], "x": [1, 2]}'), ["a.json: W holds", "not a number"]),
    "json null": (lambda: make("a.json", '{"W": [[1, 2]], "x": [1, null]}'), ["a.json: x holds", "not a number"]),
    "json 10^400": (lambda: make("a.json", '{"W": [[1%s]], "x": [1]}' % ("0" * 400)), ["a.json: W holds"]),
    "json long word": (
        lambda: make("a.json", json.dumps({"W": [["1" * 10**5, *[1] * 10**5]], "x": [1]})),
        ["a.json: W holds something that is not a number"],
    ),
    "json deep list": (lambda: make("a.json", '{"W": ' + "[" * 80 + "]" * 80 + ', "x": [1]}'), ["a.json: W is not"]),
}


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
        read_pair(paths)


BAD_ARRAYS = {
    "shapes": ({"W": W, "x": X[:, :1]}, ["(4, 2)", "(4, 1)"]),
    "vector for W": ({"W": X[0], "x": X[0]}, ["2 dimensions"]),
    "no columns": ({"W": W[:, :, :0], "x": X[:, :0]}, ["at least 1"]),
    "complex": ({"W": W + 1j, "x": X}, ["W", "complex128"]),
    "text": ({"W": W.astype(str), "x": X}, ["W", "<U"]),
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


def test_backends(capsys, monkeypatch):
    np.savez("in.npz", W=W, x=X)
    assert "'numpi'" in error_of(capsys, "grad", "in.npz", "-o", "out.npz", "--backend", "numpi")
    missing = [info for info in sl2.backends() if not info.available]
    for info in missing:  # the library's message has several lines
        assert info.reasons[0] in error_of(capsys, "grad", "in.npz", "-o", "out.npz", "--backend", info.name)

    def unavailable(*_args, **_options):
        raise sl2.BackendUnavailableError("backend 'x' cannot compute:\n  x: no device\n  y: not installed")

    monkeypatch.setattr(cli, "value_and_grad", unavailable)
    error = error_of(capsys, "grad", "in.npz", "-o", "out.npz")
    assert error == "sigmoid-l2: error: backend 'x' cannot compute: x: no device y: not installed\n"


@pytest.mark.parametrize("error", [MemoryError(), MemoryError("Unable to allocate 3.6 TiB")])
def test_out_of_memory(capsys, monkeypatch, error):
    np.savez("in.npz", W=W, x=X)

    def no_memory(*_args, **_options):
        raise error

    monkeypatch.setattr(cli, "value_and_grad", no_memory)
    assert (str(error) or "out of memory") in error_of(capsys, "grad", "in.npz", "-o", "out.npz")


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
    monkeypatch.setattr(cli, "read_pair", lambda _: pytest.fail("began to work"))
    error_of(capsys, "grad", "in.npz", "-o", "no/out.npz")


@pytest.mark.parametrize(
    "options",
    [
        ["--batch", "-1", "--shape", "3", "3"],
        ["--batch", "1.5", "--shape", "3", "3"],
        ["--batch", "1", "--shape", "0", "3"],
        ["--batch", "1", "--shape", "3"],
        ["--batch", "1", "--shape", "3", "3", "--dtype", "int8"],
        ["--batch", "1", "--shape", "3", "3", "--seed", "x"],
    ],
)
def test_sample_usage_errors(capsys, options):
    assert cli.main(["sample", *options, "-o", "out.npz"]) == 2
    assert "sigmoid-l2 sample: error: argument" in capsys.readouterr().err
    assert names() == []


@pytest.mark.parametrize("batch", [10**15, 10**18, 10**30])
def test_sample_of_more_than_memory_holds(capsys, batch):
    error_of(capsys, "sample", "--batch", str(batch), "--shape", "3", "3", "-o", "out.npz")


# --- nothing half-written -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("exists", [False, True])
def test_disk_full(capsys, monkeypatch, exists):
    make("in.npz", {"W": W, "x": X})
    if exists:
        make("out.npz", b"the result of yesterday")

    def full(file, **_arrays):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.np, "savez", full)
    error = error_of(capsys, "grad", "in.npz", "-o", "out.npz", "--backend", "numpy")
    assert error == "sigmoid-l2: error: out.npz: cannot be written: No space left on device\n"
    error_of(capsys, "sample", "--batch", "1", "--shape", "2", "2", "-o", "out.npz")
    if exists:
        assert Path("out.npz").read_bytes() == b"the result of yesterday"


@pytest.mark.parametrize("limit", [100, 100_000])  # within the first header, in the data
def test_disk_full_for_real(limit):
    pytest.importorskip("resource")
    make("out.npz", b"the result of yesterday")
    # In the child itself: a function of ours between fork and exec would set off other libraries' fork hooks.
    code = f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
    code += "from sigmoid_l2.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "sample", "--batch", "10000", "--shape", "3", "3", "-o", "out.npz"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "sigmoid-l2: error: out.npz: cannot be written: File too large\n"
    assert names() == ["out.npz"]
    assert Path("out.npz").read_bytes() == b"the result of yesterday"


@pytest.mark.parametrize("place", ["cli.value_and_grad", "files.np.savez"])
def test_ctrl_c_leaves_nothing(place):
    make("in.npz", {"W": W, "x": X})
    make("out.npz", b"the result of yesterday")
    code = f"""
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from sigmoid_l2.cli import files
from sigmoid_l2.cli import main as cli
def slow(file, *_, **__):
    if hasattr(file, "write"):
        file.write(b"half of it")
    print("begun", flush=True)
    time.sleep(60)
{place} = slow
sys.exit(cli.main(["grad", "in.npz", "-o", "out.npz", "--backend", "numpy"]))
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (130, "sigmoid-l2: interrupted\n")
    assert names() == ["in.npz", "out.npz"]
    assert Path("out.npz").read_bytes() == b"the result of yesterday"


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


# --- a standard output that nobody reads --------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["trace", "--help"])
def test_reader_of_stdout_goes_away(command):
    reader, writer = os.pipe()
    os.close(reader)
    # Unbuffered, argparse itself would meet the closed pipe, and it ignores that.
    done = run(command, stdout=writer, env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"})
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_stdout_is_full():
    with Path("/dev/full").open("w") as full:
        done = run("trace", stdout=full)
    assert (done.returncode, done.stderr) == (2, "sigmoid-l2: error: No space left on device\n")


def test_stdout_that_cannot_encode_a_name(monkeypatch):
    done = run(
        "sample", "--batch", "1", "--shape", "2", "2", "-o", "é.npz", env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\xe9.npz" in done.stdout
    assert names() == ["é.npz"]
