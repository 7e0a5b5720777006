"""Each GPU kernel of one backend once for every class of sizes and dtype: a small program for compute-sanitizer.

python bench/every_class.py BACKEND [K/N]

With K/N only every N-th case from K on, so that several processes can share them.
"""

import sys

from gpu_measure import Arrays
from gpu_results import share
from measure import Case

# The fewest pairs that fill more than one block and end in the middle of one, wide and not; every way of gpu/plan.py.
CASES = (
    (1, 1, 131),  # a lane a pair
    (3, 3, 257),
    (8, 8, 67),  # lanes of a warp
    (16, 16, 9),
    (32, 32, 3),  # warps, in float32 staged
    (64, 64, 3),  # a warp a row
    (2, 41, 9),
    (10, 784, 2),  # a block a row
    (3, 5000, 2),
    (2000, 20, 2),  # slices, in float32 staged
    (700, 784, 2),
    (2, 20000, 2),  # rows too long for registers
)


def main() -> None:
    """Compute and compare with the reference."""
    backend, part = (*sys.argv[1:], "0/1")[:2]
    cases = [Case("gpu", dtype, m, n, B) for m, n, B in CASES for dtype in ("float32", "float64")]
    for case in cases[share(part)]:
        Arrays(case).call(backend)
        print(f"{backend}: {case.B} pairs {case.m}x{case.n} {case.dtype} are right", flush=True)


if __name__ == "__main__":
    main()
