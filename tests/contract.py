"""The accuracy contract as the one table of tolerances, checked against the oracle at the inputs' exact values.

With eps and tiny (the smallest normal number) of the compute dtype, |.| the true values; k = 7 on a CPU, 8 on a GPU,
and 1/2 more for the gradients with a cotangent, which is one more rounding:

    output  error allowed                                   because
    loss    sum_i a_i^2 (2 max_i delta_i + (S + k - 1) eps) d(e^2)/dq = 2 e s c, at most 2 a^2; m terms are summed
    dq_i    G_i (2 delta_i + k eps)                         dg/dq, as below; exp, 1/(1 + t) and the products of g and
    dW_ij   G_i |x_j| (2 delta_i + k eps)                   dW: 2 E + 4.75 eps, E that of exp, and 1/2 for s - y
    dx_j    sum_i G_i |W_ij| (2 delta_i + (S + k) eps)      as dW_ij, and m terms are summed

where G = 2 a s c |cotangent| and, with c = 1 - s, a = min(s + |y|, c + |1 - y|): what subtracting y loses. For the
targets 0 and 1 a is |e|, because nothing is lost: there G = |g|, and the error of each result is relative to that
result. a is never less than |e|, nor than s c. So |dg/dq| = 2 s c |s c + e (1 - 2s)| |cotangent| is at most 2 G.

S eps is the rounding of a sum over m rows. On a GPU S = m/2, for any order: a term is rounded by eps/2 in at most m
additions. On a CPU it is in at most 2 ceil(log2 m) + 2 of them, so S = min(m/2, ceil(log2 m) + 1):
tests/host/test_sums.py and kernels/reference.py count them.

delta_i = r eps/2 sum_j |W_ij x_j| is the rounding of q_i, where a term is rounded r times; `roundings_of_q` counts
them. A 1x1 pair with x = 1 has q = W exactly: delta = 0.

A gradient that is summed over B pairs may be off by what its terms may, and by (ceil(log2 B) + 1) eps of the sum of
their sizes: `allowed_sum`.

float16 is computed in float32, with the errors above, and each result is rounded to float16 once.

docs/accuracy.md has the derivation, and the measurement over all float32 q that k = 7 rests on (NumPy's exp there is
not good enough for it by the bound alone). On a GPU nothing has been measured yet.

Errors below tiny do not count. So g_i may be off by t_i = tiny max(1, |cotangent|, |cotangent e_i|), because e and s c
may be off by tiny; hence dW_ij by t_i max(1, |x_j|), dx_j by max(max_i t_i, sum_i t_i |W_ij|), and loss by tiny. CuPy
always compiles float32 with -ftz=true: exp(-|q|) is flushed to 0 while g = 2 exp(-|q|) is still normal, so there g may
be off by 2 t_i, and each of the m terms of the loss by tiny.
"""

import math
from typing import Any, NamedTuple

import mpmath
import numpy as np
import oracle

from sigmoid_l2 import dispatch

_DEVICE = {b.name: b.device for b in dispatch.BACKENDS}


class Results(NamedTuple):
    """One value for each output of a pair, or one for each of its elements; None for an output that is not wanted."""

    loss: Any  # ()
    dW: Any  # (m, n)
    dx: Any  # (n,)
    dq: Any = None  # (m,)


