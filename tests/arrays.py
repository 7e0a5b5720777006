"""Arrays that tests pass to the library: random pairs and unusual layouts; and comparisons to the last byte."""

import warnings

import numpy as np
import pytest

import sigmoid_l2 as sl2

CALLS = {"value_and_grad": ("loss", "dW", "dx"), "value": ("loss",), "grad": ("dW", "dx")}


def pairs(batch, m=3, n=4, dtype=np.float64, seed=0):
    """W (*batch, m, n) and x (*batch, n) of normally distributed numbers; the same for the same arguments."""
    rng = np.random.default_rng([*batch, m, n, seed])
    return rng.standard_normal((*batch, m, n)).astype(dtype), rng.standard_normal((*batch, n)).astype(dtype)


def bits(results, pairs=...):
    """Shape, dtype and bytes of each array, or of these ``pairs`` of it: equal if nothing at all differs."""
    return [(a.shape, a.dtype, np.ascontiguousarray(a).tobytes()) for a in (a[pairs] for a in results)]


class Subclass(np.ndarray):
    """An array of another type."""


def strided(a):
    """The same values in every other element of an array that is otherwise NaN, or 0."""
    wide = np.full((*a.shape[:-1], 2 * a.shape[-1]), np.nan if a.dtype.kind == "f" else 0, a.dtype)
    wide[..., ::2] = a
    return wide[..., ::2]


def unaligned(a):
    """The same values at an odd address."""
    b = np.empty(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    b[...] = a
    return b


def read_only(a):
    """A view that cannot be written."""
    a = a.view()
    a.flags.writeable = False
    return a


def matrix(a):
    """NumPy's matrix, whose creation warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        return np.asmatrix(a)


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


def assert_refused(a, error, words, call="value_and_grad", **arguments):
    """``call`` raises ``error`` with all ``words`` in its message, and ``a.memory`` stays as it was."""
    before = a.memory.tobytes()
    with pytest.raises(error) as raised:
        getattr(sl2, call)(**arguments)
    for word in words:
        assert word in str(raised.value)
    assert a.memory.tobytes() == before, "something was written"
