"""The peers on the GPU, in turn with both kernels and with the device copy, added to the results of bench_gpu.

python bench/gpu_peers.py [--out DIR] [--backend NAME...] [--share K/N] [--in-turn]

Every contender is timed alike: the wall time of a call and of the wait until the device is done. What is not installed
or fails gets a row with the reason. Exits with 1 if a target of the whole file is missed, with 2 where no GPU is.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import frameworks
from gpu_measure import BACKENDS, Arrays, Copy, pairs, require_gpu
from gpu_report import COPY, report
from gpu_results import add, one_line, options, results_path, row, wait_for_turn
from measure import Case, interleaved
from peers import matmul
from rows import Row

SHAPES = ((3, 3), (8, 8), (64, 64))  # of W; 3x3 is judged, the others are told
# W has up to so many bytes, and no more than this part of the GPU's memory: the arrays of all cases are there at once,
# because what is compiled is compiled for its size.
BYTES_OF_W, PART_OF_MEMORY = 5 * 10**8, 1 / 72
ROUNDS, WITHIN_S = 11, 5
COMPILE_S = 20.0  # seconds in which a contender must import its library and compile


def jax_on_gpu(build: Callable[..., Any], W: Any, x: Any, out: Any) -> Any:
    """JAX, which gets the arrays from the host, if it computes on the GPU."""
    import jax

    if jax.default_backend() != "gpu":
        raise RuntimeError(f"JAX computes on the {jax.default_backend()} here")
    jax.config.update("jax_default_matmul_precision", "highest")  # float32 products would be in TF32
    return build(W.get(), x.get(), None)


def cupy_matmul(W: Any, x: Any, out: Any) -> Any:
    """The formula by hand in CuPy, ``W @ x``."""
    import cupy

    return matmul(cupy, W, x, out)


# The name, and how to build the call; what writes to given outputs gets them. The slowest to compile come last.
PEERS: tuple[tuple[str, Callable[..., Any]], ...] = (
    ("CuPy matmul, outputs given", cupy_matmul),
    ("JAX, multiply-and-sum", partial(jax_on_gpu, frameworks.jax_sum)),
    ("JAX, W @ x", partial(jax_on_gpu, frameworks.jax_matmul)),
    ("torch eager", frameworks.torch_eager),
    ("torch.compile by hand, outputs given", frameworks.torch_compile_hand),
    ("torch.compile of vmap", frameworks.torch_compile_vmap),
)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """TimeoutError after ``seconds``, where Python code runs or waits."""

    def late(*_: object) -> None:
        raise TimeoutError(f"not compiled within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def contenders(case: Case, backends: list[str]) -> tuple[dict[str, Callable[[], object]], list[Row]]:
    """All contenders of one case, compiled and compared with the reference; and rows for those that failed."""
    import cupy

    wait = cupy.cuda.Device().synchronize
    cupy.get_default_memory_pool().free_all_blocks()
    arrays = Arrays(case)
    runs: dict[str, Callable[[], object]] = {}
    rows = []

    def finished(call: Callable[[], object]) -> Callable[[], object]:
        def run() -> object:
            results = call()
            wait()
            return results

        return run

    for name, build in (*((b, None) for b in backends), *PEERS):
        try:
            with within(COMPILE_S):
                run = finished(build(arrays.W, arrays.x, arrays.out) if build else arrays.call(name))
                arrays.poison()
                arrays.check(run())
            runs[name] = run
        except Exception as error:  # of any library: not installed, a compiler that is not there, no memory
            rows.append(row("peers", name, case) | {"reason": one_line(error)})
            print(f"  {name}: {one_line(error)}", file=sys.stderr)
    runs[COPY] = finished(Copy(case))
    return runs, rows


def main() -> None:
    """Compile, measure, add to the file, report."""
    args = options(__doc__, BACKENDS).parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX would take most of the memory
    backends = require_gpu(args.backend)
    import cupy

    path = results_path(args.out)
    size = int(min(BYTES_OF_W, cupy.cuda.runtime.memGetInfo()[1] * PART_OF_MEMORY))
    cases = [Case("gpu", "float32", m, n, pairs(m, n, "float32", size)) for m, n in SHAPES][args.share]
    compiled = [(case, *contenders(case, backends)) for case in cases]
    if args.in_turn:
        wait_for_turn()
    for case, runs, rows in compiled:
        print(f"peers: {case}", file=sys.stderr)
        add(rows, path)  # what failed stays, even where something hangs now
        timed = interleaved(runs, ROUNDS, WITHIN_S).items()
        speeds = [t._asdict() | {"gb_per_s": case.traffic / t.median / 1e9} for _, t in timed]
        add([row("peers", name, case) | speed for (name, _), speed in zip(timed, speeds, strict=True)], path)
    sys.exit(not args.in_turn and not report(path))


if __name__ == "__main__":
    main()
