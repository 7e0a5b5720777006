"""Host arrays on a GPU without a GPU: the library's own adapters, on streams that run as late or as oddly as they may.

Nothing in a stream runs before something waits for it (or before, where the order is another), and only events order
two streams. So a wait that is missing, or a buffer used again too early, gives wrong results in one of the orders; the
test of each wait takes it out and sees that it does.
"""

import inspect
import random
import re
import types
import weakref
from contextlib import contextmanager

import fake_cupy
import fake_gpu
import numpy as np
import pytest
from arrays import bits, pairs
from fake_gpu import early

import sigmoid_l2 as sl2
from sigmoid_l2 import dispatch, offload, settings, threads
from sigmoid_l2.gpu.cupy_library import CupyLibrary
from sigmoid_l2.gpu.numba_library import NumbaLibrary
from sigmoid_l2.kernels import reference
from sigmoid_l2.problem import validate

ROUNDING = 512
NAMES = ("loss", "dW", "dx")


@pytest.fixture(autouse=True)
def cupy(monkeypatch):
    return fake_cupy.install(monkeypatch)


class WatchedLibrary(CupyLibrary):
    """The adapter for CuPy, on streams that run in ``order``; it watches what happens to its memory."""

    def __init__(self, order, computes=reference.fused, memory=2**60):
        super().__init__()
        fake_gpu.reset(order)
        self.kernel = fake_cupy.RecordingKernel(computes)
        self.fused = self.kernel.fused
        self.memory = memory
        self.used = self.peak = 0
        self.given_back_while_in_use = False

    def empty(self, shape, dtype):
        """Memory that work queued before still writes to."""
        array = super().empty(shape, dtype)
        size = -(-array.nbytes // ROUNDING) * ROUNDING
        self.used += size
        if self.used > self.memory:
            raise MemoryError("the card is full")
        self.peak = max(self.peak, self.used)
        weakref.finalize(array, self.free, size)
        alive = weakref.ref(array)
        old = fake_gpu.Operation("old", lambda: alive() is not None and alive().fill(np.nan))
        fake_gpu.queue(self.memory_stream(), old)
        return array

    def free(self, size):
        self.used -= size

    @contextmanager
    def pinned(self, shape, dtype):
        with super().pinned(shape, dtype) as array:
            array.fill(np.nan)
            try:
                yield array
            finally:
                self.given_back_while_in_use |= bool(pending())
                array.fill(np.nan)


def pending():
    """Queued work that uses a slot's memory."""
    return fake_gpu.pending("copy in", "kernel", "copy out")


def late(runnable, waiting):
    """Nothing before it is waited for."""


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
    return WatchedLibrary(orders()[request.param])


def compute_shared(gpu, W, x, wanted=NAMES, pairs_at_once=3, compute=offload.compute):
    """The same for one W (m, n)."""
    problem = validate(W, x)
    out = {name: np.full(problem.shapes[name], np.nan, problem.dtype) for name in wanted}
    arrays = [*problem.inputs, *map(out.get, (*NAMES, "dq"))]
    row = sum(a.nbytes // len(a) for k, a in enumerate(arrays) if a is not None and k not in (0, 5))
    compute(problem, arrays, gpu, gpu.kernel.shared, None, max(pairs_at_once * row, W.nbytes), one_W=True)
    return out


def compute(gpu, W, x, wanted=NAMES, pairs_at_once=3, stream=None, compute=offload.compute):
    """The outputs by name, through pieces of so many pairs."""
    problem = validate(W, x)
    out = {name: np.full(problem.shapes[name], np.nan, problem.dtype) for name in wanted}
    arrays = [*problem.inputs, *map(out.get, (*NAMES, "dq"))]
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
    assert not pending()
    assert not gpu.given_back_while_in_use


@pytest.mark.parametrize("wanted", [NAMES, ("dW",), ("loss", "dx")])
@pytest.mark.parametrize("B", [1, 3, 4, 23, 40])
def test_one_W_in_every_order(gpu, B, wanted):  # noqa: N802 - the name of the mathematics
    """W is copied to the device once; the order in which the host adds up dW does not depend on that of the streams."""
    W, x = pairs((), 2, 3)[0], pairs((B,), 2, 3)[1]
    out = compute_shared(gpu, W, x, wanted)
    expected = sl2.value_and_grad(np.repeat(W[None], B, 0), x, backend="numpy")._asdict()
    expected["dW"] = expected["dW"].sum(0)
    for name, a in out.items():
        np.testing.assert_allclose(a, expected[name], rtol=1e-13, err_msg=name)
    assert [o.kind for o in fake_gpu.ran].count("copy in") == 1 + gpu.kernel.names.count("shared")
    assert bits(out.values()) == bits(compute_shared(WatchedLibrary(early), W, x, wanted).values())
    assert not pending()
    assert not gpu.given_back_while_in_use


def test_one_W_within_the_limit(limit):  # noqa: N802 - the name of the mathematics
    """A lower limit means fewer slots, and the same bits, unless not even one piece has room."""
    W, x = pairs((), 20, 30)[0], pairs((500,), 20, 30)[1]
    expected = bits(compute_shared(WatchedLibrary(late), W, x, pairs_at_once=50).values())
    for nbytes, is_same in ((60_000, True), (40_000, True), (12_000, False)):
        limit(nbytes)
        gpu = WatchedLibrary(late, memory=nbytes)
        out = compute_shared(gpu, W, x, pairs_at_once=50)
        assert (bits(out.values()) == expected) is is_same
        assert gpu.peak > nbytes / 3


@pytest.mark.parametrize("backend", ["cupy", "numba-cuda"])
def test_one_W_through_the_public_call(cupy, backend, monkeypatch):  # noqa: N802 - the name of the mathematics
    """A target that is broadcast, any layout, columns, and an x that is shared as well."""
    monkeypatch.setattr("sigmoid_l2.execute.OFFLOAD_ONE_W_BYTES", 400)
    monkeypatch.setattr("sigmoid_l2.execute.GPU_PIECE_BYTES", 400)
    W, x = pairs(())[0], pairs((23,))[1]
    for given in ((W, x, 1.0), (W.T.copy().T, x[::-1], x[:, :3] > 0), (W, x[0], x[:, :3]), (W[None], x[..., None])):
        expected = sl2.value_and_grad(*given, backend="numpy")
        got = sl2.value_and_grad(*given, backend=backend)
        for name, a, right in zip(NAMES, got, expected, strict=True):
            assert a.shape == right.shape
            np.testing.assert_allclose(a, right, rtol=1e-12, err_msg=name)
    assert set(cupy.kernels[backend].names) == {"shared"}


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
    gpu = WatchedLibrary(at_random(1), memory=nbytes)
    W, x = pairs((3000,), dtype="float32")
    out = compute(gpu, W, x, wanted, pairs_at_once=10**9)
    assert_right(out, W, x)
    needed = sum(a.nbytes for a in (W, x, *out.values()))  # 396 kB, or 204 kB
    assert min(nbytes, needed) / 2 < gpu.peak <= min(nbytes, needed + 5 * ROUNDING)
    assert gpu.used == 0


def test_a_pair_larger_than_the_limit_gets_what_it_needs(limit):
    limit(1000)
    gpu = WatchedLibrary(late)
    W, x = pairs((5,), 20, 30, "float32")
    assert_right(compute(gpu, W, x), W, x)
    assert 1000 < gpu.peak <= (2 * 20 * 30 + 2 * 30 + 1) * 4 + 5 * ROUNDING


def kinds_before(kind, number):
    """How many operations of each kind ran before the given one of a kind."""
    positions = [i for i, o in enumerate(fake_gpu.ran) if o.kind == kind]
    return [o.kind for o in fake_gpu.ran[: positions[number]]]


def test_copies_in_and_out_run_beside_the_kernel():
    W, x = pairs((30,))
    gpu = WatchedLibrary(last("kernel"))
    assert_right(compute(gpu, W, x), W, x)
    # Before the first kernel, W and x of the slots' four pieces are there; later ones are three pieces ahead, too.
    assert kinds_before("kernel", 0).count("copy in") == 2 * offload.SLOTS
    assert all(kinds_before("kernel", k).count("copy in") >= 2 * (k + offload.SLOTS - 1) for k in range(1, 6))
    gpu = WatchedLibrary(last("copy out"))
    assert_right(compute(gpu, W, x), W, x)
    assert kinds_before("copy out", 0).count("kernel") == offload.SLOTS
    gpu = WatchedLibrary(last("copy in"))
    assert_right(compute(gpu, W, x), W, x)
    assert kinds_before("copy in", 2 * offload.SLOTS).count("copy out") >= 3, "of the first piece"


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
@pytest.mark.parametrize("where", ["fused", "copy_in", "copy_out", "wait", "empty", "copy"])
@pytest.mark.parametrize("number", [1, 3, 5, 8])
def test_nothing_is_left_behind_after_an_error(gpu, where, number, error, monkeypatch):
    """The memory that queued copies use is given back after they are done, and before the caller goes on."""
    owner = threads if where == "copy" else gpu
    monkeypatch.setattr(owner, where, Failing(getattr(owner, where), number, error))
    with pytest.raises(type(error)):
        compute(gpu, *pairs((23,)))
    assert not gpu.given_back_while_in_use
    assert not pending()


@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError])
def test_a_signal_while_waiting_after_an_error(error, monkeypatch):
    """Ctrl-C, or a time limit of the caller's, comes while the streams are waited for."""
    gpu = WatchedLibrary(late)
    monkeypatch.setattr(gpu, "fused", Failing(gpu.fused, 3, RuntimeError("a kernel failed")))
    synchronize = fake_gpu.Stream.synchronize
    interrupted = Failing(synchronize, 3, error())  # the stream of a slot with results on their way
    monkeypatch.setattr(fake_gpu.Stream, "synchronize", lambda self: interrupted(self))
    with pytest.raises((RuntimeError, KeyboardInterrupt)):
        compute(gpu, *pairs((23,)))
    assert not gpu.given_back_while_in_use


