"""What the public calls refuse, with which exception and in which words, and that a refusal writes nothing.

Every row is given to every backend. Arguments are checked before a backend is chosen, so the same holds for a backend
that cannot run here. What is wrong with ``out`` is in test_bad_output.py; what looks odd but computes, in
test_odd_input.py.
"""

from types import SimpleNamespace

import fake_cupy
import numpy as np
import pytest
from arrays import CALLS, Arrays, assert_refused

import sigmoid_l2 as sl2
from sigmoid_l2 import dispatch


@pytest.fixture(params=dispatch.NAMES)
def any_backend(request):
    """Each backend's name, also of those that cannot run here."""
    return request.param


def ml_dtype(name):
    """A dtype that is not NumPy's own; ml_dtypes comes with JAX."""
    return getattr(pytest.importorskip("ml_dtypes"), name)


def longer_than_double():
    if np.dtype(np.longdouble).itemsize == 8:
        pytest.skip("long double is double here")
    return np.longdouble


def deep(levels):
    return [deep(levels - 1)] if levels else 1.0


# --- W and x ----------------------------------------------------------------------------------------------------------
FITS = ["x must have shape (..., 4) or, as columns, (..., 4, 1); got W (5, 3, 4) and x "]
BATCH = ["the batch shapes of W and x do not broadcast; got W (5, 3, 4) and x "]
RANK = ["W must have at least 2 dimensions, (..., m, n); got W "]
SIZE = ["m and n must be at least 1 in W, (..., m, n); got W "]
DTYPES = "; supported are float16, float32, float64, bfloat16, integers and bool"

