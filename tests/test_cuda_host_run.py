"""The CuPy kernels run on the host by real threads: results, writes, races and memory errors, with no GPU."""

import dataclasses
import importlib
import os
from functools import cache
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

# Pairs that take all ways through each kernel, and those on both sides of each border between two ways to do a pair.
TINY = [(1, 1), (1, 7), (7, 1), (2, 2), (2, 5), (3, 3)]  # 8, 2, 2, 2, 1, 1 pairs a lane in float32
GROUP = [(5, 5), (8, 8), (10, 10), (13, 17), (300, 3), (3, 40), (2, 64)]  # the last two are for the rows kernel
BORDERS = {
    "float32": [
        [(9, 3, "tiny"), (10, 3, "group")],
        [(1, 15, "tiny"), (1, 16, "group")],
        [(319, 3, "group"), (320, 3, "block")],
        [(3412, 3, "block"), (3413, 3, "split")],
        [(1, 32, "group"), (1, 33, "group")],
        [(19, 64, "group"), (20, 64, "block")],
        [(3, 512, "group"), (3, 513, "block")],
        [(1, 4096, "block"), (1, 4097, "block")],
        [(2, 16384, "block"), (2, 16385, "long")],
    ],
    "float64": [
        [(3, 3, "tiny"), (4, 3, "group")],
        [(1, 7, "tiny"), (1, 8, "group")],
        [(159, 3, "group"), (160, 3, "block")],
        [(1705, 3, "block"), (1706, 3, "split")],
        [(3, 16, "group"), (3, 17, "group")],
        [(19, 64, "group"), (20, 64, "block")],
        [(3, 256, "group"), (3, 257, "block")],
        [(1, 2048, "block"), (1, 2049, "block")],
        [(2, 8192, "block"), (2, 8193, "long")],
        [(256, 256, "block"), (257, 256, "split")],
    ],
}
# One of each way through each kernel, with little work: B, m, n.
LAUNCHES = {
    "tiny": (131, 3, 3),
    "tiny, pairs in a row": (1027, 1, 1),
    "group": (9, 10, 10),
    "block, staged": (2, 40, 30),
    "split, staged": (3, 1400, 10),
    "group, rows": (9, 3, 40),
    "block, rows": (3, 20, 70),
    "block, a row": (2, 5, 1030),
    "split, rows": (3, 33, 4096),
    "long": (2, 2, 16400),
}

HEADER = Path(kernels.__file__).with_name("sigmoid_l2.cuh").read_text(encoding="utf-8")
BARRIERS = [i for i, line in enumerate(HEADER.splitlines(), 1) if "__sync" in line.partition("//")[0]]

pytestmark = pytest.mark.skipif(
    os.environ.get("NUMBA_ENABLE_CUDASIM") == "1", reason="conftest.py makes launches small for numba's simulator"
)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return np.dtype(request.param)


def run_on_host(*arguments, **options):
    return run(cuh_host.fused, *arguments, **options)


