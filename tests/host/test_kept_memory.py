"""Memory of large results, which is used again: when, never too early, and that it behaves as memory of NumPy's."""

import ctypes
import gc
import mmap
import os
import pickle
import re
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from arrays import bits, pairs
from processes import run_python

import sigmoid_l2 as sl2
from sigmoid_l2 import dispatch, memory

pytestmark = pytest.mark.skipif(not memory._CAN_KEEP, reason="memory is kept where the system has MADV_FREE: Linux")
on_each_backend = pytest.mark.parametrize("name", [b.name for b in dispatch.BACKENDS if b.device == "cpu"])

SIZE = 2000  # float32 pairs of 3x4: dW has 96 KB here, dx 32 KB and loss 8 KB


@pytest.fixture(autouse=True)
def kept(monkeypatch):
    """The blocks that are kept, of results of 4 KB and more; none of an earlier test."""
    monkeypatch.setattr(memory, "ALIGNED_BYTES", 4096)
    monkeypatch.setattr(memory, "KEPT_BYTES", 4096)
    monkeypatch.setattr(memory, "HUGE_PAGE", 4096)
    monkeypatch.setattr(memory, "SMALL", 100)
    memory.give_back()
    yield memory._kept
    memory.give_back()
    sl2.set_kept_memory_limit(None)


def call(name="numpy", size=SIZE, seed=0):
    return sl2.value_and_grad(*pairs((size,), dtype=np.float32, seed=seed), backend=name)


def addresses(results):
    return [a.ctypes.data for a in results]


def test_a_loop_stays_in_one_place(kept):
    """After many results at once a loop that holds one uses the memory of one, and leaves the rest to the system."""
    many = [memory.empty((SIZE, 3, 4), np.dtype("f4")) for _ in range(6)]
    del many
    places = set()
    for _ in range(6):
        places.add(memory.empty((SIZE, 3, 4), np.dtype("f4")).ctypes.data)
    assert len(places) == 1


@on_each_backend
def test_the_next_call_uses_the_memory_of_results_that_have_gone(name, kept):
    results = call(name)
    expected, first = bits(results), addresses(results)
    for a in results:
        a.fill(np.nan)  # whatever is left there is no part of the next result
    del results, a
    results = call(name)
    assert addresses(results) == first
    assert bits(results) == expected
    others = call(name)
    assert not set(addresses(others)) & set(first), "results that are held share no memory with the next"
    assert len(kept) == 6


class Cycle:
    """Refers to itself, and looks at its array when the garbage collector ends it."""

    seen: ClassVar = []

    def __init__(self, a):
        self.a, self.itself = a, self

    def __del__(self):
        call(seed=1)  # would use the memory of ``a``, if that were free already
        self.seen.append(self.a.copy())
        self.seen.append(self.a)


def in_numba(a):
    numba = pytest.importorskip("numba", exc_type=ImportError)
    return numba.njit(lambda b: b[1:])(a)


HOLDERS = {  # what holds the memory of an array: how it is made, and how its bytes are read
    "the array": (lambda a: a, lambda h: h),
    "a view": (lambda a: a[10:, ::2], lambda h: h),
    "a view of a view": (lambda a: a[1:].reshape(-1)[3:].view("i4")[::-1], lambda h: h),
    "its base": (lambda a: a.base, lambda h: h),
    "a slice of its base": (lambda a: a.base[64:128], lambda h: h),
    "a subclass": (lambda a: a.view(np.recarray), lambda h: h),
    "an iterator": (lambda a: iter(a), lambda h: [b for b in h][1:]),
    "a flat iterator": (lambda a: a.flat, lambda h: h.copy()),
    "a memoryview": (memoryview, lambda h: h),
    "a cast memoryview": (lambda a: memoryview(a).cast("B")[8:], lambda h: h),
    "a buffer": (lambda a: np.frombuffer(a, "u1"), lambda h: h),
    "ctypes": (lambda a: np.ctypeslib.as_ctypes(a), lambda h: np.ctypeslib.as_array(h)),
    "a pointer": (
        lambda a: a.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
        lambda h: np.array([h[k] for k in range(3000)]),
    ),
    "the ctypes of it": (lambda a: a.ctypes, lambda h: np.array(h.data_as(ctypes.POINTER(ctypes.c_float))[:3000])),
    "windows": (lambda a: np.lib.stride_tricks.sliding_window_view(a, 2, 0), lambda h: h),
    "a DLPack capsule": (lambda a: a.__dlpack__(), None),
    "an array by DLPack": (np.from_dlpack, lambda h: h),
    "an object array": (lambda a: np.array([a, None], object), lambda h: h[0]),
    "a function": (lambda a: lambda: a[5:], lambda h: h()),
    "a generator": (lambda a: (b for b in [a]), lambda h: next(h)),
    "numba": (in_numba, lambda h: h),
    "JAX": (lambda a: pytest.importorskip("jax").numpy.asarray(a), lambda h: h),
    "JAX by DLPack": (lambda a: pytest.importorskip("jax").numpy.from_dlpack(a), lambda h: h),
    "torch": (lambda a: pytest.importorskip("torch").from_numpy(a)[3:], lambda h: h),
    "torch by DLPack": (lambda a: pytest.importorskip("torch").from_dlpack(a), lambda h: h),
}


