"""CUDA arrays of any library, and the order of streams: nothing is copied, and only events order the producer and us.

On the stand-ins of fake_cupy, which log what a GPU would be told; the last test is for a machine with a GPU.
"""

import importlib
import sys
from types import SimpleNamespace

import fake_cupy
import numpy as np
import pytest
from arrays import pairs
from fake_cupy import Array, DeviceNDArray, Owned, Stream, Tensor, log, on_host

import sigmoid_l2 as sl2
from sigmoid_l2 import dispatch
from sigmoid_l2.gpu.arrays import bounds, is_cuda_array
from sigmoid_l2.probes import probe_cupy

SHAPES = ((5,), (5, 3, 4), (5, 4))


@pytest.fixture
def cupy(monkeypatch):
    return fake_cupy.install(monkeypatch)


@pytest.fixture
def numba_alone(monkeypatch):
    """numba-cuda where there is no CuPy; ``fake_cupy`` is only where its arrays are made."""
    module = fake_cupy.install(monkeypatch)
    monkeypatch.delitem(sys.modules, "cupy")
    monkeypatch.setattr("sigmoid_l2.gpu.why_not", lambda probe: "no CuPy" if probe is probe_cupy else None)
    return module


def plain(held):
    return held


KINDS = {"cupy": plain, "numba": DeviceNDArray, "interface": Owned, "torch": Tensor, "jax": Array}
OURS = {"cupy": 0, "numba": 0, "interface": 0, "torch": Tensor.current_stream, "jax": 0}


def on_both(make=plain, batch=(5,), dtype="float32"):
    W, x = pairs(batch, dtype=dtype)
    return W, x, make(fake_cupy.asarray(W)), make(fake_cupy.asarray(x))


def outputs(make=plain, dtype="float32"):
    return tuple(make(fake_cupy.asarray(np.full(shape, np.nan, dtype))) for shape in SHAPES)


def memory(a):
    return getattr(a, "held", a)


def assert_right(got, W, x):
    for a, right in zip(got, sl2.value_and_grad(W, x, backend="numpy"), strict=True):
        np.testing.assert_array_equal(on_host(memory(a)), right)


def events():
    """(producer, consumer) of each event that one stream recorded and another waits for, before the kernel or not."""
    recorded = {name: handle for kind, name, handle in (e for e in log if e[0] == "record")}
    before = True
    for entry in log:
        if entry[0] == "kernel":
            before = False
        elif entry[0] == "wait":
            yield recorded[entry[2]], entry[1], before


