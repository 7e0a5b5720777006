"""What goes in and out: shapes, dtypes, layouts, ``out``, backend names, and every mistake with its message."""

import importlib
import math
import sys
import types
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import sigmoid_l2 as sl2
from sigmoid_l2.problem import validate

backends = importlib.import_module("sigmoid_l2.backends")
W, X = np.linspace(-1, 1, 60).reshape(5, 3, 4), np.linspace(-2, 1, 20).reshape(5, 4)


def bits(results):
    return [(a.shape, a.dtype, np.ascontiguousarray(a).tobytes()) for a in results]


# --- shapes and dtypes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (1,), (6,), (2, 3), (1, 3, 2), (0,), (0, 3), (3, 0)])
def test_batch_shapes(backend, batch):
    size = math.prod(batch)
    W6, x6 = np.resize(W, (6, 3, 4)), np.resize(X, (6, 4))
    expected = sl2.value_and_grad(W6, x6, backend=backend)
    W_in, x_in = W6[:size].reshape(*batch, 3, 4), x6[:size].reshape(*batch, 4)
    got = sl2.value_and_grad(W_in, x_in, backend=backend)
    assert isinstance(got, sl2.ValueAndGrad)
    assert isinstance(sl2.grad(W_in, x_in, backend=backend), sl2.Grad)
    assert bits(got) == bits(a[:size].reshape((*batch, *a.shape[1:])) for a in expected)
    assert all(type(a) is np.ndarray for a in (*got, sl2.value(W_in, x_in, backend=backend)))
    columns = sl2.value_and_grad(W_in, x_in[..., None], backend=backend)
    assert columns.dx.shape == (*batch, 4, 1)
    assert bits(columns) == bits((got.loss, got.dW, got.dx[..., None]))


PROMOTION = {  # of the results: of W and x
    "f2": "f2 f2, i1 f2, ? f2",
    "f4": "f4 f4, f2 f4, f4 f2, >f4 >f4, >f2 f4, ? f4, u1 f4, i2 f4, i2 f2",
    "f8": "f8 f8, f4 f8, f8 f4, f8 f2, >f8 >f8, >f4 <f8, ? ?, i4 i4, u8 i8, ? i1, >i2 <i2, i4 f4, i8 f4, f2 i8, f8 u8",
}


@pytest.mark.parametrize(
    ("W_dtype", "x_dtype", "result"),
    [(*inputs.split(), result) for result, row in PROMOTION.items() for inputs in row.split(", ")],
)
def test_dtypes(entry, W_dtype, x_dtype, result):
    W_in, x_in = (4 * W % 3).astype(W_dtype), (3 * X % 2).astype(x_dtype)
    if reasons := entry.reasons(np.dtype(result)):
        with pytest.raises(sl2.BackendUnavailableError, match="float16") as error:
            sl2.value_and_grad(W_in, x_in, backend=entry.name)
        assert all(reason in str(error.value) for reason in reasons)
        return
    got = sl2.value_and_grad(W_in, x_in, backend=entry.name)
    assert [a.dtype for a in got] == [np.dtype(result)] * 3
    assert bits(got) == bits(sl2.value_and_grad(W_in.astype(result), x_in.astype(result), backend=entry.name))


@pytest.mark.parametrize("kind", [list, tuple, memoryview], ids=lambda kind: kind.__name__)
def test_array_likes(backend, kind):
    W0, x0 = (W[0], X[0]) if kind is memoryview else (W[0].tolist(), X[0].tolist())
    assert bits(sl2.value_and_grad(kind(W0), kind(x0), backend=backend)) == bits(
        sl2.value_and_grad(W[0], X[0], backend=backend)
    )
    integers = sl2.value_and_grad([[1, 2], [3, 4]], (1, 2), backend=backend)
    assert bits(integers) == bits(sl2.value_and_grad(np.array([[1.0, 2], [3, 4]]), np.array([1.0, 2]), backend=backend))


