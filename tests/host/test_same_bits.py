"""A pair's result depends on that pair alone, to the last bit: not on the batch, its pieces, threads or processes."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from arrays import bits, pairs, strided
from processes import run_python

import sigmoid_l2 as sl2
from sigmoid_l2 import dispatch, execute, threads

SHAPES = [(1, 1), (3, 3), (2, 9), (1, 40), (40, 1), (13, 17), (3, 300)]


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_batch_size_and_place(backend, dtype, m, n):
    """Alone, in slices at every offset from the lanes of a vector, and across ranges of threads and blocks."""
    B = max(100, 3 * (1 << 16) // (m * n))
    W, x = pairs((B,), m, n, dtype)
    whole = sl2.value_and_grad(W, x, backend=backend)
    places = [(B - 1, B), (B // 2, B), (B // 3, B // 3 + 33), (5, B - 3)]
    places += [(first, first + size) for first in (0, 1, 2, 3, 7, 13) for size in range(1, 18)]
    for first, last in places:
        part = sl2.value_and_grad(W[first:last], x[first:last], backend=backend)
        assert bits(part) == bits(whole, slice(first, last)), f"pairs {first} to {last} of {B}"
    part = sl2.value_and_grad(W[50:3:-3], x[50:3:-3], backend=backend)
    assert bits(part) == bits(whole, slice(50, 3, -3))
    one = sl2.value_and_grad(W[7], x[7], backend=backend)
    assert bits(one) == bits(whole, 7)


def test_many_and_few_large_pairs(backend, dtype):
    """A GPU does the slices of a pair side by side, but one after the other where there are many pairs."""
    W, x = pairs((257,), 70, 500, dtype)
    whole = sl2.value_and_grad(W, x, backend=backend)
    for first, last in ((0, 1), (200, 203), (255, 257), (0, 256)):
        part = sl2.value_and_grad(W[first:last], x[first:last], backend=backend)
        assert bits(part) == bits(whole, slice(first, last)), f"pairs {first} to {last}"


@pytest.mark.parametrize("batch", [(11,), (5, 2, 3), (2, 1, 7), ()])
@pytest.mark.parametrize("size", [1, 2, 4, 100])
def test_chunks(backend, dtype, batch, size, monkeypatch):
    """Pieces of ``size`` pairs, through copies of the inputs and of ``out``, cut along any batch axis."""
    W, x = pairs(batch, 3, 4, dtype)
    expected = sl2.value_and_grad(W, x, backend=backend)
    for name in ("PIECE_BYTES", "OFFLOAD_PIECE_BYTES"):
        monkeypatch.setattr(execute, name, size * 12 * dtype.itemsize)
    out = [strided(np.full(a.shape or (1,), np.nan, dtype)).reshape(a.shape, copy=False) for a in expected]
    sl2.value_and_grad(strided(W), np.asfortranarray(x), out=out, backend=backend)
    assert bits(out) == bits(expected)
    assert bits(sl2.value_and_grad(W, strided(x), backend=backend)) == bits(expected)


@pytest.mark.parametrize("number", [1, 2, 3, 16])
def test_number_of_threads(backend, dtype, number, monkeypatch):
    W, x = pairs((1001,), 3, 3, dtype)
    expected = sl2.value_and_grad(W, x, backend=backend)
    monkeypatch.setattr(threads, "get_num_threads", lambda: number)
    monkeypatch.setattr(threads, "THREAD_WORK", 1)
    if backend == "numba":
        monkeypatch.setattr("sigmoid_l2.kernels.cpu.launch.SMALL", 0)
    threads._pool.cache_clear()  # the pool has the old number
    try:
        for B in (1, 2, 3, 7, 16, 17, 99, 100, 1001):
            out = tuple(np.full_like(a[:B], np.nan) for a in expected)
            sl2.value_and_grad(W[:B], x[:B], out=out, backend=backend)
            assert bits(out) == bits(expected, slice(B))
    finally:
        threads._pool.cache_clear()


@pytest.mark.parametrize(("m", "n"), [(700, 1000), (60_000, 5), (130, 6000)])
@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_large_pairs_on_any_number_of_threads(name, m, n, monkeypatch):
    """Slices of a pair are computed side by side; alone and in a batch, and whatever is wanted."""
    if reasons := [r for b in sl2.backends() if b.name == name for r in b.reasons]:
        pytest.skip("; ".join(reasons))
    W, x = pairs((5,), m, n, "f4")
    expected = sl2.value_and_grad(W, x, backend=name)
    for number in (1, 2, 3, 16):
        monkeypatch.setattr(threads, "get_num_threads", lambda number=number: number)
        threads._pool.cache_clear()
        try:
            assert bits(sl2.value_and_grad(W, x, backend=name)) == bits(expected), number
            assert bits(sl2.value_and_grad(W[2], x[2], backend=name)) == bits(expected, 2), number
            assert bits(sl2.value_and_grad(W[1:3], x[1:3], backend=name)) == bits(expected, slice(1, 3)), number
            assert sl2.value(W, x, backend=name).tobytes() == expected.loss.tobytes()
            assert bits(sl2.grad(W[4:], x[4:], backend=name)) == bits(expected[1:], slice(4, 5)), number
        finally:
            threads._pool.cache_clear()


def test_many_threads_at_once(backend):
    shapes = [((2000,), 3, 3), ((), 200, 300), ((50, 7), 5, 2), ((3,), 1, 5000), ((4097,), 1, 1), ((0,), 3, 3)]
    calls = [pairs(*shape, name) for shape in shapes for name in ("f4", "f8")]
    expected = [bits(sl2.value_and_grad(W, x, backend=backend)) for W, x in calls]
    start = threading.Barrier(16)

    def work(k):
        start.wait()
        order = np.random.default_rng(k).permutation(np.tile(np.arange(len(calls)), 4))
        return all(bits(sl2.value_and_grad(*calls[i], backend=backend)) == expected[i] for i in order)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(16)))


PROCESSES = """
import multiprocessing, os, signal, sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import sigmoid_l2 as sl2
from sigmoid_l2 import threads

