"""How the plan cuts pairs into slices, and who does them: the plan alone, and what is launched."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from fenced import batch, shapes

from gpu import launches
from gpu.test_proof import backend as backend
from sigmoid_l2.kernels.gpu import launch, plan
from sigmoid_l2.kernels.gpu.plan import for_batch, make_plan
from sigmoid_l2.kernels.gpu.plan_types import Rows

MULTIPROCESSORS = 132  # of an H100 or H200
GRID = (1, 2, 5, 7, 8, 17, 33, 64, 100, 256, 777, 1000, 3001, 8192, 16384)


def plans():
    """Those of the rows kernel over a grid of sizes, with m and n."""
    for m, n, itemsize in product(GRID, GRID, (4, 8)):
        p = make_plan(m, n, itemsize)
        if isinstance(p, Rows):
            yield m, n, itemsize, p


@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize(("m", "n", "B"), [(1000, 1000, 1), (1000, 1000, 10), (256, 256, 100), (8192, 8192, 1)])
def test_few_pairs_fill_a_chip(m, n, B, itemsize):
    p = for_batch(make_plan(m, n, itemsize), B)
    assert -(-B * p.slices // p.block_units) >= MULTIPROCESSORS


def test_slices():
    """None is empty; a slice has a block to itself, rows enough for its sums, and full steps where teams share it."""
    for m, n, itemsize, p in plans():
        assert (p.slices - 1) * p.rows < m <= p.slices * p.rows, p
        least = plan.SLICE_ROWS if p.threads == plan.BLOCK_THREADS else plan.LONG_SLICE_ROWS
        assert (p.slices > 1) == (m * n * itemsize > plan.ALONE_BYTES and m > least), p
        assert p.slices <= plan.MAX_SLICES, p
        if p.slices > 1:
            assert p.block_units == 1, p
            assert p.rows >= least, p
            assert p.teams == 1 or p.rows % (p.teams * p.at_once) == 0, p
            assert p.slices * (n + 1) * itemsize <= plan.WORKSPACE_BYTES, p


def test_no_more_than_half_of_the_threads_are_idle():
    """In a row, and of a full block, but for a single row of a block's class or of few columns more than fit."""
    for m, n, itemsize, p in plans():
        columns = p.row_threads * p.width * p.vectors
        assert n > columns // 2, (m, n, itemsize, p)
        assert p.at_once < 2 * m, p
        assert p.threads == p.block_units * p.teams * p.row_threads, p


def test_the_plan_depends_on_the_batch_in_who_does_the_slices_alone():
    for m, n, _, p in plans():
        groups = -(-p.slices // p.group)
        few = -(-plan.MANY_BLOCKS // groups) - 1  # pairs
        many = for_batch(p, few + 1)
        assert for_batch(p, few) is p
        assert many.in_turn == (p.slices > 1 and p.group > 1), p
        assert many is p or many == p._replace(slices=groups, in_turn=True)
        assert groups == 1 or p.group == 1 or p.group * p.rows >= plan.GROUP_ROWS, (m, n, p)


@pytest.mark.parametrize(("B", "names"), [(2, ["rows", "finish"]), (3, ["rows"])])
def test_many_pairs_are_one_launch(backend, monkeypatch, B, names):
    """And need no workspace."""
    monkeypatch.setattr(plan, "MANY_BLOCKS", 3)
    W, x = batch(B, 65, 520, np.float32)
    launched, memory = launches.launches_of(
        backend, W, x, None, None, *(np.empty(s, np.float32) for s in shapes(W).values())
    )
    assert [launch.name for launch in launched] == names
    assert ("workspace" in [name for _, name, _ in memory.arrays]) == (B == 2)


def test_sizes_that_kernels_cannot_count():
    W = SimpleNamespace(shape=(1, 1, 1 << 32), dtype=np.dtype("float32"))
    with pytest.raises(ValueError, match="below 2\\*\\*32"):
        launch.fused(None, W, *[None] * 8)