def test_float16_under_auto_is_numpy():
    assert backends.choose(validate(W.astype("f2"), X.astype("f2")), "auto").name == "numpy"
    assert backends.choose(validate(W.astype("f2"), X.astype("f2")), "gpu").name == "numpy"


@st.composite
def embedded(draw, shape, dtype):
    """An array of ``shape`` inside a larger one, with any order of axes and any steps; and a copy of the larger one."""
    axes = draw(st.permutations(range(len(shape))))
    steps = [draw(st.sampled_from([1, 1, 2, -1, -3])) for _ in shape]
    memory = np.full([shape[k] * abs(steps[k]) + 1 for k in axes], 77, dtype)
    view = memory.transpose(np.argsort(axes))[(*(slice(None, None, step) for step in steps), ...)]
    return view[(*map(slice, shape), ...)], memory  # the Ellipsis keeps a 0-d array an array


@given(data=st.data())
def test_any_layout_in_and_out(entry, data):
    batch = tuple(data.draw(st.lists(st.integers(0, 4), max_size=3), "batch"))
    m, n = data.draw(st.integers(1, 4), "m"), data.draw(st.integers(1, 5), "n")
    dtypes = st.sampled_from(["?", "i1", ">i4", "u8", "f2", "f4", "f8", ">f4", ">f8"])
    column = (1,) if n > 1 and data.draw(st.booleans(), "columns") else ()
    W_in, _ = data.draw(embedded((*batch, m, n), data.draw(dtypes)))
    x_in, _ = data.draw(embedded((*batch, n, *column), data.draw(dtypes)))
    rng = np.random.default_rng(0)
    W_in[...], x_in[...] = rng.integers(-2, 3, W_in.shape), rng.integers(-2, 3, x_in.shape)
    dtype = np.result_type(W_in, x_in, *([np.float64] if W_in.dtype.kind != "f" and x_in.dtype.kind != "f" else []))
    assume(not entry.reasons(dtype))
    expected = sl2.value_and_grad(W_in.astype(dtype, order="C"), x_in.astype(dtype, order="C"), backend=entry.name)
    assert bits(sl2.value_and_grad(W_in, x_in, backend=entry.name)) == bits(expected)

    places = [data.draw(embedded(a.shape, dtype.newbyteorder(data.draw(st.sampled_from("<>"))))) for a in expected]
    out = tuple(view for view, _ in places)
    got = sl2.value_and_grad(W_in, x_in, out=out, backend=entry.name)
    assert all(a is b for a, b in zip(got, out, strict=True))
    assert bits(a.astype(dtype) for a in out) == bits(expected)
    for view, memory in places:
        view[...] = 77
        assert (memory == 77).all(), "something was written beside an output"


def test_everything_in_one_array_of_records(backend):
    """Inputs and outputs interleaved: memory shared by no two of them."""
    fields = [("W", "f8", (3, 4)), ("loss", "f8"), ("x", "f8", 4), ("dW", "f8", (3, 4)), ("dx", "f8", 4)]
    records = np.zeros((5, 7), fields)
    records["W"], records["x"] = W[:, None], X[:, None]
    sl2.value_and_grad(records["W"], records["x"], out=tuple(records[k] for k in ("loss", "dW", "dx")), backend=backend)
    expected = sl2.value_and_grad(W, X, backend=backend)
    for name, a in expected._asdict().items():
        assert (records[name] == a[:, None]).all(), name
    sl2.value(records["W"], records["x"], out=records["dx"][..., 0], backend=backend)
    sl2.grad(records["W"], records["x"], out=[records["dW"], records["dx"]], backend=backend)
    assert (records["dx"] == expected.dx[:, None]).all()


# --- mistakes in W and x --------------------------------------------------------------------------------------------

