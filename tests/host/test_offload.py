"""Host arrays on a GPU without a GPU: a GPU library that runs what is queued as late, as early or as oddly as it may.

A stream is a queue here, and nothing in it runs before something waits for it (or before, where the order is another).
Only events order two streams. So a wait that is missing, or a buffer used again too early, gives wrong results in one
of the orders; the last test takes out each wait in turn and sees that it does.
"""

import dataclasses
import inspect
import random
import re
import types
import weakref
from contextlib import contextmanager

import fake_cupy
import numpy as np
import pytest
from arrays import pairs

import sigmoid_l2 as sl2
from sigmoid_l2 import dispatch, offload, settings
from sigmoid_l2.gpu.numba_library import NumbaLibrary
from sigmoid_l2.kernels import reference
from sigmoid_l2.problem import validate

ROUNDING = 512
NAMES = ("loss", "dW", "dx")


class Operation:
    """One entry of a stream: what it is, what it runs, and the operation that it waits for (an event's)."""

    def __init__(self, kind, run=lambda: None, after=None):
        self.kind, self.run, self.after, self.done = kind, run, after, False


class Queue:
    """A stream, whose handle is its number."""

    def __init__(self, gpu, handle):
        self.gpu, self.handle, self.operations = gpu, handle, []

    def synchronize(self):
        self.gpu.finish(self.operations[-1] if self.operations else None)


class Event:
    def __init__(self, gpu):
        self.gpu, self.recorded = gpu, None

    def record(self, stream):
        self.recorded = self.gpu.queue(stream, Operation("record"))

    def synchronize(self):
        self.gpu.finish(self.recorded)


