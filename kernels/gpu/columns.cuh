// columns.cuh: two kernels for rows that no block can hold. Both cut a pair into slices of columns. The first adds up
// each slice's part of q = W x; the second adds the parts in a fixed order, reads W again and writes the gradients. Its
// blocks begin with the pairs that the first has read last: the cache still has them.

#ifndef SIGMOID_L2_COLUMNS_CUH
#define SIGMOID_L2_COLUMNS_CUH

namespace sigmoid_l2 {

// q = W x of AT_ONCE rows in `columns` columns. Grid: B * ceil(m / AT_ONCE) * slices blocks of THREADS threads.
template <typename T, unsigned THREADS, unsigned WIDTH, unsigned AT_ONCE, bool WIDE>
__device__ inline void columns_q(const T* W,  // (B, m, n)
                                 const T* x,  // (B, n)
                                 T* q_parts,  // (B, m, slices)
                                 unsigned m, unsigned n, unsigned columns, unsigned slices) {
    constexpr unsigned WARPS = THREADS / WARP, STEP = THREADS * WIDTH;
    __shared__ T q_sums[WARPS * AT_ONCE];

    // --- where this thread works -------------------------------------------------------------------------------------
    const unsigned t = threadIdx.x, slice = blockIdx.x % slices, group = blockIdx.x / slices;
    const unsigned groups = (m - 1) / AT_ONCE + 1, i = group % groups * AT_ONCE, first = slice * columns;
    const unsigned end = n - first < columns ? n : first + columns;
    const index_t pair = group / groups, row = pair * m + i;

    // --- q = W x -----------------------------------------------------------------------------------------------------
    T W_own[AT_ONCE][WIDTH] = {}, x_own[WIDTH], q[AT_ONCE] = {};
    for (unsigned j = first + t * WIDTH; j < end; j += STEP) {
        load_global<WIDE, WIDTH, true>(x_own, x + pair * n + j);
#pragma unroll
        for (unsigned a = 0; a < AT_ONCE; ++a)
            if (i + a < m) load_global<WIDE, WIDTH, true>(W_own[a], W + (row + a) * n + j);
#pragma unroll
        for (unsigned a = 0; a < AT_ONCE; ++a) q[a] = dot<WIDTH>(W_own[a], x_own, q[a]);
    }
    const T total = sum_over_row_threads<WARPS, AT_ONCE>(q, q_sums);  // lane l: of row i + l % AT_ONCE
    if (t < AT_ONCE && i + t < m) q_parts[(row + t) * slices + slice] = total;
}

// dW and dx of a unit in COLUMNS = VECTORS * STEP columns, and in its first slice of columns dq and loss. A thread owns
// VECTORS groups of WIDTH neighbouring columns, STEP apart; x and dx stay in registers. A warp computes g of four rows,
// lane k adding the part k of q. Grid: B * slices * ceil(n / COLUMNS) blocks, or B * slices without dW and dx.
template <typename T, unsigned THREADS, unsigned WIDTH, unsigned VECTORS, bool WIDE, bool GIVEN_TARGET,
          bool GIVEN_COTANGENT, bool WANT_LOSS, bool WANT_DW, bool WANT_DX, bool WANT_DQ>
__device__ inline void columns_gradients(const T* W,          // (B, m, n)
                                         const T* x,          // (B, n)
                                         const T* target,     // (B, m)
                                         const T* cotangent,  // (B,)
                                         const T* q_parts,    // (B, m, q_slices)
                                         T* loss,             // (units,)
                                         T* dW,               // (B, m, n)
                                         T* dx,               // (units, n)
                                         T* dq,               // (B, m)
                                         unsigned m, unsigned n, unsigned rows, unsigned slices, unsigned q_slices) {
    constexpr unsigned WARPS = THREADS / WARP, STEP = THREADS * WIDTH, COLUMNS = VECTORS * STEP;
    constexpr unsigned AT_ONCE = 4, G_ROWS = WARPS * AT_ONCE;
    __shared__ T loss_sums[WARPS], g_rows[2 * G_ROWS];  // g_rows: the halves are used in turn

    // --- where this thread works -------------------------------------------------------------------------------------
    const unsigned column_slices = WANT_DW || WANT_DX ? (n - 1) / COLUMNS + 1 : 1;
    const unsigned column_slice = blockIdx.x % column_slices;
    const unsigned unit = (gridDim.x - 1 - blockIdx.x) / column_slices, pair = unit / slices;
    const unsigned row = unit % slices * rows, end = m - row < rows ? m - row : rows;
    const unsigned t = threadIdx.x, lane = t % WARP, warp = t / WARP;
    const unsigned first = column_slice * COLUMNS + t * WIDTH;
    const unsigned own = first < n ? (n - first - 1) / STEP + 1 : 0;  // groups that are there, or more
    index_t W_at = (index_t(pair) * m + row) * n + first;             // of row i + r, in W and dW
    T x_own[VECTORS * WIDTH], dx_own[VECTORS * WIDTH] = {}, c_own = T(1), total = T(0);
    unsigned turn = 0;
    if (GIVEN_COTANGENT) c_own = cotangent[pair];
    const index_t y_first = index_t(pair) * m + row;                  // of the unit, in target and dq

#pragma unroll
    for (unsigned k = 0; k < VECTORS; ++k)
        if (WANT_DW && k < own) load_global<WIDE, WIDTH>(x_own + k * WIDTH, x + index_t(pair) * n + first + k * STEP);
    for (unsigned i = 0; i < end; i += G_ROWS) {
        // --- e, g and loss: lane l does row i + warp * AT_ONCE + l % AT_ONCE -----------------------------------------
        T q[AT_ONCE] = {}, y_own = T(0), e, g;
        const unsigned own_row = i + warp * AT_ONCE + lane % AT_ONCE;
#pragma unroll
        for (unsigned a = 0; a < AT_ONCE; ++a) {
            const unsigned r = i + warp * AT_ONCE + a;
            if (r < end && lane < q_slices) q[a] = q_parts[(index_t(pair) * m + row + r) * q_slices + lane];
        }
        if (GIVEN_TARGET && own_row < end) y_own = target[y_first + own_row];
        sum_over_lanes<WARP, AT_ONCE>(q, lane);
        error_and_g<GIVEN_TARGET, GIVEN_COTANGENT>(q[0], y_own, c_own, e, g);
        if (lane < AT_ONCE && own_row < end) total = multiply_add(e, e, total);
        if (WANT_DQ && column_slice == 0 && lane < AT_ONCE && own_row < end) dq[y_first + own_row] = g;
        if (lane < AT_ONCE) g_rows[turn * G_ROWS + warp * AT_ONCE + lane] = g;
        __syncthreads();

        // --- dW = g x^T, dx += W^T g ---------------------------------------------------------------------------------
        for (unsigned r = 0; r < G_ROWS && i + r < end && (WANT_DW || WANT_DX); ++r, W_at += n) {
            T W_row[VECTORS * WIDTH], dW_own[WIDTH];
            const T g_row = g_rows[turn * G_ROWS + r];
#pragma unroll
            for (unsigned k = 0; k < VECTORS; ++k)
                if (WANT_DX && k < own) load_global<WIDE, WIDTH>(W_row + k * WIDTH, W + W_at + k * STEP);
#pragma unroll
            for (unsigned k = 0; k < VECTORS; ++k) {
                scale<WIDTH>(dW_own, g_row, x_own + k * WIDTH);
                if (WANT_DW && k < own) store_global<WIDE, WIDTH>(dW + W_at + k * STEP, dW_own);
                if (WANT_DX && k < own) add_scaled<WIDTH>(dx_own + k * WIDTH, g_row, W_row + k * WIDTH);
            }
        }
        turn ^= 1;
    }

    // --- loss and dx of the unit -------------------------------------------------------------------------------------
    if (WANT_LOSS && column_slice == 0) {
        total = sum_over_row_threads<WARPS, 1>(&total, loss_sums);
        if (t == 0) loss[unit] = total;
    }
#pragma unroll
    for (unsigned k = 0; k < VECTORS; ++k)
        if (WANT_DX && k < own)
            store_global<WIDE, WIDTH>(dx + index_t(unit) * n + first + k * STEP, dx_own + k * WIDTH);
}

}  // namespace sigmoid_l2

#endif
