"""Targets, cotangents, broadcast shapes and ``wrt``, on every backend, against the oracle by the contract."""

import itertools
import math
import pickle
import tracemalloc

import hypothesis.strategies as st
import numpy as np
import pytest
from arrays import bits, pairs, strided
from contract import assert_contract
from hypothesis import assume, example, given

import sigmoid_l2 as sl2
from sigmoid_l2 import ensembles, execute, pieces, threads
from sigmoid_l2.arguments import pieces as indices_of_pieces

NAMES = {"W": "dW", "x": "dx", "q": "dq"}


def numbers(shape, dtype, seed=0):
    return np.random.default_rng([*shape, seed]).standard_normal(shape).astype(dtype)


# Shapes of W, x, target and cotangent without m and n; None: not given.
SHAPES = {
    "pairs": ((5,), (5,), (5,), (5,)),
    "one pair": ((), (), (), ()),
    "one W for many x": ((), (7,), (7,), None),
    "one W for many x, each with its weight": ((), (7,), (), (7,)),
    "one x for many W": ((6,), (), (), ()),
    "one W and one x for many targets": ((), (), (4,), (4,)),
    "all W with all x": ((4, 1), (1, 3), (3,), (4, 1)),
    "axes of both kinds": ((2, 1, 3), (2, 4, 1), (3,), (2, 1, 1)),
    "an axis of length 1": ((1,), (5,), None, (5,)),
    "no target": ((2, 3), (3,), None, None),
}


def inputs(shapes, m, n, dtype, seed=0):
    tails = (m, n), (n,), (m,), ()
    return [
        None if batch is None else numbers((*batch, *tail), dtype, [seed, k][k > 0])
        for k, (batch, tail) in enumerate(zip(shapes, tails, strict=True))
    ]


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("m", "n"), [(3, 4), (1, 1), (2, 40), (33, 3)])
def test_contract(backend, dtype, shapes, m, n):
    W, x, y, c = inputs(shapes, m, n, dtype)
    loss, dq, dx, dW = sl2.value_and_grad(W, x, y, cotangent=c, wrt=("q", "x", "W"), backend=backend)
    assert loss.shape == np.broadcast_shapes(*(s for s in shapes if s is not None))
    assert (dW.shape, dx.shape, dq.shape) == (W.shape, x.shape, (*loss.shape, m))
    assert_contract(W, x, loss, dW, dx, dq=dq, target=y, cotangent=c, backend=backend)


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_what_is_wanted_changes_no_bit(backend, dtype, shapes):
    """Any gradients in any order, with the loss or without it; what is not asked for is not returned."""
    W, x, y, c = inputs(shapes, 3, 4, dtype)
    expected = sl2.value_and_grad(W, x, y, cotangent=c, wrt=("W", "x", "q"), backend=backend)._asdict()
    assert bits([sl2.value(W, x, y, backend=backend)]) == bits([expected["loss"]])
    for wrt in itertools.chain.from_iterable(itertools.permutations(NAMES, k) for k in (1, 2, 3)):
        names = [NAMES[a] for a in wrt]
        got = sl2.value_and_grad(W, x, y, cotangent=c, wrt=wrt, backend=backend)
        assert list(got._asdict()) == ["loss", *names]
        assert bits(got) == bits(expected[name] for name in ("loss", *names))
        got = sl2.grad(W, x, y, cotangent=c, wrt=wrt, backend=backend)
        assert list(got._asdict()) == names
        assert bits(got) == bits(expected[name] for name in names)
        out = tuple(np.full_like(expected[name], np.nan) for name in names)
        assert sl2.grad(W, x, y, cotangent=c, wrt=wrt, out=out, backend=backend)[0] is out[0]
        assert bits(out) == bits(expected[name] for name in names)


def test_one_name_gives_the_bare_array(backend):
    W, x = pairs((5,))
    expected = sl2.grad(W, x, backend=backend)
    dx = np.empty_like(x)
    assert sl2.grad(W, x, wrt="x", out=dx, backend=backend) is dx
    assert bits([dx, sl2.grad(W, x, wrt="W", backend=backend)]) == bits([expected.dx, expected.dW])
    assert bits(sl2.value_and_grad(W, x, wrt="x", backend=backend)[1:]) == bits([dx])


