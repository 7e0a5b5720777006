"""Standard input, pipes and text: what the command line reads beside .npz, .npy and .json files.

More of what is bad is in test_cli_files.py.
"""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import sigmoid_l2 as sl2
from host.test_cli import W, X, error_of, names
from sigmoid_l2.cli import main as cli
from sigmoid_l2.cli import rows, source
from sigmoid_l2.cli.files import read_arrays
from sigmoid_l2.cli.source import InputError

pytestmark = [
    pytest.mark.usefixtures("directory"),
    pytest.mark.skipif(os.name != "posix", reason="pipes and descriptors of POSIX"),
]
pty = pytest.importorskip("pty", reason="terminals of POSIX", exc_type=ImportError)
PAIR = {"W": W[0].tolist(), "x": X[0].tolist()}


def saved(save, *arrays, **named):
    file = io.BytesIO()
    save(file, *arrays, **named)
    return file.getvalue()


FORMATS = {
    "json": json.dumps(PAIR).encode(),
    "json after blank lines": b"\n" * 20 + json.dumps(PAIR).encode(),
    "json of Windows": json.dumps(PAIR).encode("utf-16"),
    "npz": saved(np.savez, W=W[0], x=X[0]),
    "packed npz": saved(np.savez_compressed, W=W[0], x=X[0]),
    "text": saved(np.savetxt, [*W[0], X[0]]),
    "csv": saved(lambda file, a: np.savetxt(file, a, delimiter=","), [*W[0], X[0]]),
}


@pytest.fixture
def standard_input(monkeypatch):
    """A function that puts bytes, or an open file, in the place of standard input."""
    before = os.dup(0)
    monkeypatch.setattr("sys.stdin", io.StringIO())  # the commands read the descriptor

    def give(content):
        if isinstance(content, bytes):
            reader, writer = os.pipe()
            assert len(content) < 1 << 16, "a pipe holds no more"
            os.write(writer, content)
            os.close(writer)
        else:
            reader = os.dup(content.fileno())
        os.dup2(reader, 0)
        os.close(reader)

    yield give
    os.dup2(before, 0)
    os.close(before)


@pytest.mark.parametrize("arguments", [[], ["-"], ["/dev/stdin"]])
@pytest.mark.parametrize("how", ["pipe", "file"])
@pytest.mark.parametrize("content", FORMATS.values(), ids=FORMATS)
def test_standard_input(capsys, standard_input, content, how, arguments):
    Path("given").write_bytes(content)
    with Path("given").open("rb") as file:
        standard_input(content if how == "pipe" else file)
        assert cli.main(["trace", *arguments]) == 0
    os.fstat(0)  # it is not closed, because it is not ours
    assert capsys.readouterr() == (f"{sl2.trace(W[0], X[0])}\n", "")


def test_two_arrays_of_which_one_is_piped(capsys, standard_input):
    np.save("W.npy", W)
    standard_input(saved(np.save, X))
    assert cli.main(["trace", "W.npy", "-"]) == 0
    assert capsys.readouterr().out == f"{sl2.trace(W, X)}\n"


def test_grad_reads_it_too(standard_input):
    standard_input(FORMATS["npz"])
    assert cli.main(["grad", "-", "-o", "out.npz"]) == 0
    with np.load("out.npz") as archive:
        np.testing.assert_array_equal(archive["dx"], sl2.grad(W[0], X[0], wrt="x"))


def test_an_out_that_is_standard_input_would_be_lost(capsys, standard_input):
    Path("in.npz").write_bytes(FORMATS["npz"])
    with Path("in.npz").open("rb") as file:
        standard_input(file)
        assert "in.npz: is an input too and would be lost" in error_of(capsys, "grad", "-", "-o", "in.npz")


def test_a_file_called_minus(capsys):
    Path("-").write_bytes(FORMATS["json"])
    assert cli.main(["trace", "./-"]) == 0
    assert capsys.readouterr().out == f"{sl2.trace(W[0], X[0])}\n"


@pytest.mark.parametrize("content", FORMATS.values(), ids=FORMATS)
def test_process_substitution(capsys, content):
    os.mkfifo("pipe")
    writer = threading.Thread(target=lambda: Path("pipe").write_bytes(content))
    writer.start()
    assert cli.main(["trace", "pipe"]) == 0
    writer.join()
    assert capsys.readouterr() == (f"{sl2.trace(W[0], X[0])}\n", "")


