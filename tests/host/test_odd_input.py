"""What looks odd and computes all the same: to the last bit as a plain copy does."""

import array

import numpy as np
import pytest
from arrays import Arrays, Subclass, bits, matrix, read_only, unaligned
from numpy.lib.stride_tricks import as_strided

import sigmoid_l2 as sl2
from sigmoid_l2 import layouts


class Own:
    """An object of another library that knows how to become an array."""

    def __init__(self, a):
        self.a = a

    def __array__(self, dtype=None, copy=None):
        return self.a


def records(a, align=False):
    """W and x interleaved in records; where not aligned, each at an odd address."""
    fields = np.dtype([("tag", "u1"), ("W", "f8", (3, 4)), ("x", "f4", 4)], align=align)
    table = np.zeros(len(a.W), fields)
    table["W"], table["x"] = a.W, a.x
    assert table["W"].flags.aligned == align
    return table["W"], table["x"]


INPUTS = {  # what is given for W and x
    "matrices": lambda a: (matrix(a.W[0]), matrix(a.x[0]).T),
    "a matrix and a vector": lambda a: (matrix(a.W[0]), a.x[0]),
    "a subclass": lambda a: (a.W.view(Subclass), a.x.view(Subclass)),
    "records' arrays": lambda a: (a.W.view(np.recarray), a.x.view(np.recarray)),
    "lists of lists": lambda a: (a.W.tolist(), a.x.tolist()),
    "tuples of integers": lambda a: (((1, 2), (3, 4)), (1, -2)),
    "a list of arrays": lambda a: (list(a.W), [tuple(row) for row in a.x]),
    "a list and an array": lambda a: (a.W[0].tolist(), a.x[0]),
    "bool": lambda a: ([[True, False]], [False, True]),
    "memoryviews": lambda a: (memoryview(a.W), memoryview(a.x)),
    "a memoryview of bytes": lambda a: (
        memoryview(bytes(range(6))).cast("B", (2, 3)),
        b"abc"[0:0] or bytearray(b"abc"),
    ),
    "an array.array": lambda a: (a.W[0], array.array("f", [1, 2, 3, 4])),
    "objects with __array__": lambda a: (Own(a.W), Own(a.x)),
    "a broadcast view of 100,000 pairs": lambda a: (
        np.broadcast_to(a.W[0], (100_000, 3, 4)),
        np.broadcast_to(a.x[0], (100_000, 4)),
    ),
    "a broadcast view inside a pair": lambda a: (np.broadcast_to(a.W[:, :, :1], (5, 3, 4)), a.x),
    "one number everywhere": lambda a: (np.broadcast_to(0.5, (5, 3, 4)), np.broadcast_to(np.float32(0.5), (5, 4))),
    "backwards": lambda a: (a.W[::-1, ::-1, ::-1], a.x[::-1, ::-1]),
    "every second": lambda a: (a.W[::2, :, ::2], a.x[::2, 1::2]),
    "transposed": lambda a: (a.W.T, a.x.T),
    "Fortran order": lambda a: (np.asfortranarray(a.W), np.asfortranarray(a.x)),
    "overlapping windows": lambda a: (
        as_strided(a.memory, (5, 3, 4), (8, 16, 8)),
        as_strided(a.memory, (5, 4), (8, 8)),
    ),
    "W and x share memory": lambda a: (a.W, a.W[:, 1]),
    "x is W's memory": lambda a: (a.W[0, :3, :3], a.W[0, 1, :3]),
    "unaligned fields of records": lambda a: records(a),
    "aligned fields of records": lambda a: records(a, align=True),
    "unaligned": lambda a: (unaligned(a.W), a.x),
    "the other byte order": lambda a: (a.W.astype(">f8"), a.x.astype(">f8")),
    "both byte orders": lambda a: (a.W.astype(">f4"), a.x.astype("<f4")),
    "read-only": lambda a: (read_only(a.W), read_only(a.x)),
    "of bytes": lambda a: (np.frombuffer(a.W.tobytes()).reshape(a.W.shape), np.frombuffer(a.x.tobytes()).reshape(5, 4)),
    "mixed floats": lambda a: (a.W.astype("f2"), a.x.astype("f4")),
    "integers and a float": lambda a: ((9 * a.W).astype("i1"), a.x.astype("f4")),
    "a dtype with metadata": lambda a: (a.W.astype(np.dtype("f8", metadata={"unit": "m"})), a.x),
    "columns": lambda a: (a.W, a.x[..., None]),
    "columns of a longer array": lambda a: (a.W, np.repeat(a.x, 3, axis=1)[:, ::3, None]),
    "many batch axes": lambda a: (a.W.reshape(1, 5, 1, 1, 1, 3, 4), a.x.reshape(1, 5, 1, 1, 1, 4)),
    "64 axes": lambda a: (a.W[0].reshape((1,) * 62 + (3, 4)), a.x[0].reshape((1,) * 62 + (4,))),
}


@pytest.mark.parametrize("given", INPUTS.values(), ids=INPUTS)
def test_computes(given, backend):
    W, x = given(Arrays())
    copies = np.array(W), np.array(x)
    got = sl2.value_and_grad(W, x, backend=backend)
    assert all(type(a) is np.ndarray for a in got)
    order = "K" if layouts.is_batch_last(np.asarray(W)) else "C"  # which has its own order of the sums
    plain = (np.array(a, got.loss.dtype, order=order) for a in copies)
    assert bits(got) == bits(sl2.value_and_grad(*plain, backend=backend))
    assert bits(got) == bits((sl2.value(W, x, backend=backend), *sl2.grad(W, x, backend=backend)))
    assert bits(map(np.array, (W, x))) == bits(copies), "an input was changed"


OUTPUTS = {  # what is given for out
    "a list": lambda a: [a.loss, a.dW, a.dx],
    "subclasses": lambda a: a.out(loss=a.loss.view(Subclass), dW=a.dW.view(np.recarray), dx=matrix(a.dx)),
    "every second": lambda a: (np.zeros(10)[::2], np.zeros((10, 3, 8))[::2, :, ::2], np.zeros((5, 8))[:, 1::2]),
    "backwards": lambda a: (a.loss[::-1], a.dW[::-1, :, ::-1], a.dx[:, ::-1]),
    "Fortran order": lambda a: a.out(dW=np.zeros((5, 3, 4), order="F"), dx=np.zeros((5, 4), order="F")),
    "the other byte order": lambda a: (np.zeros(5, ">f8"), np.zeros((5, 3, 4), ">f8"), np.zeros((5, 4), ">f8")),
    "fields of records, unaligned": lambda a: tuple(
        np.zeros(5, [("tag", "u1"), ("loss", "f8"), ("dW", "f8", (3, 4)), ("dx", "f8", 4)])[name]
        for name in ("loss", "dW", "dx")
    ),
    "interleaved": lambda a: (lambda rows: (rows[:, 0], rows[:, 1:13].reshape(5, 3, 4), rows[:, 13:]))(
        np.zeros((5, 17))
    ),
}


@pytest.mark.parametrize("out", OUTPUTS.values(), ids=OUTPUTS)
def test_computes_into(out, backend):
    a = Arrays()
    out = out(a)
    got = sl2.value_and_grad(a.W, a.x, out=out, backend=backend)
    assert all(result is given for result, given in zip(got, out, strict=True))
    assert bits(np.array(a, float) for a in got) == bits(sl2.value_and_grad(a.W, a.x, backend=backend))
