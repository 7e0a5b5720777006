"""``sigmoid_l2.jax.value`` under the transformations of JAX: the results of the formula, and no more memory."""

import numpy as np
import pytest
from arrays import pairs

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402 - after importorskip

from sigmoid_l2.jax import value  # noqa: E402

K = 5  # pairs


def formula(W, x, y=None):
    """The loss in jax.numpy; good where q is small, as in the arrays here."""
    s = jax.nn.sigmoid((W * x[..., None, :]).sum(-1))
    return ((s if y is None else s - y) ** 2).sum(-1)


def arrays():
    """W (K, 3, 4) and x (K, 4), float32, and labels y (K, 3), int32."""
    W, x = pairs((K,), dtype=np.float32)
    return jnp.asarray(W / 2), jnp.asarray(x), jnp.asarray(np.random.default_rng(1).integers(0, 2, (K, 3)), jnp.int32)


def assert_equal(got, expected):
    """The same tree, shapes and dtypes, and values up to rounding."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
        assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def scanned(f):
    """A loop of gradient descent in W, of all x together and one after the other."""

    def step(W, xy):
        loss, dW = jax.value_and_grad(lambda W: f(W, *xy))(W)
        return W - dW, (loss, jax.vmap(f, (None, 0, 0))(W, x, y).sum())

    _, x, y = arrays()
    return lambda W, x, y: jax.lax.scan(step, W[0], (x, y))


# What is made of a function f(W, x, y) of one pair: a function of the three batches.
TRANSFORMED = {
    "a batch": lambda f: f,
    "no target": lambda f: lambda W, x, y: f(W, x),
    "grad": lambda f: jax.grad(lambda W, x, y: f(W, x, y).sum(), (0, 1)),
    "grad in W": lambda f: jax.grad(lambda W, x, y: f(W, x, y).sum()),
    "grad in x, not used in W": lambda f: jax.grad(lambda W, x, y: (f(W, x, y) * jnp.arange(5.0)).sum(), 1),
    "value_and_grad of the mean": lambda f: jax.value_and_grad(lambda W, x, y: f(W, x, y).mean(), (0, 1)),
    "one W": lambda f: jax.grad(lambda W, x, y: f(W[1], x, y).sum(), (0, 1)),
    "one x": lambda f: jax.grad(lambda W, x, y: f(W, x[1], y).sum(), (0, 1)),
    "one target": lambda f: jax.grad(lambda W, x, y: f(W, x, y[1]).sum(), (0, 1)),
    "a number as the target": lambda f: jax.grad(lambda W, x, y: f(W, x, 0.75).sum(), (0, 1)),
    "models and samples": lambda f: jax.grad(lambda W, x, y: f(W[:2, None], x[None], y).sum(), (0, 1)),
    "vjp": lambda f: lambda W, x, y: jax.vjp(lambda W, x: f(W, x, y), W, x)[1](jnp.linspace(-1, 1, K)),
    "vmap of vjp": lambda f: lambda W, x, y: jax.vmap(jax.vjp(lambda W, x: f(W, x, y), W, x)[1])(jnp.eye(2, K)),
    "jacrev": lambda f: lambda W, x, y: jax.jacrev(f, (0, 1))(W, x, y),
    "vmap": lambda f: jax.vmap(f),
    "vmap of grad": lambda f: jax.vmap(jax.grad(f, (0, 1))),
    "vmap of value_and_grad": lambda f: jax.vmap(jax.value_and_grad(f, (0, 1))),
    "grad of vmap": lambda f: jax.grad(lambda *a: jax.vmap(f)(*a).sum(), (0, 1)),
    "vmap, one W": lambda f: lambda W, x, y: jax.vmap(f, (None, 0, 0))(W[1], x, y),
    "vmap of grad, one W": lambda f: lambda W, x, y: jax.vmap(jax.grad(f, (0, 1)), (None, 0, 0))(W[1], x, y),
    "vmap of grad, one x": lambda f: lambda W, x, y: jax.vmap(jax.grad(f, (0, 1)), (0, None, 0))(W, x[1], y),
    "vmap of grad, target": lambda f: lambda W, x, y: jax.vmap(jax.grad(f, (0, 1)), (None, None, 0))(W[1], x[1], y),
    "grad of vmap, one W": lambda f: jax.grad(lambda W, x, y: jax.vmap(f, (None, 0, 0))(W[1], x, y).sum(), (0, 1)),
    "grad of vmap, one x": lambda f: jax.grad(
        lambda W, x, y: jax.vmap(f, (0, None, None))(W, x[1], y[1]).sum(), (0, 1)
    ),
    "other axes": lambda f: lambda W, x, y: jax.vmap(f, (2, -1, 1))(jnp.moveaxis(W, 0, 2), x.T, y.T),
    "grad, other axes": lambda f: (
        lambda W, x, y: jax.vmap(jax.grad(f, (0, 1)), (-1, 1, -1), (2, 1))(jnp.moveaxis(W, 0, 2), x.T, y.T)
    ),
    "vmap over batches": lambda f: lambda W, x, y: jax.vmap(f, (None, 0, None), 1)(W, x[:2, None], y),
    "vmap of sums over batches": lambda f: (
        lambda W, x, y: jax.vmap(jax.grad(lambda W, x: f(W, x, y).sum(), (0, 1)), (None, 0))(
            W[1], jnp.stack([x, x + 1])
        )
    ),
    "each with each": lambda f: jax.vmap(jax.vmap(f, (None, 0, 0)), (0, None, None), 1),
    "grad, each with each": lambda f: jax.vmap(jax.vmap(jax.grad(f, (0, 1)), (None, 0, 0)), (0, None, None)),
    "grad, each W, then each x": lambda f: jax.vmap(jax.vmap(jax.grad(f, (0, 1)), (0, None, 0)), (None, 0, None)),
    "vmap of grad of vmap": lambda f: jax.vmap(
        jax.grad(lambda W, x, y: jax.vmap(f, (None, 0, 0))(W, x, y).sum(), (0, 1)), (0, None, None)
    ),
    "grad of vmap of vmap": lambda f: jax.grad(
        lambda W, x, y: jax.vmap(jax.vmap(f, (None, 0, 0)), (0, None, None))(W, x, y).sum(), (0, 1)
    ),
    "vmap of jit": lambda f: jax.vmap(jax.jit(jax.grad(f, (0, 1)))),
    "grad of jit of vmap": lambda f: jax.grad(lambda *a: jax.jit(jax.vmap(f))(*a).sum(), (0, 1)),
    "scan": scanned,
    "lax.map": lambda f: lambda *a: jax.lax.map(lambda pair: jax.value_and_grad(f, (0, 1))(*pair), a),
    "lax.map in batches": lambda f: lambda *a: jax.lax.map(lambda pair: f(*pair), a, batch_size=2),
    "grad of scan": lambda f: jax.grad(
        lambda W, x, y: jax.lax.scan(lambda total, xy: (total + f(W[1], *xy), None), 0.0, (x, y))[0], (0, 1)
    ),
    "vmap of grad of scan": lambda f: jax.vmap(
        jax.grad(lambda W, x, y: jax.lax.scan(lambda t, xy: (t + f(W, *xy), None), 0.0, (x, y))[0]), (0, None, None)
    ),
    "checkpoint": lambda f: jax.grad(lambda *a: jax.checkpoint(f)(*a).sum(), (0, 1)),
    "vmap of grad of checkpoint": lambda f: jax.vmap(jax.grad(jax.checkpoint(f), (0, 1))),
    "cond": lambda f: jax.vmap(
        jax.grad(lambda W, x, y: jax.lax.cond(x[0] > 0, f, lambda W, x, y: x.sum(), W, x, y), (0, 1))
    ),
    "a layer before": lambda f: jax.grad(lambda W, x, y: f(jnp.sin(W), jnp.tanh(x) @ jnp.eye(4), y).sum(), (0, 1)),
    "a constant gradient": lambda f: jax.grad(
        lambda W, x, y: (f(W, x, y) * jax.lax.stop_gradient(jax.grad(lambda x: f(W, x, y).sum())(x)).sum(-1)).sum()
    ),
    "the target held": lambda f: jax.grad(lambda W, x, y: f(W, x, jax.lax.stop_gradient(W.sum(-1))).sum()),
}


# Those that are tried without jit, too, where JAX compiles each operation by itself.
EAGER = (
    "a batch",
    "grad",
    "vmap of grad, one W",
    "grad of vmap, one W",
    "checkpoint",
    "vmap of jit",
    "a constant gradient",
)


@pytest.mark.parametrize("name", TRANSFORMED)
def test_what_jax_makes_of_the_formula(name):
    transform = TRANSFORMED[name]
    expected = jax.jit(transform(formula))(*arrays())
    assert_equal(jax.jit(transform(value))(*arrays()), expected)
    if name in EAGER:
        assert_equal(transform(value)(*arrays()), expected)


@pytest.mark.parametrize("axes", [(None, 0), (0, None), (0, 0)])
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("shapes", [((4,), (1,)), ((4,), ()), ((4, 1), (4,))])
def test_one_column_under_vmap(shapes, size, axes):
    """n = 1, where what vmap makes of vectors x could be columns."""
    rng = np.random.default_rng(size)
    W, x = rng.standard_normal((*shapes[0], 2, 1)), rng.standard_normal((*shapes[1], 1))
    given = [
        jnp.asarray(a if axis is None else np.stack([a + i for i in range(size)]), jnp.float32)
        for a, axis in zip((W, x), axes, strict=True)
    ]

    def both(f):
        return jax.jit(jax.vmap(lambda W, x: (f(W, x), jax.grad(lambda W, x: f(W, x).sum(), (0, 1))(W, x)), axes))

    assert_equal(both(value)(*given), both(formula)(*given))


def sizes(jaxpr):
    """The numbers of elements of all that a program computes, and of what its calls of the library are given."""
    computed, given = [], []
    for equation in jaxpr.eqns:
        computed += [a.aval.size for a in equation.outvars]
        if equation.primitive.name == "sigmoid_l2":
            given += [a.aval.size for a in equation.invars]
        for inner in equation.params.values():
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                for mine, its in zip((computed, given), sizes(inner), strict=True):
                    mine += its
    return computed, given


def test_a_shared_w_stays_one():
    """Neither its copies nor, for a gradient of the sum, the gradients of each are ever there."""
    W, x, y = jnp.ones((7, 11)), jnp.ones((100, 11)), jnp.zeros((100, 7))
    each = jax.vmap(value, (None, 0, 0))
    computed, given = sizes(jax.make_jaxpr(jax.jit(jax.grad(lambda W: each(W, x, y).sum())))(W).jaxpr)
    assert max(computed) <= y.size
    assert given == [W.size, x.size, y.size, W.size, x.size, y.size, 100]  # the loss, and dW with a cotangent

    computed, given = sizes(jax.make_jaxpr(jax.vmap(jax.grad(value), (None, 0, 0)))(W, x, y).jaxpr)
    assert computed.count(100 * W.size) <= 2  # dW of each is the result, once in another shape
    assert given[:3] == given[3:6] == [W.size, x.size, y.size]


def test_only_what_is_wanted_is_computed():
    W, x, y = arrays()
    for wanted, sizes_of in ((0, {W.size}), (1, {x.size}), ((0, 1), {W.size, x.size})):
        program = jax.make_jaxpr(jax.grad(lambda W, x: value(W, x, y).sum(), wanted))(W, x)
        calls = [e for e in program.jaxpr.eqns if e.primitive.name == "sigmoid_l2"]
        assert [{a.aval.size for a in call.outvars} for call in calls] == [{K}, sizes_of]
