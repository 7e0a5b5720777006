"""How the GPU kernels cut a batch, from the plans alone."""

import pytest

from sigmoid_l2.kernels.gpu.plan import REGISTERS, ROW_BYTES, UNIT_BYTES, WARP, make_plan

ROWS = (1, 2, 3, 5, 8, 16, 17, 31, 32, 33, 64, 65, 100, 257, 320, 784, 3000, 20000)


@pytest.mark.parametrize("itemsize", [4, 8])
def test_lanes_of_staged_units_have_work(itemsize):
    """A lane has elements in at least half of the rows that it could have, over all lanes of a unit."""
    for n in range(1, ROW_BYTES // itemsize + 1):
        for m in ROWS:
            p = make_plan(m, n, itemsize)
            assert p.lanes * p.lane_rows * p.columns <= 2 * p.rows * n, (m, n, p)
            assert p.lanes * p.lane_rows >= p.rows * p.row_lanes
            assert p.row_lanes * p.columns >= n
            assert p.lanes == 1 << (p.lanes.bit_length() - 1) if p.lanes <= WARP else p.lanes % WARP == 0
            assert p.threads % p.lanes == p.threads % WARP == p.lanes % p.row_lanes == 0
            assert p.block_units * (p.rows + 1) * n * itemsize <= UNIT_BYTES
            assert p.threads * (p.registers or 64) <= REGISTERS
