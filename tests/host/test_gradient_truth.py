"""The gradients are the derivatives of the loss: against differences of it, against three frameworks, along directions.

Nothing here uses the formula of the gradients: the derivatives come from the loss alone.
"""

import mpmath
import numpy as np
import oracle
import pytest
from arrays import pairs
from contract import Results, allowed, worst

import sigmoid_l2 as sl2
from host.test_parity import SMALL
from host.test_simd import needs_long_double

DIGITS = 50


def loss(W, x, b, y):
    """||sigmoid(W x + b) - y||^2 of lists of mpmath numbers, real or complex; d/db_i is g_i."""
    q = [mpmath.fdot(row, x) + shift for row, shift in zip(W, b, strict=True)]
    return mpmath.fsum((1 / (1 + mpmath.exp(-value)) - target) ** 2 for value, target in zip(q, y, strict=True))


def central(f, numbers, k):
    """(f(a + h) - f(a - h)) / 2h for a = numbers[k]: off by h^2 times the third derivative, and by 10^-DIGITS / h."""
    a, h = numbers[k], mpmath.mpf(10) ** -(DIGITS // 3)
    values = []
    for numbers[k] in (a + h, a - h):
        values.append(f())
    numbers[k] = a
    return (values[0] - values[1]) / (2 * h)


def complex_step(f, numbers, k):
    """Im f(a + ih) / h for a = numbers[k]: nothing is subtracted, so h can be so small that h^2 does not count."""
    a, h = numbers[k], mpmath.mpf(10) ** -DIGITS
    numbers[k] = mpmath.mpc(a, h)
    value = f()
    numbers[k] = a
    return value.imag / h


def differentiated(W, x, y, cotangent, derivative):
    """What ``oracle.pair`` gives, by a ``derivative`` in every element of W and x and in b = 0."""
    W, x = [[mpmath.mpf(float(w)) for w in row] for row in W], [mpmath.mpf(float(v)) for v in x]
    b, y = [mpmath.mpf(0)] * len(W), [mpmath.mpf(0 if y is None else float(y[i])) for i in range(len(W))]
    s = [1 / (1 + mpmath.exp(-mpmath.fdot(row, x))) for row in W]

    def by_each(numbers):
        factor = 1 if cotangent is None else mpmath.mpf(cotangent)
        return [factor * derivative(lambda: loss(W, x, b, y), numbers, k) for k in range(len(numbers))]

    return oracle.Truth(
        by_each(b),
        loss(W, x, b, y),
        [by_each(row) for row in W],
        by_each(x),
        [a - target for a, target in zip(s, y, strict=True)],
        [a * (1 - a) for a in s],
    )


def random_pair(seed):
    """W and x with random m and n from 1 to 5, and q of a few units; a target and a cotangent in 2 of 4."""
    rng = np.random.default_rng(seed)
    m, n = rng.integers(1, 6, 2)
    W, x = rng.standard_normal((m, n)), rng.standard_normal(n)
    target = rng.choice([0, 1, 0.5, *rng.uniform(-1, 2, 4)], m) if seed % 2 else None
    return W, x, target, float(rng.standard_normal()) if seed % 4 > 1 else None


def distance(a, b):
    """The largest relative difference of two Truths."""
    pairs = zip(map(np.ravel, map(np.array, a)), map(np.ravel, map(np.array, b)), strict=True)
    return max(abs(u - v) / abs(v) for left, right in pairs for u, v in zip(left, right, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_oracle_is_the_derivative(seed):
    """The truth of all other tests, against both kinds of differences."""
    inputs = random_pair(seed)
    with mpmath.workdps(DIGITS):
        true = oracle.pair(*inputs)
        assert distance(differentiated(*inputs, complex_step), true) < 1e-40
        assert distance(differentiated(*inputs, central), true) < 1e-25


@pytest.mark.parametrize("seed", range(8))
def test_backend_is_the_derivative(backend, seed):
    """Every backend, against the differences themselves."""
    W, x, y, c = random_pair(seed)
    results = Results(*sl2.value_and_grad(W, x, y, cotangent=c, wrt=("W", "x", "q"), backend=backend))
    for derivative in (central, complex_step):
        with mpmath.workdps(DIGITS):
            true = differentiated(W, x, y, c, derivative)
        limits = allowed(W, x, true, target=y, cotangent=c, backend=backend)
        for ratio, line in worst(W, x, results, limits, true).values():
            assert ratio <= 1, f"{derivative.__name__}: {line}"


def by_jax(W, x):
    jax = pytest.importorskip("jax")

    def f(W, x):
        return (jax.nn.sigmoid(W @ x) ** 2).sum()

    with jax.enable_x64(W.dtype == np.float64), jax.default_device(jax.devices("cpu")[0]):
        value, gradients = jax.vmap(jax.value_and_grad(f, argnums=(0, 1)))(W, x)
        return [np.asarray(a) for a in (value, *gradients)]


def by_torch(W, x):
    torch = pytest.importorskip("torch")
    W, x = torch.from_numpy(W).requires_grad_(), torch.from_numpy(x).requires_grad_()
    value = (torch.sigmoid((W @ x[:, :, None])[:, :, 0]) ** 2).sum(-1)
    return [a.numpy() for a in (value.detach(), *torch.autograd.grad(value.sum(), (W, x)))]


def by_autograd(W, x):
    autograd = pytest.importorskip("autograd")
    anp = pytest.importorskip("autograd.numpy")

    def f(W, x):
        return anp.sum((1 / (1 + anp.exp(-anp.einsum("bmn,bn->bm", W, x)))) ** 2, axis=1)

    backward, value = autograd.make_vjp(f, (0, 1))(W, x)
    return [value, *backward(np.ones_like(value))]


@pytest.mark.parametrize(
    ("framework", "dtype_name"),
    [(by_jax, "float32"), (by_jax, "float64"), (by_torch, "float64"), (by_autograd, "float64")],
)
@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 3), (2, 5), (13, 17)])
def test_frameworks_agree(backend, framework, dtype_name, m, n):
    """Each side within its own error of the truth: then they differ by the sum of both at most."""
    W, x = pairs((7,), m, n, dtype_name)
    q = (W @ x[:, :, None])[..., 0]
    W /= np.maximum(1, np.abs(q) / q.dtype.type(2.9))[..., None]  # |q| < 3, for the frameworks subtract s from 1
    theirs = framework(W, x)
    ours = sl2.value_and_grad(W, x, backend=backend)
    for b in range(len(W)):
        true = oracle.pair(W[b], x[b])
        limits = allowed(W[b], x[b], true, backend=backend)
        s = 1 / (1 + np.exp(-(W[b].astype(float) @ x[b])))
        # The rounding of s, eps/2, is one of eps/2 / (1 - s) of 1 - s.
        their_limits = allowed(W[b], x[b], true, g_eps=8 + 0.5 / (1 - s))
        for results, limit in ((ours, limits), (theirs, their_limits)):
            for ratio, line in worst(W[b], x[b], Results(*(a[b] for a in results)), limit, true).values():
                assert ratio <= 1, line


