"""What the public calls refuse as ``out``, in which words, and that a refusal writes nothing.

Every row is given to every backend, also to those that cannot run here: arguments are checked before one is chosen.
"""

import numpy as np
import pytest
from arrays import CALLS, Arrays, assert_refused, bits, matrix, read_only
from numpy.lib.stride_tricks import as_strided

import sigmoid_l2 as sl2
from sigmoid_l2 import dispatch

TUPLE = "out must be a tuple of 3 arrays (loss, dW, dx), not "

OUTPUTS = {  # what is given for out, words of the ValueError
    # shapes
    "loss: of fewer pairs": (lambda a: a.out(loss=a.loss[:4]), ["loss must have shape (5,), not (4,)"]),
    "loss: a column": (lambda a: a.out(loss=a.loss[:, None]), ["loss must have shape (5,), not (5, 1)"]),
    "loss: one number": (lambda a: a.out(loss=a.loss[0, ...]), ["loss must have shape (5,), not ()"]),
    "dW: transposed": (lambda a: a.out(dW=a.dW.swapaxes(1, 2)), ["dW must have shape (5, 3, 4), not (5, 4, 3)"]),
    "dx: the outer product": (lambda a: a.out(dx=np.empty((5, 4, 4))), ["dx must have shape (5, 4), not (5, 4, 4)"]),
    "dx: columns, x is none": (lambda a: a.out(dx=a.dx[..., None]), ["dx must have shape (5, 4), not (5, 4, 1)"]),
    "dx: a matrix": (lambda a: a.out(dx=matrix(a.dx).T), ["dx must have shape (5, 4), not (4, 5)"]),
    # dtypes
    "dx: float32": (lambda a: a.out(dx=a.dx.astype("f4")), ["dx must have dtype float64, not float32"]),
    "dW: integers": (lambda a: a.out(dW=a.dW.view("i8")), ["dW must have dtype float64, not int64"]),
    "loss: complex": (lambda a: a.out(loss=a.loss + 0j), ["loss must have dtype float64, not complex128"]),
    "loss: objects": (lambda a: a.out(loss=a.loss.astype(object)), ["loss must have dtype float64, not object"]),
    "loss: long double": (lambda a: a.out(loss=a.loss.astype(np.longdouble)), ["loss must have dtype float64, not "]),
    "loss: text": (
        lambda a: a.out(loss=a.loss.astype(np.dtypes.StringDType())),
        ["loss must have dtype float64, not StringDType"],
    ),
    "dx: records": (lambda a: a.out(dx=np.zeros((5, 4), "f8,f8")), ["dx must have dtype float64, not [("]),
    # kinds
    "dW: a list": (lambda a: a.out(dW=a.dW.tolist()), ["dW must be a numpy.ndarray", "not a list of 5"]),
    "dx: None": (lambda a: a.out(dx=None), ["dx must be a numpy.ndarray", "not builtins.NoneType"]),
    "dx: a memoryview": (lambda a: a.out(dx=memoryview(a.dx)), ["dx must be a numpy.ndarray", "builtins.memoryview"]),
    "loss: a scalar": (lambda a: a.out(loss=a.loss[0]), ["loss must be a numpy.ndarray", "not numpy.float64"]),
    "dx: masked": (lambda a: a.out(dx=np.ma.array(a.dx)), ["dx must be a numpy.ndarray", "MaskedArray"]),
    "two arrays": (lambda a: (a.loss, a.dW), [TUPLE + "a tuple of 2"]),
    "no arrays": (lambda a: (), [TUPLE + "a tuple of 0"]),
    "one array": (lambda a: a.dW, [TUPLE + "numpy.ndarray"]),
    "by name": (lambda a: {"loss": a.loss, "dW": a.dW, "dx": a.dx}, [TUPLE + "builtins.dict"]),
    "True": (lambda a: True, [TUPLE + "builtins.bool"]),
    # read-only
    "dW: read-only": (lambda a: a.out(dW=read_only(a.dW)), ["dW is read-only"]),
    "dW: a broadcast view": (lambda a: a.out(dW=np.broadcast_to(a.dW[0], (5, 3, 4))), ["dW is read-only"]),
    "loss: of bytes": (lambda a: a.out(loss=np.frombuffer(bytes(40))), ["loss is read-only"]),
    # memory shared with an input or another output
    "dW is W": (lambda a: a.out(dW=a.W), ["dW shares memory with W"]),
    "dx is x": (lambda a: a.out(dx=a.x), ["dx shares memory with x"]),
    "dW: W, backwards": (lambda a: a.out(dW=a.W[::-1, ::-1, ::-1]), ["dW shares memory with W"]),
    "dW: one element in W": (lambda a: a.out(dW=a.memory[59:119].reshape(5, 3, 4)), ["dW shares memory with W"]),
    "dW: one byte in W": (lambda a: a.out(dW=shifted(a.dW, -1)), ["dW shares memory with W"]),
    "loss: one element in x": (lambda a: a.out(loss=a.memory[141:146]), ["loss shares memory with x"]),
    "loss: a column of dx": (lambda a: a.out(loss=a.dx[:, 2]), ["dx shares memory with loss"]),
    "dx: rows of dW": (lambda a: a.out(dx=a.dW[:, 1]), ["dx shares memory with dW"]),
    # an output that overlaps itself
    "loss: zero stride": (lambda a: a.out(loss=as_strided(a.loss, (5,), (0,))), ["loss is a view with strides (0,)"]),
    "dW: overlapping": (
        lambda a: a.out(dW=as_strided(a.dW, (5, 3, 4), (64, 32, 8))),
        ["dW is a view with strides (64, 32, 8), in which elements share memory"],
    ),
    "dx: sliding window": (lambda a: a.out(dx=as_strided(a.dx, (5, 4), (8, 8))), ["dx is a view with strides (8, 8)"]),
    "dx: overlapping backwards": (
        lambda a: a.out(dx=as_strided(a.dx[1:, 3:], (5, 4), (16, -8))),
        ["dx is a view with strides (16, -8)"],
    ),
}


