"""How ``batch_last`` of both GPU libraries becomes a launch: arrays whose last axis is that of the pairs.

``launcher`` is the module launch_cupy or launch_numba, as in launch.py.
"""

from typing import Any

from sigmoid_l2.gpu.arrays import address
from sigmoid_l2.kernels import Given, Wanted
from sigmoid_l2.kernels.gpu import plan_batch_last


def has_batch_last(m: int, n: int, itemsize: int) -> bool:
    """Whether ``batch_last`` takes pairs of (m, n)."""
    return plan_batch_last.make_plan(m, n, itemsize) is not None


def batch_last(
    launcher: Any,
    W: Any,
    x: Any,
    target: Any,
    cotangent: Any,
    loss: Any,
    dW: Any,
    dx: Any,
    dq: Any,
    stream: int | None,
) -> None:
    """Compute loss, dW, dx and dq for a batch, in one launch, or in several where a grid has no room for it."""
    (m, n, B), itemsize = W.shape, W.dtype.itemsize
    p = plan_batch_last.make_plan(m, n, itemsize)
    if p is None:
        raise NotImplementedError(f"there is no GPU kernel for pairs of {m} by {n} along the last axis")
    begins = [0 if a is None else address(a) for a in (W, x, target, cotangent, loss, dW, dx, dq)]
    given, wanted = Given(target is not None, cotangent is not None), Wanted.of(loss, dW, dx, dq)
    kernel = launcher.batch_last_kernel(p, n, itemsize, given, wanted)
    steps = *_steps(W, 2), *_steps(x, 1), *_steps(target, 1), *_steps(dW, 2), *_steps(dx, 1), *_steps(dq, 1)
    most = plan_batch_last.MOST_BLOCKS * p.threads
    for first in range(0, B, most):
        pairs = min(most, B - first)
        own = (a and a + first * itemsize for a in begins)
        launcher.run(kernel, -(-pairs // p.threads), p.threads, stream, (*own, pairs, m, *steps))


def _steps(a: Any, axes: int) -> list[int]:
    """Distances of neighbours along the first axes, in elements."""
    return [0] * axes if a is None else [stride // a.dtype.itemsize for stride in a.strides[:axes]]