def test_a_device_that_fails_for_good():
    """After some errors every call of the CUDA library fails, waiting too: the first error is told."""

    def fail(*arguments):
        raise RuntimeError("an illegal address")

    gpu = WatchedLibrary(late, computes=fail)
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
            assert_right(compute(WatchedLibrary(order), W, x, compute=mutant.compute), W, x)
        except AssertionError:
            wrong.append(name)
        gpu = WatchedLibrary(order)
        gpu.fused = Failing(gpu.fused, 6, RuntimeError("a kernel failed"))
        with pytest.raises(RuntimeError):
            compute(gpu, W, x, compute=mutant.compute)
        if gpu.given_back_while_in_use:
            wrong.append(f"{name}, with an error")
    assert wrong


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


@pytest.mark.parametrize("backend", ["cupy", "numba-cuda"])
@pytest.mark.parametrize("batch", [(), (5,)])
def test_columns_and_one_pair_on_a_gpu(backend, batch):
    fake_gpu.reset(late)
    W, x = pairs(batch)
    got = sl2.value_and_grad(W, x[..., None], backend=backend)
    assert_right(got._asdict(), W, x[..., None])


def test_numba_keeps_pinned_memory_with_its_context():
    gpu = NumbaLibrary()
    for _ in range(3):
        with gpu.pinned((5, 3), np.dtype("f4")) as a, gpu.pinned((16,), np.dtype("f4")) as b:
            assert (a.shape, b.shape, a.dtype) == ((5, 3), (16,), np.float32)
            assert not np.shares_memory(a, b)
    (kept,) = gpu.kept().values()  # both took the 64 bytes of the longer one
    assert [memory.nbytes for memory in kept] == [64, 64]


def test_the_setting_is_shown(capsys):
    dispatch.show_config()
    assert "GPU memory for host arrays: 256 MiB" in capsys.readouterr().out
