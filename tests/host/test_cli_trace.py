"""`sigmoid-l2 trace`: the example, the user's own steps, the exit status, the page, and what it says how to go on."""

import inspect
import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest

import sigmoid_l2 as sl2
from host.test_cli import W, X, error_of, names, run
from sigmoid_l2.cli import main as cli
from sigmoid_l2.cli import trace
from sigmoid_l2.explain import example

pytestmark = pytest.mark.usefixtures("directory")
Y = np.array([0.0, 1.0, 0.25])
STEPS = ("q", "s", "e", "loss", "dloss_ds", "ds_dq", "dloss_dq", "dW", "dx")


def save(name, **arrays):
    if name.endswith(".npz"):
        np.savez(name, **arrays)
    else:
        Path(name).write_text(json.dumps({key: a.tolist() if hasattr(a, "tolist") else a for key, a in arrays.items()}))
    return name


def printed(capsys, *args, status=0):
    assert cli.main(["trace", *args]) == status
    out, err = capsys.readouterr()
    assert err == ""
    assert max(map(len, out.splitlines())) <= 80
    return out


@pytest.fixture
def no_input(monkeypatch):
    """Standard input is closed, wherever the tests are run."""
    monkeypatch.setattr("sys.stdin", None)


@pytest.mark.usefixtures("no_input")
def test_the_example_shows_the_gradients_that_it_judges(capsys):
    out = printed(capsys)
    steps = str(sl2.trace(example.W, example.x))
    check = str(sl2.check_grad(example.W, example.x, dW=example.dW, dx=example.dx))
    title = "The example's dW and dx, checked"
    assert out.startswith(f"The built-in example. For your own numbers see sigmoid-l2 trace --help\n\n{steps}\n")
    assert f"\n\n{title}\n{'-' * len(title)}\nSomebody wrote a program for the W and x above" in out
    assert out.endswith(f"\n\n{check}\n")
    for a in (example.dW, example.dx):
        assert all(str(value) in out for value in a.flat)


def test_files(capsys):
    save("pair.json", about="a pair", W=W[0], x=X[0])
    assert printed(capsys, "pair.json") == f"{sl2.trace(W[0], X[0])}\n"
    np.save("W.npy", W)
    np.save("x.npy", X)
    assert printed(capsys, "W.npy", "x.npy") == f"{sl2.trace(W, X)}\n"


@pytest.mark.parametrize("suffix", ["npz", "json"])
@pytest.mark.parametrize("given", [("dW",), ("dx",), ("dW", "dx")])
def test_gradients_are_checked(capsys, given, suffix):
    wrong = {name: np.full((3, 2), 0.25) for name in given}  # right shape for dW, the classic wrong one for dx
    out = printed(capsys, save(f"mine.{suffix}", W=W[0], x=X[0], **wrong), status=1)
    title = f"Your {' and '.join(given)}, checked"
    these = "These are" if len(given) > 1 else "This is"
    assert f"\n{title}\n{'-' * len(title)}\n{these} in mine.{suffix}, beside W" in out
    assert out.endswith(f"\n\n{sl2.check_grad(W[0], X[0], **wrong)}\n")


@pytest.mark.parametrize("suffix", ["npz", "json"])
@pytest.mark.parametrize("wrong", [None, *STEPS])
def test_every_step_is_checked(capsys, wrong, suffix):
    steps = sl2.trace(W[0], X[0], Y)
    own = {name: getattr(steps, name) for name in STEPS}
    if wrong is not None:
        own[wrong] = own[wrong] + 1
    out = printed(capsys, save(f"mine.{suffix}", W=W[0], x=X[0], target=Y, **own), status=0 if wrong is None else 1)
    title = "Your q, s, e, loss, dloss_ds, ds_dq, dloss_dq, dW and dx, checked"
    assert title in out
    assert out.endswith(f"\n{sl2.check_grad(W[0], X[0], Y, **own)}\n")
    assert [name for name in STEPS if f"\n{name}: WRONG" in out] == [wrong] * (wrong is not None)


def test_whatever_check_grad_takes_is_read():
    keywords = (p.name for p in inspect.signature(sl2.check_grad).parameters.values() if p.kind is p.KEYWORD_ONLY)
    assert trace.STEPS == STEPS == tuple(name for name in keywords if name not in ("rtol", "atol"))


def test_the_target_may_be_called_y(capsys):
    as_y, as_target = save("y.json", W=W[0], x=X[0], y=Y), save("target.json", W=W[0], x=X[0], target=Y)
    assert printed(capsys, as_y) == printed(capsys, as_target) == f"{sl2.trace(W[0], X[0], Y)}\n"
    assert cli.main(["grad", as_y, "-o", "out.npz"]) == 0
    assert "target (3,)" in capsys.readouterr().out
    error = error_of(capsys, "trace", save("both.npz", W=W[0], x=X[0], y=Y, target=Y))
    assert "both.npz: has both target and y, which are two names of the same; leave one out" in error


NAMES = {"dw": "dW", "dL_dW": "dW", "grad_W": "dW", "W.grad": "dW", "DX": "dx", "dloss/dx": "dx", "df_dx": "dx"}
NAMES |= {"dL_ds": "dloss_ds", "dsdq": "ds_dq", "dL/dq": "dloss_dq", "g": "dloss_dq"}
NAMES |= {"Y": "target", "Loss": "loss", "z": "q", "a": "s"}


@pytest.mark.parametrize(("name", "meant"), NAMES.items())
def test_a_name_that_is_nearly_right_is_told(capsys, name, meant):
    arrays = {"W": W[0], "x": X[0], name: X[0]}
    for file in (save("mine.json", **arrays), save("mine.npz", **arrays) if "/" not in name else "mine.json"):
        error = error_of(capsys, "trace", file)
        assert f"{file}: has {name}, which is not read; name it {meant}, or leave it out" in error


