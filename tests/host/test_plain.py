"""Calls with NumPy's own arrays that need no preparation: which they are, and that nobody can tell them from others."""

import itertools
import pickle
import random
from functools import partial

import numpy as np
import pytest
from arrays import CALLS, Arrays, Subclass, bits, matrix, pairs, read_only, strided, unaligned

import sigmoid_l2 as sl2
from sigmoid_l2 import outputs as checks_of_out
from sigmoid_l2 import problem
from sigmoid_l2.problem import validate

NAMES = CALLS["value_and_grad"]


def outputs(W, x):
    return tuple(np.full(shape, np.nan, W.dtype) for shape in (W.shape[:-2], W.shape, x.shape))


def plain(batch=(5,), dtype="float32"):
    W, x = pairs(batch, dtype=dtype)
    return W, x, outputs(W, x)


def with_result(out, k, a):
    return (*out[:k], a, *out[k + 1 :])


def all_in_one_memory():
    a = Arrays()
    return a.W, a.x, a.out()


PLAIN = {
    "float32": plain,
    "float64": partial(plain, dtype="float64"),
    "one pair": partial(plain, ()),
    "a batch of one": partial(plain, (1,)),
    "many batch axes": partial(plain, (2, 1, 3)),
    "new results": lambda: (*plain()[:2], None),
    "a list of results": lambda: (*plain()[:2], [*plain()[2]]),
    "results of an earlier call": lambda: (*plain()[:2], sl2.value_and_grad(*plain()[:2])),
    "read-only inputs": lambda: (*map(read_only, plain()[:2]), plain()[2]),
    "views": lambda: (*(a[:] for a in plain()[:2]), tuple(a[:] for a in plain()[2])),
    "all in one memory": all_in_one_memory,
}


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_plain(name):
    """It is not checked any further, and its results are those of other calls."""
    W, x, out = PLAIN[name]()
    given = validate(W, x, names=NAMES, out=out)
    assert given.plain
    assert given.W is W
    assert given.x is x
    assert given.out is out
    assert given.dtype is W.dtype
    assert bits(sl2.value_and_grad(W, x, out=out)) == bits(sl2.value_and_grad(strided(W), strided(x)))


def test_inputs_of_a_plain_call_may_share_memory():
    W, _, out = plain()
    x = W.reshape(-1)[10:30].reshape(5, 4)
    assert validate(W, x, names=NAMES, out=out).plain


def swapped(W, x, out):
    """The same values in the other byte order, the dtype of all one object."""
    dtype = W.dtype.newbyteorder()
    W, x, *out = (a.byteswap().view(dtype) for a in (W, x, *out))
    return W, x, out


NOT_PLAIN = {
    "a list": lambda W, x, out: (W.tolist(), x, out),
    "a matrix": lambda W, x, out: (matrix(W[0]), x[0], None),
    "a subclass": lambda W, x, out: (W, x.view(Subclass), out),
    "another dtype of x": lambda W, x, out: (W, np.float64(x), out),
    "another byte order": swapped,
    "integers": lambda W, x, out: (np.ones(W.shape, int), np.ones(x.shape, int), None),
    "complex": lambda W, x, out: (W + 0j, x + 0j, None),
    "Fortran order": lambda W, x, out: (np.asfortranarray(W), x, out),
    "every other x": lambda W, x, out: (W, strided(x), out),
    "unaligned": lambda W, x, out: (unaligned(W), x, out),
    "columns": lambda W, x, out: (W, x[..., None], None),
    "no pairs": lambda W, x, out: (W[:0], x[:0], tuple(a[:0] for a in out)),
    "no rows": lambda W, x, out: (W[:, :0], x, None),
    "a vector for W": lambda W, x, out: (W[0, 0], x, None),
    "one x for some": lambda W, x, out: (W[None], x[:, None], None),
    "x too long": lambda W, x, out: (W[:4], x, None),
    "too few results": lambda W, x, out: (W, x, out[:2]),
    "an iterator of results": lambda W, x, out: (W, x, iter(out)),
    "results in another dtype": lambda W, x, out: (W, x, with_result(out, 1, np.float64(out[1]))),
    "a result of another dtype object": lambda W, x, out: (W, x, pickle.loads(pickle.dumps(out))),
    "results of a subclass": lambda W, x, out: (W, x, with_result(out, 1, out[1].view(Subclass))),
    "a read-only result": lambda W, x, out: (W, x, with_result(out, 0, read_only(out[0]))),
    "a result in another layout": lambda W, x, out: (W, x, with_result(out, 1, np.asfortranarray(out[1]))),
    "an unaligned result": lambda W, x, out: (W, x, with_result(out, 2, unaligned(out[2]))),
    "a result too short": lambda W, x, out: (W, x, with_result(out, 0, out[0][:4])),
    "dx in x": lambda W, x, out: (W, x, with_result(out, 2, x)),
    "dW in a view of W": lambda W, x, out: (W, x, with_result(out, 1, W[:])),
    "dW in W's buffer": lambda W, x, out: (W, x, with_result(out, 1, np.frombuffer(W, "f4").reshape(W.shape))),
    "loss at the end of dW": lambda W, x, out: (W, x, with_result(out, 0, out[1].reshape(-1)[-5:])),
    "loss at the end of W": lambda W, x, out: (W, x, with_result(out, 0, W.reshape(-1)[-5:])),
}


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_what_is_not_plain(name):
    """It gets all checks, conversions and messages."""
    W, x, out = NOT_PLAIN[name](*plain())
    assert problem._plain(W, x, None, None, NAMES, out) is None


