"""The vectors of kernels/cpu: exp over dense ranges; shuffles, sums and masks against NumPy."""

import platform
import re
from functools import partial

import numpy as np
import pytest

pytest.importorskip("numba")

from llvmlite import binding
from numba import config, njit, types
from numba.extending import intrinsic

from sigmoid_l2.kernels.cpu import sigmoid
from sigmoid_l2.kernels.cpu.simd import INDEX, VectorBuilder, vector_bytes

DTYPES = [np.dtype(np.float32), np.dtype(np.float64)]
WIDTHS = [2, 4, 8, 16]  # LLVM splits what is wider than the machine's vectors
# Distance of the float32 values tried, in steps of float32: odd, so that the mantissa's last bits take all values.
EVERY = 37


def on_vectors(build, dtype, width, inputs=1, outputs=1):
    """A function of arrays: ``outputs`` vectors ``build(v, vectors)`` of ``inputs`` vectors at a time.

    Where ``inputs`` is 0, ``build(v, a, out, count)`` loads and stores by itself.
    """

    @intrinsic
    def block(context, a, out, at, count):
        def generate(context, builder, signature, arguments):
            views = zip(signature.args[:2], arguments[:2], strict=True)
            a, out = (context.make_array(type_)(context, builder, value).data for type_, value in views)
            at, count = arguments[2:]
            v = VectorBuilder(builder, dtype, width)
            if inputs == 0:
                build(v, a, out, count)
            else:
                a, out = (v.at(array, builder.mul(at, INDEX(k * width))) for array, k in ((a, inputs), (out, outputs)))
                v.store_block(build(v, v.load_block(a, inputs)), out)
            return context.get_dummy_value()

        return types.void(a, out, types.int64, types.int64), generate

    @njit
    def run(a, out, blocks, count):
        for at in range(blocks):
            block(a, out, at, count)

    def call(a, out=None, count=0):
        a = np.ascontiguousarray(a, dtype)
        blocks = a.size // (inputs * width) if inputs else 1
        assert not inputs or blocks * inputs * width == a.size
        out = np.full(blocks * outputs * width, np.nan, dtype) if out is None else out
        run(a, out, blocks, count)
        return out

    return call


def fused_multiply_add():
    """Whether the code that numba makes here has it: every 64-bit ARM has, of x86 those with the feature."""
    features = config.CPU_FEATURES
    if features is None:
        features = binding.get_host_cpu_features().flatten()
    return platform.machine() not in ("x86_64", "AMD64") or "+fma" in features.split(",")


def stated_bound():
    """The largest error in ulp that the docstring of ``sigmoid.exp`` states for the instructions that there are."""
    bounds = re.search(r"is (\d\.\d+) ulp with fused multiply-add and (\d\.\d+) ulp without", sigmoid.exp.__doc__)
    return float(bounds[1 if fused_multiply_add() else 2])


def exp(dtype, width=None):
    return on_vectors(
        lambda v, y: sigmoid.side_by_side([sigmoid.exp(v, y[0])]), dtype, width or vector_bytes() // dtype.itemsize
    )


def exp_errors(function, y):
    """The largest error of ``function`` over ``y`` where exp is normal, and where it is subnormal, in ulp of each.

    The truth is in the next wider format, whose own error is below 1/1000 ulp.
    """
    info = np.finfo(y.dtype)
    wide = np.float64 if y.dtype == np.float32 else np.longdouble
    with np.errstate(under="ignore"):
        truth = np.exp(y.astype(wide))
        exponent = np.maximum(np.frexp(truth)[1] - 1, info.minexp)
        error = np.ldexp(np.abs(function(y).astype(wide) - truth), info.nmant - exponent)
    assert np.isfinite(error).all()
    normal = truth >= info.tiny
    return tuple(float(error.max(where=where, initial=0)) for where in (normal, ~normal))


def float32_arguments(every=EVERY):
    """Every ``every``-th float32 from -0 to below -104, where the result is 0, in pieces."""
    last = np.float32(-120).view(np.uint32)
    for first in range(0x80000000, int(last), every << 20):
        yield np.arange(first, first + (every << 20), every, np.int64).astype(np.uint32).view(np.float32)


def float64_arguments(size=1 << 20):
    """Near every multiple of ln(2) / 2, where the range of r ends; of every magnitude; near 0; about the underflow."""
    rng = np.random.default_rng(0)
    ends = np.arange(2160)[:, None] * (np.log(2) / 2)  # the last is beyond 746, from where on the result is 0
    yield -np.abs(ends + np.arange(-240, 240) * np.spacing(ends)).ravel()
    yield -rng.uniform(0, 750, size)
    yield -rng.uniform(0, 1, size)
    yield -(2.0 ** rng.uniform(-60, 9.5, size))
    yield -rng.uniform(707, 746, size)


def largest_errors(dtype, arguments):
    """What ``exp_errors`` finds over all pieces of ``arguments``."""
    function = exp(dtype)
    return tuple(np.max([exp_errors(function, y) for y in arguments], axis=0))


needs_long_double = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant < 62, reason="this system has no floating-point type wider than float64"
)


