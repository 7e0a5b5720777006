"""The ways to compute this gradient that people take, right and wrong, in the words of the formula.

A recipe is a program (STEPS), a product of its values (PRODUCTS), which pairs are summed (SUMS), and a constant factor
(CONSTANTS) or something that was added (ADDED). The first entry of each table is right.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sigmoid_l2.explain.program import Inputs, Step, Values, Way
from sigmoid_l2.explain.trace import residual
from sigmoid_l2.kernels.reference import sigmoid_and_complement

Array = npt.NDArray[Any]

_RARE = 3  # the cost of what few people do

def _sigmoid(a: Array) -> Array:
    return sigmoid_and_complement(a)[0]


def _softmax(v: Values) -> Array:
    powers = np.exp(v.q - v.q.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _only(condition: bool, a: Any) -> Any:
    """``a``, where the way exists; its program raises ValueError elsewhere."""
    if not condition:
        raise ValueError("this way does not exist for these shapes or without a target")
    return a


def _grown_error(v: Values) -> Array:
    """The sum over k of s_b - y_k, which (B, 1) - (B,) leads to, for the pairs b and k of one cell."""
    s, y = (a.reshape(v.cells, v.terms) for a in (_only(v.m == 1 and v.terms > 1 and v.target, v.s), v.y))
    return np.asarray((v.terms * s - y.sum(axis=1, keepdims=True)).reshape(-1, 1))


def _class_number(v: Values) -> Array:
    one_hot = v.target and v.m > 1 and np.all((v.y == 0) | (v.y == 1)) and np.all(v.y.sum(axis=1) == 1)
    return np.asarray(v.s - _only(one_hot, v.y).argmax(axis=1)[:, None])


_Q = Step(
    "q",
    (),
    "q_i is the sum over j of W_ij x_j, along a row of W",
    "q = W @ x",
    (
        Way("", lambda v: np.einsum("bij,bj->bi", v.W, v.x)),
        Way("q is Wᵀ x instead of W x", lambda v: np.einsum("bij,bi->bj", v.W, v.x)),
        Way("q is W x in whole numbers, which cut the fractions off", lambda v: np.einsum("bij,bj->bi", np.trunc(v.W), np.trunc(v.x)), cost=_RARE),
        Way("q is a whole number, an integer array cut the fractions off", lambda v: np.trunc(np.einsum("bij,bj->bi", v.W, v.x)), "q_i is any number; compute in float32 or float64", cost=_RARE),
        Way("q is rounded to float16, of about 3 digits", lambda v: np.einsum("bij,bj->bi", v.W, v.x).astype(np.float16).astype(float), "compute in float32 or float64", cost=_RARE),
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
        Way("s is the softmax of q instead of the sigmoid", _softmax, "the sigmoid of q_i depends on q_i alone, and s does not add up to 1"),
        Way("s is tanh(q) instead of the sigmoid", lambda v: np.tanh(v.q), "the sigmoid goes from 0 to 1, tanh from -1 to 1"),
        Way("s is max(q, 0), the ReLU, instead of the sigmoid", lambda v: np.maximum(v.q, 0), cost=_RARE),
        Way("s is q: the sigmoid is left out", lambda v: v.q, "f is the sum of the sigmoid(q_i)², or of (sigmoid(q_i) - y_i)²"),
        Way("s is (1 + e)^-q, with the brackets in another place", lambda v: (1 + np.e) ** -v.q, cost=_RARE),
        Way("s is rounded to 0 or 1", lambda v: np.round(_sigmoid(v.q)), "s is any number between 0 and 1", cost=_RARE),
        Way("s is rounded to float16, of about 3 digits", lambda v: _sigmoid(v.q).astype(np.float16).astype(float), "compute in float32 or float64", cost=_RARE),
        Way("s is e^-q, without the 1/(1 + ...)", lambda v: np.exp(-v.q), cost=_RARE),
    ),
)

_E = Step(
    "e",
    ("s",),
    "the error is e = s - y, in this order",
    "e = s - y",
    (
        Way("", lambda v: residual(v.s, v.c, v.y)),
        Way("y is left out, as in the gradient of ||s||²", lambda v: _only(v.target, v.s), "df/ds = 2e with the error e = s - y, not 2s"),
        Way("the error is taken of q, before the sigmoid", lambda v: _only(v.target, v.q - v.y), cost=_RARE),
        Way("y is added, e = s + y", lambda v: _only(v.target, v.s + v.y), cost=_RARE),
        Way("the error is |s - y|, without its sign", lambda v: _only(v.target, np.abs(v.s - v.y))),
        Way("y is turned round, 1 - y", lambda v: _only(v.target, v.s - (1 - v.y))),
        Way("y is 2y - 1, targets of -1 and 1", lambda v: _only(v.target, v.s - (2 * v.y - 1)), "the sigmoid goes from 0 to 1, and so do its targets", cost=_RARE),
        Way("y is put through the sigmoid, too", lambda v: _only(v.target, v.s - _sigmoid(v.y)), "y is compared with s as it is"),
        Way("s is rounded to 0 or 1 in the error", lambda v: _only(v.target, np.round(v.s) - v.y), cost=_RARE),
        Way("y is one place too far down", lambda v: _only(v.target and v.m > 1, v.s - np.roll(v.y, 1, axis=1)), "y_i belongs to s_i: is the one-hot vector counted from 0?"),
        Way("y is one place too far up", lambda v: _only(v.target and v.m > 1, v.s - np.roll(v.y, -1, axis=1)), "y_i belongs to s_i: is the one-hot vector counted from 0?"),
        Way("the number of the class stands in the place of its one-hot vector y", _class_number, "y_i is 1 for i = class and 0 elsewhere"),
        Way("s - y of the shapes (B, 1) and (B,) has grown to (B, B)", _grown_error, "each s belongs to one y; give y the shape of s"),
    ),
)

_DS = Step(
    "dloss_ds",
    ("e",),
    "f is the sum of {e}², so df/ds = 2{e}",
    "dloss_ds = 2 * {e}",
    (
        Way("", lambda v: 2 * v.e),
        Way("df/ds = 2{e} is applied twice", lambda v: (2 * v.e) ** 2, "the chain has each factor once, g = df/ds · ds/dq = 2{e} · s(1 - s)"),
        Way("df/ds = 2{e} is left out", lambda v: np.ones_like(v.e), "the chain has each factor once, g = df/ds · ds/dq = 2{e} · s(1 - s)"),
        Way("the error e is left out, the derivative is taken of s only", lambda v: np.full_like(_only(v.target, v.e), 2), "df/ds = 2e with e = s - y"),
        Way("3{e}² stands in the place of 2{e}, the derivative of a cube", lambda v: 3 * v.e**2, cost=_RARE),
        Way("the mean of the {e}_i stands in the place of {e}_i", lambda v: np.broadcast_to(2 * v.e.mean(axis=1, keepdims=True), v.e.shape), "f has one term for each i, and s_i is in one of them"),
        Way("the loss stands in the place of df/ds", lambda v: np.broadcast_to((v.e**2).sum(axis=1, keepdims=True), v.e.shape)),
        Way("{e}² stands in the place of its derivative 2{e}", lambda v: v.e**2, cost=_RARE),
        Way("the derivative is that of the root ||{e}||, not of its square", lambda v: v.e / np.sqrt((v.e**2).sum(axis=1, keepdims=True))),
        Way("the loss itself is a factor", lambda v: 2 * v.e * (v.e**2).sum(axis=1, keepdims=True), "the derivative of a square has its root once: f does not appear in df/ds = 2{e}", cost=_RARE),
        Way("2{e} is summed over i", lambda v: np.broadcast_to(2 * v.e.sum(axis=1, keepdims=True), v.e.shape), "f has one term for each i, and s_i is in one of them"),
        Way("the derivative is that of sum |{e}|, the sign of {e}", lambda v: np.sign(_only(v.target, v.e)), cost=_RARE),
    ),
)

_TANH = "1 - s² is the derivative of tanh; that of the sigmoid is ds/dq = s(1 - s)"
_DQ = Step(
    "ds_dq",
    ("q", "s"),
    "the derivative of the sigmoid is ds/dq = s(1 - s)",
    "ds_dq = s * (1 - s)",
    (
        Way("", lambda v: v.s * v.c),
        Way("ds/dq = s(1 - s) is left out", lambda v: np.ones_like(v.s), "the chain has each factor once, g = df/ds · ds/dq = 2{e} · s(1 - s)", cost=_RARE),
        Way("(1 - s) is missing", lambda v: v.s),
        Way("s is missing in s(1 - s)", lambda v: v.c, plain="one s is missing, g is 2s(1 - s) instead of 2s · s(1 - s)"),
        Way("ds/dq is s², without 1 - s", lambda v: v.s**2, cost=_RARE),
        Way("ds/dq is s(1 + s)", lambda v: v.s * (1 + v.s)),
        Way("ds/dq is 1 + s", lambda v: 1 + v.s, cost=_RARE),
        Way("ds/dq is s - (1 - s)", lambda v: v.s - v.c),
        Way("ds/dq is q(1 - q), with q in the place of s", lambda v: v.q * (1 - v.q)),
        Way("s is put through the sigmoid again, ds/dq is sigmoid(s)(1 - sigmoid(s))", lambda v: np.multiply(*sigmoid_and_complement(v.s)), "s is the sigmoid of q already: ds/dq = s(1 - s)"),
        Way("ds/dq is 1 - s²", lambda v: 1 - v.s**2, _TANH),
        Way("ds/dq is 1 - tanh(q)², the derivative of tanh", lambda v: 1 - np.tanh(v.q) ** 2, cost=_RARE),
        Way("ds/dq is 1 - tanh(s)², the derivative of tanh", lambda v: 1 - np.tanh(v.s) ** 2, cost=_RARE),
        Way("ds/dq is e^-q, the square of 1 + e^-q below it is lost", lambda v: np.exp(-v.q), "ds/dq is e^-q/(1 + e^-q)² = s(1 - s)", cost=_RARE),
        Way("sigmoid(s) stands in the place of the derivative", lambda v: _sigmoid(v.s), "s is the sigmoid of q already, and ds/dq = s(1 - s)"),
        Way("s is put through the derivative again, ds/dq is computed of s(1 - s) instead of q", lambda v: np.multiply(*sigmoid_and_complement(v.s * v.c)), cost=_RARE),
        Way("ds/dq is s(1 - 2s)", lambda v: v.s * (v.c - v.s), cost=_RARE),
        Way("ds/dq is x(1 - x), with x in the place of s", lambda v: v.x * (1 - v.x)),
        Way("ds/dq is s·1 - s = 0, without the brackets of s(1 - s)", lambda v: np.zeros_like(v.s), cost=_RARE),
        Way("ds/dq is e^-q/(1 + (e^-q)²), with the square in the wrong place", lambda v: np.exp(-v.q) / (1 + np.exp(-2 * v.q)), "ds/dq is e^-q/(1 + e^-q)² = s(1 - s)", cost=_RARE),
        Way("ds/dq is e^-q(1 + e^-q)², with a product for the quotient", lambda v: np.exp(-v.q) * (1 + np.exp(-v.q)) ** 2, "ds/dq is e^-q/(1 + e^-q)² = s(1 - s)", cost=_RARE),
        Way("ds/dq is e^q/(1 + e^-q)², with a minus lost", lambda v: np.exp(v.q) / (1 + np.exp(-v.q)) ** 2, "ds/dq is e^-q/(1 + e^-q)² = s(1 - s)", cost=_RARE),
        Way("ds/dq is applied twice", lambda v: (v.s * v.c) ** 2, "the chain has each factor once, g = df/ds · ds/dq = 2{e} · s(1 - s)"),
        Way("ds/dq is {e}(1 - {e})", lambda v: _only(v.target, v.e * (1 - v.e))),
        Way("ds/dq is y(1 - y)", lambda v: _only(v.target, v.y * (1 - v.y))),
        Way("ds/dq is that of sigmoid(q), and s is something else", lambda v: np.multiply(*sigmoid_and_complement(v.q)), cost=_RARE),
        Way("ds/dq is 1 where q > 0, and 0 elsewhere, the derivative of the ReLU", lambda v: np.where(v.q > 0, 1.0, 0.0), cost=5),
    ),
)

_G = Step(
    "dloss_dq",
    ("dloss_ds", "ds_dq"),
    "the chain rule multiplies, g = df/ds · ds/dq",
    "g = dloss_ds * ds_dq",
    (
        Way("", lambda v: v.dloss_ds * v.ds_dq),
        Way("g is e alone, as for the cross-entropy: the 2 and ds/dq = s(1 - s) are left out", lambda v: v.e, "the chain has each factor once, g = df/ds · ds/dq = 2{e} · s(1 - s)", cost=_RARE, plain="g is s alone: the 2 and ds/dq = s(1 - s) are left out"),
        Way("s stands in the place of g", lambda v: _only(v.target, v.s), "the chain has each factor once, g = df/ds · ds/dq = 2{e} · s(1 - s)", cost=_RARE),
        Way("df/ds is multiplied by the sum of ds/dq over i, as where shapes (m, 1) and (m,) grow to (m, m)", lambda v: v.dloss_ds * v.ds_dq.sum(axis=1, keepdims=True), "both have one value for each i, and the same shape", cost=_RARE),
        Way("the Jacobian of the softmax stands in the place of ds/dq", lambda v: v.s * (v.dloss_ds - (v.s * v.dloss_ds).sum(axis=1, keepdims=True)), "s_i depends on q_i alone, so ds/dq = s(1 - s), element by element"),
        Way("df/ds and ds/dq are added", lambda v: v.dloss_ds + v.ds_dq),
        Way("df/ds and ds/dq are multiplied as a dot product, which sums over i", lambda v: np.broadcast_to((v.dloss_ds * v.ds_dq).sum(axis=1, keepdims=True), v.s.shape), "g has one value for each i; np.dot and @ sum, * does not"),
    ),
)

STEPS: tuple[Step, ...] = (_Q, _S, _E, _DS, _DQ, _G)


class Product(NamedTuple):
    """A product of values by its formula: "ji = g_i x_j" has the element (j, i) g_i x_j, and sums over other letters.

    i is an index of m, j of n; other letters go over the axis where they stand.
    """

    done: str  # empty for the right one
    formula: str
    why: str = ""
    cost: int = 2


def operand(name: str, v: Values) -> Array:
    """The array that a formula names, (B, ...), or (programs, B, ...) where the values are those of several."""
    match name:
        case "g":
            return v.dloss_dq
        case "x1":  # x with a 1 behind it
            return np.concatenate([v.x, np.ones((len(v.x), 1))], axis=1)
        case "1x":
            return np.concatenate([np.ones((len(v.x), 1)), v.x], axis=1)
        case "W1":  # W with a column of 1 behind it
            return np.concatenate([v.W, np.ones((*v.W.shape[:2], 1))], axis=2)
        case "1W":
            return np.concatenate([np.ones((*v.W.shape[:2], 1)), v.W], axis=2)
        case "x(1-x)":
            return v.x * (1 - v.x)
        case "reshaped_W":
            return _only(v.m != v.n, v.W).reshape(-1, v.n, v.m)
        case "sum_g":  # over the pairs of a cell
            g = v.dloss_dq
            cells = g.reshape(*g.shape[:-2], v.cells, _only(v.terms > 1, v.terms), v.m)
            return np.broadcast_to(cells.sum(axis=-2, keepdims=True), cells.shape).reshape(g.shape)
        case "1m":
            return np.ones_like(v.y)
        case "1n":
            return np.ones_like(v.x)
        case "I":
            return np.broadcast_to(np.eye(v.m), (len(v.x), v.m, v.m))
        case "E":  # df/ds of s_i and y_k
            return 2 * (_only(v.target, v.s)[..., None] - v.y[:, None, :])
        case "sign_W" | "sign_x":
            return np.sign(getattr(v, name[-1]))
        case "inverse":
            return np.linalg.pinv(_only(v.m * v.n <= 100 * 100, v.W))
        case "last_W":
            return v.W[:, -1]
        case "first_W":
            return v.W[:, 0]
        case "first_g":
            return v.dloss_dq[..., :1]
        case "last_g":
            return v.dloss_dq[..., -1:]
        case "all_g":
            return v.dloss_dq.sum(axis=-1, keepdims=True)
    return getattr(v, name)


_OUTER = "W_ij is in q_i alone, times x_j, so dW_ij = g_i x_j, an outer product"
_MATRIX = "x_j is in every q_i, times W_ij, so dx_j is the sum over i of W_ij g_i"
RIGHT = {
    "q": (_Q.why, _Q.line), "s": (_S.why, _S.line), "e": (_E.why, _E.line), "dloss_ds": (_DS.why, _DS.line),
    "ds_dq": (_DQ.why, _DQ.line), "dloss_dq": (_G.why, _G.line),
    "loss": ("f is the sum over i of {e}_i²", "loss = ({e} ** 2).sum()"),
    "dW": (_OUTER, "dW = np.outer(g, x)"),
    "dx": (_MATRIX, "dx = W.T @ g"),
}
PRODUCTS: dict[str, tuple[Product, ...]] = {
    **{step.name: (Product("", f"i = {step.name}_i"),) for step in STEPS},
    "loss": (
        Product("", " = e_i e_i"),
        Product("the {e}_i² are not summed", "i = e_i e_i"),
        Product("the {e}_i are summed, and not their squares", " = e_i"),
        Product("it is the sum of the loss_i of s, without y", " = s_i s_i"),
    ),
    "dW": (
        Product("", "ij = g_i x_j"),
        Product("dW is transposed, x gᵀ instead of g xᵀ", "ji = g_i x_j"),
        Product("elementwise product of g and x instead of the outer product g xᵀ", "i = g_i x_i"),
        Product("s stands in the place of x, dW_ij = g_i s_j", "ij = g_i s_j"),
        Product("q stands in the place of x, dW_ij = g_i q_j", "ij = g_i q_j", cost=_RARE),
        Product("W stands in the place of x, dW_ij = g_i W_ij", "ij = g_i W_ij"),
        Product("x is left out, dW_ij = g_i", "ij = g_i 1n_j"),
        Product("x is left out, dW is g", "i = g_i"),
        Product("x is left out, dW is g as a row", "ji = g_i 1n_j", cost=_RARE),
        Product("dW is a dot product, the sum over i of g_i x_i", " = g_i x_i"),
        Product("dW_ij = g_j x_j: the elementwise product of g and x in every row", "ij = g_j x_j", cost=_RARE),
        Product("dW_ij = g_i x_i: the elementwise product of g and x in every column", "ij = g_i x_i 1n_j", cost=_RARE),
        Product("g is summed over i, dW_j is the sum of the g_i times x_j", "j = g_i x_j"),
        Product("g is summed over i, dW_ij = (sum of g) x_j", "kj = g_i x_j 1m_k", cost=_RARE),
        Product("g and x are summed over the pairs before their product", "ij = sum_g_i x_j", "dW is the sum of the products: dloss_dq.T @ x for one W and many x", cost=_RARE),
        Product("dW has a column for a bias, which W has not, behind the others", "ij = g_i x1_j", "a gradient has exactly the shape of its input"),
        Product("dW has a column for a bias, which W has not, before the others", "ij = g_i 1x_j", "a gradient has exactly the shape of its input"),
        Product("dW is the Jacobian of all terms of f, not its sum", "ikj = I_ik g_i x_j"),
        Product("df/ds is left as a column and ds/dq as a row, so that g has grown to (m, m)", "ij = dloss_ds_i ds_dq_j x_j", cost=_RARE),
        Product("s - y of the shapes (m, 1) and (m,) has grown to (m, m)", "ij = E_ij ds_dq_i x_j"),
    ),
    "dx": (
        Product("", "j = W_ij g_i"),
        Product("W instead of Wᵀ", "i = W_ij g_j"),
        Product("elementwise product with Wᵀ instead of the matrix product Wᵀ g", "ji = W_ij g_i"),
        Product("elementwise product with Wᵀ instead of the matrix product Wᵀ g", "ji = W_ij g_j"),
        Product("W_ij g_i are the right terms, but their sum over i is missing", "ij = W_ij g_i"),
        Product("elementwise product with W instead of the matrix product Wᵀ g", "ij = W_ij g_j"),
        Product("the sum is over j, along a row of W, dx_i = (sum over j of W_ij) g_i", "i = W_ij g_i"),
        Product("column sums of W times g, element by element", "j = W_ij g_j"),
        Product("column sums of W times the sum of g", "j = W_ij all_g_k"),
        Product("g is summed over i first, dx_j = W_jk times the sum of g", "i = W_ij all_g_k", cost=_RARE),
        Product("only the last row of W counts: = stands where += is needed, or the loop ends too early", "j = last_W_j last_g_k"),
        Product("only the first row of W counts: = stands where += is needed, or the loop ends too early", "j = first_W_j first_g_k"),
        Product("x(1 - x) is a factor too, as if x came out of a sigmoid", "j = W_ij g_i x(1-x)_j"),
        Product("dx has a value for a bias, which x has not, behind the others", "j = W1_ij g_i", "a gradient has exactly the shape of its input"),
        Product("dx has a value for a bias, which x has not, before the others", "j = 1W_ij g_i", "a gradient has exactly the shape of its input"),
        Product("W is reshaped to (n, m), which does not transpose it", "j = reshaped_W_ji g_i"),
        Product("dx is a dot product, one number", " = W_ij g_i"),
        Product("dW stands in the place of W, dx_j is the sum over i of dW_ij g_i", "j = g_i x_j g_i"),
        Product("dx is the sum over i of dW_ij", "j = g_i x_j"),
        Product("dx is the sum over j of dW_ij", "i = g_i x_j"),
        Product("x is a factor too, dx_j = x_j times the sum over i of W_ij g_i", "j = W_ij g_i x_j"),
        Product("W is left out, dx is g", "i = g_i"),
        Product("the inverse of W stands in the place of Wᵀ", "j = inverse_ji g_i"),
        Product("df/ds is left as a column and ds/dq as a row, so that g has grown to (m, m)", "jk = W_ij dloss_ds_i ds_dq_k"),
        Product("ds/dq is left as a column and df/ds as a row, so that g has grown to (m, m)", "jk = W_ij ds_dq_i dloss_ds_k", cost=_RARE),
        Product("s - y of the shapes (m, 1) and (m,) has grown to (m, m)", "jk = W_ij E_ik ds_dq_i"),
    ),
}


# Which pairs are summed, where several share an input: the pairs as the user's program saw them.
class Sum(NamedTuple):
    done: str
    of: Callable[[Inputs], Inputs]
    why: str = ""


_EACH = "dW and dx are the sums over all pairs that share a W or an x"
SUMS: tuple[Sum, ...] = (
    Sum("", lambda p: p),
    Sum("the gradients of the pairs are not summed", lambda p: _only(p.terms > 1, p)._replace(cells=p.cells * p.terms, terms=1), _EACH),
    Sum("only the last pair counts: = stands where += is needed", lambda p: p.take(slice(_only(p.terms > 1, p.terms) - 1, None, p.terms), p.cells, 1), _EACH),
    Sum("only the first pair counts", lambda p: p.take(slice(0, None, _only(p.terms > 1, p.terms)), p.cells, 1), _EACH),
    Sum("the gradients of all pairs are summed", lambda p: _only(p.cells > 1, p)._replace(cells=1, terms=p.cells * p.terms), "each pair has its own input here, and so its own gradient"),
)


class Constant(NamedTuple):
    """A factor of all values that people leave in or out."""

    done: str
    why: str
    right: str
    cost: int = 2
    place: str = ""  # which of the factors it is, whatever its value


_BARE = "f is a sum, so its gradient has no such factor"


def constants(inputs: Inputs) -> list[tuple[float, Constant]]:
    """The known factors, each with what it means for these pairs."""
    m, n = inputs.W.shape[1:]
    half = "the factor 2 is missing"
    halved = Constant(f"{half}, as in the gradient of ½||s - y||²" if inputs.target else half, "f is the sum of {e}², so df/ds = 2{e}", "write dloss_ds = 2 * {e}")
    known = [
        (2.0, Constant("an extra factor 2", "the only 2 is the one in df/ds = 2{e}; was it put in twice, or the gradient added up twice?", "write dloss_ds = 2 * {e}")),
        (0.5, halved),
        (3.0, Constant("a factor 3: the gradient was added up three times", "each step begins with a gradient of 0", "write dW = np.zeros_like(W) before the loop", _RARE)),
    ]
    sizes = [("m", f"m = {m}, the values of a pair", m)]
    if inputs.terms > 1:
        sizes.append(("B", f"B = {inputs.terms}, the pairs that are summed", inputs.terms))
        sizes.append(("m B", f"m B = {m * inputs.terms}, all values", m * inputs.terms))
    elif inputs.cells > 1:
        sizes.append(("B", f"B = {inputs.cells}, the number of pairs", inputs.cells))
        sizes.append(("m B", f"m B = {m * inputs.cells}, all values", m * inputs.cells))
    mean, line = "a mean instead of the sum: it is divided by", "write loss = ({e} ** 2).sum(), without a mean"
    for letters, words, size in sizes:
        if size > 1:
            known += [
                (1 / size, Constant(f"{mean} {words}", _BARE, line, place=f"1/{letters}")),
                (0.5 / size, Constant(f"{half}, and {mean} 2 {words}", _BARE, f"{line} or ½", _RARE, f"1/2{letters}")),
                (float(size), Constant(f"it is multiplied by {words}", _BARE, "take the factor out", _RARE, letters)),
            ]
    return [(factor, constant if constant.place else constant._replace(place=str(factor))) for factor, constant in known]


class Added(NamedTuple):
    """A product that was added to the gradient, times an unknown factor {k}; or, as ``whole``, one that was added once.

    In the second case the gradient has the unknown factor.
    """

    done: str
    formula: str
    why: str
    right: str
    whole: bool = False


_FIRST = "both gradients belong to the same W and x", "compute dW and dx first, and update then"
ADDED: dict[str, tuple[Added, ...]] = {
    "dW": (
        Added("λW is added, with λ = {k}, as for a weight decay", "ij = W_ij", "f has no term in ||W||²", "take λW out"),
        Added("λ sign(W) is added, with λ = {k}", "ij = sign_W_ij", "f has no term in the sum of the |W_ij|", "take it out"),
        Added("x was changed before dW was computed, x {k} dx", "ij = g_i W_kj g_k", *_FIRST),
        Added("this is the updated W, W {k} dW, not the gradient", "ij = W_ij", "the gradient is what a step multiplies", "give dW alone", whole=True),
    ),
    "dx": (
        Added("λx is added, with λ = {k}, as for a penalty on x", "j = x_j", "f has no term in ||x||²", "take λx out"),
        Added("λ sign(x) is added, with λ = {k}", "j = sign_x_j", "f has no term in the sum of the |x_j|", "take it out"),
        Added("dx is computed with the new W, W {k} dW", "j = g_i x_j g_i", *_FIRST),
        Added("this is the updated x, x {k} dx, not the gradient", "j = x_j", "the gradient is what a step multiplies", "give dx alone", whole=True),
    ),
}


class Difference(NamedTuple):
    """The gradient by differences of the loss, with steps that are too large to be right."""

    done: str
    first: float  # the two places, as offsets of a value of W or x
    second: float


DIFFERENCES = tuple(
    Difference(f"{kind} differences with the step {h:g}, which is too large", *places)
    for h in (1.0, 0.5, 0.1, 0.05, 0.01, 1e-3, 1e-4, 1e-5)
    for kind, places in {"forward": (0.0, h), "backward": (-h, 0.0), "central": (-h, h)}.items()
)


def by_differences(name: str, difference: Difference, inputs: Inputs, values: Values) -> Array:
    """The ``name`` ("dW" or "dx") of each pair by differences, without rounding."""
    # q_i + h x_j where W_ij is moved by h, q_i + h W_ij where x_j is
    slope = np.broadcast_to(values.x[:, None, :], values.W.shape) if name == "dW" else values.W

    def loss(h: float) -> Array:
        s, c = sigmoid_and_complement(values.q[:, :, None] + h * slope)
        return np.asarray(residual(s, c, values.y[:, :, None]) ** 2)

    terms = (loss(difference.second) - loss(difference.first)) / (difference.second - difference.first)
    return inputs.summed(terms if name == "dW" else terms.sum(axis=1))
