"""What the operators behind ``sigmoid_l2.torch.value`` do with CUDA tensors, on the stand-ins of fake_cupy.

The last test is for a machine with a GPU.
"""

import importlib
import sys
from types import SimpleNamespace

import fake_cupy
import numpy as np
import pytest
from arrays import pairs
from fake_cupy import log, on_host

import sigmoid_l2 as sl2
from sigmoid_l2.probes import probe_cupy

torch = pytest.importorskip("torch")
module = importlib.import_module("sigmoid_l2.torch")
QUARTER = torch.tensor(0.25, dtype=torch.float64)


class CudaTensor(fake_cupy.Tensor):
    """As much of a CUDA tensor as the operators touch."""

    __module__ = "torch"
    is_cuda = True

    def __init__(self, held):
        super().__init__(held)
        self.dtype, self.ndim = getattr(torch, held.dtype.name), held.ndim

    def detach(self):
        return CudaTensor(self.held)

    def stride(self):
        return tuple(step // self.held.itemsize for step in self.held.strides)

    def contiguous(self):
        flags = self.held.flags
        return self if flags.c_contiguous else CudaTensor(fake_cupy.asarray(np.ascontiguousarray(self.held)))

    def sum_to_size(self, shape):
        assert self.shape == shape
        return self

    def to(self, dtype):
        assert self.dtype is dtype
        return self


@pytest.fixture(params=["CuPy", "numba-cuda alone"])
def kernel(monkeypatch, request):
    """The kernels that record; ``torch.empty`` is on the device."""
    cupy = fake_cupy.install(monkeypatch)
    if request.param != "CuPy":
        monkeypatch.delitem(sys.modules, "cupy")
        monkeypatch.setattr("sigmoid_l2.gpu.why_not", lambda probe: "no CuPy" if probe is probe_cupy else None)

    fake = sys.modules["torch"]  # whose tensors nothing tracks
    no_tangent = SimpleNamespace(_current_level=-1, unpack_dual=lambda a: SimpleNamespace(tangent=None))
    functorch = SimpleNamespace(is_functorch_wrapped_tensor=lambda a: False)
    monkeypatch.setattr(fake, "autograd", SimpleNamespace(forward_ad=no_tangent), raising=False)
    monkeypatch.setattr(fake, "_C", SimpleNamespace(_functorch=functorch), raising=False)

    def empty(shape, dtype, device):
        return CudaTensor(fake_cupy.empty(shape, str(dtype).removeprefix("torch.")))

    def empty_like(a, dtype):
        return CudaTensor(np.empty_like(a.held, str(dtype).removeprefix("torch.")))

    stand_in = SimpleNamespace(**{**vars(torch), "empty": empty, "empty_like": empty_like})
    monkeypatch.setattr(module, "torch", stand_in)
    log.clear()
    return cupy.kernels["cupy"]


def on_cuda(*arrays):
    return [CudaTensor(fake_cupy.asarray(a)) for a in arrays]


def pointers(*tensors):
    return [a.held.ctypes.data for a in tensors]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shares", [False, True])
def test_results_are_tensors_that_pytorch_allocates(kernel, dtype, shares):
    """And everything runs on PyTorch's current stream, on which nothing waits."""
    W, x = pairs((5,), dtype=dtype)
    W = W[0] if shares else W
    W_device, x_device, cotangent = on_cuda(W, x, np.linspace(0, 1, 5, dtype=dtype))
    loss = module._loss._init_fn(W_device, x_device, None)
    dW, dx = module._gradients._init_fn(W_device, x_device, None, cotangent, "Wx")
    assert kernel.calls == 2 * [(0, fake_cupy.Tensor.current_stream)]
    assert kernel.names == 2 * ["shared" if shares else "fused"]
    assert kernel.pointers == [
        pointers(W_device, x_device, loss),
        pointers(W_device, x_device, cotangent, dW, dx),
    ]
    assert [entry[0] for entry in log if entry[0] != "allocate"] == ["kernel", "kernel"]
    right = sl2.value_and_grad(W, x, cotangent=on_host(cotangent.held), backend="numpy")
    for got, expected in zip((loss, dW, dx), right, strict=True):
        assert type(got) is CudaTensor
        np.testing.assert_allclose(on_host(got.held), expected, rtol=2e-6, atol=2e-6)


def test_a_number_and_one_gradient(kernel, request):
    W, x = pairs((5,), dtype="float32")
    W_device, x_device, cotangent = on_cuda(W, x, np.broadcast_to(np.float32(1), (5,)))
    given = W_device, x_device, QUARTER
    if "numba" in request.node.name:
        with pytest.raises(TypeError, match="target is a number, of which only CuPy can make an array"):
            module._loss._init_fn(*given)
        return
    loss = module._loss._init_fn(*given)
    (dx,) = module._gradients._init_fn(*given, cotangent, "x")
    right = sl2.value_and_grad(W, x, 0.25, backend="numpy")
    np.testing.assert_allclose(on_host(loss.held), right.loss, rtol=2e-6)
    np.testing.assert_allclose(on_host(dx.held), right.dx, rtol=2e-6, atol=2e-6)


def test_wrong_shapes(kernel):
    with pytest.raises(ValueError, match=r"got W \(5, 3, 4\), x \(2, 4\)"):
        module._loss._init_fn(*on_cuda(np.ones((5, 3, 4)), np.ones((2, 4))), None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs PyTorch with CUDA, and a GPU")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_on_a_gpu():
    """On a stream of its own, compiled, vmapped and with autocast, against the CPU."""
    generator = torch.Generator().manual_seed(0)
    W, x, y = (torch.randn(shape, generator=generator) for shape in ((1000, 3, 4), (1000, 4), (1000, 3)))

    expected = sl2.value_and_grad(W.numpy(), x.numpy(), y.numpy())
    on_gpu = [a.cuda() for a in (W, x, y)]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    compiled = torch.compile(module.value, fullgraph=True)
    both = torch.func.vmap(torch.func.grad(module.value, argnums=(0, 1)))
    with torch.cuda.stream(stream):
        for function in (module.value, compiled):
            leaves = [a.detach().requires_grad_() for a in on_gpu[:2]]
            loss = function(*leaves, on_gpu[2])
            loss.sum().backward()
            for got, right in zip((loss, *(a.grad for a in leaves)), expected, strict=True):
                torch.testing.assert_close(got.detach().cpu(), torch.from_numpy(right), rtol=1e-5, atol=1e-6)
        for got, right in zip(both(*on_gpu), expected[1:], strict=True):
            torch.testing.assert_close(got.cpu(), torch.from_numpy(right), rtol=1e-5, atol=1e-6)
        with torch.autocast("cuda", dtype=torch.float16):
            assert module.value(on_gpu[0].half(), on_gpu[1].half(), 1).dtype == torch.float32
    stream.synchronize()
