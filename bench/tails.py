"""How often the gradients of each contender are wrong in the tails of the sigmoid; tests/accuracy measures that."""

import sys

from checkout import ROOT
from results import Row

# What ``measure.wrong_gradients`` counts.
COUNTED = (
    "The share of q, uniform from -100 to 100, where the gradient is off by more than 1 % of itself, among those where "
    "it is a normal number."
)


def rows() -> list[Row]:
    """A row for each contender of tests/accuracy that is installed, each dtype, and the targets 0 and 1."""
    sys.path.append(str(ROOT / "tests"))
    from accuracy import measure

    return [
        {"part": "tails", "contender": contender.name, "dtype": dtype.name, "target": target or 0}
        | {"wrong": measure.wrong_gradients(contender, dtype, target)}
        for contender in measure.CONTENDERS
        for dtype in measure.DTYPES
        for target in measure.TARGETS
        if not contender.missing()
    ]
