"""Both GPU kernels beside a device-to-device copy of the same bytes; the time of a small call; the promises of `out`.

python bench/bench_gpu.py [-o FILE.json]

Prints the tables of ``gpu_report`` and exits with 1 if a target is missed, with 2 where no GPU is. ``gpu_peers`` adds
the peers to the same file.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path

from gpu_calls import promises, small
from gpu_measure import Arrays, Copy, bytes_of_W, device_times, pairs, require_gpu
from gpu_report import COPY, report
from gpu_results import new_results, one_line, results_path, row, write
from measure import Case
from rows import Row

# W: the shapes of the CPU's table, one huge pair, and rows too long for the registers of a block. 3x3 comes first.
SQUARES = tuple((k, k) for k in (1, 2, 3, 4, 8, 16, 32, 64, 256))
OF_CPU = (*SQUARES, (2, 5), (5, 3), (10, 784), (784, 10))
SHAPES = (*sorted(OF_CPU, key=lambda shape: (shape != (3, 3), prod(shape))), (8192, 8192), (4, 20000))
DTYPES = ("float32", "float64")
ROUNDS = 21


def shapes(backends: list[str]) -> Iterator[list[Row]]:
    """Every shape and dtype, beside the copy; a case that fails gets rows with the reason."""
    size = bytes_of_W()
    for m, n in SHAPES:
        for dtype in DTYPES:
            case = Case("gpu", dtype, m, n, pairs(m, n, dtype, size))
            print(f"shapes: {case}", file=sys.stderr)
            try:
                yield with_copy(case, backends)
            except Exception as error:  # too little memory, say
                yield [row("shapes", backend, case) | {"reason": one_line(error)} for backend in backends]


def with_copy(case: Case, backends: list[str]) -> list[Row]:
    """The copy and the backends on one case, in turn; a backend that fails gets a row with the reason."""
    import cupy

    cupy.get_default_memory_pool().free_all_blocks()
    arrays, copy = Arrays(case), Copy(case)
    runs: dict[str, Callable[[], object]] = {COPY: copy}
    rows = []
    for backend in backends:
        try:
            runs[backend] = arrays.call(backend)
        except Exception as error:  # one kernel that does not compile or is wrong: the others are measured
            rows.append(row("shapes", backend, case) | {"reason": one_line(error)})
    times = device_times(runs, copy, ROUNDS)
    for name, own in times.items():
        speed = {"gb_per_s": case.traffic / own["median"] / 1e9}
        if name != COPY:
            speed["fraction_of_copy"] = times[COPY]["median"] / own["median"]
        rows.append(row("shapes", name, case) | own | speed)
    return rows


def main() -> None:
    """Measure, write, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", type=Path, metavar="FILE", help="default: bench/results/<date>-<gpu>.json")
    args = parser.parse_args()

    backends = require_gpu()
    path = args.o or results_path()
    results = new_results()
    for part in (small, promises, shapes):
        for rows in part(backends):
            results["rows"] += rows
            write(results, path)  # what is measured stays, whatever happens later
    sys.exit(not report(path))


if __name__ == "__main__":
    main()
