"""The CuPy kernel run on the host by real threads: results, writes, races and memory errors, with no GPU."""

import dataclasses
import importlib
import os
from pathlib import Path
from types import SimpleNamespace

import cuh_host
import numpy as np
import pytest
import test_parity
from contract import assert_contract
from fenced import NAMES, assert_same_bits, batch, run, shapes

from sigmoid_l2 import kernels
from sigmoid_l2.kernels import cuda_launch

backends = importlib.import_module("sigmoid_l2.backends")  # the attribute sigmoid_l2.backends is the function

STAGED = [(1, 1), (1, 7), (7, 1), (2, 5), (3, 3), (4, 4), (5, 3), (8, 8), (16, 16)]
BLOCK = [(20, 30), (3, 300), (300, 3), (2, 5000)]  # the last has rows longer than dx in shared memory

HEADER = Path(kernels.__file__).with_name("sigmoid_l2.cuh").read_text(encoding="utf-8")
BARRIERS = [i for i, line in enumerate(HEADER.splitlines(), 1) if line.strip().startswith("__syncthreads();")]

pytestmark = pytest.mark.skipif(
    os.environ.get("NUMBA_ENABLE_CUDASIM") == "1", reason="conftest.py makes launches small for numba's simulator"
)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return np.dtype(request.param)


def run_on_host(*arguments):
    return run(cuh_host.fused, *arguments)


@pytest.mark.parametrize(("m", "n"), STAGED)
def test_staged(dtype, m, n):
    tile = cuda_launch.tile_pairs(m, n, dtype.itemsize) or 3  # 0 for float64 of 16x16, which the block kernel does
    W, x = batch(2 * tile + 3, m, n, dtype)
    whole = run_on_host(W, x)
    some = [0, tile - 1, tile, -1]
    assert_contract(W[some], x[some], *(whole[name][some] for name in NAMES), backend="cupy")
    for pairs in (slice(1), slice(tile - 1), slice(tile), slice(tile + 1), slice(1, None), slice(tile + 2, None)):
        assert_same_bits(run_on_host(W[pairs], x[pairs]), {name: a[pairs] for name, a in whole.items()})


@pytest.mark.parametrize(("m", "n"), BLOCK)
def test_block(dtype, m, n):
    assert not cuda_launch.tile_pairs(m, n, dtype.itemsize)
    W, x = batch(3, m, n, dtype)
    whole = run_on_host(W, x)
    assert_contract(W[1:], x[1:], *(whole[name][1:] for name in NAMES), backend="cupy")
    assert_same_bits(run_on_host(W[2:], x[2:]), {name: a[2:] for name, a in whole.items()})


@pytest.mark.parametrize("wanted", [("loss",), ("dW",), ("dx",), ("dW", "dx"), ("loss", "dx")])
@pytest.mark.parametrize(("B", "m", "n"), [(131, 3, 3), (2, 20, 30), (1, 2, 5000)])
def test_each_output_alone(B, m, n, wanted):
    W, x = batch(B, m, n, np.float32)
    assert_same_bits(run_on_host(W, x, wanted), run_on_host(W, x))


def test_parity_tests_that_meet_the_ends_of_the_range(monkeypatch, dtype):
    """Those of test_parity.py where the arithmetic of the device's own text decides; shapes are above."""
    host_run = tuple(
        dataclasses.replace(b, device="cpu", module="cuh_host", probe=lambda: None) if b.name == "cupy" else b
        for b in backends.BACKENDS
    )
    monkeypatch.setattr(backends, "BACKENDS", host_run)
    test_parity.test_whole_range_of_q("cupy", dtype)
    test_parity.test_large_q_of_several_terms("cupy", dtype)
    test_parity.test_tiny_and_huge_factors(
        "cupy", dtype
    )  # in float32 its W is subnormal, and -ftz=true must not matter
    test_parity.test_nan_touches_no_other_pair("cupy", dtype)
    test_parity.test_infinite_q("cupy", dtype)


@pytest.mark.parametrize(("m", "n"), [(3, 3), (20, 30)])
def test_offsets_beyond_32_bits(m, n):
    """The last block of 2^31 elements of W: memory that is not touched is not there."""
    B = 2**31 // (m * n) + 130
    try:
        W, x = np.zeros((B, m, n), np.float32), np.zeros((B, n), np.float32)
        results = {name: np.zeros(shape, np.float32) for name, shape in shapes(W).items()}
    except MemoryError:
        pytest.skip("the operating system does not lend memory that it may not have")
    W[-1:], x[-1:] = batch(1, m, n, np.float32)
    cuh_host.last_block(W, x, *results.values())
    assert_same_bits({name: a[-1:] for name, a in results.items()}, run_on_host(W[-1:], x[-1:]))


def test_shared_memory_starts_out_as_nan():
    """Else a kernel that sums into what it did not set would pass here."""
    cupy = pytest.importorskip("cupy", exc_type=ImportError)
    preamble = """
    template <typename T> __device__ void show(T* loss) {
        __shared__ T left_behind[2];
        loss[2 * blockIdx.x + threadIdx.x] = left_behind[threadIdx.x];
        left_behind[threadIdx.x] = 1;
    }"""
    kernel = cupy.ElementwiseKernel("", "raw T loss", "show(&loss[0])", "show", preamble=preamble, no_return=True)
    loss = np.zeros(6, np.float32)
    cuh_host.call(kernel, "float", 3, 2, loss)
    assert np.isnan(loss).all()


# --- sanitizers ---------------------------------------------------------------------------------------------------

# B, m, n.
LAUNCHES = {"staged": (131, 3, 3), "block": (2, 20, 30), "block, dx in global memory": (1, 2, 5000)}


def arrays(B, m, n, dtype=np.float32):
    W, x = batch(B, m, n, dtype)
    return {"W": W, "x": x, **{name: np.empty(shape, dtype) for name, shape in shapes(W).items()}}


@pytest.mark.parametrize("launch", LAUNCHES)
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_no_race_no_memory_error(sanitizer, launch):
    assert cuh_host.sanitize(sanitizer, *arrays(*LAUNCHES[launch]).values()) == ""


def test_every_barrier_is_needed_and_a_missing_one_is_seen():
    assert len(BARRIERS) == HEADER.count("__syncthreads();") > 0
    for line in BARRIERS:
        reports = [
            cuh_host.sanitize("thread", *arrays(*LAUNCHES[name]).values(), barrier_left_out=line)
            for name in ("staged", "block")
        ]
        assert sum("data race" in report for report in reports) == 1, f"sigmoid_l2.cuh:{line}: {reports}"


@pytest.mark.parametrize("launch", ["staged", "block"])
@pytest.mark.parametrize("short", ["W", "x", *NAMES])
def test_an_access_beyond_an_array_is_seen(launch, short):
    given = arrays(*LAUNCHES[launch])
    a = given[short]
    given[short] = SimpleNamespace(shape=a.shape, dtype=a.dtype, size=a.size - 1)  # `size` is what the program has
    assert "heap-buffer-overflow" in cuh_host.sanitize("address,undefined", *given.values())
