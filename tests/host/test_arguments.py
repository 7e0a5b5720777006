"""What goes in and out: shapes, dtypes, layouts and ``out``. Single odd and bad cases are in the tables of
test_odd_input.py, test_bad_input.py and test_bad_output.py."""

import math
import sys
import types

import numpy as np
import pytest
from arrays import bits
from hypothesis import given
from hypothesis import strategies as st

import sigmoid_l2 as sl2
from sigmoid_l2 import layouts

W, X = np.linspace(-1, 1, 60).reshape(5, 3, 4), np.linspace(-2, 1, 20).reshape(5, 4)


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
    got = sl2.value_and_grad(W_in, x_in, backend=entry.name)
    assert [a.dtype for a in got] == [np.dtype(result)] * 3
    assert bits(got) == bits(sl2.value_and_grad(W_in.astype(result), x_in.astype(result), backend=entry.name))


def test_bfloat16(backend):
    """It is storage, as float16 is: computed in float32, and each result is rounded once."""
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    W_in, x_in = W.astype(bfloat16), X.astype(bfloat16)
    expected = sl2.value_and_grad(W_in.astype("f4"), x_in.astype("f4"), backend=backend)
    got = sl2.value_and_grad(W_in, x_in, backend=backend)
    assert bits(got) == bits(a.astype(bfloat16) for a in expected)
    out = tuple(map(np.empty_like, got))
    sl2.value_and_grad(W_in, x_in, out=out, backend=backend)
    assert bits(out) == bits(got)
    for other, result in (("i1", bfloat16), ("?", bfloat16), ("i2", "f4"), ("i4", "f8")):
        assert sl2.value(W_in, X.astype(other), backend=backend).dtype == result
    assert sl2.check_grad(W_in, x_in, 1, dW=sl2.grad(W_in, x_in, 1, wrt="W", backend=backend)).ok
    for other, dtype in (("f2", "f4"), ("f4", "f4"), ("f8", "f8")):
        got = sl2.value_and_grad(W_in, X.astype(other), backend=backend)
        assert bits(got) == bits(sl2.value_and_grad(W_in.astype(dtype), X.astype(other).astype(dtype), backend=backend))


@st.composite
def embedded(draw, shape, dtype):
    """An array of ``shape`` inside a larger one, with any order of axes and any steps; and the larger one."""
    axes = draw(st.permutations(range(len(shape))))
    steps = [draw(st.sampled_from([1, 1, 2, -1, -3])) for _ in shape]
    memory = np.full([shape[k] * abs(steps[k]) + 1 for k in axes], 77, dtype)
    view = memory.transpose(np.argsort(axes))[(*(slice(None, None, step) for step in steps), ...)]
    return view[(*map(slice, shape), ...)], memory  # the Ellipsis keeps a 0-d array an array


@given(data=st.data())
def test_any_layout_in_and_out(entry, data):
    batch = tuple(data.draw(st.lists(st.integers(0, 4), max_size=3), "batch"))
    m, n = data.draw(st.sampled_from([(3, 4), (2, 1), (1, 5), (1, 1)]), "m, n")  # the kernel is compiled for each
    dtypes = st.sampled_from(["?", "i1", ">i4", "u8", "f2", "f4", "f8", ">f4", ">f8"])
    column = (1,) if n > 1 and data.draw(st.booleans(), "columns") else ()
    W_in, _ = data.draw(embedded((*batch, m, n), data.draw(dtypes)))
    x_in, _ = data.draw(embedded((*batch, n, *column), data.draw(dtypes)))
    rng = np.random.default_rng(0)
    W_in[...], x_in[...] = rng.integers(-2, 3, W_in.shape), rng.integers(-2, 3, x_in.shape)
    dtype = np.result_type(W_in, x_in, *([np.float64] if W_in.dtype.kind != "f" and x_in.dtype.kind != "f" else []))
    expected = sl2.value_and_grad(W_in.astype(dtype, order="C"), x_in.astype(dtype, order="C"), backend=entry.name)
    new = sl2.value_and_grad(W_in, x_in, backend=entry.name)
    if layouts.is_batch_last(W_in):  # which has its own order of the sums
        for a, b in zip(new, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=20 * np.finfo(dtype).eps, atol=20 * np.finfo(dtype).eps)
        expected = new
    assert bits(new) == bits(expected)

    places = [data.draw(embedded(a.shape, dtype.newbyteorder(data.draw(st.sampled_from("<>"))))) for a in expected]
    out = tuple(view for view, _ in places)
    got = sl2.value_and_grad(W_in, x_in, out=out, backend=entry.name)
    assert all(a is b for a, b in zip(got, out, strict=True))
    assert bits(a.astype(dtype) for a in out) == bits(expected)
    for view, memory in places:
        view[...] = 77
        assert (memory == 77).all(), "something was written beside an output"


def test_everything_in_one_array_of_records(backend):
    """Inputs and outputs lie interleaved, and no two of them share memory."""
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


def test_numpy_works_while_another_thread_imports_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", types.ModuleType("cupy"))  # as its import leaves it at first
    assert bits(sl2.value_and_grad(W, X, backend="numpy"))
