"""Tensors of PyTorch and arrays of JAX in host memory: the same kind out, and nothing copied.

The results must have the bits that NumPy's arrays of the same numbers give.
"""

import sys
import threading
import warnings

import numpy as np
import pytest
from arrays import CALLS, pairs
from processes import run_python

import sigmoid_l2 as sl2
from sigmoid_l2 import memory
from sigmoid_l2.problem import on_host, validate

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
jnp = jax.numpy


def of_torch(a):
    return torch.from_numpy(np.ascontiguousarray(a))


LIBRARIES = {"torch": (of_torch, torch.Tensor), "jax": (jnp.asarray, jax.Array)}


@pytest.fixture(params=LIBRARIES)
def library(request):
    """A function that makes an array of a library, and the class of its arrays."""
    return LIBRARIES[request.param]


def same(got, expected):
    """Whether these results have the bits of those of NumPy."""
    return all(
        (np.shape(a), np.asarray(a).tobytes()) == (b.shape, np.ascontiguousarray(b).tobytes())
        for a, b in zip(got, expected, strict=True)
    )


CASES = {  # W, x, target and options
    "pairs": lambda: (*pairs((5,), dtype="f4"), None, {}),
    "float64 with a target": lambda: (*pairs((5,)), np.linspace(0, 1, 15).reshape(5, 3), {}),
    "one pair": lambda: (*pairs((), dtype="f4"), np.float32(1), {}),
    "no pairs": lambda: (*pairs((0,), dtype="f4"), None, {"wrt": ("W", "x", "q")}),
    "one W": lambda: (pairs((), dtype="f4")[0], pairs((7,), dtype="f4")[1], None, {"wrt": ("q", "W")}),
    "one x of no pairs": lambda: (pairs((0,), dtype="f4")[0], pairs((), dtype="f4")[1], None, {"wrt": ("x",)}),
    "models": lambda: (pairs((2, 1), dtype="f4")[0], pairs((2, 9), dtype="f4")[1], 0.5, {}),
    "columns": lambda: (
        pairs((5,), dtype="f4")[0],
        pairs((5,), dtype="f4")[1][..., None],
        np.ones((5, 3, 1), "f4"),
        {},
    ),
    "a cotangent": lambda: (*pairs((5,), dtype="f4"), 1, {"cotangent": np.arange(5.0)}),
    "in numpy": lambda: (*pairs((5,), dtype="f4"), None, {"backend": "numpy"}),
}


@pytest.mark.parametrize("case", CASES)
def test_same_kind_and_bits(library, case):
    make, kind = library
    W, x, target, options = CASES[case]()
    expected = sl2.value_and_grad(W, x, target, **options)
    with jax.enable_x64(True):
        given = [a if a is None or np.isscalar(a) else make(a) for a in (W, x, target)]
        got = sl2.value_and_grad(*given, **options)
        assert all(isinstance(a, kind) for a in got)
        assert type(got) is type(expected)
        assert same(got, expected)
        assert isinstance(sl2.value(*given), kind)
        assert isinstance(sl2.grad(*given, wrt="x"), kind)


TENSORS = {
    "strided": lambda a: of_torch(np.repeat(a, 2, axis=-1))[..., ::2],
    "transposed": lambda a: of_torch(np.swapaxes(a, -1, -2)).transpose(-1, -2),
    "pairs last": lambda a: of_torch(np.moveaxis(a, 0, -1)).movedim(-1, 0),
    "at an offset": lambda a: of_torch(np.concatenate([a[:1], a]))[1:],
    "flipped": lambda a: torch.flip(of_torch(np.flip(a, 0).copy()), [0]),
    "an inference tensor": lambda a: inference(of_torch(a)),
    "a subclass": lambda a: of_torch(a).as_subclass(Tensor),
    "a parameter without a gradient": lambda a: torch.nn.Parameter(of_torch(a), requires_grad=False),
    "detached": lambda a: of_torch(a).clone().requires_grad_().detach(),
}


class Tensor(torch.Tensor):
    """A tensor of a user's own class."""


def inference(a):
    with torch.inference_mode():
        return a * 1


