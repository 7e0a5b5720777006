"""The sweep: every piece of q through every contender, on all cores, into a tally for each contender, dtype and target.

The truth for the target 1 is that for none at -q, with the sign of g changed: 1 - sigmoid(q) = sigmoid(-q).

Beside it, how often the gradients of each contender are wrong in the tails; and the largest error of each CPU backend's
exp, on which the report's proof sketch builds.
"""

import platform
import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from host.test_simd import exp as vector_exp
from numba import njit
from tqdm import tqdm

import sigmoid_l2 as sl2
from accuracy import truth
from accuracy.contenders import CONTENDERS, DTYPES, Contender
from accuracy.tally import KEPT, Tally

EXP_PIECE = 1 << 20  # arguments of exp
# Below these, exp is subnormal; its error there is below what counts.
EXP_ENDS = {"float32": -87.0, "float64": -708.0}
PIECE = 1 << 15  # values of q that stay in cache together; with twice as many the sweep takes 1.5 times as long
PATTERNS = 1 << 32  # of float32
TARGETS = (None, 1.0)
# Of the tails: q is uniform from -TAIL to TAIL, and a gradient with a larger relative error than WRONG is wrong.
TAIL, TAIL_VALUES, WRONG = 100.0, 1 << 20, 0.01


def pieces(dtype: np.dtype[Any], every: int, values: int) -> list[range]:
    """Of float32 one bit pattern of ``every``; of float64 so many ``values``, which ``values_of`` draws."""
    end, step = (PATTERNS, every) if dtype == np.float32 else (values, 1)
    return [range(first, min(first + PIECE * step, end), step) for first in range(0, end, PIECE * step)]


def values_of(dtype: np.dtype[Any], piece: range) -> np.ndarray:
    """The q of a piece.

    Of float64, by turns: uniform to beyond the underflow; |q| log-uniform from 2^-60 to 2^10; any bits.
    """
    if dtype == np.float32:
        return np.arange(piece.start, piece.stop, piece.step, np.int64).astype(np.uint32).view(np.float32)
    rng = np.random.default_rng(piece.start)
    q = rng.uniform(-760, 760, len(piece))
    q[1::3] = np.copysign(2.0 ** rng.uniform(-60, 10, len(q[1::3])), q[1::3])
    q[2::3] = rng.integers(0, 2**64, len(q[2::3]), np.uint64).view(np.float64)
    return q


def mirrored(contender: Contender, q: np.ndarray, target: float | None) -> tuple[Any, Any, Any]:
    """loss, g and dx (size,), which without a target are those of q, and with a target of 1 should be the same."""
    turned = np.positive if target is None else np.negative
    loss, dW, dx = contender.run(turned(q)[:, None, None], np.ones((len(q), 1), q.dtype), target)
    return loss, turned(dW).ravel(), dx.ravel()


def sweep(
    contenders: Sequence[Contender],
    dtype: np.dtype[Any],
    pieces: Sequence[range],
    target: float | None = None,
    bar: Any = None,
) -> list[Tally]:
    """A tally of every contender over all ``pieces``; they are shared out to as many threads as sigmoid-l2 may use."""
    left, threads = deque(pieces), sl2.get_num_threads()

    def work() -> list[Tally]:
        tallies = [Tally(dtype, c.flushes(dtype)) for c in contenders]
        while left:
            try:
                q = values_of(dtype, left.popleft())
            except IndexError:  # another thread took the last one
                break
            true = truth.of(q)
            for contender, tally in zip(contenders, tallies, strict=True):
                tally.add(q, mirrored(contender, q, target), true)
            if bar is not None:
                with bar.get_lock():
                    bar.update(len(q))
        return tallies

    with ThreadPoolExecutor(threads) as pool:
        sl2.set_num_threads(1)  # a call of each of our threads
        try:
            first, *others = [task.result() for task in [pool.submit(work) for _ in range(threads)]]
        finally:
            left.clear()
            sl2.set_num_threads(None)
    for other in others:
        for tally, more in zip(first, other, strict=True):
            tally.merge(more)
    return first


