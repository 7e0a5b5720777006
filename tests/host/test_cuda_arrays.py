"""CUDA arrays through the public calls: on the GPU's own CuPy where there is one, else on the stand-in of fake_cupy.

With the stand-in the NumPy reference computes in the place of the two GPU kernels; everything on the way to it and back
is the library's own.
"""

import importlib

import fake_cupy
import numpy as np
import pytest
from arrays import pairs

import sigmoid_l2 as sl2
from sigmoid_l2 import dispatch, execute

REASONS = {b.name: b.reasons() for b in dispatch.BACKENDS if b.device == "cuda"}
HAS_GPU = not REASONS["cupy"]  # whose arrays they are; what the other backend lacks skips its tests alone


@pytest.fixture
def cupy(monkeypatch):
    """CuPy itself where it can run, else the stand-in, with ``kernels`` by backend name."""
    return importlib.import_module("cupy") if HAS_GPU else fake_cupy.install(monkeypatch)


@pytest.fixture(params=["auto", "gpu", "cupy", "numba-cuda"])
def backend(request):
    if HAS_GPU and REASONS.get(request.param):
        pytest.skip("; ".join(REASONS[request.param]))
    return request.param


def on_both(cupy, batch=(5,), dtype="float32"):
    W, x = pairs(batch, dtype=dtype)
    return W, x, cupy.asarray(W), cupy.asarray(x)


def assert_same(cupy, got, W, x):
    expected = sl2.value_and_grad(W, x, backend="numpy")
    for name, a, right in zip(("loss", "dW", "dx"), got, expected, strict=True):
        assert isinstance(a, cupy.ndarray), name
        assert (a.shape, a.dtype) == (right.shape, right.dtype), name
        np.testing.assert_allclose(cupy.asnumpy(a), right, rtol=2e-6, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 3), (0,)])
def test_cupy_in_cupy_out(cupy, backend, batch):
    W, x, W_device, x_device = on_both(cupy, batch)
    assert_same(cupy, sl2.value_and_grad(W_device, x_device, backend=backend), W, x)
    assert isinstance(sl2.value(W_device, x_device, backend=backend), cupy.ndarray)
    assert all(isinstance(a, cupy.ndarray) for a in sl2.grad(W_device, x_device, backend=backend))


def test_any_layout_dtype_and_columns(cupy, backend):
    W, x, W_device, x_device = on_both(cupy, (6,), dtype="float64")
    half = sl2.value_and_grad(W_device[::2], x_device[::-1][::2], backend=backend)
    assert_same(cupy, half, W[::2], x[::-1][::2])
    swapped = sl2.value_and_grad(W_device.swapaxes(1, 2), x_device[:, :3], backend=backend)
    assert_same(cupy, swapped, W.swapaxes(1, 2), x[:, :3])
    columns = sl2.value_and_grad(W_device, x_device[..., None], backend=backend)
    assert columns.dx.shape == (6, 4, 1)
    assert_same(cupy, columns, W, x[..., None])
    integers = sl2.value_and_grad(cupy.asarray(np.ones((2, 3, 4), int)), x_device[:2], backend=backend)
    assert_same(cupy, integers, np.ones((2, 3, 4)), x[:2])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pairs_last_in_memory(cupy, backend, dtype):
    """A range of them, and results that lie as they do."""
    W, x = pairs((1000,), dtype=dtype)
    W_device, x_device = (cupy.asarray(np.moveaxis(a, 0, -1).copy()) for a in (W, x))
    W_device, x_device = W_device.transpose(2, 0, 1), x_device.transpose(1, 0)
    for part in (slice(None), slice(7, 640)):
        got = sl2.value_and_grad(W_device[part], x_device[part], backend=backend)
        assert_same(cupy, got, W[part], x[part])
        assert got.dW.strides[0] == got.dx.strides[0] == got.dW.itemsize
        out = tuple((0 * a).copy(order="K") for a in got)
        again = sl2.value_and_grad(W_device[part], x_device[part], out=out, backend=backend)
        assert_same(cupy, again, W[part], x[part])


def test_out_is_written_in_place(cupy, backend):
    W, x, W_device, x_device = on_both(cupy)
    out = tuple(cupy.asarray(np.full(shape, np.nan, "float32")) for shape in ((5,), (5, 3, 4), (5, 4)))
    got = sl2.value_and_grad(W_device, x_device, out=out, backend=backend)
    assert all(a is b for a, b in zip(got, out, strict=True))
    assert_same(cupy, out, W, x)
    with pytest.raises(ValueError, match="dW shares memory with W"):
        sl2.grad(W_device, x_device, out=(W_device, out[2]), backend=backend)