@pytest.mark.parametrize("backend", ["auto", "numba-cuda"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_memory_and_the_same_kind(cupy, kind, backend):
    W, x, W_device, x_device = on_both(KINDS[kind])
    log.clear()
    got = sl2.value_and_grad(W_device, x_device, backend=backend)
    assert {type(a) for a in got} == {fake_cupy.ndarray if kind == "interface" else type(W_device)}
    used = cupy.kernels["numba-cuda" if backend == "numba-cuda" else "cupy"]
    addresses = [memory(a).ctypes.data for a in (W_device, x_device, *got)]
    assert used.pointers == [addresses], "nothing was copied"
    assert used.calls == [(0, OURS[kind])]
    assert ("synchronize",) not in log
    assert_right(got, W, x)
    assert type(sl2.value(W_device, x_device)) is type(got.loss)


@pytest.mark.parametrize("kind", ["cupy", "numba", "interface", "torch"])
def test_out_of_the_same_kind(cupy, kind):
    W, x, W_device, x_device = on_both(KINDS[kind])
    out = outputs(KINDS[kind])
    log.clear()
    got = sl2.value_and_grad(W_device, x_device, out=out)
    assert all(a is b for a, b in zip(got, out, strict=True))
    assert [entry[0] for entry in log] == ["kernel"], "no memory, no event, no wait"
    assert cupy.kernels["cupy"].pointers == [[memory(a).ctypes.data for a in (W_device, x_device, *out)]]
    assert_right(out, W, x)


def test_out_of_other_kinds(cupy):
    W, x, W_device, _ = on_both(Tensor)
    *_, x_device = on_both(DeviceNDArray)
    out = tuple(make(a) for make, a in zip((plain, Tensor, Owned), outputs(), strict=True))
    got = sl2.value_and_grad(W_device, x_device, out=out)
    assert all(a is b for a, b in zip(got, out, strict=True))
    assert_right(out, W, x)
    assert list(events()) == [(0, Tensor.current_stream, True)], "of CuPy's array"
    assert ("synchronize",) not in log


def test_any_layout_of_another_library(cupy):
    W, x, *_ = on_both(batch=(6,), dtype="float64")
    W_device, x_device = fake_cupy.asarray(W), fake_cupy.asarray(x)
    for make in (Tensor, DeviceNDArray, Owned):
        got = sl2.value_and_grad(make(W_device[::2]), make(x_device[::-1][::2]))
        assert_right(got, W[::2], x[::-1][::2])
        got = sl2.value_and_grad(make(W_device), make(x_device[..., None]))
        assert_right(got, W, x[..., None])
        ones = make(fake_cupy.asarray(np.ones((6, 4), int)))
        assert_right(sl2.value_and_grad(make(W_device), ones), W, np.ones((6, 4)))
        of_integers = sl2.value(make(fake_cupy.asarray(np.ones((6, 3, 4), int))), ones)
        assert of_integers.dtype == ("float32" if make is Tensor else "float64"), "by the promotion of W's library"


# W and x, stream=, what runs where, (producer, consumer) of the events before the kernel.
ORDERS = {
    "one stream": (plain, plain, None, 0, []),
    "CuPy's stream, another given": (plain, plain, 123, 123, [(0, 123)]),
    "numba's default stream": (DeviceNDArray, DeviceNDArray, None, 0, []),
    "no order is asked for": (Owned, Owned, 123, 123, []),
    "the legacy default stream": (lambda a: Owned(a, 1), lambda a: Owned(a, 1), None, 0, []),
    "the thread's default stream": (lambda a: Owned(a, 2), lambda a: Owned(a, 2), None, 0, [(2, 0)]),
    "two producers": (lambda a: Owned(a, 33), lambda a: Owned(a, 34), 35, 35, [(33, 35), (34, 35)]),
    "the producer's own stream": (lambda a: Owned(a, 33), lambda a: Owned(a, 33), 33, 33, []),
    "PyTorch's stream": (Tensor, Tensor, None, 5, []),
    "PyTorch's stream, another given": (Tensor, Tensor, 123, 123, [(5, 123), (5, 123)]),
    "JAX's stream": (Array, Array, None, 0, [(9, 1), (9, 1)]),
    "PyTorch and CuPy": (Tensor, plain, None, 5, [(0, 5)]),
    "CuPy and PyTorch": (plain, Tensor, None, 0, [(5, 1)]),
}


@pytest.mark.parametrize("case", ORDERS)
def test_the_producer_is_ordered_before_the_kernel(cupy, case):
    make_W, make_x, stream, ours, expected = ORDERS[case]
    W, x, W_device, _ = on_both(make_W)
    *_, x_device = on_both(make_x)
    log.clear()
    got = sl2.value_and_grad(W_device, x_device, stream=stream)
    assert [(producer, consumer) for producer, consumer, before in events() if before] == expected
    assert cupy.kernels["cupy"].calls == [(0, ours)]
    assert fake_cupy.current() == (0, 0)
    assert ("synchronize",) not in log
    assert_right(got, W, x)


@pytest.mark.parametrize(("make", "consumer"), [(Tensor, Tensor.current_stream), (Array, Array.work_stream)])
def test_the_results_are_ordered_before_their_library_goes_on(cupy, make, consumer):
    *_, W_device, x_device = on_both(make)
    log.clear()
    sl2.value_and_grad(W_device, x_device, stream=123)
    assert {(p, c) for p, c, before in events() if not before} == {(123, consumer)}
    assert ("synchronize",) not in log
    assert sl2.value_and_grad(*on_both(DeviceNDArray)[2:], stream=123).dW.stream == 123


def test_cupys_current_stream(cupy):
    *_, W_device, x_device = on_both()
    log.clear()
    with Stream(handle=44):
        sl2.value(W_device, x_device)
        sl2.value(W_device, x_device, stream=44)
    assert cupy.kernels["cupy"].calls == [(0, 44), (0, 44)]
    assert not list(events())


def test_a_graph_does_not_wait_for_what_is_outside(cupy, monkeypatch):
    monkeypatch.setattr(Stream, "capturing", (123,))
    *_, W_device, x_device = on_both()
    out = outputs()
    log.clear()
    sl2.value_and_grad(W_device, x_device, out=out, stream=123)
    assert log == [("kernel", 123)]


STREAMS = [  # a stream of some library, and its handle
    (0, 0),
    (123, 123),
    (Stream(handle=123), 123),
    (SimpleNamespace(__cuda_stream__=lambda: (0, 123)), 123),
    (SimpleNamespace(cuda_stream=123), 123),
    (SimpleNamespace(ptr=0), 0),
    (SimpleNamespace(ptr=123), 123),
    (SimpleNamespace(handle=SimpleNamespace(value=None)), 0),
    (SimpleNamespace(handle=SimpleNamespace(value=123)), 123),
    (SimpleNamespace(handle=123), 123),
]


def test_streams_of_any_library(cupy):
    *_, W_device, x_device = on_both()
    for stream, handle in STREAMS:
        sl2.value(W_device, x_device, stream=stream)
        assert cupy.kernels["cupy"].calls.pop() == (0, handle)
    for wrong in (-1, True, 1.5, "stream", object()):
        with pytest.raises(TypeError, match="stream must be a CuPy or numba stream or an integer handle, not "):
            sl2.value(W_device, x_device, stream=wrong)


def test_tensors_in_different_places(cupy):
    W, x = on_both(Tensor)[2:]
    x.is_cuda = False
    with pytest.raises(TypeError, match=r"x is in host memory and W is .* pass x\.to\(W\.device\), or W\.cpu\(\)$"):
        sl2.value(W, x)


def test_a_tensor_that_requires_a_gradient(cupy):
    for position in (0, 1):
        arrays = list(on_both(Tensor)[2:])
        arrays[position].requires_grad = True
        with pytest.raises(TypeError, match=rf"^{'Wx'[position]} is .* use sigmoid_l2\.torch\.value, .*\.detach\(\)$"):
            sl2.value_and_grad(*arrays)
    out = outputs(Tensor)
    out[1].requires_grad = True
    with pytest.raises(ValueError, match=r"^out: dW is a tensor that requires a gradient; .*\.detach\(\)$"):
        sl2.value_and_grad(*on_both(Tensor)[2:], out=out)
    sys.modules["torch"].is_grad_enabled = lambda: False  # as under torch.no_grad()
    assert type(sl2.value_and_grad(*arrays, out=out)[1]) is Tensor


def test_outputs_that_cannot_be_written(cupy):
    W, _, W_device, _ = on_both(Tensor)
    loss, dW, dx = outputs(Tensor)
    beside_x, beside_loss = (fake_cupy.asarray(np.full(60, np.nan, "f4")) for _ in range(2))
    x_device, loss = Tensor(beside_x[:20].reshape(5, 4)), Tensor(beside_loss[:5])
    wrong = {
        "dW must be a CUDA array, like the inputs, not numpy.ndarray": np.zeros_like(W),
        "dW must be a CUDA array, like the inputs, not builtins.NoneType": None,
        "dW is read-only": Owned(dW.held, read_only=True),
        "dW must have shape": dx,
        "dW must have dtype float32, not float64": outputs(Tensor, "float64")[1],
        "dW shares memory with W": Owned(W_device.held),
        "dW shares memory with x": Tensor(beside_x.reshape(5, 3, 4)),
        "dW shares memory with loss": Tensor(beside_loss.reshape(5, 3, 4)),
        "dW is a view with strides": Tensor(np.broadcast_to(dW.held[:1], (5, 3, 4), subok=True)),
    }
    for words, array in wrong.items():
        with pytest.raises(ValueError, match=f"^out: {words}"):
            sl2.value_and_grad(W_device, x_device, out=(loss, array, dx))
    with pytest.raises(ValueError, match="out: dW is read-only"):
        sl2.value_and_grad(W_device, x_device, out=(loss, Array(dW.held), dx))
    assert np.isnan(on_host(loss.held)).all()
    with fake_cupy.Device(1):
        elsewhere = outputs(Tensor)
    with pytest.raises(ValueError, match="out: loss is on <CUDA Device 1> and W is on <CUDA Device 0>"):
        sl2.value_and_grad(W_device, x_device, out=elsewhere)


def test_the_bounds_of_an_array(cupy):
    whole = fake_cupy.asarray(np.zeros((4, 5, 6)))
    views = whole, whole[1:3], whole[::-1], whole[::2, ::-2, 1:], whole.T[2:4, :, ::-3]
    for view in (*views, whole[:0], whole[0, 0, 0, ...]):
        expected = np.lib.array_utils.byte_bounds(view.view(np.ndarray)) if view.size else (view.ctypes.data,) * 2
        assert bounds(view) == expected


def test_arrays_that_are_on_the_host_after_all(cupy):
    """What has the protocols of a device but is on the host is an array-like, and stays where it is."""

    class HostTensor:
        def __init__(self, a, device):
            self.a, self.device = a, device

        def __dlpack_device__(self):
            if self.device is None:
                raise BufferError("sharded")
            return self.device, 0

        def __array__(self, dtype=None, copy=None):
            return self.a

    W, x, *_ = on_both()
    for device in (1, 3, None):  # on the host, pinned there, unknown
        assert type(sl2.value(HostTensor(W, device), HostTensor(x, device), backend="numpy")) is np.ndarray
    for device in (2, 13):
        assert is_cuda_array(HostTensor(W, device))


@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (0,)])
def test_numba_without_cupy(numba_alone, batch):
    W, x, W_device, x_device = on_both(DeviceNDArray, batch)
    log.clear()
    got = sl2.value_and_grad(W_device, x_device, backend="numba-cuda")
    assert {type(a) for a in got} == {DeviceNDArray}
    assert_right(got, W, x)
    if 0 not in batch:
        addresses = [memory(a).ctypes.data for a in (W_device, x_device, *got)]
        assert numba_alone.kernels["numba-cuda"].pointers == [addresses]
    columns = sl2.value_and_grad(W_device, DeviceNDArray(x_device.held[..., None]), backend="numba-cuda", stream=7)
    assert_right(columns, W, x[..., None])
    assert {a.stream for a in columns} == {7}
    assert ("synchronize",) not in log


