"""What test_cuda_simulator.py runs under numba's CUDA simulator besides the parity tests: the kernels called directly.

The launches are small there (simulator.SMALL); the sizes here follow from them, as the first test says.
"""

import numpy as np
import pytest
import simulator
from contract import assert_contract
from fenced import NAMES, assert_same_bits, batch, run
from numba import config, cuda

from sigmoid_l2.kernels import cuda_launch, cuda_numba
from sigmoid_l2.kernels.cuda_launch import Long, Rows, Staged
from sigmoid_l2.kernels.cuda_numba_parts import unit_sums

# The class of each kernel at the sizes around its borders, in float32 (and, where it is another, in float64).
PLANS = {
    Staged: {
        "tiny": [(1, 1), (7, 1), (3, 3), (11, 1)],
        "group": [(1, 7), (2, 5), (5, 3), (47, 1), (1, 8)],
        "block": [(48, 1), (9, 5), (12, 4), (7, 8)],
        "split": [(70, 1), (8, 8), (13, 5), (16, 8)],
    },
    Rows: {
        "group": [(1, 9), (2, 16), (3, 10)],
        "block": [(9, 9), (4, 32), (3, 33), (1, 64), (1, 65), (1, 128)],
        "split": [(13, 17), (20, 32), (5, 33), (4, 64), (2, 65), (5, 256)],
    },
    Long: {"long": [(1, 257), (3, 300)]},
}
SHAPES = [shape for shapes in PLANS.values() for same in shapes.values() for shape in same]


def run_simulated(*arguments, to_device=cuda.to_device):
    return run(cuda_numba.fused, *arguments, to_device=to_device, to_host=lambda a: a.copy_to_host())


def unaligned(a):
    """A device array that does not begin on a multiple of 16 bytes."""
    memory = np.empty(a.size + 16 // a.itemsize, a.dtype)
    first = (-memory.ctypes.data % 16 + a.itemsize) // a.itemsize
    copy = cuda.to_device(memory)[first : first + a.size].reshape(a.shape)
    copy.copy_to_device(a)
    return copy


def test_this_is_the_simulator_with_small_launches():
    assert config.ENABLE_CUDASIM
    for kernel, classes in PLANS.items():
        for name, shapes in classes.items():
            for shape in shapes:
                p = cuda_launch.plan(*shape, 4)
                assert (type(p), cuda_launch.size_class(p)) == (kernel, name), (shape, p)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_every_class(dtype, m, n):
    p = cuda_launch.plan(m, n, np.dtype(dtype).itemsize)
    B = 2 * p.units + 1 if m * n < 200 else 2
    W, x = batch(B, m, n, dtype)
    whole = run_simulated(W, x)
    some = [0, -1] if m * n < 200 else [-1]
    assert_contract(W[some], x[some], *(whole[name][some] for name in NAMES), backend="numba-cuda")
    for pairs in (slice(1, None), slice(p.units), slice(max(1, p.units - 1))):
        assert_same_bits(run_simulated(W[pairs], x[pairs]), {name: a[pairs] for name, a in whole.items()})
    assert_same_bits(run_simulated(W, x, to_device=unaligned), whole)


ONE_OF_EACH = [shapes[-1] for classes in PLANS.values() for shapes in classes.values()]


@pytest.mark.parametrize("wanted", [("loss",), ("dW",), ("dx",), ("dW", "dx"), ("loss", "dx")])
@pytest.mark.parametrize(("m", "n"), [(3, 3), *ONE_OF_EACH])
def test_each_output_alone(m, n, wanted):
    W, x = batch(2, m, n, np.float32)
    assert_same_bits(run_simulated(W, x, wanted), run_simulated(W, x))


def test_both_ways_of_access_are_met():
    W, x = batch(4, 3, 4, np.float32)
    sizes = []
    for to_device in (cuda.to_device, unaligned):
        with simulator.recorded({}) as accesses:
            run_simulated(W, x, to_device=to_device)
        sizes.append(max(access.size for block in accesses.values() for access in block))
    assert sizes == [16, 4]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_workspace_is_kept_and_bounds_what_is_launched(dtype, monkeypatch):
    W, x = batch(7, 16, 8, dtype)
    pair_bytes = cuda_launch.plan(16, 8, W.itemsize).slices * unit_sums(8, W.itemsize) * W.itemsize
    assert 7 * pair_bytes > 2 * cuda_launch.WORKSPACE_BYTES  # so they are launched in at least 3 parts
    first = run_simulated(W, x)
    monkeypatch.setattr(cuda, "device_array", None)  # a second call allocates nothing
    assert_same_bits(run_simulated(W, x), first)


# --- what the simulator must see --------------------------------------------------------------------------------------


def simulate(kernel, threads=8):
    W = cuda.to_device(np.zeros(64, np.float32))
    simulator.kernel(kernel, threads, 1)[1, threads](W)


def test_a_lane_missing_from_a_shuffle_is_seen():
    def kernel(W):
        if cuda.threadIdx.x != 3:
            simulator.shuffle_xor(1.0, 1)

    with pytest.raises(simulator.MissingThreadError):
        simulate(kernel)


def test_a_thread_missing_from_a_barrier_is_seen():
    def kernel(W):
        if cuda.threadIdx.x != 3:
            cuda.syncthreads()

    with pytest.raises(simulator.MissingThreadError):
        simulate(kernel)


@pytest.mark.parametrize(("at", "count", "error"), [(63, 2, IndexError), (-1, 1, IndexError), (2, 4, AssertionError)])
def test_an_access_beyond_an_array_or_not_aligned_is_seen(at, count, error):
    def kernel(W):
        held = cuda.local.array(4, simulator.REALS[4])
        simulator.MOVERS[count](held, 0, W, at)

    with simulator.recorded({}), pytest.raises(error):
        simulate(kernel)
