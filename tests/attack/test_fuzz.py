"""The fuzz targets on their seeds, without a fuzzer (`make fuzz` goes on), and the memory that hostile files take."""

import json
from pathlib import Path

import pytest
from processes import run_python

from attack.fuzz import fuzz_call, fuzz_files
from attack.fuzz.make_seeds import BAD, GOOD, announced, bomb
from attack.test_faults_files import IN_USE, has_in_use


@pytest.mark.parametrize("name", [*GOOD, *BAD])
def test_files(name):
    assert fuzz_files.run((GOOD | BAD)[name]) == (name in GOOD)


def test_calls():
    seeds = sorted((Path(__file__).parent / "fuzz" / "seeds" / "call").iterdir())
    assert len(seeds) > 20
    for seed in seeds:
        fuzz_call.test_one_input(seed.read_bytes())


READ = """
from sigmoid_l2.cli.files import read_arrays
from sigmoid_l2.cli.source import InputError
resource.setrlimit(resource.RLIMIT_AS, (in_use() + (200 << 20),) * 2)
for path in sys.argv[1:]:
    try:
        read_arrays([path, path] if path.endswith(".npy") else [path])
    except InputError as error:
        print(error)
"""


@has_in_use
def test_hostile_files_take_no_memory(tmp_path):
    """200 MiB beyond Python and NumPy are enough to refuse files that would take gigabytes."""
    hostile = BAD | {"zeros.npz": bomb(announced(f"({2**29}, 1, 1)"), b"\0", 1 << 32)}
    hostile["header.npz"] = bomb(b"\x93NUMPY\x02\0\xff\xff\xff\xff", b" ", 0xFF << 24)
    hostile["large-word.json"] = json.dumps({"W": [["1" * 10**6, *[1] * 10**4]], "x": [1]}).encode()
    for name, content in hostile.items():
        (tmp_path / name).write_bytes(content)
    lines = run_python(IN_USE + READ, *(tmp_path / name for name in sorted(hostile))).splitlines()
    assert [Path(line.split(":")[0]).name for line in lines] == sorted(hostile)
    assert not [line for line in lines if "allocate" in line or "emory" in line]
