// staged.cuh: the kernel for short rows. A block carries a tile of units through shared memory, so that neighbouring
// threads touch neighbouring addresses of global memory however short a row is. A lane owns consecutive rows of a unit.

#ifndef SIGMOID_L2_STAGED_CUH
#define SIGMOID_L2_STAGED_CUH

namespace sigmoid_l2 {

// The largest power of two that divides `size` and is at most `most`, a power of two.
__host__ __device__ constexpr unsigned twos(unsigned size, unsigned most) {
    return (size & -size) < most ? size & -size : most;
}

// A tile of SIZE elements in shared memory. Each lane uses its own elements, which begin STRIDE after those of the lane
// before, and moves GRAIN of them in one access. Where STRIDE is an odd number of grains, no two lanes use one bank at
// a time. Otherwise GRAIN is 16 bytes, and vectors of 16 bytes are permuted within the 128 bytes of all banks: by as
// many bits as STRIDE has factors of 2.
template <typename T, unsigned SIZE, unsigned STRIDE, unsigned GRAIN>
struct Tile {
    static constexpr unsigned VECTOR = 16 / sizeof(T), BANKS = 128 / sizeof(T);
    static constexpr unsigned PERMUTED = GRAIN == VECTOR ? twos(STRIDE / GRAIN, 8) : 1;  // vectors that change places
    static constexpr unsigned ROOM = (SIZE + PERMUTED * VECTOR - 1) / (PERMUTED * VECTOR) * (PERMUTED * VECTOR);
    T* elements;  // (ROOM,)

    // Where element e lies; those of an aligned vector stay together.
    __device__ T* at(unsigned e) const { return elements + (e ^ (e / BANKS % PERMUTED) * VECTOR); }

    // Copy COUNT elements from e on, or only the first `own` of them, to or from registers.
    template <unsigned COUNT>
    __device__ void get(T* to, unsigned e, unsigned own = COUNT) const {
#pragma unroll
        for (unsigned k = 0; k < COUNT; k += GRAIN)
            if (k < own) load_shared<GRAIN>(to + k, at(e + k));
    }
    template <unsigned COUNT>
    __device__ void put(const T* from, unsigned e, unsigned own = COUNT) const {
#pragma unroll
        for (unsigned k = 0; k < COUNT; k += GRAIN)
            if (k < own) store_shared<GRAIN>(at(e + k), from + k);
    }
};

// A thread's share of the first `count` elements of a tile of SIZE, on their way from or to global memory.
// Neighbouring threads move neighbouring vectors of WIDTH elements and, where those do not divide `count`, single
// elements after them.
template <typename T, unsigned SIZE, unsigned WIDTH, unsigned THREADS>
struct Mover {
    static constexpr unsigned ROUNDS = (SIZE / WIDTH + THREADS - 1) / THREADS, ROUND = THREADS * WIDTH;
    const unsigned count, first = threadIdx.x * WIDTH, rest = count / WIDTH * WIDTH + threadIdx.x;
    T held[ROUNDS][WIDTH];  // all are loaded before the first is stored, so that all are in flight
    T single;

    __device__ Mover(unsigned count) : count(count) {}
    // The compiler does not know that a full round has a vector for each thread: it knows no bound of threadIdx.x.
    __device__ bool has(unsigned round) const {
        return (round + 1) * THREADS <= count / WIDTH || round * THREADS + threadIdx.x < count / WIDTH;
    }
    __device__ bool has_single() const { return threadIdx.x < count % WIDTH; }