@pytest.mark.filterwarnings("error")
def test_what_is_broadcast_has_a_short_way(monkeypatch):
    """One W, one x, numbers, and a row of targets: the results and errors of the general way."""
    W, x, _ = plain()
    given = (W, x[0]), (W[0], x), (W[:1], x[:1]), (W[0], x[:1]), (W[0], x[0]), (W[0], x[:0]), (W[:1], x), (W, x[:1])
    columns = (W[0, :, :1].copy(), x[:1, :1].copy()), (W[0], x[:, :1].copy()), (W[..., :1].copy(), x[0, :1])
    targets = None, 0.5, 10**30, 1e300, np.float64(2), np.longdouble(1), np.ones(3, "f4"), np.ones((5, 3), "f4")
    cotangents = None, True, np.ones(5, "f4"), np.array(2, "f4")
    short = problem._plain
    assert all(short(W, x, 0.5, True, (), None) for W, x in given[:5])
    for (W, x), y, c in itertools.product((*given, *columns), targets, cotangents):
        call = partial(outcome, sl2.value_and_grad, W, x, None, (), (), target=y, cotangent=c, wrt=("W", "x", "q"))
        monkeypatch.setattr(problem, "_plain", short)
        found = call()
        monkeypatch.setattr(problem, "_plain", lambda *arguments: None)
        assert found == call(), (W.shape, x.shape, y, c)


def test_small_calls_are_computed_at_once(monkeypatch):
    """What is broadcast or in another layout costs a small call no pieces."""
    W, x, out = plain()
    expected = sl2.value_and_grad(W, x, np.full((5, 3), 0.5, "f4"), cotangent=np.full(5, 2, "f4"))
    monkeypatch.setattr("sigmoid_l2.pieces.compute", None)
    y = np.full(3, 0.5, "f4")
    wide = tuple(map(strided, out))
    for W_given, x_given, target, results in ((W, x, 0.5, out), (strided(W), x, y, None), (W, strided(x), 0.5, wide)):
        got = sl2.value_and_grad(W_given, x_given, target, cotangent=2, out=results)
        assert bits(got) == bits(expected)
    assert bits([sl2.value_and_grad(W, x[0]).dW]) == bits([sl2.value_and_grad(W, np.tile(x[0], (5, 1))).dW])


WAYS_TO_GIVE = {  # with how often each is taken
    "as it is": (40, lambda a: a),
    "a view": (10, lambda a: a[...]),
    "of a subclass": (1, lambda a: a.view(Subclass)),
    "a matrix": (1, lambda a: matrix(a) if a.ndim <= 2 else a),
    "masked": (1, np.ma.asarray),
    "a list": (1, lambda a: a.tolist()),
    "read-only": (2, read_only),
    "of another dtype": (1, np.float64),
    "of integers": (1, lambda a: np.ones(a.shape, int)),
    "of another byte order": (1, lambda a: a.astype(a.dtype.newbyteorder())),
    "in another layout": (1, np.asfortranarray),
    "strided": (2, strided),
    "unaligned": (1, unaligned),
    "without a batch": (1, lambda a: a[0] if len(a) else a),
    "with two batch axes": (2, lambda a: a[None]),
    "as columns": (1, lambda a: a[..., None]),
    "nothing": (1, lambda a: None),
}
BACKENDS = ["auto"] * 4 + ["numpy", "numba", "numba", "cpu", "gpu", "cupy", "cuda", None]


def outcome(function, W, x, out, arrays, before, **options):
    """All that a call does: its result or error, and what is in ``arrays`` then, whose contents were ``before``."""
    for a, content in zip(arrays, before, strict=True):
        a[...] = content
    try:
        result = function(W, x, out=out, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}", bits(arrays)
    results = result if isinstance(result, tuple) else (result,)
    same = [id(a) for a in results] if out is not None else None
    return type(result), same, bits(map(np.asarray, results)), bits(arrays)


@pytest.mark.parametrize("seed", range(8))
def test_no_call_can_tell_the_plain_way_from_the_general_one(monkeypatch, seed):
    """Calls with arguments of all kinds, right and wrong: the same results, errors and memory."""
    rng, seen, test = random.Random(seed), [], problem._plain
    given, weights = [w for _, w in WAYS_TO_GIVE.values()], [k for k, _ in WAYS_TO_GIVE.values()]
    for _ in range(150):
        everything = rng.choice([None, None, *given])  # so that shapes and dtypes fit
        ways = [everything or way for way in rng.choices(given, weights, k=5)]
        W, x, results = plain((rng.choice([0, 1, 5, 5, 5]),), rng.choice(["float32", "float64"]))
        function = rng.choice(list(CALLS))
        out = [way(results[NAMES.index(name)]) for name, way in zip(CALLS[function], ways[2:], strict=False)]
        if rng.random() < 0.2:
            out[rng.randrange(len(out))] = rng.choice([*results, W, x, W[:], W[..., 0], W.reshape(-1)[: len(W)]])
        if function == "value":
            out = out[0]
        elif rng.random() < 0.7:
            out = tuple(out)
        if rng.random() < 0.3:
            out = rng.choice([None, None, None, None, list(results[:2]), iter(results), results[0]])
        options = {"backend": rng.choice(BACKENDS), "stream": rng.choice([None, None, 7, "stream"])}
        arrays = *results, W, x
        before = [*map(np.copy, arrays)]
        call = partial(outcome, getattr(sl2, function), ways[0](W), ways[1](x), out, arrays, before, **options)
        with monkeypatch.context() as patch:
            patch.setattr(problem, "_plain", lambda *arguments: seen.append(test(*arguments)) or seen[-1])
            found = call()
            patch.setattr(problem, "_plain", lambda *arguments: None)
            patch.setattr(checks_of_out, "are_plain", lambda *arguments: False)
            assert found == call()
    assert any(seen), "no call was plain"
    assert not all(seen), "all calls were plain"
