"""The command line: ``sigmoid-l2 info | trace | grad | sample``.

Every command returns the text to print, so that there is one place where standard output can fail.
"""

import argparse
import contextlib
import io
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sigmoid_l2.api import WRT, value_and_grad
from sigmoid_l2.cli.files import InputError, check_output, read_array, read_arrays, write_npz
from sigmoid_l2.dispatch import NAMES, PREFERENCES, BackendUnavailableError, show_config
from sigmoid_l2.explain import example
from sigmoid_l2.explain.check_grad import check_grad
from sigmoid_l2.explain.trace import trace
from sigmoid_l2.problem import Problem, validate
from sigmoid_l2.version import __version__

# Bytes of W between two steps of the progress bar: about 10 ms of work, next to which a call's fixed cost is nothing.
PIECE_BYTES = 32 << 20

# Errors that are not a mistake of this program: they are reported in one line, without a traceback.
_FAILURES = (InputError, BackendUnavailableError, ValueError, TypeError, OSError, MemoryError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's) and return the exit status; raises nothing.

    0: done. 2: wrong usage, bad input, an unavailable backend, a full disk or no memory; one line on standard error
    says which. 130: interrupted by Ctrl-C. 141: standard output was closed by its reader.
    """
    try:
        return _main(argv)
    except KeyboardInterrupt:
        print("sigmoid-l2: interrupted", file=sys.stderr)
        return 130


def _main(argv: Sequence[str] | None) -> int:
    text, status = "", 0
    try:
        args = _parser().parse_args(argv)
        text = args.run(args)
    except SystemExit as stop:  # from argparse, after --help, --version or a usage error that it has explained
        status = int(stop.code or 0)
    except _FAILURES as error:
        return _fail(error)
    try:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), end="", flush=True)
    except OSError as error:
        # What is still in the buffer would fail again, with a traceback, when the interpreter exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141 if isinstance(error, BrokenPipeError) else _fail(error)
    return status


def _fail(error: BaseException) -> int:
    message = str(error)
    if isinstance(error, OSError) and error.strerror:  # without "[Errno 28]"
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif not message:
        message = "out of memory" if isinstance(error, MemoryError) else type(error).__name__
    line = " ".join(line.strip() for line in message.splitlines())
    # Names in a hostile file could contain control sequences for the terminal.
    print("sigmoid-l2: error:", "".join(c if c.isprintable() else repr(c)[1:-1] for c in line), file=sys.stderr)
    return 2


def _info(_: argparse.Namespace) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as text:
        show_config()
    return text.getvalue()


@contextlib.contextmanager
def _errors_name(files: Sequence[str]) -> Iterator[None]:
    """Add the names of the files to an error that the library raises about their arrays."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise InputError(f"{', '.join(files)}: {error}") from error


def _trace(args: argparse.Namespace) -> str:
    if args.files:
        arrays = read_arrays(args.files, optional=("target", "dW", "dx"))
    else:  # the example's gradients were written for no target
        names = ("W", "x", "dW", "dx") if args.target is None else ("W", "x")
        arrays = {name: getattr(example, name) for name in names}
    files = [*args.files, *_read_options(args, arrays, "target")]
    gradients = {name: arrays.pop(name) for name in ("dW", "dx") if name in arrays}
    with _errors_name(files):
        text = f"{trace(**arrays)}\n"
        if gradients:
            text += f"\nthe hand-written gradient, checked:\n{check_grad(**arrays, **gradients)}\n"
    return text


def _read_options(args: argparse.Namespace, arrays: dict[str, Any], *names: str) -> list[str]:
    """Put what the options ``names`` give into ``arrays``; return the names of the files among them."""
    files = []
    for name in names:
        if (given := getattr(args, name)) is not None:
            if isinstance(given, str):
                files.append(given)
                given = read_array(given)
            arrays[name] = given
    return files


def _grad(args: argparse.Namespace) -> str:
    check_output(args.out)
    arrays = read_arrays(args.files, optional=("target", "cotangent"))
    files = [*args.files, *_read_options(args, arrays, "target", "cotangent")]
    if any(args.out.exists() and args.out.samefile(file) for file in files):
        raise InputError(f"{args.out}: is an input too and would be lost; give another name after -o")
    with _errors_name(files):
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


def _sample(args: argparse.Namespace) -> str:
    check_output(args.out)
    m, n = args.shape
    rng = np.random.default_rng(args.seed)
    W = rng.standard_normal((args.batch, m, n), np.dtype(args.dtype))
    x = rng.standard_normal((args.batch, n), np.dtype(args.dtype))
    write_npz(args.out, {"W": W, "x": x})
    return f"{_count(args.batch)}: W {W.shape}, x {x.shape}, {args.dtype}, seed {args.seed}, are in {args.out}\n"


def _count(pairs: int) -> str:
    return "1 pair" if pairs == 1 else f"{pairs} pairs"


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        with contextlib.suppress(ValueError):
            if (number := int(text)) >= least:
                return number
        raise argparse.ArgumentTypeError(f"a whole number of at least {least} is needed, not {text!r}")

    return parse


def _numbers_or_file(text: str) -> Any:
    """Numbers with commas between them as an array; anything else is the name of a file."""
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        return text
    return np.array(numbers if len(numbers) > 1 else numbers[0])


def _wrt(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not set(names) <= set(WRT) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(
            f"one or more of {', '.join(WRT)} are needed, each once, with commas between them, not {text!r}"
        )
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sigmoid-l2",
        description="The loss f(W, x) = ||sigmoid(W x) - y||^2 and its gradients df/dW and df/dx, for one pair or many; "
        "y is 0 without a target.",
        epilog="Start with `sigmoid-l2 trace`, which shows every step on a 3x3 example.",
    )
    parser.add_argument("--version", action="version", version=f"sigmoid-l2 {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], str], help: str, example: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            epilog=f"example:\n  sigmoid-l2 {name} {example}".rstrip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run)
        return command

    def add_out(command: argparse.ArgumentParser, content: str) -> None:
        command.add_argument(
            "-o", "--out", metavar="OUT", type=Path, required=True, help=f"the .npz file to write, with {content}"
        )

    def add_option(command: argparse.ArgumentParser, name: str, purpose: str, shape: str) -> None:
        command.add_argument(
            f"--{name}",
            metavar="NUMBERS|FILE",
            type=_numbers_or_file,
            help=f"{purpose}: a number, or numbers with commas between them, or an .npy file of shape {shape} or what "
            f"broadcasts to it; in place of the array named {name} in an .npz or .json file",
        )

    target = "target", "y in ||sigmoid(W x) - y||^2, 0 if it is not given", "(..., m)"

    inputs = "one .npz or .json file with W and x, or two .npy files, W first: W (..., m, n), x (..., n)"
    more = "an .npz or .json file may also hold"

    add("info", _info, "show the versions in use and which backends can run here", "")

    command = add("trace", _trace, "show every intermediate of the computation, with its shape", "mine.json")
    command.add_argument(
        "files",
        metavar="FILE",
        nargs="*",
        help=f"{inputs}; {more} target, and dW or dx, a gradient of your own, which is checked. "
        "Without a file: a 3x3 example, with a gradient that was written by hand",
    )
    add_option(command, *target)

    command = add("grad", _grad, "compute loss, dW and dx of every pair in a file", "batch.npz -o gradients.npz")
    command.add_argument("files", metavar="IN", nargs="+", help=f"{inputs}; {more} target and cotangent")
    add_out(command, "loss (...), dW and dx of the shapes of W and x, dq (..., m)")
    add_option(command, *target)
    add_option(
        command, "cotangent", "c, 1 if it is not given: the gradients are those of the sum of c times loss", "(...)"
    )
    wrt = "with respect to what gradients are wanted: W, x and q = W x, with commas between them (default: W,x)"
    command.add_argument("--wrt", metavar="NAMES", type=_wrt, default=("W", "x"), help=wrt)
    backends = f"where to compute: {', '.join((*PREFERENCES, *NAMES))} (default: auto)"
    command.add_argument("--backend", metavar="NAME", default="auto", help=backends)

    purpose = "write random pairs, standard normal, to try the other commands on"
    command = add("sample", _sample, purpose, "--batch 1000000 --shape 3 3 -o batch.npz")
    command.add_argument("--batch", metavar="B", type=_at_least(0), required=True, help="the number of pairs")
    command.add_argument(
        "--shape", metavar=("M", "N"), nargs=2, type=_at_least(1), required=True, help="rows and columns of each W"
    )
    add_out(command, "W (B, M, N) and x (B, N)")
    command.add_argument("--dtype", choices=("float32", "float64"), default="float64", help="default: float64")
    command.add_argument(
        "--seed", metavar="S", type=_at_least(0), default=0, help="the same seed gives the same pairs (default: 0)"
    )
    return parser
