"""The command ``trace``: every step, the user's own values checked, and what to do where there is nothing to read."""

import argparse
import textwrap
from collections.abc import Sequence
from typing import Any

from sigmoid_l2.cli.arguments import Printed, check_out, errors_name, read_options
from sigmoid_l2.cli.files import read_arrays
from sigmoid_l2.cli.source import EmptyInputError, InputError, has_input, name_of
from sigmoid_l2.cli.writing import write_text
from sigmoid_l2.explain import example, html
from sigmoid_l2.explain.check_grad import check_grad
from sigmoid_l2.explain.trace import trace as trace_of

# What a file may hold beside W, x and target: the user's own values of these, which ``trace`` checks.
STEPS = ("q", "s", "e", "loss", "dloss_ds", "ds_dq", "dloss_dq", "dW", "dx")

MAKE_A_FILE = """echo '{"W": [[0.1, 0.5], [-0.3, 0.8]], "x": [0.2, 0.4]}' > mine.json"""

_WIDTH = 80  # columns of what ``trace`` prints

_THE_EXAMPLE = "The built-in example. For your own numbers see sigmoid-l2 trace --help"


def trace(args: argparse.Namespace) -> Printed:
    files = args.files or ["-"] * has_input()
    if args.html is not None:
        check_out(args.html, "--html", [*files, args.target])
    arrays: dict[str, Any]
    if files:
        arrays = _read_for_trace(files)
    else:  # the example's gradients were written for no target
        names = ("W", "x", "dW", "dx") if args.target is None else ("W", "x")
        arrays = {name: getattr(example, name) for name in names}
    sources = [*map(name_of, files), *read_options(args, arrays, "target")]
    own = {name: arrays.pop(name) for name in STEPS if name in arrays}
    with errors_name(sources):
        steps = trace_of(**arrays)
        check = check_grad(**arrays, **own) if own else None
    text = f"{steps}\n" if files else f"{_THE_EXAMPLE}\n\n{steps}\n"
    if check is not None:
        text += f"\n{_heading(sources[0] if files else None, list(own))}\n\n{check}\n"
    if args.html is not None:
        write_text(args.html, html.page(steps, check))
        text += f"\nA page that shows the same as a graph is in {args.html}\n"
    return text, int(bool(files) and check is not None and not check)


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
        these, each = ("This is", "It") if len(names) == 1 else ("These are", "Each")
        text = f"{these} in {file}, beside W and x. {each} is compared with the right value, which is shown above."
    return f"{title}\n{'-' * len(title)}\n{textwrap.fill(text, _WIDTH)}"
