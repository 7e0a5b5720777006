"""Both GPU kernels beside a device-to-device copy of the same bytes; the promises of `out`; small calls; the peers.

python bench/bench_gpu.py [PART...] [--out DIR] [--backend NAME...] [--share K/N] [--in-turn]

Parts: shapes, few (few pairs, of which each is large), shared (one W for many x), wanted (a target, fewer outputs),
promises, small, peers. Without one it does all but peers.
Compiles what it needs, measures, adds to the results of the day, prints the tables of ``report``, and exits with 1 if a
target is missed, with 2 where no GPU is. The shapes and few pairs are timed by the device's clock. All peers are timed
alike: the wall time of a call and of the wait until the device is done. What is not installed or fails gets a row with
the reason.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import wanted
import workload
from copies import Copy
from gpu_calls import PROMISES, SMALL, promises, small
from gpu_steps import COMPILED
from measure import GIVEN, Contender, DeviceTurn, HostTurn, Key, contenders, rows
from peers import PEERS, of_backend
from report import report
from results import COPY, RESULTS, Row, add, gpu_machine, one_line, results_path, row
from shared import SharedCase, work_of
from workload import Case, Run, Workload, finished

import sigmoid_l2 as sl2

BACKENDS = ("cupy", "numba-cuda")
DTYPES = ("float32", "float64")
# W beside the copy: squares and others of every class, one huge pair, and rows too long for the registers of a block.
SHAPES = ((3, 3), (1, 1), (2, 2), (2, 5), (5, 3), (4, 4), (8, 8), (16, 16), (32, 32), (64, 64), (10, 784), (784, 10))
SHAPES += ((256, 256), (8192, 8192), (4, 10000), (4, 20000), (4, 30000))
# m, n and B of few pairs. In the time that a launch takes, the chip moves as much as several of these have.
FEW_PAIRS = ((1000, 1000, 1), (1000, 1000, 10), (256, 256, 100))
# W of many x, and the bytes of x in those of W beside the copy: less, because a host adds up dW to compare.
SHARED_SHAPES, SHARED_PART = ((3, 3), (8, 8), (10, 784), (256, 256)), 1 / 2
ROUNDS = 21
# Bytes of W beside the copy, in units of the L2, so that a call finds none of its data in the cache; and at least.
TIMES_L2, LEAST_BYTES_OF_W = 8, 400 * 10**6
# Arrays of a case in units of W, at most: at 1x1 W, x, loss, dW, dx and the two of the copy.
ARRAYS = 8
# Pairs, at most, of a call whose purpose is to compile its kernels.
TO_COMPILE = 64

# W beside the peers: 3x3 is judged, the others are reported.
PEER_SHAPES = ((3, 3), (8, 8), (64, 64))
# Bytes of W beside the peers, and fraction of the GPU's memory, at most: the arrays of all cases exist at once, because
# the peers compile for a size.
PEER_BYTES_OF_W, PART_OF_MEMORY = 5 * 10**8, 1 / 72
PEER_ROUNDS, PEER_WITHIN_S = 11, 5
# Seconds in which a contender must import its library and compile.
COMPILE_S = 20.0

# --- which backends and cases ---------------------------------------------------------------------------------------


def require_gpu(names: Iterable[str] = BACKENDS) -> list[str]:
    """Those of ``names`` that run here; ends the program with 2 and one line where none does, or CuPy does not."""
    reasons = {b.name: "; ".join(b.reasons) for b in sl2.backends() if b.name in BACKENDS}
    told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason)
    available = [name for name in names if not reasons[name]]
    if reasons["cupy"] or not available:  # CuPy's arrays, events and copies are used for both
        print(f"no GPU benchmark here: {told}")
        sys.exit(2)
    if told:
        print(f"left out: {told}", file=sys.stderr)
    return available


def memory() -> int:
    """The bytes of the GPU's memory, free or not: a case must be the same in every run."""
    return int(workload.library("gpu").cuda.runtime.memGetInfo()[1])


