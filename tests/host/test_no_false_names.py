"""No false names: check_grad names hardly any of a thousand random gradients, and calls no right one wrong."""

import numpy as np
import pytest
from arrays import pairs

import sigmoid_l2 as sl2
from host.test_check_grad import check

# Batch, m and n: mostly tiny pairs, where few numbers have to tell a mistake from chance.
SHAPES = [
    ((), 3, 3),
    ((), 2, 5),
    ((), 4, 2),
    ((), 2, 2),
    ((4,), 3, 3),
    ((), 3, 4),
    ((), 5, 5),
    ((), 3, 2),
    ((2, 3), 2, 3),
]
NAMES = ("dW", "dx")
# Of problem(), for right gradients: each shape, with and without a target, W shared and not.
SEEDS = (*range(0, 36, 5), 4, 13, 22, 31)


def problem(seed, dtype=np.float64, scale=1.0):
    """W, x, and for half of the seeds a target; single pairs, batches of pairs, and samples that share W."""
    rng = np.random.default_rng(seed)
    batch, m, n = SHAPES[seed % len(SHAPES)]
    W, x = pairs(batch, m, n, seed=seed)
    if batch and seed // len(SHAPES) % 2:
        W = W[(0,) * len(batch)]
    arrays = W * scale, x, *([rng.random((*batch, m))] if seed // len(SHAPES) // 2 % 2 else [])
    return [a.astype(dtype) for a in arrays]


def product(name, g, W, x):
    """g xᵀ or Wᵀ g, summed over the samples that share a W."""
    terms = g[..., :, None] * (x[..., None, :] if name == "dW" else W)
    return terms.sum(axis=tuple(range(terms.ndim - W.ndim))) if name == "dW" else terms.sum(axis=-2)


def unrelated(rng, true, arguments, name):
    return rng.standard_normal(true.shape)


def disturbed(rng, true, arguments, name):
    size = 10 ** rng.uniform(-3, 0) * np.abs(true).max()
    return true + size * rng.standard_normal(true.shape)


def scaled(rng, true, arguments, name):
    return true * rng.uniform(-2, 3, true.shape)


def another_g(rng, true, arguments, name):
    """The right product with a g that means nothing."""
    W, x, *_ = arguments
    return product(name, rng.standard_normal(sl2.trace(*arguments).q.shape), W, x)


def another_factor(rng, true, arguments, name):
    """The right g, and in the place of x, or of W, something that means nothing."""
    W, x, *_ = arguments
    return product(name, sl2.trace(*arguments).dloss_dq, rng.standard_normal(W.shape), rng.standard_normal(x.shape))


FAMILIES = (unrelated, disturbed, scaled, another_g, another_factor)


def random_gradient(seed):
    """A gradient that no mistake made: its name, the arguments of check_grad, and its values."""
    rng = np.random.default_rng([seed, 1])
    arguments, name = problem(seed), NAMES[rng.integers(2)]
    true = getattr(sl2.trace(*arguments), name)
    values = FAMILIES[seed % len(FAMILIES)](rng, true, arguments, name)
    # Rounded, it must not be the truth that is rounded, which has a name.
    far = np.abs(values - true).max() > 5e-3
    return name, arguments, values.round(3) if far and seed // len(FAMILIES) % 4 == 0 else values


def test_of_a_thousand_random_gradients_at_most_five_get_a_name():
    named = []
    for seed in range(1000):
        name, arguments, values = random_gradient(seed)
        report = check(name, *arguments[:2], values, *arguments[2:])
        if report.mistakes:
            named.append((seed, report.mistakes))
    assert len(named) <= 5, named


def textbook(q):
    s = 1 / (1 + np.exp(-q))
    return s, s * (1 - s)


def by_tanh(q):
    s = (1 + np.tanh(q / 2)) / 2
    return s, (1 - np.tanh(q / 2) ** 2) / 4


def by_exp(q):
    t = np.exp(-q)
    return 1 / (1 + t), t / (1 + t) ** 2


def by_exp_of_plus_q(q):
    t = np.exp(q)
    return t / (t + 1), t / (t + 1) ** 2


def by_parts(q):
    """Without overflow: one formula for each sign of q."""
    t = np.exp(-np.abs(q))
    s = np.where(q >= 0, 1 / (1 + t), t / (1 + t))
    return s, t / (1 + t) ** 2


def by_logaddexp(q):
    one = np.array(0, q.dtype)
    return np.exp(-np.logaddexp(one, -q)), np.exp(-np.logaddexp(one, -q) - np.logaddexp(one, q))


def by_scipy(q):
    special = pytest.importorskip("scipy.special")
    s, c = (special.expit(a).astype(q.dtype) for a in (q, -q))  # of float16 it makes float32
    return s, s * c


SIGMOIDS = (textbook, by_tanh, by_exp, by_exp_of_plus_q, by_parts, by_logaddexp, by_scipy)


def sums(g, W, x, shapes):
    """The gradients of arrays of pairs: products, summed over the axes that an input does not have."""
    full = g[..., :, None] * x[..., None, :], (g[..., :, None] * W).sum(axis=-2)
    return [
        a.sum(axis=tuple(range(a.ndim - len(shape)))).astype(a.dtype) for a, shape in zip(full, shapes, strict=True)
    ]


def einsums(g, W, x, shapes):
    dx = np.einsum("...ij,...i->...j", W, g)
    if len(shapes[0]) > 2:
        return np.einsum("...i,...j->...ij", g, x), dx
    return np.einsum("bi,bj->ij", g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1])), dx


