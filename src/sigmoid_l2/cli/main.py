"""The command line: ``sigmoid-l2 info | trace | grad | sample``.

Every command returns the text to print and the exit status, so that there is one place where standard output can fail.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sigmoid_l2.cli import commands
from sigmoid_l2.cli.arguments import Printed, at_least, html_file, numbers_or_file, wrt_names
from sigmoid_l2.cli.source import InputError
from sigmoid_l2.cli.trace import MAKE_A_FILE, trace
from sigmoid_l2.dispatch import NAMES, PREFERENCES, BackendUnavailableError
from sigmoid_l2.version import __version__

# Errors that are not a mistake of this program: they are reported in one line, without a traceback.
_FAILURES = (InputError, BackendUnavailableError, ValueError, TypeError, OSError, MemoryError)


_MORE_OF_TRACE = rf"""

A file to begin with, to which you add dW, dx and steps of your own:
  {MAKE_A_FILE}
The same W and x as text:
  printf '0.1 0.5\n-0.3 0.8\n0.2 0.4\n' > mine.txt
What a program prints:
  python mine.py | sigmoid-l2 trace

The exit status is 1 where something of your own is wrong, 2 after an error,
and else 0."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's) and return the exit status; raises nothing.

    0: done. 1: ``trace`` found something wrong in the gradients or steps of the user's own that the input holds; those
    of the built-in example do not count. 2: wrong usage, bad input, an unavailable backend, a full disk or no memory;
    one line on standard error says which. 130: interrupted by Ctrl-C. 141: standard output was closed by its reader.
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
        text, status = args.run(args)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sigmoid-l2",
        description="The loss f(W, x) = ||sigmoid(W x) - y||^2 and its gradients df/dW and df/dx for one pair or many. "
        "The target y is 0 by default.",
        epilog="Start with `sigmoid-l2 trace`, which shows every step on a 3x3 example.",
    )
    parser.add_argument("--version", action="version", version=f"sigmoid-l2 {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, run: Callable[[argparse.Namespace], Printed], help: str, example: str, more: str = ""
    ) -> argparse.ArgumentParser:
        command = subparsers.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            epilog=f"example:\n  sigmoid-l2 {name} {example}".rstrip() + more,
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
            metavar="VALUES",
            type=numbers_or_file,
            help=f"{purpose}: a number for all, or numbers with commas between them, or an .npy file; of shape {shape} "
            f"or what broadcasts to it. Used instead of {name} in an .npz or .json file",
        )

    target = (
        "target",
        "y of ||sigmoid(W x) - y||^2, by default 0 (--target=-1,0 where the first is negative)",
        "(..., m)",
    )
    cotangent = "cotangent", "c, by default 1: the gradients are those of the sum of c times loss", "(...)"

    inputs = (
        "one .npz or .json file with W (..., m, n) and x (..., n); or two .npy files, W first; or one text of lines of "
        "numbers: each line is a row of W, and the last line is x. For standard input write -. An .npz or .json "
        "file may also hold"
    )

    add("info", commands.info, "show the versions in use and which backends can run here", "")

    purpose = "show every step with its shape, and check gradients of your own"
    command = add("trace", trace, purpose, "mine.json --html mine.html", _MORE_OF_TRACE)
    command.add_argument(
        "files",
        metavar="FILE",
        nargs="*",
        help=f"{inputs} target (or y), and dW, dx or any step of your own (q, s, e, loss, dloss_ds, ds_dq, dloss_dq): "
        "these are checked. Without FILE: standard input where it is a pipe or a file, else a built-in example",
    )
    add_option(command, *target)
    command.add_argument(
        "--html",
        metavar="HTML",
        type=html_file,
        help="also write a page that shows the same as a graph; ends in .html",
    )

    purpose = "compute loss, dW and dx of every pair in a file"
    command = add("grad", commands.grad, purpose, "batch.npz -o gradients.npz")
    command.add_argument("files", metavar="IN", nargs="+", help=f"{inputs} target (or y) and cotangent")
    add_out(command, "loss (...), and dW and dx of the shapes of W and x, or those of --wrt; dq is (..., m)")
    add_option(command, *target)
    add_option(command, *cotangent)
    wrt = "what the gradients are with respect to: some of W, x and q = W x, with commas between them (default: W,x)"
    command.add_argument("--wrt", metavar="NAMES", type=wrt_names, default=("W", "x"), help=wrt)
    backends = f"where to compute: {', '.join((*PREFERENCES, *NAMES))} (default: auto)"
    command.add_argument("--backend", metavar="NAME", default="auto", help=backends)

    purpose = "write random pairs, standard normal, to try the other commands on"
    command = add("sample", commands.sample, purpose, "--batch 1000000 --shape 3 3 -o batch.npz")
    command.add_argument("--batch", metavar="B", type=at_least(0), required=True, help="the number of pairs")
    command.add_argument(
        "--shape", metavar=("M", "N"), nargs=2, type=at_least(1), required=True, help="rows and columns of each W"
    )
    add_out(command, "W (B, M, N) and x (B, N)")
    command.add_argument("--dtype", choices=("float32", "float64"), default="float64", help="default: float64")
    command.add_argument(
        "--seed", metavar="S", type=at_least(0), default=0, help="the same seed gives the same pairs (default: 0)"
    )
    return parser
