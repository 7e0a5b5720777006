"""Programs in processes of their own, for what a process has once; and what the processes of a run make once."""

import hashlib
import os
import pickle
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

# The environment variable that names a folder of this run of the tests, for what one of its processes makes for all.
FOLDER = "SIGMOID_L2_TEST_FOLDER"


def run_python(code, *arguments, timeout=300, **environment):
    """What ``code`` prints in a fresh interpreter, which must end well and without a word on standard error.

    Warnings are errors there; PYTHONWARNINGS="ignore" in the ``environment`` changes that.
    """
    variables = os.environ | {"PYTHONWARNINGS": "error"} | {name: str(value) for name, value in environment.items()}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=timeout)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def made_once(make, *key):
    """What ``make()`` returns, from a file where a process of this run of the tests has made it before."""
    if FOLDER not in os.environ:
        return make()
    path = Path(os.environ[FOLDER], hashlib.sha256(repr(key).encode()).hexdigest())
    with suppress(FileNotFoundError):
        return pickle.loads(path.read_bytes())
    made, own = make(), path.with_suffix(f".{os.getpid()}")
    own.write_bytes(pickle.dumps(made))
    own.replace(path)  # in one step: nobody reads a part
    return made
