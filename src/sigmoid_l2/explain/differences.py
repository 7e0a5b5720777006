"""Gradients by differences of the loss, with steps that are too large to be right."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sigmoid_l2.explain.program import Inputs, Values
from sigmoid_l2.explain.trace import residual
from sigmoid_l2.kernels.reference import sigmoid_and_complement

Array = npt.NDArray[Any]


class Difference(NamedTuple):
    """One kind of difference with one step."""

    done: str
    first: float  # the two places, as offsets of a value of W or x
    second: float


DIFFERENCES = tuple(
    Difference(f"{kind} differences with the step {h:g}, which is too large", *places)
    for h in (1.0, 0.5, 0.1, 0.05, 0.01, 1e-3, 1e-4, 1e-5)
    for kind, places in {"forward": (0.0, h), "backward": (-h, 0.0), "central": (-h, h)}.items()
)


def by_differences(name: str, difference: Difference, inputs: Inputs, values: Values) -> Array:
    """The ``name`` ("dW" or "dx") of each pair by differences, without rounding."""
    # q_i + h x_j where W_ij is moved by h, q_i + h W_ij where x_j is
    slope = np.broadcast_to(values.x[:, None, :], values.W.shape) if name == "dW" else values.W

    def loss(h: float) -> Array:
        s, c = sigmoid_and_complement(values.q[:, :, None] + h * slope)
        return np.asarray(residual(s, c, values.y[:, :, None]) ** 2)

    terms = (loss(difference.second) - loss(difference.first)) / (difference.second - difference.first)
    return inputs.summed(terms if name == "dW" else terms.sum(axis=1))