def wrong_gradients(contender: Contender, dtype: np.dtype[Any], target: float | None) -> float:
    """The share of q in the tails with a wrong gradient, of those where the true one is a normal number."""
    q = np.linspace(-TAIL, TAIL, TAIL_VALUES).astype(dtype)
    true = truth.of(q)
    g = np.ldexp(true.high[1], true.exponent[1])
    normal = np.abs(g) >= np.finfo(dtype).tiny
    _, got, _ = mirrored(contender, q, target)
    right = np.abs(got[normal] - g[normal]) <= WRONG * np.abs(g[normal])  # false for NaN
    return 1 - float(right.mean())


def rows(
    contenders: Sequence[Contender], dtype: np.dtype[Any], target: float | None, tallies: Sequence[Tally]
) -> Iterator[dict[str, Any]]:
    """The tallies as JSON has them, each with the share of wrong gradients."""
    for contender, tally in zip(contenders, tallies, strict=True):
        of_contender = {"contender": contender.name, "ours": contender.backend is not None, "dtype": dtype.name}
        of_contender |= {"target": target, "wrong": wrong_gradients(contender, dtype, target)}
        yield of_contender | {"values": tally.values} | {name: getattr(tally, name).tolist() for name in KEPT}


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
    end = EXP_ENDS[dtype.name]
    if dtype == np.float32:
        first, last = (int(np.float32(y).view(np.uint32)) for y in (-0.0, end))
        for start in range(first, last, EXP_PIECE * every):
            y = values_of(dtype, range(start, min(start + EXP_PIECE * every, last), every))
            yield y[: len(y) // 16 * 16]  # whole vectors
    else:
        rng = np.random.default_rng(0)
        for _ in range(max(1, values // EXP_PIECE)):
            yield np.concatenate([rng.uniform(end, 0, EXP_PIECE // 2), -rng.uniform(0, 1, EXP_PIECE // 2)])


def exp_errors(every: int, values: int) -> dict[str, dict[str, float]]:
    """The largest relative error of each CPU backend's exp in eps, by backend and dtype: E of the proof sketch."""
    found: dict[str, dict[str, float]] = {"numba": {}, "numpy": {}}
    for dtype in DTYPES:
        functions = {"numba": vector_exp(dtype), "numpy": np.exp}
        eps = float(np.finfo(dtype).eps)
        for y in tqdm(list(_arguments(dtype, every, values)), desc=f"exp, {dtype}", unit="piece"):
            for name, function in functions.items():
                error = _largest(y, function(y), dtype == np.float64) / eps
                found[name][dtype.name] = max(found[name].get(dtype.name, 0.0), error)
    return found


def measure(every: int, peers_every: int, float64_values: int) -> dict[str, Any]:
    """Everything the report needs; of float32, one pattern of ``every`` for ours, of ``peers_every`` for the others."""
    start, cpu_start = time.perf_counter(), time.process_time()
    present = [c for c in CONTENDERS if not c.missing()]
    if any(c.library == "torch" for c in present):
        import torch

        torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    for dtype in DTYPES:
        ours = [c for c in present if c.backend]
        peers = [c for c in present if not c.backend]
        for contenders, step in ((ours, every), (peers, peers_every)):
            parts = pieces(dtype, step, float64_values)
            names = ", ".join(c.name.removeprefix("sigmoid-l2, ") for c in contenders)
            for target in TARGETS:
                title = f"{dtype}, target {target}: {names}"
                with tqdm(total=sum(map(len, parts)), desc=title, unit="q", unit_scale=True) as bar:
                    found += rows(contenders, dtype, target, sweep(contenders, dtype, parts, target, bar))
    return {
        "exp": exp_errors(every, float64_values // 10),
        "date": date.today().isoformat(),
        "every": every,
        "peers_every": peers_every,
        "machine": machine(),
        "seconds": round(time.perf_counter() - start),
        "cpu_seconds": round(time.process_time() - cpu_start),
        "versions": {lib: version(lib) for lib in ("numba", *sorted({c.library for c in present}))},
        "missing": {c.name: reason for c in CONTENDERS if (reason := c.missing())},
        "rows": found,
    }


def machine() -> str:
    """The processor and how many of its cores are used."""
    cpu, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        told = dict(re.findall(r"^(.*?)\s*: (.*)$", info.read_text(), re.MULTILINE))
        if "model name" in told:
            cpu = f"{told['model name']} (family {told.get('cpu family')}, model {told.get('model')})"
    return f"{cpu}, {sl2.get_num_threads()} cores"