def roundings_of_q(m: int, n: int, dtype: Any, backend: str | None, one_W: bool = False) -> int:
    """How often a term of q is rounded, at most: by the order of the backend's sum, and in its product.

    ``one_W``: all pairs share one W, for which numba has a kernel of its own.
    """
    if backend == "numpy":  # at most 258 additions in a chain, and then those of chains: kernels/reference.py
        return n if n <= 256 else 256 + math.ceil(math.log2(math.ceil(n / 256))) + 4
    if backend == "numba" and not one_W:
        from sigmoid_l2.kernels.cpu import launch, rows, simd

        lanes = simd.lane_count(np.dtype(dtype))
        if m * n <= launch.TINY or n <= lanes:  # a tree that adds the last one of an odd number of terms by itself
            return n.bit_length() + n.bit_count() - 1
        sums = 1 if n * np.dtype(dtype).itemsize <= rows.NARROW_BYTES else rows.SUMS  # in each lane
        # Chains of whole groups of vectors, the other vectors, a chain over the sums, a tree over the lanes.
        return min(n, n // (sums * lanes) + 4 + 3 + int(math.log2(lanes)))
    return n


def allowed(
    W: Any,
    x: Any,
    truth: oracle.Truth,
    *,
    target: Any = None,
    cotangent: Any = None,
    backend: str | None = None,
    flushes: bool = False,
    g_eps: Any = 7,
) -> Results:
    """The errors allowed for one pair, float64; ``g_eps`` is the k of the table, or one number for each row.

    ``truth`` is that of the same W, x, target and cotangent. Without a backend they are those of sums in any order.
    """
    limits = _computed(W, x, truth, target, cotangent, backend, flushes, g_eps)
    return Results(*(_stored(limit, _floats(t), W.dtype) for limit, t in zip(limits, _true(truth), strict=True)))


def allowed_sum(limits: Any, terms: Any, count: int, dtype: Any) -> Any:
    """The error allowed for a gradient that is summed over ``count`` pairs.

    ``limits`` is the sum of the errors allowed for the pairs, ``terms`` that of the sizes |.| of their true gradients:
    for equal pairs, ``count`` times those of one. `assert_contract` sums itself. It is for a ``dtype`` of float32 or
    float64.
    """
    terms = _floats(terms)
    eps = float(np.finfo(_compute_dtype(dtype)).eps)
    return limits + (math.ceil(math.log2(count)) + 1) * eps * terms if count > 1 else limits


def _compute_dtype(dtype: Any) -> Any:
    return np.float32 if dtype == np.float16 else dtype


def _floats(values: Any) -> Any:
    return None if values is None else np.array(values, float)


def _true(truth: oracle.Truth) -> Results:
    return Results(truth.loss, truth.dW, truth.dx, truth.g)


def _computed(
    W: Any,
    x: Any,
    truth: oracle.Truth,
    target: Any,
    cotangent: Any,
    backend: Any,
    flushes: bool,
    g_eps: Any,
    one_W: bool = False,
) -> Results:
    """What ``allowed`` gives, before results are rounded to float16."""
    dtype, (m, n) = W.dtype, W.shape
    info = np.finfo(_compute_dtype(dtype))
    eps, tiny = float(info.eps), float(info.tiny)
    W, x = np.abs(W.astype(float)), np.abs(x.astype(float))
    y = np.broadcast_to(0.0 if target is None else np.asarray(target, float), m)
    cotangent = None if cotangent is None else abs(float(cotangent))
    S = min(m / 2, math.ceil(math.log2(m)) + 1) if backend and _DEVICE[backend] == "cpu" else m / 2

    e, slope = np.array(truth.e), _floats(truth.slope)
    a = np.minimum(abs(e + y) + abs(y), abs((1 - y) - e) + abs(1 - y)).astype(float)
    factor = 1 if cotangent is None else cotangent
    G = 2 * a * slope * factor
    t = tiny * np.maximum(1, factor * np.maximum(1, np.abs(e.astype(float)))) * (2 if flushes else 1)

    delta = 0.0 if n == 1 and x[0] == 1 else roundings_of_q(m, n, dtype, backend, one_W) * eps / 2 * (W @ x)
    row = 2 * delta + g_eps * eps  # the relative error of the loss's terms and, without a cotangent, of g: (m,) or ()
    g_row = row if cotangent is None else row + eps / 2
    return Results(
        loss=(a * a).sum() * (np.max(row) + (S - 1) * eps) + (m * tiny if flushes else tiny),
        dW=(G * g_row)[:, None] * x + t[:, None] * np.maximum(1, x),
        dx=((g_row + S * eps) * G) @ W + np.maximum(t.max(), t @ W),
        dq=G * g_row + t,
    )


def _stored(limit: Any, true: Any, dtype: Any) -> Any:
    """The error allowed where a result that may be off by ``limit`` is rounded to ``dtype``, if that is float16."""
    if dtype != np.float16 or true is None:
        return limit
    half = np.finfo(np.float16)
    return limit + float(half.eps) / 2 * (np.abs(true) + limit) + float(half.smallest_subnormal)


def worst(W: Any, x: Any, results: Results, limits: Results, truth: oracle.Truth) -> dict[str, tuple[float, str]]:
    """For each output of a pair the largest error / allowed error, inf for NaN, and a line that says where it is."""
    of_pair = zip(Results._fields, results, limits, _true(truth), strict=True)
    return {name: _worst(name, got, limit, true, W, x) for name, got, limit, true in of_pair if got is not None}


def _worst(name: str, got: Any, limit: Any, true: Any, W: Any, x: Any) -> tuple[float, str]:
    true = np.array(true, object)
    assert got.shape == true.shape, f"{name} has shape {got.shape}, not {true.shape}"
    assert got.dtype == W.dtype, f"{name} has dtype {got.dtype}, not {W.dtype}"
    with mpmath.workdps(60):
        error = np.array([abs(mpmath.mpf(float(a)) - t) for a, t in zip(got.flat, true.flat, strict=True)], float)
    ratio = np.where(np.isfinite(error), error / np.ravel(limit), np.inf)
    k = int(ratio.argmax())
    at = tuple(int(i) for i in np.unravel_index(k, got.shape))
    return float(ratio[k]), (
        f"{name}{list(at) or ''} = {got[at]!r}, true {mpmath.nstr(true[at], 20)}: error {error[k]:.3g} is "
        f"{ratio[k]:.3g} of the allowed {np.ravel(limit)[k]:.3g}; W {W.shape} {W.dtype}, x = {np.ravel(x)[:4]}"
    )


def assert_contract(
    W: Any,
    x: Any,
    loss: Any,
    dW: Any,
    dx: Any,
    *,
    dq: Any = None,
    target: Any = None,
    cotangent: Any = None,
    backend: str,
) -> None:
    """Assert the contract for a call: each output on its own, with the worst element named; None is not looked at.

    W (..., m, n), x (..., n), target (..., m) or a number, and cotangent (...) broadcast as they do for a call, and a
    gradient has its input's shape: it is summed. The values are those that are computed with: give all in W's dtype.
    """
    m, n = W.shape[-2:]
    target, cotangent = (None if a is None else np.asarray(a) for a in (target, cotangent))
    if target is not None and target.ndim == 0:
        target = target[None]
    own = W.shape[:-2], x.shape[:-1], () if target is None else target.shape[:-1], np.shape(cotangent)
    batch = np.broadcast_shapes(*own)
    inputs = [
        None if a is None else np.broadcast_to(a, (*batch, *shape))
        for a, shape in zip((W, x, target, cotangent), ((m, n), (n,), (m,), ()), strict=True)
    ]
    one_W = W.size == m * n and (W.ndim - 2 < len(batch) or math.prod(batch) > 1)
    on_gpu = _DEVICE[backend] == "cuda"
    flushes, k = on_gpu and W.dtype == np.float32, 8 if on_gpu else 7

    pairs = []
    for b in np.ndindex(batch):
        Wb, xb, yb, cb = (None if a is None else a[b] for a in inputs)
        truth = oracle.pair(Wb, xb, yb, cb)
        pairs.append((_true(truth), _computed(Wb, xb, truth, yb, cb, backend, flushes, k, one_W)))
    if not pairs:
        return

    shapes = Results(batch, W.shape[:-2], x.shape[:-1], batch)
    for name, got, shape in zip(Results._fields, (loss, dW, dx, dq), shapes, strict=True):
        if got is None:
            continue
        true, limit = ([getattr(results[kind], name) for results in pairs] for kind in (0, 1))
        true, limit = np.array(true, object), np.array(limit)
        true, limit = (a.reshape((*batch, *a.shape[1:])) for a in (true, limit))
        shared = tuple(
            i for i, size in enumerate(batch) if size != 1 and (*(1,) * (len(batch) - len(shape)), *shape)[i] == 1
        )
        if shared:
            terms, limit = np.abs(true.astype(float)).sum(shared, keepdims=True), limit.sum(shared, keepdims=True)
            with mpmath.workdps(60):
                true = true.sum(shared, keepdims=True)
            limit = allowed_sum(limit, terms, math.prod(batch[i] for i in shared), W.dtype)
        true, limit = (a.reshape((*shape, *a.shape[len(batch) :])) for a in (true, limit))
        ratio, line = _worst(name, got, _stored(limit, true.astype(float), W.dtype), true, W, x)
        assert ratio <= 1, f"{backend} breaks the contract for {name}: {line}"
