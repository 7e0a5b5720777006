"""numba-cuda's host code on a driver without a GPU: end_to_end.py, in a process that has loaded no other driver."""

import subprocess
import sys
from pathlib import Path

import pytest

from gpu import driver


def test_end_to_end():
    pytest.importorskip("numba_cuda", exc_type=ImportError)
    if driver.compiler() is None:
        pytest.skip("there is no C compiler for tests/gpu/driver.c: none in CC, nor cc, gcc or clang")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", Path(__file__).with_name("end_to_end.py")]
    child = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert child.returncode == 0, child.stdout + child.stderr
