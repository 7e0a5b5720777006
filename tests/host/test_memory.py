"""The memory of a process: a call takes at most 32 MiB besides its inputs and outputs, however many pairs it has."""

import os

import pytest
from processes import run_python

pytest.importorskip("numba")

if not os.access("/proc/self/clear_refs", os.W_OK):
    pytest.skip("the peak of a process's memory is read from Linux's /proc", allow_module_level=True)

LIMIT = 32 << 20

# Every page of the inputs and outputs is in memory before the peak is reset, so the call alone makes it rise.
MEASURE = """
import re, sys
import numpy as np
import sigmoid_l2 as sl2
from pathlib import Path

layout, given, B = sys.argv[1], sys.argv[2] == "given", int(sys.argv[3])
copies = sys.argv[4:] == ["with a copy"]
dtype = np.dtype(np.float64 if layout == "integers" else np.float32)
shapes = {"loss": (B,), "dW": (B, 3, 3), "dx": (B, 3)}

def array(shape, kind, dtype=dtype):
    if kind == "strided":
        return np.full((*shape[:-1], 2 * shape[-1]), 1, dtype)[..., ::2]
    if kind == "transposed":
        return np.full((*shape[1:], shape[0]), 1, dtype).transpose(len(shape) - 1, *range(len(shape) - 1))
    return np.full(shape, 1, {"byte-swapped": dtype.newbyteorder(), "integers": np.int16}.get(kind, dtype))

def peak(field):
    return int(re.search(field + r":\\s*(\\d+) kB", Path("/proc/self/status").read_text()).group(1)) * 1024

def call(W, x, out):
    return sl2.value_and_grad(W.copy() if copies else W, x, out=out, backend="numba")

W, x = array((B, 3, 3), layout), array((B, 3), layout)
out = tuple(array(s, "contiguous" if layout == "integers" else layout) for s in shapes.values()) if given else None
few = slice(0, 1000)
call(W[few], x[few], None if out is None else tuple(a[few] for a in out))  # compiles
Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from what there is now
before = peak("VmRSS")
results = call(W, x, out)
extra = peak("VmHWM") - before
if not given:
    extra -= sum(a.nbytes for a in results)
assert results.loss[0] == results.loss[-1] > 2
print(extra)
"""


def extra_bytes(layout, outputs, pairs, *more):
    """The rise of a process's memory during one call, without the results."""
    return int(run_python(MEASURE, layout, outputs, pairs, *more))


@pytest.mark.parametrize(
    ("layout", "outputs"),
    [
        *((layout, "given") for layout in ("contiguous", "strided", "transposed", "byte-swapped", "integers")),
        *((layout, "fresh") for layout in ("contiguous", "transposed")),
    ],
)
def test_extra_memory(layout, outputs):
    """W of 10^6 pairs alone is 36 MB, more than the limit."""
    assert extra_bytes(layout, outputs, 10**6) <= LIMIT


@pytest.mark.parametrize("outputs", ["given", "fresh"])
def test_extra_memory_of_ten_million_pairs(outputs):
    assert extra_bytes("contiguous", outputs, 10**7) <= LIMIT


def test_a_copy_is_seen():
    """The measurement finds a copy of W, which is more than the limit."""
    assert extra_bytes("contiguous", "given", 10**6, "with a copy") > LIMIT
