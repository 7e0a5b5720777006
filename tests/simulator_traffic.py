"""What the numba.cuda kernels move: every class run on full tiles with the launches of a GPU, its accesses counted.

test_cuda_simulator.py runs this file under numba's CUDA simulator.
"""

from collections import Counter, defaultdict

import numpy as np
import pytest
import simulator
import traffic
from numba import cuda

from sigmoid_l2.kernels import cuda_launch, cuda_numba

EXCESS = 1.05  # sectors over the least possible
FINISH = "sigmoid_l2_finish"
CONFLICTS = 1.1  # accesses to shared memory over those without bank conflicts

# Each class at full tiles of aligned arrays. The long kernel is not here: it reads W twice by design.
BOTH, SINGLE, DOUBLE = ("float32", "float64"), ("float32",), ("float64",)
SHAPES = {
    "tiny": [(1, 1, BOTH), (2, 2, BOTH), (3, 3, BOTH), (2, 5, SINGLE), (5, 3, SINGLE), (4, 4, SINGLE), (5, 5, SINGLE)],
    "group": [(8, 8, BOTH), (16, 16, BOTH), (30, 30, SINGLE), (4, 4, DOUBLE), (9, 128, BOTH)],
    "block": [(784, 10, SINGLE), (100, 30, SINGLE), (60, 16, DOUBLE), (64, 64, BOTH), (40, 512, SINGLE)],
    "split": [(1100, 10, SINGLE), (600, 10, DOUBLE)],
}
SHAPES["block"] += [(10, 784, BOTH)]
SHAPES["split"] += [(12, 2048, SINGLE)]  # with slices of 32 KiB; half a megabyte would take minutes
# Where that cannot be: the shape, dtype, bounds (measured, rounded up) and the reason.
ROWS_IN_SECTORS = "a row begins within a sector, which the row before it ends in"
AND_ONE_COLUMN = ROWS_IN_SECTORS + ", and the last column is a third access, of one lane"
LAST_LANE = "the rows of a pair are no multiple of its lanes', so lanes of several pairs are not equally far apart"
BOUNDS = [
    (20, 30, "float64", 1.11, CONFLICTS, ROWS_IN_SECTORS),
    (80, 65, "float32", 1.48, CONFLICTS, AND_ONE_COLUMN),
    (10, 785, "float32", 1.21, CONFLICTS, ROWS_IN_SECTORS),
    (10, 10, "float32", EXCESS, 1.5, LAST_LANE),
    (7, 7, "float32", EXCESS, 1.4, LAST_LANE),
    (25, 3, "float32", EXCESS, 2.3, LAST_LANE),
]


@pytest.fixture(autouse=True)
def _real_launches():
    simulator.launch_with(simulator.REAL)
    yield
    simulator.launch_with(simulator.SMALL)


def measured(m, n, dtype):
    """The class, and the traffic of each block, for as many pairs as one block has; the finish kernel's together."""
    itemsize = np.dtype(dtype).itemsize
    p = cuda_launch.plan(m, n, itemsize)
    B = p.units * cuda_launch.lane_pairs(m, n, itemsize) if isinstance(p, cuda_launch.Staged) else p.units
    rng = np.random.default_rng(0)
    shapes = {"W": (B, m, n), "x": (B, n), "loss": (B,), "dW": (B, m, n), "dx": (B, n)}
    arrays = {name: cuda.to_device(rng.standard_normal(shape).astype(dtype)) for name, shape in shapes.items()}
    assert all(simulator.address(a) % cuda_launch.WIDE_BYTES == 0 for a in arrays.values())
    with simulator.recorded(arrays) as accesses:
        cuda_numba.fused(*arrays.values())
    kernels = defaultdict(traffic.Traffic)
    for (kernel, block), of_block in accesses.items():
        add(kernels[kernel if kernel == FINISH else (kernel, block)], traffic.count(of_block))
    assert_once(kernels.values(), {name: np.prod(shape) * itemsize // 4 for name, shape in shapes.items()})
    return cuda_launch.size_class(p), kernels


def add(total, block):
    """Add the traffic of one more block."""
    total.sectors.update(block.sectors)
    for key, words in block.touched.items():
        total.touched[key].update(words)
    total.wavefronts += block.wavefronts
    total.conflict_free += block.conflict_free


def assert_once(kernels, sizes):
    """W is read once, each output is written once and not read, and no input is written; ``sizes`` in 4-byte words."""
    for name, write in (("W", False), ("loss", True), ("dW", True), ("dx", True)):
        words = Counter()
        for kernel in kernels:
            words.update(kernel.words(name, write))
        assert words == dict.fromkeys(range(sizes[name]), 1), name
        assert not any((name, not write) in kernel.touched for kernel in kernels), name
    assert not any(("x", True) in kernel.touched for kernel in kernels)


@pytest.mark.parametrize(
    ("size_class", "m", "n", "dtype"),
    [(name, m, n, dtype) for name in SHAPES for m, n, dtypes in SHAPES[name] for dtype in dtypes],
)
def test_traffic(size_class, m, n, dtype):
    if n == 2048:
        simulator.launch_with({**simulator.REAL, "SLICE_BYTES": 32768})
    found, kernels = measured(m, n, dtype)
    assert found == size_class
    for kernel, counted in kernels.items():
        if kernel != FINISH or n == 2048:  # the partial sums of short rows are no whole sectors
            assert counted.excess() <= EXCESS, (kernel, counted.sectors)
        assert counted.conflicts() <= CONFLICTS, kernel


@pytest.mark.parametrize(("m", "n", "dtype", "excess", "conflicts", "reason"), BOUNDS)
def test_traffic_where_it_cannot_be_less(m, n, dtype, excess, conflicts, reason):
    _, kernels = measured(m, n, dtype)
    found = max(k.excess() for k in kernels.values()), max(k.conflicts() for k in kernels.values())
    assert found[0] <= excess, (reason, found)
    assert found[1] <= conflicts, (reason, found)
    assert found[0] > EXCESS or found[1] > CONFLICTS, "the ordinary bounds hold"