def test_numba_without_cupy_orders_streams_and_writes_out(numba_alone):
    W, x, *_ = on_both()
    W_device, x_device = Owned(fake_cupy.asarray(W), 33), Owned(fake_cupy.asarray(x), 34)
    out = outputs(Tensor)
    log.clear()
    got = sl2.value_and_grad(W_device, x_device, out=out, backend="numba-cuda", stream=34)
    assert all(a is b for a, b in zip(got, out, strict=True))
    assert list(events()) == [(33, 34, True), (Tensor.current_stream, 34, True)]
    assert not [entry for entry in log if entry[0] in ("synchronize", "allocate")]
    assert_right(out, W, x)
    with pytest.raises(ValueError, match="dW shares memory with W"):
        sl2.grad(W_device, x_device, out=(Owned(W_device.held[:]), out[2]), backend="numba-cuda")


def test_numba_without_cupy_takes_one_W_for_many_x(numba_alone):  # noqa: N802 - the name of the mathematics
    W, x = pairs(())[0], pairs((5,))[1]
    y, c = np.ones((5, 3)), np.arange(5.0)
    W_device, x_device, y_device, c_device = (DeviceNDArray(fake_cupy.asarray(a)) for a in (W, x, y, c))
    expected = sl2.value_and_grad(W, x, y, cotangent=c, backend="numpy")
    for one in (W_device, DeviceNDArray(W_device.held[None])):
        got = sl2.value_and_grad(one, x_device, y_device, cotangent=c_device, backend="numba-cuda")
        assert got.dW.shape == one.shape
        for a, right in zip(got, expected, strict=True):
            np.testing.assert_allclose(memory(a), right.reshape(a.shape), rtol=1e-13)
    kernel = numba_alone.kernels["numba-cuda"]
    assert kernel.names == ["shared"] * 2
    assert kernel.pointers[0][:4] == [memory(a).ctypes.data for a in (W_device, x_device, y_device, c_device)]
    row = DeviceNDArray(fake_cupy.asarray(y[0]))
    with pytest.raises(TypeError, match=r"target has shape \(3,\) .* which only CuPy .* target of shape \(5, 3\)"):
        sl2.value(W_device, x_device, row, backend="numba-cuda")
    with pytest.raises(TypeError, match=r"W has shape \(3, 4\) .* which only CuPy"):  # 0 for a sum of no terms
        sl2.value(W_device, DeviceNDArray(x_device.held[:0]), backend="numba-cuda")
    with pytest.raises(TypeError, match="which only CuPy"):
        sl2.value(DeviceNDArray(fake_cupy.asarray(np.ones((2, 1, 3, 4)))), x_device, backend="numba-cuda")
    kernel.has_shared = lambda m, n, itemsize: False
    with pytest.raises(TypeError, match=r"W has shape \(3, 4\) .* which only CuPy"):
        sl2.value(W_device, x_device, backend="numba-cuda")