@pytest.mark.parametrize("name", ["cpu", "numpy", "numba"])
def test_cuda_arrays_are_not_moved_to_the_host(cupy, name):
    *_, W_device, x_device = on_both(cupy)
    with pytest.raises(TypeError, match=rf"'{name}' computes in host memory.*cupy\.asnumpy"):
        sl2.value_and_grad(W_device, x_device, backend=name)


def test_a_stream_is_used_and_left(cupy, backend):
    W, x, W_device, x_device = on_both(cupy)
    stream = cupy.cuda.Stream()
    before = cupy.cuda.get_current_stream().ptr
    for given in (stream, stream.ptr):
        got = sl2.value_and_grad(W_device[::2], x_device[::2], backend=backend, stream=given)
        assert cupy.cuda.get_current_stream().ptr == before
        stream.synchronize()
        assert_same(cupy, got, W[::2], x[::2])


@pytest.mark.skipif(HAS_GPU, reason="the stand-in has two devices, this machine may not")
def test_runs_on_the_arrays_device(cupy, backend):
    with cupy.cuda.Device(1):
        *_, W_device, x_device = on_both(cupy)
    got = sl2.value_and_grad(W_device, x_device, backend=backend)
    assert got.dW.device.id == 1
    assert fake_cupy.kernels["numba-cuda" if backend == "numba-cuda" else "cupy"].calls == [(1, 0)]
    assert backend != "numba-cuda" or ("numba device", 1) in fake_cupy.log
    with pytest.raises(ValueError, match="same CUDA device"):
        sl2.value(W_device, on_both(cupy)[3])


@pytest.mark.skipif(not HAS_GPU, reason="; ".join(REASONS["cupy"]))
@pytest.mark.parametrize("name", ["cupy", "numba-cuda"])
def test_nothing_is_allocated_and_a_graph_can_capture_it(cupy, name):
    W, x, W_device, x_device = on_both(cupy, (1000,))
    out = tuple(cupy.empty(shape, "float32") for shape in ((1000,), (1000, 3, 4), (1000, 4)))
    stream = cupy.cuda.Stream(non_blocking=True)
    sl2.value_and_grad(W_device, x_device, out=out, backend=name, stream=stream)  # compiled outside the capture
    stream.synchronize()
    pool = cupy.get_default_memory_pool()
    before = pool.used_bytes(), pool.total_bytes()
    with stream:
        stream.begin_capture()
        sl2.value_and_grad(W_device, x_device, out=out, backend=name, stream=stream)
        graph = stream.end_capture()
    assert (pool.used_bytes(), pool.total_bytes()) == before
    for a in out:
        a.fill(np.nan)
    cupy.cuda.Device().synchronize()
    graph.launch(stream)
    stream.synchronize()
    assert_same(cupy, out, W, x)


@pytest.mark.parametrize(
    "shapes", [((5,), (5,), (5,), (5,)), ((), (70,), (), ()), ((6,), (), (1,), ()), ((4, 1), (1, 3), (3,), (4, 1))]
)
@pytest.mark.parametrize("piece_bytes", [100, 1 << 20])
def test_whole_function(cupy, backend, shapes, piece_bytes, monkeypatch):
    """Targets, cotangents, wrt and broadcast shapes: nothing goes to the host."""
    for name in ("GPU_PIECE_BYTES", "PIECE_BYTES"):
        monkeypatch.setattr(execute, name, piece_bytes)
    rng = np.random.default_rng(0)
    given = [rng.standard_normal((*s, *t)) for s, t in zip(shapes, ((3, 4), (4,), (3,), ()), strict=True)]
    expected = sl2.value_and_grad(*given[:3], cotangent=given[3], wrt=("q", "x", "W"), backend="numpy")
    *arrays, cotangent = map(cupy.asarray, given)
    got = sl2.value_and_grad(*arrays, cotangent=cotangent, wrt=("q", "x", "W"), backend=backend)
    out = tuple(map(cupy.empty_like, got))
    sl2.value_and_grad(*arrays, cotangent=cotangent, wrt=("q", "x", "W"), out=out, backend=backend)
    for name, a, b, right in zip(expected._fields, got, out, expected, strict=True):
        assert isinstance(a, cupy.ndarray)
        np.testing.assert_allclose(cupy.asnumpy(a), right, rtol=1e-13, atol=1e-15, err_msg=name)
        np.testing.assert_array_equal(cupy.asnumpy(a), cupy.asnumpy(b), err_msg=name)


