"""What people do to all of a gradient: which pairs are summed, and which factor is left in or out."""

from collections.abc import Callable
from typing import NamedTuple

from sigmoid_l2.explain.program import Inputs, only
from sigmoid_l2.explain.steps import RARE


class Sum(NamedTuple):
    done: str  # {what}: gradients, losses or values
    of: Callable[[Inputs], Inputs]
    why: str = ""


_EACH = "a gradient is the sum over all pairs that share its input"
SUMS: tuple[Sum, ...] = (
    Sum("", lambda p: p),
    Sum(
        "the {what} of the pairs are not summed",
        lambda p: only(p.terms > 1, p)._replace(cells=p.cells * p.terms, terms=1),
        _EACH,
    ),
    Sum(
        "only the last pair counts: = stands where += is needed",
        lambda p: p.take(slice(only(p.terms > 1, p.terms) - 1, None, p.terms), p.cells, 1),
        _EACH,
    ),
    Sum("only the first pair counts", lambda p: p.take(slice(0, None, only(p.terms > 1, p.terms)), p.cells, 1), _EACH),
    Sum(
        "the {what} of all pairs are summed",
        lambda p: only(p.cells > 1, p)._replace(cells=1, terms=p.cells * p.terms),
        "each pair has its own",
    ),
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
    m = inputs.W.shape[1]
    half = "the factor 2 is missing"
    halved = Constant(
        f"{half}, as in the gradient of ½||s - y||²" if inputs.target else half,
        "f is the sum of {e}², so df/ds = 2{e}",
        "write dloss_ds = 2 * {e}",
    )
    known = [
        (
            2.0,
            Constant(
                "an extra factor 2",
                "the only 2 is the one in df/ds = 2{e}; it was put in twice, or the gradient was added up twice",
                "write dloss_ds = 2 * {e}",
            ),
        ),
        (0.5, halved),
        (
            3.0,
            Constant(
                "a factor 3: the gradient was added up three times",
                "each step begins with a gradient of 0",
                "write dW = np.zeros_like(W) before the loop",
                RARE,
            ),
        ),
    ]
    B = inputs.terms if inputs.terms > 1 else inputs.cells
    sizes = [("m", "the values of a pair", m)]
    if B > 1:
        meaning = "the pairs that are summed" if inputs.terms > 1 else "the number of pairs"
        sizes += [("B", meaning, B), ("m B", "all values", m * B)]
    mean, line = "a mean instead of the sum: it is divided by", "write loss = ({e} ** 2).sum(), without a mean"
    for letters, meaning, size in sizes:
        if size > 1:
            words = f"{letters} = {size}, {meaning}"
            twice = f"{half}, and {mean} 2 {letters} = {2 * size}, twice {meaning}"
            known += [
                (1 / size, Constant(f"{mean} {words}", _BARE, line, place=f"1/{letters}")),
                (0.5 / size, Constant(twice, _BARE, f"{line} or ½", RARE, f"1/2{letters}")),
                (float(size), Constant(f"it is multiplied by {words}", _BARE, "take the factor out", RARE, letters)),
            ]
    return [
        (factor, constant if constant.place else constant._replace(place=str(factor))) for factor, constant in known
    ]