@pytest.mark.parametrize("way", TENSORS)
def test_any_layout_is_read_in_place(way, monkeypatch):
    W, x = pairs((6,), dtype="f4")
    given = TENSORS[way](W), of_torch(x)
    problem = validate(*given)
    assert problem.W.ctypes.data == given[0].data_ptr()
    assert problem.W.strides == tuple(4 * step for step in given[0].stride())
    assert problem.x.ctypes.data == given[1].data_ptr()
    got = sl2.value_and_grad(*given)
    assert all(type(a) is torch.Tensor for a in got)
    expected = sl2.value_and_grad(np.array(problem.W, order="K", copy=True), x)
    assert same(got, expected)
    assert got.dW.stride() == tuple(step // 4 for step in expected.dW.strides)


def test_expanded_tensors_are_many_pairs():
    W, x = pairs((1,), dtype="f4")
    got = sl2.value_and_grad(of_torch(W).expand(6, 3, 4), of_torch(x).expand(6, 4))
    assert got.dW.shape == (6, 3, 4)
    assert same(got, sl2.value_and_grad(np.broadcast_to(W, (6, 3, 4)), np.broadcast_to(x, (6, 4))))


DTYPES = ["bool", "uint8", "int64", "float16", "bfloat16", "float32", "float64"]


def promoted(W, x):
    """The dtype of W * x * 1.0 in their library."""
    return (W * x[..., None, :] * 1.0).dtype


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("of_W", DTYPES)
def test_the_dtype_is_by_the_library_s_own_promotion(of_W, x64):
    W, x = np.ones((2, 3, 4)), np.ones((2, 4))
    with jax.enable_x64(x64):
        there = [name for name in DTYPES if x64 or "64" not in name]
        for of_x in there if of_W in there else ():
            given = jnp.asarray(W, of_W), jnp.asarray(x, of_x)
            assert {a.dtype for a in sl2.value_and_grad(*given)} == {promoted(*given)}, of_x
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if x64 else torch.float32)
    try:
        for of_x in DTYPES:
            given = torch.tensor(W).to(getattr(torch, of_W)), torch.tensor(x).to(getattr(torch, of_x))
            assert {a.dtype for a in sl2.value_and_grad(*given)} == {promoted(*given)}, of_x
    finally:
        torch.set_default_dtype(before)


def test_what_is_not_an_array_has_the_library_s_default_dtype():
    W = np.ones((3, 4), "f4")
    for x in ([0.5, 1, 2, 3], [1, 2, 3, 4]):
        assert sl2.value(of_torch(W), x).dtype == torch.float32
        assert sl2.value(jnp.asarray(W), x).dtype == jnp.float32
        assert sl2.value(of_torch(W), np.array(x)).dtype == (torch.float64 if 0.5 in x else torch.float32)
    assert sl2.value(of_torch(W.astype(int)), [1, 2, 3, 4]).dtype == torch.float32
    unsigned = of_torch(W).to(torch.uint16)  # for which PyTorch has no promotion beside another integer
    assert sl2.value(unsigned, of_torch(W[0]).int()).dtype == torch.float32
    assert sl2.value(W.astype(int), of_torch(W[0].astype(int))).dtype == np.float64, "NumPy's rule for NumPy's W"


def test_float64_of_jax_where_x64_is_off():
    """JAX itself warns and rounds to float32; W and x are read as they are."""
    W, x = pairs((5,))
    with jax.enable_x64(True):
        given = jnp.asarray(W), jnp.asarray(x)
    got = sl2.value_and_grad(*given)
    assert {a.dtype for a in got} == {np.dtype("float32")}
    assert same(got, sl2.value_and_grad(W.astype("f4"), x.astype("f4")))


def test_bfloat16_is_that_of_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    W, x = (a.astype(ml_dtypes.bfloat16) for a in pairs((5,)))
    expected = sl2.value_and_grad(W, x)
    tensors = [of_torch(a.view("i2")).view(torch.bfloat16) for a in (W, x)]
    got = sl2.value_and_grad(*tensors)
    assert {a.dtype for a in got} == {torch.bfloat16}
    assert same([a.view(torch.int16) for a in got], [a.view("i2") for a in expected])
    out = [torch.full_like(a, torch.nan) for a in got]
    sl2.value_and_grad(*tensors, out=out)
    assert all(torch.equal(a, b) for a, b in zip(got, out, strict=True))
    assert same(sl2.value_and_grad(jnp.asarray(W), jnp.asarray(x)), expected)


