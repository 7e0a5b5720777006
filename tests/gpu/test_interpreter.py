"""The interpreter of PTX: each instruction against values written by hand, and planted faults, which it must see."""

import math
import random
import re
import struct
from contextlib import nullcontext
from math import inf, nan

import numpy as np
import pytest

from gpu import machine, ptx
from gpu.instructions import BITS, FLOATS, INTEGERS, OPERATIONS
from gpu.memory import FaultError, Global, Shared
from gpu.ptx import NotKnownError

SIGNED, UNSIGNED = ("s32", "s64"), ("u32", "u64")
REGISTERS = {"f32": "%f", "f64": "%fd", "pred": "%p"} | {
    t: "%r" if t.endswith("32") else "%rd" for t in (*INTEGERS, *BITS)
}
NAMES = {dtype: name for name, dtype in reversed(ptx.TYPES.items())}


def kernel(body, shared=""):
    """A kernel of one pointer, ``out``, which is in %rd1; %r1 is the thread, %rd2 points at its 8 bytes of ``out``."""
    return f"""
.version 9.0
.target sm_90
.visible .entry kernel(.param .u64 out)
{{
    .reg .pred %p<9>; .reg .b32 %r<20>; .reg .b64 %rd<20>; .reg .f32 %f<9>; .reg .f64 %fd<9>;
    {shared}
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd2, %r1, 8;
    add.s64 %rd2, %rd1, %rd2;
    {body}
    ret;
}}"""


def run(body, *, threads=32, blocks=1, shared="", size=None):
    """``out``, an array of int64, after the kernel with ``body``."""
    out, memory = np.zeros(threads if size is None else size, np.int64), Global()
    address = struct.pack("<Q", memory.add("out", out))
    machine.launch(ptx.parse(kernel(body, shared)), blocks, threads, [address], memory)
    return out


def literal(value, type_name):
    """A number as PTX writes it."""
    if type_name not in FLOATS:
        return str(int(value))
    letter, code = ("f", ">f") if type_name == "f32" else ("d", ">d")
    return f"0{letter}{struct.pack(code, value).hex()}"


def compute(opcode, operands):
    """What one instruction makes of literals."""
    operation = OPERATIONS[opcode]
    *sources, result = (NAMES[dtype] for dtype in (*operation.sources, operation.result))
    arguments = [f"{REGISTERS[source]}{k}" for k, source in enumerate(sources, 3)]
    moves = zip(sources, arguments, operands, strict=True)
    body = "".join(f"mov.{source} {a}, {literal(value, source)};" for source, a, value in moves)
    body += f"{opcode} {REGISTERS[result]}8, {', '.join(arguments)};"
    if result == "pred":
        return bool(run(body + "selp.u64 %rd9, 1, 0, %p8; st.global.u64 [%rd2], %rd9;")[31])
    return run(body + f"st.global.{result} [%rd2], {REGISTERS[result]}8;")[31:].view(operation.result)[0]


