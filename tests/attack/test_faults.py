"""Trouble around a call that must not reach its results: no new thread, a damaged cache, a fork, Ctrl-C."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from processes import run_python

from sigmoid_l2 import threads

pytest.importorskip("numba", exc_type=ImportError)


def test_a_helper_that_starts_late_does_nothing(monkeypatch):
    """submit() queues its work before it fails to start a thread: another thread may run it after the call."""
    queued = []

    def submit(function):
        queued.append(function)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "_pool", lambda helpers: SimpleNamespace(submit=submit))
    monkeypatch.setattr(threads, "get_num_threads", lambda: 4)
    ranges = []
    threads.for_ranges(100, 10 * threads.THREAD_WORK, lambda first, last: ranges.append((first, last)))
    before = sorted(ranges)
    assert [i for first, last in before for i in range(first, last)] == list(range(100))
    for help_late in queued:
        help_late()
    assert sorted(ranges) == before


def test_ctrl_c_waits_for_the_helpers(monkeypatch):
    """Ctrl-C ends a call only once its helpers have stopped writing into the caller's arrays."""
    monkeypatch.setattr(threads, "get_num_threads", lambda: 2)
    begun, go_on, ended = threading.Event(), threading.Event(), []

    def work(first, last):
        if threading.current_thread() is threading.main_thread():
            begun.wait(10)
            raise KeyboardInterrupt
        begun.set()
        go_on.wait(10)
        ended.append(first)

    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(threads, "_pool", lambda helpers: pool)
        threading.Timer(0.2, go_on.set).start()
        with pytest.raises(KeyboardInterrupt):
            threads.for_ranges(100, 10 * threads.THREAD_WORK, work)
    assert len(ended) == 1


ONE_CALL = "import numpy as np, sigmoid_l2 as s; print(s.value(np.zeros((4, 3, 2)), np.ones((4, 2)), backend='numba'))"


def test_a_damaged_cache_is_no_error(tmp_path):
    expected = run_python(ONE_CALL, NUMBA_CACHE_DIR=tmp_path)
    files = [path for path in tmp_path.rglob("*.nb?") if "tiny_3x2" in path.name]
    assert files, "nothing was cached"
    for path in files:
        path.write_bytes(path.read_bytes()[:50])
    assert run_python(ONE_CALL, NUMBA_CACHE_DIR=tmp_path) == expected


def test_without_the_compiler_numpy_computes():
    code = (
        "import sigmoid_l2 as s; print(s.value([[0.0]], [0.0]), [b.reasons for b in s.backends() if b.name == 'numba'])"
    )
    out = run_python(code, NUMBA_DISABLE_JIT=1)
    assert out.startswith("0.25 ")
    assert "NUMBA_DISABLE_JIT is set" in out


FORK = """
import os, threading, time
import numpy as np
import sigmoid_l2 as s

s.value(np.zeros((1, 1)), np.zeros(1), backend="numba")  # imported; another shape is compiled below
compiling = threading.Thread(target=s.warmup, args=((7, 9), "float64", "numba"))
compiling.start()
time.sleep(0.2)
child = os.fork()
if child == 0:
    print(s.value(np.zeros((2, 5, 4)), np.zeros((2, 4)), backend="numba").tolist(), flush=True)
    os._exit(0)
os.waitpid(child, 0)
compiling.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_while_another_thread_compiles(tmp_path):
    assert run_python(FORK, NUMBA_CACHE_DIR=tmp_path, PYTHONWARNINGS="ignore") == "[1.25, 1.25]\n"
