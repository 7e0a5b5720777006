"""The CPU kernels with narrower vectors than this machine's: run for the lower x86 levels, compiled for ARM."""

import os
import re
from pathlib import Path

import pytest
from processes import run_python

pytest.importorskip("numba")

from llvmlite import binding

BASE = "+64bit,+cmov,+cx8,+fxsr,+mmx,+sse,+sse2"
# For each level: numba's name of a processor, its features, and the bytes of a vector of the kernels.
LEVELS = {
    "AVX2": (
        "haswell",
        f"{BASE},+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+movbe",
        32,
    ),
    "SSE2": ("x86-64", BASE, 16),
}


def child(script, cache, cpu, features, *arguments, **variables):
    """What ``script`` prints in a process whose numba compiles for the processor ``cpu`` with ``features``."""
    variables |= {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features}
    variables["NUMBA_CACHE_DIR"] = cache  # an empty one, so that the code tested is compiled here
    variables["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return run_python(script, *arguments, **variables)


RUN = """
import sys
import numpy as np
from host import test_batch_last_cpu, test_cpu_target, test_simd, test_stream
from contract import assert_contract
import sigmoid_l2 as sl2
from sigmoid_l2.kernels.cpu import simd

assert simd.vector_bytes() == int(sys.argv[1]), simd.vector_bytes()
B = 37  # blocks of every width up to 16 lanes, and a rest
for m, n in ((3, 3), (8, 8), (50, 5), (16, 16), (3, 300)):  # tiny, tall and rows, with short rows and with long ones
    for dtype in ("f4", "f8"):
        rng = np.random.default_rng([m, n])
        W, x = (rng.standard_normal(shape).astype(dtype) for shape in ((B, m, n), (B, n)))
        W[11, 0, 0] = np.nan
        out = tuple(np.full(shape, np.inf, dtype) for shape in (B, W.shape, x.shape))
        sl2.value_and_grad(W, x, out=out, backend="numba")
        for pairs in ([0], [20], [B - 1]):
            assert_contract(W[pairs], x[pairs], *(a[pairs] for a in out), backend="numba")
        assert np.isnan(out[0]).tolist() == [b == 11 for b in range(B)]
        for first, last in ((0, 1), (1, 3), (5, 36), (B - 1, B)):
            part = sl2.value_and_grad(W[first:last], x[first:last], backend="numba")
            same = [a.tobytes() == b[first:last].tobytes() for a, b in zip(part, out, strict=True)]
            assert all(same), (m, n, dtype, first, last)
test_stream.assert_streams()
for case in test_stream.FEW:
    test_stream.assert_same_bits_anywhere(*case)
test_cpu_target.assert_results()
arrays = test_batch_last_cpu.case(3 * 8 * 16 + 5, 9, 10, np.dtype("f4"), "tc")  # whole blocks, and a rest
test_batch_last_cpu.assert_accurate(*arrays, test_batch_last_cpu.run(*arrays), [0, 200, 388])
for dtype in test_simd.DTYPES:
    arguments = test_simd.float32_arguments(997) if dtype == "f4" else [-rng.uniform(0, 700, 1 << 18)]
    normal, subnormal = test_simd.largest_errors(dtype, arguments)
    assert normal <= test_simd.stated_bound(), normal
    assert subnormal <= 1, subnormal
print("fused" if test_simd.fused_multiply_add() else "not fused")
"""


@pytest.mark.parametrize("level", LEVELS)
def test_runs_on(level, tmp_path):
    """The accuracy contract, the same bits at any place and the error of exp, with the vectors of that level."""
    cpu, features, vector_bytes = LEVELS[level]
    if not binding.get_process_triple().startswith("x86_64"):
        pytest.skip(f"{level} is of x86-64; this machine is {binding.get_process_triple()}")
    here = binding.get_host_cpu_features()
    lacking = [f for f in features.split(",") if not here.get(f[1:], True)]
    if lacking:
        pytest.skip(f"this machine's processor lacks {', '.join(lacking)}")
    assert child(RUN, tmp_path, cpu, features, vector_bytes) == ("not fused\n" if level == "SSE2" else "fused\n")


COMPILE_FOR_ARM = """
import re, sys
import numpy as np
from llvmlite import binding
from sigmoid_l2.kernels import Given
from sigmoid_l2.kernels.cpu import launch, simd

assert simd.vector_bytes() == 16  # those of NEON as well
binding.initialize_all_targets()
binding.initialize_all_asmprinters()
target = binding.Target.from_triple(sys.argv[1]).create_target_machine(cpu="generic", opt=3)
for m, n, dtype in ((3, 3, "f4"), (5, 2, "f8"), (40, 40, "f4"), (40, 40, "f8")):
    dtype = np.dtype(dtype)
    (text,) = launch.kernel(m, n, dtype, Given(True, True)).inspect_llvm().values()
    module = binding.parse_assembly(re.sub("^target .*", "", text, flags=re.M))
    module.triple, module.data_layout = sys.argv[1], str(target.target_data)
    module.verify()
    passes = binding.create_pass_builder(target, binding.create_pipeline_tuning_options(3))
    passes.getModulePassManager().run(module, passes)
    print(target.emit_assembly(module), end="\\0")
"""
ARM = "aarch64-unknown-linux-gnu"


@pytest.fixture(scope="module")
def assembly(tmp_path_factory):
    """The kernels in ARM's assembly language, by the kernel and the lanes of its vectors: 4s float32, 2d float64."""
    if not binding.get_process_triple().startswith("x86_64"):
        pytest.skip("by the features of x86-64 the vectors are limited to NEON's 16 bytes")
    binding.initialize_all_targets()
    try:
        binding.Target.from_triple(ARM)
    except RuntimeError as error:
        pytest.skip(f"llvmlite was built without ARM: {error}")
    # Not optimised for x86, because that puts in operations that ARM does not have. A process of its own: LLVM ends the
    # process when it meets one.
    output = child(COMPILE_FOR_ARM, tmp_path_factory.mktemp("arm"), "x86-64", BASE, ARM, NUMBA_OPT="0")
    names = [(kernel, lanes) for kernel in ("tiny", "rows") for lanes in ("4s", "2d")]
    return dict(zip(names, output.split("\0")[:-1], strict=True))


@pytest.mark.parametrize("lanes", ["4s", "2d"])
@pytest.mark.parametrize("kernel", ["tiny", "rows"])
def test_compiles_for_arm(kernel, lanes, assembly):
    """To NEON's vectors: products, sums and the division of the sigmoid; and nowhere a call of exp or of fma."""
    code = assembly[kernel, lanes]
    for instruction in ("fmla", "fmul", "fadd", "fdiv"):
        assert re.search(rf"\t{instruction}\tv\d+\.{lanes}", code), f"no {instruction} of vectors"
    calls = set(re.findall(r"\tbl\t(\w+)", code))
    assert "PyErr_Occurred" in calls, "calls are found at all"
    assert not {"exp", "expf", "exp2", "exp2f", "fma", "fmaf", "ldexp", "ldexpf"} & calls
    assert not re.findall(r"\t(?:fdiv|fmadd)\t[sd]\d+", code), "a sigmoid is computed lane by lane"
