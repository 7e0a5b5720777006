"""A fit of millions of small models by gradient descent, beside the best loop that one would write by hand.

A step computes dW with a target and takes a part of it from W. The batch is fitted whole, or in blocks, each of which
does all of its steps before the next one begins: where W and dW of a block stay in the caches, no step reads memory.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from peers import OURS
from results import Key
from workload import Run

import sigmoid_l2 as sl2

# How many models, W (m, n) of each, and the part of dW that a step takes.
MODELS = 2_000_000
M, N = 4, 6
RATE = np.float32(0.1)
# Models in a block, and the steps that each block does; a time is that of one step of all blocks.
BLOCKS = (2_000, 20_000, 200_000, MODELS)
STEPS = 4
# Error that a fitted W may have, relative to its largest element.
TOLERANCE = 1e-5
# Ways of a step: the part is taken by NumPy; dW has the part in it, by the cotangent; the same on the caller's threads.
SCALED, COTANGENT, THREADS = "dW *= rate; W -= dW", "cotangent=rate; W -= dW", "the same on threads of the caller"
LOOP = "numba prange loop"

Step = Callable[..., None]


def scaled(W: Any, x: Any, y: Any, rate: Any, dW: Any) -> None:
    sl2.grad(W, x, y, wrt="W", out=dW, backend="numba")
    np.multiply(dW, RATE, out=dW)
    np.subtract(W, dW, out=W)


def with_cotangent(W: Any, x: Any, y: Any, rate: Any, dW: Any) -> None:
    sl2.grad(W, x, y, cotangent=rate, wrt="W", out=dW, backend="numba")
    np.subtract(W, dW, out=W)


@cache
def _loop() -> Any:
    from numba import njit, prange

    one, two = np.float32(1), np.float32(2)

    @njit(parallel=True, fastmath=True)
    def loop(W: Any, x: Any, y: Any) -> None:
        for b in prange(len(W)):
            for i in range(M):
                q = np.float32(0)
                for j in range(N):
                    q += W[b, i, j] * x[b, j]
                s = one / (one + np.exp(-q))
                part = RATE * two * (s - y[b, i]) * s * (one - s)
                for j in range(N):
                    W[b, i, j] -= part * x[b, j]

    return loop


def by_hand(W: Any, x: Any, y: Any, rate: Any, dW: Any) -> None:
    """All in one loop, with the sizes as constants and fast-math; no dW is written."""
    _loop()(W, x, y)


class Fit:
    """The models and their data; all ways fit the same W, one after the other."""

    def __init__(self, models: int) -> None:
        rng = np.random.default_rng(0)
        self.W = rng.standard_normal((models, M, N), np.float32) * np.float32(N**-0.5)
        self.x = rng.standard_normal((models, N), np.float32)
        self.y = rng.integers(0, 2, (models, M)).astype(np.float32)
        self.rate = np.full(models, RATE)
        self.dW = np.zeros_like(self.W)

    def runs(self, block: int, threads: int) -> dict[Key, Run]:
        """STEPS steps of all models in blocks, in every way."""
        whole = slice(0, len(self.W))
        runs = {
            Key(OURS.name, SCALED, threads): self.run(scaled, block, whole),
            Key(OURS.name, COTANGENT, threads): self.run(with_cotangent, block, whole),
            Key(OURS.name, THREADS, threads): self.on_threads(with_cotangent, block, threads),
            Key(LOOP, "W -= rate * dW"): self.run(by_hand, block, whole),
        }
        return {key: self.checked(run) for key, run in runs.items()}

    def checked(self, run: Run) -> Run:
        """``run``, which does the same to some models as the steps in float64 do: nothing wrong is timed."""
        some = slice(None, None, max(1, len(self.W) // 1000))
        W, x, y = (a[some].astype(float) for a in (self.W, self.x, self.y))
        for _ in range(STEPS):
            s = 1 / (1 + np.exp(-np.einsum("bij,bj->bi", W, x)))
            W -= RATE * (2 * (s - y) * s * (1 - s))[:, :, None] * x[:, None, :]
        run()
        error = np.abs(self.W[some] - W).max() / np.abs(W).max()
        assert error <= TOLERANCE, f"W is wrong by {error:.2g} of its largest element"
        return run

    def run(self, step: Step, block: int, models: slice) -> Run:
        """The steps of ``models``, each block in the same dW, the first one of theirs."""

        def call() -> None:
            dW = self.dW[models]
            for first in range(models.start, models.stop, block):
                part = slice(first, min(first + block, models.stop))
                arrays = [a[part] for a in (self.W, self.x, self.y, self.rate)]
                for _ in range(STEPS):
                    step(*arrays, dW[: part.stop - first])

        return call

    def on_threads(self, step: Step, block: int, threads: int) -> Run:
        """The same, each of the caller's ``threads`` with its part of the models; a call of ours runs on one thread."""
        ends = [len(self.W) * k // threads for k in range(threads + 1)]
        runs = [self.run(step, block, slice(*both)) for both in pairwise(ends)]
        pool = ThreadPoolExecutor(threads)

        def call() -> None:
            sl2.set_num_threads(1)
            try:
                for done in [pool.submit(run) for run in runs]:
                    done.result()
            finally:
                sl2.set_num_threads(None)

        return call
