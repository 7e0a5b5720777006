"""``sigmoid_l2.torch.value`` in torch.compile(fullgraph=True): the bits of the eager calls, and no second graph."""

import importlib

import pytest

torch = pytest.importorskip("torch")
value = importlib.import_module("sigmoid_l2.torch").value

# PyTorch's own, where it traces and where it looks for what it knows.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def tensors(*shapes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def assert_equal(function, *given, backend="aot_eager"):
    """That ``function`` and its gradients have the same bits compiled as eagerly; returns the compiled one."""
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    check(compiled, function, *given)
    return compiled


def check(compiled, function, *given):
    wanted = [a for a in given if isinstance(a, torch.Tensor) and a.requires_grad]
    results = []
    for f in (compiled, function):
        loss = f(*given)
        cotangent = torch.linspace(-1, 2, loss.numel()).reshape(loss.shape).to(loss.dtype)
        results.append((loss, *torch.autograd.grad(loss, wanted, cotangent)))
    for got, right in zip(*results, strict=True):
        assert got.dtype == right.dtype
        assert torch.equal(got, right)


def test_the_bits_of_eager_for_any_size():
    """By inductor; after the second size there is one graph for all sizes."""
    target = torch.tensor([0.0, 1.0, 0.25])
    function = lambda W, x: value(W, x, target)  # noqa: E731
    compiled = assert_equal(function, *tensors((5, 3, 4), (5, 4)), backend="inductor")
    check(compiled, function, *tensors((7, 3, 4), (7, 4)))
    with torch.compiler.set_stance("fail_on_recompile"):
        for B in (2, 6, 100):
            check(compiled, function, *tensors((B, 3, 4), (B, 4)))


def test_in_a_model():
    """With operations around it, and W and its gradient in another layout."""

    def model(W, x):
        return 2 * value(W.transpose(0, 2), -x, 1.0) + 1

    assert_equal(model, *tensors((4, 3, 5), (5, 4)))


@pytest.mark.parametrize(
    ("shapes", "target"),
    [
        (((3, 4), (5, 4)), None),
        (((5, 3, 4), (5, 4, 1)), 0.5),
        (((6, 1, 3, 4), (6, 5, 4), (5, 3)), "third"),
        (((3, 1), (5, 1)), None),
        (((3, 4), (0, 4)), None),
    ],
)
def test_shapes_and_targets(shapes, target):
    W, x, *third = tensors(*shapes)
    target = third[0].detach() if third else target
    assert_equal(lambda W, x: value(W, x, target), W, x)


def test_targets_that_are_arguments():
    compiled = torch.compile(value, fullgraph=True, backend="aot_eager")
    W, x = tensors((5, 3, 4), (5, 4))
    for target in (0.0, 1.0, 0.25, 0.75, 1, True, torch.tensor(0.5), torch.ones(3)):
        check(lambda W, x, y=target: compiled(W, x, y), lambda W, x, y=target: value(W, x, y), W, x)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float64)])
def test_dtypes_and_autocast(dtypes):
    W, x = (a.detach().to(dtype).requires_grad_() for a, dtype in zip(tensors((5, 3, 4), (5, 4)), dtypes, strict=True))
    assert_equal(lambda W, x: value(W, x), W, x)

    def under_autocast(W, x):
        with torch.autocast("cpu"):
            return value(W, x)

    assert_equal(under_autocast, W, x)


def test_torch_func_in_a_graph():
    W, x, target = (a.detach() for a in tensors((7, 3, 4), (7, 4), (7, 3)))
    grad, vmap = torch.func.grad, torch.func.vmap
    for function in (
        grad(lambda *given: value(*given).sum(), argnums=(0, 1)),
        vmap(value),
        vmap(grad(value, argnums=(0, 1))),
        lambda W, x, target: vmap(grad(value, argnums=1), (None, 0, 0))(W[0], x, target),
        lambda W, x, target: torch.func.vjp(lambda W, x: value(W, x, target), W, x)[1](target[:, 0]),
    ):
        got = torch.compile(function, fullgraph=True, backend="aot_eager")(W, x, target)
        right = function(W, x, target)
        for a, b in zip(*((r,) if isinstance(r, torch.Tensor) else r for r in (got, right)), strict=True):
            assert torch.equal(a, b)


def test_errors_while_it_is_traced():
    W, x = tensors((5, 3, 4), (5, 4))
    compiled = torch.compile(value, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="x must have shape"):
        compiled(W, x[:, :3].detach())
    with pytest.raises(Exception, match=r"pass target\.detach\(\)"):
        compiled(W, x, torch.ones(3, requires_grad=True))
    with pytest.raises(Exception, match=r"pass torch\.as_tensor\(x\)"):
        compiled(W, [1.0, 2.0, 3.0, 4.0])


def test_export():
    W, x = (a.detach() for a in tensors((5, 3, 4), (5, 4)))

    class Model(torch.nn.Module):
        def forward(self, W, x):
            return value(W, x, 1)

    program = torch.export.export(Model(), (W, x))
    assert torch.equal(program.module()(W, x), value(W, x, 1))