class FromCapsule:
    """Takes a DLPack capsule that was made earlier."""

    def __init__(self, capsule):
        self.capsule = capsule

    def __dlpack__(self, **_):
        return self.capsule

    def __dlpack_device__(self):
        return 1, 0  # CPU


@pytest.mark.parametrize(("hold", "read"), HOLDERS.values(), ids=HOLDERS)
def test_memory_that_anything_holds_is_not_used_again(hold, read, kept):
    """The holder's bytes stay, while calls of the same size would overwrite the memory if it were free."""
    read = read or (lambda h: np.from_dlpack(FromCapsule(h)))
    a = call().dW
    address = a.ctypes.data
    expected = np.asarray(read(hold(a))).tobytes()
    holder = hold(a)
    del a
    results = [call(seed=1) for _ in range(3)]
    assert address not in [r.dW.ctypes.data for r in results]
    assert np.asarray(read(holder)).tobytes() == expected


@pytest.mark.parametrize("hold", [hold for hold, _ in HOLDERS.values()], ids=HOLDERS)
def test_memory_is_used_again_when_its_holder_has_gone(hold, kept):
    """Nothing is kept for ever by what the last test makes."""
    a = call().dW
    address = a.ctypes.data
    holder = hold(a)
    del a, holder
    gc.collect()
    assert address in [call().dW.ctypes.data for _ in range(2)]


def test_the_garbage_collector(kept):
    """An object in a cycle still has its array when its __del__ runs, and may keep it."""
    Cycle.seen.clear()
    cycle = Cycle(call().dW)
    expected = cycle.a.tobytes()
    del cycle
    gc.collect()
    result = call(seed=1).dW
    assert [a.tobytes() for a in Cycle.seen] == [expected, expected]
    assert not np.shares_memory(Cycle.seen[1], result)
    Cycle.seen.clear()


def test_a_thread_that_still_runs_holds_its_arrays(kept):
    a = call().dW
    expected, go, seen = a.tobytes(), threading.Event(), []

    def read(b):
        go.wait(60)
        seen.append(b.tobytes())

    thread = threading.Thread(target=read, args=(a[:],))
    thread.start()
    del a
    results = [call(seed=1) for _ in range(3)]
    go.set()
    thread.join()
    assert seen == [expected]
    assert len(results) == 3


class Recorder(mmap.mmap):
    """Memory that notes, when it is marked as free, whether others could take it already."""

    def madvise(self, *_):
        self.free_before = bool(self.block.free)


