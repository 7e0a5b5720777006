"""Programs with up to two wrong ways, computed together."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sigmoid_l2.explain.program import Inputs, Step, Values, Way, run, start, take
from sigmoid_l2.explain.steps import STEPS

Array = npt.NDArray[Any]
Ways = Mapping[str, Way]  # the wrong ways of a program

# The most cost of two wrong steps: two that few people take are not tried together.
_MOST_COST = 5

_STACKED = {*(step.name for step in STEPS), "c"}


class Programs(NamedTuple):
    """Programs, those with fewer wrong ways first."""

    ways: list[Ways]  # the wrong ones of each
    costs: Array
    wrong: Array  # how many are wrong
    values: Values  # with an axis of programs in front of the others

    def first(self, most: int) -> "Programs":
        """Those with up to ``most`` wrong ways."""
        count = int(np.sum(self.wrong <= most))
        return Programs(self.ways[:count], self.costs[:count], self.wrong[:count], _part(self.values, slice(count)))


def programs(steps: Sequence[Step], needed: Sequence[Step], inputs: Inputs, most: int) -> Iterator[Programs]:
    """All programs with up to ``most`` wrong ways, one or two: together, or one by one where there may be one alone.

    Wrong are some of the steps that are ``needed``. The right program comes first, then those with one wrong way. A
    step that the user gave, and the steps before it, have no wrong ways: what they did is in what was given.
    """
    done = {step.name for step in steps if step.name in inputs.given}
    for step in reversed(steps):
        done.update(step.inputs if step.name in done else ())
    open_steps = [step for step in needed if step.name not in done]
    if most > 1:
        yield _together(steps, open_steps, inputs, most)
        return
    for ways in ({}, *({step.name: way} for step in open_steps for way in step.ways[1:])):
        with contextlib.suppress(ValueError):  # this way does not exist here
            values = run(steps, ways, inputs)
            own = Values(**{k: a[None] if k in _STACKED else a for k, a in values.__dict__.items()})
            costs = np.array([sum(way.cost for way in ways.values())])
            yield Programs([ways], costs, np.array([len(ways)]), own)


def _together(steps: Sequence[Step], open_steps: Sequence[Step], inputs: Inputs, most: int) -> Programs:
    """All programs, each way of a step computed at once for all programs that take it."""
    found: list[Ways] = [{}]
    costs, wrong = np.zeros(1, int), np.zeros(1, int)
    values = start(inputs)
    for step in steps:
        taken: list[Ways] = []
        parts, new_costs, new_wrong = [], [], []
        for way in step.ways[: None if step in open_steps else 1]:
            is_open = (wrong == 0) | ((wrong < most) & (costs + way.cost <= _MOST_COST))
            own = np.flatnonzero(is_open) if way.done else np.arange(len(found))
            try:
                after = take(step, way, _part(values, own), inputs)
            except ValueError:  # this way does not exist here
                continue
            taken += [{**found[k], step.name: way} if way.done else found[k] for k in own]
            new_costs.append(costs[own] + way.cost * bool(way.done))
            new_wrong.append(wrong[own] + bool(way.done))
            shape = (len(own), *inputs.y.shape)
            parts.append({k: np.broadcast_to(a, shape) for k, a in after.__dict__.items() if k in _STACKED})
        found, costs, wrong = taken, np.concatenate(new_costs), np.concatenate(new_wrong)
        values = Values(**{**values.__dict__, **{k: np.concatenate([part[k] for part in parts]) for k in parts[0]}})
    order = np.argsort(wrong, kind="stable")
    return Programs([found[k] for k in order], costs[order], wrong[order], _part(values, order))


def _part(values: Values, programs: Any) -> Values:
    """The values of some of the programs."""
    return Values(**{k: a[programs] if k in _STACKED else a for k, a in values.__dict__.items()})
