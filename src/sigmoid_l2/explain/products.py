"""The products that people make of the steps: the first of each is right.

A product is a formula: "ji = g_i x_j" has the element (j, i) g_i x_j. A letter that is not in front of the = is summed
over. i is an index of m and j of n; any letter goes over the axis where it stands.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sigmoid_l2.explain.program import Inputs, Values, only
from sigmoid_l2.explain.steps import RARE, STEPS

Array = npt.NDArray[Any]

_LARGE = 10_000  # values of a product's factors from which it pays to look for the best order
_MOST_INVERTED = 10_000  # values of a W that is inverted
_MOST_SQUARED = 100  # rows of a W for which (m, m) arrays are made


class Product(NamedTuple):
    """One way to make a gradient of the steps: what was done, and its formula."""

    done: str  # empty for the right one
    formula: str
    why: str = ""
    cost: int = 2


def operand(name: str, v: Values) -> Any:
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
            return only(v.m != v.n, v.W).reshape(-1, v.n, v.m)
        case "sum_g":  # over the pairs of a cell
            g = v.dloss_dq
            cells = g.reshape(*g.shape[:-2], v.cells, only(v.terms > 1, v.terms), v.m)
            return np.broadcast_to(cells.sum(axis=-2, keepdims=True), cells.shape).reshape(g.shape)
        case "1m":
            return np.ones_like(v.y)
        case "1n":
            return np.ones_like(v.x)
        case "I":
            return np.broadcast_to(np.eye(only(v.m <= _MOST_SQUARED, v.m)), (len(v.x), v.m, v.m))
        case "E":  # df/ds of s_i and y_k
            return 2 * (only(v.target and v.m <= _MOST_SQUARED, v.s)[..., None] - v.y[:, None, :])
        case "sign_W" | "sign_x":
            return np.sign(getattr(v, name[-1]))
        case "inverse":
            return np.linalg.pinv(only(v.m * v.n <= _MOST_INVERTED, v.W))
        case "last_W":
            return v.W[:, -1]
        case "reversed_g":
            return v.dloss_dq[..., ::-1]
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
_SHAPES = "all steps have one value for each i, so they need one shape: (m,), or (m, 1) for all"
_MATRIX = "x_j is in every q_i, times W_ij, so dx_j is the sum over i of W_ij g_i"
RIGHT = {  # why a product is the right one, and its line
    "loss": ("f is the sum over i of {e}_i²", "loss = ({e} ** 2).sum()"),
    "dW": (_OUTER, "dW = np.outer(g, x)"),
    "dx": (_MATRIX, "dx = W.T @ g"),
    **{step.name: (step.why, step.line) for step in STEPS},
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
        Product("q stands in the place of x, dW_ij = g_i q_j", "ij = g_i q_j", cost=RARE),
        Product("W stands in the place of x, dW_ij = g_i W_ij", "ij = g_i W_ij"),
        Product("x is left out, dW_ij = g_i", "ij = g_i 1n_j"),
        Product("x is left out, dW is g", "i = g_i"),
        Product("x is left out, dW is g as a row", "ji = g_i 1n_j", cost=RARE),
        Product("dW is a dot product, the sum over i of g_i x_i", " = g_i x_i"),
        Product("dW_ij = g_j x_j: the elementwise product of g and x in every row", "ij = g_j x_j", cost=RARE),
        Product("dW_ij = g_i x_i: the elementwise product of g and x in every column", "ij = g_i x_i 1n_j", cost=RARE),
        Product("g is summed over i, dW_j is the sum of the g_i times x_j", "j = g_i x_j"),
        Product("g is summed over i, dW_ij = (sum of g) x_j", "kj = g_i x_j 1m_k", cost=RARE),
        Product(
            "g and x are summed over the pairs before their product",
            "ij = sum_g_i x_j",
            "dW is the sum of the products: dloss_dq.T @ x for one W and many x",
            cost=RARE,
        ),
        Product(
            "dW has a column for a bias, which W has not, behind the others",
            "ij = g_i x1_j",
            "a gradient has exactly the shape of its input",
        ),
        Product(
            "dW has a column for a bias, which W has not, before the others",
            "ij = g_i 1x_j",
            "a gradient has exactly the shape of its input",
        ),
        Product("dW is the Jacobian of all terms of f, not its sum", "ikj = I_ik g_i x_j"),
        Product(
            "df/ds is left as a column and ds/dq as a row, so that g has grown to (m, m)",
            "ij = dloss_ds_i ds_dq_j x_j",
            _SHAPES,
            cost=RARE,
        ),
        Product("s - y of the shapes (m, 1) and (m,) has grown to (m, m)", "ij = E_ij ds_dq_i x_j", _SHAPES),
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
        Product("g is summed over i first, dx_j = W_jk times the sum of g", "i = W_ij all_g_k", cost=RARE),
        Product(
            "only the last row of W counts: = stands where += is needed, or the loop ends too early",
            "j = last_W_j last_g_k",
        ),
        Product(
            "only the first row of W counts: = stands where += is needed, or the loop ends too early",
            "j = first_W_j first_g_k",
        ),
        Product("g is taken in the reverse order, or the rows of W are", "j = W_ij reversed_g_i", cost=RARE),
        Product("x(1 - x) is a factor too, as if x came out of a sigmoid", "j = W_ij g_i x(1-x)_j"),
        Product(
            "dx has a value for a bias, which x has not, behind the others",
            "j = W1_ij g_i",
            "a gradient has exactly the shape of its input",
        ),
        Product(
            "dx has a value for a bias, which x has not, before the others",
            "j = 1W_ij g_i",
            "a gradient has exactly the shape of its input",
        ),
        Product("W is reshaped to (n, m), which does not transpose it", "j = reshaped_W_ji g_i"),
        Product("dx is a dot product, one number", " = W_ij g_i"),
        Product("dW stands in the place of W, dx_j is the sum over i of dW_ij g_i", "j = g_i x_j g_i"),
        Product("dx is the sum over i of dW_ij", "j = g_i x_j"),
        Product("dx is the sum over j of dW_ij", "i = g_i x_j"),
        Product("x is a factor too, dx_j = x_j times the sum over i of W_ij g_i", "j = W_ij g_i x_j"),
        Product("W is left out, dx is g", "i = g_i"),
        Product("the inverse of W stands in the place of Wᵀ", "j = inverse_ji g_i"),
        Product(
            "df/ds is left as a column and ds/dq as a row, so that g has grown to (m, m)",
            "jk = W_ij dloss_ds_i ds_dq_k",
            _SHAPES,
        ),
        Product(
            "ds/dq is left as a column and df/ds as a row, so that g has grown to (m, m)",
            "jk = W_ij ds_dq_i dloss_ds_k",
            _SHAPES,
            cost=RARE,
        ),
        Product("s - y of the shapes (m, 1) and (m,) has grown to (m, m)", "jk = W_ij E_ik ds_dq_i", _SHAPES),
    ),
}


# Which pairs are summed, where several share an input: the pairs as the user's program saw them.


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
        Added(
            "λW is added, with λ = {k}, as for a weight decay", "ij = W_ij", "f has no term in ||W||²", "take λW out"
        ),
        Added(
            "λ sign(W) is added, with λ = {k}",
            "ij = sign_W_ij",
            "f has no term in the sum of the |W_ij|",
            "take it out",
        ),
        Added("x was changed before dW was computed, x {k} dx", "ij = g_i W_kj g_k", *_FIRST),
        Added(
            "this is the updated W, W {k} dW, not the gradient",
            "ij = W_ij",
            "the gradient is what a step multiplies",
            "give dW alone",
            whole=True,
        ),
    ),
    "dx": (
        Added("λx is added, with λ = {k}, as for a penalty on x", "j = x_j", "f has no term in ||x||²", "take λx out"),
        Added(
            "λ sign(x) is added, with λ = {k}", "j = sign_x_j", "f has no term in the sum of the |x_j|", "take it out"
        ),
        Added("dx is computed with the new W, W {k} dW", "j = g_i x_j g_i", *_FIRST),
        Added(
            "this is the updated x, x {k} dx, not the gradient",
            "j = x_j",
            "the gradient is what a step multiplies",
            "give dx alone",
            whole=True,
        ),
    ),
}


def factors_of(formula: str) -> list[str]:
    """The names of a product's factors, in order."""
    return [factor.rpartition("_")[0] for factor in formula.partition(" = ")[2].split()]