def test_memory_is_marked_as_free_before_it_is_free(kept, monkeypatch):
    """The other way round, what another thread has written meanwhile would be lost."""
    block = memory._Block(4096)
    block.memory = Recorder(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block.memory.block = block
    block.lend()
    assert block.memory.free_before is False
    assert len(block.free) == 1


def test_no_python_code_runs_when_memory_returns():
    """In such code a signal's handler could raise, and nobody would see the exception."""
    results, seen = call(), []
    sys.setprofile(lambda frame, event, arg: seen.append(event))
    del results
    sys.setprofile(None)
    assert "call" not in seen


def test_a_handler_that_raises_anywhere(kept):
    """Whatever line it interrupts, no block is lost to later calls, and no memory is lent twice."""

    def raise_at(line):
        def trace(frame, event, arg):
            nonlocal line
            if event == "line" and frame.f_code.co_filename == memory.__file__:
                line -= 1
                if line < 0:
                    sys.settrace(None)
                    raise TimeoutError
            return trace

        return trace

    held, interrupted = call(), 0
    expected = bits(held)
    for line in range(500):
        tracing = sys.gettrace()
        try:
            sys.settrace(raise_at(line))
            a, b = (memory.empty((SIZE, 3, 4), np.dtype("f4")) for _ in range(2))
            sys.settrace(tracing)
            assert not np.shares_memory(a, b)
            a, b = a.fill(np.nan), b.fill(np.nan)
        except TimeoutError:
            interrupted += 1
        finally:
            sys.settrace(tracing)
        a = b = None
        assert sum(not block.free for block in kept) <= 3, line
    assert 20 < interrupted < 500
    assert bits(held) == expected


def test_the_latest_results_count_within_the_limit(kept):
    sizes = [n * 4096 for n in (24, 8, 2)]  # of dW, dx and loss, in whole pages
    sl2.set_kept_memory_limit(sum(sizes))
    first, second = call(), call()
    assert sorted(len(block.memory) for block in kept) == sorted(sizes)
    latest = addresses(second)
    del first
    assert not any(block.free for block in kept), "the first are forgotten"
    del second
    assert all(block.free for block in kept)
    assert addresses(call()) == latest
    sl2.set_kept_memory_limit(sizes[0] - 1)
    assert sum(len(block.memory) for block in kept) < sizes[0], "a lower limit holds at once"
    large = call().dW
    assert sum(len(block.memory) for block in kept) < sizes[0], "larger ones are not kept"
    assert large.ctypes.data % memory.LINE == 0
    sl2.set_kept_memory_limit(0)
    call()
    assert not kept


def test_the_limit_of_the_environment(kept, monkeypatch):
    monkeypatch.setenv("SIGMOID_L2_KEPT_MEMORY", "0")
    call()
    assert not kept
    monkeypatch.setenv("SIGMOID_L2_KEPT_MEMORY", "some")
    with pytest.raises(ValueError, match=r"^the environment variable SIGMOID_L2_KEPT_MEMORY must be .* not 'some'$"):
        call()
    monkeypatch.delenv("SIGMOID_L2_KEPT_MEMORY")


def test_memory_serves_results_of_at_least_half_its_size(kept):
    memory.empty((40960,), np.dtype("u1"))
    assert [len(block.memory) for block in kept] == [40960]
    for nbytes, blocks in ((36864, 1), (20480, 1), (40960, 1), (16384, 2), (16000, 2), (45056, 3)):
        a = memory.empty((nbytes,), np.dtype("u1"))
        assert len(kept) == blocks, nbytes
        assert a.nbytes == nbytes
        a.fill(255)
        del a


@pytest.mark.parametrize("limit", [0, None])
def test_results_are_as_arrays_of_numpy(limit, kept):
    sl2.set_kept_memory_limit(limit)
    results = call()
    assert not any(np.shares_memory(a, b) for a in results for b in results if a is not b)
    for a in results:
        assert type(a) is np.ndarray
        assert a.flags.carray
        assert a.ctypes.data % memory.LINE == 0
        assert bits([pickle.loads(pickle.dumps(a))]) == bits([a])
        a.flags.writeable = False
        a.flags.writeable = True
        a[...] = 1
        assert type(a.base) is np.ndarray
    W, x = pairs((SIZE,), dtype=np.float32)
    assert bits(sl2.value_and_grad(W, x, out=results, backend="numpy")) == bits(call())


def test_small_results_own_their_memory(monkeypatch):
    monkeypatch.undo()
    for a in sl2.value_and_grad(*pairs((1000,))):
        assert a.base is None
        assert a.flags.owndata
        a.resize((7,), refcheck=False)


@pytest.mark.parametrize("name", [b.name for b in dispatch.BACKENDS if b.device == "cpu"])
def test_results_of_a_megabyte_begin_on_a_line(name, monkeypatch):
    monkeypatch.undo()
    for size in (87382, 87381 * 2 + 1, 10**6):  # 1 MiB and 2 MiB of loss and more
        for a in sl2.value_and_grad(*pairs((size,), 2, 2, "f4"), backend=name):
            assert a.nbytes < memory.ALIGNED_BYTES or a.ctypes.data % 64 == 0


def test_many_threads(kept):
    """Everybody's results stay as they were, while others take and return memory, and the limit changes."""
    expected = {(size, seed): bits(call(size=size, seed=seed)) for size in (300, 1000, 1500) for seed in range(3)}
    start = threading.Barrier(8)

    def work(k):
        chance = np.random.default_rng(k)
        held = []
        start.wait(60)
        for _ in range(60):
            key = int(chance.choice([300, 1000, 1500])), int(chance.integers(3))
            held.append((key, call(size=key[0], seed=key[1])))
            if chance.random() < 0.05:
                sl2.set_kept_memory_limit(int(chance.choice([0, 200_000, 10**6, 10**9])))
            while len(held) > chance.integers(4):
                key, results = held.pop(int(chance.integers(len(held))))
                if bits(results) != expected[key]:
                    return False
                del results
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    sl2.set_kept_memory_limit(0)
    assert not kept


FORK = """
import os
import numpy as np, sigmoid_l2 as sl2
from sigmoid_l2 import memory

def call(value):
    return sl2.value_and_grad(np.full((1_000_000, 3, 3), value, "f4"), np.ones((1_000_000, 3), "f4"), backend="numpy")

results, other = call(0.5), call(1.5)
expected = [a.tobytes() for a in results]
del other
assert memory._kept
if os.fork() == 0:
    assert not memory._kept
    assert [a.tobytes() for a in results] == expected
    for a in results:
        a.fill(0)
    del results, a
    for _ in range(3):
        call(-1.5)
    os._exit(0)
print(os.wait()[1], len(memory._kept))  # what the child shares would be copied page by page when it is used again
print([a.tobytes() for a in results] == expected)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_has_memory_of_its_own():
    assert run_python(FORK, OPENBLAS_NUM_THREADS=1) == "0 0\nTrue\n"


def test_nothing_refers_to_what_is_no_longer_kept(kept):
    results = call()
    blocks = [weakref.ref(block.memory) for block in kept]
    memory.give_back()
    assert all(block() is not None for block in blocks)
    del results
    assert all(block() is None for block in blocks)


def lazily_free():
    return int(re.search(r"LazyFree:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text()).group(1)) * 1024


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="no /proc/self/smaps_rollup")
def test_the_system_may_take_what_nobody_holds(monkeypatch):
    monkeypatch.undo()  # real sizes
    a = memory.empty((40 << 20,), np.dtype("u1"))
    a.fill(1)
    before = lazily_free()
    del a
    assert lazily_free() - before >= 40 << 20
    a = memory.empty((40 << 20,), np.dtype("u1"))
    a.fill(1)
    assert lazily_free() - before < 1 << 20


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np, sigmoid_l2 as sl2
from sigmoid_l2 import memory

def kept():
    return sum(len(block.memory) for block in memory._kept)

W, x = np.ones((600_000, 3, 3)), np.ones((600_000, 3))
dW = sl2.grad(W, x, backend=sys.argv[1]).dW  # 43 MB
first = dW[0].tolist()
del dW
before = kept()
W, x = np.tile(W, (2, 1, 1)), np.tile(x, (2, 1))
in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + (100 << 20), resource.RLIM_INFINITY))  # the results have 115 MB
dW = sl2.grad(W, x, backend=sys.argv[1]).dW
print(dW[-1].tolist() == first, before >= 42 << 20, kept() < before + dW.nbytes)
"""


@on_each_backend
def test_where_memory_runs_out_the_kept_is_given_back(name):
    assert run_python(LIMITED, name) == "True True True\n"


AT_EXIT = """
import atexit, sys, threading
import numpy as np, sigmoid_l2 as sl2

W, x = np.ones((1_000_000, 3, 3), "f4"), np.ones((1_000_000, 3), "f4")

def dW():
    return sl2.grad(W, x, backend=sys.argv[1]).dW

def late():
    threading.main_thread().join()
    print(dW()[0, 0, 0] == held[0][0, 0, 0])

held = [dW(), dW()[5:], memoryview(dW())]
dW()
atexit.register(lambda: print(dW()[0, 0, 0] == held[0][0, 0, 0]))
threading.Thread(target=late).start()
sys.held = held, dW()  # is there until the very end
"""


@on_each_backend
def test_the_end_of_the_process(name):
    assert run_python(AT_EXIT, name) == "True\nTrue\n"
