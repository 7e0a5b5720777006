"""Whether a GPU backend runs here and is right: one call, one of each class of sizes, or those of a case to profile.

python bench/gpu_here.py BACKEND          the versions of what it needs, the reasons in full if not, a call of one pair
python bench/gpu_here.py BACKEND K/N      every N-th class of sizes and dtype from K on; several processes share them
python bench/gpu_here.py BACKEND M N DTYPE B    two calls of a case, of which a profiler takes the second

Exits with 1 where it does not. Each backend is asked in a process of its own, because a library that does not fit the
driver may crash or hang.
"""

import sys

import numpy as np
from bench_gpu import DTYPES, share
from results import LIBRARIES, installed
from shared import SharedCase, work_of
from workload import Case, Workload

import sigmoid_l2 as sl2
from sigmoid_l2 import dispatch

# m, n and B: every kind of plan in kernels/gpu/plan.py, with the fewest pairs that fill more than one block and end
# within a block, with wide accesses and without.
CLASSES = (
    (1, 1, 131),  # one lane for a pair
    (3, 3, 257),
    (8, 8, 67),  # several lanes of a warp for a pair
    (16, 16, 9),
    (32, 32, 3),
    (500, 3, 3),  # several warps for a pair, staged
    (64, 64, 5),  # 8 or 16 threads for each row
    (2, 40, 33),
    (64, 100, 3),  # 16 threads for each row, or a warp
    (2, 100, 17),
    (10, 784, 2),  # a block for each row
    (3, 5000, 2),
    (2000, 20, 2),  # slices of a pair, staged in float32
    (700, 784, 2),
    (70, 500, 257),  # slices that a block does in turn
    (260, 128, 86),  # groups of slices
    (2, 20000, 2),  # rows that fill a block's registers, and in float64 slices of columns
)
# The same for one W and many x: a tiny W, and larger ones, of which a tile holds all or a part.
ONE_W = ((3, 3, 5000), (10, 784, 130), (150, 70, 1100))


def here(name: str) -> None:
    """Print the versions and the reasons, and compute one loss, 0.25."""
    versions = ", ".join(f"{library} {found}" for library, found in installed(LIBRARIES).items())
    print(f"{name}: Python {sys.version.split()[0]}, {versions}")
    (backend,) = (b for b in dispatch.BACKENDS if b.name == name)
    if reasons := backend.reasons():
        sys.exit("\n".join(f"{name} is not available: {reason}" for reason in reasons))
    loss = sl2.value(np.zeros((1, 1, 1), np.float32), np.zeros((1, 1), np.float32), backend=name)
    if not abs(loss.item() - 0.25) < 1e-6:
        sys.exit(f"{name}: the loss of W = 0, x = 0 is {loss.item()} and not 0.25")
    print(f"{name}: a call of one pair is right")


def main() -> None:
    """The command."""
    backend, *part = sys.argv[1:]
    if not part:
        here(backend)
        return
    if len(part) > 1:
        m, n, dtype, B = part
        call = Workload(Case("gpu", dtype, int(m), int(n), int(B))).call(backend)
        call()
        return
    cases = [Case("gpu", dtype, m, n, B) for m, n, B in CLASSES for dtype in DTYPES]
    cases += [SharedCase("gpu", dtype, m, n, B) for m, n, B in ONE_W for dtype in DTYPES]
    for case in cases[share(*part)]:
        work_of(case).call(backend)  # and compared with the reference
        print(f"{backend}: {case} is right", flush=True)


if __name__ == "__main__":
    main()