@pytest.mark.parametrize("wrt", [("W", "x"), ("x", "W"), ("q",), ("q", "x", "W")])
def test_results_can_be_pickled(wrt):
    result = sl2.value_and_grad(*pairs((2,)), wrt=wrt)
    again = pickle.loads(pickle.dumps(result))
    assert type(again) is type(result)
    assert bits(again) == bits(result)
    assert bits(pickle.loads(pickle.dumps(sl2.grad(*pairs((2,)), wrt=wrt)))) == bits(result[1:])


@st.composite
def broadcast_shapes(draw):
    """A batch shape, and four shapes that broadcast to it, of which the last broadcasts to the first three."""
    batch = draw(st.lists(st.integers(0, 3), max_size=4))
    shapes = []
    for _ in range(4):
        own = [draw(st.sampled_from([size, 1])) for size in batch]
        shapes.append(tuple(own[draw(st.integers(0, len(own))) :]))
    return tuple(shapes)


@given(shapes=broadcast_shapes(), size=st.integers(1, 40), work=st.sampled_from([1, 1 << 40]))
@example(shapes=((0, 3), (3,), (), ()), size=4, work=1)
@example(shapes=((3, 1), (7,), (), ()), size=2, work=1)
@example(shapes=((2, 1, 3), (2, 5, 1), (3,), (1,)), size=2, work=1)
@example(shapes=((3, 2, 1), (2, 5), (1,), ()), size=2, work=1)
def test_any_broadcast_is_the_sum_over_pairs(entry, shapes, size, work):
    """Whatever the pieces are: against a call with all arrays in full, whose gradients NumPy adds up."""
    W, x, y, c = inputs(shapes, 2, 3, np.float64)
    batch = np.broadcast_shapes(*shapes[:3])
    assume(np.broadcast_shapes(batch, shapes[3]) == batch)
    tails = (2, 3), (3,), (2,), ()
    *full, c_full = (np.array(np.broadcast_to(a, batch + t)) for a, t in zip((W, x, y, c), tails, strict=True))
    expected = sl2.value_and_grad(*full, cotangent=c_full, wrt=("W", "x", "q"), backend=entry.name)
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in ("PIECE_BYTES", "GPU_PIECE_BYTES", "OFFLOAD_PIECE_BYTES", "OFFLOAD_ONE_W_BYTES"):
            monkeypatch.setattr(execute, name, size * 6 * 8)
        monkeypatch.setattr(execute, "ONE_W_PIECE_BYTES", size * 5 * 8)
        monkeypatch.setattr(execute, "MODEL_WORK", work)
        monkeypatch.setattr(execute, "MODEL_SAMPLES", 1)
        monkeypatch.setattr(pieces, "BLOCK_WORK", 1)
        monkeypatch.setattr(ensembles, "SUM_BYTES", size * 3 * 8)
        got = sl2.value_and_grad(W, x, y, cotangent=c, wrt=("W", "x", "q"), backend=entry.name)
    if W.size > 6 and got.loss.size // max(1, W.size // 6) * 6 < work:  # one W for many x has a kernel of its own
        assert bits([got.loss, got.dq]) == bits([expected.loss, expected.dq])
    np.testing.assert_allclose(got.loss, expected.loss, rtol=1e-14, atol=0)
    np.testing.assert_allclose(got.dq, expected.dq, rtol=1e-14, atol=1e-15)
    of_rows = (abs(expected.dq)[..., None, :] @ abs(full[0]))[..., 0, :]  # a dx is itself a sum, whose terms may cancel
    for name, a, axes, sizes in (("dW", W, 2, abs(expected.dW)), ("dx", x, 1, of_rows)):
        terms = getattr(expected, name)
        extra = tuple(range(terms.ndim - a.ndim))
        ones = tuple(k for k in range(a.ndim - axes) if a.shape[k] == 1)
        total = terms.sum(extra).sum(ones, keepdims=True)
        sizes = sizes.sum(extra).sum(ones, keepdims=True)
        assert getattr(got, name).shape == a.shape
        assert (np.abs(getattr(got, name) - total) <= 1e-14 * sizes).all(), name


