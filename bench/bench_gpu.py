"""Both GPU kernels beside a device-to-device copy of the same bytes; the promises of `out`; the time of a small call.

python bench/bench_gpu.py [shapes] [promises] [small] [--out DIR] [--backend NAME...] [--share K/N] [--in-turn]

Compiles what it needs, measures, prints the tables of ``gpu_report``, and exits with 1 if a target is missed, with 2
where no GPU is. ``gpu_peers`` adds the peers to the same file.
"""

import sys
from collections.abc import Callable, Iterator
from math import prod

from gpu_calls import PROMISES, SMALL, promises, small
from gpu_measure import BACKENDS, Arrays, Copy, bytes_of_W, compile_kernels, device_times, pairs, require_gpu
from gpu_report import COPY, report
from gpu_results import add, one_line, options, results_path, row, wait_for_turn
from measure import Case
from rows import Row

# W: the shapes of the CPU's table, one huge pair, and rows too long for the registers of a block. 3x3 comes first.
SQUARES = tuple((k, k) for k in (1, 2, 3, 4, 8, 16, 32, 64, 256))
OF_CPU = (*SQUARES, (2, 5), (5, 3), (10, 784), (784, 10))
SHAPES = (*sorted(OF_CPU, key=lambda shape: (shape != (3, 3), prod(shape))), (8192, 8192), (4, 20000))
DTYPES = ("float32", "float64")
ROUNDS = 21


def all_shapes() -> list[Case]:
    """Every shape and dtype."""
    size = bytes_of_W()
    return [Case("gpu", dtype, m, n, pairs(m, n, dtype, size)) for m, n in SHAPES for dtype in DTYPES]


def shapes(cases: list[Case], backends: list[str]) -> Iterator[list[Row]]:
    """Each case beside the copy; one that fails gets rows with the reason."""
    for case in cases:
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


PARTS: dict[str, tuple[Callable[[], list[Case]], Callable[[list[Case], list[str]], Iterator[list[Row]]]]] = {
    "shapes": (all_shapes, shapes),
    "promises": (lambda: PROMISES, promises),
    "small": (lambda: SMALL, small),
}


def main() -> None:
    """Compile, measure, write, report."""
    parser = options(__doc__, BACKENDS)
    parser.add_argument("part", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    args = parser.parse_args()
    if unknown := set(args.part) - set(PARTS):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(PARTS)}")

    backends = require_gpu(args.backend)
    path = results_path(args.out)
    cases = {part: PARTS[part][0]()[args.share] for part in args.part or PARTS}
    compile_kernels([case for own in cases.values() for case in own], backends)
    if args.in_turn:
        wait_for_turn()
    failed = False
    for part, own in cases.items():
        for rows in PARTS[part][1](own, backends):
            add(rows, path)  # what is measured stays, whatever happens later
            failed |= any("reason" in row for row in rows)
    sys.exit(failed if args.in_turn else not report(path))


if __name__ == "__main__":
    main()
