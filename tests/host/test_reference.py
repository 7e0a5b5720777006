"""The NumPy backend: sums that lose nothing with m and n, the same bits in any layout and block, bounded memory."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from arrays import bits, pairs
from contract import roundings_of_q
from processes import run_python

from sigmoid_l2 import threads
from sigmoid_l2.kernels import reference

# Around the ends of a chain of 8 (alone up to 11), of 7 and 8 such chains, and of pairs of them; a prime; the end of
# tiny pairs.
LENGTHS = [1, 2, 3, 7, 8, 9, 10, 11, 12, 13, 15, 16, 17, 37, 56, 57, 63, 64, 65, 72, 100, 127, 128, 129, 449, 512]
LENGTHS += [255, 256, 257, 513, 1000, 4097]


def computed(W, x, target=None, cotangent=None, wanted=(True, True, True, True)):
    """loss, dW, dx and dq of a batch, None for those not ``wanted``; every element of the others is written."""
    shapes = W.shape[:1], W.shape, x.shape, W.shape[:2]
    out = [np.full(shape, np.nan, W.dtype) if want else None for shape, want in zip(shapes, wanted, strict=True)]
    reference.fused(W, x, target, cotangent, *out)
    assert not any(np.isnan(a).any() for a in out if a is not None)
    return out


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize(
    ("m", "n"), [*((m, 1) for m in LENGTHS), *((m, n) for m in LENGTHS for n in (3, 6)), (1 << 22, 1)]
)
def test_sums_over_equal_rows(m, n, dtype):
    """Rounding errors of equal terms have the same sign. In one chain of 2^22 they are 15,000 eps."""
    w = np.linspace(0.3, 0.9, n).astype(dtype)
    W, x = np.broadcast_to(w, (1, m, n)).copy(), np.ones((1, n), dtype)
    loss, dW, dx, _ = computed(W, x)
    s = 1 / (1 + np.exp(-np.longdouble(w).sum()))
    g = 2 * s * s * (1 - s)
    eps = np.finfo(dtype).eps
    q_error = 0 if n == 1 else 2 * n * eps / 2 * float(w.sum())
    allowed = (math.ceil(math.log2(m)) + 8) * eps + q_error
    assert abs(loss[0] - m * s * s) <= allowed * m * s * s
    assert (abs(dx[0] - m * g * w) <= allowed * m * g * w).all()
    assert (dW == dW[:, :1]).all()


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("n", [3, 6])
@pytest.mark.parametrize("m", [64, 100, 1000, 1 << 14])
def test_small_terms_are_not_lost(m, n, dtype):
    """The first term of dx_0 is 1 g, and each other less than half of its eps: a chain would lose them all."""
    eps = np.finfo(dtype).eps
    W, x = np.zeros((1, m, n), dtype), np.zeros((1, n), dtype)
    W[0, :, 0], W[0, 0, 0], W[0, :, -1], x[0, -1] = 0.49 * eps, 1, 0.5, 1
    dx = computed(W, x)[2]
    s = 1 / (1 + np.exp(-np.longdouble(0.5)))
    true = 2 * s * s * (1 - s) * (1 + (m - 1) * np.longdouble(0.49 * eps))
    assert abs(dx[0, 0] - true) <= (math.ceil(math.log2(m)) + 8) * eps * true


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("n", [6, 255, 256, 257, 515, 516, 1000, 1027, 1028, 2048, 2049, 4608, 9000, 1 << 20])
def test_sum_over_a_long_row(n, dtype):
    """The contract of q, whose terms are rounded as often as the order of the sum makes them."""
    w = np.asarray(1.7 / n, dtype)
    W, x = np.full((1, 1, n), w), np.full((1, n), np.asarray(0.9, dtype))
    q = n * np.longdouble(w) * np.longdouble(x[0, 0])
    _, dW, _, _ = computed(W, x)
    s = 1 / (1 + np.exp(-q))
    true = 2 * s * s * (1 - s) * x[0]
    roundings = roundings_of_q(1, n, dtype, "numpy")
    eps = np.finfo(dtype).eps
    assert (abs(dW[0, 0] - true) <= (2 * roundings * eps / 2 * float(q) + 7 * eps) * true).all()


# Tiny pairs and their ends; sums over rows in one chain, in several, in pairs of them; rows of one chain and several.
SHAPES = [(1, 1), (3, 3), (7, 5), (1, 5), (7, 1), (8, 5), (7, 6), (8, 1), (9, 1), (1, 9), (9, 9), (37, 5), (64, 2)]
SHAPES += [(65, 3), (86, 3), (52, 5), (57, 7), (100, 1), (200, 1), (256, 1), (257, 1), (1, 257), (3, 600), (70, 300)]
SHAPES += [(11, 6), (12, 6), (37, 6), (64, 64), (65, 16), (2, 515), (2, 516), (2, 1027), (2, 1028), (1, 4608)]
SHAPES += [(1, 3000), (1, 9000), (1100, 1)]


def shifted(a, offset):
    """The same values ``offset`` elements after a line of 64 bytes."""
    memory = np.empty(a.nbytes + 64 + offset * a.itemsize, np.uint8)
    first = -memory.ctypes.data % 64 + offset * a.itemsize
    b = memory[first : first + a.nbytes].view(a.dtype).reshape(a.shape)
    b[...] = a
    return b


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("more", [0, 2], ids=["plain", "target and cotangent"])
def test_same_bits(m, n, dtype, more, monkeypatch):
    """For every B, block, place, alignment and choice of outputs."""
    rng = np.random.default_rng([m, n])
    inputs = [*pairs((40,), m, n, dtype), rng.uniform(-0.2, 1.2, (40, m)), rng.standard_normal(40)][: 2 + more]
    inputs = [a.astype(dtype) for a in inputs]
    whole = bits(computed(*inputs), slice(None))
    one_by_one = [computed(*(a[k : k + 1] for a in inputs)) for k in range(40)]
    assert bits(map(np.concatenate, zip(*one_by_one, strict=True)), slice(None)) == whole
    for offset in range(1, 16):
        assert (
            bits(computed(*(shifted(a, (1 + 4 * k) * offset % 16) for k, a in enumerate(inputs))), slice(None)) == whole
        )
    for wanted in itertools.product((False, True), repeat=4):
        some = [a for a in computed(*inputs, wanted=wanted) if a is not None]
        assert bits(some, slice(None)) == [b for b, want in zip(whole, wanted, strict=True) if want]
    monkeypatch.setattr(threads, "get_num_threads", lambda: 3)
    monkeypatch.setattr(threads, "THREAD_WORK", 1)
    monkeypatch.setattr(reference, "THREADED", 1)
    threads._pool.cache_clear()  # the pool has the old number
    try:
        for size in (1, 2, 7, 13, 39):
            monkeypatch.setattr(reference, "BLOCK", size * m * n)
            monkeypatch.setattr(reference, "SMALL_BLOCK", size * m * n)
            assert bits(computed(*inputs), slice(None)) == whole
    finally:
        threads._pool.cache_clear()


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 3), (6, 6), (64, 64), (200, 1), (1, 200), (65, 1024)])
@pytest.mark.parametrize("more", [False, True], ids=["plain", "target and cotangent"])
def test_memory(m, n, dtype, more, monkeypatch):
    """What a thread allocates is what is allocated and dropped before it begins, whatever B is."""
    monkeypatch.setattr(threads, "get_num_threads", lambda: 1)
    reserved, needed = [], set()
    empty = np.empty

    def first_of(*arguments):
        array = empty(*arguments)
        reserved.append(array.nbytes)
        return array

    size = reference.SMALL_BLOCK if n <= reference.TINY_N and m * n <= reference.TINY else reference.BLOCK
    for B in (size // (m * n), 2 * size // (m * n) + 1):
        arrays = [np.zeros(shape, dtype) for shape in ((B, m, n), (B, n), (B, m), B, B, (B, m, n), (B, n), (B, m))]
        if not more:
            arrays[2:4] = None, None
        reserved.clear()
        with monkeypatch.context() as patch:
            patch.setattr(reference.np, "empty", first_of)
            tracemalloc.start()
            reference.fused(*arrays)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak <= reserved[0] + (1 << 14)
        needed.add(reserved[0])
    assert len(needed) == 1
    assert needed.pop() <= 40 << 20


WITH_LITTLE_MEMORY = """
import resource, sys
import numpy as np
from pathlib import Path
from sigmoid_l2 import threads
from sigmoid_l2.kernels import reference