def bytes_of_W() -> int:  # noqa: N802 - the name of the mathematics
    """Those beside the copy; less where the GPU is small."""
    return int(min(max(LEAST_BYTES_OF_W, TIMES_L2 * gpu_machine()["l2_mb"] * 1e6), memory() / (ARRAYS + 2)))


def all_shapes() -> list[Case]:
    """Every shape and dtype."""
    return [Case.sized("gpu", dtype, m, n, bytes_of_W()) for m, n in SHAPES for dtype in DTYPES]


def few_pairs() -> list[Case]:
    """Few pairs, in both dtypes."""
    return [Case("gpu", dtype, m, n, B) for m, n, B in FEW_PAIRS for dtype in DTYPES]


def one_W() -> list[Case]:  # noqa: N802 - the name of the mathematics
    """One W for many x."""
    size = int(bytes_of_W() * SHARED_PART)
    return [SharedCase.of_x("gpu", "float32", m, n, size) for m, n in SHARED_SHAPES]


def usual() -> list[Case]:
    """The case of which more or fewer outputs are wanted."""
    return [Case.sized("gpu", dtype, 3, 3, bytes_of_W()) for dtype in DTYPES]


def peer_shapes() -> list[Case]:
    """The shapes of which the peers are measured."""
    size = int(min(PEER_BYTES_OF_W, memory() * PART_OF_MEMORY))
    return [Case.sized("gpu", "float32", m, n, size) for m, n in PEER_SHAPES]


# --- the parts ------------------------------------------------------------------------------------------------------


def compile_kernels(cases: list[Case], backends: list[str]) -> list[Case]:
    """Compile the kernels of ``cases`` by calls of a few pairs; a failure is reported when the case is measured."""
    for case, backend in product(cases, backends):
        print(f"compiling: {backend}, {case}", file=sys.stderr)
        with suppress(Exception):
            work_of(replace(case, B=min(case.B, TO_COMPILE))).call(backend)
    return cases


def compile_wanted(cases: list[Case], backends: list[str]) -> list[Case]:
    """The same for every target and choice of outputs."""
    for case, backend in product(cases, backends):
        print(f"compiling: {backend}, {case}, wanted", file=sys.stderr)
        with suppress(Exception):
            wanted.runs(work_of(replace(case, B=TO_COMPILE)), backend, Key(backend))
    return cases


def beside_copy(part: str, cases: list[Case], backends: list[str]) -> Iterator[list[Row]]:
    """The backends beside the copy, in turn, on each case; a case or a backend that fails gets rows with the reason."""
    for case in cases:
        print(f"{part}: {case}", file=sys.stderr)
        try:
            yield with_copy(part, case, [(of_backend(backend), GIVEN) for backend in backends])
        except Exception as error:  # too little memory, say
            yield [row(part, case, backend, reason=one_line(error)) for backend in backends]


def with_copy(part: str, case: Case, candidates: list[Contender]) -> list[Row]:
    """The rows of one case."""
    workload.library("gpu").get_default_memory_pool().free_all_blocks()
    copy = Copy(case)
    calls, failed = contenders(part, work_of(case), candidates)
    return failed + in_turn_with(copy, part, case, calls)


def in_turn_with(copy: Copy, part: str, case: Case, calls: dict[Key, Run]) -> list[Row]:
    """The rows of the copy and of all ``calls``."""
    turns = {key: DeviceTurn(run, copy) for key, run in {Key(COPY["gpu"]): copy, **calls}.items()}
    measured = rows(part, case, turns, ROUNDS)
    for own, turn in zip(measured, turns.values(), strict=True):
        own["held_up"] = turn.held_up
    for own in measured[1:]:
        own["fraction_of_copy"] = measured[0]["median"] / own["median"]
    return measured