BOTH = r"got W \(5, 3, 4\) and x "
BAD_INPUT = [
    (W, X[:4], ValueError, r"x must have shape \(5, 4\) or, as columns, \(5, 4, 1\); " + BOTH + r"\(4, 4\)"),
    (W, X[:, :3], ValueError, BOTH + r"\(5, 3\)"),
    (W, X[0], ValueError, BOTH + r"\(4,\)"),
    (W, X[:, None], ValueError, BOTH + r"\(5, 1, 4\)"),
    (W, X[None], ValueError, BOTH + r"\(1, 5, 4\)"),
    (W, 1.0, ValueError, BOTH + r"\(\)"),
    (W[:, :, :1], X[:, :1, None], ValueError, r"must have shape \(5, 1\); got W \(5, 3, 1\) and x \(5, 1, 1\)"),
    (X[0], X[0], ValueError, r"W must have at least 2 dimensions.*got W \(4,\) and x \(4,\)"),
    (2.0, 1.0, ValueError, r"W must have at least 2 dimensions.*got W \(\) and x \(\)"),
    (W[:, :0], X, ValueError, r"m and n must be at least 1.*got W \(5, 0, 4\) and x \(5, 4\)"),
    (W[:, :, :0], X[:, :0], ValueError, r"m and n must be at least 1.*got W \(5, 3, 0\) and x \(5, 0\)"),
    ([[]], [], ValueError, r"m and n must be at least 1.*got W \(1, 0\) and x \(0,\)"),
    ([[1, 2], [3]], [1, 2], ValueError, "W cannot be made into an array: .*inhomogeneous"),
    (W, [[1], [1, 2]], ValueError, "x cannot be made into an array: .*inhomogeneous"),
    (W + 0j, X, TypeError, "W has dtype complex128; supported are float16, float32, float64, integers and bool"),
    (W, X.astype("c8"), TypeError, "x has dtype complex64"),
    (W.astype(object), X, TypeError, "W has dtype object"),
    ([[2**70]], [1], TypeError, "W has dtype object"),
    (W, None, TypeError, "x has dtype object"),
    (W.astype(str), X, TypeError, "W has dtype <U"),
    ("W", "x", TypeError, "W has dtype <U1"),
    (W, X.astype(bytes), TypeError, r"x has dtype \|S"),
    (W.astype("i8").astype("m8[s]"), X, TypeError, "W has dtype timedelta64"),
    (W, np.zeros((5, 4), "f4,f4"), TypeError, "x has dtype .*f0"),
    (np.ma.masked_less(W, 0), X, TypeError, r"W is a masked array.*W\.filled"),
    (W, np.ma.array(X), TypeError, r"x is a masked array.*x\.filled"),
    (W, SimpleNamespace(__cuda_array_interface__={}), TypeError, r"x is a CUDA array of.*cupy\.asarray\(x\)"),
]
if np.dtype(np.longdouble).itemsize > 8:
    BAD_INPUT.append((W.astype(np.longdouble), X, TypeError, "W has dtype float"))


@pytest.mark.parametrize(("W_in", "x_in", "error", "words"), BAD_INPUT)
@pytest.mark.parametrize("call", [sl2.value_and_grad, sl2.value, sl2.grad], ids=lambda call: call.__name__)
def test_bad_inputs(call, W_in, x_in, error, words):
    with pytest.raises(error, match=words):
        call(W_in, x_in)


def test_numpy_works_while_another_thread_imports_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", types.ModuleType("cupy"))  # as its import leaves it at first
    assert bits(sl2.value_and_grad(W, X, backend="numpy"))


# --- mistakes in out ------------------------------------------------------------------------------------------------


def memory_map():
    """Views W, x, loss, dW, dx of one array, which a test can compare before and after; dW begins at 60, dx at 125."""
    memory = np.arange(200.0)
    a = SimpleNamespace(memory=memory, W=memory[:60].reshape(5, 3, 4), x=memory[145:165].reshape(5, 4))
    a.dW, a.loss, a.dx = memory[60:120].reshape(5, 3, 4), memory[120:125], memory[125:145].reshape(5, 4)
    a.as_strided = lambda view, shape, strides: np.lib.stride_tricks.as_strided(view, shape, strides)
    return a


