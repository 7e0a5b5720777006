"""Python programs in processes of their own, for what a process has once: imports, limits, signals, its end."""

import os
import subprocess
import sys


def run_python(code, *arguments, timeout=300, **environment):
    """What ``code`` prints in a fresh interpreter, which must end well and without a word on standard error.

    Warnings are errors there; PYTHONWARNINGS="ignore" in the ``environment`` changes that.
    """
    variables = os.environ | {"PYTHONWARNINGS": "error"} | {name: str(value) for name, value in environment.items()}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=timeout)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
