"""The truth for one pair, slowly: scalar loops over numbers of 60 digits, written from the mathematics.

Nothing here is taken from the library. f = sum_i s_i^2 with s_i = sigmoid(q_i) and q_i = sum_j W_ij x_j, hence

    df/dW_ij = g_i x_j,    df/dx_j = sum_i g_i W_ij,    g_i = df/dq_i = 2 s_i * s'(q_i),    s' = s(q) s(-q)

where s(-q) = 1 - s(q); it is evaluated as such, so that 60 digits are enough for every q.
"""

from typing import Any, NamedTuple

import mpmath


class Truth(NamedTuple):
    """The exact results (to 60 digits) of one pair; mpmath numbers in nested lists."""

    g: list[Any]  # (m,)
    loss: Any
    dW: list[list[Any]]  # (m, n)
    dx: list[Any]  # (n,)


def sigmoid(q: Any) -> Any:
    """1 / (1 + exp(-q))."""
    return 1 / (1 + mpmath.exp(-q))


def pair(W: Any, x: Any) -> Truth:
    """Loss and gradients for W (m, n) and x (n,), finite floats taken at their exact values."""
    with mpmath.workdps(60):
        W = [[mpmath.mpf(float(w)) for w in row] for row in W]
        x = [mpmath.mpf(float(v)) for v in x]
        m, n = len(W), len(x)
        loss, g, dW, dx = mpmath.mpf(0), [], [], [mpmath.mpf(0)] * n
        for i in range(m):
            q = mpmath.mpf(0)
            for j in range(n):
                q += W[i][j] * x[j]
            s = sigmoid(q)
            loss += s * s
            g.append(2 * s * s * sigmoid(-q))
            dW.append([g[i] * x[j] for j in range(n)])
            for j in range(n):
                dx[j] += g[i] * W[i][j]
        return Truth(g, loss, dW, dx)