INPUTS = {  # what is given for W and x, the exception, words of its message
    "x: another batch": (lambda a: (a.W, a.x[:4]), ValueError, [*BATCH, "x (4, 4)"]),
    "x: columns, another batch": (lambda a: (a.W, a.x[:4, :, None]), ValueError, [*BATCH, "x (4, 4, 1)"]),
    "x: of m values, not n": (lambda a: (a.W, a.x[:, :3]), ValueError, [*FITS, "x (5, 3)"]),
    "x: of one value": (lambda a: (a.W, a.x[:, :1]), ValueError, [*FITS, "x (5, 1)"]),
    "x: two columns": (lambda a: (a.W, np.ones((5, 4, 2))), ValueError, [*FITS, "x (5, 4, 2)"]),
    "x: a number": (lambda a: (a.W, 1.0), ValueError, [*FITS, "x ()"]),
    "x: vectors or columns of one": (
        lambda a: (a.W[:, :, :1], a.x[:, :1, None]),
        ValueError,
        [
            "x could be vectors, which give a loss of shape (5, 5), or columns, which give (5,); "
            "for columns pass x[..., 0], for vectors np.broadcast_to(W, (5, 5, 3, 1)); got W (5, 3, 1) and x (5, 1, 1)"
        ],
    ),
    "W and x exchanged": (lambda a: (a.x, a.W[:, :, :3]), ValueError, ["must have shape (..., 4)", "got W (5, 4) and"]),
    "W: a vector": (lambda a: (a.x[0], a.x[0]), ValueError, [*RANK, "W (4,) and x (4,)"]),
    "W: a number": (lambda a: (2.0, 1.0), ValueError, [*RANK, "W () and x ()"]),
    "W: a bytearray": (lambda a: (bytearray(4), bytearray(4)), ValueError, [*RANK, "W (4,) and x (4,)"]),
    "m = 0": (lambda a: (a.W[:, :0], a.x), ValueError, [*SIZE, "W (5, 0, 4) and x (5, 4)"]),
    "n = 0": (lambda a: (a.W[:, :, :0], a.x[:, :0]), ValueError, [*SIZE, "W (5, 3, 0) and x (5, 0)"]),
    "m = n = 0, B = 0": (lambda a: (a.W[:0, :0, :0], a.x[:0, :0]), ValueError, [*SIZE, "W (0, 0, 0) and x (0, 0)"]),
    "W: a list of an empty list": (lambda a: ([[]], []), ValueError, [*SIZE, "W (1, 0) and x (0,)"]),
    "W: a ragged list": (lambda a: ([[1, 2], [3]], [1, 2]), ValueError, ["W cannot be made into an array", "inhomog"]),
    "x: a ragged list": (lambda a: (a.W, [[1], [1, 2]]), ValueError, ["x cannot be made into an array", "inhomog"]),
    "W: a list 80 deep": (
        lambda a: (deep(80), [1.0]),
        ValueError,
        ["W cannot be made into an array", "dimension of 64"],
    ),
    "W: complex": (lambda a: (a.W + 0j, a.x), TypeError, ["W has dtype complex128" + DTYPES]),
    "x: complex, W: float32": (lambda a: (a.W.astype("f4"), a.x + 0j), TypeError, ["x has dtype complex128" + DTYPES]),
    "W: long double": (lambda a: (a.W.astype(longer_than_double()), a.x), TypeError, ["W has dtype ", DTYPES]),
    "x: an 8-bit float": (
        lambda a: (a.W, a.x.astype(ml_dtype("float8_e4m3b11fnuz"))),
        TypeError,
        ["x has dtype float8_e4m3b11fnuz" + DTYPES],
    ),
    "W and x: 1-bit integers": (
        lambda a: (np.zeros((5, 3, 4), ml_dtype("int1")), np.zeros((5, 4), ml_dtype("int1"))),
        TypeError,
        ["W has dtype int1" + DTYPES],
    ),
    "W: objects": (lambda a: (a.W.astype(object), a.x), TypeError, ["W has dtype object" + DTYPES]),
    "W: integers beyond 64 bits": (lambda a: ([[2**70]], [1]), TypeError, ["W has dtype object"]),
    "x: None": (lambda a: (a.W, None), TypeError, ["x has dtype object"]),
    "x: None in a list": (lambda a: (a.W[0], [1, 2, 3, None]), TypeError, ["x has dtype object"]),
    "W: a dictionary": (lambda a: ({"W": a.W}, a.x), TypeError, ["W has dtype object"]),
    "x: a set": (lambda a: (a.W, {1.0, 2.0}), TypeError, ["x has dtype object"]),
    "x: a generator": (lambda a: (a.W, (value for value in a.x)), TypeError, ["x has dtype object"]),
    "W: text": (lambda a: ("W", "x"), TypeError, ["W has dtype <U1"]),
    "W: numbers as text": (lambda a: (a.W.astype(str), a.x), TypeError, ["W has dtype <U"]),
    "x: bytes": (lambda a: (a.W[0], b"four"), TypeError, ["x has dtype |S4"]),
    "W: durations": (lambda a: (a.W.astype("m8[s]"), a.x), TypeError, ["W has dtype timedelta64[s]"]),
    "x: dates": (lambda a: (a.W, np.zeros((5, 4), "M8[D]")), TypeError, ["x has dtype datetime64[D]"]),
    "x: records": (lambda a: (a.W, np.zeros((5, 4), "f4,f4")), TypeError, ["x has dtype [('f0', '<f4'), "]),
    "W: masked": (
        lambda a: (np.ma.masked_less(a.W, 0), a.x),
        TypeError,
        ["W is of type numpy.ma", "MaskedArray, whose mask has no meaning here; pass W.filled(value)"],
    ),
    "x: masked, without a mask": (
        lambda a: (a.W, np.ma.array(a.x)),
        TypeError,
        ["MaskedArray, whose mask", "x.filled"],
    ),
    "W: a list of masked arrays": (
        lambda a: ([np.ma.masked_less(row, 0) for row in a.W[0]], a.x[0]),
        TypeError,
        [
            "W holds an array of type numpy.ma",
            "MaskedArray, whose mask has no meaning here; pass each with .filled(value)",
        ],
    ),
    "x: a tuple, its last row masked": (
        lambda a: (a.W, (*a.x[:4], np.ma.array(a.x[4]))),
        TypeError,
        ["x holds an array of type numpy.ma"],
    ),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("given", "error", "words"), INPUTS.values(), ids=INPUTS)
