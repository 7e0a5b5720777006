"""--target, --cotangent and --wrt: what they take, what they give, and that their errors are one line."""

import json
from pathlib import Path

import numpy as np
import pytest
from arrays import pairs

import sigmoid_l2 as sl2
from host.test_cli import W, X, error_of, load, names, run
from sigmoid_l2.cli import commands, trace
from sigmoid_l2.cli import main as cli
from sigmoid_l2.explain import example

pytestmark = pytest.mark.usefixtures("directory")
Y, C = np.array([0.0, 1.0, 0.25]), np.array([1.0, -2.0, 0.5, 3.0])


def as_option(name, how, a):
    """The option that gives ``a`` as numbers or as an .npy file."""
    if how == "numbers":
        return [f"--{name}=" + ",".join(map(str, np.atleast_1d(a).tolist()))]
    np.save(f"{name}.npy", a)
    return [f"--{name}", f"{name}.npy"]


@pytest.mark.parametrize("how", ["numbers", "npy"])
@pytest.mark.parametrize("y", [1.0, 0.0, Y], ids=["1", "0", "three"])
def test_trace_with_a_target(capsys, how, y):
    np.savez("in.npz", W=W, x=X)
    assert cli.main(["trace", "in.npz", *as_option("target", how, y)]) == 0
    assert capsys.readouterr().out == f"{sl2.trace(W, X, y)}\n"