def test_process_substitution_of_a_shell():
    command = f"exec {sys.executable} -m sigmoid_l2 trace <({sys.executable} -c 'print(\"1 2\\n3 4\")')"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{sl2.trace([[1.0, 2]], [3.0, 4])}\n", "")


def test_input_that_comes_in_parts(standard_input, capsys):
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as file:
        standard_input(file)
    texts = (b" ", b"{", FORMATS["json"][1:9], FORMATS["json"][9:])

    def write():
        with os.fdopen(writer, "wb", buffering=0) as file:
            for text in texts:
                file.write(text)

    thread = threading.Thread(target=write)
    thread.start()
    assert cli.main(["trace"]) == 0
    thread.join()
    assert capsys.readouterr().out == f"{sl2.trace(W[0], X[0])}\n"


# --- no input --------------------------------------------------------------------------------------------------------


def test_a_device_gives_the_example(standard_input, capsys):
    master, slave = pty.openpty()
    for descriptor in (os.open(os.devnull, os.O_RDONLY), slave):
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            standard_input(file)
        assert cli.main(["trace"]) == 0
        assert capsys.readouterr().out.startswith("The built-in example.")
    os.close(master)


def test_what_another_part_of_the_program_has_opened_is_no_input(standard_input, monkeypatch):
    """Where standard input was closed, the next file that is opened has its number."""
    standard_input(FORMATS["json"])
    assert source.has_input()
    monkeypatch.setattr("sys.stdin", None)
    assert not source.has_input()
    with pytest.raises(InputError, match=r"^standard input is closed$"):
        source.find("-")


