"""numba-cuda's real host code, from a call of ours to the driver and back; test_end_to_end.py runs this in a child."""

import gc
import importlib
import logging
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from fenced import batch, shapes

import sigmoid_l2 as sl2
from gpu import driver
from sigmoid_l2 import api, execute
from sigmoid_l2.gpu.library import stream_handle
from sigmoid_l2.gpu.numba_library import NumbaLibrary
from sigmoid_l2.kernels.gpu import plan

sys.modules["cupy"] = None  # so that numba-cuda alone takes CUDA arrays
DRIVER = driver.load()
cuda, binding = DRIVER.cuda, importlib.import_module("cuda.bindings.driver")
call = partial(sl2.value_and_grad, backend="numba-cuda")

CLASSES = {  # one for each way through the host code
    "tiny": (300, 3, 3, "float32"),
    "block": (2, 3, 700, "float32"),
    "split": (1, 3500, 3, "float32"),
    "split, rows": (2, 270, 250, "float64"),
    "long": (2, 2, 8200, "float64"),
    "columns": (2, 2, 13314, "float64"),
}


@pytest.fixture(autouse=True)
def nothing_unexpected():
    """What the interpreter has found fails the test, even if the exception was caught."""
    gc.freeze()  # so that forget() is quick: it need only look at what is new
    DRIVER.calls.clear()
    DRIVER.faults.clear()
    yield
    for fault in DRIVER.faults:
        raise fault


def outputs(W, names=("loss", "dW", "dx")):
    return tuple(np.full(shapes(W)[name], np.nan, W.dtype) for name in names)


def bits(results):
    return [(a.copy_to_host() if hasattr(a, "copy_to_host") else a).tobytes() for a in results]


def functions(stream=None):
    """The driver's functions that were called, on one stream or all."""
    return [function for function, on in DRIVER.calls if stream in (None, on)]


def raises(function):
    """Expect the exception that names the error of this function of the driver."""
    return pytest.raises(Exception, match=binding.CUresult(driver.error(function)).name)


def forget():
    """Free all that is kept between calls; return how many things of each kind are left."""
    context = cuda.current_context()
    context.extras.clear()
    gc.collect()
    context.deallocations.clear()
    context.memory_manager.deallocations.clear()
    return [len(DRIVER.alive(kind)) for kind in driver.KINDS]


@pytest.mark.parametrize("name", CLASSES)
def test_each_class(name):
    """Right with host arrays; with device arrays the same bits, by launches alone, after what a producer has queued."""
    W, x = batch(*CLASSES[name])
    assert plan.size_class(plan.make_plan(*W.shape[1:], W.itemsize)) == name.partition(",")[0]
    results, limit = call(W, x), 100 * np.finfo(W.dtype).eps  # test_proof.py has the accuracy contract
    for a, right in zip(results, sl2.value_and_grad(*map(np.float64, (W, x)), backend="numpy"), strict=True):
        np.testing.assert_allclose(a, right, rtol=limit, atol=limit * abs(right).max())
    stream, producer = cuda.stream(), cuda.stream()
    handle, others = stream_handle(stream), stream_handle(producer)
    # Slices and their sum, or q and the gradients.
    launches = [("cuLaunchKernelEx", handle)] * (2 if name.startswith(("split", "columns")) else 1)
    assert functions().count("cuLaunchKernelEx") == len(launches)

    arrays, outs = [cuda.to_device(W), cuda.to_device(x)], [[*map(cuda.to_device, outputs(W))] for _ in range(3)]
    queued = [SimpleNamespace(__cuda_array_interface__=a.__cuda_array_interface__ | {"stream": others}) for a in arrays]
    new = call(*arrays, stream=stream)  # which has its own workspace from now on
    DRIVER.calls.clear()
    for inputs, out, given in zip((arrays, arrays, queued), outs, (stream, handle, handle), strict=True):
        call(*inputs, out=out, stream=given)
    waits = [("cuEventCreate", 0), ("cuEventRecord", others), ("cuStreamWaitEvent", handle)]
    assert DRIVER.calls == [*launches, *launches, *waits, *launches]
    assert all(bits(a) == bits(results) for a in (new, *outs))


@pytest.mark.parametrize("name", ["tiny", "columns"])
def test_target_cotangent_and_dq(name):
    """Right with host arrays, and the same bits with device arrays."""
    W, x = batch(*CLASSES[name])
    B, m, _ = W.shape
    inputs = W, x, np.linspace(0, 1, B * m, dtype=W.dtype).reshape(B, m), np.linspace(-1, 2, B, dtype=W.dtype)

    def run(W, x, y, c, **how):
        return sl2.value_and_grad(W, x, y, cotangent=c, wrt=("x", "q"), **how)

    results, limit = run(*inputs, backend="numba-cuda"), 100 * np.finfo(W.dtype).eps
    for a, right in zip(results, run(*map(np.float64, inputs), backend="numpy"), strict=True):
        np.testing.assert_allclose(a, right, rtol=limit, atol=limit * abs(right).max())
    out = tuple(map(cuda.to_device, outputs(W, ("loss", "dx", "dq"))))
    run(*map(cuda.to_device, inputs), out=out, backend="numba-cuda")
    assert bits(out) == bits(results)


