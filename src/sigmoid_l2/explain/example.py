"""A backward pass written by hand for one 3x3 pair, and wrong.

Its author applied df/ds twice, computed df/dx as an elementwise product with 2 Wᵀ, which made it 3x3 instead of 3x1,
and rounded every intermediate to 3 digits. ``check_grad(W, x, dW=dW, dx=dx)`` finds all three mistakes, and
``trace(W, x)`` shows every step done right.
"""

from typing import Any

import numpy as np
import numpy.typing as npt


def _constant(rows: list[list[float]]) -> npt.NDArray[Any]:
    array = np.array(rows)
    array.setflags(write=False)  # the whole process shares this array, so nobody may change it
    return array


W = _constant([[0.1, 0.5, 0.2], [-0.3, 0.8, 0.5], [0.5, 0.2, 0.3]])  # (3, 3)
x = _constant([[0.2], [0.4], [0.1]])  # (3, 1), a column

# The hand-written gradients, as the program printed them.
dW = _constant([[0.062, 0.124, 0.031], [0.065, 0.13, 0.033], [0.06, 0.121, 0.03]])  # df/dW, (3, 3)
dx = _constant([[0.062, -0.185, 0.309], [0.325, 0.52, 0.13], [0.121, 0.301, 0.181]])  # (3, 3), but df/dx is (3, 1)
