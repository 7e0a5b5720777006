"""``sigmoid_l2.jax.value``: its values, dtypes and errors, and what XLA calls. See test_jax_transformations.py, too."""

import mmap
import threading
from functools import partial
from types import SimpleNamespace

import fake_cupy
import fake_gpu
import numpy as np
import pytest
from arrays import bits, pairs
from contract import assert_contract
from processes import run_python

import sigmoid_l2 as sl2
from sigmoid_l2 import memory

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402 - after importorskip

import sigmoid_l2.jax as module  # noqa: E402
from sigmoid_l2.jax import value  # noqa: E402

CPU = next(info.name for info in sl2.backends() if info.available and info.device == "cpu")  # what "auto" takes


def gradients(W, x, y=None, cotangent=None):
    """The loss, dW and dx, computed by JAX under jit."""

    def both(W, x, y, cotangent):
        loss, backward = jax.vjp(lambda W, x: value(W, x, y), W, x)
        return loss, *backward(jnp.ones_like(loss) if cotangent is None else cotangent)

    return jax.jit(both)(W, x, y, cotangent)


# Values


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("batch", [(), (67,), (2, 3)])
def test_the_bits_of_plain_calls(batch, dtype):
    W, x = pairs(batch, 3, 3)
    y, cotangent = np.random.default_rng(0).random((2, *batch, 3))
    with jax.enable_x64(dtype == "float64"):
        W, x, y, cotangent = (jnp.asarray(a, dtype) for a in (W, x, y, cotangent[..., 0]))
        got = gradients(W, x, y, cotangent)
        expected = sl2.value_and_grad(*map(np.asarray, (W, x, y)), cotangent=np.asarray(cotangent))
        assert bits(map(np.asarray, got)) == bits(expected)
        without = jax.jit(jax.value_and_grad(lambda W, x: value(W, x).sum(), (0, 1)))(W[None], x[None])[1]
        assert bits(map(np.asarray, without)) == bits(sl2.grad(np.asarray(W)[None], np.asarray(x)[None]))


def test_the_bits_of_plain_calls_under_vmap():
    """The incoming gradient of each is the number 1, and the kernel is the one without a cotangent."""
    W, x = (jnp.asarray(a, jnp.float32) for a in pairs((67,), 3, 3))
    loss, given = jax.jit(jax.vmap(jax.value_and_grad(value, (0, 1))))(W, x)
    assert bits(map(np.asarray, (loss, *given))) == bits(sl2.value_and_grad(np.asarray(W), np.asarray(x)))
    twice = jax.jit(jax.vmap(jax.grad(lambda W, x: 2 * value(W, x))))(W, x)
    np.testing.assert_array_equal(twice, 2 * given[0])


@pytest.mark.parametrize("shared", [False, True])
def test_the_tails(shared):
    """Held to the contract for the targets 0 and 1, where JAX's own float32 gradients are 0."""
    q = np.linspace(-85, 85, 12, dtype=np.float32)
    x = np.stack([q, np.ones_like(q)], axis=-1)
    y = np.stack([np.zeros_like(q), np.ones_like(q)], axis=-1)
    W = np.float32([[1, 0.5], [1, -0.25]])
    W = W if shared else np.broadcast_to(W, (12, 2, 2)).copy()
    loss, dW, dx = map(np.asarray, gradients(*map(jnp.asarray, (W, x, y))))
    assert_contract(W, x, loss, dW, dx, target=y, cotangent=np.float32(1), backend=CPU)
    assert np.all(dx[np.abs(q) < 80] != 0)
    theirs = jax.grad(lambda x: ((jax.nn.sigmoid((W * x[:, None]).sum(-1)) - y) ** 2).sum())(jnp.asarray(x))
    assert not np.asarray(theirs)[q > 20].any()


@pytest.mark.parametrize(
    "dtypes", ["float32 bfloat16", "bfloat16 float16", "float16 int8", "int32 int32", "bool float32"]
)
@pytest.mark.parametrize("x64", [False, True])
def test_dtypes(dtypes, x64):
    """The loss has that to which JAX promotes W and x, and each gradient that of its input."""
    with jax.enable_x64(x64):
        W, x = (jnp.ones(s, d) for s, d in zip(((5, 3, 4), (5, 4)), dtypes.split(), strict=True))
        loss = jax.jit(value)(W, x, 1)
        assert loss.dtype == (W[:, 0] * x * 1.0).dtype
        assert not loss.weak_type
        for k, a in enumerate((W, x)):
            if jnp.issubdtype(a.dtype, jnp.floating):
                assert jax.grad(lambda *a: value(*a).sum(), k)(W, x).dtype == a.dtype


