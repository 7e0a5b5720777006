"""Each GPU kernel of one backend once for every class of sizes and dtype: a small program for compute-sanitizer.

python bench/every_class.py BACKEND
"""

import sys

from gpu_measure import Arrays
from measure import Case

# The fewest pairs that fill more than one block and end in the middle of one, wide and not; every way in cuda_launch.
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
    for m, n, B in CASES:
        for dtype in ("float32", "float64"):
            Arrays(Case("gpu", dtype, m, n, B)).call(sys.argv[1])
            print(f"{sys.argv[1]}: {B} pairs {m}x{n} {dtype} are right")


if __name__ == "__main__":
    main()