@needs_long_double
@pytest.mark.parametrize(("m", "n"), SMALL)
@pytest.mark.parametrize("full", [False, True], ids=["plain", "target and cotangent"])
def test_directional_derivative(backend, m, n, full):
    """d/dh c f(W + h V, x + h v) = <dW, V> + <dx, v> for any direction (V, v), for pairs of every size of q.

    The left side is a complex step in long double, which has 11 bits more: its own error is made of the same roundings
    as the contract's bound, of at most 4 times as many, hence below 2^-9 of it. The right side may be off by what the
    contract allows for every element; its sum is taken in long double too.
    """
    B, rng = 800, np.random.default_rng([m, n])
    (W, x), (V, v) = pairs((B,), m, n), pairs((B,), m, n, seed=1)
    W *= (2.0 ** rng.uniform(-20, 9, B) / n**0.5)[:, None, None]
    y = rng.choice([0, 1, 0.5, *rng.uniform(-1, 2, 40)], (B, m)) if full else np.zeros((B, m))
    cotangent = rng.standard_normal(B) if full else np.ones(B)
    _, dW, dx = sl2.value_and_grad(W, x, y if full else None, cotangent=cotangent if full else None, backend=backend)

    h = np.longdouble(2.0**-200)
    q = ((W + 1j * h * V) * (x + 1j * h * v)[:, None, :]).sum(axis=-1)
    error = np.where(y > 0.5, (1 - y) - 1 / (1 + np.exp(q)), 1 / (1 + np.exp(-q)) - y)
    left = cotangent * (error**2).sum(axis=-1).imag / h
    right = (dW.astype(np.longdouble) * V).sum(axis=(1, 2)) + (dx.astype(np.longdouble) * v).sum(axis=-1)

    q = q.real.astype(float)
    s, c = 1 / (1 + np.exp(-q.astype(np.longdouble))), 1 / (1 + np.exp(q.astype(np.longdouble)))
    e = np.where(y > 0.5, (1 - y) - c, s - y)
    g = cotangent[:, None] * 2 * e * s * c
    for b in range(B):
        truth = oracle.Truth(g[b], (e[b] * e[b]).sum(), g[b, :, None] * x[b], None, e[b], s[b] * c[b])
        more = {"target": y[b], "cotangent": cotangent[b]} if full else {}
        limits = allowed(W[b], x[b], truth, backend=backend, **more)
        limit = (limits.dW * abs(V[b])).sum() + (limits.dx * abs(v[b])).sum()
        assert abs(left[b] - right[b]) <= limit * (1 + 2.0**-9)
