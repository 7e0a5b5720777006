"""Sums of any number of terms, with the errors of the additions; the kernel that adds parts of dW: shared_sums.cuh.

The parts are what the blocks of a kernel for one W leave.
"""

from typing import Any

import numpy as np

from sigmoid_l2.kernels.gpu.common import TYPES, cuda, device, framework, load_value, store_value


@device
def add_exactly(high: Any, low: Any, term: Any) -> Any:
    """The sum high + low and a term, of which low has the errors of the additions (Knuth's TwoSum)."""
    total = high + term
    added = total - high
    return total, low + ((high - (total - added)) + (term - added))


@device
def rounded_once(high: Any, low: Any) -> Any:
    """The sum as one number: high alone where it is infinite, because low is NaN then."""
    return high + low if low == low else high


def sums_function(COLUMNS: int, LOADERS: int, itemsize: int) -> Any:
    """The kernel's Python function.

    A block adds the parts of COLUMNS values: each of LOADERS threads some of a value, and then those of its loaders by
    halves. Part p of value v is at v * value_step + p * part_step. Grid: ceil(values / COLUMNS) blocks of
    COLUMNS * LOADERS threads.
    """
    AT_ONCE, THREADS, STEPS = 8, COLUMNS * LOADERS, LOADERS.bit_length() - 1
    real, zero, nothing = framework.REALS[itemsize], TYPES[itemsize](0), TYPES[itemsize](-0.0)
    load, store = load_value(itemsize), store_value(itemsize)

    def shared_sums(parts: Any, dW: Any, values: Any, count: Any, value_step: Any, part_step: Any) -> None:
        highs, lows = cuda.shared.array(THREADS, real), cuda.shared.array(THREADS, real)
        held = cuda.local.array(AT_ONCE, real)
        t = np.uint32(cuda.threadIdx.x)
        loader = np.uint32(t // COLUMNS)
        value = np.int64(np.uint32(cuda.blockIdx.x)) * COLUMNS + t % COLUMNS
        high, low = nothing, zero

        # --- some parts of a value -----------------------------------------------------------------------------------
        first = np.int64(loader)
        while value < values and first < count:
            for k in range(AT_ONCE):
                held[k] = nothing
                part = first + k * LOADERS
                if part < count:
                    held[k] = load(parts, value * value_step + part * part_step)
            for k in range(AT_ONCE):
                high, low = add_exactly(high, low, held[k])
            first += AT_ONCE * LOADERS

        # --- all of them ---------------------------------------------------------------------------------------------
        highs[t] = high
        lows[t] = low
        for step in range(STEPS):
            half = np.uint32(LOADERS >> 1 >> step)
            cuda.syncthreads()
            if loader < half:
                other = np.uint32(t + half * COLUMNS)
                high, low = add_exactly(high, low + lows[other], highs[other])
                highs[t] = high
                lows[t] = low
        if loader == 0 and value < values:
            store(dW, value, rounded_once(high, low))

    return shared_sums
