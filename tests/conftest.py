"""What all test files share: the backend under test, the dtype it computes in, and how hard hypothesis tries.

The environment variable SIGMOID_L2_TEST_BACKENDS limits the backends (comma separated).
"""

import os
import tempfile

import hypothesis
import numpy as np
import processes
import pytest

from sigmoid_l2 import dispatch
from sigmoid_l2.problem import DTYPES

os.environ.pop(dispatch.DEFAULT_BACKEND.variable, None)  # tests that want a default backend set it

# Derandomized: a run of the suite means the same everywhere. SIGMOID_L2_TEST_RANDOM=1 looks further.
random = os.environ.get("SIGMOID_L2_TEST_RANDOM") == "1"
hypothesis.settings.register_profile(
    "sigmoid-l2",
    derandomize=not random,
    database=None,
    deadline=None,  # the first call of a compiled backend takes seconds
    max_examples=1000 if random else 50,
)
hypothesis.settings.load_profile("sigmoid-l2")


def pytest_configure(config):
    """The first process of a run makes the folder that all of them use, and removes it at the end."""
    if processes.FOLDER not in os.environ:
        folder = tempfile.TemporaryDirectory()
        os.environ[processes.FOLDER] = folder.name
        config.add_cleanup(folder.cleanup)


def _parameters() -> list:
    names = os.environ.get("SIGMOID_L2_TEST_BACKENDS", ",".join(dispatch.NAMES)).split(",")
    unknown = set(names) - set(dispatch.NAMES)
    assert not unknown, f"SIGMOID_L2_TEST_BACKENDS has unknown names: {unknown}"
    return [
        pytest.param(b, id=b.name, marks=[pytest.mark.gpu] * (b.device == "cuda"))
        for b in dispatch.BACKENDS
        if b.name in names
    ]


@pytest.fixture(scope="session", params=_parameters())
def entry(request):
    """Each backend's entry in the dispatcher's table, in turn; skipped with its own reasons where it cannot run."""
    if request.param.reasons():
        pytest.skip(f"{request.param.name}: {'; '.join(request.param.reasons())}")
    return request.param


@pytest.fixture(scope="session")
def backend(entry):
    """Each backend's name, in turn."""
    return entry.name


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """The current directory is one of the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session", params=DTYPES)
def dtype(request):
    """Each dtype in turn."""
    return np.dtype(request.param)
