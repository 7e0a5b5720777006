"""The kernels in numba.cuda that take rows straight from global memory, and the one that adds up partial sums.

* *rows*: a team of threads has a row, or several at once, in registers, with x and the team's part of dx. Compiled for
  each n.
* *long*: a block owns a pair and reads each of its rows twice; dx is summed in place.
* *finish*: adds the partial sums of a pair whose rows are cut into slices, in the order of the slices.
"""

from typing import Any

import numpy as np

from sigmoid_l2.kernels import Wanted
from sigmoid_l2.kernels.gpu import plan
from sigmoid_l2.kernels.gpu.common import (
    TYPES,
    cuda,
    device,
    framework,
    multiply_add,
    sigmoid_and_complement,
    sum_over_lanes,
)
from sigmoid_l2.kernels.gpu.plan import Long, Rows
from sigmoid_l2.kernels.gpu.staged import mover, unit_sums

# Of x that a thread of the rows kernel keeps in registers; with more it reads x again for each row, from the L1 cache.
# 8x16384 in float32, 128 bytes a thread: else 128 registers and 8 of them spilled, so 118. Latency: not measured.
X_BYTES = 96


def rows_source(p: Rows, n: int, itemsize: int, wanted: Wanted, wide: bool) -> Any:
    """The Python function of the rows kernel, to which the plan's ``rows`` and ``slices`` are arguments.

    With slices, ``loss`` and ``dx`` are both the workspace, as in the staged kernel.
    """
    real, type_ = framework.REALS[itemsize], TYPES[itemsize]
    zero, one, two = type_(0), type_(1), type_(2)
    want_loss, want_dW, want_dx = wanted
    want_gradient = want_dW or want_dx
    units, row_threads, teams, vector, vectors, at_once = (
        p.units,
        p.row_threads,
        p.teams,
        p.vector,
        p.vectors,
        p.at_once,
    )
    step = row_threads * vector  # columns from one of a thread's vectors to the next
    columns = vectors * vector
    whole = n // step  # of a thread's vectors, those that all threads have
    x_is_held = columns * itemsize <= X_BYTES
    x_size, x_step = (columns, vector) if x_is_held else (vector, 0)
    warp = plan.WARP
    warps = row_threads // warp  # of a team
    unit_threads = teams * row_threads
    several_teams, several_warps, sliced = teams > 1, warps > 1, p.slices > 1
    block_teams = units * teams
    x_unit_size, team_size = (units * n, block_teams * n) if several_teams else (1, 1)
    sum_size = 2 * at_once * warps
    held_size = at_once * columns
    move, move_one, move_shared = mover(vector, wide), mover(1), mover(vector)
    sums = unit_sums(n, itemsize)
    sum_q = sum_over_lanes(warp, 1)

    @device
    def load(held: Any, at: Any, source: Any, row: Any, column: Any, k: Any, exists: Any) -> None:
        if exists and (k < whole or k * step + column < n):
            move(held, at, source, row + k * step + column)
        else:
            for v in range(at, at + vector):
                held[v] = zero

    @device
    def load_rows(held: Any, source: Any, first: Any, i: Any, rows: Any, column: Any) -> None:
        for a in range(at_once):
            for k in range(vectors):
                load(held, a * columns + k * vector, source, first + (i + a) * n, column, k, i + a < rows)

    def sigmoid_l2_rows(
        W: Any, x: Any, loss: Any, dW: Any, dx: Any, first_pair: Any, pairs: Any, m: Any, rows: Any, slices: Any
    ) -> None:
        x_unit = cuda.shared.array(x_unit_size, real, 16)
        team_dx = cuda.shared.array(team_size, real, 16)
        team_loss = cuda.shared.array(block_teams, real, 16)
        warp_sums = cuda.shared.array(sum_size, real, 16)  # of q, double-buffered
        x_held = cuda.local.array(x_size, real)
        dx_held = cuda.local.array(columns, real)
        W_held = cuda.local.array(held_size, real)
        dW_held = cuda.local.array(vector, real)
        q = cuda.local.array(1, real)
        q_held = cuda.local.array(at_once, real)
        total = cuda.local.array(1, real)
        t = cuda.threadIdx.x
        unit = t // unit_threads if units > 1 else 0
        team, thread = t // row_threads % teams, t % row_threads
        first = np.int64(cuda.blockIdx.x) * units + unit  # unit of the launch
        if sliced:
            # By 32 bits, which a launch of slices is far below: a division by 64 is a function call.
            of_pair, slice_ = np.uint32(first) // np.uint32(slices), np.uint32(first) % np.uint32(slices)
            pair, first_row = first_pair + np.int64(of_pair), np.int64(slice_) * rows
        else:
            pair, first_row = first_pair + first, 0
        exists = first < pairs * slices
        # All threads of a block make as many steps, and the compiler sees it: so it knows that they shuffle together.
        rows_of_unit = min(rows, m - first_row)
        steps = (rows_of_unit + teams * at_once - 1) // (teams * at_once)
        rows_here = rows_of_unit if exists else 0
        W_first = (pair * m + first_row) * n
        column = thread * vector
        for k in range(columns):
            dx_held[k] = zero
        load_rows(W_held, W, W_first, team * at_once, rows_here, column)
        if several_teams:  # x is read once, while the first rows are on their way
            if exists:
                for j in range(team * row_threads + thread, n, unit_threads):
                    move_one(x_unit, unit * n + j, x, pair * n + j)
            cuda.syncthreads()
            for k in range(vectors):
                load(x_held, k * vector, x_unit, unit * n, column, k, exists)
        elif x_is_held:
            for k in range(vectors):
                load(x_held, k * vector, x, pair * n, column, k, exists)
        total[0] = zero
        buffer = 0
        for k_step in range(steps):
            i = (k_step * teams + team) * at_once
            for a in range(at_once):
                q[0] = zero
                if x_is_held:
                    for k in range(columns):
                        q[0] = multiply_add(W_held[a * columns + k], x_held[k], q[0])
                else:
                    for k in range(vectors):
                        if k < whole or k * step + column < n:
                            move(x_held, 0, x, pair * n + k * step + column)
                            for v in range(vector):
                                q[0] = multiply_add(W_held[a * columns + k * vector + v], x_held[v], q[0])
                sum_q(q, thread)
                q_held[a] = q[0]
            if several_warps:
                for a in range(at_once):
                    if thread % warp == 0:
                        warp_sums[(buffer + a) * warps + thread // warp] = q_held[a]
                cuda.syncthreads()
                for a in range(at_once):
                    q_held[a] = zero
                    for k in range(warps):
                        q_held[a] += warp_sums[(buffer + a) * warps + k]
                buffer = at_once - buffer
            for a in range(at_once):
                # Beyond the last row W is 0 here. No branch: on sm_75 lanes that part make a shuffle a function call.
                is_row = i + a < rows_here
                s, c = sigmoid_and_complement(q_held[a], one)
                s_row = s if is_row else zero  # s is NaN there where x is infinite
                total[0] = multiply_add(s_row, s_row, total[0])
                if want_gradient:
                    g = two * s * (s * c) if is_row else zero
                    for k in range(vectors):
                        if not x_is_held and (k < whole or k * step + column < n):
                            move(x_held, 0, x, pair * n + k * step + column)
                        for v in range(vector):
                            dx_held[k * vector + v] = multiply_add(
                                g, W_held[a * columns + k * vector + v], dx_held[k * vector + v]
                            )
                            dW_held[v] = g * x_held[k * x_step + v]
                        if want_dW and is_row and (k < whole or k * step + column < n):
                            move(dW, W_first + (i + a) * n + k * step + column, dW_held, 0)
            load_rows(W_held, W, W_first, i + teams * at_once, rows_here, column)

        dx_first, loss_at = (first * sums, first * sums + n) if sliced else (pair * n, pair)
        if several_teams:
            if want_dx:
                for k in range(vectors):
                    if k < whole or k * step + column < n:
                        move_shared(team_dx, (unit * teams + team) * n + k * step + column, dx_held, k * vector)
            if thread == 0:
                team_loss[unit * teams + team] = total[0]
            cuda.syncthreads()
            thread += team * row_threads  # of the unit
            if want_dx and exists:
                for j in range(thread, n, unit_threads):
                    q[0] = zero
                    for k in range(teams):
                        q[0] += team_dx[(unit * teams + k) * n + j]
                    move_one(dx, dx_first + j, q, 0)
            total[0] = zero
            for k in range(teams):
                total[0] += team_loss[unit * teams + k]
        elif want_dx and exists:
            for k in range(vectors):
                if k < whole or k * step + column < n:
                    move(dx, dx_first + k * step + column, dx_held, k * vector)
        if want_loss and exists and thread == 0:
            move_one(loss, loss_at, total, 0)

    return sigmoid_l2_rows


def long_source(p: Long, itemsize: int, wanted: Wanted) -> Any:
    """The Python function of the long kernel."""
    real, type_ = framework.REALS[itemsize], TYPES[itemsize]
    zero, one, two = type_(0), type_(1), type_(2)
    want_loss, want_dW, want_dx = wanted
    want_gradient = want_dW or want_dx
    threads, warp = p.threads, plan.WARP
    warps = threads // warp
    sum_q = sum_over_lanes(warp, 1)
    sum_size = 2 * warps
    move = mover(1)

    def sigmoid_l2_long(W: Any, x: Any, loss: Any, dW: Any, dx: Any, m: Any, n: Any) -> None:
        warp_sums = cuda.shared.array(sum_size, real, 16)  # of q, double-buffered
        W_held = cuda.local.array(1, real)
        x_held = cuda.local.array(1, real)
        dx_held = cuda.local.array(1, real)
        q = cuda.local.array(1, real)
        total = cuda.local.array(1, real)
        t = cuda.threadIdx.x
        pair = np.int64(cuda.blockIdx.x)
        total[0] = zero
        buffer = 0
        for i in range(m):
            row = (pair * m + i) * n
            q[0] = zero
            for j in range(t, n, threads):
                move(W_held, 0, W, row + j)
                move(x_held, 0, x, pair * n + j)
                q[0] = multiply_add(W_held[0], x_held[0], q[0])
            sum_q(q, t)
            if t % warp == 0:
                warp_sums[buffer + t // warp] = q[0]
            cuda.syncthreads()
            q[0] = zero
            for k in range(warps):
                q[0] += warp_sums[buffer + k]
            buffer = warps - buffer
            s, c = sigmoid_and_complement(q[0], one)
            total[0] = multiply_add(s, s, total[0])
            if want_gradient:
                g = two * s * (s * c)
                for j in range(t, n, threads):  # each thread meets only its own columns: no barrier for dx
                    if want_dx:
                        dx_held[0] = zero
                        if i > 0:
                            move(dx_held, 0, dx, pair * n + j)
                        move(W_held, 0, W, row + j)
                        dx_held[0] = multiply_add(g, W_held[0], dx_held[0])
                        move(dx, pair * n + j, dx_held, 0)
                    if want_dW:
                        move(x_held, 0, x, pair * n + j)
                        x_held[0] = g * x_held[0]
                        move(dW, row + j, x_held, 0)
        if want_loss and t == 0:
            move(loss, pair, total, 0)

    return sigmoid_l2_long


def finish_source(itemsize: int, wanted: Wanted) -> Any:
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
