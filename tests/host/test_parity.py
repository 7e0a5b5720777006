"""Every backend against the truth and against itself, over every size, dtype and range of q."""

import ast
import importlib.util
import inspect
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from arrays import pairs
from contract import assert_contract

import sigmoid_l2 as sl2
from sigmoid_l2 import dispatch

# Together the shapes take every path that a size can choose: blocks of pairs, blocks of rows, tiles, rows; m and n
# around the lanes of a vector; rows longer than dx in a GPU's shared memory (5000); pairs longer than blocks (300x400).
SMALL = [(1, 1), (1, 7), (7, 1), (2, 5), (3, 3), (5, 3), (8, 8), (13, 17)]
SMALL += [(11, 9), (10, 16), (1, 65), (6, 33), (66, 15)]
LARGE = [(61, 3), (37, 7), (64, 65), (1000, 1), (1, 5000), (300, 40), (300, 400)]
BATCHES = (1, 2, 7, 8, 9, 31, 127, 129, 4097)


def poisoned(batch, m, n, dtype):
    """Outputs full of NaN: what is not written shows."""
    return tuple(np.full(shape, np.nan, dtype) for shape in (batch, (*batch, m, n), (*batch, n)))


def check(W, x, backend, some=slice(None)):
    """All pairs are written; ``some`` of them are held to the contract, which takes longer."""
    out = poisoned(W.shape[:1], *W.shape[1:], W.dtype)
    sl2.value_and_grad(W, x, out=out, backend=backend)
    assert not any(np.isnan(a).any() for a in out), "an element was not written"
    assert_contract(W[some], x[some], *(a[some] for a in out), backend=backend)


