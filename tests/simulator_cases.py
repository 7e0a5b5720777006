"""What test_cuda_simulator.py runs under numba's CUDA simulator besides the parity tests: the kernels called directly.

The launches are small there by conftest.py; the sizes here follow from them.
"""

import numpy as np
import pytest
from contract import assert_contract
from fenced import NAMES, assert_same_bits, batch, run
from numba import config, cuda

from sigmoid_l2.kernels import cuda_launch, cuda_numba

TILE, COLUMNS = cuda_launch.TILES[0], cuda_launch.COLUMNS
STAGED = [(1, 1), (1, 7), (7, 1), (2, 5), (3, 3)]
# Pairs that a tile has no room for, with rows as short as a block and on both sides of COLUMNS.
ROOM = cuda_launch.SHARED_BYTES // (TILE * 4)
BLOCK = [(ROOM // n + 1, n) for n in (4, COLUMNS, COLUMNS + 1, 2 * COLUMNS + 1)]


def run_simulated(*arguments):
    return run(cuda_numba.fused, *arguments, to_device=cuda.to_device, to_host=lambda a: a.copy_to_host())


def test_this_is_the_simulator_with_small_launches():
    assert config.ENABLE_CUDASIM
    assert (cuda_launch.block_threads(4), cuda_launch.TILES) == (4, (8,))
    assert COLUMNS < 50


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("m", "n"), STAGED)
def test_staged(dtype, m, n):
    W, x = batch(2 * TILE + 3, m, n, dtype)
    assert cuda_launch.tile_pairs(m, n, W.itemsize) == TILE
    whole = run_simulated(W, x)
    some = [0, TILE - 1, TILE, -1]
    assert_contract(W[some], x[some], *(whole[name][some] for name in NAMES), backend="numba-cuda")
    for pairs in (slice(1), slice(TILE - 1), slice(TILE), slice(TILE + 1), slice(1, None), slice(TILE + 2, None)):
        assert_same_bits(run_simulated(W[pairs], x[pairs]), {name: a[pairs] for name, a in whole.items()})


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("m", "n"), BLOCK)
def test_block(dtype, m, n):
    W, x = batch(3, m, n, dtype)
    assert cuda_launch.tile_pairs(m, n, W.itemsize) == 0
    whole = run_simulated(W, x)
    assert_contract(W, x, *(whole[name] for name in NAMES), backend="numba-cuda")
    assert_same_bits(run_simulated(W[2:], x[2:]), {name: a[2:] for name, a in whole.items()})


@pytest.mark.parametrize("wanted", [("loss",), ("dW",), ("dx",), ("dW", "dx"), ("loss", "dx")])
@pytest.mark.parametrize(("B", "m", "n"), [(TILE + 3, 3, 3), (2, *BLOCK[1]), (1, *BLOCK[-1])])
def test_each_output_alone(B, m, n, wanted):
    W, x = batch(B, m, n, np.float32)
    assert_same_bits(run_simulated(W, x, wanted), run_simulated(W, x))
