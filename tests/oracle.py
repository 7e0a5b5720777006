"""The truth for one pair, slowly: scalar loops over numbers of 60 digits, written from the mathematics.

Nothing here is taken from the library. f = sum_i e_i^2 with e_i = s_i - y_i, s_i = sigmoid(q_i), q_i = sum_j W_ij x_j,
hence for the gradients of cotangent * f

    df/dW_ij = g_i x_j,    df/dx_j = sum_i g_i W_ij,    g_i = df/dq_i = cotangent * 2 e_i * s'(q_i),    s' = s(q) s(-q)

where s(-q) = 1 - s(q); it is evaluated as such, and so is e = (1 - y) - s(-q) where y is nearer to 1 than to 0, so that
60 digits are enough for every q.
"""

from typing import Any, NamedTuple

import mpmath
import numpy as np


class Truth(NamedTuple):
    """The exact results (to 60 digits) of one pair; mpmath numbers in nested lists."""

    g: list[Any]  # (m,), which is dq
    loss: Any
    dW: list[list[Any]]  # (m, n)
    dx: list[Any]  # (n,)
    e: list[Any]  # (m,)
    slope: list[Any]  # (m,): s'(q)


def sigmoid(q: Any) -> Any:
    """1 / (1 + exp(-q))."""
    return 1 / (1 + mpmath.exp(-q))


def pair(W: Any, x: Any, target: Any = None, cotangent: Any = None) -> Truth:
    """Loss and gradients for W (m, n), x (n,), a target (m,) or of one number, and a number ``cotangent``.

    The floats are finite and taken at their exact values. A target of None is 0, a cotangent of None is 1.
    """
    m, n = len(W), len(x)
    target = np.broadcast_to(0.0 if target is None else target, m)
    with mpmath.workdps(60):
        W = [[mpmath.mpf(float(w)) for w in row] for row in W]
        x = [mpmath.mpf(float(v)) for v in x]
        factor = mpmath.mpf(1.0 if cotangent is None else float(cotangent))
        loss, g, dW, dx, errors, slopes = mpmath.mpf(0), [], [], [mpmath.mpf(0)] * n, [], []
        for i in range(m):
            q, y = mpmath.mpf(0), mpmath.mpf(float(target[i]))
            for j in range(n):
                q += W[i][j] * x[j]
            e = (1 - y) - sigmoid(-q) if y > 0.5 else sigmoid(q) - y
            slope = sigmoid(q) * sigmoid(-q)
            loss += e * e
            errors.append(e)
            slopes.append(slope)
            g.append(factor * 2 * e * slope)
            dW.append([g[i] * x[j] for j in range(n)])
            for j in range(n):
                dx[j] += g[i] * W[i][j]
        return Truth(g, loss, dW, dx, errors, slopes)
