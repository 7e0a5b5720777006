"""How often a thread waits for global memory, counted in code that was written by hand."""

import pytest

from gpu import ptx
from gpu.waits import Waits

ONE, OTHER, USE = "ld.global.f32 %f1, [%rd1];", "ld.global.f32 %f2, [%rd1];", "add.f32 %f3, %f1, %f2;"


@pytest.mark.parametrize(
    ("trips", "body"),
    [
        (0, USE),
        (0, ONE),  # nobody waits for it
        (1, ONE + USE),
        (1, ONE + OTHER + USE),
        (1, ONE + USE + OTHER + USE),  # in one basic block: OTHER can be issued before USE
        (2, ONE + USE + "LABEL: " + OTHER + USE),
        (2, ONE + USE + "bra LABEL; LABEL: " + OTHER + USE),
        (2, ONE + USE + "bar.sync 0;" + OTHER + USE),
        (1, ONE + "LABEL: " + OTHER + USE),
        (1, ONE + "bar.sync 0;" + OTHER + USE),
        (1, "ld.global.v2.f32 {%f1, %f2}, [%rd1]; st.shared.f32 [%r1], %f2;"),
        (1, "ld.global.u32 %r2, [%rd1]; ld.shared.f32 %f1, [%r2];"),
        (2, "ld.global.u64 %rd2, [%rd1]; ld.global.f32 %f1, [%rd2];" + USE),  # the address waits
        (2, "ld.global.u32 %r1, [%rd1]; setp.eq.u32 %p1, %r1, 0; @%p1 " + ONE + USE),  # the condition waits
    ],
)
def test_trips(trips, body):
    registers = ".reg .pred %p<9>; .reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .f32 %f<9>;"
    kernel = ptx.parse(f".visible .entry kernel(.param .u64 out)\n{{\n{registers}\n{body}\nret;\n}}")
    waits = Waits()
    for at in range(len(kernel.code)):
        waits.issue(kernel, at)
    assert waits.trips == trips
