"""What the kernels need beyond the subset common to both frameworks, in numba-cuda."""

from typing import Any

from llvmlite import ir
from numba import cuda, float32, float64, types
from numba.cuda import dispatcher
from numba.cuda.extending import intrinsic

config = dispatcher.config  # which is in another module of numba-cuda from version to version
REALS = {4: float32, 8: float64}  # by itemsize
ALL_LANES = 0xFFFFFFFF
GLOBAL = 1  # number of the address space


def device(function: Any) -> Any:
    """A function that kernels call, compiled into them."""
    return cuda.jit(device=True, forceinline=True)(function)


@device
def shuffle(value: Any, lane: Any) -> Any:
    """What ``lane`` holds; all lanes of the warp must take part."""
    return cuda.shfl_sync(ALL_LANES, value, lane)


@device
def shuffle_xor(value: Any, lanes: Any) -> Any:
    """What the lane ``lanes`` away holds; all lanes of the warp must take part."""
    return cuda.shfl_xor_sync(ALL_LANES, value, lanes)


@intrinsic
def about_reciprocal(typing: Any, value: Any) -> Any:
    """1 / value to a relative error of 2**-23, in float64 of 2**-20, for a normal number.

    A division contains a call, for numbers that are not normal. What a thread needs after a call has room in half of
    its registers only, even if the call does not happen. 30x30 in float32 on sm_75, at 128 registers a thread: with a
    division 56 bytes are spilled, with this none.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        real, letter = args[0].type, {32: "f", 64: "d"}[value.bitwidth]
        assembly = f"rcp.approx.ftz.f{value.bitwidth} $0, $1;"
        return builder.call(ir.InlineAsm(ir.FunctionType(real, [real]), assembly, f"={letter},{letter}"), args)

    return value(value), generate


def _pointer(context: Any, builder: Any, kind: Any, where: Any, index: Any, real: Any, count: int) -> Any:
    """A pointer to ``count`` neighbours from ``index`` on of an array, or of the global memory from an address on."""
    if isinstance(kind, types.Integer):
        data = builder.inttoptr(where, ir.PointerType(context.get_data_type(real), addrspace=GLOBAL))
    else:
        data = context.make_array(kind)(context, builder, where).data
    vector = ir.VectorType(context.get_data_type(real), count)
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer(data.type.addrspace))


def _mover(count: int) -> Any:
    """The function that copies ``count`` neighbouring elements in one access, of an aligned address.

    It takes two places, each a memory and an index. A memory is a contiguous array of any shape, shared or in
    registers, through which the index goes in C order, or an address in global memory.
    """

    @intrinsic
    def move(typing: Any, target: Any, to: Any, source: Any, at: Any) -> Any:
        real = source.dtype if isinstance(target, types.Integer) else target.dtype

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            read, write = (
                _pointer(context, builder, signature.args[k], args[k], args[k + 1], real, count) for k in (2, 0)
            )
            align = count * real.bitwidth // 8
            builder.store(builder.load(read, align=align), write, align=align)
            return context.get_dummy_value()

        return types.void(target, types.int64, source, types.int64), generate

    return move


MOVERS = {count: _mover(count) for count in (1, 2, 4)}
