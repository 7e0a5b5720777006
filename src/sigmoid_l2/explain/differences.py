"""Gradients by differences of the loss, with steps that are too large to be right."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sigmoid_l2.explain.products import Places
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


def by_differences(
    name: str, difference: Difference, inputs: Inputs, values: Values, places: Places | None = None
) -> Array:
    """The ``name`` ("dW" or "dx") of each sum by differences, without rounding; or those at ``places`` alone."""
    # q_i + h x_j where W_ij is moved by h, q_i + h W_ij where x_j is
    slope = np.broadcast_to(values.x[:, None, :], values.W.shape) if name == "dW" else values.W
    q, y = values.q[:, :, None], values.y[:, :, None]
    if places and name == "dW":
        slope = slope[:, places[0]][:, :, places[1]]
        q, y = q[:, places[0]], y[:, places[0]]
    elif places:
        slope = slope[:, :, places[0]]

    def loss(h: float) -> Array:
        s, c = sigmoid_and_complement(q + h * slope)
        return np.asarray(residual(s, c, y) ** 2)

    terms = (loss(difference.second) - loss(difference.first)) / (difference.second - difference.first)
    return inputs.summed(terms if name == "dW" else terms.sum(axis=1))