def test_targets_are_not_rounded_to_a_short_dtype():
    W, x = jnp.ones((1, 3), jnp.bfloat16), jnp.zeros(3, jnp.bfloat16)
    near = np.float32(0.5 + 2**-12)  # 0.5 in bfloat16
    assert value(W, x, near) == jnp.float32(2**-24).astype(jnp.bfloat16)
    assert value(W, x, jnp.float32(near)) == value(W, x, float(near)) == value(W, x, near)


@pytest.mark.parametrize("labels", [np.array([0, 1, 1]), np.array([False, True, True]), [0.0, 1.0, 1.0]])
def test_labels_and_what_is_no_jax_array(labels):
    W, x = pairs((5,), dtype=np.float32)
    given = gradients(jnp.asarray(W), jnp.asarray(x), jnp.asarray(labels))
    loss, dW = jax.value_and_grad(lambda W: value(W, x, labels).sum())(W)
    assert bits(map(np.asarray, (dW, value(W.tolist(), x.tolist(), labels)))) == bits(
        map(np.asarray, (given[1], given[0]))
    )
    assert loss.shape == ()


def test_columns():
    W, x = (jnp.asarray(a, jnp.float32) for a in pairs((5,)))
    y = jnp.ones((5, 3))
    loss, dW, dx = gradients(W, x[..., None], y[..., None])
    assert bits(map(np.asarray, (loss, dW, dx[..., 0]))) == bits(map(np.asarray, gradients(W, x, y)))


def test_without_jit():
    W, x = (jnp.asarray(a, jnp.float32) for a in pairs((5,)))
    with jax.disable_jit():
        given = jax.vmap(jax.grad(value, (0, 1)))(W, x)
    assert bits(map(np.asarray, given)) == bits(sl2.grad(np.asarray(W), np.asarray(x)))


def test_no_pairs():
    W, x = jnp.ones((3, 4)), jnp.ones((0, 4))
    loss, dW, dx = gradients(W, x)
    assert (loss.shape, dx.shape) == ((0,), (0, 4))
    np.testing.assert_array_equal(dW, np.zeros((3, 4)))
    assert [a.shape for a in gradients(jnp.ones((0, 3, 4)), x)] == [(0,), (0, 3, 4), (0, 4)]
    assert jax.vmap(jax.grad(value), (None, 0))(W, x).shape == (0, 3, 4)


def test_nan_stays_in_its_pair():
    W, x = (jnp.asarray(a, jnp.float32) for a in pairs((5,)))
    for a in gradients(W, x.at[2, 0].set(jnp.nan)):
        np.testing.assert_array_equal(np.isnan(np.asarray(a)).reshape(5, -1).any(axis=1), np.arange(5) == 2)


# What XLA calls


def test_inputs_are_read_where_they_are(monkeypatch):
    """And results written there: no array is copied on the way."""
    seen = []
    execute = module.execute
    monkeypatch.setattr(module, "execute", lambda problem, *rest: seen.append(problem) or execute(problem, *rest))
    W, x, y = jnp.ones((5, 3, 4)), jnp.ones((5, 4)), jnp.ones((5, 3))
    loss, (dW, dx) = jax.jit(jax.vmap(jax.value_and_grad(value, (0, 1))))(W, x, y)
    for problem in seen:
        assert problem.plain
        for a, b in ((problem.W, W), (problem.x, x), (problem.target, y)):
            assert a.ctypes.data == b.unsafe_buffer_pointer()
    written = {a.ctypes.data for problem in seen for a in problem.out}
    assert {a.unsafe_buffer_pointer() for a in (loss, dW, dx)} <= written


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has none")
def test_large_results_get_huge_pages(monkeypatch):
    asked = []
    monkeypatch.setattr(memory, "_madvise", lambda *given: asked.append([getattr(a, "value", a) for a in given]))
    W, x = jnp.ones((120_000, 3, 3)), jnp.ones((120_000, 3))
    dW = jax.block_until_ready(jax.jit(jax.vmap(jax.grad(value)))(W, x))
    ((first, nbytes, advice),) = asked  # for dW alone
    begin = dW.unsafe_buffer_pointer()
    assert first % mmap.PAGESIZE == nbytes % mmap.PAGESIZE == 0
    assert begin <= first < begin + mmap.PAGESIZE
    assert 0 <= begin + dW.nbytes - (first + nbytes) < mmap.PAGESIZE
    assert advice == mmap.MADV_HUGEPAGE


