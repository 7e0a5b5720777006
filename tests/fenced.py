"""A kernel called directly: inputs must stay as they are, outputs are full of NaN and have a fence on either side."""

from collections.abc import Callable
from typing import Any

import numpy as np

NAMES = ("loss", "dW", "dx", "dq")
FENCE = 1 << 14  # elements on either side of an output, more than a tile of W, that nothing may write


def shapes(W: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each output for W (B, m, n)."""
    B, m, n = W.shape
    return {"loss": (B,), "dW": (B, m, n), "dx": (B, n), "dq": (B, m)}


def batch(B: int, m: int, n: int, dtype: Any) -> tuple[Any, Any]:
    """W and x with q of order 1."""
    rng = np.random.default_rng([B, m, n])
    return rng.standard_normal((B, m, n)).astype(dtype), (rng.standard_normal((B, n)) / n**0.5).astype(dtype)


def run(
    fused: Callable[..., None],
    W: Any,
    x: Any,
    wanted: tuple[str, ...] = NAMES,
    *,
    target: Any = None,
    cotangent: Any = None,
    to_device: Callable[[Any], Any] = lambda a: a,
    to_host: Callable[[Any], Any] = lambda a: a,
) -> dict[str, Any]:
    """The outputs ``wanted`` that ``fused`` computes, all of them written, and nothing else."""
    given = W, x, target, cotangent
    inputs = [None if a is None else to_device(a.copy()) for a in given]
    memory, outputs = {}, {}
    for name in wanted:
        shape = shapes(W)[name]
        memory[name] = to_device(np.full(np.prod(shape) + 2 * FENCE, np.nan, W.dtype))
        outputs[name] = memory[name][FENCE:-FENCE].reshape(shape)
    fused(*inputs, *map(outputs.get, NAMES))
    for a, before in zip(inputs, given, strict=True):
        assert before is None or to_host(a).tobytes() == before.tobytes(), "an input is changed"
    for name, a in memory.items():
        a = to_host(a)
        assert np.isnan([a[:FENCE], a[-FENCE:]]).all(), f"{name} is written beyond its ends"
    results = {name: to_host(a) for name, a in outputs.items()}
    for name, a in results.items():
        assert not np.isnan(a).any(), f"an element of {name} is not written"
    return results


def assert_same_bits(results: dict[str, Any], expected: dict[str, Any]) -> None:
    """Assert that ``results`` are those of ``expected`` by the same names, to the last bit."""
    for name, a in results.items():
        assert a.tobytes() == expected[name].tobytes(), f"{name} has other bits"