# Opcodes, the types after them, operands and the result.
CASES = [
    ("mov", (*INTEGERS, *BITS, *FLOATS), (5,), 5),
    ("mov", ("pred",), (1,), True),
    ("cvta.to.global", ("u64",), (2**40,), 2**40),
    ("add", (*INTEGERS, *FLOATS), (7, 3), 10),
    ("add", ("s32",), (2**31 - 1, 1), -(2**31)),
    ("add.rn", ("f64",), (1, 2.0**-53), 1),
    ("add.rn", ("f32",), (1, 2.0**-23), 1 + 2.0**-23),
    ("add", ("f32",), (2.0**-127, 0), 2.0**-127),
    ("add.ftz", ("f32",), (2.0**-127, 2.0**-126), 2.0**-126),
    ("add.rn.ftz", ("f32",), (2.0**-126, -1.5 * 2.0**-126), -0.0),
    ("sub", (*INTEGERS, *FLOATS), (7, 3), 4),
    ("sub", ("u32",), (3, 7), 2**32 - 4),
    ("sub.rn", FLOATS, (1, 3), -2),
    ("sub.ftz", ("f32",), (1.5 * 2.0**-126, 2.0**-126), 0),
    ("sub.rn.ftz", ("f32",), (3, 1), 2),
    ("mul", FLOATS, (-0.5, 3), -1.5),
    ("mul.rn", FLOATS, (inf, 0), nan),
    ("mul.ftz", ("f32",), (2.0**-127, 2.0**9), 0),
    ("mul.rn.ftz", ("f32",), (2.0**-100, 2.0**-30), 0),
    ("abs", (*FLOATS, *SIGNED), (-3,), 3),
    ("abs.ftz", ("f32",), (-(2.0**-130),), 0),
    ("neg", (*FLOATS, *SIGNED), (3,), -3),
    ("neg.ftz", ("f32",), (2.0**-130,), -0.0),
    ("min", SIGNED, (-7, 3), -7),
    ("min", UNSIGNED, (7, 3), 3),
    ("max", SIGNED, (-7, 3), 3),
    ("max", UNSIGNED, (7, 3), 7),
    ("and", BITS, (0b1100, 0b1010), 0b1000),
    ("or", BITS, (0b1100, 0b1010), 0b1110),
    ("xor", BITS, (0b1100, 0b1010), 0b0110),
    ("and", ("pred",), (1, 0), False),
    ("or", ("pred",), (1, 0), True),
    ("xor", ("pred",), (1, 1), False),
    ("not", ("b32",), (1,), 2**32 - 2),
    ("not", ("b64",), (1,), 2**64 - 2),
    ("not", ("pred",), (1,), False),
    ("shl", BITS, (3, 4), 48),
    ("shl", ("b32",), (3, 32), 0),
    ("shr", (*INTEGERS,), (48, 4), 3),
    ("shr", SIGNED, (-48, 4), -3),
    ("shr", SIGNED, (-1, 99), -1),
    ("shr", UNSIGNED, (1, 99), 0),
    ("bfi", BITS, (0b101, 0xFF00, 4, 3), 0xFF50),
    ("bfi", BITS, (0b101, 0, 256, 8), 0b101),
    ("mul.lo", INTEGERS, (7, 3), 21),
    ("mul.lo", ("s32",), (2**30, 6), -(2**31)),
    ("mul.hi", ("s64", "u64"), (2**62, 12), 3),
    ("mul.hi", ("s64",), (-(2**62), 4), -1),
    ("mul.wide", ("s32",), (-(2**30), 16), -(2**34)),
    ("mul.wide", ("u32",), (2**31, 16), 2**35),
    ("mad.lo", INTEGERS, (7, 3, 4), 25),
    ("div", INTEGERS, (7, 2), 3),
    ("div", SIGNED, (-7, 2), -3),
    ("rem", INTEGERS, (7, 2), 1),
    ("rem", SIGNED, (-7, 2), -1),
    ("fma.rn", FLOATS, (3, 4, 5), 17),
    ("fma.rn", ("f32",), (1 + 2.0**-23, 1 - 2.0**-23, -1), -(2.0**-46)),
    ("fma.rn", ("f64",), (1 + 2.0**-30, 1 - 2.0**-30, -1), -(2.0**-60)),
    ("fma.rn", ("f32",), (2.0**-140, 1, 0), 2.0**-140),
    ("fma.rn.ftz", ("f32",), (2.0**-140, 2.0**20, 0), 0),
    ("fma.rm", ("f32",), (1, 1, 2.0**-40), 1),
    ("fma.rm", ("f32",), (1, 1, 1), 2),
    ("fma.rm", ("f32",), (1, 1, -(2.0**-60)), 1 - 2.0**-24),
    ("fma.rm", ("f32",), (1, 1, -(2.0**-40)), 1 - 2.0**-24),
    ("fma.rm.ftz", ("f32",), (1, 1, -(2.0**-40)), 1 - 2.0**-24),
    ("rcp.rn", FLOATS, (4,), 0.25),
    ("rcp.rn", FLOATS, (0,), inf),
    ("rcp.rn.ftz", ("f32",), (2.0**127,), 0),
    ("rcp.approx.ftz", ("f64",), (3,), float.fromhex("0x1.55555p-2")),
    ("rcp.approx.ftz", ("f64",), (2.0**-1023,), inf),
    ("selp", (*INTEGERS, *BITS, *FLOATS), (5, 6, 1), 5),
    ("selp", (*INTEGERS, *BITS, *FLOATS), (5, 6, 0), 6),
    ("setp.eq", (*INTEGERS, *BITS, *FLOATS), (5, 5), True),
    ("setp.ne", (*INTEGERS, *BITS, *FLOATS), (5, 5), False),
    ("setp.ne", FLOATS, (nan, nan), False),
    ("setp.lt", (*INTEGERS, *FLOATS), (5, 6), True),
    ("setp.lt", SIGNED, (-5, 6), True),
    ("setp.lt", (*INTEGERS, *FLOATS), (5, 5), False),
    ("setp.le", (*INTEGERS, *FLOATS), (5, 5), True),
    ("setp.le", (*INTEGERS, *FLOATS), (6, 5), False),
    ("setp.gt", (*INTEGERS, *FLOATS), (6, 5), True),
    ("setp.gt", (*INTEGERS, *FLOATS), (5, 5), False),
    ("setp.ge", (*INTEGERS, *FLOATS), (5, 6), False),
    ("setp.ge", (*INTEGERS, *FLOATS), (5, 5), True),
    ("setp.ge", FLOATS, (nan, 5), False),
    ("setp.num", FLOATS, (5, 6), True),
    ("setp.num", FLOATS, (nan, 5), False),
    ("setp.num.ftz", ("f32",), (5, nan), False),
    ("setp.nan", FLOATS, (5, nan), True),
    ("setp.nan.ftz", ("f32",), (5, 6), False),
    ("cvt.s64", ("s32",), (-5,), -5),
    ("cvt.u64", ("s32",), (-5,), 2**64 - 5),
    ("cvt.u64", ("u32",), (2**32 - 5,), 2**32 - 5),
    ("cvt.u32", ("u64",), (2**40 + 5,), 5),
    ("cvt.s32", ("s64",), (2**40 - 5,), -5),
    ("cvt.sat.f32", ("f32",), (1.5,), 1),
    ("cvt.sat.f32", ("f32",), (nan,), 0),
    ("cvt.ftz.sat.f32", ("f32",), (-3,), 0),
]
for name in ("eq", "ne", "lt", "le", "gt", "ge"):
    CASES += [(f"setp.{name}u", FLOATS, (nan, 5), True), (f"setp.{name}u.ftz", ("f32",), (5, nan), True)]
    CASES += [(f"setp.{name}.ftz", ("f32",), (2.0**-130, 0), name in ("eq", "le", "ge"))]
