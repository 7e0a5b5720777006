"""The largest relative error of each CPU backend's exp: the E of the report's proof sketch."""

from typing import Any

import numpy as np
from host.test_simd import exp as vector_exp
from numba import njit
from tqdm import tqdm

from accuracy import truth

PIECE = 1 << 20
# Below these, exp is subnormal; its error there is below what counts.
ENDS = {"float32": -87.0, "float64": -708.0}


@njit(nogil=True, error_model="numpy")
def _largest(y, results, double_double):
    worst = 0.0
    for i in range(len(y)):
        if double_double:
            (high, low), exponent = truth.exp(np.float64(y[i]))
            scale = 2.0 ** -float(exponent)
            worst = max(worst, abs((np.float64(results[i]) * scale - high) - low) / high)
        else:
            worst = max(worst, abs(np.float64(results[i]) / np.exp(np.float64(y[i])) - 1))
    return worst


def _arguments(dtype: np.dtype[Any], every: int, values: int) -> Any:
    """Pieces of y <= 0: every bit pattern of float32, or every so many-th; of float64 so many, uniform and near 0."""
    if dtype == np.float32:
        first, last = (int(np.float32(y).view(np.uint32)) for y in (-0.0, ENDS["float32"]))
        for start in range(first, last, PIECE * every):
            patterns = np.arange(start, min(start + PIECE * every, last), every, np.int64)
            yield patterns[: len(patterns) // 16 * 16].astype(np.uint32).view(np.float32)  # whole vectors
    else:
        rng = np.random.default_rng(0)
        for _ in range(max(1, values // PIECE)):
            yield np.concatenate([rng.uniform(ENDS["float64"], 0, PIECE // 2), -rng.uniform(0, 1, PIECE // 2)])


def exp_errors(every: int, values: int) -> dict[str, dict[str, float]]:
    """The largest relative error in eps, by backend and dtype."""
    found: dict[str, dict[str, float]] = {"numba": {}, "numpy": {}}
    for dtype in (np.dtype("float32"), np.dtype("float64")):
        functions = {"numba": vector_exp(dtype), "numpy": np.exp}
        eps = float(np.finfo(dtype).eps)
        for y in tqdm(list(_arguments(dtype, every, values)), desc=f"exp, {dtype}", unit="piece"):
            for name, function in functions.items():
                error = _largest(y, function(y), dtype == np.float64) / eps
                found[name][dtype.name] = max(found[name].get(dtype.name, 0.0), error)
    return found