@pytest.mark.skipif(HAS_GPU, reason="only the stand-in tells what it is given")
@pytest.mark.parametrize(("batch", "column"), [((7,), False), ((7,), True), ((2, 3), False)])
def test_one_W_goes_to_its_kernel_as_it_is(cupy, backend, batch, column):  # noqa: N802 - the name of the mathematics
    """With ``out`` given nothing is allocated, so a graph can capture the call."""
    W, x = pairs((), dtype="float32")[0], pairs(batch, dtype="float32")[1]
    y, c = np.ones((*batch, 3), "f4"), np.ones(batch, "f4")
    W_device, x_device, y_device, c_device = map(cupy.asarray, (W, x, y, c))
    shapes = batch, W.shape, x.shape + (1,) * column, y.shape + (1,) * column
    out = tuple(cupy.empty(shape, "f4") for shape in shapes)
    cupy.log.clear()
    given = W_device, x_device[..., None] if column else x_device, y_device
    sl2.value_and_grad(*given, cotangent=c_device, wrt=("W", "x", "q"), out=out, backend=backend, stream=7)
    kernel = cupy.kernels["numba-cuda" if backend == "numba-cuda" else "cupy"]
    assert kernel.names == ["shared"]
    assert kernel.calls == [(0, 7)]
    assert kernel.pointers == [[a.ctypes.data for a in (W_device, x_device, y_device, c_device, *out)]]
    assert not [entry for entry in cupy.log if entry[0] in ("allocate", "synchronize")]
    expected = sl2.value_and_grad(W, x, y, cotangent=c, wrt=("W", "x", "q"), backend="numpy")
    for a, right in zip(out, expected, strict=True):
        np.testing.assert_allclose(cupy.asnumpy(a), right.reshape(a.shape), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("shares_x", [True, False])
def test_an_ensemble(cupy, backend, shares_x, monkeypatch):
    """The kernel for one W is called for each model, where it has enough to do."""
    monkeypatch.setattr(execute, "GPU_MODEL_BYTES", 1)
    monkeypatch.setattr(execute, "MODEL_SAMPLES", 1)
    W, x = pairs((3, 1), dtype="float32")[0], pairs((5,) if shares_x else (3, 5), dtype="float32")[1]
    got = sl2.value_and_grad(cupy.asarray(W), cupy.asarray(x), 1.0, backend=backend)
    for a, right in zip(got, sl2.value_and_grad(W, x, 1.0, backend="numpy"), strict=True):
        np.testing.assert_allclose(cupy.asnumpy(a), right, rtol=2e-6, atol=2e-6)
    names = [] if HAS_GPU else cupy.kernels["numba-cuda" if backend == "numba-cuda" else "cupy"].names
    assert names == [] or names == ["shared"] * (6 if shares_x else 3)


def test_numbers_and_other_dtypes_of_target_and_cotangent(cupy, backend):
    W, x, W_device, x_device = on_both(cupy)
    y, c = np.ones((5, 3)), np.arange(5)
    right = sl2.value_and_grad(W, x, y, cotangent=c, backend="numpy")
    for target in (1.0, 1, True, np.float64(1), cupy.asarray(y), cupy.asarray(y > 0)):
        got = sl2.value_and_grad(W_device, x_device, target, cotangent=cupy.asarray(c), backend=backend)
        for a, b in zip(got, right, strict=True):
            assert a.dtype == np.float32
            np.testing.assert_allclose(cupy.asnumpy(a), b, rtol=2e-6, atol=2e-6)
    with pytest.raises(TypeError, match="W and target must be in the same place, but target is in host memory"):
        sl2.value(W_device, x_device, y, backend=backend)
    with pytest.raises(TypeError, match="W and cotangent must be in the same place, but W is in host memory"):
        sl2.grad(W, x, cotangent=cupy.asarray(c), backend=backend)


def test_float16(cupy, backend):
    """It is storage: computed in float32, and each result is rounded once."""
    W, x, W_device, x_device = on_both(cupy, dtype="float16")
    right = sl2.value_and_grad(W, x, 1.0, backend="numpy")
    for a, b in zip(sl2.value_and_grad(W_device, x_device, 1.0, backend=backend), right, strict=True):
        np.testing.assert_allclose(cupy.asnumpy(a).astype(float), b.astype(float), rtol=2e-3)
