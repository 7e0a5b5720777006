"""Fuzz with coverage as the guide: ``python tests/attack/fuzz/run.py call|files [options of libFuzzer]``.

The seeds, and inputs that reach new code, are kept in build/fuzz/call and build/fuzz/files. One that breaks a target
ends the run with an error and is written to build/fuzz/crash-*; ``run.py call build/fuzz/crash-*`` repeats it. Copied
to seeds/call, or added to make_seeds.py, it becomes a test.
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
    from make_seeds import BAD, GOOD

CALLS = {path.name: path.read_bytes() for path in Path(__file__).with_name("seeds").glob("call/*")}
TARGETS = {
    "call": (fuzz_call.test_one_input, CALLS, "-max_len=128"),
    "files": (lambda data: fuzz_files.run(data) and None, GOOD | BAD, "-max_len=3000"),  # libFuzzer takes no True
}

target, *options = sys.argv[1:]
test_one_input, seeds, longest = TARGETS[target]
found = Path("build/fuzz", target)
found.mkdir(parents=True, exist_ok=True)
for name, content in seeds.items():
    (found / name).write_bytes(content)
folders = [] if any(Path(option).is_file() for option in options) else [str(found)]
limits = [longest, "-rss_limit_mb=1500", "-timeout=60", "-artifact_prefix=build/fuzz/"]
atheris.Setup([sys.argv[0], *limits, *options, *folders], test_one_input)
atheris.Fuzz()
