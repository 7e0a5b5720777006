"""How arrays lie in memory: whose pairs are neighbours there, and new results in the layout of their inputs.

W (*batch, m, n) is *batch-last* where no step along m or n (of an axis longer than 1) is shorter than two elements, or
than a step along any axis of the batch: its pairs lie inside of its other axes. Such are views of arrays (m, n, *batch)
and (n, m, *batch). For pairs with a W of their own, of a size that ``batch_last`` takes, this alone decides whether it
computes them: not the lengths of the batch axes, nor the layout of any other array. So the kernel, and with it the last
bits of a pair, is the same for all pairs, for a range, for every other one and for one, W[k:k+1]: NumPy keeps the step
of an axis of length 1. (But it multiplies it in W[::k], which leaves one pair and may look like another layout where k
is larger than the batch.)

A C-contiguous W is never batch-last. The last of its axes m and n that is longer than 1 has steps of one element; and
where both have length 1, there is none to tell. Nor is a W without a batch axis, or where all of these have been added,
with a step of 0: W[k] looks like every other element of one matrix, which a kernel for many pairs would take long for.
"""

from collections.abc import Callable, Sequence
from typing import Any

from sigmoid_l2.problem import Problem


def is_batch_last(W: Any) -> bool:
    """Whether W (*batch, m, n) is batch-last; see the top of this file."""
    if W.flags.c_contiguous:  # as are numba's arrays, which do not tell their strides
        return False
    *batch, i, j = map(abs, W.strides)
    steps = [step for step, size in zip((i, j), W.shape[-2:], strict=True) if size > 1]
    return bool(steps) and any(batch) and min(steps) >= max(2 * W.itemsize, *batch)


def new_result(problem: Problem, name: str, empty: Callable[..., Any]) -> Any:
    """A new array for the result ``name``, dense in memory, where it lies as its input does; see ``_order``.

    ``empty`` is like ``np.empty``.
    """
    shape, order = problem.shapes[name], _order(problem, name)
    if order is None:
        return empty(shape, problem.dtype)
    lies = empty(tuple(shape[axis] for axis in order), problem.dtype)
    return lies.transpose(sorted(range(len(order)), key=order.__getitem__))


def _order(problem: Problem, name: str) -> Sequence[int] | None:
    """The axes of a new result from the longest step in memory to the shortest; None for those of C order.

    A gradient has the order of its input, NumPy's order "K". Where W has the whole batch and its pairs lie inside, so
    do those of dq.
    """
    library = problem.gpu or problem.library
    if library is not None and not library.gives_views:
        return None
    W, x = problem.W, problem.x
    if name == "dq" and W.shape[:-2] == problem.batch and is_batch_last(W):
        axes = len(problem.batch)
        return (axes, *range(axes), *range(axes + 1, axes + 1 + problem.column))
    given = W if name == "dW" else x if name == "dx" else None
    if given is None or given.flags.c_contiguous:
        return None
    if any(step == 0 and size > 1 for step, size in zip(given.strides, given.shape, strict=True)):
        return None  # elements that share memory are in no order
    order = sorted(range(given.ndim), key=lambda axis: -abs(given.strides[axis]))
    return (*order, given.ndim) if name == "dx" and problem.column else order