CASES += [(f"cvt.{to}", tuple(t for t in INTEGERS if t != to), (5,), 5) for to in INTEGERS]


@pytest.mark.parametrize(("opcode", "types", "operands", "expected"), CASES)
def test_instruction(opcode, types, operands, expected):
    for type_name in types:
        found = compute(f"{opcode}.{type_name}", operands)
        if isinstance(expected, float) and math.isnan(expected):
            assert np.isnan(found), type_name
        else:
            assert found == expected, type_name
            assert math.copysign(1, found) == math.copysign(1, expected) or type_name not in FLOATS


@pytest.mark.parametrize(
    ("opcode", "true", "error"), [("ex2", lambda a: 2.0**a, 2**-22), ("rcp", lambda a: 1 / a, 2**-23)]
)
def test_approximate_instruction(opcode, true, error):
    """It is as wrong as the hardware may be, in both directions."""
    operands = [-3.7, -1.25, 0.3, 0.77, 1.1, 2.9, 6.5, 11.2]
    errors = []
    for a in map(np.float32, operands):
        exact = true(float(a))
        errors.append((compute(f"{opcode}.approx.ftz.f32", (a,)) - exact) / exact)
    assert 0.9 * error < max(errors) < 2 * error
    assert 0.9 * error < -min(errors) < 2 * error
    assert compute("ex2.approx.ftz.f32", (-200,)) == 0
    assert compute("rcp.approx.ftz.f32", (inf,)) == 0


