"""A fuzz target: bytes choose the arguments of one call, which must be refused properly or compute the right thing.

Refused: by ValueError, TypeError or BackendUnavailableError, with nothing written. Right: the results agree with the
truth within twice the accuracy contract, and nothing but the outputs was written. Which of the two is clear from the
documentation wherever ``out`` is not given.

One byte makes one choice, so that a fuzzer's mutation changes one thing. Plain Python: run.py fuzzes it, and
../test_fuzz.py replays its seeds.
"""

import math
import warnings
from typing import Any

import contract
import numpy as np
import oracle
from arrays import CALLS, Subclass

import sigmoid_l2 as sl2

NUMBERS = ["f8", "f4", "f2", ">f8", ">f4", ">f2", "?", "i1", "u1", ">i2", "i4", "u4", "i8", "u8"]
DTYPES = [*["f8", "f4"] * 10, *NUMBERS, "c16", "O", "g", "U3", "S3", "m8[s]", "M8[s]", "f8,f8", "V8", "V0"]
BATCHES = [(), (1,), (2,), (3,), (2, 2), (0,), (0, 2), (1, 1, 2)]
BACKENDS = [*["numpy", "numba"] * 3, "auto", "cpu", "gpu", "cupy", "numba-cuda", "nunpy", "", None, 1]
SPECIAL = [0.0, 0.0, 0.0, 0.0, np.nan, np.inf, -np.inf, 1e30, -30.0, 100.0, 1e-30]
MIDDLE, SENTINEL = 2048, 77


class Choices:
    """Choices made by bytes; once they are used up, always the first option."""

    def __init__(self, data: bytes) -> None:
        self.bytes = iter(data)

    def pick(self, options: Any) -> Any:
        return options[next(self.bytes, 0) % len(options)]


def array(choices: Choices, shape: tuple[int, ...], dtype: str, memory: Any) -> Any:
    """An array of its own, or a view of ``memory`` with any offset and strides, which may overlap itself and others."""
    a: Any = np.zeros(shape, dtype)
    if a.dtype.hasobject or choices.pick([True, False]):
        return a
    order = sorted(range(len(shape)), key=lambda _: choices.pick(range(3)))
    strides = np.empty(shape, dtype).transpose(order).copy().transpose(np.argsort(order)).strides
    strides = tuple(stride * choices.pick([1, 1, 1, 2, -1, 0]) for stride in strides)
    offset = MIDDLE + 8 * choices.pick(range(-100, 100)) + choices.pick([0, 0, 0, 1, 4])
    try:
        return np.ndarray(shape, dtype, memory, offset, strides)
    except ValueError:  # beyond the memory
        return a