class FakeGPU:
    """A GPU library. ``order`` chooses the next of the operations that may run, or None to run none without need."""

    def __init__(self, order, kernel=reference.fused, memory=2**60):
        self.order, self.kernel, self.memory = order, kernel, memory
        self.streams, self.ran, self.launched_on = [], [], []
        self.used = self.peak = 0
        self.given_back_while_in_use = False
        self.kernels, self.old = self.new_stream(), self.new_stream()

    def queue(self, stream, operation):
        stream.operations.append(operation)
        while self.run(self.order(self.runnable(), waiting=False)):
            pass
        return operation

    def runnable(self):
        """The first operation of each stream, where what it waits for is done."""
        first = (next((o for o in s.operations if not o.done), None) for s in self.streams)
        return [o for o in first if o and (o.after is None or o.after.done)]

    def run(self, operation):
        if operation is not None:
            operation.done = True
            self.ran.append(operation)
            run, operation.run = operation.run, None  # which refers to memory
            run()
        return operation is not None

    def finish(self, operation):
        """Run until it is done: what the order chooses, or else what must come before it."""
        while operation and not operation.done:
            runnable = self.runnable()
            self.run(self.order(runnable, waiting=True) or next(o for o in runnable if o in self.needed(operation)))

    def needed(self, operation):
        """The operation and all before it, in its stream and in those that they wait for."""
        (stream,) = (s.operations for s in self.streams if operation in s.operations)
        before = [o for o in stream[: stream.index(operation) + 1] if not o.done]
        return before + [o for b in before if b.after and not b.after.done for o in self.needed(b.after)]

    def pending(self):
        """Work that uses a slot's memory."""
        uses = ("copy in", "kernel", "copy out")
        return [o for s in self.streams for o in s.operations if not o.done and o.kind in uses]

    def new_stream(self):
        return self.stream_of(len(self.streams))

    def kernel_stream(self):
        return self.kernels

    def stream_of(self, handle):
        self.streams.append(Queue(self, handle))
        return self.streams[-1]

    def memory_stream(self):
        return self.old

    def new_event(self):
        return Event(self)

    def wait(self, stream, event):
        if event.recorded is not None:
            self.queue(stream, Operation("wait", after=event.recorded))

    def empty(self, shape, dtype):
        """Memory that work on the old stream still writes to."""
        array = np.full(shape, np.nan, dtype)
        size = -(-array.nbytes // ROUNDING) * ROUNDING
        self.used += size
        if self.used > self.memory:
            raise MemoryError("the card is full")
        self.peak = max(self.peak, self.used)
        weakref.finalize(array, self.free, size)
        alive = weakref.ref(array)
        self.queue(self.old, Operation("old", lambda: alive() is not None and alive().fill(np.nan)))
        return array

    def free(self, size):
        self.used -= size

    @contextmanager
    def pinned(self, shape, dtype):
        array = np.full(shape, np.nan, dtype)
        try:
            yield array
        finally:
            self.given_back_while_in_use |= bool(self.pending())
            array.fill(np.nan)

    def copy(self, kind, to, values, stream):
        assert to.flags.c_contiguous
        assert values.flags.c_contiguous
        assert (to.shape, to.dtype) == (values.shape, values.dtype)
        self.queue(stream, Operation(kind, lambda: np.copyto(to, values)))

    def copy_in(self, to, values, stream):
        self.copy("copy in", to, values, stream)

    def copy_out(self, to, values, stream):
        self.copy("copy out", to, values, stream)

    def fused(self, *arrays, stream):
        self.launched_on.append(stream)
        (queue,) = (s for s in self.streams if s.handle == stream)
        self.queue(queue, Operation("kernel", lambda: self.kernel(*arrays)))


def late(runnable, waiting):
    """Nothing before it is waited for."""


def early(runnable, waiting):
    """Everything at once."""
    return runnable[0] if runnable else None


def last(*kinds):
    """Everything at once but operations of these kinds, which run when they are waited for."""
    return lambda runnable, waiting: next((o for o in runnable if o.kind not in kinds), None)


def ranked(*kinds):
    """Nothing before something is waited for; then everything, these kinds after the others."""
    return lambda runnable, waiting: (
        min(runnable, key=lambda o: o.kind in kinds and kinds.index(o.kind) + 1) if waiting else None
    )


def at_random(seed):
    """Any, or none, at any time."""
    choose = random.Random(seed)
    return lambda runnable, waiting: choose.choice([*runnable, None])


def orders():
    """Each order by name, new: the random ones have a state."""
    named = {"late": late, "early": early, "old before copy out": ranked("old", "copy out")}
    named |= {f"{kind} last": last(kind) for kind in ("kernel", "copy in", "copy out", "old")}
    return named | {f"random {seed}": at_random(seed) for seed in range(4)}


@pytest.fixture(params=orders())
def gpu(request):
    return FakeGPU(orders()[request.param])


def compute(gpu, W, x, wanted=NAMES, pairs_at_once=3, stream=None, compute=offload.compute):
    """The outputs by name, through pieces of so many pairs."""
    problem = validate(W, x)
    out = {name: np.full(problem.shape(name), np.nan, problem.dtype) for name in wanted}
    arrays = [problem.W, problem.x, *(out.get(name) for name in NAMES)]
    compute(problem, arrays, gpu, gpu.fused, stream, pairs_at_once * problem.m * problem.n * problem.dtype.itemsize)
    return out


def assert_right(out, W, x):
    expected = sl2.value_and_grad(W, x, backend="numpy")._asdict()
    for name, a in out.items():
        np.testing.assert_array_equal(a, expected[name], err_msg=name)


@pytest.mark.parametrize("batch", [(), (1,), (3,), (4,), (23,), (4, 2, 3), (2, 1, 7)])
@pytest.mark.parametrize("wanted", [NAMES, ("loss",), ("dW", "dx")])
def test_results_are_right_in_every_order(gpu, batch, wanted):
    W, x = pairs(batch)
    assert_right(compute(gpu, W, x, wanted), W, x)
    assert not gpu.pending()
    assert not gpu.given_back_while_in_use


@pytest.mark.parametrize("dtype", ["float64", ">f4", "int16", "bool"])
def test_layouts_and_dtypes_are_converted_on_the_way(gpu, dtype):
    W, x = pairs((11,), dtype=dtype)
    for W_in, x_in in ((W.swapaxes(1, 2).copy().swapaxes(1, 2), x[::-1]), (W[::2], x[::2]), (W, np.asfortranarray(x))):
        assert_right(compute(gpu, W_in, x_in), W_in, x_in)


@pytest.fixture
def limit():
    """Set the limit for one test."""
    yield settings.set_device_memory_limit
    settings.set_device_memory_limit(None)


@pytest.mark.parametrize("nbytes", [4 << 10, 20 << 10, 100 << 10, 10 << 20])
@pytest.mark.parametrize("wanted", [NAMES, ("loss",)])
def test_the_limit_of_device_memory(limit, nbytes, wanted):
    limit(nbytes)
    gpu = FakeGPU(at_random(1), memory=nbytes)
    W, x = pairs((3000,), dtype="float32")  # 100 bytes of W, x, dW, dx and loss a pair: 300 kB
    assert_right(compute(gpu, W, x, wanted, pairs_at_once=10**9), W, x)
    needed = (108 if wanted == NAMES else 68) * 3000
    assert min(nbytes, needed) / 2 < gpu.peak <= nbytes
    assert gpu.used == 0


def test_a_pair_larger_than_the_limit_gets_what_it_needs(limit):
    limit(1000)
    gpu = FakeGPU(late)
    W, x = pairs((5,), 20, 30, "float32")
    assert_right(compute(gpu, W, x), W, x)
    assert 1000 < gpu.peak <= (2 * 20 * 30 + 2 * 30 + 1) * 4 + 5 * ROUNDING


def test_no_more_memory_than_the_batch_needs():
    gpu = FakeGPU(late)
    W, x = pairs((7,), dtype="float32")
    compute(gpu, W, x, pairs_at_once=10**6)
    assert gpu.peak == 5 * ROUNDING


def kinds_before(gpu, kind, number):
    """How many operations of each kind ran before the given one of a kind."""
    positions = [i for i, o in enumerate(gpu.ran) if o.kind == kind]
    return [o.kind for o in gpu.ran[: positions[number]]]


def test_copies_in_and_out_run_beside_the_kernel():
    W, x = pairs((30,))
    gpu = FakeGPU(last("kernel"))
    assert_right(compute(gpu, W, x), W, x)
    # Before the first kernel, W and x of the slots' four pieces are there; later ones are three pieces ahead, too.
    assert kinds_before(gpu, "kernel", 0).count("copy in") == 2 * offload.SLOTS
    assert all(kinds_before(gpu, "kernel", k).count("copy in") >= 2 * (k + offload.SLOTS - 1) for k in range(1, 6))
    gpu = FakeGPU(last("copy out"))
    assert_right(compute(gpu, W, x), W, x)
    assert kinds_before(gpu, "copy out", 0).count("kernel") == offload.SLOTS
    gpu = FakeGPU(last("copy in"))
    assert_right(compute(gpu, W, x), W, x)
    assert kinds_before(gpu, "copy in", 2 * offload.SLOTS).count("copy out") >= 3, "of the first piece"


def test_kernels_run_on_the_given_stream(gpu):
    W, x = pairs((10,))
    assert_right(compute(gpu, W, x, stream=123), W, x)
    assert set(gpu.launched_on) == {123}


class Failing:
    """Something that fails at its call of that number."""

    def __init__(self, run, number, error):
        self.run, self.left, self.error = run, number, error

    def __call__(self, *arguments, **keywords):
        self.left -= 1
        if self.left == 0:
            raise self.error
        return self.run(*arguments, **keywords)


@pytest.mark.parametrize("error", [RuntimeError("a kernel failed"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("where", ["fused", "copy_in", "copy_out", "wait", "empty", "_copy"])
@pytest.mark.parametrize("number", [1, 3, 5, 8])
def test_nothing_is_left_behind_after_an_error(gpu, where, number, error, monkeypatch):
    """The memory that queued copies use is given back after they are done, and before the caller goes on."""
    owner = offload if where == "_copy" else gpu
    monkeypatch.setattr(owner, where, Failing(getattr(owner, where), number, error))
    with pytest.raises(type(error)):
        compute(gpu, *pairs((23,)))
    assert not gpu.given_back_while_in_use
    assert not gpu.pending()


@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError])
def test_a_signal_while_waiting_after_an_error(error, monkeypatch):
    """Ctrl-C, or a time limit of the caller's, comes while the streams are waited for."""
    gpu = FakeGPU(late)
    monkeypatch.setattr(gpu, "fused", Failing(gpu.fused, 3, RuntimeError("a kernel failed")))
    synchronize = Queue.synchronize
    interrupted = Failing(synchronize, 3, error())  # the stream of a slot with results on their way
    monkeypatch.setattr(Queue, "synchronize", lambda self: interrupted(self))
    with pytest.raises((RuntimeError, KeyboardInterrupt)):
        compute(gpu, *pairs((23,)))
    assert not gpu.given_back_while_in_use


def test_a_device_that_fails_for_good():
    """After some errors every call of the CUDA library fails, waiting too: the first error is told."""

    def fail(*arguments):
        raise RuntimeError("an illegal address")

    gpu = FakeGPU(late, kernel=fail)
    with pytest.raises(RuntimeError, match="an illegal address"):
        compute(gpu, *pairs((23,)))


def mutants():
    """The source of offload.py without one of its waits, or what a wait needs."""
    lines = inspect.getsource(offload).splitlines()
    for number, line in enumerate(lines):
        if re.search(r"\.(wait|record|synchronize|collect)\(", line):
            changed = list(lines)
            changed[number] = re.match(r" *", line).group() + "pass"
            yield pytest.param("\n".join(changed), id=f"{number + 1} {line.strip()}")


@pytest.mark.parametrize("source", list(mutants()))
def test_every_wait_is_needed(source):
    mutant = types.ModuleType("mutant")
    exec(compile(source, "mutant", "exec"), vars(mutant))
    W, x = pairs((30,))
    wrong = []
    for name, order in orders().items():
        try:
            assert_right(compute(FakeGPU(order), W, x, compute=mutant.compute), W, x)
        except AssertionError:
            wrong.append(name)
        gpu = FakeGPU(order)
        gpu.fused = Failing(gpu.fused, 6, RuntimeError("a kernel failed"))
        with pytest.raises(RuntimeError):
            compute(gpu, W, x, compute=mutant.compute)
        if gpu.given_back_while_in_use:
            wrong.append(f"{name}, with an error")
    assert wrong


# Through the public calls, on the stand-ins for CuPy and numba-cuda.


@pytest.fixture
def cupy(monkeypatch):
    return fake_cupy.install(monkeypatch)


@pytest.mark.parametrize("stream", [None, 123])
@pytest.mark.parametrize("backend", ["cupy", "numba-cuda"])
def test_the_libraries(cupy, backend, stream, monkeypatch):
    monkeypatch.setattr("sigmoid_l2.execute.OFFLOAD_PIECE_BYTES", 200)  # 4 pairs
    W, x = pairs((23,), dtype="float32")
    for _ in range(2):
        cupy.log.clear()
        got = sl2.value_and_grad(W, x, backend=backend, stream=stream)
        assert all(type(a) is np.ndarray for a in got)
        assert_right(got._asdict(), W, x)
        # By each of 4 slots for its memory, by each of 6 kernels, by the copies of its results, by the host for those.
        assert [[entry[0] for entry in cupy.log].count(kind) for kind in ("wait", "synchronize")] == [4 + 6 + 6, 6]
    handles = {handle for _, handle in cupy.kernels[backend].calls}
    assert len(handles) == 1, "a kernel may keep memory for each stream"
    assert stream is None or handles == {stream}
    assert {entry[1] for entry in cupy.log if entry[0] == "wait"} > handles, "the slots' streams wait, too"
    out = tuple(np.full_like(np.repeat(a, 2, axis=0), np.nan)[::2] for a in got)
    assert all(a is b for a, b in zip(sl2.value_and_grad(W, x, out=out, backend=backend), out, strict=True))
    assert_right(dict(zip(NAMES, out, strict=True)), W, x)


def test_columns_and_one_pair_on_a_gpu(monkeypatch, cupy):
    gpu = FakeGPU(late)
    cupy.kernels["cupy"].fused = gpu.fused
    table = [dataclasses.replace(b, library_class=lambda: gpu) if b.name == "cupy" else b for b in dispatch.BACKENDS]
    monkeypatch.setattr(dispatch, "BACKENDS", tuple(table))
    for batch in ((), (5,)):
        W, x = pairs(batch)
        got = sl2.value_and_grad(W, x[..., None], backend="cupy")
        assert_right(got._asdict(), W, x[..., None])


def test_numba_keeps_pinned_memory_with_its_context(monkeypatch):
    made, context = [], types.SimpleNamespace(extras={})
    cuda = types.SimpleNamespace(current_context=lambda: context)
    cuda.pinned_array = lambda size, dtype: made.append(np.empty(size, dtype)) or made[-1]
    monkeypatch.setattr("sigmoid_l2.gpu.numba_library._cuda", lambda: cuda)
    gpu = NumbaLibrary()
    for _ in range(3):
        with gpu.pinned((5, 3), np.dtype("f4")) as a, gpu.pinned((16,), np.dtype("f4")) as b:
            assert (a.shape, b.shape, a.dtype, made[0].size) == ((5, 3), (16,), np.float32, 64)
            assert not np.shares_memory(a, b)
    assert len(made) == 2


def test_the_setting(monkeypatch, limit):
    assert settings.get_device_memory_limit() == 256 << 20
    monkeypatch.setenv("SIGMOID_L2_DEVICE_MEMORY", "1000000")
    assert settings.get_device_memory_limit() == 1_000_000
    limit(5000)
    assert settings.get_device_memory_limit() == 5000
    limit(None)
    for nonsense in ("0", "-1", "much", "1.5", "1GB"):
        monkeypatch.setenv("SIGMOID_L2_DEVICE_MEMORY", nonsense)
        with pytest.raises(ValueError, match=f"environment variable SIGMOID_L2_DEVICE_MEMORY .* not '{nonsense}'"):
            settings.get_device_memory_limit()
    for nonsense in (0, -1, 1.5, "much"):
        with pytest.raises(ValueError, match="nbytes must be a whole number of at least 1"):
            limit(nonsense)


def test_the_setting_is_shown(capsys):
    dispatch.show_config()
    assert "GPU memory for host arrays: 256 MiB" in capsys.readouterr().out
