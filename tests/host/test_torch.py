"""``sigmoid_l2.torch.value``: its results and gradients, what it computes and keeps for them, and what it refuses.

torch.func is in test_torch_func.py, torch.compile in test_torch_compile.py.
"""

import doctest
import importlib
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from arrays import pairs
from contract import assert_contract
from processes import run_python

import sigmoid_l2 as sl2
from sigmoid_l2 import api, dispatch

torch = pytest.importorskip("torch")
module = importlib.import_module("sigmoid_l2.torch")
value = module.value
# PyTorch's own, where it looks for forward-mode formulas.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

# The shapes of W, x and target, or the number that the target is.
SHAPES = [
    ((5, 3, 4), (5, 4), None),
    ((5, 3, 4), (5, 4), (5, 3)),
    ((5, 3, 4), (5, 4), 1),
    ((5, 3, 4), (5, 4), ()),
    ((5, 3, 4), (5, 4), (1,)),
    ((3, 4), (4,), (3,)),
    ((3, 4), (5, 4), (5, 3)),
    ((1, 3, 4), (5, 4), None),
    ((5, 3, 4), (4,), 0.25),
    ((6, 1, 3, 4), (6, 5, 4), (5, 3)),
    ((2, 1, 3, 4), (5, 4), (7, 1, 1, 3)),
    ((3, 4), (4,), (5, 3)),
    ((5, 3, 4), (5, 4, 1), (5, 3, 1)),
    ((5, 3, 4), (5, 4, 1), (5, 3)),
    ((3, 4), (5, 4, 1), None),
    ((5, 3, 1), (5, 1), (5, 3)),
    ((0, 3, 4), (0, 4), None),
    ((3, 4), (0, 4), (3,)),
    ((0, 3, 4), (4,), None),
]


def tensors(W, x, target=None, dtype=torch.float32, seed=0):
    """W and x of these shapes, which require gradients, and a target of 0 to 1, or that number."""
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in (W, x)]
    if isinstance(target, tuple):
        target = torch.rand(target, generator=generator, dtype=torch.float64).to(dtype)
    return *(a.requires_grad_() for a in made), target


def arrays(*given):
    return [a.detach().numpy() if isinstance(a, torch.Tensor) else a for a in given]


def recorded(monkeypatch, name):
    """The arguments of each call of ``sl2.value`` or ``sl2.grad`` from now on, and where its results are."""
    calls, plain = [], getattr(api, name)

    def call(*given, **options):
        results = plain(*given, **options)
        pointers = [a.data_ptr() for a in results] if name == "grad" else [results.data_ptr()]
        calls.append(SimpleNamespace(given=given, **options, pointers=pointers))
        return results

    monkeypatch.setattr(api, name, call)
    return calls


def assert_bits(got, right):
    assert type(got) is torch.Tensor
    got, right = got.detach().numpy(), np.asarray(right)
    assert (got.shape, got.dtype) == (right.shape, right.dtype)
    assert got.tobytes() == right.tobytes()