@pytest.mark.parametrize("dtype", [DTYPES[0], pytest.param(DTYPES[1], marks=needs_long_double)], ids=str)
def test_exp(dtype):
    """Within the error that the docstring states, and within one step where the result is subnormal."""
    arguments = float32_arguments() if dtype == np.float32 else float64_arguments()
    normal, subnormal = largest_errors(dtype, arguments)
    assert stated_bound() - 0.1 < normal <= stated_bound(), "the docstring of sigmoid.exp states what is measured"
    assert subnormal <= 1


@pytest.mark.skipif(vector_bytes() < 64, reason="no instruction scales vectors here")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_factors_scale_like_the_instruction(dtype, monkeypatch):
    """The same bits, subnormal results too."""
    arguments = float32_arguments(every=1009) if dtype == np.float32 else float64_arguments(1 << 16)
    pieces = [y[: y.size // 16 * 16] for y in arguments]
    scaled = list(map(exp(dtype), pieces))
    monkeypatch.setattr(VectorBuilder, "can_scale", False)
    by_factors = exp(dtype)
    for y, got in zip(pieces, scaled, strict=True):
        np.testing.assert_array_equal(by_factors(y), got)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exp_of_special_values(dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    y = np.array([0.0, -0.0, tiny, -tiny, -np.finfo(dtype).tiny, -np.inf, np.nan, np.finfo(dtype).min] * 8, dtype)
    got = exp(dtype)(y)
    np.testing.assert_array_equal(got, np.array([1, 1, 1, 1, 1, 0, np.nan, 0] * 8, dtype))
    assert not np.signbit(got[y == -np.inf]).any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_shuffle_and_take(dtype, width):
    """Any choice of elements of any number of vectors: those of one, in order, with repeats, from many."""
    rng = np.random.default_rng(width)
    count = 5
    choices = [rng.integers(0, sources * width, width) for sources in (1, 2, 3, 5, 5, 5)]
    choices += [rng.permutation(count * width)[:width] for _ in range(3)]
    choices += [np.arange(width), np.arange(width) + width, np.full(width, 2 * width - 1), np.arange(width) * count]
    choices += [np.arange(width)[::-1] + 3 * width, (np.arange(width) * 3 + width - 1) % (count * width)]
    two = [rng.integers(0, 2 * width, width) for _ in range(4)]

    def build(v, vectors):
        taken = v.take(vectors, np.concatenate(choices).tolist())
        return taken + [v.shuffle(vectors[1], vectors[3], lanes.tolist()) for lanes in two]

    a = np.arange(count * width, dtype=dtype)
    got = on_vectors(build, dtype, width, count, len(choices) + len(two))(a).reshape(-1, width)
    blocks = a.reshape(count, width)
    expected = [a[choice] for choice in choices] + [np.concatenate(blocks[[1, 3]])[lanes] for lanes in two]
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_sums_of_lanes(dtype, width):
    """The sums of whole numbers, which are exact in any order; every lane has another number."""

    def build(v, vectors):
        return [v.sum_lanes_of_each(vectors), *(v.broadcast(v.sum_lanes(vector)) for vector in vectors)]

    a = np.random.default_rng(width).integers(-1000, 1000, (width, width)).astype(dtype)
    got = on_vectors(build, dtype, width, width, 1 + width)(a).reshape(-1, width)
    np.testing.assert_array_equal(got[0], a.sum(axis=1))
    np.testing.assert_array_equal(got[1:], np.repeat(a.sum(axis=1), width).reshape(width, width))


@pytest.mark.parametrize(("size", "inner"), [(1, 1), (2, 1), (3, 1), (5, 2), (8, 1), (7, 3)])
@pytest.mark.parametrize("width", WIDTHS)
def test_sum_axis(width, size, inner):
    """Over the middle axis of (outer, size, inner), of whole numbers; they may end within a vector."""
    dtype = DTYPES[0]
    for outer in (1, width - 1, width):
        shape = (outer, size, inner)
        a = np.random.default_rng(size).integers(-1000, 1000, shape).astype(dtype)
        inputs, outputs = (-(-count // width) for count in (a.size, outer * inner))
        padded = np.pad(a.ravel(), (0, inputs * width - a.size), constant_values=np.nan)
        function = on_vectors(partial(sum_axis, shape), dtype, width, inputs, outputs)
        np.testing.assert_array_equal(function(padded)[: outer * inner], a.sum(axis=1).ravel())


def sum_axis(shape, v, vectors):
    return v.sum_axis(vectors, shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_masks(dtype, width):
    """The first ``count`` lanes are loaded and stored; memory that a mask excludes stays as it is."""

    def build(v, a, out, count):
        mask = v.mask_first(count)
        loaded = v.load(a, INDEX(1), mask)  # from an odd index: vectors need no alignment
        v.store(loaded, out, INDEX(1), mask)
        v.store(loaded, out, INDEX(1 + width))

    copy_first = on_vectors(build, dtype, width, inputs=0)
    for count in range(width + 3):
        a, out = np.full(1 + width, 7, dtype), np.full(1 + 2 * width, -1, dtype)
        k = min(count, width)
        a[1 + k :] = np.nan  # 0 times it would show
        copy_first(a, out, count)
        assert out.tolist() == [-1] + [7] * k + [-1] * (width - k) + [7] * k + [0] * (width - k)