@pytest.mark.parametrize(("m", "n"), SMALL)
def test_small_shapes(backend, dtype, m, n):
    for B in BATCHES:
        check(*pairs((B,), m, n, dtype), backend, some=[0, B // 2, B - 1][: 3 if m * n < 50 else 1])


@pytest.mark.parametrize(("m", "n"), LARGE)
def test_large_shapes(backend, dtype, m, n):
    W, x = pairs((3,), m, n, dtype)
    check(W, x / dtype.type(n**0.5), backend, some=[2] if m * n < 20_000 else [])


def whole_range(dtype):
    """q of every size to beyond the underflow of g; ±0, subnormal, tiny, huge; around each step of exp's reduction."""
    info = np.finfo(dtype)
    end = {"float16": 25, "float32": 120, "float64": 800}[dtype.name]
    magnitudes = [0, info.smallest_subnormal, info.tiny / 2, info.tiny, info.eps, info.max]
    decades = 2.0 ** np.linspace(info.minexp, info.maxexp - 1, 60)
    steps = (np.arange(0.5, 200) * np.log(2) / 2).astype(dtype)
    steps = [steps, np.nextafter(steps, dtype.type(0)), np.nextafter(steps, dtype.type(end))]
    q = np.concatenate([np.linspace(0, 100, 201), np.linspace(0, end, 100), magnitudes, decades, *steps])
    return np.concatenate([q, -q]).astype(dtype)


def test_whole_range_of_q(backend, dtype):
    W = whole_range(dtype)[:, None, None]
    check(W, np.ones((len(W), 1), dtype), backend)


def test_large_q_of_several_terms(backend, dtype):
    rng = np.random.default_rng(1)
    limit = 20 if dtype == np.float16 else 100
    W = rng.standard_normal((60, 3, 3))
    x = rng.standard_normal((len(W), 3))
    scale = rng.uniform(-limit, limit, (len(W), 3)) / (W @ x[:, :, None])[..., 0]  # q uniform to the limit
    x = x.astype(dtype)
    check((W * np.clip(scale, -1000, 1000)[..., None]).astype(dtype), x, backend)


def test_tiny_and_huge_factors(backend, dtype):
    """q of order 1 from factors near the ends of the range: the gradients are nearly as small and as large."""
    exponent = np.finfo(dtype).maxexp - 4
    W, x = pairs((9,), 3, 3, dtype)
    down, up = dtype.type(2.0**-exponent), dtype.type(2.0**exponent)
    if dtype == np.float16:  # 2**-12 is subnormal
        down, up = dtype.type(2.0**-6), dtype.type(2.0**6)
    check(W * down, x * up, backend)
    check(W * up, x * down, backend)


@pytest.mark.parametrize(("m", "n"), [(3, 3), (13, 17)])
def test_value_and_grad_alone_have_the_same_bits(backend, dtype, m, n):
    W, x = pairs((37,), m, n, dtype)
    loss, dW, dx = sl2.value_and_grad(W, x, backend=backend)
    assert sl2.value(W, x, backend=backend).tobytes() == loss.tobytes()
    alone = sl2.grad(W, x, backend=backend)
    assert (alone.dW.tobytes(), alone.dx.tobytes()) == (dW.tobytes(), dx.tobytes())


def test_nan_touches_no_other_pair(backend, dtype):
    W, x = pairs((17,), 3, 3, dtype)
    clean = sl2.value_and_grad(W, x, backend=backend)
    W[5, 1, 2] = x[11, 0] = np.nan
    mixed = sl2.value_and_grad(W, x, backend=backend)
    others = np.setdiff1d(np.arange(17), [5, 11])
    for got, expected in zip(mixed, clean, strict=True):
        assert got[others].tobytes() == expected[others].tobytes()
    loss, dW, dx = mixed
    assert np.isnan([loss[5], loss[11], *dW[5, 1], *dW[11].ravel(), *dx[5], *dx[11]]).all()
    assert dW[5, [0, 2]].tobytes() == clean.dW[5, [0, 2]].tobytes(), "rows without NaN have their gradient"


def test_infinite_q(backend, dtype):
    big = np.finfo(dtype).max
    for W, expected in ((big, 1), (-big, 0)):  # W and x are finite, their product is not
        loss, dW, dx = sl2.value_and_grad(np.full((1, 1, 1), W), np.full((1, 1), big), backend=backend)
        assert (loss[0], dW[0, 0, 0], dx[0, 0]) == (expected, 0, 0)
    W = np.array([[[np.inf]], [[-np.inf]]], dtype)
    loss, dW, _ = sl2.value_and_grad(W, np.ones((2, 1), dtype), backend=backend)  # dx = g W = 0 inf is NaN
    assert loss.tolist() == [1, 0]
    assert dW.ravel().tolist() == [0, 0]


@pytest.mark.parametrize(("m", "n"), [(3, 3), (37, 5), (21, 10), (13, 40)])
def test_infinite_x_with_rows_that_fill_no_vector(backend, dtype, m, n):
    """Where a kernel computes on beyond the last row, 0 times infinity must not reach dx."""
    W, x = np.ones((2, m, n), dtype), np.ones((2, n), dtype)
    x[1, n // 2] = np.inf
    loss, _, dx = sl2.value_and_grad(W, x, backend=backend)
    assert loss[1] == m
    assert not dx[1].any()


def test_no_warning_for_finite_input(backend, dtype):
    """Not even where products overflow, exp underflows, or the caller turned floating-point flags into errors."""
    q = whole_range(dtype)
    W = np.stack([q, q[::-1]], axis=1)[:, :, None] * np.ones((1, 1, 2), dtype)
    x = np.stack([q[::-1], np.ones_like(q)], axis=1)
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        for layout in (W, np.asfortranarray(W)):
            sl2.value_and_grad(layout, x, backend=backend)
            sl2.value_and_grad(layout, x, out=poisoned(q.shape, 2, 2, dtype), backend=backend)
        sl2.value_and_grad(W[0], x[0], backend=backend)


def test_all_kernels_have_the_same_signature():
    """From the source: a GPU kernel's module cannot be imported everywhere. Some have others beside ``fused``."""
    signatures = {}
    for entry in dispatch.BACKENDS:
        ((package, module),) = re.findall(r"from ([\w.]+) import (\w+)\n", inspect.getsource(entry.import_kernel))
        source = Path(importlib.util.find_spec(f"{package}.{module}").origin).read_text(encoding="utf-8")
        for f in ast.parse(source).body:
            if isinstance(f, ast.FunctionDef) and f.name in ("fused", "shared", "batch_last"):
                signatures[entry.name, f.name] = f"({ast.unparse(f.args)}) -> {ast.unparse(f.returns)}"
    assert {backend for backend, name in signatures if name == "fused"} == set(dispatch.NAMES)
    for kernel in ("shared", "batch_last"):
        assert {backend for backend, name in signatures if name == kernel} >= {"cupy", "numba-cuda"}
    assert set(signatures.values()) == {
        "(W: Any, x: Any, target: Any, cotangent: Any, loss: Any, dW: Any, dx: Any, dq: Any, *, "
        "stream: int | None=None, call_bytes: int=0) -> None"
    }
