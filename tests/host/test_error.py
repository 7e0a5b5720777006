"""The error s - y, and what is made of it, where a subtraction would lose it: in both tails, and for any target.

``contract.py`` says what is allowed: for the targets 0 and 1 no more than without a target.
"""

import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
from contract import assert_contract
from hypothesis import given

import sigmoid_l2 as sl2
from host.test_parity import whole_range

ALL = ("W", "x", "q")
NAMES = ("loss", "dW", "dx", "dq")


def computed(backend, q, target=None, cotangent=None):
    """The four results for pairs of 1x1 with x = 1: q = W exactly."""
    W, x = q[:, None, None], np.ones((len(q), 1), q.dtype)
    target = None if target is None else np.broadcast_to(np.asarray(target, q.dtype), q.shape)[:, None]
    return sl2.value_and_grad(W, x, target, cotangent=cotangent, wrt=ALL, backend=backend)


def test_targets_0_and_1_mirror_each_other(backend, dtype):
    """e(q, 1) = -e(-q, 0) to the last bit, and a target of 0 is none. So both tails are as good as each other."""
    q = whole_range(dtype)
    plain, zero, one = computed(backend, q), computed(backend, q, 0), computed(backend, -q, 1)
    for name in NAMES:
        assert np.array_equal(getattr(plain, name), getattr(zero, name)), name
    assert np.array_equal(one.loss, plain.loss)
    assert np.array_equal(one.dq, -plain.dq)
    assert np.array_equal(one.dx, plain.dx)


@pytest.mark.parametrize(
    "y", [-3.0, -1e-3, 0.0, 1e-30, 0.3, 0.5, 0.5001, 0.9, 1 - 2**-11, 1.0, 1 + 2**-10, 2.0, 2.1, 60.0]
)
def test_contract_for_every_q(backend, dtype, y):
    """Around each branch of e, beyond the ends, and where 1 - y is no longer exact."""
    q = whole_range(dtype)[::7]
    target = dtype.type(y)
    loss, dW, dx, dq = computed(backend, q, target)
    W, x = q[:, None, None], np.ones((len(q), 1), dtype)
    targets = np.full((len(q), 1), target)
    assert_contract(W, x, loss, dW, dx, dq=dq, target=targets, backend=backend)


def test_contract_where_the_target_is_met(backend, dtype):
    """e is the rounding of the target, and hence all of its digits may be lost: the contract allows for that alone."""
    q = np.linspace(-12, 12, 97).astype(dtype)
    target = (1 / (1 + np.exp(-q.astype(float)))).astype(dtype)
    loss, dW, dx, dq = computed(backend, q, target)
    ones = np.ones((len(q), 1), dtype)
    assert_contract(q[:, None, None], ones, loss, dW, dx, dq=dq, target=target[:, None], backend=backend)


def numbers(lowest, highest):
    return st.floats(lowest, highest, width=32)


@given(
    q=st.lists(numbers(-110, 110), min_size=1, max_size=5),
    y=st.lists(st.one_of(st.sampled_from([0.0, 0.5, 1.0]), numbers(0, 1), numbers(-4, 4)), min_size=5, max_size=5),
    c=st.one_of(numbers(-10, 10), numbers(-(2.0**100), 2.0**100)),
    x=numbers(-4, 4),
)
def test_contract(entry, q, y, c, x):
    """Several rows, whose errors add up in dx, and any cotangent."""
    W, x = np.array([[a, 0.5] for a in q], np.float32), np.array([1, x], np.float32)
    y, c = np.array(y[: len(q)], np.float32), np.float32(c)
    loss, dW, dx, dq = sl2.value_and_grad(W, x, y, cotangent=c, wrt=ALL, backend=entry.name)
    assert_contract(W, x, loss, dW, dx, dq=dq, target=y, cotangent=c, backend=entry.name)


def test_a_power_of_two_as_cotangent_is_exact(backend, dtype):
    """The gradients have its bits but for the exponent, and the loss is not multiplied."""
    q = np.linspace(-4, 4, 50).astype(dtype)
    target = np.linspace(-1, 2, 50)
    one, many = computed(backend, q, target), computed(backend, q, target, np.full(50, -4, dtype))
    assert np.array_equal(many.loss, one.loss)
    for name in NAMES[1:]:
        assert np.array_equal(getattr(many, name), -4 * getattr(one, name)), name


def test_no_warning_for_finite_input(backend, dtype):
    """Not even where a product with the target or the cotangent overflows."""
    q, big = whole_range(dtype), np.finfo(dtype).max
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        for y in (1, 0.3, big, -big):
            computed(backend, q, dtype.type(y), np.full(len(q), big))


def test_nan(backend, dtype):
    """In a target: in all results of its row. In a cotangent: in the gradients, and not in the loss."""
    q = np.linspace(-4, 4, 6).astype(dtype)
    target, cotangent = np.full(6, 0.75, dtype), np.ones(6, dtype)
    clean = computed(backend, q, target, cotangent)
    target[2] = cotangent[4] = np.nan
    got = computed(backend, q, target, cotangent)
    for name in NAMES:
        lost = [2] if name == "loss" else [2, 4]
        a, b = (np.ravel(getattr(results, name)) for results in (got, clean))
        assert np.isnan(a[lost]).all(), name
        assert np.array_equal(np.delete(a, lost), np.delete(b, lost)), name
