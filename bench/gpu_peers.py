"""The peers on the GPU, in turn with both kernels and with the device copy, added to the results of bench_gpu.

python bench/gpu_peers.py [-o FILE.json]

Every contender is timed alike: the wall time of a call and of the wait until the device is done. What is not installed
or fails gets a row with the reason. Exits with 1 if a target of the whole file is missed, with 2 where no GPU is.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import frameworks
from gpu_measure import Arrays, Copy, pairs, require_gpu
from gpu_report import COPY, report
from gpu_results import new_results, one_line, results_path, row, write
from measure import Case, interleaved
from peers import matmul
from rows import Row

# 3x3 is judged; the others are told. W has up to so many bytes, and no more than this part of the memory.
SHAPES = ((3, 3), (8, 8), (64, 64))
BYTES_OF_W, PART_OF_MEMORY = 10**9, 1 / 24
ROUNDS, WITHIN_S = 11, 5


def jax_on_gpu(build: Callable[..., Any], W: Any, x: Any, out: Any) -> Any:
    """JAX, which gets the arrays from the host, if it computes on the GPU."""
    import jax

    if jax.default_backend() != "gpu":
        raise RuntimeError(f"JAX computes on the {jax.default_backend()} here")
    return build(W.get(), x.get(), None)


def cupy_matmul(W: Any, x: Any, out: Any) -> Any:
    """The formula by hand in CuPy, ``W @ x``."""
    import cupy

    return matmul(cupy, W, x, out)


# The name, and how to build the call; what writes to given outputs gets them.
PEERS: tuple[tuple[str, Callable[..., Any]], ...] = (
    ("CuPy matmul, outputs given", cupy_matmul),
    ("torch.compile by hand, outputs given", frameworks.torch_compile_hand),
    ("torch.compile of vmap", frameworks.torch_compile_vmap),
    ("JAX, multiply-and-sum", partial(jax_on_gpu, frameworks.jax_sum)),
    ("JAX, W @ x", partial(jax_on_gpu, frameworks.jax_matmul)),
    ("torch eager", frameworks.torch_eager),
)


def compare(case: Case, backends: list[str]) -> list[Row]:
    """All contenders of one case; each peer's results are compared with the reference before it is timed."""
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
            run = finished(build(arrays.W, arrays.x, arrays.out) if build else arrays.call(name))
            arrays.poison()
            arrays.check(run())
            runs[name] = run
        except Exception as error:  # of any library: not installed, a compiler that is not there, no memory
            rows.append(row("peers", name, case) | {"reason": one_line(error)})
            print(f"  {name}: {one_line(error)}", file=sys.stderr)
    runs[COPY] = finished(Copy(case))
    for name, times in interleaved(runs, ROUNDS, WITHIN_S).items():
        rows.append(row("peers", name, case) | times._asdict() | {"gb_per_s": case.traffic / times.median / 1e9})
    return rows


def main() -> None:
    """Measure, add to the file, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", type=Path, metavar="FILE", help="default: bench/results/<date>-<gpu>.json")
    args = parser.parse_args()

    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX would take most of the memory
    backends = require_gpu()
    import cupy

    path = args.o or results_path()
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else new_results()
    results["rows"] = [r for r in results["rows"] if r["part"] != "peers"]
    size = int(min(BYTES_OF_W, cupy.cuda.runtime.memGetInfo()[0] * PART_OF_MEMORY))
    for m, n in SHAPES:
        case = Case("gpu", "float32", m, n, pairs(m, n, "float32", size))
        print(f"peers: {case}", file=sys.stderr)
        results["rows"] += compare(case, backends)
        write(results, path)
    sys.exit(not report(path))


if __name__ == "__main__":
    main()