def loops(g, W, x, shapes):
    dW, dx = (np.zeros(shape, g.dtype) for shape in shapes)
    for index in np.ndindex(g.shape[:-1]):
        at = index if len(shapes[0]) > 2 else ()
        for i in range(g.shape[-1]):
            for j in range(x.shape[-1]):
                dW[(*at, i, j)] += g[(*index, i)] * x[(*index, j)]
                dx[(*index, j)] += W[(*at, i, j)] * g[(*index, i)]
    return dW, dx


def matrices(g, W, x, shapes):
    """np.outer and W.T @ g, pair by pair."""
    dW, dx = (np.zeros(shape, g.dtype) for shape in shapes)
    for index in np.ndindex(g.shape[:-1]):
        at = index if len(shapes[0]) > 2 else ()
        dW[at] += np.outer(g[index], x[index])
        dx[index] = W[at].T @ g[index]
    return dW, dx


PRODUCTS = (sums, einsums, loops, matrices)


def gradients(sigmoid, products, arguments):
    """dW and dx as a user writes them, in the dtype of ``arguments``; and the largest |q|."""
    W, x, *y = arguments
    q = (W * x[..., None, :]).sum(axis=-1)
    s, ds_dq = sigmoid(q)
    dloss_dq = 2 * (s - y[0] if y else s) * ds_dq
    results = products(dloss_dq, W, x, (W.shape, x.shape))
    return results, float(np.abs(q).max())


def kinds_of_floats():
    try:
        import ml_dtypes
    except ImportError:
        return (np.float16, np.float32, np.float64)
    return (ml_dtypes.bfloat16, np.float16, np.float32, np.float64)


# From this q on, the digits of 1 - s are gone where it is a difference: that is named, and rightly.
FAR = {"bfloat16": 3, "float16": 4, "float32": 8, "float64": 25}
CANCELS = (textbook, by_tanh)
# exp(q)² is infinite from here on, so that a formula with it gives NaN.
OVERFLOWS = {"bfloat16": 44, "float16": 5.5, "float32": 44, "float64": 354}


@pytest.mark.parametrize("scale", [0.01, 1, 3, 10])
@pytest.mark.parametrize("dtype", kinds_of_floats(), ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("sigmoid", SIGMOIDS, ids=lambda sigmoid: sigmoid.__name__)
def test_a_right_gradient_is_right(sigmoid, dtype, scale):
    for seed in SEEDS:
        arguments = problem(seed, dtype, scale)
        products = PRODUCTS[seed % len(PRODUCTS)]
        if products is einsums and np.dtype(dtype).kind != "f":
            products = sums  # np.einsum does not take bfloat16
        with np.errstate(all="ignore"):
            (dW, dx), largest = gradients(sigmoid, products, arguments)
        name = np.dtype(dtype).name
        if largest > (FAR[name] if sigmoid in CANCELS else OVERFLOWS[name]):
            continue
        assert dW.dtype == dx.dtype == dtype
        report = sl2.check_grad(*arguments, dW=dW, dx=dx)
        assert report.ok, (seed, report)
        assert report.dW.mistakes == report.dx.mistakes == ()


@pytest.mark.parametrize("scale", [0.01, 1, 10])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_gradient_of_torch_is_right(dtype, scale):
    torch = pytest.importorskip("torch")
    for seed in SEEDS:
        arguments = problem(seed, dtype, scale)
        W, x, *y = (torch.tensor(a) for a in arguments)
        W.requires_grad_(), x.requires_grad_()
        q = (W @ x[..., None])[..., 0]
        if q.abs().max() > FAR[np.dtype(dtype).name]:
            continue
        ((torch.sigmoid(q) - (y[0] if y else 0)) ** 2).sum().backward()
        assert sl2.check_grad(*arguments, dW=W.grad.numpy(), dx=x.grad.numpy()), seed


@pytest.mark.parametrize("scale", [0.01, 1])
def test_the_gradient_of_jax_is_right(scale):
    jax = pytest.importorskip("jax")
    for seed in SEEDS:
        arguments = problem(seed, np.float32, scale)
        W, x, *y = arguments

        def loss(W, x, y=(y or [0])[0]):
            return ((jax.nn.sigmoid(jax.numpy.einsum("...ij,...j->...i", W, x)) - y) ** 2).sum()

        if np.abs(np.einsum("...ij,...j->...i", W, x)).max() > FAR["float32"]:
            continue
        dW, dx = jax.grad(loss, (0, 1))(W, x)
        assert sl2.check_grad(*arguments, dW=np.asarray(dW), dx=np.asarray(dx)), seed


def test_a_right_gradient_with_the_wrong_target_is_wrong():
    """So that the tests above can fail."""
    W, x, y = problem(18)
    right = sl2.trace(W, x, y)
    assert sl2.check_grad(W, x, y, dW=right.dW, dx=right.dx)
    assert not sl2.check_grad(W, x, y + 0.01, dW=right.dW, dx=right.dx)


def test_a_wrong_gradient_of_2000x2000_is_explained():
    W, x = pairs((), 2000, 2000)
    W /= 50
    report = sl2.check_grad(W, x, dW=2 * np.outer(sl2.trace(W, x).dloss_dq, x))
    assert any("factor 2" in mistake for mistake in report.dW.mistakes)
