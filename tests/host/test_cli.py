"""The command line: every command, what it prints, and that every error is one line and leaves all files as they were.

Bad files are in test_cli_files.py, as is what must hold of OUT.
"""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import run_python

import sigmoid_l2 as sl2
from sigmoid_l2.cli import commands
from sigmoid_l2.cli import main as cli
from sigmoid_l2.problem import validate

pytestmark = pytest.mark.usefixtures("directory")
W, X = np.arange(24.0).reshape(4, 3, 2) / 24, np.arange(8.0).reshape(4, 2) - 3


def names(directory: str = ".") -> list[str]:
    return sorted(path.name for path in Path(directory).iterdir())


def run(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
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


def test_version_loads_no_compiler():
    code = "import sys; from sigmoid_l2.cli.main import main; main(['--version']); "
    code += "print({'numba', 'tqdm', 'cupy'} & set(sys.modules))"
    assert run_python(code) == f"sigmoid-l2 {sl2.__version__}\nset()\n"


def test_usage_error_from_a_shell():
    done = run()
    assert done.returncode == 2
    assert "COMMAND" in done.stderr


@pytest.mark.parametrize("command", ["info", "trace", "grad", "sample"])
def test_help_fits_a_terminal_and_has_an_example_that_parses(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    example = text.split("example:\n")[1].splitlines()[0].split()
    assert example[:2] == ["sigmoid-l2", command]
    assert cli._parser().parse_args(example[1:]).run is not None


def test_info_is_show_config(capsys):
    assert cli.main(["info"]) == 0
    printed = capsys.readouterr().out
    sl2.show_config()
    assert printed == capsys.readouterr().out
    assert all(info.name in printed for info in sl2.backends())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(3, 2), (0, 3, 2), (1, 3, 2), (7, 3, 2), (5, 2, 3, 2), (0, 4, 3, 2), (4, 0, 3, 2)])
@pytest.mark.parametrize("column", [False, True])
def test_grad_is_value_and_grad(capsys, monkeypatch, dtype, shape, column):
    monkeypatch.setattr(commands, "PIECE_BYTES", 100)  # a piece of one to four pairs: several pieces, an odd last one
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
    W_last = np.asfortranarray(W.astype(np.float32))
    np.save("W.npy", W_last.astype(">f4"))
    np.save("x.npy", X.astype(np.float32))
    done = run("grad", "W.npy", "x.npy", "-o", "gradients")
    assert (done.returncode, done.stderr) == (0, "")
    assert "backend auto" in done.stdout
    expected = sl2.value_and_grad(W_last, X.astype(np.float32))._asdict()
    assert names() == ["W.npy", "gradients", "x.npy"]  # exactly the name that was typed
    for name, result in load("gradients").items():
        np.testing.assert_array_equal(result, expected[name], err_msg=name)


def test_pieces_cover_the_batch_once_and_are_large():
    big = np.broadcast_to(np.float32(0), (10**8, 3, 3))
    pieces = commands._pieces(validate(big, big[:, 0]))
    assert pieces[0].start == 0
    assert all(a.stop == b.start for a, b in itertools.pairwise(pieces))
    assert pieces[-1].stop >= len(big) > pieces[-1].start
    assert pieces[0].stop * 36 > 0.99 * commands.PIECE_BYTES


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


def test_backends(capsys):
    np.savez("in.npz", W=W, x=X)
    assert "'numpi'" in error_of(capsys, "grad", "in.npz", "-o", "out.npz", "--backend", "numpi")
    missing = [info for info in sl2.backends() if not info.available]
    for info in missing:  # the library's message has several lines
        assert info.reasons[0] in error_of(capsys, "grad", "in.npz", "-o", "out.npz", "--backend", info.name)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "out of memory"),
        (MemoryError("Unable to allocate 3.6 TiB"), "Unable to allocate 3.6 TiB"),
        (sl2.BackendUnavailableError("cannot compute:\n  x: no device\n  y: no"), "cannot compute: x: no device y: no"),
    ],
)
def test_errors_of_the_library(capsys, monkeypatch, error, line):
    np.savez("in.npz", W=W, x=X)

    def fails(*_args, **_options):
        raise error

    monkeypatch.setattr(commands, "value_and_grad", fails)
    assert error_of(capsys, "grad", "in.npz", "-o", "out.npz") == f"sigmoid-l2: error: {line}\n"


WRONG_SAMPLES = ("-1 --shape 3 3", "1.5 --shape 3 3", "1 --shape 0 3", "1 --shape 3")
WRONG_SAMPLES += ("1 --shape 3 3 --dtype int8", "1 --shape 3 3 --seed x")


@pytest.mark.parametrize("sample", WRONG_SAMPLES)
def test_sample_usage_errors(capsys, sample):
    assert cli.main(["sample", "-o", "out.npz", "--batch", *sample.split()]) == 2
    assert "sigmoid-l2 sample: error: argument" in capsys.readouterr().err
    assert names() == []


@pytest.mark.parametrize("batch", [10**15, 10**18, 10**30])
def test_sample_of_more_than_memory_holds(capsys, batch):
    error_of(capsys, "sample", "--batch", str(batch), "--shape", "3", "3", "-o", "out.npz")


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


def test_stdout_that_cannot_encode_a_name():
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = run("sample", "--batch", "1", "--shape", "2", "2", "-o", "é.npz", env=ascii_only)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\xe9.npz" in done.stdout
    assert names() == ["é.npz"]
