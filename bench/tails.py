"""How often the gradients of each contender are wrong in the tails of the sigmoid; tests/accuracy measures that."""

import sys
from typing import Any

from checkout import ROOT
from results import Row

sys.path.append(str(ROOT / "tests"))


def rows() -> list[Row]:
    """A row for each contender of tests/accuracy that is installed, each dtype, and the targets 0 and 1."""
    from accuracy import measure  # compiles for some seconds

    return [
        {"part": "tails", "contender": contender.name, "dtype": dtype.name, "target": target or 0}
        | {"wrong": measure.wrong_gradients(contender, dtype, target)}
        for contender in measure.CONTENDERS
        for dtype in measure.DTYPES
        for target in measure.TARGETS
        if not (contender.missing() or (contender.backend and contender.backend.reasons(dtype)))
    ]


def told(tail: Any) -> str:
    """What is counted."""
    return tail