def test_numba_does_not_tell_what_it_compiles(caplog):
    """At DEBUG, but for each call of the driver, which is no part of a compilation."""
    caplog.set_level(logging.DEBUG)
    call(*batch(2, 5, 2, "float32"))
    told = {record.name for record in caplog.records} - {"numba.cuda.cudadrv.driver"}
    assert not {name for name in told if name.startswith("numba")}


def test_a_shared_w():
    """The kernel for a W that all pairs share: the sum of its parts of dW is the second launch, on the same stream."""
    rng = np.random.default_rng(5)
    W, x = rng.standard_normal((3, 3), np.float32), rng.standard_normal((700, 3), np.float32)
    names, stream = ("loss", "dW", "dx"), cuda.stream()
    out = [cuda.to_device(np.full(shape, np.nan, np.float32)) for shape in ((700,), (3, 3), (700, 3))]
    kernel = importlib.import_module("sigmoid_l2.kernels.gpu.launch_numba")
    assert kernel.has_shared(3, 3, 4)
    DRIVER.calls.clear()
    kernel.shared(cuda.to_device(W), cuda.to_device(x), None, None, *out, None, stream=stream_handle(stream))
    assert functions(stream_handle(stream)) == ["cuLaunchKernelEx"] * 2
    right = sl2.value_and_grad(*map(np.float64, (np.broadcast_to(W, (700, 3, 3)), x)), backend="numpy")
    for name, a, b in zip(names, out, right, strict=True):
        b = b.sum(0) if name == "dW" else b
        np.testing.assert_allclose(a.copy_to_host(), b, rtol=1e-5, atol=1e-5 * abs(b).max())


def test_pairs_along_the_last_axis():
    """Arrays of numba, W and dW as views with any strides: one launch, on the stream that is given."""
    W, x = batch(200, 3, 3, "float32")

    def put(a):
        """In the middle of (..., 203)."""
        held = np.zeros((*a.shape[1:], len(a) + 3), np.float32)
        held[..., 2:-1] = np.moveaxis(a, 0, -1)
        return cuda.to_device(held)

    W_last, x_last, dW = put(W), put(x), put(np.full_like(W, np.nan))
    loss, stream = cuda.to_device(np.full(200, np.nan, np.float32)), cuda.stream()
    kernel = importlib.import_module("sigmoid_l2.kernels.gpu.launch_numba")
    assert kernel.has_batch_last(3, 3, 4)
    DRIVER.calls.clear()
    views = W_last[:, :, 2:-1], x_last[:, 2:-1], None, None, loss, dW[:, :, 2:-1], None, None
    kernel.batch_last(*views, stream=stream_handle(stream))
    assert functions(stream_handle(stream)) == ["cuLaunchKernelEx"]
    right = sl2.value_and_grad(W.astype(float), x.astype(float), wrt="W", backend="numpy")
    np.testing.assert_allclose(loss.copy_to_host(), right[0], rtol=1e-5)
    found = dW.copy_to_host()
    np.testing.assert_allclose(np.moveaxis(found[:, :, 2:-1], -1, 0), right[1], rtol=1e-5, atol=1e-7)
    assert not found[:, :, [0, 1, -1]].any(), "dW is written beyond its ends"


def test_a_plain_call(monkeypatch):
    """With numba's arrays and results given it goes straight to the kernel, on any stream."""
    W, x = batch(*CLASSES["tiny"])
    arrays, out, right = [cuda.to_device(W), cuda.to_device(x)], [*map(cuda.to_device, outputs(W))], bits(call(W, x))
    monkeypatch.setattr(api, "validate", None)
    for stream in (None, 0, cuda.stream()):
        call(*arrays, out=out, stream=stream)
        assert bits(out) == right


@pytest.mark.parametrize("given", [False, True])
def test_host_arrays_in_pieces(monkeypatch, given):
    """The same bits as in one piece: kernels on the caller's stream or ours, copies on a stream for each slot."""
    W, x = batch(*CLASSES["tiny"])
    right, out = bits(call(W, x)), outputs(W)
    kernels = cuda.stream() if given else NumbaLibrary().kernel_stream()
    monkeypatch.setattr(execute, "OFFLOAD_PIECE_BYTES", W[:60].nbytes)
    DRIVER.calls.clear()
    call(W, x, out=out, stream=stream_handle(kernels) if given else None)
    assert bits(out) == right
    assert functions(stream_handle(kernels)) == ["cuStreamWaitEvent", "cuLaunchKernelEx", "cuEventRecord"] * 5
    copies_in, copies_out = ["cuMemcpyHtoDAsync"] * 2, ["cuMemcpyDtoHAsync"] * 3
    piece = [*copies_in, "cuEventRecord", "cuStreamWaitEvent", *copies_out, "cuEventRecord"]
    slots = {stream for function, stream in DRIVER.calls if "Memcpy" in function}
    assert sorted(map(functions, slots), key=len) == [["cuStreamWaitEvent", *piece * k] for k in (1, 1, 1, 2)]