def operands(formula: str) -> set[str]:
    """The names of a product's factors."""
    return set(factors_of(formula))


# The factors that a program computes; all others are of W and x alone.
COMPUTED = {*(step.name for step in STEPS), "g", "E", "reversed_g", "first_g", "last_g", "all_g", "sum_g"}


Places = Sequence[Array]  # for each axis of a product, the places that are computed


def _labelled(formula: str, values: Values, of: Callable[[str, Values], Array]) -> tuple[str, list[Array], list[str]]:
    """The axes of a product, its factors, and the letters of their axes.

    The pairs' axis is b. Where the values are those of several programs, these have an axis P in front of it.
    """
    out, _, factors = formula.partition(" = ")
    names = [factor.rpartition("_")[::2] for factor in factors.split()]
    arrays = [of(name, values) for name, _ in names]
    return out, arrays, ["Pb"[len(axes) + 2 - a.ndim :] + axes for a, (_, axes) in zip(arrays, names, strict=True)]


def _sizes(letter: str, arrays: Sequence[Array], labels: Sequence[str]) -> list[int]:
    return [a.shape[label.index(letter)] for a, label in zip(arrays, labels, strict=True) if letter in label]


def axis_sizes(formula: str, values: Values) -> list[int]:
    """The sizes of the axes that a product has in each pair; ValueError where its factors do not exist."""
    out, arrays, labels = _labelled(formula, values, operand)
    return [max(_sizes(letter, arrays, labels)) for letter in out]


