"""``sigmoid_l2.torch.value`` under the transforms of torch.func, against the formula and against plain calls."""

import importlib

import numpy as np
import pytest

import sigmoid_l2 as sl2
from sigmoid_l2 import api

torch = pytest.importorskip("torch")
module = importlib.import_module("sigmoid_l2.torch")
value = module.value
# PyTorch's own, where it looks for forward-mode formulas.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
grad, jacrev, vjp, vmap = torch.func.grad, torch.func.jacrev, torch.func.vjp, torch.func.vmap


def formula(W, x, target=0.0):
    return (torch.sigmoid((W @ x[..., None])[..., 0]) - target).square().sum(-1)


def tensors(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def assert_same(function, *given):
    """That ``function`` of ``value`` is what it is of the formula."""
    got, right = function(value)(*given), function(formula)(*given)
    for a, b in zip(*(r if isinstance(r, tuple) else (r,) for r in (got, right)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def received(monkeypatch):
    """The shapes of W and x, and wrt, of each plain call from now on; those of a view of a broadcast tensor are ()."""
    calls = []

    def recorder(plain):
        def call(W, x, *given, **options):
            calls.append((W.shape, x.shape, options.get("wrt")))
            return plain(W, x, *given, **options)

        return call

    for name in ("value", "grad"):
        monkeypatch.setattr(api, name, recorder(getattr(api, name)))
    return calls


def test_grad_vjp_and_jacrev():
    W, x, target = tensors((5, 3, 4), (5, 4), (5, 3))
    for argnums in (0, 1, (0, 1)):
        assert_same(lambda f, k=argnums: grad(lambda *given: f(*given).sum(), argnums=k), W, x, target)
        assert_same(lambda f, k=argnums: jacrev(f, argnums=k), W, x, target)
    (cotangent,) = tensors((5,), seed=1)
    assert_same(lambda f: lambda *given: vjp(f, *given)[1](cotangent)[:2], W, x)
    assert_same(lambda f: jacrev(f, argnums=(0, 1)), W[0], x, target)


# The sizes of W, x and target, and which of their axes vmap takes.
AXES = [
    (((7, 3, 4), (7, 4), (7, 3)), (0, 0, 0)),
    (((7, 3, 4), (7, 4), (7,)), (0, 0, 0)),
    (((3, 4), (7, 4), (3,)), (None, 0, None)),
    (((3, 4), (4, 7), (3, 7)), (None, 1, 1)),
    (((3, 4, 7), (4,), (3,)), (2, None, None)),
    (((3, 4), (4,), (7, 3)), (None, None, 0)),
    (((3, 4), (4,), (7,)), (None, None, 0)),
    (((7, 3, 4), (5, 4), (6, 1, 3)), (0, None, None)),
    (((3, 4), (7, 5, 4), (6, 1, 3)), (None, 0, None)),
    (((5, 3, 4), (7, 4), (7, 5, 3)), (None, 0, 0)),
    (((2, 5, 7, 3, 4), (7, 4), (3,)), (2, 0, None)),
    (((3, 1), (7, 1), (3,)), (None, 0, None)),
    (((3, 1), (1, 1), (3,)), (None, 0, None)),
    (((1, 3, 1), (7, 1, 1), (3,)), (None, 0, None)),
    (((1, 3, 4), (1, 4), (1, 3)), (0, 0, 0)),
]


@pytest.mark.parametrize(("shapes", "axes"), AXES)
def test_vmap(shapes, axes):
    given = tensors(*shapes)
    assert_same(lambda f: vmap(f, axes), *given)
    assert_same(lambda f: vmap(f, axes), *given[:2], 0.25) if axes[2] is None else None
    for argnums in (0, 1, (0, 1)):
        # The gradients of each step, and those of the sum over all steps.
        assert_same(lambda f, k=argnums: vmap(grad(lambda *a: f(*a).sum(), argnums=k), axes), *given)
        assert_same(lambda f, k=argnums: grad(lambda *a: vmap(f, axes)(*a).sum(), argnums=k), *given)


def test_vmap_of_vmap_and_of_columns():
    W, x, target = tensors((6, 3, 4), (7, 4), (7, 6, 3))
    outer = lambda f: vmap(vmap(f, (0, None, 0)), (None, 0, 0))  # noqa: E731
    assert_same(outer, W, x, target)
    assert_same(lambda f: outer(grad(f, argnums=(0, 1))), W, x, target)
    columns = vmap(value, (None, 0))(W[0], x[..., None])
    assert torch.equal(columns, value(W[0], x))


def test_vmap_of_older_kind_is_an_error():
    """PyTorch has a second, older vmap behind this option, which calls no rule of an autograd.Function."""
    W, x = (a.requires_grad_() for a in tensors((3, 4), (5, 4)))
    with pytest.raises(RuntimeError, match="Batching rule not implemented for sigmoid_l2::gradients"):
        torch.autograd.grad(value(W, x), (W, x), torch.eye(5, dtype=torch.float64), is_grads_batched=True)


def test_a_shared_input_stays_shared(monkeypatch):
    W, x = tensors((3, 4), (7, 4))
    calls = received(monkeypatch)
    vmap(value, (None, 0))(W, x)
    vmap(grad(value, argnums=1), (None, 0))(W, x)
    summed = grad(lambda W: vmap(value, (None, 0))(W, x).sum())(W)
    assert {(W, x) for W, x, _ in calls} == {((3, 4), (7, 4))}
    assert [wrt for *_, wrt in calls] == [None, None, ("x",), None, ("W",)]
    np.testing.assert_array_equal(summed.numpy(), sl2.grad(W.numpy(), x.numpy(), wrt="W"))
    del calls[:]
    vmap(grad(value), (0, None))(*tensors((7, 3, 4), (4,)))
    assert [x for _, x, _ in calls] == [(4,), (4,)]


def test_the_bits_of_vmap_are_those_of_a_batch():
    W, x, target = tensors((7, 3, 4), (7, 4), (7, 3))
    assert torch.equal(vmap(value)(W, x, target), value(W, x, target))
    dW, dx = vmap(grad(value, argnums=(0, 1)))(W, x, target)
    right = sl2.grad(W.numpy(), x.numpy(), target.numpy())
    assert dW.numpy().tobytes() == right.dW.tobytes()
    assert dx.numpy().tobytes() == right.dx.tobytes()


def test_what_has_no_derivative_is_an_error():
    W, x, target = tensors((5, 3, 4), (5, 4), (5, 3))
    for function in (
        lambda: grad(lambda y: value(W, x, y).sum())(target),
        lambda: grad(lambda y: vmap(value)(W, x, y).sum())(target),
    ):
        with pytest.raises(TypeError, match=r"pass target\.detach\(\)"):
            function()
    with pytest.raises(NotImplementedError, match="no second derivative"):
        grad(lambda W: grad(lambda W: value(W, x).sum())(W).sum())(W)
    with pytest.raises(NotImplementedError, match="no forward mode"):
        torch.func.jvp(lambda W: value(W, x), (W,), (W,))
    with pytest.raises(NotImplementedError, match="no forward mode"):
        torch.func.hessian(lambda W: value(W, x).sum())(W)