def with_fewer(cases: list[Case], backends: list[str]) -> Iterator[list[Row]]:
    """A target, and fewer outputs, beside the usual call and a copy of what that moves."""
    for case, backend in product(cases, backends):
        print(f"wanted: {backend}, {case}", file=sys.stderr)
        try:
            workload.library("gpu").get_default_memory_pool().free_all_blocks()
            runs = wanted.runs(Workload(case), backend, Key(backend))
            yield in_turn_with(Copy(case), "wanted", case, runs)
        except Exception as error:
            yield [row("wanted", case, backend, reason=one_line(error))]


# A case, its contenders, ready to be timed, and rows for those that failed.
Compiled = tuple[Case, dict[Key, Run], list[Row]]


def compile_peers(cases: list[Case], backends: list[str]) -> list[Compiled]:
    """All contenders of each case."""
    everybody = [of_backend(backend) for backend in backends] + [peer for peer in PEERS if "gpu" in peer.devices]
    compiled = []
    for case in cases:
        workload.library("gpu").get_default_memory_pool().free_all_blocks()
        runs, failed = contenders("peers", Workload(case), [(p, p.takes_out) for p in everybody], COMPILE_S)
        compiled.append((case, {**runs, Key(COPY["gpu"]): finished(Copy(case), "gpu")}, failed))
    return compiled


def peers(compiled: list[Compiled], backends: list[str]) -> Iterator[list[Row]]:
    """The contenders of each case in turn."""
    for case, runs, failed in compiled:
        print(f"peers: {case}", file=sys.stderr)
        yield failed  # these rows are written even if a contender hangs below
        turns = {key: HostTurn(run) for key, run in runs.items()}
        yield rows("peers", case, turns, PEER_ROUNDS, PEER_WITHIN_S)


# The cases of each part, what compiles them, and what measures them: all is compiled before anything is timed.
PARTS: dict[str, tuple[Callable[[], list[Case]], Callable[..., list[Any]], Callable[..., Iterator[list[Row]]]]] = {
    "shapes": (all_shapes, compile_kernels, partial(beside_copy, "shapes")),
    "few": (few_pairs, compile_kernels, partial(beside_copy, "few")),
    "shared": (one_W, compile_kernels, partial(beside_copy, "shared")),
    "wanted": (usual, compile_wanted, with_fewer),
    "promises": (lambda: PROMISES, compile_kernels, promises),
    "small": (lambda: SMALL, compile_kernels, small),
    "peers": (peer_shapes, compile_peers, peers),
}

# --- the program ----------------------------------------------------------------------------------------------------


def share(text: str) -> slice:
    """The slice of "K/N": every N-th from K on."""
    first, step = map(int, text.split("/"))
    return slice(first, None, step)


def wait_for_turn() -> None:
    """Say that everything is compiled, and wait until nobody else compiles or measures."""
    print(COMPILED, flush=True)
    if not sys.stdin.readline():
        sys.exit("nobody is there to give the turn")


def main() -> None:
    """Compile, measure, write, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out_help = "for <date>-<gpu>.json; default: bench/results"
    parser.add_argument("part", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help=out_help)
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, default=BACKENDS, help="default: both")
    parser.add_argument("--share", type=share, default=slice(None), metavar="K/N", help="every N-th case, from K on")
    parser.add_argument("--in-turn", action="store_true", help="measure when a line comes to stdin, and do not report")
    args = parser.parse_args()
    if unknown := set(args.part) - set(PARTS):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(PARTS)}")

    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX would take most of the memory
    backends = require_gpu(args.backend)
    path = results_path(args.out, gpu_machine()["gpu"])
    compiled = []
    for name in args.part or [*PARTS][:-1]:
        cases, compile_all, measure = PARTS[name]
        compiled.append((name, measure, compile_all(cases()[args.share], backends)))
    if args.in_turn:
        wait_for_turn()
    failed = False
    for name, measure, ready in compiled:
        for measured in measure(ready, backends):
            add(measured, path)  # results so far are kept if the program is killed
            failed |= name != "peers" and any("reason" in row for row in measured)
    sys.exit(failed if args.in_turn else not report(path))


if __name__ == "__main__":
    main()