def evaluate(
    formula: str,
    values: Values,
    inputs: Inputs,
    places: Places | None = None,
    of: Callable[[str, Values], Array] = operand,
) -> Array:
    """The values of a product, (cells, ...), or (programs, cells, ...), or those at ``places``.

    ``of`` gives the array that a name stands for. Raises ValueError where the shapes do not fit.
    """
    out, arrays, labels = _labelled(formula, values, of)
    for letter, own in zip(out, places or (), strict=False):
        size = max(_sizes(letter, arrays, labels))
        for k, label in enumerate(labels):
            if letter in label and arrays[k].shape[label.index(letter)] == size > len(own):
                arrays[k] = np.take(arrays[k], own, axis=label.index(letter))
    programs = "P" * any("P" in label for label in labels)
    is_large = sum(a.size for a in arrays) > _LARGE
    result = np.einsum(f"{','.join(labels)}->{programs}b{out}", *arrays, optimize=is_large and len(arrays) > 1)
    if inputs.terms != 1:
        at = len(programs)
        pairs = inputs.cells, inputs.terms
        result = result.reshape(*result.shape[:at], *pairs, *result.shape[at + 1 :]).sum(axis=at + 1)
    return np.asarray(result)


def places_of(given: Array, off: Array, count: int) -> Places:
    """Places along each axis of ``given`` (cells, ...) but the first: half of them with the largest values.

    One more is where ``off``, of the same shape, is largest.
    """
    worst = np.unravel_index(np.argmax(off), off.shape)
    found = []
    for axis in range(1, given.ndim):
        size = given.shape[axis]
        if size > count:
            largest = np.abs(given).max(axis=tuple(k for k in range(given.ndim) if k != axis))
            spread = np.linspace(0, size - 1, count - count // 2).astype(int)
            found.append(np.unique([worst[axis], *spread, *np.argpartition(largest, -(count // 2))[-(count // 2) :]]))
        else:
            found.append(np.arange(size))
    return found


def at_places(given: Array, places: Places) -> Array:
    """``given`` (cells, ...) at the places of each axis but the first."""
    for axis, own in enumerate(places, 1):
        given = given if len(own) == given.shape[axis] else np.take(given, own, axis=axis)
    return given
