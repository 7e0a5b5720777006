"""Fuzz with coverage as the guide: ``python tests/attack/fuzz/run.py call|files [options of libFuzzer]``.

Inputs that reach new code are kept in build/fuzz/call and build/fuzz/files. One that breaks a target ends the run with
an error and is written to build/fuzz/crash-*; ``run.py call build/fuzz/crash-*`` repeats it. Copied to seeds/call, or
added to make_seeds.py, it becomes a test.
"""

import sys
from pathlib import Path

import atheris

sys.path.append(str(Path(__file__).parents[2]))  # where arrays.py, contract.py and oracle.py are
READERS = ["zipfile", "json", "numpy.lib._npyio_impl", "numpy.lib._format_impl"]
# Not the kernels: numba compiles their bytecode, which must be unchanged.
with atheris.instrument_imports(include=["sigmoid_l2", *READERS], exclude=["sigmoid_l2.kernels"]):
    import fuzz_call
    import fuzz_files

TARGETS = {
    "call": (fuzz_call.test_one_input, "-max_len=128"),
    "files": (lambda data: fuzz_files.run(data) and None, "-max_len=3000"),  # to libFuzzer, it must return None
}

target, *options = sys.argv[1:]
test_one_input, longest = TARGETS[target]
found = Path("build/fuzz", target)
found.mkdir(parents=True, exist_ok=True)
repeats = any(Path(option).is_file() for option in options)
folders = [] if repeats else [str(found), str(Path(__file__).parent / "seeds" / target)]
limits = [longest, "-rss_limit_mb=1500", "-timeout=60", "-artifact_prefix=build/fuzz/"]
atheris.Setup([sys.argv[0], *limits, *options, *folders], test_one_input)
atheris.Fuzz()
