// shared_product.cuh: a tile of a product of matrices. The text of shared_operand.cuh comes before this one.
//
// A block owns a tile of a product, A x B elements. Its operands go through shared memory, STEP terms of the sums at a
// time; the next STEP are in flight meanwhile. Thread (ta, tb) owns GROUPS_A groups of WIDTH neighbours along A, and
// groups are THREADS_A * WIDTH apart; the same along B. So the lanes of a warp read neighbouring vectors.

#ifndef SIGMOID_L2_SHARED_PRODUCT_CUH
#define SIGMOID_L2_SHARED_PRODUCT_CUH

namespace sigmoid_l2 {

// A thread's elements of a tile.
template <typename T, unsigned THREADS_A, unsigned THREADS_B, unsigned GROUPS_A, unsigned GROUPS_B, unsigned STEP>
struct Product {
    static constexpr unsigned WIDTH = 16 / sizeof(T), THREADS = THREADS_A * THREADS_B;
    static constexpr unsigned OWN_A = GROUPS_A * WIDTH, OWN_B = GROUPS_B * WIDTH;
    static constexpr unsigned A = THREADS_A * OWN_A, B = THREADS_B * OWN_B;
    // Terms between two branches. With more the compilers need more than 128 registers for 8 x 8 sums.
    static constexpr unsigned AT_ONCE = 128 / (OWN_A * OWN_B) < STEP ? 128 / (OWN_A * OWN_B) : STEP;
    static constexpr unsigned HALF = STEP * (padded(A) + padded(B)), ROOM = 2 * HALF;
    static_assert(ROOM * sizeof(T) <= SHARED_BYTES, "two steps of both operands are in shared memory");

    // Where the thread's element k along A or B lies in the tile.
    static __device__ unsigned a(unsigned k) {
        return (k / WIDTH * THREADS_A + threadIdx.x / THREADS_B) * WIDTH + k % WIDTH;
    }
    static __device__ unsigned b(unsigned k) {
        return (k / WIDTH * THREADS_B + threadIdx.x % THREADS_B) * WIDTH + k % WIDTH;
    }

    // sums += a b^T of STEP terms at a time; end(is_last) is called after each. The halves of `shared` are used in turn,
    // from call to call: while some threads read one, others may already store into the other.
    template <typename SideA, typename SideB, typename End>
    static __device__ void add(T (&sums)[OWN_A][OWN_B], T* shared, unsigned& half, SideA& side_a, const T* from_a,
                               unsigned stride_a, index_t step_a, unsigned lines_a, SideB& side_b, const T* from_b,
                               unsigned stride_b, index_t step_b, unsigned lines_b, unsigned terms, const End& end) {
        for (unsigned left = terms, stored = 0;; ++stored) {  // steps in shared memory until now
            // --- the next terms on their way -------------------------------------------------------------------------
            const bool more = left > 0;
            if (more) {
                side_a.load(from_a, stride_a, lines_a, left);
                side_b.load(from_b, stride_b, lines_b, left);
                from_a += step_a;
                from_b += step_b;
                left = left > STEP ? left - STEP : 0;
            }

            // --- sums += a b^T ---------------------------------------------------------------------------------------
            if (stored > 0) {
                const T* const own_a = shared + half + a(0);
                const T* const own_b = shared + half + STEP * SideA::LINE + b(0);
#pragma unroll AT_ONCE
                for (unsigned k = 0; k < STEP; ++k) {
                    T a_own[OWN_A], b_own[OWN_B];
#pragma unroll
                    for (unsigned g = 0; g < GROUPS_A; ++g)
                        load_shared<WIDTH>(a_own + g * WIDTH, own_a + k * SideA::LINE + g * THREADS_A * WIDTH);
#pragma unroll
                    for (unsigned g = 0; g < GROUPS_B; ++g)
                        load_shared<WIDTH>(b_own + g * WIDTH, own_b + k * SideB::LINE + g * THREADS_B * WIDTH);
#pragma unroll
                    for (unsigned i = 0; i < OWN_A; ++i) add_scaled<OWN_B>(sums[i], a_own[i], b_own);
                }
                end(!more);
            }
            if (!more) break;
            half = HALF - half;
            side_a.store(shared + half);
            side_b.store(shared + half + STEP * SideA::LINE);
            __syncthreads();
        }
    }
};

// Move a thread's row of a tile, whose first element is `row[b(0)]`, to or from global memory: those of the first
// `columns` that are there.
template <typename P, bool WIDE, typename T>
__device__ inline void load_own(T* to, const T* row, unsigned columns) {
#pragma unroll
    for (unsigned j = 0; j < P::OWN_B; j += P::WIDTH) {
        if (WIDE) {
            if (P::b(j) < columns) load_global<true, P::WIDTH, true>(to + j, row + P::b(j));
        } else {
#pragma unroll
            for (unsigned v = 0; v < P::WIDTH; ++v)
                if (P::b(j + v) < columns) to[j + v] = row[P::b(j + v)];
        }
    }
}
template <typename P, bool WIDE, typename T>
__device__ inline void store_own(T* row, const T* from, unsigned columns) {
#pragma unroll
    for (unsigned j = 0; j < P::OWN_B; j += P::WIDTH) {
        if (WIDE) {
            if (P::b(j) < columns) store_global<true, P::WIDTH>(row + P::b(j), from + j);
        } else {
#pragma unroll
            for (unsigned v = 0; v < P::WIDTH; ++v)
                if (P::b(j + v) < columns) __stcs(row + P::b(j + v), from[j + v]);
        }
    }
}

}  // namespace sigmoid_l2

#endif