def run_without_standard_input(*args):
    """Not by preexec_fn, which forks this process, and JAX warns of that."""
    return subprocess.run(
        ["sh", "-c", 'exec "$0" -m sigmoid_l2 "$@" <&-', sys.executable, *args],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_closed_standard_input_gives_the_example():
    done = run_without_standard_input("trace")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("The built-in example.")
    done = run_without_standard_input("trace", "-")
    assert done.returncode == 2
    assert done.stderr.startswith("sigmoid-l2: error: standard input is closed; to make a file: ")


BAD = {
    "empty": (b"", "standard input is empty; for the example: sigmoid-l2 trace </dev/null; to make a file: echo "),
    "blank": (b"\n \n", "standard input: has no lines of numbers; "),
    "zeros": (
        bytes(1000),
        r"standard input: not an .npz, .npy or .json file nor lines of numbers; it begins with b'\x00",
    ),
    "words": (b"usage: make.py", "standard input: line 1 is not a row of numbers: 'usage: make.py'"),
    "cut": (FORMATS["json"][:-3], "standard input: invalid JSON: "),
    "cut npz": (FORMATS["npz"][:-30], "standard input: damaged .npz file: File is not a zip file"),
    "cut npy": (saved(np.save, X)[:-1], "standard input: an .npy file holds one array"),
}


@pytest.mark.parametrize(("content", "words"), BAD.values(), ids=BAD)
def test_bad_input(capsys, standard_input, content, words):
    standard_input(content)
    assert error_of(capsys, "trace").startswith(f"sigmoid-l2: error: {words}")


def test_standard_input_is_read_once(capsys, standard_input):
    for arguments in (["-", "-"], ["-", "/dev/stdin"]):
        standard_input(saved(np.save, W))
        assert "standard input: is named twice, and can be read once; " in error_of(capsys, "trace", *arguments)


def test_standard_input_that_is_a_directory(capsys, standard_input):
    class Here:
        def fileno(self):
            return os.open(".", os.O_RDONLY)

    standard_input(Here())
    assert "standard input: is a directory, not a file; " in error_of(capsys, "trace")


def test_a_damaged_array_that_is_piped(capsys, standard_input):
    np.save("W.npy", W)
    standard_input(saved(np.save, X)[:-1])
    assert "standard input: damaged or unsupported .npy file: with shape (4, 2)" in (
        error_of(capsys, "trace", "W.npy", "-")
    )


def test_a_pipe_that_is_not_ready_is_an_error_and_not_the_end(capsys, standard_input):
    reader, writer = os.pipe()
    os.write(writer, b"1 2\n3 4\n")
    os.set_blocking(reader, False)
    with os.fdopen(reader, "rb") as file:
        standard_input(file)
    assert "standard input: cannot be read: it gives nothing, but it has not ended" in error_of(capsys, "trace")
    os.close(writer)


def test_a_writer_of_too_much_is_stopped(capsys, monkeypatch, standard_input):
    monkeypatch.setattr(source, "MOST_PIPED_BYTES", 1 << 20)
    with subprocess.Popen(["seq", "9999999"], stdout=subprocess.PIPE) as writer:
        standard_input(writer.stdout)
        writer.stdout.close()
        assert "standard input: more than 1048576 bytes; give a file instead; " in error_of(capsys, "trace")
        with Path(os.devnull).open("rb") as nothing:
            standard_input(nothing)  # the last reader is gone
        assert writer.wait(60) == -signal.SIGPIPE


def test_junk_is_refused_before_it_is_read(capsys, standard_input):
    with subprocess.Popen(["head", "-c", "100000000", "/dev/zero"], stdout=subprocess.PIPE) as writer:
        standard_input(writer.stdout)
        writer.stdout.close()
        assert r"it begins with b'\x00" in error_of(capsys, "trace")
        with Path(os.devnull).open("rb") as nothing:
            standard_input(nothing)
        assert writer.wait(60) == -signal.SIGPIPE


def test_a_text_has_a_limit(monkeypatch):
    Path("mine.txt").write_bytes(FORMATS["text"])
    monkeypatch.setattr(rows, "MOST_TEXT_BYTES", 10)
    with pytest.raises(InputError, match=r"^mine.txt: more than 10 bytes of text; give .npz or .npy instead$"):
        read_arrays(["mine.txt"])


# --- waiting ---------------------------------------------------------------------------------------------------------

WAITING = """
import sys
from sigmoid_l2.cli import main as cli, source
source.WAITING_SECONDS = 0.01
sys.exit(cli.main(["trace", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("arguments", [[], ["pipe"]])
def test_it_says_that_it_waits(arguments):
    """A pipe that delivers nothing, or has no writer; then input, or Ctrl-C."""
    os.mkfifo("pipe")
    for ends in ("input", "Ctrl-C"):
        command = [sys.executable, "-c", WAITING, *arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, text=True, **pipes) as child:
            name = arguments[0] if arguments else "standard input"
            assert child.stderr.readline() == f"sigmoid-l2: waiting for input on {name}; Ctrl-C stops\n"
            if ends == "Ctrl-C":
                child.send_signal(signal.SIGINT)
                out, err = child.communicate(timeout=60)
                assert (child.returncode, out, err) == (130, "", "sigmoid-l2: interrupted\n")
                continue
            if arguments:
                Path("pipe").write_text("1 2\n3 4\n")
            out, err = child.communicate(None if arguments else "1 2\n3 4\n", timeout=60)
            assert (child.returncode, out, err) == (0, f"{sl2.trace([[1.0, 2]], [3.0, 4])}\n", "")


def test_waiting_where_no_thread_can_be_started_and_nobody_listens(capsys, monkeypatch, standard_input):
    def none(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    standard_input(FORMATS["text"])
    assert cli.main(["trace"]) == 0
    monkeypatch.undo()


# --- text ------------------------------------------------------------------------------------------------------------

ROWS = [[0.1, 0.5, -3], [-0.3, 8e-5, np.inf], [0.2, -0.4, 1]]
TEXTS = {
    "blanks": "0.1 0.5 -3\n-0.3 8e-5 inf\n0.2 -0.4 1\n",
    "more of them": "  0.1   0.5\t-3  \n-0.3\t\t8e-5 Infinity\n\n 0.2 -0.4 1",
    "commas": "0.1,0.5,-3\n-0.3,8e-5,inf\n0.2,-0.4,1\n",
    "commas and blanks": "0.1, 0.5, -3\n-0.3 ,8e-5 , inf\n0.2,\t-0.4,1\n",
    "semicolons": "0.1;0.5;-3\n-0.3; 8e-5; inf\n0.2 ;-0.4; 1\n",
    "each line its own": "0.1,0.5,-3\n-0.3 8e-5 inf\n0.2;-0.4;1",
    "comments": "# W\n0.1 0.5 -3 # the first\n-0.3,8e-5,inf# the second\n\n#\n# x\n0.2 -0.4 1\n# end",
    "the last separator": "0.1, 0.5, -3, \n-0.3; 8e-5; inf;\n0.2 -0.4 1 \n",
    "Excel's empty lines": ";;;\n0.1;0.5;-3\n;;\n-0.3;8e-5;inf\n0.2;-0.4;1\n;;\n;;\n",
    "Windows": "\ufeff0.1;0.5;-3\r\n-0.3;8e-5;inf\r\n0.2;-0.4;1\r\n",
    "an old Mac": "0.1,0.5,-3\r-0.3,8e-5,inf\r0.2,-0.4,1",
    "signs of a web page": "+0.1 0.5 −3\n−0.3\N{NO-BREAK SPACE}8e−5 inf\n0.2 -0.4 1",
}


@pytest.mark.parametrize("name", ["mine.txt", "mine.csv", "mine", "mine.dat"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_the_last_line_is_x(text, name):
    Path(name).write_bytes(text.encode())
    arrays = read_arrays([name])
    assert list(arrays) == ["W", "x"]
    for given, expected in zip(arrays.values(), (ROWS[:-1], ROWS[-1]), strict=True):
        assert given.dtype == np.float64
        np.testing.assert_array_equal(given, expected)


def test_text_of_windows_powershell():
    Path("mine.txt").write_bytes("1 2\r\n3 4\r\n".encode("utf-16"))
    np.testing.assert_array_equal(read_arrays(["mine.txt"])["x"], [3, 4])


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 5), (5, 1), (2, 3000), (3000, 2)])
def test_any_number_of_rows_and_columns(m, n):
    numbers = np.random.default_rng(0).standard_normal((m + 1, n))
    np.savetxt("mine.txt", numbers, fmt="%.17g")
    arrays = read_arrays(["mine.txt"])
    np.testing.assert_array_equal(arrays["W"], numbers[:-1])
    np.testing.assert_array_equal(arrays["x"], numbers[-1])


WRONG = {  # whatever is read before and after it
    "1 2 3": "line 72 has 3 numbers, but line 2 has 2; each line is a row of W, and the last line is x",
    "1": "line 72 has 1 number, but line 2 has 2; each line is a row of W, and the last line is x",
    "a b": "line 72 is not a row of numbers: 'a b'",
    "1 2x": "line 72 is not a row of numbers: '1 2x'",
    "1,,2": "line 72 has 3 numbers, but line 2 has 2; each line is a row of W, and the last line is x",
    ",2": "line 72 is not a row of numbers: ',2'",
    "1;2,5": "line 72 is not a row of numbers: '1;2,5'; write 0.5, not 0,5",
    "0x10 2": "line 72 is not a row of numbers: '0x10 2'",
    "1j 2": "line 72 is not a row of numbers: '1j 2'",
    '"1" "2"': 'line 72 is not a row of numbers: \'"1" "2"\'',
    "[1 2]": "line 72 is not a row of numbers: '[1 2]'",
    "x" * 1000 + " 1": f"line 72 is not a row of numbers: '{'x' * 60}...'",
}


@pytest.mark.parametrize(("line", "words"), WRONG.items())
def test_the_line_that_is_wrong_is_named(line, words):
    lines = ["# W", *["1 2"] * 70, line, *["3 4"] * 70]
    Path("mine.txt").write_text("\n".join(lines))
    with pytest.raises(InputError) as raised:
        read_arrays(["mine.txt"])
    assert str(raised.value) == f"mine.txt: {words}"


def test_text_is_no_file_of_a_pair_with_another(capsys):
    Path("W.txt").write_text("1 2\n3 4\n")
    error = error_of(capsys, "trace", "W.txt", "W.txt")
    assert "got W.txt (text), W.txt (text)" in error
    assert names() == ["W.txt"]


@pytest.fixture
def timers(monkeypatch):
    """The timers that were made; each says in ``told`` that it has done its work."""
    made = []

    class Timer(threading.Timer):
        def __init__(self, *given):
            super().__init__(*given)
            self.told = threading.Event()
            made.append(self)

        def run(self):
            super().run()
            self.told.set()

    monkeypatch.setattr(threading, "Timer", Timer)
    return made


def test_the_waiting_line_is_for_standard_error_alone(monkeypatch, timers):
    """Where a program closed it, nothing is printed, and standard output is not taken instead."""
    monkeypatch.setattr("sys.stderr", None)
    monkeypatch.setattr(source, "WAITING_SECONDS", 0)
    with contextlib.redirect_stdout(io.StringIO()) as out, source._telling_that_it_waits("pipe"):
        assert timers[0].told.wait(60)
    assert out.getvalue() == ""


def test_nobody_is_told_after_the_input_has_come(capsys, monkeypatch, standard_input, timers):
    monkeypatch.setattr(source, "WAITING_SECONDS", 600)
    standard_input(FORMATS["text"])
    assert cli.main(["trace"]) == 0
    assert timers[0].told.wait(60)  # it was cancelled, so its thread ends at once
    assert capsys.readouterr().err == ""
