// batch_last.cuh: the kernel for arrays whose last axis is that of the pairs. A thread owns a pair. Neighbouring
// threads touch neighbouring addresses whichever element they load, so nothing goes through shared memory, and no
// thread waits for another.

#ifndef SIGMOID_L2_BATCH_LAST_CUH
#define SIGMOID_L2_BATCH_LAST_CUH

namespace sigmoid_l2 {

// Copy N elements that are `step` apart between global memory and registers.
template <unsigned N, typename T>
__device__ inline void load_stepwise(T* to, const T* from, index_t step) {
#pragma unroll
    for (unsigned j = 0; j < N; ++j, from += step) to[j] = __ldcs(from);
}
template <unsigned N, typename T>
__device__ inline void store_stepwise(T* to, const T* from, index_t step) {
#pragma unroll
    for (unsigned j = 0; j < N; ++j, to += step) __stcs(to, from[j]);
}

// Grid: ceil(B / THREADS) blocks of THREADS threads. x and dx of a pair stay in registers. ROWS rows are loaded before
// the first of them is used; where not EVEN, the last of these groups has fewer. A step is the distance of two
// neighbours along an axis, in elements; that of the last axis is 1.
template <typename T, unsigned THREADS, unsigned N, unsigned ROWS, bool EVEN, bool GIVEN_TARGET, bool GIVEN_COTANGENT,
          bool WANT_LOSS, bool WANT_DW, bool WANT_DX, bool WANT_DQ>
__device__ inline void batch_last(const T* W,          // (m, N, B)
                                  const T* x,          // (N, B)
                                  const T* target,     // (m, B)
                                  const T* cotangent,  // (B,)
                                  T* loss,             // (B,)
                                  T* dW,               // (m, N, B)
                                  T* dx,               // (N, B)
                                  T* dq,               // (m, B)
                                  index_t B, index_t m, index_t W_row_step, index_t W_step, index_t x_step,
                                  index_t target_step, index_t dW_row_step, index_t dW_step, index_t dx_step,
                                  index_t dq_step) {
    const index_t pair = index_t(blockIdx.x) * THREADS + threadIdx.x;
    if (pair >= B) return;

    // --- x and the cotangent -----------------------------------------------------------------------------------------
    T x_own[N], dx_own[N] = {}, c_own = T(1), total = T(0);
    load_stepwise<N>(x_own, x + pair, x_step);
    if (GIVEN_COTANGENT) c_own = __ldcs(cotangent + pair);
    W += pair, target += pair, dW += pair, dq += pair;

    for (index_t left = m; left > 0; left -= ROWS) {
        // --- the next rows of W and of the target --------------------------------------------------------------------
        T W_own[ROWS][N], y_own[ROWS] = {};
#pragma unroll
        for (unsigned a = 0; a < ROWS; ++a)
            if (EVEN || a < left) {
                load_stepwise<N>(W_own[a], W, W_step);
                if (GIVEN_TARGET) y_own[a] = __ldcs(target);
                W += W_row_step, target += target_step;
            }
#pragma unroll
        for (unsigned a = 0; a < ROWS; ++a)
            if (EVEN || a < left) {
                // --- q = W x, e, g and loss --------------------------------------------------------------------------
                T e, g, dW_own[N];
                error_and_g<GIVEN_TARGET, GIVEN_COTANGENT>(dot<N>(W_own[a], x_own, T(0)), y_own[a], c_own, e, g);
                total = multiply_add(e, e, total);
                if (WANT_DQ) __stcs(dq, g);

                // --- dW = g x^T, dx += W^T g -------------------------------------------------------------------------
                scale<N>(dW_own, g, x_own);
                if (WANT_DW) store_stepwise<N>(dW, dW_own, dW_step);
                if (WANT_DX) add_scaled<N>(dx_own, g, W_own[a]);
                dq += dq_step, dW += dW_row_step;
            }
    }

    // --- loss and dx -------------------------------------------------------------------------------------------------
    if (WANT_LOSS) __stcs(loss + pair, total);
    if (WANT_DX) store_stepwise<N>(dx + pair, dx_own, dx_step);
}

}  // namespace sigmoid_l2

#endif