def misaligned(a):
    """A copy that begins 4 or 8 bytes after a multiple of 16."""
    memory = np.empty(a.size + 1 + 128 // a.itemsize, a.dtype)
    first = -memory.ctypes.data % 128 // a.itemsize + 1
    copy = memory[first : first + a.size].reshape(a.shape)
    copy[...] = a
    return copy


def block_pairs(m, n, itemsize):
    p = cuda_launch.plan(m, n, itemsize)
    return max(1, p.units * (cuda_launch.lane_pairs(m, n, itemsize) if isinstance(p, cuda_launch.Staged) else 1))


@pytest.mark.parametrize(("m", "n"), TINY + GROUP)
def test_tiles(dtype, m, n):
    """Batches that end around the end of a tile; a pair's bits depend neither on that nor on where arrays begin."""
    tile = block_pairs(m, n, dtype.itemsize)
    W, x = batch(2 * tile + 3, m, n, dtype)
    whole = run_on_host(W, x)
    some = sorted({0, tile - 1, tile, 2 * tile + 2})
    assert_contract(W[some], x[some], *(whole[name][some] for name in NAMES), backend="cupy")
    for pairs in (slice(1), slice(tile - 1 or 1), slice(tile), slice(tile + 1), slice(1, None), slice(tile + 2, None)):
        part = {name: a[pairs] for name, a in whole.items()}
        assert_same_bits(run_on_host(W[pairs], x[pairs]), part)
    assert_same_bits(run_on_host(W, x, to_device=misaligned), whole)


@pytest.mark.parametrize(
    ("dtype", "m", "n", "size_class"),
    [(dtype, *pair) for dtype, borders in BORDERS.items() for border in borders for pair in border],
)
def test_class_borders(dtype, m, n, size_class):
    W, x = batch(3, m, n, dtype)
    assert cuda_launch.size_class(cuda_launch.plan(m, n, W.itemsize)) == size_class
    whole = run_on_host(W, x)
    assert_contract(W[2:], x[2:], *(whole[name][2:] for name in NAMES), backend="cupy")
    assert_same_bits(run_on_host(W[2:], x[2:]), {name: a[2:] for name, a in whole.items()})
    assert_same_bits(run_on_host(W, x, to_device=misaligned), whole)


@cache
def results_of(launch):
    return run_on_host(*batch(*LAUNCHES[launch], np.float32))


@pytest.mark.parametrize("wanted", [("loss",), ("dW",), ("dx",), ("dW", "dx"), ("loss", "dx")])
@pytest.mark.parametrize("launch", LAUNCHES)
def test_each_output_alone(launch, wanted):
    W, x = batch(*LAUNCHES[launch], np.float32)
    assert_same_bits(run_on_host(W, x, wanted), results_of(launch))


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
    for m, n in ((3, 3), (37, 5), (21, 10), (13, 40)):
        test_parity.test_infinite_x_with_rows_that_fill_no_vector("cupy", dtype, m, n)


@pytest.mark.parametrize("launch", LAUNCHES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_pair(launch, value):
    """Also where a lane or a thread has rows or columns that are not there."""
    W, x = batch(*LAUNCHES[launch], np.float32)
    x[-1] = value
    outputs = [np.empty(shape, np.float32) for shape in shapes(W).values()]
    cuh_host.fused(np.abs(W), np.abs(x), *outputs)
    if value == np.inf:  # so q = inf, s = 1, g = 0, except that 0 * inf = NaN in dW
        assert outputs[0][-1] == W.shape[1]
        assert (outputs[2][-1] == 0).all()
    cuh_host.fused(W, x, *outputs)
    assert_same_bits(
        {name: a[:-1] for name, a in zip(NAMES, outputs, strict=True)},
        {k: a[:-1] for k, a in results_of(launch).items()},
    )


@pytest.mark.parametrize(("m", "n"), [(3, 3), (20, 70), (1400, 10), (33, 4096)])
def test_offsets_beyond_32_bits(m, n):
    """The last block of 2^31 elements of W: memory that is not touched is not there."""
    B = 2**31 // (m * n) + 130
    try:
        W, x = np.zeros((B, m, n), np.float32), np.zeros((B, n), np.float32)
        results = {name: np.zeros(shape, np.float32) for name, shape in shapes(W).items()}
    except MemoryError:
        pytest.skip("the operating system does not lend memory that it may not have")
    W[-1:], x[-1:] = batch(1, m, n, np.float32)
    cuh_host.last_pair(W, x, *results.values())
    assert_same_bits({name: a[-1:] for name, a in results.items()}, run_on_host(W[-1:], x[-1:]))


# --- the stand-in for CUDA ------------------------------------------------------------------------------------------


def run_text(body, threads, *, blocks=1, size=64):
    """``body`` of a kernel of raw float ``out``, with T and t, run on the host; ``out``."""
    cupy = pytest.importorskip("cupy", exc_type=ImportError)
    preamble = f"template <typename T> __device__ void text(T* out) {{ const unsigned t = threadIdx.x; {body} }}"
    kernel = cupy.ElementwiseKernel("", "raw T out", "text(&out[0]);", "text", preamble=preamble, no_return=True)
    out = np.zeros(size, np.float32)
    cuh_host.call(kernel, "float", blocks, threads, out)
    return out


def test_shared_memory_starts_out_as_nan():
    """Else a kernel that sums into what it did not set would pass here."""
    left = "__shared__ T left_behind[2];\n out[2 * blockIdx.x + t] = left_behind[t]; left_behind[t] = 1;"
    assert np.isnan(run_text(left, 2, blocks=3, size=6)).all()


def test_shuffles():
    assert run_text("out[t] = __shfl_xor_sync(0xFFFFFFFF, T(t), 5);", 64).tolist() == [t ^ 5 for t in range(64)]
    assert run_text("out[t] = __shfl_sync(0xFFFFFFFF, T(t), 5);", 64).tolist() == [5] * 32 + [37] * 32


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        ("if (t != 40) __shfl_xor_sync(0xFFFFFFFF, T(t), 1);", "not all threads come to"),
        ("if (t < 32) __syncthreads();", "not all threads come to"),
        ("if (t % 2) __syncthreads(); else __shfl_xor_sync(0xFFFFFFFF, T(t), 1);", "not all threads come to"),
        ("if (t > 0) __syncwarp();", "not all threads come to"),
        ("__shfl_xor_sync(0xFFFFFFFF, T(t), t < 32 ? 1 : t % 2 + 1);", "in different shuffles"),
        ("__shfl_xor_sync(0xFFFF, T(t), 1);", "of a part of a warp"),
        ("__shfl_sync(0xFFFFFFFF, T(t), 32);", "not there"),
    ],
)
def test_what_a_gpu_leaves_undefined_is_seen(body, failure):
    with pytest.raises(AssertionError, match=failure):
        run_text(body, 64)


