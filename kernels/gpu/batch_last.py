"""The kernel for arrays whose last axis is that of the pairs: batch_last.cuh in numba.cuda.

A thread owns a pair. Neighbouring threads touch neighbouring addresses whichever element they load, so nothing goes
through shared memory, and no thread waits for another. Names in capitals are constants of a compiled kernel.
"""

from functools import cache
from typing import Any

import numpy as np

from sigmoid_l2.kernels import Given, Wanted
from sigmoid_l2.kernels.gpu.common import (
    TYPES,
    add_scaled,
    cuda,
    device,
    dot,
    error_and_g,
    framework,
    load_global,
    load_value,
    multiply_add,
    scale,
    store_global,
    store_value,
)
from sigmoid_l2.kernels.gpu.plan_types import BatchLast

HERE = np.int64(0)  # the index of what is at an address


@cache
def load_stepwise(count: int) -> Any:
    """Copy ``count`` elements that are ``step`` bytes apart from global memory to registers."""
    load = load_global(True, 1)

    def function(target: Any, to: Any, address: Any, step: Any) -> None:
        for j in range(count):
            load(target, to + j, address, HERE)
            address += step

    return device(function)


@cache
def store_stepwise(count: int) -> Any:
    """Copy ``count`` elements from registers to global memory, where they are ``step`` bytes apart."""
    store = store_global(True, 1)

    def function(address: Any, step: Any, source: Any, at: Any) -> None:
        for j in range(count):
            store(address, HERE, source, at + j)
            address += step

    return device(function)


def batch_last_function(plan: BatchLast, N: int, itemsize: int, given: Given, wanted: Wanted) -> Any:
    """The kernel's Python function for rows of N. Grid: ceil(B / THREADS) blocks of THREADS threads.

    x and dx of a pair stay in registers. ROWS rows are loaded before the first of them is used; where not EVEN, the
    last of these groups has fewer. A step is the distance of two neighbours along an axis, in elements; that of the
    last axis is 1. In the kernel they are bytes, and added to addresses.
    """
    THREADS, ROWS, EVEN = plan
    GIVEN_TARGET, GIVEN_COTANGENT = given
    WANT_LOSS, WANT_DW, WANT_DX, WANT_DQ = wanted
    real, zero, one = framework.REALS[itemsize], TYPES[itemsize](0), TYPES[itemsize](1)
    W_OWN, ITEM = ROWS * N, np.int64(itemsize)
    e_and_g = error_and_g(given, itemsize)
    load_row, store_row = load_stepwise(N), store_stepwise(N)
    load_one, store_one = load_value(itemsize), store_value(itemsize)
    dot_row, add_scaled_row, scale_row = dot(N), add_scaled(N), scale(N)

    def batch_last(
        W: Any,  # (m, N, B)
        x: Any,  # (N, B)
        target: Any,  # (m, B)
        cotangent: Any,  # (B,)
        loss: Any,  # (B,)
        dW: Any,  # (m, N, B)
        dx: Any,  # (N, B)
        dq: Any,  # (m, B)
        B: Any,
        m: Any,
        W_row_step: Any,
        W_step: Any,
        x_step: Any,
        target_step: Any,
        dW_row_step: Any,
        dW_step: Any,
        dx_step: Any,
        dq_step: Any,
    ) -> None:
        x_own, dx_own = cuda.local.array(N, real), cuda.local.array(N, real)
        W_own, dW_own = cuda.local.array(W_OWN, real), cuda.local.array(N, real)
        y_own = cuda.local.array(ROWS, real)
        pair = np.int64(np.uint32(cuda.blockIdx.x)) * THREADS + np.uint32(cuda.threadIdx.x)
        if pair >= B:
            return

        # --- x and the cotangent -------------------------------------------------------------------------------------
        own = pair * ITEM
        load_row(x_own, 0, x + own, x_step * ITEM)
        c_own, total = one, zero
        if GIVEN_COTANGENT:
            c_own = load_one(cotangent, pair)
        for j in range(N):
            dx_own[j] = zero
        W_at, target_at, dW_at, dq_at = W + own, target + own, dW + own, dq + own

        left = m
        while left > 0:
            # --- the next rows of W and of the target ----------------------------------------------------------------
            a = 0
            while a < ROWS:
                y_own[a] = zero
                if EVEN or a < left:
                    load_row(W_own, a * N, W_at, W_step * ITEM)
                    if GIVEN_TARGET:
                        y_own[a] = load_one(target_at, HERE)
                    W_at += W_row_step * ITEM
                    target_at += target_step * ITEM
                a += 1
            a = 0
            while a < ROWS:
                if EVEN or a < left:
                    # --- q = W x, e, g and loss ----------------------------------------------------------------------
                    e, g = e_and_g(dot_row(W_own, a * N, x_own, 0, zero), y_own[a], c_own)
                    total = multiply_add(e, e, total)
                    if WANT_DQ:
                        store_one(dq_at, HERE, g)

                    # --- dW = g x^T, dx += W^T g ---------------------------------------------------------------------
                    if WANT_DW:
                        scale_row(dW_own, 0, g, x_own, 0)
                        store_row(dW_at, dW_step * ITEM, dW_own, 0)
                    if WANT_DX:
                        add_scaled_row(dx_own, 0, g, W_own, a * N)
                    dq_at += dq_step * ITEM
                    dW_at += dW_row_step * ITEM
                a += 1
            left -= ROWS

        # --- loss and dx ---------------------------------------------------------------------------------------------
        if WANT_LOSS:
            store_one(loss, pair, total)
        if WANT_DX:
            store_row(dx + own, dx_step * ITEM, dx_own, 0)

    return batch_last