@pytest.mark.parametrize("q", [-80, -30, -17, -5, 0, 5, 17, 30, 80])
@pytest.mark.parametrize("y", [0.0, 1.0])
def test_tails(backend, q, y):
    """For the targets 0 and 1 the gradient has full accuracy where float32 elsewhere gives 0: 1 - s is not rounded."""
    W, x = np.full((3, 1, 2), q / 2, np.float32), np.ones((3, 2), np.float32)
    loss, dW, dx, dq = sl2.value_and_grad(W, x, y, wrt=("W", "x", "q"), backend=backend)
    for k in range(3):
        assert_contract(W[k], x[k], loss[k], dW[k], dx[k], dq=dq[k], target=np.float32(y), backend=backend)


@pytest.mark.parametrize("axis", ["W", "x"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_sum_of_very_many_equal_terms(backend, dtype, axis):
    """A running sum of float32 would be off by thousands of eps, or stop growing."""
    B = 1 << 22
    W, x = np.full((1, 1), 0.3, dtype), np.full((1,), 0.7, dtype)
    one = sl2.value_and_grad(W, x, backend=backend)
    many = sl2.value_and_grad(W, np.broadcast_to(x, (B, 1)).copy(), backend=backend) if axis == "W" else None
    many = many or sl2.value_and_grad(np.broadcast_to(W, (B, 1, 1)).copy(), x, backend=backend)
    got, term = (many.dW, one.dW) if axis == "W" else (many.dx, one.dx)
    eps = np.finfo(dtype).eps
    assert abs(float(got.item()) / (B * float(term.item())) - 1) <= (math.log2(B) + 1) * eps


@pytest.mark.parametrize("number", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "shapes", [((), (9000,)), ((9000,), ()), ((90, 1), (1, 100)), ((), ()), ((7, 1), (3000,)), ((9, 1), (1000,))]
)
def test_sums_do_not_depend_on_the_number_of_threads(backend, shapes, number):
    W, x = numbers((*shapes[0], 12, 11), np.float32), numbers((*shapes[1], 11), np.float32)
    y = numbers((20_000, 12) if shapes == ((), ()) else (12,), np.float32)
    expected = sl2.value_and_grad(W, x, y, backend=backend)
    before = threads.get_num_threads()
    sl2.set_num_threads(number)
    try:
        assert bits(sl2.value_and_grad(W, x, y, backend=backend)) == bits(expected)
    finally:
        sl2.set_num_threads(before)
        sl2.set_num_threads(None)


@pytest.mark.parametrize(
    ("shapes", "other"), [(((900,), ()), 1 << 11), (((90, 1), (10,)), 1 << 40), (((30, 1), (30, 7)), 1)]
)
def test_sums_do_not_depend_on_the_layout(backend, shapes, other, monkeypatch):
    """Of many W with one x, and of ensembles, with the kernel for one W or without it."""
    monkeypatch.setattr(execute, "PIECE_BYTES", 4096)
    monkeypatch.setattr(execute, "MODEL_WORK", other)
    monkeypatch.setattr(execute, "MODEL_SAMPLES", 1)
    W, x, y = (
        numbers((*shapes[0], 12, 11), np.float32),
        numbers((*shapes[1], 11), np.float32),
        numbers((12,), np.float32),
    )
    expected = sl2.value_and_grad(W, x, y, wrt=("W", "x", "q"), backend=backend)
    for a, b in ((strided(W), x), (W, strided(x)), (W.astype(">f4"), x[..., ::-1].copy()[..., ::-1])):
        assert bits(sl2.value_and_grad(a, b, strided(y), wrt=("W", "x", "q"), backend=backend)) == bits(expected)


def test_the_sum_for_one_w_does_not_depend_on_what_else_is_wanted(backend, monkeypatch):
    """Also where x, and so the new dx, do not lie as the kernel takes them, and both together are large."""
    monkeypatch.setattr(execute, "ONE_W_PIECE_BYTES", 1 << 16)
    W, x = numbers((12, 11), np.float32), numbers((11, 1200), np.float32).T
    expected = sl2.grad(W, x, wrt="W", backend=backend)
    for wrt in (("W", "x"), ("W", "q"), ("x", "W", "q")):
        assert bits([sl2.grad(W, x, wrt=wrt, backend=backend).dW]) == bits([expected])
    assert bits([sl2.value_and_grad(W, x, backend=backend).dW]) == bits([expected])


def test_a_range_of_one_pair_is_not_one_w_of_many(backend):
    """Where x has more batch axes than W."""
    W, x = numbers((4, 6, 7), np.float32), numbers((1, 4, 7), np.float32)
    for a in (W, np.asfortranarray(W)):
        expected = sl2.grad(a, x, wrt="x", backend=backend)[:, 1:2]
        assert bits([sl2.grad(a[1:2], x[:, 1:2], wrt="x", backend=backend)]) == bits([expected])


@pytest.mark.parametrize(
    ("samples", "work", "alone"),
    [(8, 8 * 12, True), (8, 8 * 12 + 1, False), (7, 1, False), (9, 1, True)],
)
def test_when_each_of_many_w_is_computed_alone(samples, work, alone, monkeypatch):
    """From MODEL_SAMPLES samples of a model on, and from MODEL_WORK elements of W on, which these have together."""
    calls = []
    monkeypatch.setattr(execute, "MODEL_WORK", work)
    monkeypatch.setattr(ensembles, "compute", lambda *arguments: calls.append(arguments))
    sl2.value(numbers((3, 1, 3, 4), float), numbers((samples, 4), float), backend="numpy")
    assert bool(calls) == alone


def test_nan_stays_in_its_pair_and_in_the_sum(backend):
    x = numbers((50, 4), np.float32)
    W, y, c = numbers((3, 4), np.float32), numbers((50, 3), np.float32), numbers((50,), np.float32)
    clean = sl2.value_and_grad(W, x, y, cotangent=c, wrt=("W", "x", "q"), backend=backend)
    y[7, 1] = np.nan
    loss, dW, dx, dq = sl2.value_and_grad(W, x, y, cotangent=c, wrt=("W", "x", "q"), backend=backend)
    others = np.arange(50) != 7
    assert bits([loss[others], dx[others], dq[others]]) == bits([clean[0][others], clean[2][others], clean[3][others]])
    assert np.isnan([loss[7], *dx[7], dq[7, 1], *dW[1]]).all()
    assert bits([dq[7, ::2], dW[::2]]) == bits([clean.dq[7, ::2], clean.dW[::2]])


def test_columns(backend):
    """x (..., n, 1) and a target (..., m, 1) give columns; the values are those of vectors."""
    W, x = pairs((5,))
    y, c = numbers((5, 3), np.float64), numbers((5,), np.float64)
    loss, dW, dx, dq = sl2.value_and_grad(W, x, y, cotangent=c, wrt=("W", "x", "q"), backend=backend)
    for target in (y[..., None], y):
        got = sl2.value_and_grad(W, x[..., None], target, cotangent=c, wrt=("W", "x", "q"), backend=backend)
        assert bits(got) == bits([loss, dW, dx[..., None], dq[..., None]])
    one = sl2.value_and_grad(W[0], x[0][:, None], y[0][:, None], backend=backend)
    assert bits(one) == bits((*sl2.value_and_grad(W[0], x[0], y[0], backend=backend)[:2], one.dx))
    out = tuple(map(np.empty_like, got))
    sl2.value_and_grad(W, x[..., None], y, cotangent=c, wrt=("W", "x", "q"), out=out, backend=backend)
    assert bits(out) == bits(got)


def test_other_dtypes_and_layouts_of_target_and_cotangent(backend):
    W, x = pairs((50,), dtype=np.float32)
    y, c = np.random.default_rng(0).integers(0, 2, (50, 3)), np.arange(50)
    expected = sl2.value_and_grad(W, x, y.astype("f4"), cotangent=c.astype("f4"), backend=backend)
    assert expected.dW.dtype == np.float32
    for convert in (
        np.asarray,
        lambda a: a.astype(">f8"),
        strided,
        np.ndarray.tolist,
        lambda a: a.astype("f4")[::-1][::-1],
    ):
        got = sl2.value_and_grad(W, x, convert(y), cotangent=convert(c), backend=backend)
        assert bits(got) == bits(expected)
    got = sl2.value_and_grad(W, x, y == 1, cotangent=True, backend=backend)
    assert bits(got) == bits(sl2.value_and_grad(W, x, y.astype("f4"), backend=backend))


@pytest.mark.filterwarnings("error")
def test_finite_input_gives_no_warning_where_a_result_is_too_large(backend):
    """Copies of large arrays, too, which run on threads of their own, convert without a warning."""
    W, x = np.zeros((1, 600, 600), np.float16), np.full((1, 600), 60000, np.float16)
    loss, dW, _ = sl2.value_and_grad(W, x, cotangent=[1e4], backend=backend)
    assert np.isinf(dW).all()
    assert np.isfinite(loss).all()
    W, x = np.zeros((1, 600, 600), np.float32), np.zeros((1, 600), np.float32)
    assert np.isinf(sl2.value(W, x, np.full((1, 600), 1e300), backend=backend)).all()


@pytest.mark.parametrize("shared", ["W", "x"])
def test_nothing_of_all_pairs_is_allocated(backend, shared):
    """A W that all x share is never repeated for all of them."""
    W = numbers((() if shared == "W" else (400,)) + (40, 50), np.float32)
    x = numbers((20_000, 50) if shared == "W" else (50,), np.float32)
    out = tuple(np.empty(shape, np.float32) for shape in ((20_000,) if shared == "W" else (400,), W.shape, x.shape))
    sl2.value_and_grad(W, x, 1.0, out=out, backend=backend)
    tracemalloc.start()
    sl2.value_and_grad(W, x, 1.0, out=out, backend=backend)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 << 20


def test_empty_batches(backend):
    """No pairs: empty results, and 0 for a gradient that is summed over them."""
    loss, dW, dx, dq = sl2.value_and_grad(np.ones((3, 4)), np.ones((0, 4)), 1.0, wrt=("W", "x", "q"), backend=backend)
    assert (loss.shape, dx.shape, dq.shape) == ((0,), (0, 4), (0, 3))
    assert bits([dW]) == bits([np.zeros((3, 4))])


def test_large_pairs_have_the_same_bits_in_any_layout(backend):
    """A large W of one pair is not one W of many."""
    W, x, y = (numbers(shape, np.float32) for shape in ((3, 256, 520), (3, 520), (3, 256)))
    expected = bits(sl2.value_and_grad(W, x, np.ones_like(y), backend=backend))
    assert bits(sl2.value_and_grad(W, x, 1, backend=backend)) == expected
    transposed = W.swapaxes(1, 2).copy().swapaxes(1, 2)
    assert bits(sl2.value_and_grad(transposed, strided(x), 1, backend=backend)) == expected
    one = sl2.value_and_grad(np.asfortranarray(W[0]), x[0], 1.0, backend=backend)
    assert bits(one) == bits(sl2.value_and_grad(W[0], x[0], np.ones_like(y[0]), backend=backend))


def test_pieces_cover_each_pair_once():
    for batch in ((), (7,), (2, 3), (3, 1, 4), (2, 5, 3)):
        for pairs_ in (1, 2, 4, 100):
            counts = np.zeros(batch, int)
            for index in indices_of_pieces(batch, pairs_):
                counts[index] += 1
                assert counts[index].size <= pairs_
            assert (counts == 1).all()