MIXED = {  # W, x and target, of which W says what comes out
    "x of NumPy": lambda W, x: (of_torch(W), x, None),
    "x of JAX": lambda W, x: (of_torch(W), jnp.asarray(x), 1.0),
    "a target of PyTorch, one number": lambda W, x: (W, x, torch.tensor(1.0)),
    "a target of JAX": lambda W, x: (W, x, jnp.ones(3)),
    "a number of NumPy": lambda W, x: (jnp.asarray(W), jnp.asarray(x), np.float64(1)),
    "x backwards": lambda W, x: (of_torch(W), x[:, ::-1], torch.tensor([1, 0, 1])),
    "x of the other byte order": lambda W, x: (of_torch(W), x.astype(">f4"), None),
    "lists": lambda W, x: (jnp.asarray(W), x.tolist(), [1, 0, 1]),
    "a list of tensors": lambda W, x: ([*of_torch(W)], [*jnp.asarray(x)], None),
}


@pytest.mark.parametrize("case", MIXED)
def test_other_operands_may_be_of_any_kind(case):
    arrays = pairs((5,), dtype="f4")
    W, x, target = MIXED[case](*arrays)
    got = sl2.value_and_grad(W, x, target)
    kind = np.ndarray if isinstance(W, list) else type(W)
    assert all(isinstance(a, kind) for a in got)
    read = (None if a is None else np.asarray(a, None if np.shape(a) != (5, 4) else "f4") for a in (W, x, target))
    assert same(got, sl2.value_and_grad(*read))


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 30_000], ids=["small", "of more than 1 MiB"])
def test_results_are_given_without_a_copy(library, count, monkeypatch):
    make, kind = library
    made = []
    for name in ("empty", "empty_on_a_line"):
        function = getattr(memory, name)
        monkeypatch.setattr(memory, name, lambda *a, function=function: made.append(function(*a)) or made[-1])
    monkeypatch.setattr(np, "empty", lambda *a, empty=np.empty: made.append(empty(*a)) or made[-1])
    given = [*map(make, pairs((count,), dtype="f4"))]
    got = sl2.value_and_grad(*given)
    monkeypatch.undo()
    addresses = {a.ctypes.data for a in made}
    for a in got:
        assert (a.data_ptr() if kind is torch.Tensor else a.unsafe_buffer_pointer()) in addresses


def test_an_array_of_jax_is_read_in_place():
    W, x = map(jnp.asarray, pairs((5,), dtype="f4"))
    problem = validate(W, x)
    assert problem.W.ctypes.data == W.unsafe_buffer_pointer()
    assert problem.x.ctypes.data == x.unsafe_buffer_pointer()


