"""The compiled CPU kernels, called directly: results past the caches, at every offset of the arrays, and in slices."""

import os
import re
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from processes import run_python

pytest.importorskip("numba")

from sigmoid_l2.kernels import Given
from sigmoid_l2.kernels.cpu import rows, stream, tall, tiny
from sigmoid_l2.kernels.cpu.simd import lane_count

LINE, CANARY = 64, 0xAB
F4, F8 = np.dtype("f4"), np.dtype("f8")
KERNELS = {"tiny": tiny.kernel, "tall": tall.kernel, "rows": lambda m, n, dtype, given: rows.kernel(dtype, given)}
TINY = [(1, 1), (3, 3), (2, 5), (8, 8)]
# Fewer rows than lanes and more, whole blocks and a rest, more than one chain of sums; elements that fill no lines.
TALL = [(5, 2), (9, 4), (16, 4), (37, 3), (300, 1), (12, 12), (16, 16), (21, 13), (8, 8), (150, 7)]
CASES = [("tiny", m, n, dtype) for (m, n), dtype in product(TINY, (F4, F8))]
CASES += [("tall", m, n, dtype) for (m, n), dtype in product(TALL, (F4, F8)) if n <= lane_count(dtype)]
# Narrow rows and long ones, in one batch of rows and in several; rows of exactly a vector, and of all rests.
ROWS = [(1, 16), (3, 17), (5, 31), (20, 33), (70, 16), (33, 100), (3, 300), (50, 257), (2, 5000)]
CASES += [("rows", m, n, dtype) for (m, n), dtype in product(ROWS, (F4, F8))]
# Those that stand for all at other levels of the processor.
FEW = [
    case
    for case in CASES
    if case[:3] in {("tiny", 3, 3), ("tall", 5, 2), ("tall", 37, 3), ("tall", 9, 4), ("rows", 5, 31), ("rows", 3, 300)}
]
each_case = pytest.mark.parametrize(("name", "m", "n", "dtype"), CASES, ids=lambda value: str(value))


class Output:
    """An array of NaN that begins some elements after a line, between canaries."""

    def __init__(self, shape, dtype, offset):
        size = int(np.prod(shape)) * dtype.itemsize
        self.memory = np.full(size + 4 * LINE, CANARY, np.uint8)
        begin = -self.memory.ctypes.data % LINE + LINE + offset * dtype.itemsize
        self.array = self.memory[begin : begin + size].view(dtype).reshape(shape)
        self.array.fill(np.nan)

    def assert_intact(self):
        begin = self.array.ctypes.data - self.memory.ctypes.data
        around = np.concatenate([self.memory[:begin], self.memory[begin + self.array.nbytes :]])
        assert (around == CANARY).all(), "written outside"


def inputs(B, m, n, dtype):
    rng = np.random.default_rng([B, m, n])
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in ((B, m, n), (B, n)))


