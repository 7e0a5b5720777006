"""`sigmoid-l2 grad` killed, interrupted, or without disk or memory: OUT is what it was before, or whole.

`make faults` does each of these more often.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import sigmoid_l2 as sl2
from sigmoid_l2.cli import main as cli

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals, limits and mounts of POSIX")

BATCH = 200_000  # its OUT has 21 MB: writing it takes about as long as computing it
OLD = b"the result of yesterday"

# Python itself reports a Ctrl-C before the program is imported or after it has returned.
GRAD = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from sigmoid_l2.cli import main as cli
print("begun", flush=True)
sys.exit(cli.main(["grad", *sys.argv[1:]]))
"""
# Linux: the addresses in use, in bytes, which a limit of memory counts as well.
IN_USE = """
import resource, sys
from pathlib import Path
def in_use():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
"""
has_in_use = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc/self/statm, as Linux has")
LIMITED = """
from sigmoid_l2.cli import main as cli
which, limit = getattr(resource, sys.argv[1]), int(sys.argv[2])
if which == resource.RLIMIT_AS:
    limit += in_use()
resource.setrlimit(which, (limit, limit))
sys.exit(cli.main(["grad", *sys.argv[3:]]))
"""


def often(few, many):
    """How many ``times`` `make test` and `make faults` repeat a test."""
    return pytest.mark.parametrize("times", [few, pytest.param(many, marks=pytest.mark.faults)])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A folder with in.npz, the arrays of its OUT, and how many seconds the command takes."""
    folder = tmp_path_factory.mktemp("pairs")
    sample = ["sample", "--batch", str(BATCH), "--shape", "3", "3", "-o", str(folder / "in.npz")]
    assert cli.main(sample) == 0
    out = folder / "out.npz"
    for _ in range(2):  # the first may compile
        begin = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", GRAD, folder / "in.npz", "-o", out], check=True, stdout=subprocess.DEVNULL
        )
    return folder / "in.npz", dict(np.load(out)), time.perf_counter() - begin


def content(out, expected):
    """Whether OUT is "absent", "old" or "whole"; anything else is a failure."""
    if not out.exists():
        return "absent"
    if out.read_bytes() == OLD:
        return "old"
    with np.load(out) as archive:
        assert sorted(archive.files) == sorted(expected)
        assert all(archive[name].tobytes() == a.tobytes() for name, a in expected.items())
    return "whole"


def writing(folder):
    """Whether a temporary file has bytes in it."""
    with contextlib.suppress(FileNotFoundError):  # it has been renamed since
        return any(file.stat().st_size for file in folder.glob(".sigmoid-l2-*.tmp"))
    return True


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
@often(2, 50)
def test_stopped(pairs, tmp_path, number, times):
    """At any moment or (every other time) while it writes. A killed command may leave a hidden .tmp file."""
    given, expected, seconds = pairs
    out = tmp_path / "out" / "out.npz"
    chance, seen = random.Random(times), Counter()
    for k in range(times):
        out.parent.mkdir()
        before = "old" if k % 4 >= 2 else "absent"
        if before == "old":
            out.write_bytes(OLD)
        command = [sys.executable, "-c", GRAD, given, "-o", out]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            assert child.stdout.readline() == "begun\n"
            if k % 2:
                while child.poll() is None and not writing(out.parent):
                    time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.03 if k % 2 else seconds))
            child.send_signal(number)
            _, error = child.communicate(timeout=60)
        after, left = content(out, expected), len(list(out.parent.iterdir())) > out.exists()
        shutil.rmtree(out.parent)
        assert after in (before, "whole")
        if number == signal.SIGKILL:
            assert child.returncode in (-signal.SIGKILL, 0)
        else:
            assert not left
            assert after == "whole" or (child.returncode, error) == (130, "sigmoid-l2: interrupted\n")
        seen[f"exit status {child.returncode}", f"OUT {after}", "while writing" * left] += 1
    print(f"{times} x {number.name}:", dict(seen))
    if number == signal.SIGKILL and times >= 50:
        assert sum(count for (_, after, left), count in seen.items() if left and after != "OUT whole") >= 10


CTRL_C_IN_A_MEMBER = """
import sys, zipfile
from sigmoid_l2.cli import main as cli
opened = zipfile.ZipFile.open
def interrupted(*given, **options):
    member = opened(*given, **options)
    if member.writable():
        raise KeyboardInterrupt
    return member
zipfile.ZipFile.open = interrupted
sys.exit(cli.main(["grad", *sys.argv[1:]]))
"""


def test_ctrl_c_while_a_member_is_opened(pairs, tmp_path):
    """There zipfile cannot close the archive, and would hide the interrupt behind an error of its own."""
    command = [sys.executable, "-c", CTRL_C_IN_A_MEMBER, pairs[0], "-o", tmp_path / "out.npz"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (130, "sigmoid-l2: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def grad_with_limit(pairs, folder, which, limit, backend="auto"):
    """Run the command under a limit of the operating system; return "whole", or its error, which is one line."""
    given, expected, _ = pairs
    out = folder / "out.npz"
    out.write_bytes(OLD)
    command = [sys.executable, "-c", IN_USE + LIMITED, which, str(limit), given, "-o", out, "--backend", backend]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    after = content(out, expected)
    assert [file.name for file in folder.iterdir()] == ["out.npz"]
    if after == "whole":
        assert (done.returncode, done.stderr) == (0, "")
        return "whole"
    assert (after, done.returncode, done.stdout) == ("old", 2, ""), done.stderr
    assert done.stderr.startswith("sigmoid-l2: error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


@often(3, 20)
def test_file_size_limit(pairs, tmp_path, times):
    size = sum(a.nbytes for a in pairs[1].values())
    for limit in np.linspace(0, size, times, dtype=int):
        assert "File too large" in grad_with_limit(pairs, tmp_path, "RLIMIT_FSIZE", limit)
    assert grad_with_limit(pairs, tmp_path, "RLIMIT_FSIZE", size + 10_000) == "whole"


MOUNT = 'mount -t tmpfs -o size="$1" none "$2" && cd "$2" || exit 99; shift 2; "$@"; status=$?; ls -A; exit $status'


@often(2, 20)
def test_full_disk(pairs, tmp_path, times):
    """A file system of its own, so small that OUT does not fit."""
    given, expected, _ = pairs
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", MOUNT, "sh"]
    try:
        subprocess.run([*command, "64k", tmp_path, "true"], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    grad = [sys.executable, "-m", "sigmoid_l2", "grad", given, "-o", "out.npz"]
    size = sum(a.nbytes for a in expected.values())
    for room in np.linspace(1 << 16, size - (1 << 16), times, dtype=int):
        done = subprocess.run([*command, str(room), tmp_path, *grad], capture_output=True, text=True, timeout=100)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "sigmoid-l2: error: out.npz: cannot be written: No space left on device\n"
    done = subprocess.run([*command, str(2 * size), tmp_path, *grad], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr, done.stdout[-8:]) == (0, "", "out.npz\n")


@has_in_use
@often(3, 20)
def test_memory_limit(pairs, tmp_path, times):
    """Memory beyond the program's own, from none to more than enough: the error is one line, wherever it arises."""
    with np.load(pairs[0]) as archive:
        results = sl2.value_and_grad(archive["W"], archive["x"], backend="numpy")
    pairs = pairs[0], results._asdict(), None
    outcomes = [
        grad_with_limit(pairs, tmp_path, "RLIMIT_AS", limit, "numpy")
        for limit in np.linspace(0, 128 << 20, times, dtype=int)
    ]
    assert outcomes[-1] == "whole"
    assert outcomes[0] != "whole"