how = sys.argv[1]
threads.get_num_threads = lambda: 4  # the pool is used on every machine

def results(_=None):
    if how != "threads":
        signal.alarm(100)  # a deadlocked process ends itself
    W = np.sin(np.arange(90000.0)).reshape(10000, 3, 3)
    x = np.cos(np.arange(30000.0)).reshape(10000, 3)
    return [a.tobytes() for name in sys.argv[2:] for a in sl2.value_and_grad(W, x, backend=name)]

def forked():
    read, write = os.pipe()
    if os.fork() == 0:
        same = results() == before and results() == before
        os.write(write, b"same" if same else b"different")
        os._exit(0)
    os.close(write)
    return os.read(read, 10) == b"same"

if __name__ == "__main__":
    if how == "threads":  # 16 first calls at once: imports and compilation meet
        with ThreadPoolExecutor(16) as pool:
            first, *others = pool.map(lambda _: results(), range(16))
        same = all(other == first for other in others)
    else:
        before = results()
        if how == "os.fork":
            same = forked()
        else:
            with multiprocessing.get_context(how).Pool(2) as pool:
                same = all(r == before for r in pool.map(results, range(3)))
        same = same and results() == before  # and the parent goes on
    print("same" if same else "different")
"""


@pytest.mark.parametrize("how", ["threads", "os.fork", "fork", "spawn", "forkserver"])
def test_processes(how, tmp_path):
    if how not in ("threads", "spawn") and not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    script = tmp_path / "processes.py"
    script.write_text(PROCESSES, encoding="utf-8")
    names = [b.name for b in dispatch.BACKENDS if b.device == "cpu" and not b.reasons()]
    done = subprocess.run([sys.executable, str(script), how, *names], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "same\n"), done.stderr


AT_EXIT = """
import atexit, sys, threading
import numpy as np
import sigmoid_l2 as sl2
from sigmoid_l2 import threads

threads.get_num_threads = lambda: 4

def loss():
    return sl2.value(np.ones((10000, 3, 3)), np.ones((10000, 3)), backend=sys.argv[1]).tobytes()

def late():
    threading.main_thread().join()  # until the main program has ended
    print(loss() == before)

before = loss()
threading.Thread(target=late).start()
atexit.register(lambda: print(loss() == before))
"""


@pytest.mark.parametrize("name", [b.name for b in dispatch.BACKENDS if b.device == "cpu"])
def test_threads_that_outlive_the_main_program(name):
    assert run_python(AT_EXIT, name) == "True\nTrue\n"