def test_donated_memory_is_used_again():
    W, x = (jnp.asarray(a, jnp.float32) for a in pairs((500,), 3, 3))
    expected = sl2.grad(np.asarray(W).copy(), np.asarray(x), wrt="W")
    step = jax.jit(lambda W, x: W - jax.vmap(jax.grad(value))(W, x), donate_argnums=0)
    before = np.asarray(W).copy()
    np.testing.assert_allclose(step(W, x), before - expected, rtol=1e-6)
    assert W.is_deleted()


@pytest.mark.parametrize("error", [MemoryError("no memory left"), sl2.BackendUnavailableError("no backend")])
def test_an_error_in_the_kernel_reaches_the_caller(monkeypatch, error):
    def fail(*_):
        raise error

    W, x = jnp.ones((5, 3, 4)), jnp.ones((5, 4))
    with monkeypatch.context() as patch:
        patch.setattr(module, "execute", fail)
        for call in (value, jax.jit(value)):
            with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match=f"{type(error).__name__}: {error}"):
                jax.block_until_ready(call(W, x))
    assert value(W, x).shape == (5,)


def test_calls_from_many_threads():
    """XLA's threads wait for those of the kernel, which never wait for XLA's."""
    W, x = (jnp.asarray(a, jnp.float32) for a in pairs((20_000,), 3, 3))
    step = jax.jit(jax.vmap(jax.value_and_grad(value, (0, 1))))
    total = jax.jit(jax.grad(lambda W, x: jax.vmap(value, (None, 0))(W, x).sum()))
    expected = bits(map(np.asarray, (*jax.tree.leaves(step(W, x)), total(W[0], x))))
    same = []

    def work():
        for _ in range(4):
            results = [(*jax.tree.leaves(step(W, x)), total(W[0], x)) for _ in range(4)]  # queued, then waited for
            same.extend(bits(map(np.asarray, given)) == expected for given in results)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    assert len(same) == 128
    assert all(same)


def test_a_list_that_holds_what_jit_follows():
    W, x = jnp.ones((2, 3, 4)), jnp.ones((2, 4))
    found = jax.jit(lambda a: value(W, x, [a, 0.0, 1.0]))(0.5)
    assert found.tolist() == value(W, x, jnp.array([0.5, 0.0, 1.0])).tolist()


# What is refused