def run(name, W, x, *, streams, offsets=(0, 0, 0, 0), wanted=(True,) * 4, slice_rows=None, ranges=None):
    """The bytes of loss, dW, dx and dq, b"" for one that is not wanted; ``ranges`` of slices run in that order."""
    B, m, n = W.shape
    slice_rows = slice_rows or m
    count = B * -(-m // slice_rows)
    shapes = ((count,), W.shape, (count, n), (B, m))
    out = [
        Output(shape, W.dtype, offset) if is_wanted else None
        for shape, is_wanted, offset in zip(shapes, wanted, offsets, strict=True)
    ]
    kernel = KERNELS[name](m, n, W.dtype, Given(False, False))
    for first, last in ranges or [(0, count)]:
        kernel(W, x, None, None, *(output and output.array for output in out), first, last, slice_rows, streams)
    for output in filter(None, out):
        output.assert_intact()
    return [output.array.tobytes() if output else b"" for output in out]


def assert_same_bits_anywhere(name, m, n, dtype):
    """The bits of ordinary stores at any offset, for batches around whole blocks, in one range and in several."""
    lanes = LINE // dtype.itemsize
    for B in {1, lanes - 1, lanes, lanes + 1, 2 * lanes, 2 * lanes + 3}:
        W, x = inputs(B, m, n, dtype)
        expected = run(name, W, x, streams=False)
        assert not np.isnan(np.frombuffer(b"".join(expected), dtype)).any(), "all is written"
        for k in range(16):
            offsets = (k, (k + 5) % 16, (k + 11) % 16, (k + 2) % 16)
            cuts = sorted({0, B // 3, (k * B) // 16, B})
            ranges = list(pairwise(cuts))[::-1]
            for streams in (True, False):
                assert run(name, W, x, streams=streams, offsets=offsets) == expected, (B, k)
                assert run(name, W, x, streams=streams, offsets=offsets, ranges=ranges) == expected, (B, k, cuts)


@each_case
def test_every_offset(name, m, n, dtype):
    assert_same_bits_anywhere(name, m, n, dtype)


@each_case
def test_every_subset(name, m, n, dtype):
    """Of the outputs: those that are not wanted are not touched, and the others have the same bits."""
    W, x = inputs(37, m, n, dtype)
    expected = run(name, W, x, streams=False)
    for wanted in product((True, False), repeat=4):
        some = [bits if is_wanted else b"" for bits, is_wanted in zip(expected, wanted, strict=True)]
        for k, streams in product((0, 3, 13), (True, False)):
            assert run(name, W, x, streams=streams, offsets=(k, k, k, k), wanted=wanted) == some, (wanted, k)


@pytest.mark.parametrize("dtype", [F4, F8], ids=str)
@pytest.mark.parametrize("blocks", [0, 1, 3])
@pytest.mark.parametrize("name", ["tall", "rows"])
def test_slices(name, blocks, dtype):
    """A slice has the bits of a pair of its rows alone, in one range and in several."""
    lanes, B = lane_count(dtype), 5
    n = min(3, lanes) if name == "tall" else 37
    slice_rows = 9 * lanes  # more than one chain of sums
    m = 2 * slice_rows + (blocks * lanes + lanes // 2 if blocks else 0)
    W, x = inputs(B, m, n, dtype)
    parts = [np.ascontiguousarray(W[:, i : i + slice_rows]) for i in range(0, W.shape[1], slice_rows)]
    outs = [run(name, part, x, streams=False, slice_rows=slice_rows) for part in parts]
    losses, dxs = (np.stack([np.frombuffer(out[k], dtype).reshape(B, -1) for out in outs], 1) for k in (0, 2))
    dW, dq = (np.concatenate([np.frombuffer(out[k], dtype).reshape(B, -1) for out in outs], 1) for k in (1, 3))
    expected = [losses.tobytes(), dW.tobytes(), dxs.tobytes(), dq.tobytes()]
    count = B * len(parts)
    for ranges in ([(0, count)], [(4, count), (1, 4), (0, 1)]):
        for k, streams in product((0, 7), (True, False)):
            got = run(name, W, x, streams=streams, offsets=(k, k, k, k), slice_rows=slice_rows, ranges=ranges)
            assert got == expected, (ranges, k, streams)


def streaming_stores(name, m, n, dtype):
    """How many instructions of a kernel, compiled in this process, store past the caches."""
    (assembly,) = KERNELS[name](m, n, dtype, Given(False, False)).inspect_asm().values()
    assert re.search(r"\t(?:v?movups|v?movupd)\t", assembly), "stores are found at all"
    return len(re.findall(r"\tv?movnt\w+\t", assembly))


def assert_streams():
    """LLVM makes an ordinary store of a streaming one without a word, where it cannot do better."""
    for case in FEW:
        assert (streaming_stores(*case) > 0) == stream.can_stream(), case


def test_streaming_stores(tmp_path):
    """A process with an empty cache, because numba shows the code only of what it has compiled itself."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    script = "from host import test_stream; test_stream.assert_streams()"
    run_python(script, NUMBA_CACHE_DIR=tmp_path, PYTHONPATH=path)
