// shared_parts.cuh: the kernel for parts of dW = g^T x, for one W (m, n) and many x. It is a product of matrices, as in
// shared_product.cuh, and a sum over the batch. The texts of shared_product.cuh and shared_sums.cuh come before this one.

#ifndef SIGMOID_L2_SHARED_PARTS_CUH
#define SIGMOID_L2_SHARED_PARTS_CUH

namespace sigmoid_l2 {

// Parts of dW: of a tile of rows and columns g^T x, summed over a slice of `pairs` of the B pairs of this launch. A term
// goes through a chain of `chain` STEPs, whose sum is added to high + low without an error. After CHAINS of them low goes
// into high, but for what it loses, so that low is small and its own errors are too. A part keeps both from launch to
// launch. Grid: ceil(B / pairs) slices, or more, with ceil(m / A) * ceil(n / B) blocks each.
template <typename T, unsigned THREADS_A, unsigned THREADS_B, unsigned GROUPS_A, unsigned GROUPS_B, unsigned STEP,
          bool WIDE, bool WIDE_G>
__device__ inline void shared_blocks_parts(const T* x,  // (B, n)
                                           const T* g,  // (B, m)
                                           T* parts,    // (slices, 2, m, n): high and low
                                           index_t B, unsigned m, unsigned n, index_t pairs, unsigned chain,
                                           unsigned is_first) {
    constexpr unsigned CHAINS = 8;
    typedef Product<T, THREADS_A, THREADS_B, GROUPS_A, GROUPS_B, STEP> P;
    Operand<T, P::A, STEP, P::THREADS, false, WIDE_G> g_side;
    Operand<T, P::B, STEP, P::THREADS, false, WIDE> x_side;
    alignas(16) __shared__ T shared[P::ROOM];
    const unsigned row_tiles = (m - 1) / P::A + 1, column_tiles = (n - 1) / P::B + 1;
    const unsigned column = blockIdx.x % column_tiles * P::B, row = blockIdx.x / column_tiles % row_tiles * P::A;
    const index_t slice = blockIdx.x / column_tiles / row_tiles, first = slice * pairs;
    const unsigned rows = m - row < P::A ? m - row : P::A, columns = n - column < P::B ? n - column : P::B;
    const unsigned here = first >= B ? 0 : unsigned(B - first < pairs ? B - first : pairs);
    T* const own_high = parts + (slice * 2 * m + row) * n + column;
    T* const own_low = own_high + index_t(m) * n;
    if (here == 0 && !is_first) return;

    T high[P::OWN_A][P::OWN_B] = {}, low[P::OWN_A][P::OWN_B] = {}, added[P::OWN_A][P::OWN_B] = {};
#pragma unroll
    for (unsigned i = 0; i < P::OWN_A; ++i)
        if (!is_first && P::a(i) < rows) {
            load_own<P, WIDE>(high[i], own_high + index_t(P::a(i)) * n, columns);
            load_own<P, WIDE>(low[i], own_low + index_t(P::a(i)) * n, columns);
        }

    // --- dW = g^T x --------------------------------------------------------------------------------------------------
    unsigned steps = 0;
    const auto end = [&](bool is_last) {
        if (++steps < chain && !is_last) return;
        steps = 0;
#pragma unroll
        for (unsigned i = 0; i < P::OWN_A; ++i)
#pragma unroll
            for (unsigned j = 0; j < P::OWN_B; ++j) {
                add_exactly(high[i][j], low[i][j], added[i][j]);
                added[i][j] = T(0);
            }
        if (!is_last) return;
#pragma unroll
        for (unsigned i = 0; i < P::OWN_A; ++i)
#pragma unroll
            for (unsigned j = 0; j < P::OWN_B; ++j) {
                const T rest = low[i][j] == low[i][j] ? low[i][j] : T(0);  // NaN where high is infinite
                low[i][j] = T(0);
                add_exactly(high[i][j], low[i][j], rest);
                if (low[i][j] != low[i][j]) low[i][j] = T(0);
            }
    };
    const unsigned most = CHAINS * chain * STEP;
    unsigned half = 0;
    for (unsigned done = 0; done < here; done += most)
        P::add(added, shared, half, g_side, g + (first + done) * m + row, m, index_t(STEP) * m, rows, x_side,
               x + (first + done) * n + column, n, index_t(STEP) * n, columns, here - done < most ? here - done : most, end);

    // --- high and low of the part ------------------------------------------------------------------------------------
#pragma unroll
    for (unsigned i = 0; i < P::OWN_A; ++i)
        if (P::a(i) < rows) {
            store_own<P, WIDE>(own_high + index_t(P::a(i)) * n, high[i], columns);
            store_own<P, WIDE>(own_low + index_t(P::a(i)) * n, low[i], columns);
        }
}

}  // namespace sigmoid_l2

#endif