def test_any_stride_of_an_axis_of_one(numba_alone):
    W, x, W_device, x_device = on_both(DeviceNDArray, (1,))
    strided = SimpleNamespace(__cuda_array_interface__={**W_device.__cuda_array_interface__, "strides": (999, 16, 4)})
    assert_right(sl2.value_and_grad(strided, x_device, backend="numba-cuda"), W, x)


def test_what_numba_cannot_use_without_cupy(numba_alone):
    _, _, W_device, x_device = on_both(DeviceNDArray)
    big_endian = DeviceNDArray(W_device.held.astype(">f4"))
    for array, words in ((DeviceNDArray(W_device.held[..., ::-1]), "not C-contiguous"), (big_endian, "byte order")):
        with pytest.raises(TypeError, match=rf"W, a CUDA array of type .*{words}.*CuPy.*pip install"):
            sl2.value(array, x_device, backend="numba-cuda")
    with pytest.raises(TypeError, match=r"W has shape \(5, 3, 4\) and dtype float32, which only CuPy .* in float64"):
        sl2.value(W_device, on_both(DeviceNDArray, dtype="float64")[3], backend="numba-cuda")
    with pytest.raises(TypeError, match=r"W, a CUDA array of type jaxlib\._jax\.Array, .*CuPy"):
        sl2.value(*on_both(Array)[2:], backend="numba-cuda")


