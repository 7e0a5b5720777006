"""Whether a GPU backend runs here: the versions of what it needs, the reasons in full if not, and a call of one pair.

python bench/gpu_here.py BACKEND

Exits with 1 where it does not. Each backend is asked in a process of its own, because a library that does not fit the
driver may crash or hang.
"""

import sys

import numpy as np
from gpu_results import LIBRARIES, installed

import sigmoid_l2 as sl2
from sigmoid_l2 import dispatch


def main() -> None:
    """Ask, and compute 0.25."""
    (name,) = sys.argv[1:]
    print(
        f"{name}: Python {sys.version.split()[0]}, " + ", ".join(f"{n} {v}" for n in LIBRARIES if (v := installed(n)))
    )
    (backend,) = (b for b in dispatch.BACKENDS if b.name == name)
    if reasons := backend.reasons():
        sys.exit("\n".join(f"{name} is not available: {reason}" for reason in reasons))
    loss = sl2.value(np.zeros((1, 1, 1), np.float32), np.zeros((1, 1), np.float32), backend=name)
    if not abs(loss.item() - 0.25) < 1e-6:
        sys.exit(f"{name}: the loss of W = 0, x = 0 is {loss.item()} and not 0.25")
    print(f"{name}: a call of one pair is right")


if __name__ == "__main__":
    main()