def test_refused_input(given, error, words, call, any_backend):
    a = Arrays()
    W, x = given(a)
    assert_refused(a, error, words, call, W=W, x=x, out=a.out(call), backend=any_backend)


@pytest.mark.parametrize(("given", "error", "words"), INPUTS.values(), ids=INPUTS)
def test_refused_input_of_trace_and_check_grad(given, error, words):
    a = Arrays()
    W, x = given(a)
    assert_refused(a, error, words, "trace", W=W, x=x)
    assert_refused(a, error, words, "check_grad", W=W, x=x, dW=a.dW)


@pytest.mark.parametrize("call", CALLS)
def test_results_larger_than_memory(backend, call):
    W, x = np.broadcast_to(1.0, (10**14, 3, 4)), np.broadcast_to(1.0, (10**14, 4))
    with pytest.raises(MemoryError, match="Unable to allocate"):
        getattr(sl2, call)(W, x, backend=backend)


# --- target, cotangent and wrt ---------------------------------------------------------------------------------------

GOT = "; got W (5, 3, 4), x (5, 4) and "
MORE = {  # what is given besides W and x, the exception, words of its message
    "target: of n values, not m": (
        lambda a: {"target": np.ones((5, 4))},
        ValueError,
        ["for this W, target must have shape (..., 3), or broadcast to it" + GOT + "target (5, 4)"],
    ),
    "target: another batch": (
        lambda a: {"target": np.ones((4, 3))},
        ValueError,
        ["the batch shape of target does not broadcast with those of W and x" + GOT + "target (4, 3)"],
    ),
    "target: a column for vectors": (lambda a: {"target": np.ones((3, 1))}, ValueError, ["does not broadcast", GOT]),
    "target: columns of another m": (
        lambda a: {"x": a.x[..., None], "target": np.ones((5, 2))},
        ValueError,
        ["(..., 3) or, as columns, (..., 3, 1), or broadcast to it; got W (5, 3, 4), x (5, 4, 1) and target (5, 2)"],
    ),
    "target: vectors or columns of one": (
        lambda a: {"W": a.W[:, :1], "x": a.x[..., None], "target": np.ones((5, 1, 1))},
        ValueError,
        ["target could be vectors, which give a loss of shape (5, 5), or columns, which give (5,)"],
    ),
    "target: complex": (lambda a: {"target": 1j}, TypeError, ["target has dtype complex128" + DTYPES]),
    "target: text": (lambda a: {"target": "1"}, TypeError, ["target has dtype <U1"]),
    "target: masked": (lambda a: {"target": np.ma.ones((5, 3))}, TypeError, ["target is of type numpy.ma"]),
    "target: ragged": (lambda a: {"target": [[1], [1, 2]]}, ValueError, ["target cannot be made into an array"]),
    "target: on a device": (
        lambda a: {"target": SimpleNamespace(__cuda_array_interface__={})},
        TypeError,
        ["W and target must be in the same place, but W is in host memory and target is a CUDA array"],
    ),
    "cotangent: another batch": (
        lambda a: {"cotangent": np.ones(4)},
        ValueError,
        ["cotangent must have the loss's shape (5,), or broadcast to it" + GOT + "cotangent (4,)"],
    ),
    "cotangent: a larger batch": (
        lambda a: {"cotangent": np.ones((2, 5))},
        ValueError,
        ["cotangent must have the loss's shape (5,), or broadcast to it" + GOT + "cotangent (2, 5)"],
    ),
    "cotangent: of rows": (
        lambda a: {"target": 1.0, "cotangent": np.ones((5, 3))},
        ValueError,
        ["cotangent must have the loss's shape (5,)", "x (5, 4), target () and cotangent (5, 3)"],
    ),
    "cotangent: complex": (lambda a: {"cotangent": np.ones(5) + 0j}, TypeError, ["cotangent has dtype complex128"]),
    "wrt: unknown": (
        lambda a: {"wrt": "w"},
        ValueError,
        ["wrt must be one or several of 'W', 'x', 'q', each once, not 'w'"],
    ),
    "wrt: the name of a result": (lambda a: {"wrt": ("dW",)}, ValueError, ["'W', 'x', 'q', each once, not ('dW',)"]),
    "wrt: twice": (lambda a: {"wrt": ("x", "x")}, ValueError, ["each once, not ('x', 'x')"]),
    "wrt: nothing": (lambda a: {"wrt": ()}, ValueError, ["one or several of 'W', 'x', 'q', each once, not ()"]),
    "wrt: None": (lambda a: {"wrt": None}, ValueError, ["wrt must be a name or a tuple of names, not None"]),
    "wrt: a number": (lambda a: {"wrt": 0}, ValueError, ["wrt must be a name or a tuple of names, not 0"]),
    "wrt: numbers": (lambda a: {"wrt": (0, 1)}, ValueError, ["each once, not (0, 1)"]),
    "wrt: a set, which has no order": (lambda a: {"wrt": {"W"}}, ValueError, ["a name or a tuple of names, not {'W'}"]),
    "wrt: bytes": (lambda a: {"wrt": b"W"}, ValueError, ["a name or a tuple of names, not b'W'"]),
    "wrt: lists in it": (lambda a: {"wrt": (["x"],)}, ValueError, ["wrt must be a name or a tuple of names"]),
    "out: memory of the target": (
        lambda a: {"target": a.dW[:, :, 0]},
        ValueError,
        ["out: dW shares memory with target; every output needs memory of its own"],
    ),
    "out: memory of the cotangent": (
        lambda a: {"cotangent": a.dx[:, 0]},
        ValueError,
        ["out: dx shares memory with cotangent"],
    ),
    "out: of other gradients": (lambda a: {"wrt": ("x", "W")}, ValueError, ["out: dx must have shape (5, 4)"]),
    "out: too many": (lambda a: {"wrt": ("x",)}, ValueError, ["out must be a tuple of 2 arrays (loss, dx)"]),
    "out: dW of the pairs, not of the one W": (
        lambda a: {"W": a.W[0]},
        ValueError,
        ["out: dW must have shape (3, 4), not (5, 3, 4)"],
    ),
}


