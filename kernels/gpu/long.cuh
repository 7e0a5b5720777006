// long.cuh: the kernel for rows that fill the registers of a whole block, one block a multiprocessor. A block owns a
// unit and goes from row to row. A thread owns the same columns of each: VECTORS groups of WIDTH neighbouring columns;
// groups are STEP columns apart. A row of W and dx stay in registers, dx of the first SHARED groups in shared memory.
//
// There is no room for x. It is read once a row, from the cache: a group serves dW of this row and q of the next one,
// whose W is on its way as soon as a group of W has gone into dx.

#ifndef SIGMOID_L2_LONG_CUH
#define SIGMOID_L2_LONG_CUH

namespace sigmoid_l2 {

// Grid: a block of THREADS threads for each unit. VECTORS is the smallest number with VECTORS * STEP >= n.
template <typename T, unsigned THREADS, unsigned WIDTH, unsigned VECTORS, unsigned SHARED, bool WIDE, bool GIVEN_TARGET,
          bool GIVEN_COTANGENT, bool WANT_LOSS, bool WANT_DW, bool WANT_DX, bool WANT_DQ>
__device__ inline void fused_long(const T* W,          // (B, m, n)
                                  const T* x,          // (B, n)
                                  const T* target,     // (B, m)
                                  const T* cotangent,  // (B,)
                                  T* loss,             // (units,)
                                  T* dW,               // (B, m, n)
                                  T* dx,               // (units, n)
                                  T* dq,               // (B, m)
                                  unsigned m, unsigned n, unsigned rows, unsigned slices) {
    constexpr unsigned WARPS = THREADS / WARP, STEP = THREADS * WIDTH;
    __shared__ T q_sums[2 * WARPS];  // for sum_over_row_threads, which uses the halves in turn
    __shared__ T c_shared[1];        // the cotangent, for which the longest rows leave no register
    alignas(16) __shared__ T dx_shared[SHARED * STEP];

    // --- where this thread works -------------------------------------------------------------------------------------
    const unsigned t = threadIdx.x, first = t * WIDTH;  // first: column
    const unsigned unit = blockIdx.x, pair = unit / slices, row = unit % slices * rows;
    const unsigned end = m - row < rows ? m - row : rows;
    const bool has_last = first + (VECTORS - 1) * STEP < n;
    const index_t W_first = (index_t(pair) * m + row) * n + first;
    T W_row[VECTORS * WIDTH], dx_own[(VECTORS - SHARED) * WIDTH] = {}, x_own[WIDTH], dW_own[WIDTH], dx_read[WIDTH];
    T q[1] = {}, y = T(0), c = T(1), e, g, total = T(0);
    const index_t y_first = index_t(pair) * m + row;  // of the unit, in target and dq
    x += index_t(pair) * n + first;
    W += W_first, dW += W_first;  // of row i

    // --- q = W x of the first row ------------------------------------------------------------------------------------
#pragma unroll
    for (unsigned k = 0; k < VECTORS; ++k)
        if (k + 1 < VECTORS || has_last) load_global<WIDE, WIDTH>(W_row + k * WIDTH, W + k * STEP);
    if (GIVEN_TARGET) y = target[y_first];
    if (GIVEN_COTANGENT && t == 0) c_shared[0] = cotangent[pair];
#pragma unroll
    for (unsigned k = 0; k < VECTORS; ++k) {
        const T zeros[WIDTH] = {};
        if (WANT_DX && k < SHARED) store_shared<WIDTH>(dx_shared + k * STEP + first, zeros);
        if (k + 1 == VECTORS && !has_last) break;
        load_global<WIDE, WIDTH, true>(x_own, x + k * STEP);
        q[0] = dot<WIDTH>(W_row + k * WIDTH, x_own, q[0]);
    }
    for (unsigned i = 0; i < end; ++i, W += n, dW += n) {
        // --- e, g and loss -------------------------------------------------------------------------------------------
        const T q_row = sum_over_row_threads<WARPS, 1>(q, q_sums + i % 2 * WARPS);
        if (GIVEN_COTANGENT) c = c_shared[0];  // in the sum all threads have met at a barrier
        error_and_g<GIVEN_TARGET, GIVEN_COTANGENT>(q_row, y, c, e, g);
        total = multiply_add(e, e, total);
        if (WANT_DQ && t == 0) dq[y_first + i] = g;

        // --- dx += W^T g; W and target of the next row ---------------------------------------------------------------
        if (GIVEN_TARGET && i + 1 < end) y = target[y_first + i + 1];
#pragma unroll
        for (unsigned k = 0; k < VECTORS; ++k) {
            if (k + 1 == VECTORS && !has_last) break;
            if (WANT_DX && k < SHARED) {
                load_shared<WIDTH>(dx_read, dx_shared + k * STEP + first);
                add_scaled<WIDTH>(dx_read, g, W_row + k * WIDTH);
                store_shared<WIDTH>(dx_shared + k * STEP + first, dx_read);
            } else if (WANT_DX) {
                add_scaled<WIDTH>(dx_own + (k - SHARED) * WIDTH, g, W_row + k * WIDTH);
            }
            if (i + 1 < end) load_global<WIDE, WIDTH>(W_row + k * WIDTH, W + n + k * STEP);
        }

        // --- dW = g x^T; q = W x of the next row ---------------------------------------------------------------------
        q[0] = T(0);
#pragma unroll
        for (unsigned k = 0; k < VECTORS; ++k) {
            if (k + 1 == VECTORS && !has_last) break;
            load_global<WIDE, WIDTH, true>(x_own, x + k * STEP);
            scale<WIDTH>(dW_own, g, x_own);
            if (WANT_DW) store_global<WIDE, WIDTH>(dW + k * STEP, dW_own);
            q[0] = dot<WIDTH>(W_row + k * WIDTH, x_own, q[0]);
        }
    }

    // --- loss and dx of the unit -------------------------------------------------------------------------------------
    if (WANT_LOSS && t == 0) loss[unit] = total;
#pragma unroll
    for (unsigned k = 0; k < VECTORS; ++k) {
        if (!WANT_DX || (k + 1 == VECTORS && !has_last)) break;
        if (k < SHARED) load_shared<WIDTH>(dx_read, dx_shared + k * STEP + first);
        store_global<WIDE, WIDTH>(dx + index_t(unit) * n + first + k * STEP,
                                  k < SHARED ? dx_read : dx_own + (k - SHARED) * WIDTH);
    }
}

}  // namespace sigmoid_l2

#endif
