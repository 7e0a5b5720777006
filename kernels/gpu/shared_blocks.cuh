// shared_blocks.cuh: three kernels for one W (m, n) and many x, each a product of matrices: q = x W^T, from which come e,
// g and the loss; dx = g W; parts of dW = g^T x, a sum over the batch. The texts of common.cuh and shared_sums.cuh come before
// this one.
//
// A block owns a tile of a product, A x B elements. Its operands go through shared memory, STEP terms of the sums at a
// time; the next STEP are in flight meanwhile. Thread (ta, tb) owns GROUPS_A groups of WIDTH neighbours along A, and
// groups are THREADS_A * WIDTH apart; the same along B. So the lanes of a warp read neighbouring vectors.
//
// An element of q or dx is one chain of fused multiply-adds, whatever tile it is in.

#ifndef SIGMOID_L2_SHARED_BLOCKS_CUH
#define SIGMOID_L2_SHARED_BLOCKS_CUH

namespace sigmoid_l2 {

// Elements from one term to the next in shared memory: 4 more than a multiple of 8. Then no two lanes use one bank at a
// time where two lanes have neighbours of one line.
__host__ __device__ constexpr unsigned padded(unsigned size) {
    return size + (12 - size % 8) % 8;
}

// An operand's part of a tile: SIZE lines of STEP terms. ALONG says that a line's terms are neighbours in global
// memory; else the lines of a term are. WIDE: each line, or each term, begins on a multiple of 16 bytes.
template <typename T, unsigned SIZE, unsigned STEP, unsigned THREADS, bool ALONG, bool WIDE>
struct Operand {
    static constexpr unsigned WIDTH = 16 / sizeof(T), LINE = padded(SIZE), VECTORS = SIZE * STEP / WIDTH;
    static constexpr unsigned ROUNDS = (VECTORS + THREADS - 1) / THREADS;
    static_assert(!ALONG || STEP % (2 * WIDTH) == 0, "two lanes load neighbouring vectors of a line");
    T held[ROUNDS][WIDTH];  // all are loaded before the first is used, so that all are in flight

    // Of the first element of the vector of a round the line and the term, as the thread's own and a constant: for powers
    // of two that is the place of vector round * THREADS + threadIdx.x.
    static_assert((SIZE & (SIZE - 1)) == 0 && (THREADS & (THREADS - 1)) == 0, "powers of two");
    static constexpr unsigned VECTORS_OF_TERM = SIZE / WIDTH;
    static __device__ bool has() { return VECTORS >= THREADS || threadIdx.x < VECTORS; }
    static __device__ unsigned line(unsigned round) {
        return ALONG ? threadIdx.x / 2 % SIZE + round * (THREADS / 2) % SIZE
                     : (threadIdx.x % VECTORS_OF_TERM + round * THREADS % VECTORS_OF_TERM) * WIDTH;
    }
    static __device__ unsigned term(unsigned round) {
        return ALONG ? (threadIdx.x / (2 * SIZE) * 2 + threadIdx.x % 2 + round * THREADS / (2 * SIZE) * 2) * WIDTH
                     : threadIdx.x / VECTORS_OF_TERM + round * THREADS / VECTORS_OF_TERM;
    }

    // Load what is there of `lines` and `terms`, zeros elsewhere. `stride` is from one line or term to the next.
    // A tile spans less than 2^32 elements.
    __device__ void load(const T* from, unsigned stride, unsigned lines, unsigned terms) {
#pragma unroll
        for (unsigned r = 0; r < ROUNDS; ++r) {
            const unsigned l = line(r), k = term(r);
            const T* const at = from + (ALONG ? l * stride + k : k * stride + l);
#pragma unroll
            for (unsigned w = 0; w < WIDTH; ++w) held[r][w] = T(0);
            if (!has()) continue;
            if (WIDE) {
                if (l < lines && k < terms) load_global<true, WIDTH, true>(held[r], at);
            } else {
#pragma unroll
                for (unsigned w = 0; w < WIDTH; ++w)
                    if (l + (ALONG ? 0 : w) < lines && k + (ALONG ? w : 0) < terms) held[r][w] = at[w];
            }
        }
    }
    __device__ void store(T* shared) const {  // (STEP, LINE)
#pragma unroll
        for (unsigned r = 0; r < ROUNDS; ++r) {
            T* const at = shared + term(r) * LINE + line(r);
            if (!has()) continue;
            if (!ALONG) store_shared<WIDTH>(at, held[r]);
#pragma unroll
            for (unsigned w = 0; w < WIDTH; ++w)
                if (ALONG) at[w * LINE] = held[r][w];
        }
    }
};

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