@pytest.mark.parametrize(("given", "error", "words"), MORE.values(), ids=MORE)
def test_refused_target_cotangent_and_wrt(given, error, words, any_backend):
    a = Arrays()
    arguments = {"W": a.W, "x": a.x, "out": a.out(), "backend": any_backend, **given(a)}
    assert_refused(a, error, words, **arguments)
    if "wrt" not in arguments:
        assert_refused(a, error, words, "grad", **{**arguments, "out": a.out("grad")})


# --- host and device ------------------------------------------------------------------------------------------------

PLACE = "W and x must be in the same place, but "
DEVICE = {  # on the stand-in for CuPy; test_cuda_arrays.py has more, on CuPy itself where there is a GPU
    "x on a device": (
        lambda a: (a.W, fake_cupy.asarray(a.x), None),
        TypeError,
        [PLACE + "W is in host memory and x is a CUDA array of type fake_cupy.ndarray; pass cupy.asarray(W)"],
    ),
    "W on a device, x a list": (
        lambda a: (fake_cupy.asarray(a.W), a.x.tolist(), None),
        TypeError,
        [PLACE + "x is in host memory and W is a CUDA array of type fake_cupy.ndarray; pass cupy.asarray(x)"],
    ),
    "x of another CUDA library": (
        lambda a: (a.W, SimpleNamespace(__cuda_array_interface__={}), None),
        TypeError,
        [PLACE + "W is in host memory and x is a CUDA array of type types.SimpleNamespace"],
    ),
    "W on a device, complex": (
        lambda a: (fake_cupy.asarray(a.W + 0j), fake_cupy.asarray(a.x), None),
        TypeError,
        ["W has dtype complex128" + DTYPES],
    ),
    "x on a device, another n": (
        lambda a: (fake_cupy.asarray(a.W), fake_cupy.asarray(a.x[:, :3]), None),
        ValueError,
        [*FITS, "x (5, 3)"],
    ),
    "out on the host, W and x on a device": (
        lambda a: (fake_cupy.asarray(a.W), fake_cupy.asarray(a.x), a.out()),
        ValueError,
        ["out: loss must be a CUDA array, like the inputs, not numpy.ndarray"],
    ),
    "out on a device, W and x on the host": (
        lambda a: (a.W, a.x, a.out(dW=SimpleNamespace(__cuda_array_interface__={}))),
        ValueError,
        ["out: dW must be a numpy.ndarray, like the inputs, not types.SimpleNamespace"],
    ),
}


