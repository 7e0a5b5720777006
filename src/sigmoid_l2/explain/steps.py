"""The steps of the computation, and the ways in which people take them; the first of each is right.

A way is said in the words of the formula. Its function computes the step from the values before it, as the user's
program did, and raises ValueError where the way does not exist: for these shapes, or without a target.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from sigmoid_l2.explain.program import Step, Values, Way, only
from sigmoid_l2.explain.trace import residual
from sigmoid_l2.kernels.reference import sigmoid_and_complement

Array = npt.NDArray[Any]

RARE = 3  # the cost of what few people do; 2 is the cost of the rest


def _sigmoid(a: Array) -> Any:
    return sigmoid_and_complement(a)[0]


def _softmax(v: Values) -> Any:
    powers = np.exp(v.q - v.q.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _grown_error(v: Values) -> Any:
    """The sum over k of s_b - y_k, which (B, 1) - (B,) leads to, for the pairs b and k of one cell."""
    s = only(v.m == 1 and v.terms > 1 and v.target, v.s)
    y = v.y.reshape(v.cells, v.terms, 1).sum(axis=1, keepdims=True)
    cells = v.terms * s.reshape(*s.shape[:-2], v.cells, v.terms, 1) - y
    return cells.reshape(s.shape)


def _class_number(v: Values) -> Any:
    one_hot = bool(v.target and v.m > 1 and np.all((v.y == 0) | (v.y == 1)) and np.all(v.y.sum(axis=-1) == 1))
    return v.s - only(one_hot, v.y).argmax(axis=-1)[:, None]


_Q = Step(
    "q",
    (),
    "q_i is the sum over j of W_ij x_j, along a row of W",
    "q = W @ x",
    (
        Way("", lambda v: v.right_q),
        Way("q is Wᵀ x instead of W x", lambda v: np.einsum("bij,bi->bj", v.W, v.x)),
        Way(
            "q is W x in whole numbers, which cut the fractions off",
            lambda v: np.einsum("bij,bj->bi", np.trunc(v.W), np.trunc(v.x)),
            cost=RARE,
        ),
        Way(
            "q is a whole number, an integer array cut the fractions off",
            lambda v: np.trunc(v.right_q),
            "q_i is any number; compute in float32 or float64",
            cost=RARE,
        ),
        Way(
            "q is rounded to float16, of about 3 digits",
            lambda v: v.right_q.astype(np.float16).astype(float),
            "compute in float32 or float64",
            cost=RARE,
        ),
    ),
)

_S = Step(
    "s",
    ("q",),
    "the sigmoid is 1/(1 + e^-q), and all of 1 + e^-q stands below the line",
    "s = 1 / (1 + np.exp(-q))",
    (
        Way("", lambda v: sigmoid_and_complement(v.q)),
        Way("s is 1/1 + e^-q, which is 1 + e^-q without the brackets", lambda v: 1 + np.exp(-v.q)),
        Way("s is 1/e^-q = e^q, without the 1 +", lambda v: np.exp(v.q)),
        Way("s is 1/(1 + e^q), with the sign of q turned round", lambda v: sigmoid_and_complement(-v.q)),
        Way("s is q/(1 + e^-q), which is q sigmoid(q)", lambda v: v.q * _sigmoid(v.q)),
        Way("s is the sigmoid applied twice, sigmoid(sigmoid(q))", lambda v: sigmoid_and_complement(_sigmoid(v.q))),
        Way(
            "s is the softmax of q instead of the sigmoid",
            _softmax,
            "the sigmoid of q_i depends on q_i alone, and s does not add up to 1",
        ),
        Way(
            "s is tanh(q) instead of the sigmoid",
            lambda v: np.tanh(v.q),
            "the sigmoid goes from 0 to 1, tanh from -1 to 1",
        ),
        Way("s is max(q, 0), the ReLU, instead of the sigmoid", lambda v: np.maximum(v.q, 0)),
        Way(
            "s is q: the sigmoid is left out",
            lambda v: v.q,
            "f is the sum of the sigmoid(q_i)², or of (sigmoid(q_i) - y_i)²",
        ),
        Way("s is (1 + e)^-q, with the brackets in another place", lambda v: (1 + np.e) ** -v.q, cost=RARE),
        Way("s is 1/(1 + 2^-q), with 2 in the place of e", lambda v: 1 / (1 + np.exp2(-v.q)), cost=RARE),
        Way("s is rounded to 0 or 1", lambda v: np.round(_sigmoid(v.q)), "s is any number between 0 and 1", cost=RARE),
        Way(
            "s is rounded to float16, of about 3 digits",
            lambda v: _sigmoid(v.q).astype(np.float16).astype(float),
            "compute in float32 or float64",
            cost=RARE,
        ),
        Way("s is e^-q, without the 1/(1 + ...)", lambda v: np.exp(-v.q), cost=RARE),
    ),
)

_E = Step(
    "e",
    ("s",),
    "the error is e = s - y, in this order",
    "e = s - y",
    (
        Way("", lambda v: residual(v.s, v.c, v.y)),
        Way(
            "y is left out, as in the gradient of ||s||²",
            lambda v: only(v.target, v.s),
            "df/ds = 2e with the error e = s - y, not 2s",
        ),
        Way("the error is taken of q, before the sigmoid", lambda v: only(v.target, v.q - v.y), cost=RARE),
        Way("y is added, e = s + y", lambda v: only(v.target, v.s + v.y), cost=RARE),
        Way("the error is |s - y|, without its sign", lambda v: only(v.target, np.abs(v.s - v.y))),
        Way(
            "the mean of y stands in the place of y",
            lambda v: only(v.target and v.m > 1, v.s - v.y.mean(axis=-1, keepdims=True)),
            "each s_i is compared with its own y_i",
            cost=RARE,
        ),
        Way("y is turned round, 1 - y", lambda v: only(v.target, v.s - (1 - v.y))),
        Way(
            "y is 2y - 1, targets of -1 and 1",
            lambda v: only(v.target, v.s - (2 * v.y - 1)),
            "the sigmoid goes from 0 to 1, and so do its targets",
            cost=RARE,
        ),
        Way(
            "y is put through the sigmoid, too",
            lambda v: only(v.target, v.s - _sigmoid(v.y)),
            "y is compared with s as it is",
        ),
        Way("s is rounded to 0 or 1 in the error", lambda v: only(v.target, np.round(v.s) - v.y), cost=RARE),
        Way(
            "y is one place too far down",
            lambda v: only(v.target and v.m > 1, v.s - np.roll(v.y, 1, axis=-1)),
            "y_i belongs to s_i: is the one-hot vector counted from 0?",
        ),
        Way(
            "y is one place too far up",
            lambda v: only(v.target and v.m > 1, v.s - np.roll(v.y, -1, axis=-1)),
            "y_i belongs to s_i: is the one-hot vector counted from 0?",
        ),
        Way(
            "the number of the class stands in the place of its one-hot vector y",
            _class_number,
            "y_i is 1 for i = class and 0 elsewhere",
        ),
        Way(
            "s - y of the shapes (B, 1) and (B,) has grown to (B, B)",
            _grown_error,
            "each s belongs to one y; give y the shape of s",
        ),
    ),
)

_DS = Step(
    "dloss_ds",
    ("e",),
    "f is the sum of {e}², so df/ds = 2{e}",
    "dloss_ds = 2 * {e}",
    (
        Way("", lambda v: 2 * v.e),
        Way(
            "df/ds = 2{e} is applied twice",
            lambda v: (2 * v.e) ** 2,
            "the chain has each factor once, g = df/ds · ds/dq = 2{e} · s(1 - s)",
        ),
        Way(
            "df/ds = 2{e} is left out",
            lambda v: np.ones_like(v.e),
            "the chain has each factor once, g = df/ds · ds/dq = 2{e} · s(1 - s)",
        ),
        Way(
            "the error e is left out, the derivative is taken of s only",
            lambda v: np.full_like(only(v.target, v.e), 2),
            "df/ds = 2e with e = s - y",
            cost=RARE,
        ),
        Way("3{e}² stands in the place of 2{e}, the derivative of a cube", lambda v: 3 * v.e**2, cost=RARE),
        Way(
            "the mean of the {e}_i stands in the place of {e}_i",
            lambda v: np.broadcast_to(2 * v.e.mean(axis=-1, keepdims=True), v.e.shape),
            "f has one term for each i, and s_i is in one of them",
        ),
        Way(
            "the loss stands in the place of df/ds",
            lambda v: np.broadcast_to((v.e**2).sum(axis=-1, keepdims=True), v.e.shape),
        ),
        Way("{e}² stands in the place of its derivative 2{e}", lambda v: v.e**2, cost=RARE),
        Way(
            "the derivative is that of the root ||{e}||, not of its square",
            lambda v: v.e / np.sqrt((v.e**2).sum(axis=-1, keepdims=True)),
        ),
        Way(
            "the loss itself is a factor",
            lambda v: 2 * v.e * (v.e**2).sum(axis=-1, keepdims=True),
            "the derivative of a square has its root once: f does not appear in df/ds = 2{e}",
            cost=RARE,
        ),
        Way(
            "2{e} is summed over i",
            lambda v: np.broadcast_to(2 * v.e.sum(axis=-1, keepdims=True), v.e.shape),
            "f has one term for each i, and s_i is in one of them",
        ),
        Way("the derivative is that of sum |{e}|, the sign of {e}", lambda v: np.sign(only(v.target, v.e)), cost=4),
    ),
)

_TANH = "1 - s² is the derivative of tanh; that of the sigmoid is ds/dq = s(1 - s)"
_DQ = Step(
    "ds_dq",
    ("s",),
    "the derivative of the sigmoid is ds/dq = s(1 - s)",
    "ds_dq = s * (1 - s)",
    (
        Way("", lambda v: v.s * v.c),
        Way(
            "ds/dq = s(1 - s) is left out",
            lambda v: np.ones_like(v.s),
            "the chain has each factor once, g = df/ds · ds/dq = 2{e} · s(1 - s)",
            cost=RARE,
        ),
        Way("(1 - s) is missing", lambda v: v.s),
        Way(
            "s is missing in s(1 - s)", lambda v: v.c, plain="one s is missing, g is 2s(1 - s) instead of 2s · s(1 - s)"
        ),
        Way("ds/dq is s², without 1 - s", lambda v: v.s**2, cost=RARE),
        Way("ds/dq is s(1 + s)", lambda v: v.s * (1 + v.s)),
        Way("ds/dq is 1 + s", lambda v: 1 + v.s, cost=RARE),
        Way("ds/dq is s - (1 - s)", lambda v: v.s - v.c),
        Way("ds/dq is q(1 - q), with q in the place of s", lambda v: v.q * (1 - v.q)),
        Way(
            "s is put through the sigmoid again, ds/dq is sigmoid(s)(1 - sigmoid(s))",
            lambda v: np.multiply(*sigmoid_and_complement(v.s)),
            "s is the sigmoid of q already: ds/dq = s(1 - s)",
        ),
        Way("ds/dq is 1 - s²", lambda v: 1 - v.s**2, _TANH),
        Way("ds/dq is 1 - tanh(q)², the derivative of tanh", lambda v: 1 - np.tanh(v.q) ** 2, cost=RARE),
        Way("ds/dq is 1 - tanh(s)², the derivative of tanh", lambda v: 1 - np.tanh(v.s) ** 2, cost=RARE),
        Way(
            "ds/dq is e^-q, the square of 1 + e^-q below it is lost",
            lambda v: np.exp(-v.q),
            "ds/dq is e^-q/(1 + e^-q)² = s(1 - s)",
            cost=RARE,
        ),
        Way(
            "sigmoid(s) stands in the place of the derivative",
            lambda v: _sigmoid(v.s),
            "s is the sigmoid of q already, and ds/dq = s(1 - s)",
        ),
        Way(
            "s is put through the derivative again, ds/dq is computed of s(1 - s) instead of q",
            lambda v: np.multiply(*sigmoid_and_complement(v.s * v.c)),
            cost=RARE,
        ),
        Way("ds/dq is s(1 - 2s)", lambda v: v.s * (v.c - v.s), cost=RARE),
        Way("ds/dq is x(1 - x), with x in the place of s", lambda v: v.x * (1 - v.x)),
        Way("ds/dq is s·1 - s = 0, without the brackets of s(1 - s)", lambda v: np.zeros_like(v.s), cost=RARE),
        Way(
            "ds/dq is e^-q/(1 + (e^-q)²), with the square in the wrong place",
            lambda v: np.exp(-v.q) / (1 + np.exp(-2 * v.q)),
            "ds/dq is e^-q/(1 + e^-q)² = s(1 - s)",
            cost=RARE,
        ),
        Way(
            "ds/dq is e^-q(1 + e^-q)², with a product for the quotient",
            lambda v: np.exp(-v.q) * (1 + np.exp(-v.q)) ** 2,
            "ds/dq is e^-q/(1 + e^-q)² = s(1 - s)",
            cost=RARE,
        ),
        Way(
            "ds/dq is e^q/(1 + e^-q)², with a minus lost",
            lambda v: np.exp(v.q) / (1 + np.exp(-v.q)) ** 2,
            "ds/dq is e^-q/(1 + e^-q)² = s(1 - s)",
            cost=RARE,
        ),
        Way(
            "ds/dq is applied twice",
            lambda v: (v.s * v.c) ** 2,
            "the chain has each factor once, g = df/ds · ds/dq = 2{e} · s(1 - s)",
        ),
        Way("ds/dq is {e}(1 - {e})", lambda v: only(v.target, v.e * (1 - v.e))),
        Way("ds/dq is y(1 - y)", lambda v: only(v.target, v.y * (1 - v.y))),
        Way(
            "ds/dq is that of sigmoid(q), and s is something else",
            lambda v: np.multiply(*sigmoid_and_complement(v.q)),
            cost=RARE,
        ),
        Way(
            "ds/dq is 1 where q > 0, and 0 elsewhere, the derivative of the ReLU",
            lambda v: np.where(v.q > 0, 1.0, 0.0),
            cost=5,
        ),
    ),
    ("e",),
)

_G = Step(
    "dloss_dq",
    ("dloss_ds", "ds_dq"),
    "the chain rule multiplies, g = df/ds · ds/dq",
    "dloss_dq = dloss_ds * ds_dq",
    (
        Way("", lambda v: v.dloss_ds * v.ds_dq),
        Way(
            "g is e alone, as for the cross-entropy: the 2 and ds/dq = s(1 - s) are left out",
            lambda v: v.e,
            "the chain has each factor once, g = df/ds · ds/dq = 2{e} · s(1 - s)",
            cost=RARE,
            plain="g is s alone: the 2 and ds/dq = s(1 - s) are left out",
        ),
        Way(
            "s stands in the place of g",
            lambda v: only(v.target, v.s),
            "the chain has each factor once, g = df/ds · ds/dq = 2{e} · s(1 - s)",
            cost=RARE,
        ),
        Way(
            "df/ds is multiplied by the sum of ds/dq over i, as where shapes (m, 1) and (m,) grow to (m, m)",
            lambda v: v.dloss_ds * v.ds_dq.sum(axis=-1, keepdims=True),
            "both have one value for each i, and the same shape",
            cost=RARE,
        ),
        Way(
            "the Jacobian of the softmax stands in the place of ds/dq",
            lambda v: v.s * (v.dloss_ds - (v.s * v.dloss_ds).sum(axis=-1, keepdims=True)),
            "s_i depends on q_i alone, so ds/dq = s(1 - s), element by element",
        ),
        Way("df/ds and ds/dq are added", lambda v: v.dloss_ds + v.ds_dq),
        Way(
            "df/ds and ds/dq are multiplied as a dot product, which sums over i",
            lambda v: np.broadcast_to((v.dloss_ds * v.ds_dq).sum(axis=-1, keepdims=True), v.s.shape),
            "g has one value for each i; np.dot and @ sum, * does not",
        ),
    ),
)

STEPS: tuple[Step, ...] = (_Q, _S, _E, _DS, _DQ, _G)
