"""What the tables of odd arguments share: arrays to begin with, and the proof that an error writes nothing."""

import warnings

import numpy as np
import pytest

import sigmoid_l2 as sl2

CALLS = {"value_and_grad": ("loss", "dW", "dx"), "value": ("loss",), "grad": ("dW", "dx")}


class Arrays:
    """W (5, 3, 4), x (5, 4), loss (5,), dW (5, 3, 4) and dx (5, 4): all of them views of one ``memory``."""

    def __init__(self):
        self.memory = np.arange(200.0) / 100 - 1
        self.W, self.dW = self.memory[:120].reshape(2, 5, 3, 4)
        self.loss = self.memory[120:125]
        self.dx, self.x = self.memory[125:165].reshape(2, 5, 4)

    def out(self, call="value_and_grad", **other):
        """What ``call`` takes as ``out``, with ``other`` arrays in the place of those here."""
        out = tuple(other.get(name, getattr(self, name)) for name in CALLS[call])
        return out if len(out) > 1 else out[0]


def matrix(a):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        return np.asmatrix(a)


def assert_refused(a, error, words, call="value_and_grad", **arguments):
    """``call`` raises ``error`` with all ``words`` in its message, and ``a.memory`` stays as it was."""
    before = a.memory.tobytes()
    with pytest.raises(error) as raised:
        getattr(sl2, call)(**arguments)
    for word in words:
        assert word in str(raised.value)
    assert a.memory.tobytes() == before, "something was written"
