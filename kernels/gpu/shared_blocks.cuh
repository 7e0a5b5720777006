// shared_blocks.cuh: two kernels for one W (m, n) and many x, each a product of matrices, as in shared_product.cuh, whose
// text comes before this one: q = x W^T, from which come e, g and the loss; and dx = g W. An element of q or dx is one
// chain of fused multiply-adds, whatever tile it is in. shared_parts.cuh has the third product.

#ifndef SIGMOID_L2_SHARED_BLOCKS_CUH
#define SIGMOID_L2_SHARED_BLOCKS_CUH

namespace sigmoid_l2 {

// q = x W^T, e, g and the loss of a tile of pairs, tile of rows by tile of rows. Grid: ceil(B / A) blocks.
template <typename T, unsigned THREADS_A, unsigned THREADS_B, unsigned GROUPS_A, unsigned GROUPS_B, unsigned STEP,
          bool WIDE, bool WIDE_G, bool GIVEN_TARGET, bool GIVEN_COTANGENT, bool WANT_LOSS, bool WANT_G>
__device__ inline void shared_blocks_q(const T* W,          // (m, n)
                                       const T* x,          // (B, n)
                                       const T* target,     // (B, m)
                                       const T* cotangent,  // (B,)
                                       T* loss,             // (B,)
                                       T* g,                // (B, m)
                                       index_t B, unsigned m, unsigned n) {
    typedef Product<T, THREADS_A, THREADS_B, GROUPS_A, GROUPS_B, STEP> P;
    Operand<T, P::A, STEP, P::THREADS, true, WIDE> x_side;
    Operand<T, P::B, STEP, P::THREADS, true, WIDE> W_side;
    alignas(16) __shared__ T shared[P::ROOM];
    constexpr unsigned LINE = THREADS_B + 1;  // so that lanes which add those of a pair use different banks
    __shared__ T loss_sums[WANT_LOSS ? P::OWN_A * THREADS_A * LINE : 1];  // of each pair of a thread
    const index_t first = index_t(blockIdx.x) * P::A;
    const unsigned pairs = B - first < P::A ? unsigned(B - first) : P::A;
    T* const own_sums = loss_sums + threadIdx.x / THREADS_B * LINE + threadIdx.x % THREADS_B;
    unsigned half = 0;

    for (unsigned row = 0; row < m; row += P::B) {
        // --- q = x W^T -----------------------------------------------------------------------------------------------
        const unsigned rows = m - row < P::B ? m - row : P::B;
        T q[P::OWN_A][P::OWN_B] = {};
        P::add(q, shared, half, x_side, x + first * n, n, STEP, pairs, W_side, W + index_t(row) * n, n, STEP, rows, n,
               [](bool) {});

        // --- e, g and loss: one pair of the thread after the other -------------------------------------------------
        // Its q is always in the first registers, so that the loop has the code of one pair.
#pragma unroll 1
        for (unsigned i = 0; i < P::OWN_A; ++i) {
            const unsigned pair = P::a(i);
            const index_t at = (first + pair) * m + row;
            T y_own[P::OWN_B] = {}, g_own[P::OWN_B], c_own = T(1), total = T(0);
            const unsigned here = pair < pairs ? rows : 0;
            if (GIVEN_TARGET) load_own<P, WIDE_G>(y_own, target + at, here);
            if (GIVEN_COTANGENT && here > 0) c_own = cotangent[first + pair];
            if (WANT_LOSS && row > 0) total = own_sums[i * THREADS_A * LINE];
#pragma unroll
            for (unsigned j = 0; j < P::OWN_B; ++j) {
                T e;
                error_and_g<GIVEN_TARGET, GIVEN_COTANGENT>(q[0][j], y_own[j], c_own, e, g_own[j]);
                if (P::b(j) < here) total = multiply_add(e, e, total);
#pragma unroll
                for (unsigned k = 1; k < P::OWN_A; ++k) q[k - 1][j] = q[k][j];
            }
            if (WANT_LOSS) own_sums[i * THREADS_A * LINE] = total;
            if (WANT_G) store_own<P, WIDE_G>(g + at, g_own, here);
        }
    }

    // --- the loss of each pair: sums over the threads that share it --------------------------------------------------
    __syncthreads();
    for (unsigned p = threadIdx.x; WANT_LOSS && p < pairs; p += P::THREADS) {
        const unsigned group = p / P::WIDTH, i = group / THREADS_A * P::WIDTH + p % P::WIDTH;
        const T* const of_pair = loss_sums + (i * THREADS_A + group % THREADS_A) * LINE;
        T total = of_pair[0];
#pragma unroll
        for (unsigned k = 1; k < THREADS_B; ++k) total += of_pair[k];
        loss[first + p] = total;
    }
}

// dx = g W of a tile of pairs and columns. Grid: ceil(B / A) * ceil(n / B) blocks.
template <typename T, unsigned THREADS_A, unsigned THREADS_B, unsigned GROUPS_A, unsigned GROUPS_B, unsigned STEP,
          bool WIDE, bool WIDE_G>
__device__ inline void shared_blocks_dx(const T* W,  // (m, n)
                                        const T* g,  // (B, m)
                                        T* dx,       // (B, n)
                                        index_t B, unsigned m, unsigned n) {
    typedef Product<T, THREADS_A, THREADS_B, GROUPS_A, GROUPS_B, STEP> P;
    Operand<T, P::A, STEP, P::THREADS, true, WIDE_G> g_side;
    Operand<T, P::B, STEP, P::THREADS, false, WIDE> W_side;
    alignas(16) __shared__ T shared[P::ROOM];
    const unsigned tiles = (n - 1) / P::B + 1, column = blockIdx.x % tiles * P::B;
    const index_t first = index_t(blockIdx.x / tiles) * P::A;
    const unsigned pairs = B - first < P::A ? unsigned(B - first) : P::A;
    const unsigned columns = n - column < P::B ? n - column : P::B;

    // --- dx = g W ----------------------------------------------------------------------------------------------------
    T sums[P::OWN_A][P::OWN_B] = {};
    unsigned half = 0;
    P::add(sums, shared, half, g_side, g + first * m, m, STEP, pairs, W_side, W + column, n, index_t(STEP) * n, columns, m,
           [](bool) {});
#pragma unroll
    for (unsigned i = 0; i < P::OWN_A; ++i)
        if (P::a(i) < pairs) store_own<P, WIDE>(dx + (first + P::a(i)) * n + column, sums[i], columns);
}

}  // namespace sigmoid_l2

#endif
