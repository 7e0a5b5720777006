"""The commands ``info``, ``trace``, ``grad`` and ``sample``.

Each takes its parsed arguments and returns what to print, and the exit status. Inputs are the arrays of the files that
are named, or of standard input, and those of the options --target and --cotangent.
"""

import argparse
import contextlib
import io
import math
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sigmoid_l2.api import value_and_grad
from sigmoid_l2.cli.files import read_array, read_arrays
from sigmoid_l2.cli.source import EmptyInputError, InputError, has_input, is_same_file, name_of
from sigmoid_l2.cli.writing import check_output, write_npz, write_text
from sigmoid_l2.dispatch import show_config
from sigmoid_l2.explain import example
from sigmoid_l2.explain.check_grad import check_grad
from sigmoid_l2.explain.trace import trace as trace_of
from sigmoid_l2.problem import Problem, validate
from sigmoid_l2.results import WRT

# Bytes of W between two steps of the progress bar: about 10 ms of work, next to which a call's fixed cost is nothing.
PIECE_BYTES = 32 << 20


# What a file may hold beside W, x and target: the user's own values of these, which ``trace`` checks.
STEPS = ("q", "s", "e", "loss", "dloss_ds", "ds_dq", "dloss_dq", "dW", "dx")

MAKE_A_FILE = """echo '{"W": [[0.1, 0.5], [-0.3, 0.8]], "x": [0.2, 0.4]}' > mine.json"""

_WIDTH = 80  # columns of what ``trace`` prints

Printed = tuple[str, int]  # the text, and the exit status


def info(_: argparse.Namespace) -> Printed:
    with contextlib.redirect_stdout(io.StringIO()) as text:
        show_config()
    return text.getvalue(), 0


@contextlib.contextmanager
def _errors_name(sources: Sequence[str]) -> Iterator[None]:
    """Add the names of the files and options to an error that the library raises about their arrays."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise InputError(f"{', '.join(sources)}: {error}") from error


def trace(args: argparse.Namespace) -> Printed:
    files = args.files or ["-"] * has_input()
    if args.html is not None:
        _check_output(args.html, "--html", [*files, args.target])
    arrays: dict[str, Any]
    if files:
        arrays = _read_for_trace(files)
    else:  # the example's gradients were written for no target
        names = ("W", "x", "dW", "dx") if args.target is None else ("W", "x")
        arrays = {name: getattr(example, name) for name in names}
    sources = [*map(name_of, files), *_read_options(args, arrays, "target")]
    own = {name: arrays.pop(name) for name in STEPS if name in arrays}
    with _errors_name(sources):
        steps = trace_of(**arrays)
        check = check_grad(**arrays, **own) if own else None
    text = f"{steps}\n" if files else f"{_THE_EXAMPLE}\n\n{steps}\n"
    if check is not None:
        text += f"\n{_heading(sources[0] if files else None, list(own))}\n\n{check}\n"
    if args.html is not None:
        from sigmoid_l2.explain.html import page

        write_text(args.html, page(steps, check))
        text += f"\nA page with the same as a picture is in {args.html}\n"
    return text, int(bool(files) and check is not None and not check)


_THE_EXAMPLE = "The built-in example. For your own numbers see sigmoid-l2 trace --help"


def _read_for_trace(files: Sequence[str]) -> dict[str, Any]:
    try:
        return read_arrays(files, optional=("target", *STEPS))
    except InputError as error:
        example = "; for the example: sigmoid-l2 trace </dev/null" * isinstance(error, EmptyInputError)
        raise InputError(f"{error}{example}; to make a file: {MAKE_A_FILE}") from error


def _heading(file: str | None, names: list[str]) -> str:
    """Whose values are checked, and what is done with them; ``file`` is None for the example."""
    whose = "The example's" if file is None else "Your"
    *others, last = names
    title = f"{whose} {', '.join(others)}{' and ' * bool(others)}{last}, checked"
    if file is None:
        text = (
            "Somebody wrote a program for the W and x above, and these are the dW and dx that it printed. Below is "
            "what its author is told."
        )
    else:
        it, each = ("it", "It") if len(names) == 1 else ("them", "Each")
        text = f"{file} has {it} beside W and x. {each} is compared with the right value, which is shown above."
    return f"{title}\n{'-' * len(title)}\n{textwrap.fill(text, _WIDTH)}"


def _check_output(out: Path, option: str, sources: Sequence[Any]) -> None:
    """Raise what keeps ``out`` from being written; and InputError where it is one of the ``sources``."""
    check_output(out)
    if any(isinstance(source, str) and is_same_file(out, source) for source in sources):
        raise InputError(f"{out}: is an input too and would be lost; give another name after {option}")


def _read_options(args: argparse.Namespace, arrays: dict[str, Any], *names: str) -> list[str]:
    """Put what the options ``names`` give into ``arrays``; return where each comes from: its file, or the option."""
    sources = []
    for name in names:
        if (given := getattr(args, name)) is None:
            continue
        if isinstance(given, str):
            if not Path(given).exists():
                raise InputError(f"--{name}: {given} is neither numbers with commas between them nor a file")
            sources.append(name_of(given))
            given = read_array(given)
        else:
            sources.append(f"--{name}")
        arrays[name] = given
    return sources


def grad(args: argparse.Namespace) -> Printed:
    _check_output(args.out, "-o", [*args.files, args.target, args.cotangent])
    arrays: dict[str, Any] = read_arrays(args.files, optional=("target", "cotangent"))
    sources = [*map(name_of, args.files), *_read_options(args, arrays, "target", "cotangent")]
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