    __device__ void from_global(const T* from) {
#pragma unroll
        for (unsigned r = 0; r < ROUNDS; ++r)
            if (has(r)) load_global<true, WIDTH>(held[r], from + first + r * ROUND);
        if (has_single()) single = __ldcs(from + rest);
    }
    template <typename Tile>
    __device__ void to_tile(const Tile& tile) const {
#pragma unroll
        for (unsigned r = 0; r < ROUNDS; ++r)
            if (has(r)) store_shared<WIDTH>(tile.at(first + r * ROUND), held[r]);
        if (has_single()) *tile.at(rest) = single;
    }
    template <typename Tile>
    __device__ void from_tile(const Tile& tile) {
#pragma unroll
        for (unsigned r = 0; r < ROUNDS; ++r)
            if (has(r)) load_shared<WIDTH>(held[r], tile.at(first + r * ROUND));
        if (has_single()) single = *tile.at(rest);
    }
    __device__ void to_global(T* to) const {
#pragma unroll
        for (unsigned r = 0; r < ROUNDS; ++r)
            if (has(r)) store_global<true, WIDTH>(to + first + r * ROUND, held[r]);
        if (has_single()) __stcs(to + rest, single);
    }
};

// Grid: ceil(units / (THREADS / LANES * LANE_PAIRS)) blocks of THREADS threads. A unit has LANES lanes of LANE_ROWS
// rows each, the last ones fewer; a lane that owns pairs owns LANE_PAIRS. An output that is not WANTed is not touched.
template <typename T, unsigned M, unsigned N, unsigned ROWS, unsigned SLICES, unsigned THREADS, unsigned LANES,
          unsigned LANE_ROWS, unsigned LANE_PAIRS, bool WIDE, bool WANT_LOSS, bool WANT_DW, bool WANT_DX>
__device__ inline void fused_staged(const T* W,  // (B, M, N)
                                    const T* x,  // (B, N)
                                    T* loss,     // (units,)
                                    T* dW,       // (B, M, N)
                                    T* dx,       // (units, N)
                                    index_t units) {
    constexpr unsigned BLOCK_UNITS = THREADS / LANES * LANE_PAIRS, VECTOR = 16 / sizeof(T);
    constexpr unsigned W_SIZE = BLOCK_UNITS * ROWS * N, X_SIZE = BLOCK_UNITS * N, LANE_SIZE = LANE_ROWS * N;
    static_assert(SLICES == 1 || BLOCK_UNITS == 1, "a slice has a block to itself");
    static_assert(LANE_PAIRS == 1 || LANES == 1, "only a lane that owns pairs owns several");
    constexpr bool ALL_ROWS = LANES * LANE_ROWS == ROWS && M % ROWS == 0;  // each lane has LANE_ROWS
    // Elements in one access: 16 bytes of them where every tile begins on a multiple of 16 bytes.
    constexpr unsigned W_WIDTH = WIDE && (SLICES == 1 ? BLOCK_UNITS * ROWS * N : M * N) % VECTOR == 0 ? VECTOR : 1;
    constexpr unsigned X_WIDTH = WIDE && X_SIZE % VECTOR == 0 ? VECTOR : 1;
    typedef Tile<T, W_SIZE, LANE_SIZE, twos(BLOCK_UNITS == 1 ? LANE_SIZE : LANE_SIZE | ROWS * N, VECTOR)> W_Tile;
    typedef Tile<T, X_SIZE, N, twos(N, VECTOR)> X_Tile;
    typedef Mover<T, W_SIZE, W_WIDTH, THREADS> W_Mover;
    typedef Mover<T, X_SIZE, X_WIDTH, THREADS> X_Mover;
    constexpr unsigned SUMS = WANT_DX ? 1 + N : 1;    // over the unit's lanes: loss, dx_0, dx_1, ...
    alignas(16) __shared__ T W_shared[W_Tile::ROOM];  // W first, dW after
    alignas(16) __shared__ T x_shared[X_Tile::ROOM];  // x first, dx after
    __shared__ T warp_sums[LANES > WARP ? THREADS / WARP * SUMS : 1];
    const W_Tile W_tile = {W_shared};
    const X_Tile x_tile = {x_shared};

    // --- where this thread works -------------------------------------------------------------------------------------
    const unsigned t = threadIdx.x, lane = t % LANES;
    const index_t first = index_t(blockIdx.x) * BLOCK_UNITS, pair = first / SLICES;
    const unsigned units_here = units - first < BLOCK_UNITS ? unsigned(units - first) : BLOCK_UNITS;
    const unsigned row = unsigned(first % SLICES) * ROWS, rows = M - row < ROWS ? M - row : ROWS;
    const index_t W_first = (pair * M + row) * N;
    const bool is_full = units_here == BLOCK_UNITS && rows == ROWS;

    // --- W and x into shared memory ----------------------------------------------------------------------------------
    const auto copy_in = [&](unsigned W_count, unsigned x_count) {
        W_Mover W_moves(W_count);
        X_Mover x_moves(x_count);
        W_moves.from_global(W + W_first);
        x_moves.from_global(x + pair * N);
        W_moves.to_tile(W_tile);
        x_moves.to_tile(x_tile);
    };
    if (is_full) {
        copy_in(W_SIZE, X_SIZE);
    } else {  // units and rows beyond the end are computed like all others, with zeros
        for (unsigned e = t; e < W_Tile::ROOM; e += THREADS) W_shared[e] = T(0);
        for (unsigned e = t; e < X_Tile::ROOM; e += THREADS) x_shared[e] = T(0);
        __syncthreads();
        copy_in(units_here * rows * N, units_here * N);
    }
    __syncthreads();

#pragma unroll
    for (unsigned p = 0; p < LANE_PAIRS; ++p) {
        // --- the rows of each lane: q = W x; s, g and loss; dW = g x^T, dx += W^T g ----------------------------------
        const unsigned unit = p * (THREADS / LANES) + t / LANES, W_own_first = (unit * ROWS + lane * LANE_ROWS) * N;
        const unsigned own = ALL_ROWS ? LANE_SIZE : lane * LANE_SIZE < rows * N ? rows * N - lane * LANE_SIZE : 0;
        T W_own[LANE_SIZE], x_own[N], sums[SUMS] = {};
        W_tile.template get<LANE_SIZE>(W_own, W_own_first, own);
        x_tile.template get<N>(x_own, unit * N);
#pragma unroll
        for (unsigned i = 0; i < LANE_ROWS; ++i) {
            if (i * N >= own) continue;
            T* const W_row = W_own + i * N;
            T s, g;
            s_and_g(dot<N>(W_row, x_own, T(0)), s, g);
            sums[0] = multiply_add(s, s, sums[0]);
            if constexpr (WANT_DX) add_scaled<N>(sums + 1, g, W_row);
            scale<N>(W_row, g, x_own);
        }
        if (WANT_DW) W_tile.template put<LANE_SIZE>(W_own, W_own_first, own);

        // --- loss and dx of each unit: sums over its lanes -----------------------------------------------------------
        // All lanes of the unit read x before dx takes its place. dx of more lanes goes through warp_sums.
        if (LANES > 1 && LANES <= WARP) __syncwarp();
        constexpr unsigned TOGETHER = LANES < WARP ? LANES : WARP;
        sum_over_lanes<TOGETHER, SUMS>(sums, lane);
        if (WANT_LOSS && LANES <= WARP && lane == 0 && unit < units_here) __stcs(loss + first + unit, sums[0]);
        if constexpr (LANES == 1 && WANT_DX) x_tile.template put<SUMS - 1>(sums + 1, unit * N);
#pragma unroll
        for (unsigned k = 0; k * TOGETHER < SUMS; ++k) {
            const unsigned which = k * TOGETHER + lane % TOGETHER;
            if (LANES > WARP && which < SUMS) warp_sums[t / WARP * SUMS + which] = sums[k];
            if (LANES > 1 && LANES <= WARP && 0 < which && which < SUMS) *x_tile.at(unit * N + which - 1) = sums[k];
        }
    }
    __syncthreads();
    if constexpr (LANES > WARP) {
        if (lane < SUMS && t / LANES < units_here) {
            constexpr unsigned WARPS = LANES / WARP;
            T total = T(0);
#pragma unroll
            for (unsigned w = 0; w < WARPS; ++w) total += warp_sums[(t / LANES * WARPS + w) * SUMS + lane];
            // Plain stores: at most two units of a block come here.
            if (WANT_LOSS && lane == 0) loss[first + t / LANES] = total;
            if (WANT_DX && lane > 0) dx[(first + t / LANES) * N + lane - 1] = total;
        }
    }

    // --- dx and dW out of shared memory ------------------------------------------------------------------------------
    const auto copy_out = [&](unsigned W_count, unsigned x_count) {
        if (WANT_DX && LANES <= WARP) {
            X_Mover x_moves(x_count);
            x_moves.from_tile(x_tile);
            x_moves.to_global(dx + first * N);
        }
        if (WANT_DW) {
            W_Mover W_moves(W_count);
            W_moves.from_tile(W_tile);
            W_moves.to_global(dW + W_first);
        }
    };
    if (is_full)
        copy_out(W_SIZE, X_SIZE);
    else
        copy_out(units_here * rows * N, units_here * N);
}

}  // namespace sigmoid_l2

#endif