# --- sanitizers ---------------------------------------------------------------------------------------------------


def arrays(B, m, n, dtype=np.float32):
    W, x = batch(B, m, n, dtype)
    return {"W": W, "x": x, **{name: np.empty(shape, dtype) for name, shape in shapes(W).items()}}


@pytest.mark.parametrize("launch", LAUNCHES)
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_no_race_no_memory_error(sanitizer, launch):
    assert cuh_host.sanitize(sanitizer, *arrays(*LAUNCHES[launch]).values()) == ""


# The launches of each barrier, in the order of the file: all in which it is executed and needed.
NEEDED = [
    ["block, a row", "long"],
    ["tiny", "group", "block, staged", "split, staged"],
    ["group"],
    ["tiny", "group", "block, staged", "split, staged"],
    ["block, rows"],
    ["split, staged"],
]


@pytest.mark.parametrize(("line", "launches"), list(zip(BARRIERS, NEEDED, strict=True)))
def test_a_missing_barrier_is_seen(line, launches):
    for launch in launches:
        report = cuh_host.sanitize("thread", *arrays(*LAUNCHES[launch]).values(), barrier_left_out=line)
        assert "data race" in report, f"sigmoid_l2.cuh:{line} in {launch}"


@pytest.mark.parametrize("launch", ["tiny", "group, rows", "block, staged", "block, rows", "long"])
@pytest.mark.parametrize("short", ["W", "x", *NAMES])
def test_an_access_beyond_an_array_is_seen(launch, short):
    given = arrays(*LAUNCHES[launch])
    a = given[short]
    given[short] = SimpleNamespace(shape=a.shape, dtype=a.dtype, size=a.size - 1)  # `size` is what the program has
    assert "heap-buffer-overflow" in cuh_host.sanitize("address,undefined", *given.values())
