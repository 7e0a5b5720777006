"""bench/compare.py: the same code is found equally fast, and a commit that is planted to be slow is seen."""

import importlib
import re
import subprocess
import sys
from argparse import Namespace

import numpy as np
import pytest

checkout, compare = map(importlib.import_module, ("checkout", "compare"))
SLOW = "\n\n_value_and_grad = value_and_grad\n\n\ndef value_and_grad(*a, **k):\n    __import__('time').sleep(0.002)\n"
SLOW += "    return _value_and_grad(*a, **k)\n"


@pytest.fixture
def run(monkeypatch, capsys):
    """The exit status, the ratios and what compare has printed for one tiny case, measured for a moment."""
    monkeypatch.setattr(compare, "ROUNDS", 9)
    monkeypatch.setattr(compare, "PAIRS", 1)

    def compared(*options):
        arguments = ["--backend", "numpy", "--shape", "3x2", "--dtype", "float32", "--batch", "7", *options]
        monkeypatch.setattr(sys, "argv", ["compare.py", *arguments])
        with pytest.raises(SystemExit) as end:
            compare.main()
        printed = capsys.readouterr()
        return end.value.code, [float(r) for r in re.findall(r"s \| (\d+\.\d+) \|", printed.out)], printed

    return compared


@pytest.fixture
def planted(monkeypatch):
    """Plant a pause of 2 ms in each call of the package "base" or "here"; the base is this checkout, too."""

    def plant(slow):
        def assemble(packages, root):
            checkout.assemble(packages)
            if packages.parent.name == slow:
                with (packages / "sigmoid_l2" / "api.py").open("a", encoding="utf-8") as api:
                    api.write(SLOW)

        monkeypatch.setattr(compare, "assemble", assemble)
        monkeypatch.setattr(compare, "export", lambda revision, folder: None)
        monkeypatch.setattr(compare, "git", lambda *words: b"planted\n")

    return plant


def test_a_commit_beside_itself(run):
    try:
        checkout.git("archive", "HEAD", *checkout.SOURCES)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("these files are in no git repository")
    status, ratios, printed = run("--base", "HEAD", "--threads", "1", "2", "--least", "0.1")
    assert status == 0
    assert len(ratios) == 2
    for line in ("3x2 float32, B = 7, outputs given, 1 thread ", "3x2 float32, B = 7, outputs given, 2 threads "):
        assert line in printed.out
    assert " 9 |  |" in printed.out


@pytest.mark.parametrize(("slow", "status"), [("here", 1), ("base", 0)])
def test_what_is_planted_to_be_slow_is_seen(run, planted, slow, status):
    planted(slow)
    told, (ratio,), printed = run("--base", "x")
    assert told == status
    assert ratio < 0.5 if slow == "here" else ratio > 2
    assert ("SLOWER" in printed.out) == (slow == "here")


@pytest.mark.parametrize(
    ("options", "status", "told"),
    [
        (("--batch", "0"), 1, "NOT MEASURED: "),
        (("--backend", "cuda"), 2, "cannot run here: there is no backend cuda"),
    ],
)
def test_what_cannot_be_computed_is_told(run, planted, options, status, told):
    planted("nobody")
    got, ratios, printed = run("--base", "x", *options)
    assert (got, ratios) == (status, [])
    assert told in printed.out


def test_a_revision_that_is_not_there(run):
    status, _, printed = run("--base", "no-such-revision")
    assert status == 2
    assert "error: --base no-such-revision: " in printed.err


def test_the_cases_without_options_are_every_class_of_the_cpu_and_small_calls():
    kernels = importlib.import_module("sigmoid_l2.kernels.cpu.launch")
    table = compare.jobs(Namespace(shape=None, dtype=None, batch=None, threads=[0], backend="numba"), "cpu")
    cases = {(job.case.m, job.case.n, np.dtype(job.case.dtype)) for job in table}
    given = importlib.import_module("sigmoid_l2.kernels").Given(target=False, cotangent=False)
    assert {kernels.kernel(*case, given).py_func.__name__ for case in cases} == {"tiny", "tall", "rows"}
    assert {job.given for job in table if job.case.B in (1, 1000)} == {True, False}
    assert {job.case.dtype for job in table} == {"float32", "float64"}
