"""What a call costs with the pairs last in memory: W of (m, n, B) and, as Fortran orders (B, m, n), of (n, m, B)."""

from typing import Any

import numpy as np
from results import Key
from workload import LINE, OUT_AT, Run, Workload, placed

import sigmoid_l2 as sl2

# The usual layout, which the others are compared with, and the order of the axes of W in memory for each.
FIRST = "W (B, m, n)"
ORDERS = {FIRST: (0, 1, 2), "W (m, n, B)": (1, 2, 0), "W (n, m, B)": (2, 1, 0)}


def runs(work: Workload, backend: str, key: Key) -> dict[Key, Run]:
    """A call for each layout into outputs of that layout, which ``key`` gets the name of; all results are checked."""

    def like(a: Any, order: tuple[int, ...]) -> Any:
        """A view in a's shape of new memory with the axes in this order."""
        pairs_last = order[-1] == 0
        axes = order if a.ndim == 3 else (1, 0) if a.ndim == 2 and pairs_last else tuple(range(a.ndim))
        memory = placed(work.xp, tuple(a.shape[k] for k in axes), a.dtype, OUT_AT, LINE)
        return memory.transpose(*np.argsort(axes))

    def call(order: tuple[int, ...]) -> Run:
        W, x, *out = (like(a, order) for a in (work.W, work.x, *work.out))
        W[...], x[...] = work.W, work.x
        for a in out:
            a.fill(np.nan)

        def run() -> object:
            return sl2.value_and_grad(W, x, out=tuple(out), backend=backend)

        work.check(run())
        return run

    return {key._replace(outputs=layout): call(order) for layout, order in ORDERS.items()}