@pytest.mark.parametrize(("W", "x", "target"), SHAPES)
def test_the_bits_of_the_plain_call(W, x, target):
    dtype = torch.float64 if W == (3, 4) else torch.float32
    W, x, target = tensors(W, x, target, dtype)
    loss = value(W, x, target)
    cotangent = torch.randn(loss.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    loss.backward(cotangent)
    right = sl2.value_and_grad(*arrays(W, x, target), cotangent=cotangent.numpy())
    for got, expected in zip((loss, W.grad, x.grad), right, strict=True):
        assert_bits(got, expected)


@pytest.mark.parametrize("target", [None, 0, 1, (40, 3)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_contract_in_the_tails(dtype, target):
    """Where s is 1 and the formula's own gradient is 0, to the accuracy that is promised."""
    backend = next(b.name for b in dispatch.BACKENDS if b.device == "cpu" and not b.reasons())
    W, x = pairs((40,), dtype=dtype)
    W *= np.linspace(-40, 40, 40, dtype=dtype)[:, None, None]
    target = np.random.default_rng(0).integers(0, 2, target).astype(dtype) if isinstance(target, tuple) else target
    given = [torch.from_numpy(a).requires_grad_() for a in (W, x)]
    y = torch.from_numpy(target) if isinstance(target, np.ndarray) else target
    loss = value(*given, y)
    cotangent = np.linspace(-1, 2, 40, dtype=dtype)
    loss.backward(torch.from_numpy(cotangent))
    dW, dx = (a.grad.numpy() for a in given)
    assert_contract(W, x, loss.detach().numpy(), dW, dx, target=target, cotangent=cotangent, backend=backend)


def test_a_saturated_sigmoid_has_a_gradient():
    W, x = torch.full((1, 3, 3), 7.0, requires_grad=True), torch.ones(1, 3)
    (torch.sigmoid((W @ x[..., None])[..., 0]) - 1).square().sum().backward()
    assert not W.grad.any()
    W.grad = None
    value(W, x, 1).sum().backward()
    np.testing.assert_allclose(W.grad.numpy(), -2 * np.exp(-21.0) ** 2, rtol=1e-4)
    W.grad = None
    value(W, x).sum().backward()
    np.testing.assert_allclose(W.grad.numpy(), 2 * np.exp(-21.0), rtol=1e-4)


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("W_dtype", DTYPES)
@pytest.mark.parametrize("x_dtype", DTYPES)
def test_each_gradient_has_the_dtype_of_its_input(W_dtype, x_dtype):
    W, x, target = tensors((5, 3, 4), (5, 4), (5, 3))
    wide = torch.promote_types(W_dtype, x_dtype)
    W, x = (a.detach().to(dtype).requires_grad_() for a, dtype in ((W, W_dtype), (x, x_dtype)))
    loss = value(W, x, target)
    loss.sum().backward()
    assert (loss.dtype, W.grad.dtype, x.grad.dtype) == (wide, W_dtype, x_dtype)
    computed = torch.promote_types(wide, torch.float32)  # short dtypes are storage
    right = sl2.value_and_grad(*arrays(W.to(computed), x.to(computed), target))
    for got, expected in zip((loss, W.grad, x.grad), right, strict=True):
        expected = torch.from_numpy(np.asarray(expected)).to(wide).to(got.dtype)
        assert torch.equal(got, expected)


@pytest.mark.parametrize(("dtype", "result"), [(torch.float32, torch.float32), (torch.float16, torch.float16)])
def test_integers_have_no_gradient(dtype, result):
    W, x = torch.arange(-6, 6).reshape(1, 3, 4), torch.ones(1, 4, dtype=dtype, requires_grad=True)
    loss = value(W, x, torch.tensor([[True, False, True]]))
    loss.sum().backward()
    assert (loss.dtype, x.grad.dtype) == (result, dtype)
    right = sl2.value_and_grad(W.numpy().astype("float32"), x.detach().float().numpy(), np.float32([1, 0, 1]))
    assert torch.equal(x.grad, torch.from_numpy(right.dx).to(dtype))
    assert value(W, W[:, 0]).dtype == torch.get_default_dtype()


@pytest.mark.parametrize(("W", "x", "target"), [SHAPES[k] for k in (1, 2, 6, 8, 9, 12)])
def test_gradcheck(W, x, target):
    W, x, target = tensors(W, x, target, torch.float64)
    assert torch.autograd.gradcheck(lambda W, x: value(W, x, target), (W, x))


def test_only_what_is_needed_is_computed(monkeypatch):
    W, x, _ = tensors((5, 3, 4), (5, 4))
    losses, gradients = recorded(monkeypatch, "value"), recorded(monkeypatch, "grad")
    value(W.detach(), x).sum().backward()
    value(W, x.detach()).sum().backward()
    value(W, x).sum().backward()
    assert value(W.detach(), x.detach()).grad_fn is None
    with torch.no_grad():
        assert value(W, x).grad_fn is None
    assert [call.wrt for call in gradients] == [("x",), ("W",), ("W", "x")]
    assert len(losses) == 5


def test_nothing_is_kept_but_the_inputs():
    W, x, target = tensors((5, 3, 4), (5, 4, 1), (5, 3))
    kept = []

    def pack(a):
        kept.append(a)
        return a.clone().numpy()

    with torch.autograd.graph.saved_tensors_hooks(pack, torch.from_numpy):
        loss = value(W, x, target)
    assert [a.data_ptr() for a in kept] == [a.data_ptr() for a in (W, x, target)]
    loss.sum().backward()
    right = sl2.grad(*arrays(W, x, target))
    assert_bits(W.grad, right.dW)
    assert_bits(x.grad, right.dx)


def test_a_gradient_is_taken_over_without_a_copy(monkeypatch):
    W, x, _ = tensors((5, 3, 4), (5, 4))
    calls = recorded(monkeypatch, "grad")
    value(W, x).sum().backward()
    assert [W.grad.data_ptr(), x.grad.data_ptr()] == calls[0].pointers


def test_inputs_that_changed_before_backward_are_an_error():
    W, x, _ = tensors((5, 3, 4), (5, 4))
    loss = value(W, x)
    with torch.no_grad():
        x += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.sum().backward()


def test_the_cotangent_of_a_sum_is_no_array(monkeypatch):
    W, x, _ = tensors((50, 3, 4), (50, 4))
    calls = recorded(monkeypatch, "grad")
    value(W, x).sum().backward()
    assert calls[0].cotangent is None
    ones = torch.autograd.grad(value(W, x), (W, x), torch.ones(50))
    assert torch.equal(ones[0], W.grad)
    half = torch.autograd.grad(value(W, x).sum() / 2, (W, x))
    assert calls[-1].cotangent.is_contiguous()
    assert torch.equal(half[1], x.grad / 2)


def test_backward_again_and_again():
    W, x, _ = tensors((5, 3, 4), (5, 4))
    loss = value(W, x).sum() + value(W, x, 1.0).sum()
    loss.backward(retain_graph=True)
    once = W.grad.clone()
    loss.backward()
    assert torch.equal(W.grad, 2 * once)


LAYOUTS = {
    "transposed": lambda a: a.mT.contiguous().mT if a.ndim > 2 else a,
    "batch last": lambda a: a.movedim(0, -1).contiguous().movedim(-1, 0),
    "every other": lambda a: torch.stack((a, a * torch.nan), -1)[..., 0],
    "expanded": lambda a: a[:1].expand(a.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_any_layout(layout):
    W, x, _ = tensors((5, 3, 4), (5, 4))
    W, x = (layout(a.detach()).requires_grad_() for a in (W, x))
    loss = value(W, x, 1)
    loss.sum().backward()
    right = sl2.value_and_grad(*arrays(W, x), 1)
    for got, expected in zip((loss, W.grad, x.grad), right, strict=True):
        assert torch.equal(got, torch.from_numpy(np.ascontiguousarray(expected)))


@pytest.mark.parametrize(("W", "x", "target"), SHAPES)
def test_opcheck(W, x, target):
    """And so that results lie in memory as the compiler is told, for each layout."""
    W, x, target = tensors(W, x, target)
    W, x = W.detach(), x.detach()
    with torch.no_grad():
        x, target = module._vectors(W, x, None if target is None else module._as_target(target, W))
    for layout in (lambda a: a, *LAYOUTS.values()) if W.ndim == 3 and 0 not in W.shape and x.ndim == 2 else [None]:
        W, x = (a if layout is None else layout(a) for a in (W, x))
        torch.library.opcheck(module._loss, (W, x, target), test_utils=CHEAP)
        loss = value(W, x, target)
        torch.library.opcheck(module._gradients, (W, x, target, loss, "Wx"), test_utils=CHEAP)
        torch.library.opcheck(module._gradients, (W, x, target, loss, "x"), test_utils=CHEAP)


def test_opcheck_of_vectors_that_look_like_columns():
    """As vmap makes them; W is not in C order."""
    W, x = torch.randn(2, 3, 4, 1).transpose(0, 1), torch.randn(5, 1, 1, 1)
    torch.library.opcheck(module._gradients, (W, x, None, torch.ones(5, 3, 2), "Wx"), test_utils=CHEAP)


CHEAP = ("test_schema", "test_autograd_registration", "test_faketensor")


def test_opcheck_with_aot_autograd():
    W, x, target = (a.detach() for a in tensors((5, 3, 4), (5, 4), (5, 3)))
    torch.library.opcheck(module._loss, (W, x, target))
    torch.library.opcheck(module._gradients, (W, x, target, torch.ones(5), "Wx"))


def test_autocast_gives_float32_as_for_losses_of_pytorch(monkeypatch):
    W, x, target = tensors((5, 3, 4), (5, 4), (5, 3), torch.bfloat16)
    right = sl2.value_and_grad(*arrays(W.float(), x.float(), target.float()))
    calls = recorded(monkeypatch, "value")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = value(W, x, target)
        assert loss.dtype == torch.nn.functional.mse_loss(W, W).dtype == torch.float32
        assert value(W.double(), x).dtype == torch.float64
        assert value(W[0], x.expand(7, 5, 4)).dtype == torch.float32
    loss.sum().backward()
    assert_bits(loss, right.loss)
    assert torch.equal(W.grad, torch.from_numpy(right.dW).bfloat16())
    assert torch.equal(x.grad, torch.from_numpy(right.dx).bfloat16())
    # The larger one is read as it is.
    assert [a.dtype for a in calls[0].given[:2]] == [torch.bfloat16, torch.float32]
    assert [a.dtype for a in calls[2].given[:2]] == [torch.float32, torch.bfloat16]


def test_calls_from_many_threads():
    W, x, target = tensors((200, 3, 4), (200, 4), (200, 3))
    right = sl2.value_and_grad(*arrays(W, x, target))
    wrong = []

    def run():
        for _ in range(20):
            loss = value(W, x, target)
            dW, dx = torch.autograd.grad(loss.sum(), (W, x))
            wrong.extend(
                a for a, b in zip((loss, dW, dx), right, strict=True) if a.detach().numpy().tobytes() != b.tobytes()
            )

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_in_a_module():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.W = torch.nn.Parameter(torch.ones(3, 4))

        def forward(self, x):
            return value(self.W, x, 1)

    model, x = Model(), torch.ones(5, 4)
    model(x).sum().backward()
    assert_bits(model.W.grad, sl2.grad(np.ones((3, 4), "float32"), x.numpy(), 1, wrt="W"))
    other = torch.func.functional_call(model, {"W": torch.zeros(3, 4)}, x)
    assert_bits(other, np.full(5, 0.75, "float32"))


def test_subclasses_and_modes():
    class Mine(torch.Tensor):
        pass

    W, x, _ = tensors((5, 3, 4), (5, 4))
    right = sl2.value(*arrays(W, x))
    mine = value(W.detach().as_subclass(Mine), x)
    assert torch.equal(mine.as_subclass(torch.Tensor), torch.from_numpy(right))
    with torch.inference_mode():
        inferred = value(W, x)
        assert inferred.is_inference()
        assert_bits(inferred, right)
    torch.use_deterministic_algorithms(True)
    try:
        assert_bits(value(W, x), right)
    finally:
        torch.use_deterministic_algorithms(False)
    assert value(W.to("meta"), x.to("meta")).shape == (5,)


def test_results_are_new_memory():
    W, x, _ = tensors((5, 3, 4), (5, 4))
    loss = value(W, x)
    loss.sum().backward()
    pointers = {a.untyped_storage().data_ptr() for a in (W, x, loss, W.grad, x.grad)}
    assert len(pointers) == 5


def test_second_derivatives_are_an_error():
    W, x, _ = tensors((2, 3, 4), (2, 4), dtype=torch.float64)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.gradgradcheck(value, (W, x))
    (dW,) = torch.autograd.grad(value(W, x).sum(), W, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        dW.sum().backward()


def test_forward_mode_is_an_error():
    W, x, _ = (a if a is None else a.detach() for a in tensors((2, 3, 4), (2, 4)))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(W, W)
        with pytest.raises(NotImplementedError, match="no forward mode"):
            value(dual, x)


def test_a_target_has_no_gradient():
    W, x, target = tensors((5, 3, 4), (5, 4), (5, 3))
    target.requires_grad_()
    with pytest.raises(TypeError, match=r"pass target\.detach\(\)"):
        value(W, x, target)
    value(W, x, target.detach()).sum().backward()
    with torch.no_grad():
        assert_bits(value(W, x, target), sl2.value(*arrays(W, x, target)))


W, x = torch.zeros(5, 3, 4), torch.zeros(5, 4)
REFUSED = {
    "NumPy's W": (TypeError, (W.numpy(), x), r"W must be .*, not numpy\.ndarray; pass torch\.as_tensor\(W\)"),
    "a list": (TypeError, (W, [1.0, 2.0, 3.0, 4.0]), r"x must be .*, not builtins\.list; pass torch\.as_tensor\(x\)"),
    "NumPy's target": (TypeError, (W, x, np.ones(3)), r"target must be a tensor or a number.*as_tensor\(target\)"),
    "complex": (TypeError, (W.to(torch.complex64), x), "W has dtype torch.complex64; supported are"),
    "a complex target": (TypeError, (W, x, torch.zeros(3, dtype=torch.complex64)), "is real"),
    "float8": (TypeError, (W, x.to(torch.float8_e4m3fn)), "x has dtype torch.float8_e4m3fn; supported are"),
    "another device": (TypeError, (W, x.to("meta")), r"W is on cpu and x is on meta; pass x\.to\(W\.device\)"),
    "its target": (TypeError, (W, x, torch.zeros(3, device="meta")), r"target is on meta; pass target\.to"),
    "sparse": (TypeError, (W, x.to_sparse()), r"to_dense"),
    "masked": (TypeError, (W, np.ma.masked_array(np.ones(4))), r"mask has no meaning here; pass x\.filled"),
    "shapes": (ValueError, (W, x[:, :3]), r"x must have shape \(\.\.\., 4\).*got W \(5, 3, 4\) and x \(5, 3\)"),
    "batch shapes": (ValueError, (W, x[:2]), r"do not broadcast; got W \(5, 3, 4\) and x \(2, 4\)"),
    "a target's shape": (ValueError, (W, x, torch.zeros(2)), r"target must have shape \(\.\.\., 3\)"),
    "a vector": (ValueError, (x[0], x), r"W must have at least 2 dimensions.*got W \(4,\)"),
    "no elements": (ValueError, (W[..., :0], x[..., :0]), "m and n must be at least 1"),
    "a number": (ValueError, (W, x[0, 0]), r"x must have shape \(\.\.\., 4\)"),
    "ambiguous x": (ValueError, (torch.zeros(4, 3, 1), torch.zeros(4, 1, 1)), "could be vectors"),
    "an ambiguous target": (ValueError, (W, x[..., None], torch.zeros(5, 1, 1)), "could be vectors"),
}


@pytest.mark.parametrize(("error", "given", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(error, given, message):
    with pytest.raises(error, match=f"(?s){message}"):
        value(*given)


@pytest.mark.filterwarnings("ignore")  # PyTorch makes neither without a warning
def test_no_dense_tensors():
    quantized, nested = torch.quantize_per_tensor(W, 0.1, 0, torch.qint8), torch.nested.nested_tensor([*W])
    with pytest.raises(TypeError, match=r"W is a quantized tensor; pass W\.dequantize\(\)"):
        value(quantized, x)
    with pytest.raises(TypeError, match=r"W is a nested tensor; call once for each of W\.unbind\(\)"):
        value(nested, x)


def test_the_example_of_the_docstring():
    (example,) = doctest.DocTestFinder().find(value, "value", globs={})
    assert doctest.DocTestRunner().run(example) == (0, 5)


def test_a_number_is_where_the_default_device_is_not():
    with torch.device("meta"):
        loss = value(W, x, 1.0)
    assert_bits(loss, value(W, x, torch.ones(3)))


def test_an_older_pytorch_is_told(monkeypatch):
    monkeypatch.delattr(torch.library, "custom_op")
    with pytest.raises(ImportError, match=r"needs PyTorch 2\.9 or later, and this is 2\."):
        importlib.reload(module)


def test_in_a_worker_of_a_data_loader():
    """After fork, and after the library has been at work in the parent."""
    run_python(
        "import torch, sigmoid_l2.torch\n"
        "W = torch.ones(5000, 3, 4, requires_grad=True)\n"
        "sigmoid_l2.torch.value(W, torch.ones(5000, 4)).sum().backward()\n"
        "class Data(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 4\n"
        "    def __getitem__(self, k): return sigmoid_l2.torch.value(W.detach(), torch.full((4,), k / 7))\n"
        "found = torch.cat([*torch.utils.data.DataLoader(Data(), num_workers=1, multiprocessing_context='fork')])\n"
        "assert torch.equal(found, torch.stack([Data()[k] for k in range(4)]))\n"
    )
