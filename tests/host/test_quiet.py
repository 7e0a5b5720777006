"""numba's loggers: not a word of our compilations at DEBUG, and all of those of others."""

import logging
import threading
from contextlib import suppress

import pytest
from processes import run_python

from sigmoid_l2.kernels.quiet import quiet

NUMBA = logging.getLogger("numba")

FIRST_CALLS = """
import logging, sys, threading
records = []
logging.basicConfig(level=logging.DEBUG)
logging.getLogger().handlers[:] = [handler := logging.Handler()]
handler.emit = records.append

import numpy as np
import sigmoid_l2 as sl2

def told():
    names = {record.name for record in records if record.name.startswith("numba")}
    records.clear()
    return names

W, x = np.zeros((70_000, 2, 3)), np.zeros((70_000, 3))
sl2.set_num_threads(2)
sl2.value_and_grad(W[:2], x[:2], backend="numba")
sl2.value_and_grad(W, x, 1, cotangent=2, backend="numba")
sl2.grad(W[0], x, backend="numba")
sl2.warmup((20, 7), backend="numba")
assert told() == set()
assert logging.getLogger("numba").level == logging.NOTSET

import numba
from sigmoid_l2.kernels.cpu import compile as ours

def theirs():
    numba.njit(lambda number: number + 1)(1)
    return told()

assert "numba.core.ssa" in theirs(), "what others compile is told after ours"

def compile_beside(*arguments, **options):
    beside.start()
    beside.join(1)
    return numba.njit(*arguments, **options)

done = []
beside = threading.Thread(target=lambda: done.append(theirs()))
ours.njit = compile_beside
sl2.value(np.zeros((3, 2)), np.zeros(2), backend="numba")
beside.join()
assert "numba.core.ssa" in done[0], "and at the same time, on another thread"
assert not told()
"""


def test_first_calls_at_debug(tmp_path):
    pytest.importorskip("numba")
    run_python(FIRST_CALLS, NUMBA_CACHE_DIR=tmp_path)


@pytest.fixture(autouse=True)
def levels():
    """Those of the test's end are those of its begin."""
    loggers = (logging.getLogger(), NUMBA)
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.mark.parametrize("root", [logging.DEBUG, logging.ERROR])
@pytest.mark.parametrize("level", [logging.NOTSET, logging.DEBUG, logging.INFO, logging.WARNING, logging.CRITICAL])
def test_levels_are_as_before(root, level):
    logging.getLogger().setLevel(root)
    NUMBA.setLevel(level)
    before = NUMBA.getEffectiveLevel()
    with suppress(KeyError), quiet():
        assert NUMBA.getEffectiveLevel() == max(before, logging.WARNING), "warnings are told, if they were before"
        with quiet():
            assert not logging.getLogger("numba.core.ssa").isEnabledFor(logging.INFO)
        assert not logging.getLogger("numba.core.ssa").isEnabledFor(logging.INFO)
        raise KeyError
    assert NUMBA.level == level


def test_a_level_that_the_program_sets_meanwhile_stays():
    NUMBA.setLevel(logging.DEBUG)
    with quiet():
        NUMBA.setLevel(logging.INFO)
    assert NUMBA.level == logging.INFO


def test_threads_within_at_once():
    """The last that leaves sets what the first has found."""
    NUMBA.setLevel(logging.DEBUG)
    both, first_left = threading.Barrier(2, timeout=60), threading.Event()
    seen = []

    def first():
        with quiet():
            both.wait()
        first_left.set()

    def last():
        with quiet():
            both.wait()
            assert first_left.wait(60)
            seen.append(NUMBA.level)

    threads = [threading.Thread(target=target) for target in (first, last)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [logging.WARNING]
    assert NUMBA.level == logging.DEBUG
