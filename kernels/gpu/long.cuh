// long.cuh: the kernel for rows that the registers of a block do not hold. A block owns a pair and reads W twice; a
// thread owns every THREADS-th column. dx is summed in its own place: a column belongs to one thread, so that needs no
// barrier.

#ifndef SIGMOID_L2_LONG_CUH
#define SIGMOID_L2_LONG_CUH

namespace sigmoid_l2 {

// Grid: B blocks of THREADS threads.
template <typename T, unsigned THREADS, bool WANT_LOSS, bool WANT_DW, bool WANT_DX>
__device__ inline void fused_long(const T* W,  // (B, m, n)
                                  const T* x,  // (B, n)
                                  T* loss,     // (B,)
                                  T* dW,       // (B, m, n)
                                  T* dx,       // (B, n)
                                  index_t m, index_t n) {
    constexpr unsigned WARPS = THREADS / WARP;
    __shared__ T q_sums[2 * WARPS];
    const unsigned t = threadIdx.x;
    const index_t b = blockIdx.x;
    T total = T(0);

    for (index_t i = 0; i < m; ++i) {
        const index_t row_first = (b * m + i) * n;  // in W and dW

        // --- q = W x -------------------------------------------------------------------------------------------------
        T q[1] = {}, s, g;
        for (index_t j = t; j < n; j += THREADS) q[0] = multiply_add(W[row_first + j], x[b * n + j], q[0]);

        // --- s, g and loss -------------------------------------------------------------------------------------------
        s_and_g(sum_over_row_threads<WARPS, 1>(q, q_sums + i % 2 * WARPS), s, g);
        total = multiply_add(s, s, total);

        // --- dW = g x^T, dx += W^T g ---------------------------------------------------------------------------------
        for (index_t j = t; j < n; j += THREADS) {
            if (WANT_DX) dx[b * n + j] = multiply_add(g, W[row_first + j], i > 0 ? dx[b * n + j] : T(0));
            if (WANT_DW) dW[row_first + j] = multiply(g, x[b * n + j]);
        }
    }
    if (WANT_LOSS && t == 0) loss[b] = total;
}

}  // namespace sigmoid_l2

#endif
