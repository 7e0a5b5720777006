"""The programs of examples/, each run as a user runs it, and what they print."""

import re
import runpy
from pathlib import Path

import fake_cupy
import numpy as np
import pytest
from processes import run_python

EXAMPLES = Path(__file__).parents[2] / "examples"
# What each program prints, as regular expressions; between two of them may be anything.
PRINTED = {
    "learner": (
        r"df/dx came out as \(3, 3\)",
        r"dx: WRONG",
        r"wrong shape \(3, 3\) instead of \(3, 1\)",
        r"write dx = W\.T\s+@ g",
        r"applied twice",
        r"rounded to 3 digits",
        r"dW: right\ndx: right\n",
        r"dx = Wᵀ g .* \(n, 1\) = \(3, 1\)\n",
    ),
    "batch": (
        r"dW +\(1000000, 3, 3\) +float32\n",
        r"1,000,000 pairs in \d+ ms; mean loss 0\.97\d\d, of at most 3\n",
        r"dx of pair 7: +\[ 0\.3245\d+ +0\.3620\d+ +-0\.162\d+ *\]\n",
        r"by central differences: +\[ 0\.3245\d+ +0\.3620\d+ +-0\.162\d+ *\]\n",
        r"after 10 steps of gradient descent: 0\.13\d\d\n",
    ),
    "fit": (
        r"10,000 models of 4x6, 4 samples each",
        r"\n +0 +0\.01% +2\.009850 +0\.01% +2\.009850\n",  # ours, and the textbook's
        r"\n +60 +9\d\.\d\d% +0\.00\d+ +0\.01% +2\.009850\n",
        r"\n +120 +100\.00% +0\.00000\d +0\.01% +2\.009850\n$",
    ),
    "given_outputs": (
        r"new arrays, in new memory .* ms a call, +52\.0 MB allocated",
        r"out= .* ms a call, +0\.0 MB allocated",
        r"arrays that were given: True\n",
        r"Refused .* dW shares memory with W",
    ),
    "gpu_arrays": (
        r"CuPy arrays",
        r'backend="gpu": the loss is a .* mean 0\.97\d\d\n',
        r'backend="cupy": ',
        r'backend="numba-cuda": ',
    ),
    "jax_training": (
        r"A layer of 3x6 and 2,000 samples",
        r"\n +0 +50\.38% +1\.488500 +50\.38% +1\.488500\n",  # ours, and that of the formula in jax.numpy
        r"\n +80 +100\.00% +0\.0000\d\d +50\.38% +1\.488500\n$",
    ),
    "torch_training": (
        r"\n +0 +50\.6% +1\.978000 +1\.1e-10 +50\.6% +1\.978000 +0\n",  # ours, and that of autograd
        r"\n +200 +100\.0% +0\.0000\d\d +\S+ +50\.6% +1\.978000 +0\n$",
    ),
    "threads": (
        r"(set_num_threads\(\d+\): .* ms a call, same bits: True\n)+64 calls from 8 threads, .* same bits: True\n",
    ),
}

NEEDS = {"jax_training": "jax", "torch_training": "torch"}  # what is skipped where a package is missing


def assert_printed(text, patterns):
    assert re.search(".*?".join(f"(?:{pattern})" for pattern in patterns), text, re.DOTALL), text


def test_every_example_is_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(PRINTED)


@pytest.mark.parametrize("name", PRINTED)
def test_example(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    assert_printed(run_python((EXAMPLES / f"{name}.py").read_text(encoding="utf-8")), PRINTED[name])


def test_the_picture_of_the_fit(monkeypatch, tmp_path):
    """And that the textbook's gradient is 0 all the time."""
    pytest.importorskip("matplotlib").use("Agg")
    monkeypatch.setattr("sys.argv", ["fit.py", str(tmp_path / "fit.png")])
    names = runpy.run_path(str(EXAMPLES / "fit.py"))
    assert (tmp_path / "fit.png").read_bytes().startswith(b"\x89PNG")
    start = np.zeros_like(names["dW"])
    start[..., -1] = 25
    assert not names["textbook"](start).any()
    assert (names["ours"](start) != 0).any(axis=(-2, -1)).mean() > 0.99


def test_gpu_arrays_where_there_is_a_gpu(monkeypatch, capsys):
    fake_cupy.install(monkeypatch)
    runpy.run_path(str(EXAMPLES / "gpu_arrays.py"))
    printed = capsys.readouterr().out
    assert_printed(
        printed, [r"CuPy arrays: the loss is a .*ndarray.* on .*Device 0.*, mean 0\.97", r'"gpu": .*numpy\.']
    )
    assert_printed(printed, [r'"cupy": mean 0\.97', r'"numba-cuda": mean 0\.97'])
