"""What is known of a wrong array that no known mistake explains."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sigmoid_l2.explain.products import RIGHT
from sigmoid_l2.explain.program import Inputs, run
from sigmoid_l2.explain.recipe import steps_of
from sigmoid_l2.explain.steps import STEPS

Array = npt.NDArray[Any]

_EQUAL = 1e-6  # the relative error of what counts as one product
_CLOSE = 0.01  # the relative error below which digits are lost, and no more
_MOST_NAMED = 5  # rows that a sentence names
_MOST_SORTED = 1000  # values whose order is looked at: among more, other values look like them


def facts(name: str, given: Array, true: Array, allowed: Array, inputs: Inputs) -> tuple[str, ...]:
    """Sentences about ``given``, each sure to be true. The arrays have one shape; ``allowed`` are the right errors."""
    if given.shape != true.shape or true.size < 2 or not np.isfinite(given).all():
        return ()
    error, right = np.abs(given - true), np.abs(given - true) <= allowed
    if found := _order(name, given, true, allowed, inputs):
        return (found,)
    if np.all(np.abs(np.abs(given) - np.abs(true)) <= allowed):
        return ("the values are right but for their signs",)
    if right.any() and (found := _some_right(name, right, given, true, inputs)):
        return (found,)
    if np.all(error <= _CLOSE * np.abs(true)):
        most = float(np.max(error / np.abs(true)))
        return (
            f"all values are within {most:.1g} of the right ones, relative to them: digits may be lost; look for "
            "float16, for numbers that were printed, and for differences",
        )
    if (
        name == "dW"
        and given.ndim == 2
        and min(given.shape) > 1
        and inputs.terms == 1
        and (found := _outer(given, inputs))
    ):
        return (found,)
    return ()


def _some_right(name: str, right: Array, given: Array, true: Array, inputs: Inputs) -> str:
    """Which pairs, rows, columns or elements are wrong, where others are right."""
    size = np.abs(given)
    clipped = (np.sign(given) == np.sign(true)) & (size == size.max()) & (np.abs(true) > size)
    if (~right).sum() > 1 and np.all(clipped | right):
        return (
            f"the values beyond -{size.max():.5g} and {size.max():.5g} are clipped to that, and the others are right: "
            "give the gradient as it was before"
        )
    if inputs.cells > 1:
        wrong = ~right.reshape(inputs.cells, -1).all(axis=1)
        return "" if wrong.all() else f"{int(wrong.sum())} of {inputs.cells} pairs are wrong, the others right"
    ratios = given[~right] / np.where(true[~right] == 0, np.nan, true[~right])
    is_one = bool(np.all(np.abs(ratios - ratios[0]) <= _EQUAL * np.abs(ratios[0])))
    times = f", by a factor {ratios[0]:.5g}" if is_one and ratios[0] != 0 else ""
    if name != "dW":
        return f"only {_list('value', 'j' if name == 'dx' else 'i', ~right.ravel())}{times}; the others are right"
    matrix = right.reshape(right.shape[-2:])
    rows, columns = (np.asarray(~matrix.all(axis=axis)) for axis in (1, 0))
    if (~right).sum() == 1:
        return f"only the value i = {rows.argmax()}, j = {columns.argmax()} is wrong; the others are right"
    if not rows.all() and rows.sum() <= columns.sum():
        return f"only {_list('row', 'i', rows)}{times}; the others are right: look at how g_i is made there"
    if not columns.all():
        return f"only {_list('column', 'j', columns)}{times}; the others are right: look at the x_j that is used there"
    return f"{int((~right).sum())} of {right.size} values are wrong, in all rows and columns"


def _list(word: str, letter: str, which: Array) -> str:
    places = np.flatnonzero(which)
    many = len(places) > 1
    return f"the {word}{'s' * many} {letter} = {_shown(places)} {'are' if many else 'is'} wrong"


def _shown(places: Array) -> str:
    more = f" and {len(places) - _MOST_NAMED} more" if len(places) > _MOST_NAMED else ""
    return ", ".join(map(str, places[:_MOST_NAMED].tolist())) + more


def _order(name: str, given: Array, true: Array, allowed: Array, inputs: Inputs) -> str:
    """Whether the right values stand in another order."""
    if inputs.cells > 1 or true.size > _MOST_SORTED:
        return ""
    mine, right = np.argsort(given, axis=None), np.argsort(true, axis=None)
    if np.any(np.abs(given.ravel()[mine] - true.ravel()[right]) > allowed.ravel()[right]):
        return ""
    a, b = (v.reshape(v.shape[-2:]) if name == "dW" else v.reshape(-1, 1) for v in (given, true))
    ways = (
        [("row", "i", a, b), ("column", "j", a.T, b.T)]
        if name == "dW"
        else [("value", "j" if name == "dx" else "i", a, b)]
    )
    for word, letter, own, other in ways:
        order = _permutation(own, other, float(allowed.max()))
        if order is not None:
            places = f"{letter} = 0, 1, ... of yours is the true {letter} = {_shown(order)}"
            return f"the {word}s are right, in another order: {places}"
    return "the values are right, in another order: a reshape or an index is mixed up"


def _permutation(given: Array, true: Array, limit: float) -> Array | None:
    """The row of ``true`` that each row of ``given`` is; None where they are not the same rows."""
    order = np.array([int(np.argmin(np.abs(true - row).max(axis=1))) for row in given])
    is_order = len(set(order.tolist())) == len(order) > 1
    return order if is_order and np.all(np.abs(true[order] - given) <= limit) else None


def same_g(dW: Array, dx: Array, inputs: Inputs) -> tuple[str, ...]:
    """Whether a wrong dW and a wrong dx are made of one g."""
    if inputs.cells * inputs.terms != 1 or dW.shape != inputs.W.shape[1:] or not inputs.x.any():
        return ()
    x, W = inputs.x[0], inputs.W[0]
    u = dW @ x / (x @ x)
    is_outer = np.all(np.abs(np.outer(u, x) - dW) <= _EQUAL * np.abs(dW).max())
    if is_outer and np.all(np.abs(u @ W - dx.ravel()) <= _EQUAL * (np.abs(u) @ np.abs(W)).max()):
        return ("dx is Wᵀ u with the same u as in your dW = u xᵀ, so one mistake, in g, made both",)
    return ()


def where_to_look(name: str, right: Sequence[str], given: Sequence[str], target: bool) -> str:
    """Where the mistake is, or which steps would show it; ``right`` and ``given`` are names of steps before."""
    e = "e" if target else "s"
    needs = {
        "q": (),
        "e": ("s",),
        "loss": (e,),
        "dloss_ds": (e,),
        "ds_dq": ("s",),
        "dW": ("dloss_dq",),
        "dx": ("dloss_dq",),
    }
    inputs = needs.get(name) or next((step.inputs for step in STEPS if step.name == name), ())
    other = {"q": ", or in its W or x", "e": ", or in its y", "dW": ", or in its x", "dx": ", or in its W"}.get(
        name, ""
    )
    line = f"mistake is in this line{other}; right is {RIGHT[name][1].replace('{e}', e)}"
    if name == "q":
        return f"the {line}"
    if set(inputs) <= set(right):
        return f"{' and '.join(inputs)} {'are' if len(inputs) > 1 else 'is'} right, so the {line}"
    if name == "dx" and "dW" in right:
        return f"dW is right, and so is g, so the {line}"
    missing = [step.name for step in steps_of(name) if step.name not in (*given, name) and (target or step.name != "e")]
    return f"give the steps before it, too, and the first wrong one is named: {', '.join(missing)}"


def _outer(given: Array, inputs: Inputs) -> str:
    """Whether dW is an outer product with the right x, or with the right g."""
    values = run(STEPS, {}, inputs)
    g, x = values.dloss_dq[0], inputs.x[0]
    for right, other, matrix, product, place in (
        ("x", "g", given, "u xᵀ", "before the product, in g"),
        ("g", "x", given.T, "g uᵀ", "in what stands in the place of x"),
    ):
        vector, true = (x, g) if right == "x" else (g, x)
        own = matrix @ vector / float(vector @ vector or 1.0)
        if np.all(np.abs(np.outer(own, vector) - matrix) <= _EQUAL * np.abs(matrix).max()):
            shown = (
                f"; your {other} is u = {_vector(own)}, but {other} = {_vector(true)} is right" if len(own) <= 8 else ""
            )
            return f"dW is an outer product {product} with the right {right}, so the mistake is {place}{shown}"
    return ""


def _vector(a: Array) -> str:
    return f"[{', '.join(f'{v:.6g}' for v in a)}]"
