"""Launches above 2^31 elements of W under numba's CUDA simulator, of which the last block alone is run.

test_cuda_simulator.py runs this. Memory that is never touched is not there.
"""

import builtins

import numpy as np
import pytest
from fenced import NAMES, assert_same_bits, batch, shapes
from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray
from simulator_cases import PLANS

from sigmoid_l2.kernels import cuda_numba


def run(W, x):
    results = {name: np.zeros(shape, W.dtype) for name, shape in shapes(W).items()}
    cuda_numba.fused(*map(FakeCUDAArray, (W, x, *results.values())))  # as they are; cuda.to_device would copy them
    return results


@pytest.mark.parametrize(
    ("m", "n", "split"),
    [(*sizes[-1], name == "split") for classes in PLANS.values() for name, sizes in classes.items()],
)
def test_the_last_block(m, n, split, monkeypatch):
    B = 2**31 // (m * n) + 130
    W, x = np.zeros((B, m, n), np.float32), np.zeros((B, n), np.float32)
    W[-1:], x[-1:] = batch(1, m, n, np.float32)
    expected = run(W[-1:], x[-1:])
    assert all(a.any() for a in expected.values())
    if split:  # a pair has several blocks: all of the last launch
        monkeypatch.setattr(cuda_numba, "range", lambda *limits: builtins.range(*limits)[-1:], raising=False)
    else:  # the number of a block has 32 bits here as well, so that an overflow is an error
        monkeypatch.setattr(np, "ndindex", lambda *grid: [tuple(np.int32(size - 1) for size in grid)])
    results = run(W, x)
    assert_same_bits({name: results[name][-1:] for name in NAMES}, expected)