BAD_OUT = [
    (lambda a: (a.loss[:4], a.dW, a.dx), r"loss must have shape \(5,\), not \(4,\)"),
    (lambda a: (a.loss[:, None], a.dW, a.dx), r"loss must have shape \(5,\), not \(5, 1\)"),
    (lambda a: (a.loss, a.dW.swapaxes(1, 2), a.dx), r"dW must have shape \(5, 3, 4\), not \(5, 4, 3\)"),
    (lambda a: (a.loss, a.dW, a.dx[..., None]), r"dx must have shape \(5, 4\), not \(5, 4, 1\)"),
    (lambda a: (a.loss, a.dW, a.dx.astype("f4")), "dx must have dtype float64, not float32"),
    (lambda a: (a.loss, a.dW.view("i8"), a.dx), "dW must have dtype float64, not int64"),
    (lambda a: (a.loss.astype(complex), a.dW, a.dx), "loss must have dtype float64, not complex128"),
    (lambda a: (a.loss.astype(object), a.dW, a.dx), "loss must have dtype float64, not object"),
    (lambda a: (a.loss.astype(np.dtypes.StringDType()), a.dW, a.dx), "loss must have dtype float64, not StringDType"),
    (lambda a: (a.loss, a.dW.tolist(), a.dx), r"dW must be a numpy\.ndarray.*not a list of 5"),
    (lambda a: (a.loss, a.dW, None), r"dx must be a numpy\.ndarray.*not builtins\.NoneType"),
    (lambda a: (a.loss, a.dW, np.ma.array(a.dx)), r"dx must be a numpy\.ndarray.*not numpy\.ma\S*MaskedArray"),
    (lambda a: (a.loss, np.broadcast_to(a.dW, (5, 3, 4)), a.dx), "dW is read-only"),
    (lambda a: (a.loss, a.W, a.dx), "dW shares memory with W"),
    (lambda a: (a.loss, a.dW, a.x), "dx shares memory with x"),
    (lambda a: (a.loss, a.memory[59:119].reshape(5, 3, 4), a.dx), "dW shares memory with W"),
    (lambda a: (a.memory[164:169], a.dW, a.dx), "loss shares memory with x"),
    (lambda a: (a.dx[:, 2], a.dW, a.dx), "dx shares memory with loss"),
    (lambda a: (a.loss, a.dW, a.dW[:, 1]), "dx shares memory with dW"),
    (lambda a: (a.as_strided(a.loss, (5,), (0,)), a.dW, a.dx), r"loss is a view with strides \(0,\)"),
    (lambda a: (a.loss, a.as_strided(a.dW, (5, 3, 4), (64, 32, 8)), a.dx), r"dW is a view with strides \(64, 32, 8\)"),
    (lambda a: (a.loss, a.dW, a.as_strided(a.dx, (5, 4), (8, 8))), r"dx is a view with strides \(8, 8\)"),
    (lambda a: (a.loss, a.dW), r"out must be a tuple of 3 arrays \(loss, dW, dx\), not a tuple of 2"),
    (lambda a: (), r"out must be a tuple of 3 arrays \(loss, dW, dx\), not a tuple of 0"),
    (lambda a: a.dW, r"out must be a tuple of 3 arrays \(loss, dW, dx\), not numpy\.ndarray"),
]


@pytest.mark.parametrize(("out", "words"), BAD_OUT)
def test_bad_out_is_refused_before_anything_is_written(out, words):
    a = memory_map()
    before = a.memory.tobytes()
    with pytest.raises(ValueError, match=words):
        sl2.value_and_grad(a.W, a.x, out=out(a))
    assert a.memory.tobytes() == before


@pytest.mark.parametrize("out", [(np.empty(5),), np.empty(4), np.empty((5, 1)), np.empty(5, "f4"), X[:, 0]])
def test_bad_out_of_value(out):
    with pytest.raises(ValueError, match=r"out: loss (must be|must have|shares memory with x)"):
        sl2.value(W, X, out=out)
    with pytest.raises(ValueError, match=r"out must be a tuple of 2 arrays \(dW, dx\)"):
        sl2.grad(W, X, out=np.empty((2, 5)))
