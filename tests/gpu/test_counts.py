"""What the GPU kernels need for the speed of memory: few instructions, enough reads in flight, a good prediction.

Counted in the PTX of one block, at the occupancy of the machine code for sm_90. bench/predict makes a prediction of it:
nothing here is measured.
"""

import sys
from pathlib import Path

import pytest

from gpu.chips import CHIPS
from gpu.test_compile import PACKAGES

sys.path += [str(Path(__file__).resolve().parents[2] / "bench" / part) for part in ("", "predict")]
roofline = pytest.importorskip("roofline", reason="bench/ is not here", exc_type=ImportError)

INSTRUCTIONS = 1.25  # of a warp of numba.cuda's kernel over CuPy's, at most
FRACTION = 0.90  # of a copy, predicted, at least
KIB_IN_FLIGHT = {"H100": 32, "H200": 48}  # reads of a multiprocessor, at least; fewer if FRACTION is predicted

COUNTED = [(1, 1), (3, 3), (8, 8), (16, 16), (32, 32), (784, 10)]
FLOAT64 = [(3, 3), (16, 16), (32, 32)]  # of `make test`, which has these kernels in test_traffic.py too
OTHERS = [(64, 64), (10, 784), (256, 256), (8192, 8192), (4, 20000)]
EVERYWHERE = [f"{backend} {chip}" for backend in PACKAGES for chip in KIB_IN_FLIGHT]
# Pairs for which less than FRACTION is predicted, for which kernels on which chips, and why.
STEADY = "the second launch, and what it reads"
TWICE = "both kernels read W"
EXCEPTIONS = {
    (8192, 8192, "float32"): (STEADY, EVERYWHERE),
    (8192, 8192, "float64"): (STEADY, ["cupy H200", "numba-cuda H200"]),
    (4, 20000, "float64"): (TWICE, EVERYWHERE),
}


def predicted(m, n, dtype):
    """The predictions, by kernel and chip, for a batch that keeps a chip busy."""
    case = next(case for case in roofline.CASES if (case.m, case.n, case.dtype) == (m, n, dtype))
    rows = {}
    for backend, package in PACKAGES.items():
        pytest.importorskip(package, exc_type=ImportError)
        called = roofline.launches_of(backend, case)
        rows |= {f"{backend} {chip}": roofline.predict(case, called, CHIPS[chip]) for chip in KIB_IN_FLIGHT}
    return rows


@pytest.mark.parametrize(
    ("m", "n", "dtype"),
    [
        pytest.param(*size, dtype, marks=() if dtype == "float32" or size in FLOAT64 else pytest.mark.proof)
        for size in COUNTED + OTHERS
        for dtype in ("float32", "float64")
    ],
)
def test_counts(m, n, dtype):
    """All of a case at once: its kernels take seconds to compile."""
    rows = predicted(m, n, dtype)
    fractions = {who: row["predicted_fraction_of_copy"] for who, row in rows.items()}
    kib = {who: row["bytes_in_flight"] / 1024 for who, row in rows.items()}
    instructions = {who.split()[0]: row["instructions"] for who, row in rows.items()}
    slow = [who for who in rows if fractions[who] < FRACTION]
    few = [who for who in slow if kib[who] < KIB_IN_FLIGHT[who.split()[1]]]
    assert slow == EXCEPTIONS.get((m, n, dtype), ("", []))[1], fractions
    assert not few, kib
    assert (m, n) not in COUNTED or instructions["numba-cuda"] <= INSTRUCTIONS * instructions["cupy"], instructions