def test_sixteen_threads(monkeypatch):
    """Calls at once, on host and device arrays; a kernel that is new to all of them is compiled once."""
    batches, new = [batch(*CLASSES["tiny"]), batch(*CLASSES["split"])], batch(1, 1, 16400, "float32")
    right, start = [bits(call(*arrays)) for arrays in batches], threading.Barrier(16)
    kernels = importlib.import_module("sigmoid_l2.kernels.gpu.launch_numba")
    build = kernels.long_function
    monkeypatch.setattr(kernels, "long_function", lambda *key: time.sleep(0.3) or build(*key))  # so that all meet

    def work(k):
        start.wait(60)
        return bits(call(*new)), bits(call(*batches[k % 2])), bits(call(*map(cuda.to_device, batches[k % 2])))

    DRIVER.calls.clear()
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(work, range(16)))
    assert functions().count("cuLibraryLoadData") == 1
    assert found == [(bits(call(*new)), right[k % 2], right[k % 2]) for k in range(16)]


@pytest.mark.parametrize("for_good", [False, True])
def test_each_driver_call_fails(monkeypatch, for_good):
    """Each call in turn, alone or with all after it: only whole pieces are written, in order, and nothing leaks."""
    W, x = batch(12, 3, 3, "float32")
    right = call(W, x)
    monkeypatch.setattr(execute, "OFFLOAD_PIECE_BYTES", W[:4].nbytes)
    monkeypatch.setenv("SIGMOID_L2_DEVICE_MEMORY", "5920")  # two slots of four pairs, for three pieces
    before = forget()
    DRIVER.calls.clear()
    call(W, x)
    called = functions()
    assert (called.count("cuMemAlloc"), called.count("cuLaunchKernelEx")) == (10, 3)
    for number, function in enumerate(called):
        out, numbers = outputs(W), range(number, sys.maxsize if for_good else number + 1)
        tried_again = function == "cuMemAlloc" and not for_good  # numba-cuda frees what it can, and succeeds
        with DRIVER.failing(None, numbers), nullcontext() if tried_again else raises(function):
            call(W, x, out=out)
        done = next((k for k in (0, 4, 8) if np.isnan(out[0][k])), 12)
        assert (done == 12) == tried_again, f"call {number}, {function}, fails: {done} of 12 pairs are written"
        assert bits(a[:done] for a in out) == bits(a[:done] for a in right)
        assert all(np.isnan(a[done:]).all() for a in out)
        assert forget() == before, "something is left behind"
    assert bits(call(W, x)) == bits(right)


def test_value_and_grad_alone_after_failures():
    """With device arrays. A call that fails leaves no outputs behind, nor a part of a workspace."""
    W, x = batch(*CLASSES["split"])
    arrays, stream, right = (cuda.to_device(W), cuda.to_device(x)), cuda.stream(), bits(call(W, x))
    grad = partial(sl2.grad, backend="gpu")
    loading = [("cuLibraryLoadData", 0), ("cuLibraryGetKernel", 0)]  # functions, and their first call that fails
    launching = [("cuLaunchKernelEx", first) for first in range(2)]
    for run, failures in ((call, [("cuMemAlloc", first) for first in range(4)]), (grad, loading + launching)):
        before = forget()
        for function, first in failures:
            with DRIVER.failing(function, range(first, sys.maxsize)), raises(function):
                run(*arrays, stream=stream)
            assert forget() == before, "something is left behind"
        assert bits(run(*arrays, stream=stream))[-2:] == right[1:]
    assert bits([sl2.value(W, x, backend="numba-cuda")]) == right[:1]


def test_what_the_driver_notices():
    """A copy beyond an allocation, a double free, and a function that it does not have."""
    host = np.zeros(512, np.uint8)
    _, memory = binding.cuMemAlloc(100)
    assert (*binding.cuMemcpyDtoH(host, memory, 100), *binding.cuMemcpyDtoH(host, memory, 101)) == (0, 1)
    assert (*binding.cuMemFree(memory), *binding.cuMemFree(memory)) == (0, 1)
    with pytest.raises(RuntimeError, match="cuMemAllocManaged is not found"):
        binding.cuMemAllocManaged(100, 1)