threads.get_num_threads = lambda: 3
reference.BLOCK = 1 << 21  # so that a block needs more memory than what the process has freed before
m, n, B = map(int, sys.argv[1:4])
inputs = [np.ones(shape, sys.argv[4]) for shape in ((B, m, n), (B, n), (B, m), B)]
out = [np.full(shape, 7, sys.argv[4]) for shape in (B, (B, m, n), (B, n), (B, m))]
reference.fused(*(a[:9] for a in (*inputs, *out)))  # what a first call imports and allocates
for a in out:
    a[...] = 7
threads.for_ranges(100, 1 << 20, lambda first, last: None)  # starts the threads
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
refused, hard = 0, resource.getrlimit(resource.RLIMIT_AS)[1]
for k in range(4, 60):
    resource.setrlimit(resource.RLIMIT_AS, (used + int(2 ** (k / 2)), hard))
    try:
        reference.fused(*inputs, *out)
        break
    except MemoryError:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        refused += 1
        assert all((a == 7).all() for a in out), k
print(refused > 5)
"""


@pytest.mark.parametrize("shape", [(3, 3, 100_000), (20, 20, 9000), (70, 300, 90)])
@pytest.mark.parametrize("dtype", ["f4"])
def test_memory_error_comes_first(shape, dtype):
    pytest.importorskip("resource")
    assert run_python(WITH_LITTLE_MEMORY, *shape, dtype) == "True\n"
