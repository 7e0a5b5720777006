"""The commands ``info``, ``grad`` and ``sample``; ``trace`` is in trace.py.

Each takes its parsed arguments and returns what to print, and the exit status. Inputs are the arrays of the files that
are named, or of standard input, and those of the options --target and --cotangent.
"""

import argparse
import contextlib
import io
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from sigmoid_l2.api import value_and_grad
from sigmoid_l2.cli.arguments import Printed, check_out, errors_name, read_options
from sigmoid_l2.cli.files import read_arrays
from sigmoid_l2.cli.source import name_of
from sigmoid_l2.cli.writing import check_output, write_npz
from sigmoid_l2.dispatch import show_config
from sigmoid_l2.problem import Problem, validate
from sigmoid_l2.results import WRT

# Bytes of W between two steps of the progress bar: about 10 ms of work, next to which a call's fixed cost is nothing.
PIECE_BYTES = 32 << 20


def info(_: argparse.Namespace) -> Printed:
    with contextlib.redirect_stdout(io.StringIO()) as text:
        show_config()
    return text.getvalue(), 0


def grad(args: argparse.Namespace) -> Printed:
    check_out(args.out, "-o", [*args.files, args.target, args.cotangent])
    arrays: dict[str, Any] = read_arrays(args.files, optional=("target", "cotangent"))
    sources = [*map(name_of, args.files), *read_options(args, arrays, "target", "cotangent")]
    with errors_name(sources):
        problem = validate(**arrays)
    names = ["loss", *(WRT[name] for name in args.wrt)]
    results = {name: np.empty(problem.shapes[name], problem.dtype) for name in names}
    start = time.perf_counter()
    with _progress(math.prod(problem.batch)) as advance:
        for piece in _pieces(problem):
            W, x, target, cotangent = _cut(problem, piece)
            out = [result[piece] for result in results.values()]
            if problem.column:  # W, x and target came without the 1 of their columns
                out = [a[..., 0] if name in ("dx", "dq") else a for name, a in zip(names, out, strict=True)]
            value_and_grad(W, x, target, cotangent=cotangent, wrt=args.wrt, out=tuple(out), backend=args.backend)
            advance(out[0].size)
    seconds = time.perf_counter() - start
    write_npz(args.out, results)
    shapes = ", ".join(f"{name} {a.shape}" for name, a in arrays.items())
    return (
        f"{_count(math.prod(problem.batch))}: {shapes}, {problem.dtype}, backend {args.backend}, {seconds:.3g} s; "
        f"{', '.join(names[:-1])} and {names[-1]} are in {args.out}\n"
    ), 0


@contextlib.contextmanager
def _progress(pairs: int) -> Iterator[Callable[[int], object]]:
    """A progress bar for long work where standard error is a terminal; yields the function that advances it."""
    try:
        from tqdm import tqdm
    except ImportError:  # the bar is a convenience: everything works with NumPy alone
        yield lambda done: None
        return
    tqdm.monitor_interval = 0  # otherwise tqdm starts a thread, and warns where none can be started
    with tqdm(total=pairs, unit=" pairs", unit_scale=True, disable=None, delay=1, leave=False) as bar:
        yield bar.update


def _pieces(problem: Problem) -> list[Any]:
    """Indices that cover the first batch axis, or all of it where W or x is shared along it; at least one."""
    if not all(_has_first_axis(problem)[:2]):
        return [...]
    rows = max(1, PIECE_BYTES // max(1, problem.W.itemsize * math.prod(problem.W.shape[1:])))
    return [slice(first, first + rows) for first in range(0, max(1, problem.batch[0]), rows)]


def _cut(problem: Problem, piece: Any) -> list[Any]:
    """The ``piece`` of each input, but all of one that is shared along the first batch axis."""
    return [a[piece] if own else a for a, own in zip(problem.inputs, _has_first_axis(problem), strict=True)]


def _has_first_axis(problem: Problem) -> list[bool]:
    """Whether each input has the first batch axis, and is not shared along it."""
    batch, shapes = problem.batch, problem.pair_shapes
    return [
        a is not None and a.ndim == len(batch) + len(shape) and a.shape[:1] == batch[:1]
        for a, shape in zip(problem.inputs, shapes, strict=False)
    ]


def sample(args: argparse.Namespace) -> Printed:
    check_output(args.out)
    m, n = args.shape
    rng = np.random.default_rng(args.seed)
    W = rng.standard_normal((args.batch, m, n), np.dtype(args.dtype))
    x = rng.standard_normal((args.batch, n), np.dtype(args.dtype))
    write_npz(args.out, {"W": W, "x": x})
    return f"{_count(args.batch)}: W {W.shape}, x {x.shape}, {args.dtype}, seed {args.seed}, are in {args.out}\n", 0


def _count(pairs: int) -> str:
    return "1 pair" if pairs == 1 else f"{pairs} pairs"