def test_every_instruction_has_a_case():
    cases = {f"{opcode}.{type_name}" for opcode, types, *_ in CASES for type_name in types}
    in_16_bits = {"and.b16", "cvt.u16.u32", "mul.wide.u16"}  # which no memory holds here; test_shared_blocks runs them
    assert cases == set(OPERATIONS) - {"ex2.approx.ftz.f32", "rcp.approx.ftz.f32"} - in_16_bits


# --- moving, parting and meeting -----------------------------------------------------------------------------------

STORE = "st.global.u64 [%rd2], {};"
SHARED = ".shared .align 16 .b8 tile[1024];"


def test_moves_between_registers_of_32_and_64_bits():
    body = """mov.b64 %rd3, 0x1122334455667788; mov.b64 {%r2, %r3}, %rd3; mov.b64 %rd4, {%r3, %r2};
        {
        .reg .b32 %temp; mov.b64 {%temp, %r3}, %rd4; mov.b64 {_, %r3}, %rd4;
        }
        cvt.u64.u32 %rd5, %r3; add.s64 %rd4, %rd4, %rd5;"""
    assert run(body + STORE.format("%rd4"))[0] == 0x5566778811223344 + 0x55667788


def test_special_registers():
    body = """mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mad.lo.s32 %r4, %r2, %r3, %r1; mov.u32 %r5, %nctaid.x;
        mad.lo.s32 %r4, %r4, 10, %r5; mul.wide.u32 %rd5, %r2, 512; add.s64 %rd2, %rd2, %rd5; cvt.u64.u32 %rd3, %r4;"""
    assert run(body + STORE.format("%rd3"), threads=64, blocks=3, size=192).tolist() == [10 * t + 3 for t in range(192)]


@pytest.mark.parametrize(("type_name", "width"), [("f32", 1), ("f32", 2), ("f32", 4), ("f64", 1), ("f64", 2)])
def test_loads_and_stores(type_name, width):
    size, registers = width * ptx.TYPES[type_name].itemsize, [f"{REGISTERS[type_name]}{k}" for k in range(width)]
    vector = f"{{{', '.join(registers)}}}" if width > 1 else registers[0]
    access = f"v{width}.{type_name}" if width > 1 else type_name
    body = f"""mul.lo.s32 %r2, %r1, {size}; mov.u32 %r3, tile; add.s32 %r3, %r3, %r2; cvt.u64.u32 %rd3, %r2;
        add.s64 %rd4, %rd1, %rd3; ld.global.cs.{access} {vector}, [%rd4+1024]; st.shared.{access} [%r3], {vector};
        ld.shared.{access} {vector}, [%r3+0]; st.global.{access} [%rd4], {vector};"""
    out, memory = np.arange(256), Global()
    machine.launch(ptx.parse(kernel(body, SHARED)), 1, 32, [struct.pack("<Q", memory.add("out", out))], memory)
    assert out[: 4 * size].tobytes() == np.arange(128, 128 + 4 * size).tobytes()


