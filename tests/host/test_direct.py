"""Calls that go straight to a GPU kernel, and those that must not; with the stand-in for CuPy."""

import random
from contextlib import nullcontext
from functools import partial
from itertools import count

import fake_cupy
import numpy as np
import pytest
from arrays import bits, pairs

import sigmoid_l2 as sl2
from sigmoid_l2 import api
from sigmoid_l2.gpu import numba_library
from sigmoid_l2.gpu.direct import direct
from sigmoid_l2.kernels import reference

NAMES = ("loss", "dW", "dx")
CALLS = {sl2.value_and_grad: NAMES, sl2.value: ("loss",), sl2.grad: ("dW", "dx")}


@pytest.fixture
def cupy(monkeypatch):
    return fake_cupy.install(monkeypatch)


def outputs(W, x):
    return tuple(np.full(shape, np.nan, W.dtype) for shape in (W.shape[:1], W.shape, x.shape))


def plain(cupy, B=5, dtype="float32"):
    W, x = pairs((B,), dtype=dtype)
    return cupy.asarray(W), cupy.asarray(x), tuple(map(cupy.asarray, outputs(W, x)))


@pytest.mark.parametrize("backend", ["auto", "gpu", "cupy", "numba-cuda"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_plain_call(cupy, monkeypatch, backend, dtype):
    """It is not checked any further, and its results are the reference's."""
    W, x, out = plain(cupy, dtype=dtype)
    right = outputs(W, x)
    reference.fused(np.asarray(W), np.asarray(x), None, None, *right, None)
    monkeypatch.setattr(api, "validate", None)
    assert all(a is b for a, b in zip(sl2.value_and_grad(W, x, out=out, backend=backend), out, strict=True))
    assert bits(map(np.asarray, out)) == bits(right)
    assert sl2.grad(W, x, out=out[1:], backend=backend)[1] is out[2]
    assert sl2.value(W, x, out=out[0], backend=backend) is out[0]


def test_the_current_stream(cupy):
    W, x, out = plain(cupy)
    with cupy.cuda.Stream() as stream:
        for given in (None, stream, stream.ptr):
            assert direct(NAMES, (W, x, None, None), out, given).stream == stream.ptr
        assert direct(NAMES, (W, x, None, None), out, 0) is None, "the call would have to wait for the current stream"


def with_result(out, k, a):
    return (*out[:k], a, *out[k + 1 :])


NOT_PLAIN = {
    "no results": lambda cupy, W, x, out: (W, x, None),
    "too few results": lambda cupy, W, x, out: (W, x, out[:2]),
    "a host array": lambda cupy, W, x, out: (W, np.asarray(x), out),
    "another dtype of x": lambda cupy, W, x, out: (W, cupy.asarray(np.float64(x)), out),
    "another dtype of dW": lambda cupy, W, x, out: (W, x, with_result(out, 1, cupy.asarray(np.float64(out[1])))),
    "another byte order": lambda cupy, W, x, out: (W.view(W.dtype.newbyteorder()), x, out),
    "integers": lambda cupy, W, x, out: (*(cupy.asarray(a.astype(np.int32)) for a in (W, x)), out),
    "strided W": lambda cupy, W, x, out: (W[::2], x[:3], tuple(a[:3] for a in out)),
    "strided dx": lambda cupy, W, x, out: (W[:3], x[:3], (out[0][:3], out[1][:3], out[2][::2])),
    "two batch axes": lambda cupy, W, x, out: (*(a[None] for a in (W, x)), tuple(a[None] for a in out)),
    "no batch axis": lambda cupy, W, x, out: (W[0], x[0], tuple(a[0] for a in out)),
    "columns": lambda cupy, W, x, out: (W, x[..., None], with_result(out, 2, out[2][..., None])),
    "no pairs": lambda cupy, W, x, out: (W[:0], x[:0], tuple(a[:0] for a in out)),
    "x too short": lambda cupy, W, x, out: (W, x[:4], out),
    "loss too long": lambda cupy, W, x, out: (W[:4], x[:4], (out[0], out[1][:4], out[2][:4])),
    "dx in x": lambda cupy, W, x, out: (W, x, with_result(out, 2, x)),
    "dW in W": lambda cupy, W, x, out: (W, x, with_result(out, 1, W)),
    "loss in dW": lambda cupy, W, x, out: (W, x, with_result(out, 0, out[1].reshape(-1)[:5])),
    "loss at the end of W": lambda cupy, W, x, out: (W, x, with_result(out, 0, W.reshape(-1)[-5:])),
}


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_what_is_not_plain(cupy, name):
    """It gets its checks, conversions and messages from problem.py."""
    W, x, out = NOT_PLAIN[name](cupy, *plain(cupy))
    assert direct(NAMES, (W, x, None, None), out, None) is None


def test_another_device(cupy):
    W, x, out = plain(cupy)
    with cupy.cuda.Device(1):
        other = plain(cupy)
        assert direct(NAMES, (W, x, None, None), out, None) is None, "it is not the current one"
        assert direct(NAMES, (*other[:2], None, None), other[2], None).device.id == 1
        assert direct(NAMES, (other[0], x, None, None), other[2], None) is None


def test_inputs_may_share_memory(cupy):
    memory = cupy.asarray(np.ones(60, np.float32))
    W, x, out = plain(cupy)
    assert direct(NAMES, (memory.reshape(W.shape), memory[-20:].reshape(x.shape), None, None), out, None) is not None


def numba_array(array, stream=None):
    return fake_cupy.DeviceNDArray(array, stream)


def one_gpu(monkeypatch):
    """numba's arrays do not tell where they are, but with one GPU it is known."""
    monkeypatch.setattr(numba_library.numba_cuda(), "gpus", [nullcontext()])


@pytest.mark.parametrize("backend", ["auto", "gpu", "cupy", "numba-cuda"])
def test_arrays_of_numba(cupy, monkeypatch, backend):
    """The kernel in CuPy takes them, too."""
    one_gpu(monkeypatch)
    W, x, out = plain(cupy)
    right = outputs(W, x)
    reference.fused(np.asarray(W), np.asarray(x), None, None, *right, None)
    monkeypatch.setattr(api, "validate", None)
    sl2.value_and_grad(numba_array(W), numba_array(x), out=[*map(numba_array, out)], backend=backend)
    assert bits(map(np.asarray, out)) == bits(right)


class Subclass(fake_cupy.ndarray):
    """Of CuPy's class."""


WAYS_TO_GIVE = {  # with how often each is taken
    "as it is": (60, lambda a: a),
    "of a subclass": (2, lambda a: a.view(Subclass)),
    "of numba": (6, numba_array),
    "of numba, on a stream": (3, lambda a: numba_array(a, 7)),
    "of somebody": (2, fake_cupy.Owned),
    "of PyTorch": (2, fake_cupy.Tensor),
    "of JAX": (1, fake_cupy.Array),
    "of the host": (2, np.array),
    "read-only": (2, lambda a: fake_cupy.Owned(a, read_only=True)),
    "of another dtype": (2, lambda a: fake_cupy.asarray(np.float64(a))),
    "of integers": (1, lambda a: fake_cupy.asarray(np.ones(a.shape, int))),
    "of another byte order": (1, lambda a: a.view(a.dtype.newbyteorder())),
    "in another layout": (2, lambda a: fake_cupy.asarray(np.asfortranarray(a))),
    "every other one": (1, lambda a: a[::2]),
    "without a batch": (1, lambda a: a.reshape(a.shape[1:] if len(a) == 1 else a.shape)),
    "with two batch axes": (2, lambda a: a[None]),
    "as columns": (1, lambda a: a[..., None]),
    "nothing": (1, lambda a: None),
}
STREAMS = [None] * 12 + [0, 1, 2, 7, np.int64(7), -1, True, 1.5, "stream", [], fake_cupy.Stream(handle=7)]
BACKENDS = ["auto"] * 5 + ["gpu", "cupy", "numba-cuda", "numba-cuda", "cpu", "numpy", "cuda", None]


def outcome(function, W, x, out, arrays, **options):
    """All that a call does: its result or error, what is in ``arrays`` then, and what the GPU was told."""
    fake_cupy.reset()
    fake_cupy.Event.names = count()
    for kernel in fake_cupy.kernels.values():
        kernel.calls.clear()
    for a in arrays:
        a[...] = np.nan
    try:
        result = function(W, x, out=out, **options)
        told = [id(a) for a in (result if isinstance(result, tuple) else [result])] if out is not None else None
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
    calls = {name: list(kernel.calls) for name, kernel in fake_cupy.kernels.items()}
    return told, bits(map(np.asarray, arrays)), calls, [entry for entry in fake_cupy.log if entry[0] != "numba device"]


@pytest.mark.parametrize("seed", range(8))
def test_no_call_can_tell_the_straight_way_from_the_long_one(cupy, monkeypatch, seed):
    """Calls with arguments of all kinds, right and wrong: the same results, errors, launches and waits."""
    rng, straight = random.Random(seed), []
    given, weights = [w for _, w in WAYS_TO_GIVE.values()], [k for k, _ in WAYS_TO_GIVE.values()]
    for _ in range(60):
        everything = rng.choice([None, None, numba_array])  # so that all are numba's
        ways = [everything or way for way in rng.choices(given, weights, k=5)]
        W, x, results = plain(cupy, rng.choice([0, 1, 5, 5, 5]), rng.choice(["float32", "float64"]))
        function = rng.choice(list(CALLS))
        out = [way(results[NAMES.index(name)]) for name, way in zip(CALLS[function], ways[2:], strict=False)]
        if rng.random() < 0.1:
            out[rng.randrange(len(out))] = rng.choice([*out, W, x, W[..., 0], W.reshape(-1)[: len(W)]])
        if rng.random() < 0.05:
            out = rng.choice([out[1:], [*out, out[0]], None, iter(out), out[0]])
        elif function is sl2.value:
            out = out[0]
        elif rng.random() < 0.7:
            out = tuple(out)
        options = {"stream": rng.choice(STREAMS), "backend": rng.choice(BACKENDS)}
        number = rng.choice([0, 0, 0, 1])
        with (
            monkeypatch.context() as patch,
            cupy.cuda.Device(number),
            rng.choice([nullcontext(), cupy.Stream(handle=7)]),
        ):
            if number == 0:
                one_gpu(patch)
            call = partial(outcome, function, ways[0](W), ways[1](x), out, results, **options)
            found = call()
            patch.setattr(api, "direct", lambda *arguments: straight.append(direct(*arguments)))
            assert found == call()
    assert any(straight), "no call has gone straight"
