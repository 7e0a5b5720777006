"""The commands ``info``, ``trace``, ``grad`` and ``sample``: each takes its parsed arguments and returns what to print.

Inputs are the arrays of the files that are named, and those of the options --target and --cotangent.
"""

import argparse
import contextlib
import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sigmoid_l2.api import value_and_grad
from sigmoid_l2.cli.files import InputError, check_output, read_array, read_arrays, write_npz
from sigmoid_l2.dispatch import show_config
from sigmoid_l2.explain import example
from sigmoid_l2.explain.check_grad import check_grad
from sigmoid_l2.explain.trace import trace as trace_of
from sigmoid_l2.problem import Problem, validate
from sigmoid_l2.results import WRT

# Bytes of W between two steps of the progress bar: about 10 ms of work, next to which a call's fixed cost is nothing.
PIECE_BYTES = 32 << 20


def info(_: argparse.Namespace) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as text:
        show_config()
    return text.getvalue()


@contextlib.contextmanager
def _errors_name(sources: Sequence[str]) -> Iterator[None]:
    """Add the names of the files and options to an error that the library raises about their arrays."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise InputError(f"{', '.join(sources)}: {error}") from error


def trace(args: argparse.Namespace) -> str:
    arrays: dict[str, Any]
    if args.files:
        arrays = read_arrays(args.files, optional=("target", "dW", "dx"))
    else:  # the example's gradients were written for no target
        names = ("W", "x", "dW", "dx") if args.target is None else ("W", "x")
        arrays = {name: getattr(example, name) for name in names}
    sources = [*args.files, *_read_options(args, arrays, "target")]
    gradients: dict[str, Any] = {name: arrays.pop(name) for name in ("dW", "dx") if name in arrays}
    with _errors_name(sources):
        text = f"{trace_of(**arrays)}\n"
        if gradients:
            text += f"\nthe hand-written gradient, checked:\n{check_grad(**arrays, **gradients)}\n"
    return text


def _read_options(args: argparse.Namespace, arrays: dict[str, Any], *names: str) -> list[str]:
    """Put what the options ``names`` give into ``arrays``; return where each comes from: its file, or the option."""
    sources = []
    for name in names:
        if (given := getattr(args, name)) is None:
            continue
        if isinstance(given, str):
            if not Path(given).exists():
                raise InputError(f"--{name}: {given} is neither numbers with commas between them nor a file")
            sources.append(given)
            given = read_array(given)
        else:
            sources.append(f"--{name}")
        arrays[name] = given
    return sources


def grad(args: argparse.Namespace) -> str:
    check_output(args.out)
    arrays: dict[str, Any] = read_arrays(args.files, optional=("target", "cotangent"))
    sources = [*args.files, *_read_options(args, arrays, "target", "cotangent")]
    if any(Path(file).exists() and args.out.exists() and args.out.samefile(file) for file in sources):
        raise InputError(f"{args.out}: is an input too and would be lost; give another name after -o")
    with _errors_name(sources):
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
    )


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


def sample(args: argparse.Namespace) -> str:
    check_output(args.out)
    m, n = args.shape
    rng = np.random.default_rng(args.seed)
    W = rng.standard_normal((args.batch, m, n), np.dtype(args.dtype))
    x = rng.standard_normal((args.batch, n), np.dtype(args.dtype))
    write_npz(args.out, {"W": W, "x": x})
    return f"{_count(args.batch)}: W {W.shape}, x {x.shape}, {args.dtype}, seed {args.seed}, are in {args.out}\n"


def _count(pairs: int) -> str:
    return "1 pair" if pairs == 1 else f"{pairs} pairs"