def test_neither_cupy_nor_numba(numba_alone, monkeypatch):
    monkeypatch.setattr("sigmoid_l2.gpu.why_not", lambda probe: "it is not installed")
    with pytest.raises(TypeError, match=r"W is a CUDA array of type somebody\.Owned, and neither .* pip install"):
        sl2.value(*on_both(Owned)[2:])


@pytest.mark.gpu
@pytest.mark.parametrize("library", ["numba", "torch", "jax"])
@pytest.mark.parametrize("backend", ["cupy", "numba-cuda"])
def test_on_a_gpu(library, backend):
    reasons = {b.name: b.reasons() for b in dispatch.BACKENDS}
    for name in {"cupy", backend, *["numba-cuda"] * (library == "numba")}:
        if reasons[name]:
            pytest.skip(f"{name}: {'; '.join(reasons[name])}")
    W, x, *_ = on_both(batch=(1000,))
    if library == "numba":
        cuda = importlib.import_module("sigmoid_l2.kernels.gpu.launch_numba").cuda
        to_device, to_host = cuda.to_device, lambda a: a.copy_to_host()
    elif library == "torch":
        torch = pytest.importorskip("torch")
        to_device, to_host = (lambda a: torch.from_numpy(a).cuda()), lambda a: a.cpu().numpy()
    else:
        jax = pytest.importorskip("jax")
        if jax.default_backend() != "gpu":
            pytest.skip("JAX finds no GPU")
        to_device, to_host = jax.numpy.asarray, np.asarray
    W_device, x_device = to_device(W), to_device(x)
    got = sl2.value_and_grad(W_device, x_device, backend=backend)
    for a, right in zip(got, sl2.value_and_grad(W, x, backend="numpy"), strict=True):
        assert type(a) is type(W_device)
        np.testing.assert_allclose(to_host(a), right, rtol=2e-6, atol=2e-6)