def test_other_names_are_left_alone(capsys):
    others = dict.fromkeys(("about", "student", "m", "W0", "learning_rate", "cotangent", "xs", "dwell", ""), "anything")
    file = save("mine.json", **others, W=W[0], x=X[0])
    assert printed(capsys, file) == f"{sl2.trace(W[0], X[0])}\n"
    file = save("mine.json", Dx=X[0], W=W[0], x=X[0], dx=sl2.trace(W[0], X[0]).dx)  # dx is there
    assert "dx: right" in printed(capsys, file)


def test_the_lines_of_the_help_work(capsys):
    assert cli.main(["trace", "--help"]) == 0
    text = capsys.readouterr().out
    assert "exit status is 1" in text
    if os.name != "posix":
        return
    makes = [line for line in text.splitlines() if line.startswith(("  echo ", "  printf "))]
    assert [line.split(" > ")[1] for line in makes] == ["mine.json", "mine.txt"]
    for line in makes:
        subprocess.run(["sh", "-c", line], check=True)
    assert printed(capsys, "mine.json") == printed(capsys, "mine.txt")


@pytest.mark.parametrize("file", ["no.json", "bad.json", "one.npy", "bad.csv", os.devnull])
def test_every_refusal_says_how_to_make_a_file(capsys, file):
    Path("bad.json").write_text('{"W": [[1]')
    Path("bad.csv").write_text("a,b\n")
    np.save("one.npy", X)
    error = error_of(capsys, "trace", file)
    assert error.endswith(f"; to make a file: {trace.MAKE_A_FILE}\n")
    words = shlex.split(trace.MAKE_A_FILE)
    assert (words[0], words[2:]) == ("echo", [">", "mine.json"])
    Path("mine.json").write_text(words[1])
    printed(capsys, "mine.json")


def test_what_it_says_advises_no_call_of_python(capsys):
    """The errors and reports of the library come up through the command line; NumPy's own names may be in them."""
    save("unfit.json", W=W[0], x=[1, 2, 3])
    save("wrong.json", W=W[0], x=X[0], q=Y, s=Y, dW=W[0], dx=[[0.123, 4]])
    np.savez("complex.npz", W=W, x=X, dW=W * 1j)
    texts = [error_of(capsys, "trace", file) for file in ("unfit.json", "complex.npz")]
    texts.append(printed(capsys, "wrong.json", status=1))
    for text in texts:
        assert not re.search(r"sl2|sigmoid_l2|check_grad|print\(|trace\(", text), text


# --- --html ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_input")
@pytest.mark.parametrize("file", [[], ["right.json"], ["wrong.json"], ["plain.json"]])
def test_a_page(capsys, file):
    from sigmoid_l2.explain import html

    steps = sl2.trace(W[0], X[0])
    save("plain.json", W=W[0], x=X[0])
    save("right.json", W=W[0], x=X[0], dW=steps.dW)
    save("wrong.json", W=W[0], x=X[0], dW=-steps.dW)
    Path("page.html").write_text("the page of yesterday")
    status = int(file == ["wrong.json"])
    text = printed(capsys, *file, status=status)
    assert printed(capsys, *file, "--html", "page.html", status=status) == (
        f"{text}\nA page that shows the same as a graph is in page.html\n"
    )
    check = None
    if file != ["plain.json"]:
        check = sl2.check_grad(W[0], X[0], dW=-steps.dW if status else steps.dW)
    if not file:
        steps = sl2.trace(example.W, example.x)
        check = sl2.check_grad(example.W, example.x, dW=example.dW, dx=example.dx)
    assert Path("page.html").read_text(encoding="utf-8") == html.page(steps, check)
    assert names() == ["page.html", "plain.json", "right.json", "wrong.json"]


@pytest.mark.parametrize("name", ["mine.json", "mine", "-", "", "mine.html.npz"])
def test_a_page_is_never_written_over_a_file_of_another_kind(capsys, name):
    file = save("mine.json", W=W[0], x=X[0])
    before = Path(file).read_bytes()
    assert cli.main(["trace", file, "--html", name]) == 2
    assert f"the name of a file that ends in .html is needed, not {name!r}" in capsys.readouterr().err
    assert names() == [file]
    assert Path(file).read_bytes() == before


def test_a_page_that_cannot_be_written(capsys, monkeypatch):
    file = save("mine.html", W=W[0], x=X[0])  # JSON, whatever its name
    assert "mine.html: is an input too and would be lost; give another name after --html" in (
        error_of(capsys, "trace", file, "--html", "./mine.html")
    )
    assert "no/page.html: cannot be written: there is no directory no" in (
        error_of(capsys, "trace", file, "--html", "no/page.html")
    )
    monkeypatch.setattr(trace, "read_arrays", lambda *_, **__: pytest.fail("began to work"))
    error_of(capsys, "trace", file, "--html", "no/page.html")


def test_ctrl_c_while_the_page_is_made(capsys, monkeypatch):
    from sigmoid_l2.explain import html

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(html, "page", interrupted)
    save("mine.json", W=W[0], x=X[0])
    assert cli.main(["trace", "mine.json", "--html", "page.html"]) == 130
    assert capsys.readouterr() == ("", "sigmoid-l2: interrupted\n")
    assert names() == ["mine.json"]


def test_exit_status_from_a_shell():
    save("wrong.json", W=W[0], x=X[0], dW=W[0])
    assert run("trace", "wrong.json").returncode == 1
    assert run("trace").returncode == 0