def test_threads_part_and_meet():
    """A loop of as many turns as the number of the thread, and a branch in it."""
    body = """mov.u32 %r2, 0; mov.u32 %r3, 0;
        $loop: setp.ge.u32 %p1, %r2, %r1; @%p1 bra $done; and.b32 %r4, %r2, 1; setp.eq.s32 %p2, %r4, 0;
        @!%p2 bra $odd; add.s32 %r3, %r3, 100; bra.uni $next;
        $odd: add.s32 %r3, %r3, 1;
        $next: add.s32 %r2, %r2, 1; bra $loop;
        $done: cvt.u64.u32 %rd3, %r3;"""
    assert run(body + STORE.format("%rd3")).tolist() == [(t + 1) // 2 * 100 + t // 2 for t in range(32)]


@pytest.mark.parametrize(
    ("opcode", "operand", "expected"),
    [("bfly", "5", lambda t: t ^ 5), ("idx", "37", lambda t: t // 32 * 32 + 5), ("bfly", "33", lambda t: t ^ 1)],
)
def test_shuffles(opcode, operand, expected):
    body = f"shfl.sync.{opcode}.b32 %r2|%p1, %r1, {operand}, 31, -1; cvt.u64.u32 %rd3, %r2;" + STORE.format("%rd3")
    assert run(body, threads=64).tolist() == [expected(t) for t in range(64)]


def test_a_shuffle_waits_for_the_lanes_of_its_mask():
    """The even lanes come later than the odd ones, and each half shuffles by itself."""
    body = """and.b32 %r2, %r1, 1; setp.eq.s32 %p1, %r2, 0; mov.u32 %r3, 0xAAAAAAAA; @!%p1 bra $meet;
        mov.u32 %r3, 0x55555555;
        $meet: shfl.sync.bfly.b32 %r4|%p2, %r1, 2, 31, %r3; bar.warp.sync -1; cvt.u64.u32 %rd3, %r4;"""
    assert run(body + STORE.format("%rd3")).tolist() == [t ^ 2 for t in range(32)]


def test_barriers_order_shared_memory():
    body = """shl.b32 %r2, %r1, 2; mov.u32 %r3, tile; add.s32 %r4, %r3, %r2; st.shared.u32 [%r4], %r1; bar.sync 0;
        xor.b32 %r5, %r2, 508; add.s32 %r5, %r3, %r5; ld.shared.u32 %r6, [%r5]; bar.sync 0; st.shared.u32 [%r4], %r6;
        cvt.u64.u32 %rd3, %r6;"""
    assert run(body + STORE.format("%rd3"), threads=128, shared=SHARED).tolist() == list(range(127, -1, -1))


# --- planted faults ------------------------------------------------------------------------------------------------

# Each thread writes its word of shared memory and reads that of the thread so many bytes away.
EXCHANGE = """shl.b32 %r2, %r1, 2; mov.u32 %r3, tile; add.s32 %r4, %r3, %r2; st.shared.u32 [%r4], %r1;
    {barrier} xor.b32 %r5, %r2, {distance}; add.s32 %r5, %r3, %r5; ld.shared.u32 %r6, [%r5]; {after}
    cvt.u64.u32 %rd3, %r6; st.global.u64 [%rd2], %rd3;"""
WRITE = "st.shared.u32 [%r4], 7;"


@pytest.mark.parametrize(
    ("barrier", "distance", "after"),
    [
        ("", 128, ""),  # left out
        ("", 4, ""),  # left out between lanes of a warp
        ("shfl.sync.bfly.b32 %r7|%p2, %r1, 1, 31, -1;", 4, ""),  # a shuffle does not order memory
        ("bar.warp.sync -1;", 128, ""),  # a warp's in place of the block's
        ("bar.sync 0;", 128, WRITE),  # written while another warp still reads
        ("bar.sync 0;", 4, WRITE),  # written while another lane still reads
    ],
)
def test_a_missing_barrier(barrier, distance, after):
    with pytest.raises(FaultError, match="race of threads"):
        run(EXCHANGE.format(barrier=barrier, distance=distance, after=after), threads=64, shared=SHARED)
    run(
        EXCHANGE.format(barrier="bar.sync 0;", distance=distance, after="bar.sync 0;" + after),
        threads=64,
        shared=SHARED,
    )


# Name, what the error says, and the kernel, run by two warps.
FAULTS = """
two warps write: race of threads
    mov.u32 %r3, tile; and.b32 %r2, %r1, 31; shl.b32 %r2, %r2, 2; add.s32 %r3, %r3, %r2; st.shared.u32 [%r3], %r1;
two lanes write at once: race of threads
    mov.u32 %r3, tile; st.shared.u32 [%r3], %r1;
two threads write to global memory: several threads write
    st.global.u64 [%rd1], 1;
a lane missing at a shuffle: do not come
    setp.eq.s32 %p1, %r1, 3; @%p1 bra $over; shfl.sync.bfly.b32 %r2|%p2, %r1, 1, 31, -1; $over: bar.sync 0;
a lane that has ended before a shuffle: has ended
    setp.eq.s32 %p1, %r1, 3; @!%p1 bra $on; ret; $on: shfl.sync.bfly.b32 %r2|%p2, %r1, 1, 31, -1;
lanes at different shuffles: do not come
    setp.lt.u32 %p1, %r1, 20; @%p1 bra $other; shfl.sync.bfly.b32 %r2|%p2, %r1, 1, 31, -1; bra $end;
    $other: shfl.sync.bfly.b32 %r2|%p2, %r1, 1, 31, -1; $end:
a lane outside of its own mask: not in its own mask
    shfl.sync.bfly.b32 %r2|%p2, %r1, 1, 31, 0xFFFF;
a value of a lane that takes no part: does not take part
    and.b32 %r4, %r1, 31; setp.lt.u32 %p1, %r4, 16; mov.u32 %r3, 0xFFFF; @%p1 bra $meet; mov.u32 %r3, 0xFFFF0000;
    $meet: shfl.sync.bfly.b32 %r2|%p2, %r1, 16, 31, %r3;
a thread missing at a barrier: not all threads
    setp.eq.s32 %p1, %r1, 40; @%p1 bra $end; bar.sync 0; $end:
threads at different barriers: different barriers
    setp.lt.u32 %p1, %r1, 32; @%p1 bra $other; bar.sync 0; bra $end; $other: bar.sync 0; $end:
beyond the array: bytes 8 to 516 of out, which has 512
    st.global.u32 [%rd2+8], 1;
before the array: bytes -4 to
    st.global.u32 [%rd2+-4], 1;
not aligned: no multiple of 4
    st.global.u32 [%rd2+1], 1;
a vector not aligned: no multiple of 16
    st.global.v4.f32 [%rd2], {%f1, %f1, %f1, %f1};
beyond shared memory: byte 1024 of 1024
    mov.u32 %r3, tile; ld.shared.u32 %r2, [%r3+1024];
a read of unwritten shared memory: undefined value
    mov.u32 %r3, tile; ld.shared.u64 %rd3, [%r3]; add.s64 %rd3, %rd3, 1; st.global.u64 [%rd2], %rd3;
a half of it unwritten: undefined value
    shl.b32 %r2, %r1, 3; mov.u32 %r3, tile; add.s32 %r3, %r3, %r2; st.shared.u32 [%r3], 1;
    ld.shared.u64 %rd3, [%r3]; st.global.u64 [%rd2], %rd3;
by way of a shuffle: undefined value
    mov.u32 %r3, tile; ld.shared.u32 %r2, [%r3]; shfl.sync.bfly.b32 %r4|%p1, %r2, 1, 31, -1; st.global.u32 [%rd2], %r4;
a register that some threads have not set: undefined value
    setp.lt.u32 %p1, %r1, 20; @%p1 bra $set; bra $end; $set: mov.u64 %rd3, 1; $end: st.global.u64 [%rd2], %rd3;
an undefined condition: undefined condition
    mov.u32 %r3, tile; ld.shared.u32 %r2, [%r3]; setp.eq.s32 %p1, %r2, 0; @%p1 bra $end; $end:
an undefined address: undefined address
    st.global.u64 [%rd7], %rd1;
a value of a lane that comes later: does not take part
    and.b32 %r4, %r1, 31; mov.u32 %r3, 0xFFFF; setp.ge.u32 %p1, %r4, 16; @%p1 bra $end;
    shfl.sync.bfly.b32 %r2|%p2, %r1, 16, 31, %r3; $end:
a warp's barrier of other lanes: race of threads
    mov.u32 %r3, tile; shl.b32 %r2, %r1, 2; add.s32 %r4, %r3, %r2; setp.ge.u32 %p1, %r1, 16; @%p1 bra $up;
    st.shared.u32 [%r4], %r1; bar.warp.sync 0xFFFF; bra $end; $up: ld.shared.u32 %r5, [%r4+-64]; $end:
an undefined lane of a shuffle: undefined lane
    shfl.sync.idx.b32 %r2|%p1, %r1, %r9, 31, -1;
an undefined mask of a shuffle: undefined lane
    not.b32 %r8, %r9; shfl.sync.idx.b32 %r2|%p1, %r1, 0, 31, %r8;
an undefined mask of a warp's barrier: undefined lane
    not.b32 %r8, %r9; bar.warp.sync %r8;
of one lane, by way of a shuffle: undefined value
    and.b32 %r3, %r1, 31; setp.ne.u32 %p2, %r3, 5; @%p2 mov.u32 %r2, 7; shfl.sync.bfly.b32 %r4|%p1, %r2, 1, 31, -1;
    setp.eq.u32 %p2, %r3, 4; @%p2 st.global.u32 [%rd2], %r4;
by way of shared memory: undefined value
    mov.u32 %r3, tile; shl.b32 %r2, %r1, 2; add.s32 %r3, %r3, %r2; st.shared.u32 [%r3], %r9; ld.shared.u32 %r4, [%r3];
    st.global.u32 [%rd2], %r4;
selected by what is undefined: undefined value
    selp.u64 %rd3, 1, 2, %p8; st.global.u64 [%rd2], %rd3;
the lower half undefined: undefined value
    mov.b64 %rd3, {%r9, %r1}; st.global.u64 [%rd2], %rd3;
the upper half undefined: undefined value
    mov.b64 %rd3, {%r1, %r9}; st.global.u64 [%rd2], %rd3;
a half of what is undefined: undefined value
    mov.b64 {%r2, %r3}, %rd9; st.global.u32 [%rd2], %r3;
the second word of a vector unwritten: undefined value
    shl.b32 %r2, %r1, 3; mov.u32 %r3, tile; add.s32 %r3, %r3, %r2; st.shared.u32 [%r3], 1;
    ld.shared.v2.u32 {%r4, %r5}, [%r3]; st.global.u32 [%rd2], %r5;
divided by zero: undefined value
    div.u32 %r2, %r1, 0; st.global.u32 [%rd2], %r2;
before shared memory: byte -4 of
    mov.u32 %r3, tile; ld.shared.u32 %r2, [%r3+-4];
a write and a read of global memory: several threads write
    st.global.u64 [%rd2], 1; xor.b32 %r2, %r1, 1; mul.wide.u32 %rd3, %r2, 8; add.s64 %rd3, %rd1, %rd3;
    ld.global.u64 %rd4, [%rd3];
an endless loop: does not end
    $here: bra $here;
"""
FAULTS = {
    name: (words, body) for name, words, body in re.findall(r"^(\w.*): (.*)\n((?:    .*\n)+)", FAULTS, re.MULTILINE)
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault(fault, monkeypatch):
    monkeypatch.setattr(machine, "MOST_STEPS", 10_000)
    words, body = FAULTS[fault]
    with pytest.raises(FaultError, match=words):
        run(body, threads=64, shared=SHARED)


@pytest.mark.parametrize("seed", range(10))
def test_races_are_those_of_all_pairs_of_accesses(seed):
    """Accesses of six threads of three warps in any order, against each access compared with each before it."""
    rng, tile = random.Random(seed), ptx.parse(kernel("", ".shared .align 16 .b8 tile[32];"))
    for _ in range(200):
        shared, before, phase, raced = Shared(tile, 96), [], [0, 0, 0, 0], False
        while not raced and len(before) < 40:
            if rng.random() < 0.3:
                met = rng.choice([(1,), (2,), (1, 2), (0, 1, 2, 3)])  # warps from 1 on; with 0 the whole block
                phase = [p + (k in met) for k, p in enumerate(phase)]
                shared.barrier() if 0 in met else shared.meet(np.isin(np.arange(96) // 32 + 1, met))
                continue
            write, size = rng.random() < 0.4, rng.choice([4, 8, 16])
            who = np.array(sorted(rng.sample([0, 1, 2, 32, 33, 64], rng.choice([1, 1, 1, 2, 3]))))
            addresses = np.array([rng.choice([0, 0, 16, 32 - size]) for _ in who])
            for a, t in zip(addresses.tolist(), who.tolist(), strict=True):
                for word in range(a // 4, (a + size) // 4):
                    now = (word, t, write, phase[0], phase[t // 32 + 1])
                    raced |= any(is_race(now, then) for then in before)
                    before.append(now)
            with pytest.raises(FaultError, match="race") if raced else nullcontext():
                shared.check(addresses, size, who, write)


def is_race(now, then):
    word, t, write, phase, warp_phase = now
    other_word, other, wrote, other_phase, other_warp_phase = then
    unordered = other // 32 != t // 32 or other_warp_phase == warp_phase
    return word == other_word and t != other and (write or wrote) and phase == other_phase and unordered


def test_races_between_blocks():
    """The same thread of either block; what both read is no race, nor what an earlier launch has written."""
    with pytest.raises(FaultError, match="several threads write"):
        run("st.global.u64 [%rd2], 1;", blocks=2)
    out, memory = np.zeros(32, np.int64), Global()
    address = struct.pack("<Q", memory.add("out", out))
    machine.launch(ptx.parse(kernel("st.global.u64 [%rd2], 1;")), 1, 32, [address], memory)
    machine.launch(ptx.parse(kernel("ld.global.u64 %rd3, [%rd1];")), 2, 32, [address], memory)


@pytest.mark.parametrize(
    ("threads", "blocks", "size"),
    [(48, 1, 8), (1056, 1, 8), (64, 1, 8), (0, 1, 8), (32, 0, 8), (32, 2**31, 8), (32, 1, 4)],
)
def test_a_launch_that_is_not_possible(threads, blocks, size):
    text = kernel("").replace("out)\n{", "out)\n.maxntid 32, 1, 1\n{") if threads == 64 else kernel("")
    with pytest.raises(FaultError):
        machine.launch(ptx.parse(text), blocks, threads, [bytes(size)], Global(), only=range(0))


def test_instructions_are_counted_by_warp():
    text = kernel("setp.lt.u32 %p1, %r1, 32; @%p1 bra $end; add.s32 %r2, %r1, 1; $end:")
    issued = machine.launch(ptx.parse(text), 2, 96, [bytes(8)], Global())
    assert (issued["setp.lt.u32"], issued["add.s32"], issued["ret"]) == (6, 4, 6)


def test_shared_arrays_are_aligned():
    assert ptx.parse(kernel("", ".shared .align 4 .b8 a[12]; .shared .align 16 .b8 b[16];")).shared["b"] == (16, 16)


def test_what_is_not_a_fault():
    """Undefined values may be moved and computed with, warps may meet by themselves; selp takes the defined side."""
    within = EXCHANGE.format(barrier="bar.warp.sync -1;", distance=4, after="bar.warp.sync -1;" + WRITE)
    assert run(within, threads=64, shared=SHARED).tolist() == [t ^ 1 for t in range(64)]
    inactive = "setp.lt.u32 %p1, %r1, 8; @%p1 mov.u64 %rd3, 5; @%p1 st.global.u64 [%rd2], %rd3;"
    assert run(inactive).tolist() == [5] * 8 + [0] * 24
    select = "mov.u32 %r3, tile; ld.shared.u64 %rd3, [%r3]; add.s64 %rd3, %rd3, 1; setp.ge.u32 %p1, %r1, 0;"
    assert run(select + "selp.b64 %rd4, 9, %rd3, %p1;" + STORE.format("%rd4"), shared=SHARED).tolist() == [9] * 32


UNKNOWN = """atom.global.add.u32 %r2, [%rd1], 1; red.shared.add.u32 [%r2], 1; ld.local.u32 %r2, [%rd1];
    ld.u32 %r2, [%rd1]; call foo, (%r1); add.f16 %r1, %r1, %r1; bar.sync 1; @%p1 bar.sync 0; bra $nowhere;
    shfl.sync.down.b32 %r2|%p1, %r1, 1, 31, -1; shfl.sync.bfly.b32 %r2|%p1, %r1, 1, 4127, -1; add.s32 %r1, %rd1, 1;
    shfl.sync.idx.b32 %r2, %r1, 1, 31, -1; mov.u32 %r1, nothing; mov.u32 %r1, %clock;
    .local .align 4 .b8 depot[16]; ld.param.u64 %rd3, [out+8]"""


@pytest.mark.parametrize("line", [line.strip() for line in UNKNOWN.split(";")])
def test_what_is_not_known_is_an_error_with_its_line(line):
    with pytest.raises(NotKnownError) as raised:
        run(line + ";")
    assert line in str(raised.value)
