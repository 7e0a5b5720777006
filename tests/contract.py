"""The accuracy contract as the one table of tolerances, checked against the oracle at the inputs' exact values.

With eps and tiny (the smallest normal number) of the compute dtype, |.| the true values; k = 7 on a CPU, 8 on a GPU:

    output  error allowed                                   because
    loss    |loss| (2 max_i dq_i + (S + k - 1) eps)         d log(s^2)/dq = 2 (1 - s) <= 2; m terms are summed
    dW_ij   |dW_ij| (2 dq_i + k eps)                        d log(g)/dq = 2 - 3s, from -1 to 2; exp, 1/(1 + t) and the
                                                            products of g and dW: 2 E + 4.75 eps, E that of exp
    dx_j    sum_i |g_i W_ij| (2 dq_i + (S + k) eps)         as dW_ij, and m terms are summed

S eps is the rounding of a sum over m rows. On a GPU S = m/2, for any order: a term is rounded by eps/2 in at most m
additions. On a CPU it is in at most 2 ceil(log2 m) + 2 of them, so S = min(m/2, ceil(log2 m) + 1):
tests/host/test_sums.py and kernels/reference.py count them.

dq_i = r eps/2 sum_j |W_ij x_j| is the rounding of q_i, where a term is rounded r times; `roundings_of_q` counts them. A
1x1 pair with x = 1 has q = W exactly: dq = 0.

float16 is computed in float32, with the errors above, and each result is rounded to float16 once.

docs/accuracy.md has the derivation, and the measurement over all float32 q that k = 7 rests on (NumPy's exp there is
not good enough for it by the bound alone). On a GPU nothing has been measured yet.

Errors below tiny do not count. So g may be off by `tiny`, hence dW_ij by tiny max(1, |x_j|) and dx_j by
tiny max(1, sum_i |W_ij|), and loss by tiny. CuPy always compiles float32 with -ftz=true: exp(-|q|) is flushed to 0
while g = 2 exp(-|q|) is still normal, so there g may be off by 2 tiny, and each of the m terms of the loss by tiny.
"""

import math
from typing import Any, NamedTuple

import mpmath
import numpy as np
import oracle

from sigmoid_l2 import dispatch

_DEVICE = {b.name: b.device for b in dispatch.BACKENDS}


class Results(NamedTuple):
    """One value for each output of a pair, or one for each of its elements."""

    loss: Any  # ()
    dW: Any  # (m, n)
    dx: Any  # (n,)


def roundings_of_q(m: int, n: int, dtype: Any, backend: str | None) -> int:
    """How often a term of q is rounded, at most: by the order of the backend's sum, and in its product."""
    if backend == "numpy":  # at most 258 additions in a chain, and then those of chains: kernels/reference.py
        return n if n <= 256 else 256 + math.ceil(math.log2(math.ceil(n / 256))) + 4
    if backend == "numba":
        from sigmoid_l2.kernels.cpu import launch, rows, simd

        lanes = simd.lane_count(np.dtype(dtype))
        if m * n <= launch.TINY or n <= lanes:  # a tree that adds the last one of an odd number of terms by itself
            return n.bit_length() + n.bit_count() - 1
        sums = 1 if n * np.dtype(dtype).itemsize <= rows.NARROW_BYTES else rows.SUMS  # in each lane
        # Chains of whole groups of vectors, the other vectors, a chain over the sums, a tree over the lanes.
        return min(n, n // (sums * lanes) + 4 + 3 + int(math.log2(lanes)))
    return n


def allowed(
    W: Any, x: Any, truth: oracle.Truth, *, backend: str | None = None, flushes: bool = False, g_eps: Any = 7
) -> Results:
    """The errors allowed for one pair, float64; ``g_eps`` is the k of the table, or one number for each row.

    Without a backend they are those of sums in any order.
    """
    half, dtype, (m, n) = W.dtype == np.float16, W.dtype, W.shape
    info = np.finfo(np.float32 if half else dtype)
    eps, tiny = float(info.eps), float(info.tiny)
    W, x = np.abs(W.astype(float)), np.abs(x.astype(float))
    S = min(m / 2, math.ceil(math.log2(m)) + 1) if backend and _DEVICE[backend] == "cpu" else m / 2
    loss, g, dW = float(truth.loss), np.array(truth.g, float), np.abs(np.array(truth.dW, float))
    dq = 0.0 if n == 1 and x[0] == 1 else roundings_of_q(m, n, dtype, backend) * eps / 2 * (W @ x)
    row = 2 * dq + g_eps * eps  # the relative error of g_i, (m,) or ()
    g_tiny = 2 * tiny if flushes else tiny
    limits = Results(
        loss=loss * (np.max(row) + (S - 1) * eps) + (m * tiny if flushes else tiny),
        dW=dW * np.reshape(row, (-1, 1)) + g_tiny * np.maximum(1, x),
        dx=((row + S * eps) * g) @ W + g_tiny * np.maximum(1, W.sum(axis=0)),
    )
    if not half:
        return limits
    sizes = loss, dW, np.abs(np.array(truth.dx, float))
    to_half = np.finfo(np.float16)
    return Results(
        *(
            limit + float(to_half.eps) / 2 * (size + limit) + float(to_half.smallest_subnormal)
            for limit, size in zip(limits, sizes, strict=True)
        )
    )


def worst(W: Any, x: Any, results: Results, limits: Results, truth: oracle.Truth) -> dict[str, tuple[float, str]]:
    """For each output the largest error / allowed error, inf for NaN, and a line that says where it is."""
    found = {}
    for name, got, limit in zip(Results._fields, results, limits, strict=True):
        true = np.array(getattr(truth, name), object)
        assert got.shape == true.shape, f"{name} has shape {got.shape}, not {true.shape}"
        assert got.dtype == W.dtype, f"{name} has dtype {got.dtype}, not {W.dtype}"
        with mpmath.workdps(60):
            error = np.array([abs(mpmath.mpf(float(a)) - t) for a, t in zip(got.flat, true.flat, strict=True)], float)
        ratio = np.where(np.isfinite(error), error / np.ravel(limit), np.inf)
        k = int(ratio.argmax())
        at = tuple(int(i) for i in np.unravel_index(k, got.shape))
        line = (
            f"{name}{list(at) or ''} = {got[at]!r}, true {mpmath.nstr(true[at], 20)}: error {error[k]:.3g} is "
            f"{ratio[k]:.3g} of the allowed {np.ravel(limit)[k]:.3g}; W {W.shape} {W.dtype}, x = {x[:4]}"
        )
        found[name] = float(ratio[k]), line
    return found


def assert_contract(W: Any, x: Any, loss: Any, dW: Any, dx: Any, *, backend: str) -> None:
    """Assert the contract for one pair or a batch: loss, dW and dx each on its own, with the worst element named."""
    if W.ndim > 2:
        for b in np.ndindex(W.shape[:-2]):
            assert_contract(W[b], x[b], loss[b], dW[b], dx[b], backend=backend)
        return
    truth = oracle.pair(W, x)
    on_gpu = _DEVICE[backend] == "cuda"
    flushes = on_gpu and W.dtype == np.float32
    limits = allowed(W, x, truth, backend=backend, flushes=flushes, g_eps=8 if on_gpu else 7)
    for name, (ratio, line) in worst(W, x, Results(loss, dW, dx), limits, truth).items():
        assert ratio <= 1, f"{backend} breaks the contract for {name}: {line}"
