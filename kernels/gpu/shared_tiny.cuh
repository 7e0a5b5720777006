// shared_tiny.cuh: the kernel for a tiny W that all pairs share. A thread owns whole pairs and adds up their dW in its
// registers. x, dx, the target and dq go through shared memory, so that neighbouring threads touch neighbouring
// addresses of global memory however short a row is. The texts of tile.cuh and shared_sums.cuh come before this one.

#ifndef SIGMOID_L2_SHARED_TINY_CUH
#define SIGMOID_L2_SHARED_TINY_CUH

namespace sigmoid_l2 {

// Grid: ceil(B / (THREADS * PAIRS * tiles)) blocks of THREADS threads. A block does `tiles` tiles in turn. In each a
// thread has PAIRS pairs. Its terms of dW in RUN tiles are added one after the other, then those of a warp over its
// lanes, and these sums with their errors: those of a warp, and at the end those of the block, which leaves one part.
template <typename T, unsigned M, unsigned N, unsigned THREADS, unsigned PAIRS, unsigned RUN, bool WIDE,
          bool GIVEN_TARGET, bool GIVEN_COTANGENT, bool WANT_LOSS, bool WANT_DW, bool WANT_DX, bool WANT_DQ>
__device__ inline void shared_tiny(const T* W,          // (M, N)
                                   const T* x,          // (B, N)
                                   const T* target,     // (B, M)
                                   const T* cotangent,  // (B,)
                                   T* loss,             // (B,)
                                   T* parts,            // (M, N, blocks), of dW
                                   T* dx,               // (B, N)
                                   T* dq,               // (B, M)
                                   index_t B, index_t tiles) {
    constexpr unsigned TILE = THREADS * PAIRS, SIZE = M * N, WARPS = THREADS / WARP, VECTOR = 16 / sizeof(T);
    constexpr unsigned X_SIZE = TILE * N, Y_SIZE = TILE * M, WIDTH = WIDE ? VECTOR : 1;
    constexpr unsigned W_STEP = (N + VECTOR - 1) / VECTOR * VECTOR;  // a row of W in whole vectors
    constexpr unsigned OWN = (SIZE + WARP - 1) / WARP;               // sums over lanes that a lane is left with
    constexpr bool HAS_Y = GIVEN_TARGET || WANT_DQ;
    typedef Tile<T, X_SIZE, N, twos(N, VECTOR)> X_Tile;
    typedef Tile<T, Y_SIZE, M, twos(M, VECTOR)> Y_Tile;
    typedef Tile<T, TILE, 1, 1> C_Tile;
    typedef Mover<T, X_SIZE, WIDTH, THREADS> X_Mover;
    typedef Mover<T, Y_SIZE, WIDTH, THREADS> Y_Mover;
    typedef Mover<T, TILE, 1, THREADS> C_Mover;
    alignas(16) __shared__ T W_shared[M * W_STEP];
    alignas(16) __shared__ T x_shared[X_Tile::ROOM];                   // x first, dx after
    alignas(16) __shared__ T y_shared[HAS_Y ? Y_Tile::ROOM : VECTOR];  // the target first, dq after
    alignas(16) __shared__ T c_shared[GIVEN_COTANGENT ? C_Tile::ROOM : VECTOR];
    __shared__ T highs[WANT_DW ? WARPS * SIZE : 1], lows[WANT_DW ? WARPS * SIZE : 1];
    const X_Tile x_tile = {x_shared};
    const Y_Tile y_tile = {y_shared};
    const C_Tile c_tile = {c_shared};
    static_assert(SIZE <= THREADS, "a thread loads an element of W");

    // --- where this thread works, and its element of W ---------------------------------------------------------------
    const unsigned t = threadIdx.x, lane = t % WARP, warp = t / WARP, W_at = t / N * W_STEP + t % N;
    const T W_own = t < SIZE ? W[t] : T(0);
    T dW_own[SIZE] = {}, high[OWN], low[OWN];
    unsigned run = 0;  // tiles whose terms are in dW_own
#pragma unroll
    for (unsigned k = 0; k < OWN; ++k) high[k] = T(-0.0), low[k] = T(0);

    index_t first = blockIdx.x * tiles * TILE;
    for (index_t left = tiles; left > 0 && first < B; --left, first += TILE) {
        // --- x, target and cotangent into shared memory --------------------------------------------------------------
        const unsigned pairs = B - first < TILE ? unsigned(B - first) : TILE;
        const auto copy_in = [&](unsigned count) {
            X_Mover x_moves(count * N);
            Y_Mover y_moves(count * M);
            C_Mover c_moves(count);
            x_moves.clear(), y_moves.clear(), c_moves.clear();
            x_moves.from_global(x + first * N);
            if (GIVEN_TARGET) y_moves.from_global(target + first * M);
            if (GIVEN_COTANGENT) c_moves.from_global(cotangent + first);
            if (t < SIZE) W_shared[W_at] = W_own;  // in each trip: the first one loads W and x at once
            x_moves.to_tile(x_tile);
            if (GIVEN_TARGET) y_moves.to_tile(y_tile);
            if (GIVEN_COTANGENT) c_moves.to_tile(c_tile);
        };
        if (pairs == TILE) {
            copy_in(TILE);
        } else {  // pairs beyond the end are computed like all others, with zeros, and their g is not counted
            __syncthreads();  // the tile before has gone out; else each thread has moved what it overwrites
            for (unsigned e = t; e < X_Tile::ROOM; e += THREADS) x_shared[e] = T(0);
            for (unsigned e = t; GIVEN_TARGET && e < Y_Tile::ROOM; e += THREADS) y_shared[e] = T(0);
            for (unsigned e = t; GIVEN_COTANGENT && e < C_Tile::ROOM; e += THREADS) c_shared[e] = T(0);
            __syncthreads();
            copy_in(pairs);
        }
        __syncthreads();

#pragma unroll 1
        for (unsigned p = 0; p < PAIRS; ++p) {
            const unsigned pair = p * THREADS + t;
            __syncwarp();  // else the compilers would load all of W before the first pair, into registers
            T x_own[N], y_own[M] = {}, dx_own[N] = {}, c_own = T(1), total = T(0);
            x_tile.template get<N, N>(x_own, pair * N, N);
            if constexpr (GIVEN_TARGET) y_tile.template get<M, M>(y_own, pair * M, M);
            if (GIVEN_COTANGENT) c_own = *c_tile.at(pair);
#pragma unroll
            for (unsigned i = 0; i < M; ++i) {
                // --- q = W x, e, g and loss --------------------------------------------------------------------------
                T W_row[W_STEP], e, g;
#pragma unroll
                for (unsigned k = 0; k < W_STEP; k += VECTOR) load_shared<VECTOR>(W_row + k, W_shared + i * W_STEP + k);
                error_and_g<GIVEN_TARGET, GIVEN_COTANGENT>(dot<N>(W_row, x_own, T(0)), y_own[i], c_own, e, g);
                total = multiply_add(e, e, total);
                y_own[i] = g;

                // --- dx += W^T g, dW += g x^T ------------------------------------------------------------------------
                if (WANT_DX) add_scaled<N>(dx_own, g, W_row);
                if (WANT_DW) add_scaled<N>(dW_own + i * N, pair < pairs ? g : T(0), x_own);
            }
            if constexpr (WANT_DX) x_tile.template put<N, N>(dx_own, pair * N, N);
            if constexpr (WANT_DQ) y_tile.template put<M, M>(y_own, pair * M, M);
            if (WANT_LOSS && pair < pairs) __stcs(loss + first + pair, total);
        }

        // --- dW of the run, over the lanes ---------------------------------------------------------------------------
        if (WANT_DW && (++run == RUN || left == 1 || B - first <= TILE)) {
            sum_over_lanes<WARP, SIZE>(dW_own, lane);
#pragma unroll
            for (unsigned k = 0; k < OWN; ++k) add_exactly(high[k], low[k], dW_own[k]);
#pragma unroll
            for (unsigned k = 0; k < SIZE; ++k) dW_own[k] = T(0);
            run = 0;
        }

        // --- dx and dq out of shared memory --------------------------------------------------------------------------
        __syncthreads();
        const auto copy_out = [&](unsigned count) {
            X_Mover x_moves(count * N);
            Y_Mover y_moves(count * M);
            x_moves.clear(), y_moves.clear();
            if (WANT_DX) x_moves.from_tile(x_tile);
            if (WANT_DQ) y_moves.from_tile(y_tile);
            if (WANT_DX) x_moves.to_global(dx + first * N);
            if (WANT_DQ) y_moves.to_global(dq + first * M);
        };
        if (pairs == TILE)
            copy_out(TILE);
        else
            copy_out(pairs);
    }

    // --- dW of the block: sums over its warps ------------------------------------------------------------------------
    if constexpr (WANT_DW) {
#pragma unroll
        for (unsigned k = 0; k < OWN; ++k)
            if (k * WARP + lane < SIZE) {
                highs[warp * SIZE + k * WARP + lane] = high[k];
                lows[warp * SIZE + k * WARP + lane] = low[k];
            }
        __syncthreads();
        for (unsigned k = t; k < SIZE; k += THREADS) {
            T block_high = highs[k], block_low = lows[k];
#pragma unroll
            for (unsigned w = 1; w < WARPS; ++w) {
                block_low += lows[w * SIZE + k];
                add_exactly(block_high, block_low, highs[w * SIZE + k]);
            }
            parts[index_t(k) * gridDim.x + blockIdx.x] = rounded_once(block_high, block_low);
        }
    }
}

}  // namespace sigmoid_l2

#endif