def shifted(a, by):
    """The memory ``by`` bytes from where ``a`` is, as an array like ``a``."""
    return np.ndarray(a.shape, a.dtype, a.base, offset=a.ctypes.data - a.base.ctypes.data + by)


@pytest.mark.parametrize("name", dispatch.NAMES)
@pytest.mark.parametrize(("out", "words"), OUTPUTS.values(), ids=OUTPUTS)
def test_refused_output(out, words, name):
    a = Arrays()
    assert_refused(a, ValueError, words, W=a.W, x=a.x, out=out(a), backend=name)


@pytest.mark.parametrize("name", dispatch.NAMES)
def test_refused_output_of_value_and_grad_alone(name):
    a = Arrays()
    given = {"W": a.W, "x": a.x, "backend": name}
    assert_refused(a, ValueError, ["loss must be a numpy.ndarray", "a tuple of 1"], "value", out=(a.loss,), **given)
    assert_refused(a, ValueError, ["loss must have shape (5,), not (4,)"], "value", out=a.loss[:4], **given)
    assert_refused(a, ValueError, ["loss shares memory with x"], "value", out=a.x[:, 0], **given)
    assert_refused(a, ValueError, ["out must be a tuple of 2 arrays (dW, dx)"], "grad", out=a.out(), **given)
    assert_refused(a, ValueError, ["out must be a tuple of 2 arrays (dW, dx)"], "grad", out=a.dW, **given)
    assert_refused(a, ValueError, ["dx shares memory with W"], "grad", out=(a.dW, a.W[:, 0]), **given)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", dispatch.NAMES)
def test_refused_output_for_an_empty_batch(call, name):
    a = Arrays()
    given = {"W": a.W[:0], "x": a.x[:0], "out": a.out(call), "backend": name}
    assert_refused(a, ValueError, ["must have shape (0,"], call, **given)


OWN = {  # out where W, x, loss, dW and dx all have memory of their own; words of the ValueError
    "dW is W": (lambda W, x, loss, dW, dx: (loss, W, dx), ["dW shares memory with W"]),
    "dx is x": (lambda W, x, loss, dW, dx: (loss, dW, x), ["dx shares memory with x"]),
    "dx: rows of W": (lambda W, x, loss, dW, dx: (loss, dW, W.reshape(15, 4)[2:7]), ["dx shares memory with W"]),
    "dx: rows of dW": (lambda W, x, loss, dW, dx: (loss, dW, dW.reshape(15, 4)[2:7]), ["dx shares memory with dW"]),
    "loss and dx: views": (lambda W, x, loss, dW, dx: (dx.ravel()[:5], dW, dx[:]), ["dx shares memory with loss"]),
    "dW: W's buffer": (
        lambda W, x, loss, dW, dx: (loss, np.frombuffer(W).reshape(W.shape), dx),
        ["dW shares memory with W"],
    ),
    "dx: x by DLPack": (
        lambda W, x, loss, dW, dx: (loss, dW, np.from_dlpack(x)),
        # NumPy 2.2 marks it as read-only.
        ["dx shares memory with x" if np.from_dlpack(np.empty(1)).flags.writeable else "dx is read-only"],
    ),
    "dW: read-only": (lambda W, x, loss, dW, dx: (loss, read_only(dW), dx), ["dW is read-only"]),
    "dx: of fewer pairs": (lambda W, x, loss, dW, dx: (loss, dW, dx[:4].copy()), ["dx must have shape (5, 4)"]),
    "loss: float32": (lambda W, x, loss, dW, dx: (loss.astype("f4"), dW, dx), ["loss must have dtype float64"]),
}


@pytest.mark.parametrize(("out", "words"), OWN.values(), ids=OWN)
def test_refused_output_among_arrays_that_own_their_memory(out, words):
    arrays = [np.full(shape, 0.5) for shape in ((5, 3, 4), (5, 4), (5,), (5, 3, 4), (5, 4))]
    with pytest.raises(ValueError, match=r"^out: ") as raised:
        sl2.value_and_grad(*arrays[:2], out=out(*arrays))
    for word in words:
        assert word in str(raised.value)
    assert all((a == 0.5).all() for a in arrays), "something was written"


def test_outputs_side_by_side_in_one_memory_are_accepted():
    a = Arrays()
    expected = sl2.value_and_grad(a.W, a.x)
    assert bits(sl2.value_and_grad(a.W, a.x, out=a.out())) == bits(expected)
