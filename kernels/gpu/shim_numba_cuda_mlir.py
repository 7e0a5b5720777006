"""What the kernels need beyond the subset common to both frameworks, in numba-cuda-mlir; see shim_numba_cuda.py.

Written for and compiled with version 0.6.0.
"""

from typing import Any

from numba_cuda_mlir import cuda, types
from numba_cuda_mlir._mlir import ir
from numba_cuda_mlir._mlir.dialects import arith, llvm, nvvm, vector
from numba_cuda_mlir.extending import intrinsic
from numba_cuda_mlir.lowering_utilities import memref_data_pointer
from numba_cuda_mlir.numba_cuda.core import config as config  # for launch_numba.py
from numba_cuda_mlir.types import float32, float64

REALS = {4: float32, 8: float64}  # by itemsize
GLOBAL = 1  # number of the address space
DYNAMIC = -(2**31)  # LLVM's mark for an index that is a value


def device(function: Any) -> Any:
    """A function that kernels call, compiled into them."""
    return cuda.jit(device=True, forceinline=True)(function)


def _shuffle(kind: Any) -> Any:
    """The function that tells what another lane holds; cuda.shfl_sync and others of 0.6.0 round float64 to float32."""

    @intrinsic
    def shuffle(typing: Any, value: Any, lane: Any) -> Any:
        def generate(lower: Any, target: Any, args: Any, kwargs: Any) -> None:
            word = ir.IntegerType.get_signless(32)
            words = ir.VectorType.get([value.bitwidth // 32], word)
            whole, number = (
                llvm.bitcast(words, lower.load_var(args[0])),
                lower.mlir_convert(lower.load_var(args[1]), word),
            )
            all_lanes, clamp = arith.constant(word, -1), arith.constant(word, 31)
            parts = [
                nvvm.shfl_sync(all_lanes, vector.extract(whole, [], [k]), number, clamp, kind)
                for k in range(words.shape[0])
            ]
            lower.store_var(target, llvm.bitcast(lower.get_mlir_type(value), vector.from_elements(words, parts)))

        return value(value, types.int32), generate

    return shuffle


shuffle, shuffle_xor = _shuffle(nvvm.ShflKind.idx), _shuffle(nvvm.ShflKind.bfly)  # from lane l; from l lanes away


@intrinsic
def about_reciprocal(typing: Any, value: Any) -> Any:
    """1 / value to a relative error of 2**-23, in float64 of 2**-20, for a normal number."""

    def generate(lower: Any, target: Any, args: Any, kwargs: Any) -> None:
        letter = {32: "f", 64: "d"}[value.bitwidth]
        real, assembly = lower.get_mlir_type(value), f"rcp.approx.ftz.f{value.bitwidth} $0, $1;"
        lower.store_var(target, llvm.inline_asm(real, [lower.load_var(args[0])], assembly, f"={letter},{letter}"))

    return value(value), generate


def _mover(count: int) -> Any:
    """The function that copies ``count`` neighbouring elements in one access, of an aligned address."""

    @intrinsic
    def move(typing: Any, target: Any, to: Any, source: Any, at: Any) -> Any:
        real = source.dtype if isinstance(target, types.Integer) else target.dtype

        def generate(lower: Any, result: Any, args: Any, kwargs: Any) -> None:
            def pointer(kind: Any, place: int) -> Any:
                where = lower.load_var(args[place])
                index = lower.mlir_convert(lower.load_var(args[place + 1]), ir.IntegerType.get_signless(64))
                # memref_to_llvm_ptr would take shared memory for global.
                start = (
                    llvm.inttoptr(llvm.PointerType.get(GLOBAL), where)
                    if isinstance(kind, types.Integer)
                    else memref_data_pointer(where)
                )
                return llvm.getelementptr(start.type, start, [index], [DYNAMIC], lower.get_mlir_type(real), None)

            elements = ir.VectorType.get([count], lower.get_mlir_type(real))
            align = count * real.bitwidth // 8
            read = llvm.load(elements, pointer(source, 2), alignment=align)
            llvm.store(read, pointer(target, 0), alignment=align)
            lower.store_var(result, None)

        return types.void(target, to, source, at), generate

    return move


MOVERS = {count: _mover(count) for count in (1, 2, 4)}  # 0.6.0 does not know intrinsics made after it first compiled