W, x = jnp.ones((5, 3, 4)), jnp.ones((5, 4))
REFUSED = {
    "jvp": (lambda: jax.jvp(value, (W, x), (W, x)), NotImplementedError, "forward-mode .* jax.grad"),
    "jit of jvp": (lambda: jax.jit(lambda: jax.jvp(value, (W, x), (W, x)))(), NotImplementedError, "forward-mode"),
    "linearize": (lambda: jax.linearize(value, W, x)[1](W, x), NotImplementedError, "forward-mode"),
    "jacfwd": (lambda: jax.jacfwd(value)(W, x), NotImplementedError, "forward-mode"),
    "hessian": (lambda: jax.hessian(lambda x: value(W, x).sum())(x), NotImplementedError, "second derivatives"),
    "grad of grad": (
        lambda: jax.grad(lambda x: (jax.grad(lambda x: value(W, x).sum())(x) ** 2).sum())(x),
        NotImplementedError,
        "second derivatives.*stop_gradient.*jax.numpy",
    ),
    "jit of grad of grad in another": (
        lambda: jax.jit(jax.grad(lambda x: jax.grad(lambda W: value(W, x).sum())(W).sum()))(x),
        NotImplementedError,
        "second derivatives",
    ),
    "jvp of grad": (
        lambda: jax.jvp(jax.grad(lambda x: value(W, x).sum()), (x,), (x,)),
        NotImplementedError,
        "second derivatives",
    ),
    "grad in target": (lambda: jax.grad(lambda y: value(W, x, y).sum())(jnp.ones(3)), TypeError, "stop_gradient"),
    "a target that depends": (
        lambda: jax.jit(jax.grad(lambda x: value(W, x, x[:, :3]).sum()))(x),
        TypeError,
        r"not differentiated in target.*stop_gradient\(target\)",
    ),
    "shapes": (lambda: jax.jit(value)(W, x[:, :3]), ValueError, r"W \(5, 3, 4\) and x \(5, 3\)"),
    "batches": (lambda: value(W, x[:4]), ValueError, "do not broadcast"),
    "target": (lambda: value(W, x, jnp.ones(4)), ValueError, r"target must have shape \(\.\.\., 3\)"),
    "complex": (lambda: value(W, x * 1j), TypeError, "x has dtype complex64; supported are float16"),
    "a complex target": (lambda: value(W, x, jnp.full(3, 1 + 5j)), TypeError, "target has dtype complex64"),
    "a complex number under jit": (lambda: jax.jit(value)(W, x, 1 + 5j), TypeError, "target has dtype complex"),
    "keys": (lambda: value(W, x, jax.random.split(jax.random.key(0), 3)), TypeError, "target has dtype key"),
    "float8": (lambda: value(W.astype("float8_e4m3fn"), x.astype("float8_e4m3fn")), TypeError, "float8"),
    "a masked array": (lambda: value(np.ma.masked_array(np.ones((3, 4))), x), TypeError, "mask"),
    "strings": (lambda: value([["a"]], [1.0]), TypeError, "W has dtype"),
    "a platform": (
        lambda: jax.jit(value).trace(W, x).lower(lowering_platforms=("tpu",)),
        NotImplementedError,
        "the CPU and on CUDA devices, not on tpu",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("missing", ["jax", "jax.experimental.buffer_callback"])
def test_an_older_jax_is_named(missing):
    code = f"""
import sys
import sigmoid_l2
assert "jax" not in sys.modules
sys.modules[{missing!r}] = None  # importing it raises ImportError
try:
    import sigmoid_l2.jax
except ImportError as error:
    print(error)
"""
    message = run_python(code, PYTHONWARNINGS="ignore")
    assert "sigmoid_l2.jax needs JAX 0.8 to 0.10" in message
    assert "pip install 'jax>=0.8,<0.11'" in message


@pytest.mark.parametrize("lacking", ["jax.typeof", "jax.interpreters.ad.primitive_jvps"])
def test_another_jax_is_named(lacking):
    where, name = lacking.rsplit(".", 1)
    code = f"""
import {where}
del {lacking}
try:
    import sigmoid_l2.jax
except ImportError as error:
    print(error)
"""
    message = run_python(code, PYTHONWARNINGS="ignore")
    assert "sigmoid_l2.jax needs JAX 0.8 to 0.10" in message
    assert name in message


# Several devices, and CUDA without a GPU


def test_it_is_lowered_for_cuda():
    for f in (value, jax.grad(lambda W, x: value(W, x).sum())):
        assert "python_gpu_callback" in jax.jit(f).trace(W, x).lower(lowering_platforms=("cuda",)).as_text()


ON_TWO_DEVICES = """
import numpy as np, jax, jax.numpy as jnp
import sigmoid_l2 as sl2
from sigmoid_l2.jax import value
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

rng = np.random.default_rng(0)
W, x = rng.standard_normal((4, 3, 4)).astype("f4"), rng.standard_normal((4, 4)).astype("f4")
mesh = jax.make_mesh((2,), ("i",), axis_types=(AxisType.Auto,))
sharded = [jax.device_put(a, NamedSharding(mesh, P("i"))) for a in (W, x)]
each = jax.vmap(jax.value_and_grad(value, (0, 1)))
expected = sl2.value_and_grad(W, x)

def check(results):
    for a, b in zip(jax.tree.leaves(results), expected, strict=True):
        np.testing.assert_array_equal(a, b)

check(jax.jit(each)(*sharded))  # gathered
spread = dict(mesh=mesh, out_specs=P("i"), check_vma=False)
check(jax.jit(jax.shard_map(each, in_specs=P("i"), **spread))(*sharded))
loss = jax.shard_map(value, in_specs=(P(), P("i")), **spread)
dW = jax.jit(jax.grad(lambda W, x: loss(W, x).sum()))(W[0], sharded[1])
np.testing.assert_allclose(dW, sl2.grad(W[0], x, wrt="W"), rtol=1e-5)
check(jax.tree.map(lambda a: a.reshape(4, *a.shape[2:]), jax.pmap(each)(W.reshape(2, 2, 3, 4), x.reshape(2, 2, 4))))
try:
    jax.shard_map(value, mesh=mesh, in_specs=P("i"), out_specs=P("i"))(*sharded)
except NotImplementedError as error:
    print(error)
"""


def test_several_devices():
    printed = run_python(ON_TWO_DEVICES, XLA_FLAGS="--xla_force_host_platform_device_count=2", PYTHONWARNINGS="ignore")
    assert printed == "W varies over devices: under jax.shard_map pass check_vma=False to it\n"


class Buffer:
    """What XLA gives to the function on a CUDA device, as far as that is known: it is read by the array interface."""

    def __init__(self, held):
        self.held = held

    def __dlpack_device__(self):
        return 2, 0

    @property
    def __cuda_array_interface__(self):
        return {k: v for k, v in self.held.__cuda_array_interface__.items() if k != "stream"}


@pytest.mark.parametrize("shared", [False, True])
def test_the_calls_on_a_cuda_device(monkeypatch, shared):
    """On XLA's stream, in XLA's memory, and nobody waits; with a stand-in for CuPy."""
    cupy = fake_cupy.install(monkeypatch)
    monkeypatch.setattr(module, "why_not", lambda probe: None)
    W, x = pairs((5,), dtype=np.float32)
    W = W[0] if shared else W
    cotangent = np.linspace(-1, 1, 5, dtype=np.float32)
    arrays = {"W": W, "x": x, "cotangent": cotangent}
    out = [cupy.empty(a.shape, np.float32) for a in (W, x)]
    call = module.Call(("dW", "dx"), tuple(arrays), W.shape, x.shape)
    fake_gpu.log.clear()
    inputs = [Buffer(cupy.asarray(a)) for a in arrays.values()]
    module._run(call, SimpleNamespace(stream=77), [*map(Buffer, out)], *inputs)
    kernels = [entry for entry in fake_gpu.log if entry[0] == "kernel"]
    assert kernels
    assert {stream for _, stream in kernels} == {77}
    assert not [entry for entry in fake_gpu.log if entry[0] in ("synchronize", "wait", "record")]
    for got, expected in zip(out, sl2.grad(W, x, cotangent=cotangent, backend="numpy"), strict=True):
        np.testing.assert_allclose(np.asarray(got), expected, rtol=1e-5)


def test_a_cuda_device_without_cupy(monkeypatch):
    monkeypatch.setattr(module, "why_not", lambda probe: "cupy is not installed: pip install it")
    inputs = [Buffer(np.ones((3, 4)).view(fake_cupy.ndarray))]
    call = partial(module._run, module.Call(("loss",), ("W", "x"), (3, 4), (4,)))
    with pytest.raises(sl2.BackendUnavailableError, match="needs CuPy on a CUDA device: cupy is not installed"):
        call(SimpleNamespace(stream=77), [], *inputs)


@pytest.mark.gpu
def test_on_a_gpu():
    if jax.default_backend() != "gpu":
        pytest.skip("needs JAX with CUDA, and a GPU")
    W, x, y = (
        jax.random.normal(jax.random.key(k), shape) for k, shape in enumerate(((1000, 3, 4), (1000, 4), (1000, 3)))
    )
    expected = sl2.value_and_grad(*map(np.asarray, (W, x, y)), backend="numpy")
    loss = jax.jit(value)(W, x, y)
    gradients = jax.jit(jax.vmap(jax.grad(value, (0, 1))))(W, x, y)
    total = jax.jit(jax.grad(lambda w: value(w, x, y).sum()))(W[0])
    for got, right in zip((loss, *gradients), expected, strict=True):
        np.testing.assert_allclose(np.asarray(got), right, rtol=1e-5, atol=1e-6)
    right = sl2.grad(np.asarray(W[0]), np.asarray(x), np.asarray(y), wrt="W", backend="numpy")
    np.testing.assert_allclose(np.asarray(total), right, rtol=1e-4, atol=1e-3)
