"""The GPU kernel in numba.cuda. The derivation is in ``sigmoid_l2.kernels.reference``.

Two kernels, chosen by the size of a pair:

* *staged*, for small pairs: a block owns a tile of pairs and carries it through shared memory, so that neighbouring
  threads touch neighbouring addresses of global memory however small a pair is; in between, one thread owns one pair
  and replaces W by dW in place. Compiled for each (m, n).
* *block*, for pairs too large for that: a block owns a pair and goes through its rows; its threads lie along n, sum q_i
  by a tree in shared memory and keep dx in shared memory (in dx itself where a row is longer than COLUMNS).

Both sum in the arrays' dtype, in an order that depends on (m, n) alone.
"""

import math
from functools import cache
from typing import Any

import numpy as np
from numba import cuda, float32, float64

from sigmoid_l2.kernels import cuda_launch
from sigmoid_l2.kernels.cuda_launch import odd


@cuda.jit(device=True)
def _sigmoid_and_complement(q: Any, one: Any) -> Any:
    t = math.exp(-abs(q))
    r = one / (one + t)
    return (t * r, r) if q < 0 else (r, t * r)


def staged_source(m: int, n: int, dtype: np.dtype[Any], pairs: int, wanted: tuple[bool, bool, bool]) -> Any:
    """The Python function of the staged kernel for one (m, n), dtype, tile and choice of outputs."""
    real = {"f4": float32, "f8": float64}[dtype.str[1:]]
    type_ = dtype.type
    zero, one, two = type_(0), type_(1), type_(2)
    mn, W_stride, x_stride = m * n, odd(m * n), odd(n)
    W_tile, x_tile = pairs * W_stride, pairs * x_stride
    want_loss, want_dW, want_dx = wanted

    def sigmoid_l2_staged(W: Any, x: Any, loss: Any, dW: Any, dx: Any, B: Any) -> None:
        W_shared = cuda.shared.array(W_tile, real)  # (pairs, W_stride), W first and dW after
        x_shared = cuda.shared.array(x_tile, real)  # (pairs, x_stride)
        dx_shared = cuda.shared.array(x_tile, real)  # (pairs, x_stride)
        t = cuda.threadIdx.x
        first = np.int64(cuda.blockIdx.x) * pairs
        here = min(np.int64(pairs), B - first)
        for e in range(t, here * mn, pairs):
            W_shared[e // mn * W_stride + e % mn] = W[first * mn + e]
        for e in range(t, here * n, pairs):
            x_shared[e // n * x_stride + e % n] = x[first * n + e]
        cuda.syncthreads()
        if t < here:
            total = zero
            for j in range(n):
                dx_shared[t * x_stride + j] = zero
            for i in range(m):
                row = t * W_stride + i * n
                q = zero
                for j in range(n):
                    q += W_shared[row + j] * x_shared[t * x_stride + j]
                s, c = _sigmoid_and_complement(q, one)
                total += s * s
                g = two * s * (s * c)
                for j in range(n):
                    dx_shared[t * x_stride + j] += g * W_shared[row + j]
                    W_shared[row + j] = g * x_shared[t * x_stride + j]
            if want_loss:
                loss[first + t] = total
        cuda.syncthreads()
        if want_dW:
            for e in range(t, here * mn, pairs):
                dW[first * mn + e] = W_shared[e // mn * W_stride + e % mn]
        if want_dx:
            for e in range(t, here * n, pairs):
                dx[first * n + e] = dx_shared[e // n * x_stride + e % n]

    return sigmoid_l2_staged


def block_source(dtype: np.dtype[Any], threads: int, columns: int, wanted: tuple[bool, bool, bool]) -> Any:
    """The Python function of the block kernel for one dtype, block size, room for dx and choice of outputs.

    ``columns`` of dx are kept in shared memory; with 0, dx is summed in global memory.
    """
    real = {"f4": float32, "f8": float64}[dtype.str[1:]]
    type_ = dtype.type
    zero, one, two = type_(0), type_(1), type_(2)
    dx_is_shared, room = columns > 0, max(1, columns)  # an array of no elements does not compile
    want_loss, want_dW, want_dx = wanted

    def sigmoid_l2_block(W: Any, x: Any, loss: Any, dW: Any, dx: Any, m: Any, n: Any) -> None:
        partial = cuda.shared.array(threads, real)
        dx_shared = cuda.shared.array(room, real)
        t = cuda.threadIdx.x
        b = np.int64(cuda.blockIdx.x)
        total = zero
        if want_dx:
            for j in range(t, n, threads):
                if dx_is_shared:
                    dx_shared[j] = zero
                else:
                    dx[b * n + j] = zero
        for i in range(m):
            row = (b * m + i) * n
            q = zero
            for j in range(t, n, threads):
                q += W[row + j] * x[b * n + j]
            partial[t] = q
            cuda.syncthreads()
            half = threads // 2
            while half > 0:
                if t < half:
                    partial[t] += partial[t + half]
                cuda.syncthreads()
                half //= 2
            s, c = _sigmoid_and_complement(partial[0], one)
            cuda.syncthreads()  # all have read q_i before the next row overwrites it
            total += s * s
            g = two * s * (s * c)
            for j in range(t, n, threads):  # each thread meets only its own columns: no barrier for dx
                if want_dx:
                    if dx_is_shared:
                        dx_shared[j] += g * W[row + j]
                    else:
                        dx[b * n + j] += g * W[row + j]
                if want_dW:
                    dW[row + j] = g * x[b * n + j]
        if want_loss and t == 0:
            loss[b] = total
        if want_dx and dx_is_shared:
            for j in range(t, n, threads):
                dx[b * n + j] = dx_shared[j]

    return sigmoid_l2_block


@cache
def _staged(m: int, n: int, dtype: np.dtype[Any], pairs: int, wanted: tuple[bool, bool, bool]) -> Any:
    return cuda.jit(staged_source(m, n, dtype, pairs, wanted))


@cache
def _block(dtype: np.dtype[Any], threads: int, columns: int, wanted: tuple[bool, bool, bool]) -> Any:
    return cuda.jit(block_source(dtype, threads, columns, wanted))


def fused(W: Any, x: Any, loss: Any, dW: Any, dx: Any, *, stream: int | None = None) -> None:
    """Compute loss, dW and dx for a batch on the current GPU; the contract is in ``sigmoid_l2.kernels``.

    Arrays are numba's device arrays or anything with ``__cuda_array_interface__``.
    """
    B, m, n = W.shape
    dtype = np.dtype(W.dtype)
    wanted = (loss is not None, dW is not None, dx is not None)
    # An output that is not wanted is never touched; W stands in for it, because a kernel's argument must be an array.
    arrays = [_flat(W if a is None else a) for a in (W, x, loss, dW, dx)]
    launch_stream = cuda.external_stream(stream) if stream else 0
    pairs = cuda_launch.tile_pairs(m, n, dtype.itemsize)
    if pairs:
        _staged(m, n, dtype, pairs, wanted)[-(-B // pairs), pairs, launch_stream](*arrays, B)
    else:
        threads = cuda_launch.block_threads(n)
        columns = cuda_launch.COLUMNS if n <= cuda_launch.COLUMNS else 0
        _block(dtype, threads, columns, wanted)[B, threads, launch_stream](*arrays, m, n)


def _flat(a: Any) -> Any:
    flat = a.reshape(-1)
    if hasattr(flat, "copy_to_host"):  # numba's own
        return flat
    # sync=False: streams are ordered by whoever passes them in; numba would wait for the producer's stream.
    return cuda.as_cuda_array(flat, sync=False)