@pytest.mark.parametrize(("given", "error", "words"), DEVICE.values(), ids=DEVICE)
def test_refused_mix_of_host_and_device(given, error, words, any_backend, monkeypatch):
    fake_cupy.install(monkeypatch)
    a = Arrays()
    W, x, out = given(a)
    assert_refused(a, error, words, W=W, x=x, out=out, backend=any_backend)


# --- backend names and the environment ------------------------------------------------------------------------------

KNOWN = "must be one of 'auto', 'cpu', 'gpu', 'numba', 'numpy', 'cupy', 'numba-cuda', not "
NAMES = {  # what is given, words of the ValueError
    "capitals": ("NumPy", ["'NumPy' (did you mean 'numpy'?)"]),
    "underscore": ("numba_cuda", ["'numba_cuda' (did you mean 'numba-cuda'?)"]),
    "misspelt": ("nunba", ["'nunba' (did you mean 'numba'?)"]),
    "blank after it": ("cupy ", ["'cupy ' (did you mean 'cupy'?)"]),
    "in capitals": ("GPU", ["'GPU'"]),
    "a device": ("cuda:0", ["'cuda:0'"]),
    "another library": ("torch", ["'torch'"]),
    "nothing": ("", ["''"]),
    "None": (None, ["None"]),
    "a number": (0, ["0"]),
    "bytes": (b"numpy", ["b'numpy' (did you mean 'numpy'?)"]),
    "a list": (["numpy"], ["['numpy'] (did you mean 'numpy'?)"]),
    "an array": (np.array(["numpy", "numba"]), ["array(['numpy', 'numba']"]),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("name", "words"), NAMES.values(), ids=NAMES)
def test_refused_backend(name, words, call):
    a = Arrays()
    assert_refused(a, ValueError, ["backend " + KNOWN, *words], call, W=a.W, x=a.x, out=a.out(call), backend=name)


ENVIRONMENT = {  # by variable: what it must be, wrong values
    "SIGMOID_L2_BACKEND": (KNOWN, ("NumPy", "numpy,numba", "0", " ")),
    "SIGMOID_L2_NUM_THREADS": ("must be a whole number of at least 1, not ", ("0", "-1", "1.5", "many", "2 3")),
}


@pytest.mark.parametrize("pairs", [1, 5, 5000], ids="{} pairs".format)
@pytest.mark.parametrize("variable", ENVIRONMENT)
def test_refused_environment(variable, pairs, monkeypatch):
    """The first call of a process reports it, whatever its size."""
    a = Arrays()
    given = {"W": np.resize(a.W, (pairs, 3, 4)), "x": np.resize(a.x, (pairs, 4))}
    must, values = ENVIRONMENT[variable]
    for value in values:
        monkeypatch.setenv(variable, value)
        dispatch._first_available.cache_clear()
        assert_refused(a, ValueError, [f"the environment variable {variable} {must}{value!r}"], **given)
