"""Each kind of mistake of kinds.py: check_grad says what was done, and names nothing else beside it.

A search takes some hundredths of a second, so each kind has one case here, another than its neighbours in the table;
with the page, docs/gradients.md, two. ``PYTHONPATH=tests python tests/host/test_kinds.py`` goes through all of them.
"""

import numpy as np
import pytest

import sigmoid_l2 as sl2
from host.kinds import KINDS, SHAPES, STEPS, run


def cases(kind):
    """Each shape in which the wrong lines run: (shape, whether with a target, seed, what the program gave)."""
    for place, shape in enumerate(SHAPES):
        for target in (False, True) if kind.target is None else (kind.target,):
            seed = (place + target) % 2
            try:
                with np.errstate(all="ignore"):
                    yield shape, target, seed, run(kind, shape, target, seed)
            except ValueError:  # NumPy says to the author that the shapes do not fit
                continue


def says(sentence, phrases):
    return any(phrase in sentence for phrase in phrases)


def misnamed(kind, some, names):
    """What is said of the gradients ``names`` and should not be, or is not said: a line for each of ``some`` cases."""
    for shape, target, seed, result in some:
        report = sl2.check_grad(*result.arguments, **{name: result.steps[name] for name in names})
        for check in (getattr(report, name) for name in names):
            here = f"{check.name} of {shape} {'with' if target else 'without'} y, seed {seed}: "
            said = check.known if kind.fact else check.mistakes
            phrases = [phrase.format(e="e" if target else "s").split("|") for phrase in kind.says]
            missing = [phrase for phrase in phrases if not any(says(sentence, phrase) for sentence in said)]
            # The first sentence of a wrong shape says so, and maybe no more.
            other = [text for text in check.mistakes if not any(says(text, phrase) for phrase in phrases)]
            other = [text for text in other if kind.fact or not text.startswith("wrong shape")]
            few = check.given.size < 3 and not check.mistakes  # too few numbers to tell anything
            if check.ok and not kind.slight:
                yield f"{here}called right"
            elif check.ok or few:
                continue
            elif missing or other:
                yield f"{here}missing {missing}, mistakes {check.mistakes}, known {check.known}"


@pytest.mark.parametrize(("number", "kind"), [*enumerate(KINDS)], ids=lambda value: getattr(value, "name", ""))
def test_the_kind_is_named(number, kind):
    every = list(cases(kind))
    name = kind.check[number % len(kind.check)]
    assert not list(misnamed(kind, [every[(3 * number + 1) % len(every)]], [name]))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_kind_runs_and_the_program_is_right_without_it(kind):
    shapes = [shape for shape, *_ in cases(kind)]
    assert shapes
    right = run(kind, shapes[0], right=True)
    assert sl2.check_grad(*right.arguments, **{name: right.steps[name] for name in ("dW", "dx")})


PAIRS = [kind for kind in KINDS if kind.program == "pair" and kind.data == "normal"]
# One kind for each step that it takes in a wrong way.
FIRST_WRONG = {step: next(kind for kind in PAIRS if kind.lines[0].split()[0] == step) for step in STEPS}


@pytest.mark.parametrize("step", STEPS)
def test_of_the_steps_the_wrong_one_is_named_first(step):
    kind = FIRST_WRONG[step]
    for *_, result in cases(kind):
        report = sl2.check_grad(*result.arguments, **result.steps)
        assert report.first_wrong == step
        assert [check.name for check in report.steps] == [*result.steps]
        before = [check.ok for check in report.steps if STEPS.index(check.name) < STEPS.index(step)]
        assert all(before)


def test_every_name_is_there_once():
    assert len({kind.name for kind in KINDS}) == len(KINDS)


if __name__ == "__main__":
    for each in KINDS:
        print("\n".join([f"{each.name}: {' | '.join(each.lines)}", *misnamed(each, cases(each), each.check)]))
