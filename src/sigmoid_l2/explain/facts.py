"""What is known of a wrong array that no known mistake explains."""

from typing import Any

import numpy as np
import numpy.typing as npt

from sigmoid_l2.explain.program import Inputs, run
from sigmoid_l2.explain.steps import STEPS

Array = npt.NDArray[Any]

_MOST_SORTED = 1000  # values of which the order is looked at: of more, other values look like them
_MOST_NAMED = 5  # rows that a sentence names
_CLOSE = 0.01  # the relative error below which digits are lost, and no more


def facts(name: str, given: Array, true: Array, allowed: Array, inputs: Inputs) -> tuple[str, ...]:
    """Sentences about ``given``, each sure to be true; arrays of the same shape, ``allowed`` the largest right error."""
    if given.shape != true.shape or true.size < 2 or not np.isfinite(given).all():
        return ()
    right = np.abs(given - true) <= allowed
    found = _order(name, given, true, allowed, inputs)
    if not found and right.any():
        found = _some_right(name, right, given, true, allowed, inputs)
    if not found and np.all(np.abs(np.abs(given) - np.abs(true)) <= allowed):
        found = ("the values are right but for their signs",)
    if not found and np.all(np.abs(given - true) <= _CLOSE * np.abs(true)):
        most = float(np.max(np.abs(given - true) / np.abs(true)))
        found = (
            f"all values are within {most:.1g} of the right ones: digits are lost; look for float16, numbers that were printed, and differences",
        )
    if not found and name == "dW" and min(given.shape[-2:]) > 1 and given.ndim == 2 and inputs.terms == 1:
        found = _outer(given, inputs)
    return found


def _some_right(name: str, right: Array, given: Array, true: Array, allowed: Array, inputs: Inputs) -> tuple[str, ...]:
    """Which pairs, rows, columns or elements are wrong, where others are right."""
    size = np.abs(given)
    clipped = ~right & (np.sign(given) == np.sign(true)) & (size == size.max()) & (np.abs(true) > size)
    if (~right).sum() > 1 and np.all(clipped == ~right):
        return (
            f"the values beyond -{size.max():.5g} and {size.max():.5g} are clipped to that, and the others right: give the gradient before it is clipped",
        )
    if inputs.cells > 1:
        pairs = ~right.reshape(inputs.cells, -1).all(axis=1)
        return (f"{int(pairs.sum())} of {inputs.cells} pairs are wrong, the others right",) if not pairs.all() else ()
    if name != "dW":
        return (f"only {_list('value', {'dx': 'j'}.get(name, 'i'), ~right.ravel())}; the others are right",)
    matrix = right.reshape(right.shape[-2:])
    rows, columns = ~matrix.all(axis=1), ~matrix.all(axis=0)
    if (~matrix).sum() == 1:
        return (
            f"only the value i = {np.flatnonzero(rows)[0]}, j = {np.flatnonzero(columns)[0]} is wrong; the others are right",
        )
    if rows.sum() < len(rows) and rows.sum() <= columns.sum():
        return (f"only {_list('row', 'i', rows)}; the others are right: look at how g_i is made there",)
    if columns.sum() < len(columns):
        return (f"only {_list('column', 'j', columns)}; the others are right: look at the x_j that is used there",)
    return (f"{int((~right).sum())} of {right.size} values are wrong, in all rows and columns",)


def _list(word: str, letter: str, which: Array) -> str:
    places = np.flatnonzero(which)
    more = f" and {len(places) - _MOST_NAMED} more" if len(places) > _MOST_NAMED else ""
    many = len(places) > 1
    return f"the {word}{'s' * many} {letter} = {', '.join(map(str, places[:_MOST_NAMED].tolist()))}{more} {'are' if many else 'is'} wrong"


def _order(name: str, given: Array, true: Array, allowed: Array, inputs: Inputs) -> tuple[str, ...]:
    """Whether the right values stand in another order."""
    if inputs.cells > 1 or true.size > _MOST_SORTED:
        return ()
    mine, right = np.argsort(given, axis=None), np.argsort(true, axis=None)
    if np.any(np.abs(given.ravel()[mine] - true.ravel()[right]) > allowed.ravel()[right]):
        return ()
    matrix = given.reshape(given.shape[-2:]) if name == "dW" else given.reshape(-1, 1)
    word, letter = {"dW": ("row", "i"), "dx": ("value", "j")}.get(name, ("value", "i"))
    for turned, word, letter in ((False, word, letter), (True, "column", "j")):
        a, b = (v.reshape(matrix.shape) for v in (given, true))
        order = _permutation(*((a.T, b.T) if turned else (a, b)), float(allowed.max()))
        if order is not None:
            yours = ", ".join(map(str, order[:_MOST_NAMED].tolist())) + ", ..." * (len(order) > _MOST_NAMED)
            return (f"the {word}s are right, in another order: {letter} = 0, 1, ... of yours is the true {letter} = {yours}",)
    return ("the values are right, in another order: a reshape or an index is mixed up",)


def _permutation(given: Array, true: Array, limit: float) -> Array | None:
    """The row of ``true`` that each row of ``given`` is; None where they are not the same rows."""
    order = np.array([int(np.argmin(np.abs(true - row).max(axis=1))) for row in given])
    is_order = len(set(order.tolist())) == len(order) > 1
    return order if is_order and np.all(np.abs(true[order] - given) <= limit) else None


def _outer(given: Array, inputs: Inputs) -> tuple[str, ...]:
    """Whether dW is an outer product with x, or with g."""
    values = run(STEPS, {}, inputs)
    g, x = values.dloss_dq[0], inputs.x[0]
    for word, other, vector, a in (("x", "g", x, given), ("g", "x", g, given.T)):
        own = a @ vector / float(vector @ vector or 1.0)
        if np.all(np.abs(np.outer(own, vector) - a) <= 1e-6 * np.abs(a).max()):
            where = "before the product, in g" if word == "x" else "in what stands in the place of x"
            outer = "u xᵀ" if word == "x" else "g uᵀ"
            right = g if word == "x" else x
            shown = ""
            if len(own) <= 8:
                shown = f"; u = {_vector(own)}, where {other} = {_vector(right)}"
            return (f"dW is an outer product {outer} with the right {word}, so the mistake is {where}{shown}",)
    return ()


def _vector(a: Array) -> str:
    return f"[{', '.join(f'{v:.4g}' for v in a)}]"
