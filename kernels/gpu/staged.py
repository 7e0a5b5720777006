"""The staged kernel in numba.cuda: a block carries a tile of units, each some rows of one pair, through shared memory.

A lane of a unit owns consecutive rows: it reads W once, row by row, and puts dW in its place; its part of dx stays in
registers until the unit's lanes add theirs up. Compiled for each (m, n).
"""

from collections import Counter
from functools import cache
from typing import Any

import numpy as np

from sigmoid_l2.kernels import Wanted
from sigmoid_l2.kernels.gpu import plan
from sigmoid_l2.kernels.gpu.common import (
    TYPES,
    cuda,
    device,
    forget_memory,
    framework,
    multiply_add,
    shuffle_xor,
    sigmoid_and_complement,
)
from sigmoid_l2.kernels.gpu.plan import Staged

SECTOR_BYTES = 32  # that memory moves at least


def unit_sums(n: int, itemsize: int) -> int:
    """Elements of the workspace for a unit: n partial sums of dx and one of loss, up to a whole sector of memory."""
    sector = SECTOR_BYTES // itemsize
    return -(-(n + 1) // sector) * sector


@cache
def mover(count: int, wide: bool = True) -> Any:
    """The function that copies ``count`` elements, ``wide``: in one access, of an aligned address.

    It takes contiguous arrays of any shape, global, shared or in registers, and goes through them in C order.
    """
    move = framework.MOVERS[count if wide else 1]
    if wide or count == 1:
        return move

    def move_each(target: Any, to: Any, source: Any, at: Any) -> None:
        for k in range(count):
            move(target, to + k, source, at + k)

    return device(move_each)


@cache
def _sum_over_lanes(lanes: int, width: int) -> Any:
    """The function that adds up sums[0 .. width - 1] of ``lanes`` neighbouring lanes, both powers of two.

    Each lane is left with its share, lane l with the sums from l * width // lanes on, in sums[0 ...]. In each step two
    lanes halve what they have: each sends the half that the other keeps. So `width` sums take about as many shuffles,
    where the usual butterfly would take `width` * log2(lanes); the order is that of the butterfly.
    """
    half, kept = lanes // 2, width // 2
    rest: Any = _sum_over_lanes(half, max(1, kept)) if lanes > 1 else None

    def alone(sums: Any, lane: Any) -> None:
        pass

    def halve(sums: Any, lane: Any) -> None:
        for j in range(kept):
            mine, theirs = (sums[j + kept], sums[j]) if lane & half else (sums[j], sums[j + kept])
            sums[j] = mine + shuffle_xor(theirs, half)
        rest(sums, lane)

    def add(sums: Any, lane: Any) -> None:
        sums[0] += shuffle_xor(sums[0], half)
        rest(sums, lane)

    return device(alone if lanes == 1 else halve if kept else add)


BANK_BYTES = 128  # shared memory serves as many side by side at a time
# Of a row that a thread keeps in registers from q to dx, while it also holds as much of x and of dx. With more, blocks
# of 256 threads need up to 199 registers a thread, and a multiprocessor holds one of them; so, 128, and it holds two.
REGISTER_BYTES = 64


def staged_source(p: Staged, m: int, n: int, itemsize: int, wanted: Wanted, wide: bool) -> Any:
    """The Python function of the staged kernel.

    With slices, ``loss`` and ``dx`` are both the workspace: for each unit, n partial sums of dx and one of loss.
    """
    real, type_ = framework.REALS[itemsize], TYPES[itemsize]
    zero, one, two = type_(0), type_(1), type_(2)
    want_loss, want_dW, want_dx = wanted
    threads, lanes, lane_rows, rows, slices = p
    lane_pairs = plan.lane_pairs(m, n, itemsize)
    units, mn, sliced = p.units * lane_pairs, m * n, slices > 1
    W_size, x_size = units * rows * n, units * n
    unit_size, lane_size = rows * n, lane_rows * n
    W_room, W_held_size, W_place, load_W, put_W, store_W, load_some_W, store_some_W = _tile(
        W_size, swizzle(p, n, itemsize), threads, itemsize
    )
    x_room, x_held_size, x_place, load_x, put_x, store_x, load_some_x, store_some_x = _tile(
        x_size, min(BANK_BYTES // itemsize, n & -n) - 1, threads, itemsize
    )
    x_wide = wide and x_size * itemsize % plan.WIDE_BYTES == 0
    sums = unit_sums(n, itemsize)
    # Lanes that add up by shuffles, and the warps of a unit that then add up theirs through shared memory.
    warp = plan.WARP
    together, warps = min(lanes, warp), max(1, lanes // warp)
    width = 1 << (n - 1).bit_length()  # of dx, filled up with zeros
    share = max(1, width // together)
    several, several_warps = lanes > 1, warps > 1
    sum_dx, sum_loss = _sum_over_lanes(together, width), _sum_over_lanes(together, 1)
    sums_size = threads // warp * (n + 1) if several_warps else 1
    reads_again = lane_rows > 1 and n * itemsize > REGISTER_BYTES
    move_one = mover(1)

    def sigmoid_l2_staged(W: Any, x: Any, loss: Any, dW: Any, dx: Any, first_pair: Any, pairs: Any) -> None:
        W_tile = cuda.shared.array(W_room, real, 16)  # W first, dW after
        x_tile = cuda.shared.array(x_room, real, 16)  # x first, dx after
        warp_sums = cuda.shared.array(sums_size, real, 16)  # of dx and loss
        W_held = cuda.local.array(W_held_size, real)
        x_held = cuda.local.array(x_held_size, real)
        total = cuda.local.array(1, real)
        x_unit = cuda.local.array(n, real)
        W_row = cuda.local.array(n, real)
        dx_unit = cuda.local.array(width, real)
        t = cuda.threadIdx.x
        first: Any = np.int64(cuda.blockIdx.x) * units  # unit of the launch
        if sliced:
            pair, row = first_pair + first // slices, first % slices * rows
            here, rows_here = 1, min(rows, m - row)
        else:
            pair, row = first_pair + first, 0
            here, rows_here = min(units, pairs - first), m
        W_first, W_here = pair * mn + row * n, here * rows_here * n
        x_first, x_here = pair * n, here * n
        full = W_here == W_size

        if wide and full:
            load_W(W_held, W, W_first, t)
            if x_wide:
                load_x(x_held, x, x_first, t)
                put_x(x_tile, x_held, t)
            else:
                load_some_x(x_tile, x, x_first, x_here, t)
            put_W(W_tile, W_held, t)
        else:
            load_some_W(W_tile, W, W_first, W_here, t)
            load_some_x(x_tile, x, x_first, x_here, t)
        cuda.syncthreads()

        for turn in range(lane_pairs):
            unit, lane = (turn * threads + t) // lanes, t % lanes
            lane_row = lane * lane_rows
            rows_of_lane = min(lane_rows, rows_here - lane_row) if unit < here else 0
            total[0] = zero
            if want_dx:
                for j in range(width):
                    dx_unit[j] = zero
            if rows_of_lane > 0 and not reads_again:
                for j in range(n):
                    x_unit[j] = x_tile[x_place(unit * n + j)]
            for i in range(lane_rows):
                if i < rows_of_lane:
                    e = unit * unit_size + lane * lane_size + i * n
                    q = zero
                    for j in range(n):
                        if reads_again:
                            q = multiply_add(W_tile[W_place(e + j)], x_tile[x_place(unit * n + j)], q)
                        else:
                            W_row[j] = W_tile[W_place(e + j)]
                            q = multiply_add(W_row[j], x_unit[j], q)
                    s, c = sigmoid_and_complement(q, one)
                    total[0] = multiply_add(s, s, total[0])
                    g = two * s * (s * c)
                    if reads_again:
                        forget_memory()
                    for j in range(n):
                        if want_dx:
                            W_ij = W_tile[W_place(e + j)] if reads_again else W_row[j]
                            dx_unit[j] = multiply_add(g, W_ij, dx_unit[j])
                        if want_dW:
                            x_j = x_tile[x_place(unit * n + j)] if reads_again else x_unit[j]
                            W_tile[W_place(e + j)] = g * x_j

            if several:
                sum_loss(total, lane)
                if want_dx:
                    sum_dx(dx_unit, lane)
                if not several_warps:
                    cuda.syncwarp()  # all lanes have read x before dx takes its place
            in_warp = lane % together
            column = in_warp * width // together
            if want_dx and in_warp * width % together == 0:
                for k in range(share):
                    if column + k < n:
                        if several_warps:
                            warp_sums[t // warp * (n + 1) + column + k] = dx_unit[k]
                        elif unit < here:
                            x_tile[x_place(unit * n + column + k)] = dx_unit[k]
            if several_warps:
                if in_warp == 0:
                    warp_sums[t // warp * (n + 1) + n] = total[0]
                cuda.syncthreads()
                for j in range(lane, n + 1, lanes):
                    of_unit = zero
                    for k in range(warps):
                        of_unit += warp_sums[(unit * warps + k) * (n + 1) + j]
                    if j < n:
                        x_tile[x_place(unit * n + j)] = of_unit
                    else:
                        total[0] = of_unit
            if want_loss and unit < here and lane == (n % lanes if several_warps else 0):
                move_one(loss, (first + unit) * sums + n if sliced else pair + unit, total, 0)
        cuda.syncthreads()

        if want_dW:
            if wide and full:
                store_W(dW, W_first, W_tile, W_held, t)
            else:
                store_some_W(dW, W_first, W_here, W_tile, t)
        if want_dx:
            dx_first = first * sums if sliced else x_first
            if x_wide and full:
                store_x(dx, dx_first, x_tile, x_held, t)
            else:
                store_some_x(dx, dx_first, x_here, x_tile, t)

    return sigmoid_l2_staged


def _tile(size: int, mask: int, threads: int, itemsize: int) -> Any:
    """A tile of ``size`` elements in shared memory, of which e lies at place(e); see swizzle.

    Elements of shared memory, registers of a thread on the way, and functions: place; for a full tile by 16 bytes, load
    from global memory, put what is loaded, and store; for a part of a tile by single elements, load and store. A place
    keeps 16 aligned bytes together, if in another order, so they still move in one access.
    """
    banks, vector = BANK_BYTES // itemsize, plan.WIDE_BYTES // itemsize
    accesses = -(-size // (threads * vector))
    move, move_one = mover(vector), mover(1)

    @device
    def place(e: Any) -> Any:
        return np.uint32(e ^ (e // banks & mask))  # unsigned: numba then does not look for negative indices

    @device
    def reorder(held: Any, at: Any, e: Any) -> None:
        key = e // banks & mask
        if mask & 1:
            for k in range(at, at + vector, 2):
                held[k], held[k + 1] = (held[k + 1], held[k]) if key & 1 else (held[k], held[k + 1])
        if vector == 4 and mask & 2:
            for k in range(at, at + 2):
                held[k], held[k + 2] = (held[k + 2], held[k]) if key & 2 else (held[k], held[k + 2])

    @device
    def load(held: Any, source: Any, first: Any, t: Any) -> None:
        for k in range(accesses):
            e = (k * threads + t) * vector
            if e < size:
                move(held, k * vector, source, first + e)

    @device
    def put(tile: Any, held: Any, t: Any) -> None:
        for k in range(accesses):
            e = (k * threads + t) * vector
            if e < size:
                reorder(held, k * vector, e)
                move(tile, place(e) // vector * vector, held, k * vector)

    @device
    def store(target: Any, first: Any, tile: Any, held: Any, t: Any) -> None:
        for k in range(accesses):
            e = (k * threads + t) * vector
            if e < size:
                move(held, k * vector, tile, place(e) // vector * vector)
                reorder(held, k * vector, e)
                move(target, first + e, held, k * vector)

    @device
    def load_some(tile: Any, source: Any, first: Any, here: Any, t: Any) -> None:
        for e in range(t, here, threads):
            move_one(tile, place(e), source, first + e)

    @device
    def store_some(target: Any, first: Any, here: Any, tile: Any, t: Any) -> None:
        for e in range(t, here, threads):
            move_one(target, first + e, tile, place(e))

    room = -(-size // (mask + 1)) * (mask + 1)  # an element may move as far as the end of its group
    return room, accesses * vector, place, load, put, store, load_some, store_some


def swizzle(p: Staged, n: int, itemsize: int) -> int:
    """The mask with which a tile of W has the fewest bank conflicts.

    Lanes work ``lane_rows * n`` elements apart, and where that is even they meet in the same banks of shared memory.
    So element e of a tile lies at e ^ (e // banks & mask), banks being as many elements as lie side by side: that
    permutes each such run by some of the bits of its number. Where the lanes of all units lie equally far apart, as
    many bits as that distance has factors of two avoid all conflicts; elsewhere the best of the few masks has, over all
    shapes, 1.0 to 2.95 times the accesses that it would take without conflicts, and mostly 1.5.
    """
    banks = BANK_BYTES // itemsize
    masks = [(1 << bits) - 1 for bits in range(banks.bit_length())]
    return min(masks, key=lambda mask: _wavefronts(p, n, banks, mask))


def _wavefronts(p: Staged, n: int, banks: int, mask: int) -> int:
    """How often shared memory is accessed when a warp goes through its rows of W once."""
    lanes = [divmod(t, p.lanes) for t in range(plan.WARP)]
    total = 0
    for i in range(p.lane_rows):
        rows = [u * p.rows + lane * p.lane_rows + i for u, lane in lanes if lane * p.lane_rows + i < p.rows]
        for j in range(n):
            for at in range(0, len(rows), banks):
                e = [row * n + j for row in rows[at : at + banks]]
                total += max(Counter((k ^ (k // banks & mask)) % banks for k in e).values())
    return total


def old_finish_source(itemsize: int, wanted: Wanted) -> Any:
    """The Python function of the finish kernel: a block has WARP columns of a pair's partial sums."""
    real, zero = framework.REALS[itemsize], TYPES[itemsize](0)
    want_loss, want_dx = wanted.loss, wanted.dx
    warp, size = plan.WARP, plan.BLOCK_THREADS
    groups = size // warp
    move = mover(1)

    def sigmoid_l2_finish(workspace: Any, loss: Any, dx: Any, first_pair: Any, n: Any, slices: Any, sums: Any) -> None:
        group_sums = cuda.shared.array(size, real, 16)
        total = cuda.local.array(1, real)
        lane, group = cuda.threadIdx.x % warp, cuda.threadIdx.x // warp
        blocks = n // warp + 1  # a pair: n columns of dx and one of loss
        pair = np.int64(cuda.blockIdx.x) // blocks
        column = np.int64(cuda.blockIdx.x) % blocks * warp + lane
        total[0] = zero
        if column < n + 1:
            for k in range(group, slices, groups):
                total[0] += workspace[(pair * slices + k) * sums + column]
        group_sums[group * warp + lane] = total[0]
        cuda.syncthreads()
        if group == 0:
            total[0] = zero
            for k in range(groups):
                total[0] += group_sums[k * warp + lane]
            if want_dx and column < n:
                move(dx, (first_pair + pair) * n + column, total, 0)
            if want_loss and column == n:
                move(loss, first_pair + pair, total, 0)

    return sigmoid_l2_finish