@pytest.mark.parametrize("suffix", ["npz", "json"])
def test_a_file_holds_a_target_and_gradients_to_check(capsys, suffix):
    dW = sl2.grad(W[0], X[0], Y, backend="numpy").dW
    arrays = {"W": W[0], "x": X[0], "target": Y, "dW": -dW}
    if suffix == "npz":
        np.savez("mine.npz", **arrays)
    else:
        Path("mine.json").write_text(json.dumps({name: a.tolist() for name, a in arrays.items()}))
    assert cli.main(["trace", f"mine.{suffix}"]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith(str(sl2.trace(W[0], X[0], Y)))
    assert str(sl2.check_grad(W[0], X[0], Y, dW=-dW)) in printed
    assert cli.main(["trace", f"mine.{suffix}", "--target", "1"]) == 1  # used instead of the one in the file
    assert capsys.readouterr().out.startswith(str(sl2.trace(W[0], X[0], 1)))


def test_the_example_with_a_target_has_no_handwritten_gradient(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)  # closed
    assert cli.main(["trace", "--target", "1,0,1"]) == 0
    assert capsys.readouterr().out == f"{trace._THE_EXAMPLE}\n\n{sl2.trace(example.W, example.x, [1, 0, 1])}\n"


@pytest.mark.parametrize("wrt", ["W,x", "x", "q,x", "q", "x,W,q"])
@pytest.mark.parametrize("shape", [(3, 2), (0, 3, 2), (7, 3, 2), (5, 2, 3, 2)])
@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_grad_is_value_and_grad(capsys, monkeypatch, wrt, shape, column, dtype):
    monkeypatch.setattr(commands, "PIECE_BYTES", 100)  # pieces of one to four pairs
    a, b = pairs(shape[:-2], 3, 2, dtype)
    b = b[..., None] if column else b
    y, c = np.float64(pairs((*shape[:-2],), 1, 3)[1]), np.float64(pairs((), 1, 1)[0].item())
    np.savez("in.npz", W=a, x=b, target=y, cotangent=c)
    assert cli.main(["grad", "in.npz", "-o", "out.npz", "--backend", "numpy", "--wrt", wrt]) == 0
    expected = sl2.value_and_grad(a, b, y, cotangent=c, wrt=tuple(wrt.split(",")), backend="numpy")._asdict()
    results = load("out.npz")
    assert list(results) == ["loss", *(f"d{name}" for name in wrt.split(","))]
    for name, result in results.items():
        assert (result.dtype, result.shape) == (dtype, expected[name].shape), name
        assert result.tobytes() == np.asarray(expected[name]).tobytes(), name
    out = capsys.readouterr().out
    for word in (f"target {y.shape}", "cotangent ()", "loss", *(f"d{name}" for name in wrt.split(","))):
        assert word in out
    assert ("dW" in out) == ("W" in wrt)


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize(
    ("W_batch", "x_batch", "target"),
    [
        ((7,), (7,), (1, 3)),
        ((7,), (7,), (7, 1)),  # in pieces of three pairs these must not be taken for a column
        ((7,), (7,), (5, 7, 3)),
        ((), (7,), (3,)),
        ((7,), (), ()),
        ((4, 1), (4, 3), (3, 3)),
    ],
)
def test_what_is_shared(monkeypatch, W_batch, x_batch, target, column):
    monkeypatch.setattr(commands, "PIECE_BYTES", 3 * 3 * 2 * 8)
    (a, _), (_, b) = pairs(W_batch, 3, 2), pairs(x_batch, 3, 2)
    b = b[..., None] if column else b
    y = np.random.default_rng(0).random(target)
    np.save("W.npy", a)
    np.save("x.npy", b)
    np.save("y.npy", y)
    assert cli.main(["grad", "W.npy", "x.npy", "-o", "out.npz", "--target", "y.npy", "--wrt", "W,x,q"]) == 0
    expected = sl2.value_and_grad(a, b, y, wrt=("W", "x", "q"))._asdict()
    for name, result in load("out.npz").items():
        assert result.shape == expected[name].shape, name
        np.testing.assert_allclose(result, expected[name], rtol=1e-13, atol=1e-15, err_msg=name)


@pytest.mark.parametrize("how", ["numbers", "npy"])
def test_a_cotangent_multiplies_the_gradients_alone(how):
    np.savez("in.npz", W=W, x=X, cotangent=np.zeros(4))  # the option is used instead
    assert cli.main(["grad", "in.npz", "-o", "out.npz", "--target", "1", *as_option("cotangent", how, C)]) == 0
    expected = sl2.value_and_grad(W, X, 1)
    results = load("out.npz")
    np.testing.assert_allclose(results["loss"], expected.loss, rtol=1e-14)
    np.testing.assert_allclose(results["dx"], C[:, None] * expected.dx, rtol=1e-14)


def test_from_a_shell():
    np.savez("in.npz", W=W, x=X)
    done = run("grad", "in.npz", "-o", "out.npz", "--target", "0,1,0.25", "--wrt", "q,x")
    assert (done.returncode, done.stderr) == (0, "")
    assert "target (3,)" in done.stdout
    assert done.stdout.endswith("; loss, dq and dx are in out.npz\n")
    np.testing.assert_array_equal(load("out.npz")["dq"], sl2.grad(W, X, Y, wrt="q"))
    done = run("trace", "in.npz", "--target", "2,3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("sigmoid-l2: error: in.npz, --target: for this W, target must have shape (..., 3)")


BAD = {
    "neither": ("1,x", "--target: 1,x is neither numbers with commas between them nor a file"),
    "no file": ("no.npy", "--target: no.npy is neither numbers with commas between them nor a file"),
    "nothing": ("", "is a directory, not a file"),
    "a folder": (".", ".: is a directory, not a file"),
    "two of three": ("1,0", "in.npz, --target: for this W, target must have shape (..., 3)"),
    "of x's length": ("x.npy", "in.npz, x.npy: for this W, target must have shape (..., 3)"),
    "complex": ("complex.npy", "in.npz, complex.npy: target has dtype complex128"),
    "objects": ("objects.npy", "objects.npy: damaged or unsupported .npy file: it holds Python objects"),
    "npz": ("in.npz", "in.npz: numbers or an .npy file are needed here, not .npz"),
    "json": ("y.json", "y.json: numbers or an .npy file are needed here, not .json"),
    "text": ("y.csv", "y.csv: numbers or an .npy file are needed here, not text"),
}


@pytest.mark.parametrize("command", ["grad", "trace"])
@pytest.mark.parametrize(("given", "words"), BAD.values(), ids=BAD)
def test_bad_targets(capsys, command, given, words):
    np.savez("in.npz", W=W, x=X)
    np.save("x.npy", X)
    np.save("complex.npy", Y + 1j)
    np.save("objects.npy", np.array([None]), allow_pickle=True)
    Path("y.json").write_text("[0, 1, 1]")
    Path("y.csv").write_text("0,1,1")
    error = error_of(capsys, command, "in.npz", "--target", given, *["-o", "out.npz"] * (command == "grad"))
    assert words in error


def test_bad_cotangent_and_out(capsys):
    np.savez("in.npz", W=W, x=X)
    np.save("c.npy", C)
    assert "in.npz, --cotangent: cotangent" in error_of(capsys, "grad", "in.npz", "-o", "o.npz", "--cotangent", "1,2")
    before = Path("c.npy").read_bytes()
    assert "c.npy: is an input" in error_of(capsys, "grad", "in.npz", "-o", "c.npy", "--cotangent", "c.npy")
    assert Path("c.npy").read_bytes() == before


@pytest.mark.parametrize("wrt", ["y", "W,,x", "", "x,x", "w", "dW", "W, x"])
def test_wrt_usage_errors(capsys, wrt):
    np.savez("in.npz", W=W, x=X)
    assert cli.main(["grad", "in.npz", "-o", "out.npz", "--wrt", wrt]) == 2
    assert f"argument --wrt: some of W, x and q are needed, each once, with commas between them, not {wrt!r}" in (
        capsys.readouterr().err
    )
    assert names() == ["in.npz"]