def fill(choices: Choices, a: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a special value that the dtype cannot hold
        values = np.resize([0.5, -1.5, 1, 2, -0.25, 3, -2], a.size) * choices.pick([1, 1, 10, 0.01])
        values[choices.pick(range(256)) % max(1, a.size) :][:1] += choices.pick(SPECIAL)
        a[...] = values.reshape(a.shape).astype(a.dtype) if a.dtype.names is None else 0


def dressed(choices: Choices, a: Any) -> Any:
    """``a`` in a form that a caller may pass."""
    how = choices.pick(
        [*["as it is"] * 8, "list", "subclass", "matrix", "masked", "masked rows", "read-only", "buffer"]
    )
    if how == "list" and a.dtype.kind in "biuf" and a.size:
        return a.tolist()
    if how == "subclass":
        return a.view(Subclass)
    if how == "matrix" and a.ndim == 2:
        return a.view(np.matrix)
    if how == "masked":
        return np.ma.array(a)
    if how == "masked rows" and a.ndim > 1 and len(a):
        return [np.ma.array(row) for row in a]
    if how == "read-only":
        a.flags.writeable = False
    if how == "buffer" and a.dtype.isnative and a.dtype.kind in "biuf" and a.size:
        return memoryview(a)
    return a


def outputs(choices: Choices, names: tuple[str, ...], shapes: dict[str, Any], dtype: Any, memory: Any) -> list[Any]:
    out = []
    for name in names:
        shape = choices.pick([*[shapes[name]] * 30, (*shapes[name], 1), (), shapes["dW"]])
        kind = choices.pick([*[dtype.str] * 30, dtype.newbyteorder().str, "f4", "f8", "i8", "c16"])
        a = array(choices, shape, kind, memory)
        a[...] = SENTINEL
        how = choices.pick([*["as it is"] * 20, "subclass", "masked", "None", "read-only", "list"])
        if how == "read-only":
            a.flags.writeable = False
        dresses = {"subclass": lambda a: a.view(Subclass), "masked": np.ma.array, "list": np.ndarray.tolist}
        out.append(None if how == "None" else dresses.get(how, lambda a: a)(a))
    return out


def fits(W: Any, x: Any, W_given: Any, x_given: Any) -> bool:
    """Whether the documentation says that these inputs compute."""
    for a, given in ((W, W_given), (x, x_given)):
        masked = any(isinstance(b, np.ma.MaskedArray) for b in (given if type(given) is list else [given]))
        if a.dtype.kind not in "biuf" or a.dtype == np.longdouble or masked:
            return False
    return vectors(W, x) is not None


def vectors(W: Any, x: Any) -> Any:
    """x as (..., n), whose batch shape and that of W broadcast; None where the documentation says that x is refused."""
    if W.ndim < 2 or 0 in W.shape[-2:]:
        return None
    n, batches = W.shape[-1], []
    is_vector, is_column = x.shape[-1:] == (n,), x.shape[-2:] == (n, 1)
    readings = [x] if is_vector else []
    # One vector for each W, with n = 1, is read as that alone.
    if is_column and not (is_vector and x.shape[:-1] == W.shape[:-2]):
        readings.append(x[..., 0])
    for reading in readings:
        try:
            batches.append(np.broadcast_shapes(W.shape[:-2], reading.shape[:-1]))
        except ValueError:
            batches.append(None)
    if not readings or batches[0] is None or (len(readings) == 2 and batches[1] not in (None, batches[0])):
        return None
    return readings[0]


def assert_right(name: str, got: Any, W: Any, x: Any) -> None:
    """Assert one result; ``x`` is (..., n). A pair that is NaN, infinite or too large to sum is left out."""
    batch = np.broadcast_shapes(W.shape[:-2], x.shape[:-1])
    tail = {"loss": (), "dW": W.shape[-2:], "dx": x.shape[-1:]}[name]
    right, limit = np.full((*batch, *tail), np.nan), np.full((*batch, *tail), np.nan)
    W_full, x_full = np.broadcast_to(W, batch + W.shape[-2:]), np.broadcast_to(x, batch + x.shape[-1:])
    for b in np.ndindex(batch):
        with np.errstate(all="ignore"):
            largest = np.abs((W_full[b] * x_full[b]).sum(-1)).max()
        if largest < np.finfo(got.dtype).max / x.shape[-1]:
            truth = oracle.pair(W_full[b], x_full[b])
            right[b] = np.array(getattr(truth, name), float)
            limit[b] = getattr(contract.allowed(W_full[b].astype(got.dtype), x_full[b].astype(got.dtype), truth), name)
    own = {"loss": batch, "dW": W.shape[:-2], "dx": x.shape[:-1]}[name]
    own = (1,) * (len(batch) - len(own)) + own
    summed = tuple(k for k, (size, mine) in enumerate(zip(batch, own, strict=True)) if size != mine)
    if summed:
        count = max(1, math.prod(batch[k] for k in summed))
        sizes = np.abs(right).sum(summed, keepdims=True)
        right, limit = right.sum(summed, keepdims=True), limit.sum(summed, keepdims=True)
        limit = limit + (math.ceil(math.log2(count)) + 1) * float(np.finfo(got.dtype).eps) * sizes
    with np.errstate(all="ignore"):
        error = np.abs(got.astype(float).reshape(right.shape) - right)
    assert ((error <= 2 * limit) | np.isnan(right)).all(), f"{name}: {got} is not {right}, for W {W} and x {x}"


def test_one_input(data: bytes) -> None:
    choices = Choices(data)
    memory = np.full(2 * MIDDLE, 1, np.uint8)
    call, backend = choices.pick(list(CALLS)), choices.pick(BACKENDS)
    batch, m, n = choices.pick(BATCHES), choices.pick([3, 2, 1, 4, 0]), choices.pick([3, 2, 1, 4, 0])
    shape = choices.pick([*[(*batch, m, n)] * 30, (n,), (), (*batch, n, m)])
    x_shape = choices.pick([*[(*batch, n)] * 20, *[(*batch, n, 1)] * 8, (*batch, m), (n,), (), (*batch, 1, n)])
    W = array(choices, shape, choices.pick(DTYPES), memory)
    x = array(choices, x_shape, choices.pick(DTYPES), memory)
    numbers = all(a.dtype.kind in "biufg" for a in (W, x))
    dtype = np.result_type(W, x) if numbers else np.dtype(float)
    dtype = dtype if dtype.kind == "f" else np.dtype(float)
    vector = vectors(W, x)
    batch = shape[:-2] if vector is None else np.broadcast_shapes(shape[:-2], vector.shape[:-1])
    shapes = {"loss": batch, "dW": shape, "dx": x_shape}
    out = outputs(choices, CALLS[call], shapes, dtype, memory) if choices.pick([False, True]) else []
    given_out = out[0] if out and call == "value" else tuple(out) or None
    out = [] if given_out is None else out
    fill(choices, W)
    fill(choices, x)
    W_given, x_given = dressed(choices, W), dressed(choices, x)
    W_copy, x_copy, before = W.copy(), x.copy(), memory.tobytes()
    results_before = [np.array(a, copy=True) for a in out]
    finite = numbers and bool(np.isfinite(W).all() and np.isfinite(x).all())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error" if finite else "ignore")
            got = getattr(sl2, call)(W_given, x_given, out=given_out, backend=backend)
    except (ValueError, TypeError, sl2.BackendUnavailableError) as error:
        message = str(error)
        assert message, "an error without words"
        assert memory.tobytes() == before, "something was written"
        for a, b in zip(out, results_before, strict=True):
            assert np.array(a).tobytes() == b.tobytes(), "an output was written"
        runs = backend in ("auto", "cpu", "gpu", "numpy", "numba")
        assert out or not (runs and fits(W, x, W_given, x_given)), f"refused: {message}"
        return
    assert fits(W, x, W_given, x_given), f"accepted {W.shape} {W.dtype}, {x.shape} {x.dtype}"
    results = (got,) if call == "value" else got
    vector = vectors(W_copy, x_copy)
    for name, a in zip(CALLS[call], results, strict=True):
        assert a.shape == shapes[name], f"{name} has shape {a.shape}"
        if a.size:
            assert_right(name, np.asarray(a), W_copy.astype(float), vector.astype(float))
    for a, given, b in zip(results, out, results_before, strict=True) if out else ():
        assert a is given
        np.asarray(a)[...] = b
    assert memory.tobytes() == before, "something else was written"
    assert W.tobytes() == W_copy.tobytes(), "W was changed"
    assert x.tobytes() == x_copy.tobytes(), "x was changed"