def test_the_memory_of_a_result_is_not_used_again_while_it_is_held(library):
    make, _ = library
    W, x = map(make, pairs((memory.KEPT_BYTES // 48,), dtype="f4"))
    held = sl2.grad(W, x, wrt="W")
    before = np.asarray(held).copy()
    for _ in range(2):
        sl2.grad(2 * W, x, wrt="W")
    assert np.array_equal(np.asarray(held), before)


@pytest.mark.parametrize("call", CALLS)
def test_out_of_tensors(call):
    W, x = map(of_torch, pairs((5,), dtype="f4"))
    expected = getattr(sl2, call)(W, x)
    if call == "value":
        out = torch.full_like(expected, torch.nan)
        assert sl2.value(W, x, out=out) is out
        assert torch.equal(out, expected)
        return
    out = tuple(torch.full((*a.shape[:-1], 2 * a.shape[-1]), torch.nan)[..., ::2] for a in expected)
    got = getattr(sl2, call)(W, x, out=out)
    assert all(a is b and torch.equal(a, c) for a, b, c in zip(got, out, expected, strict=True))


def test_out_is_known_to_autograd_as_written():
    """PyTorch refuses backward through values that have been overwritten."""
    W, x = map(of_torch, pairs((5,), dtype="f4"))
    weight = torch.ones(5, requires_grad=True)
    out = torch.ones(5)
    product = weight * out
    sl2.value(W, x, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


OUT = {  # dW or another result, given W (5, 3, 4) and the right dW; words of the ValueError
    "of NumPy": (lambda W, dW: dW.numpy(), "out: dW must be a torch.Tensor in host memory, like W, not numpy.ndarray"),
    "of another dtype": (lambda W, dW: dW.double(), "out: dW must have dtype float32, not float64"),
    "of another shape": (lambda W, dW: dW[0], r"out: dW must have shape \(5, 3, 4\), not \(3, 4\)"),
    "W": (lambda W, dW: W, "out: dW shares memory with W"),
    "expanded": (lambda W, dW: dW[:1].expand(5, 3, 4), "in which elements share memory"),
    "that requires a gradient": (
        lambda W, dW: dW.clone().requires_grad_(),
        "out: dW is a tensor that requires a gradient",
    ),
    "sparse": (lambda W, dW: dW.to_sparse(), "out: dW is a tensor with the layout torch.sparse_coo"),
    "without numbers": (lambda W, dW: dW.to("meta"), "out: dW is a tensor on the device meta"),
}


@pytest.mark.parametrize(("give", "words"), OUT.values(), ids=OUT)
def test_refused_output(give, words):
    W, x = map(of_torch, pairs((5,), dtype="f4"))
    loss, dW, dx = (torch.full(shape, 7.0) for shape in ((5,), (5, 3, 4), (5, 4)))
    with pytest.raises(ValueError, match=words):
        sl2.value_and_grad(W, x, out=(loss, give(W, dW), dx))
    assert all((a == 7).all() for a in (loss, dW, dx)), "something was written"


def test_refused_output_of_other_libraries():
    W, x = pairs((5,), dtype="f4")
    with pytest.raises(ValueError, match="out must be left away for a W of JAX, whose arrays cannot be written to"):
        sl2.value(jnp.asarray(W), x, out=np.empty(5, "f4"))
    for a in (torch.empty(5), jnp.empty(5)):
        with pytest.raises(ValueError, match=r"out: loss must be a numpy.ndarray, like the inputs, not (torch|jaxlib)"):
            sl2.value(W, x, out=a)


# --- gradients and transforms -----------------------------------------------------------------------------------------

GRADIENT = (
    "is a tensor that requires a gradient; use sigmoid_l2.torch.value, which has a gradient, or pass it with .det"
)


@pytest.mark.parametrize("name", ["W", "x", "target", "cotangent"])
def test_a_tensor_that_requires_a_gradient(name):
    W, x = map(of_torch, pairs((5,), dtype="f4"))
    given = {"W": W, "x": x, "target": torch.ones(3), "cotangent": torch.ones(5)}
    expected = sl2.value_and_grad(**given)
    given[name] = given[name].clone().requires_grad_()
    with pytest.raises(TypeError, match=f"^{name} {GRADIENT}"):
        sl2.value_and_grad(**given)
    with pytest.raises(TypeError, match=f"^{name} {GRADIENT}"):
        sl2.value_and_grad(**{**given, "W": W.numpy()} if name != "W" else given)
    for switched_off in (torch.no_grad, torch.inference_mode):
        with switched_off():
            got = sl2.value_and_grad(**given)
        assert all(torch.equal(a, b) and not a.requires_grad for a, b in zip(got, expected, strict=True))
    given[name] = given[name].detach()
    assert torch.equal(sl2.value_and_grad(**given).loss, expected.loss)


def test_a_gradient_in_a_list_and_in_the_explanations():
    W, x = map(of_torch, pairs((), dtype="f4"))
    row = torch.ones(4, requires_grad=True)
    with pytest.raises(TypeError, match=f"^what W holds {GRADIENT}"):
        sl2.value([row, row], x)
    with pytest.raises(TypeError, match=f"^x {GRADIENT}"):
        sl2.trace(W, row)
    with pytest.raises(TypeError, match=f"^dx {GRADIENT}"):
        sl2.check_grad(W, x, dx=row)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # which PyTorch's own modules use
def test_transforms_of_torch():
    W, x = map(of_torch, pairs((5,), dtype="f4"))
    calls = {
        "grad": lambda: torch.func.grad(lambda W: sl2.value(W, x).sum())(W),
        "vmap": lambda: torch.func.vmap(lambda W: sl2.value(W, x[0]))(W),
        "jvp": lambda: torch.func.jvp(lambda W: sl2.value(W, x), (W,), (W,)),
        "functionalize": lambda: torch.func.functionalize(lambda W: sl2.value(W, x))(W),
    }
    for call in calls.values():
        with pytest.raises(TypeError, match=r"W is a tensor of a transform of torch\.func; use sigmoid_l2\.torch"):
            call()
    with pytest.raises(
        TypeError, match=r"W is a value of torch\.fx, which traces a program; use sigmoid_l2.torch.value"
    ):
        torch.fx.symbolic_trace(lambda W: sl2.value(W, x))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(W, W)
        with pytest.raises(TypeError, match="W is a tensor with a tangent"):
            sl2.value(dual, x)
        assert sl2.value(W, x).shape == (5,)


def test_transforms_of_jax():
    W, x = map(jnp.asarray, pairs((5,), dtype="f4"))
    for transform in (jax.jit, jax.vmap, jax.grad, jax.make_jaxpr):
        with pytest.raises(
            TypeError, match=r"^W is an array of a transform of JAX, such as jit; use sigmoid_l2\.jax\."
        ):
            transform(lambda W: sl2.value(W, x[0]).sum())(W)
        with pytest.raises(TypeError, match=r"^target is an array of a transform of JAX"):
            transform(lambda y: sl2.value(np.ones((3, 4)), np.ones(4), y).sum())(W[0, 0])


def quantized(a):
    with warnings.catch_warnings(action="ignore"):  # that it will be removed from PyTorch
        return torch.quantize_per_tensor(a, 0.1, 0, torch.qint8)


def fake(a):
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode().from_tensor(a)


class Elsewhere(torch.Tensor):
    """A tensor that says it is on a device that this machine does not have."""

    device = property(lambda self: torch.device("xpu", 0))

    def numpy(self):
        raise TypeError("can't convert xpu:0 device type tensor to numpy")


WITHOUT_VIEW = {
    "sparse": (lambda a: a.to_sparse(), r"W is a tensor with the layout torch\.sparse_coo; pass W\.to_dense\(\)"),
    "of MKL-DNN": (lambda a: a.to_mkldnn(), r"W is a tensor with the layout torch\._mkldnn; pass W\.to_dense\(\)"),
    "nested": (lambda a: torch.nested.as_nested_tensor([*a], layout=torch.jagged), r"W is a nested tensor; call once"),
    "meta": (lambda a: a.to("meta"), "W is a tensor on the device meta, which has no numbers"),
    "fake": (fake, r"FakeTensor, cannot be read as an array: .*; where .* use sigmoid_l2\.torch\.value"),
    "on another device": (lambda a: a.as_subclass(Elsewhere), r"W is a tensor on the device xpu:0; pass W\.cpu\(\)"),
    "conjugated": (
        lambda a: torch.complex(a, a).conj().imag,
        r"W is a tensor whose numbers are still to be conjugated; pass W\.resolve_conj\(\)\.resolve_neg\(\)",
    ),
    "of 8-bit floats": (lambda a: a.to(torch.float8_e4m3fn), r"W has dtype torch\.float8_e4m3fn, which NumPy does not"),
    "quantized": (quantized, r"W is a quantized tensor; pass W\.dequantize\(\)"),
    "complex": (lambda a: a.to(torch.complex64), "W has dtype complex64; supported are"),
}


@pytest.mark.parametrize(("give", "words"), WITHOUT_VIEW.values(), ids=WITHOUT_VIEW)
def test_a_tensor_without_a_view(give, words):
    W, x = map(of_torch, pairs((5,), dtype="f4"))
    with pytest.raises(TypeError, match=words):
        sl2.value(give(W), x)


def test_bfloat16_without_ml_dtypes(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(
        TypeError, match=r"W has dtype torch\.bfloat16, for which NumPy needs the package ml_dtypes: pip"
    ):
        sl2.value(torch.ones(3, 4, dtype=torch.bfloat16), torch.ones(4))


def test_an_array_of_jax_without_numbers():
    W, x = pairs((5,), dtype="f4")
    deleted = jnp.asarray(W)
    deleted.delete()
    with pytest.raises(TypeError, match="W, an array of JAX, cannot be read: Array has been deleted"):
        sl2.value(deleted, x)
    with pytest.raises(TypeError, match=r"x, an array of JAX, cannot be read: .*PRNGKey"):
        sl2.value(W, jax.random.key(0))


ON_FOUR_DEVICES = """
import jax, jax.numpy as jnp, numpy as np, sigmoid_l2 as sl2
from jax.sharding import NamedSharding, PartitionSpec
W, x = np.ones((4, 3, 2), "f4"), np.ones((4, 2), "f4")
expected = sl2.value_and_grad(W, x)
second = jax.devices()[1]
for a in sl2.value_and_grad(*jax.device_put((W, x), second)):
    assert a.devices() == {second} and a.committed
assert not sl2.value(jnp.asarray(W), jnp.asarray(x)).committed  # W's place was nobody's choice
mesh = jax.make_mesh((4,), ("pairs",))
spread = jax.device_put(W, NamedSharding(mesh, PartitionSpec("pairs")))
for given in ((spread, x), (W, jax.device_put(x, NamedSharding(mesh, PartitionSpec())))):
    try:
        sl2.value(*given)
    except TypeError as error:
        print(error)
"""


def test_several_devices_of_jax():
    printed = run_python(ON_FOUR_DEVICES, XLA_FLAGS="--xla_force_host_platform_device_count=4", PYTHONWARNINGS="ignore")
    message = "{0} is an array of JAX spread over 4 devices; pass numpy.asarray({0}), a copy in host memory\n"
    assert printed == message.format("W") + message.format("x")


def test_strict_promotion_of_jax():
    W, x = pairs((5,), dtype="f4")
    with jax.numpy_dtype_promotion("strict"):
        assert sl2.value(jnp.asarray(W), jnp.asarray(x)).dtype == jnp.float32
        with pytest.raises(TypeError, match="W and x have no common dtype in JAX: "):
            sl2.value(jnp.asarray(W), jnp.asarray(x, "bfloat16"))


# --- torch.compile, threads, explanations, imports --------------------------------------------------------------------

COMPILED = """
import warnings
warnings.filterwarnings("ignore", "Function should not be instantiated")  # of Dynamo itself
import torch, sigmoid_l2 as sl2
W, x, y = torch.randn(5, 3, 4), torch.randn(5, 4), torch.rand(5, 3)

def step(W, x, y):
    loss, dW, dx = sl2.value_and_grad(2 * W, x, y)
    return loss + 1, dW, sl2.grad(W, x, wrt="x") + dx, sl2.value(W, x, y, out=torch.empty(len(W)))

compiled = torch.compile(step, backend="eager")
for given in ((W, x, y), (W[:3], x[:3], y[:3])):
    for a, b in zip(compiled(*given), step(*given), strict=True):
        assert type(a) is torch.Tensor and torch.equal(a, b)
assert torch.equal(torch.compile(sl2.value, backend="eager")(W, x), sl2.value(W, x))
numbers = torch.compile(lambda W, x: sl2.value_and_grad(W, x).dW, backend="eager")
assert (numbers(W.numpy(), x.numpy()) == sl2.value_and_grad(W.numpy(), x.numpy()).dW).all()
try:
    torch.compile(lambda W, x: sl2.value(W, x), fullgraph=True, backend="eager")(W, x)
except torch._dynamo.exc.Unsupported as error:
    print("sigmoid_l2.torch.value can be a part of a graph" in str(error))
W.requires_grad_()
try:
    torch.compile(lambda W, x: sl2.value(W, x), backend="eager")(W, x)
except TypeError as error:
    print(error)
"""


def test_a_compiled_program():
    """torch.compile breaks the graph at the call, whose results are those of a program that is not compiled."""
    printed = run_python(COMPILED)
    assert printed.startswith("True\nW is a tensor that requires a gradient; use sigmoid_l2.torch.value")


def test_threads(library):
    make, kind = library
    given = [[*map(make, pairs((50,), dtype="f4", seed=k))] for k in range(4)]
    expected = [sl2.value_and_grad(*arrays) for arrays in given]
    found = [None] * 4

    def run(k):
        found[k] = [sl2.value_and_grad(*given[k]) for _ in range(20)]

    threads = [threading.Thread(target=run, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(4):
        assert all(isinstance(got.loss, kind) and same(got, map(np.asarray, expected[k])) for got in found[k])


def test_explanations_of_tensors(library):
    make, _ = library
    W, x = pairs((), dtype="f4")
    told = sl2.trace(make(W), make(x), make(np.ones(3, "f4")))
    assert str(told) == str(sl2.trace(W, x, np.ones(3, "f4")))
    assert told.dW.dtype == np.float32
    dW, dx = sl2.grad(make(W), make(x))
    assert sl2.check_grad(make(W), make(x), dW=dW, dx=dx)
    assert not sl2.check_grad(make(W), make(x), dW=dW, dx=2 * dx)
    assert type(on_host("dW", dW)) is np.ndarray


def test_nothing_is_imported():
    code = """
import sys, numpy as np
before = set(sys.modules)
import sigmoid_l2 as sl2
W, x = np.ones((5, 3, 4)), np.ones((5, 4))
sl2.value_and_grad(W, x)
sl2.value_and_grad(W.tolist(), x, 1.0, out=None)
try:
    sl2.value(None, x)
except TypeError:
    pass
libraries = "torch jax jaxlib ml_dtypes pandas xarray astropy unyt pint dask zarr polars scipy.sparse pyarrow".split()
print([name for name in libraries if name in set(sys.modules) - before])
"""
    assert run_python(code) == "[]\n"
