// long.cuh: the kernel for rows that the registers of a block do not hold. A block owns a pair and reads W twice; a
// thread owns every THREADS-th column.

#ifndef SIGMOID_L2_LONG_CUH
#define SIGMOID_L2_LONG_CUH

namespace sigmoid_l2 {

// Grid: B blocks of THREADS threads. dx is summed in its own place: a column belongs to one thread, so that needs no
// barrier.
template <typename T, unsigned THREADS, bool WANT_LOSS, bool WANT_DW, bool WANT_DX>
__device__ inline void fused_long(const T* W,  // (B, m, n)
                                  const T* x,  // (B, n)
                                  T* loss,     // (B,)
                                  T* dW,       // (B, m, n)
                                  T* dx,       // (B, n)
                                  index_t m, index_t n) {
    __shared__ T q_sums[2 * THREADS / WARP];
    const unsigned t = threadIdx.x;
    const index_t b = blockIdx.x;
    const T* const x_pair = x + b * n;
    T* const dx_pair = dx + b * n;
    T total = T(0);
    for (index_t j = t; WANT_DX && j < n; j += THREADS) dx_pair[j] = T(0);
    for (index_t i = 0; i < m; ++i) {
        const T* const W_row = W + (b * m + i) * n;
        T* const dW_row = dW + (b * m + i) * n;
        T q[1] = {}, s, g;
        for (index_t j = t; j < n; j += THREADS) q[0] = multiply_add(W_row[j], x_pair[j], q[0]);
        s_and_g(sum_over_warps<THREADS / WARP, 1>(q, q_sums + i % 2 * (THREADS / WARP)), s, g);
        total = multiply_add(s, s, total);
        for (index_t j = t; j < n; j += THREADS) {
            if (WANT_DX) dx_pair[j] = multiply_add(g, W_row[j], dx_pair[j]);
            if (WANT_DW) dW_row[j] = multiply(g, x_pair[j]);
        }
    }
    if (WANT_LOSS && t == 0) loss[b] = total;
}

}  // namespace sigmoid_l2

#endif
