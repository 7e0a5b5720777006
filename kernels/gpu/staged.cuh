// staged.cuh: the kernel for short rows. A block carries a tile of units through shared memory, so that neighbouring
// threads touch neighbouring addresses of global memory however short a row is. A lane owns rows of a unit, or shares
// them with other lanes. The text of tile.cuh comes before this one.

#ifndef SIGMOID_L2_STAGED_CUH
#define SIGMOID_L2_STAGED_CUH

namespace sigmoid_l2 {

// Grid: ceil(units / (THREADS / LANES * LANE_PAIRS)) blocks of THREADS threads. ROW_LANES lanes of a unit share a row;
// each owns COLUMNS neighbouring columns of it, the last ones fewer. A lane has LANE_ROWS rows, the last ones fewer.
// One that owns whole pairs owns LANE_PAIRS.
template <typename T, unsigned M, unsigned N, unsigned ROWS, unsigned SLICES, unsigned THREADS, unsigned LANES,
          unsigned ROW_LANES, unsigned COLUMNS, unsigned LANE_ROWS, unsigned LANE_PAIRS, bool WIDE, bool GIVEN_TARGET,
          bool GIVEN_COTANGENT, bool WANT_LOSS, bool WANT_DW, bool WANT_DX, bool WANT_DQ>
__device__ inline void fused_staged(const T* W,          // (B, M, N)
                                    const T* x,          // (B, N)
                                    const T* target,     // (B, M)
                                    const T* cotangent,  // (B,)
                                    T* loss,             // (units,)
                                    T* dW,               // (B, M, N)
                                    T* dx,               // (units, N)
                                    T* dq,               // (B, M)
                                    index_t units) {
    constexpr unsigned BLOCK_UNITS = THREADS / LANES * LANE_PAIRS, VECTOR = 16 / sizeof(T);
    constexpr unsigned W_SIZE = BLOCK_UNITS * ROWS * N, X_SIZE = BLOCK_UNITS * N, LANE_SIZE = LANE_ROWS * COLUMNS;
    static_assert(SLICES == 1 || BLOCK_UNITS == 1, "a slice has a block to itself");
    static_assert(LANE_PAIRS == 1 || LANES == 1, "only a lane that owns pairs owns several");
    // A lane owns LANE_ROWS whole rows that follow each other, or columns of rows that are STEP apart: so the lanes of
    // a warp touch neighbouring elements.
    constexpr bool WHOLE = ROW_LANES == 1, ALL_COLUMNS = ROW_LANES * COLUMNS == N;
    constexpr bool ALL_ROWS = LANES * LANE_ROWS == ROWS * ROW_LANES && M % ROWS == 0;  // each lane has LANE_ROWS
    constexpr unsigned SEGMENT = WHOLE ? LANE_SIZE : COLUMNS;  // of neighbouring elements
    constexpr unsigned STEP = WHOLE ? 1 : LANES / ROW_LANES;  // rows
    constexpr unsigned W_GRAIN = twos(!WHOLE ? N : BLOCK_UNITS == 1 ? SEGMENT : SEGMENT | ROWS * N, VECTOR);
    constexpr unsigned X_CHUNK = (N - 1) % COLUMNS + 1;  // columns that a lane has all or none of
    constexpr unsigned W_CHUNK = X_CHUNK % W_GRAIN == 0 ? X_CHUNK : W_GRAIN;
    // Elements in one access: 16 bytes of them where every tile begins on a multiple of 16 bytes.
    constexpr unsigned W_WIDTH = WIDE && (SLICES == 1 ? BLOCK_UNITS * ROWS * N : M * N) % VECTOR == 0 ? VECTOR : 1;
    constexpr unsigned X_WIDTH = WIDE && X_SIZE % VECTOR == 0 ? VECTOR : 1;
    typedef Tile<T, W_SIZE, SEGMENT, W_GRAIN> W_Tile;
    typedef Tile<T, X_SIZE, COLUMNS, twos(N, VECTOR)> X_Tile;
    typedef Mover<T, W_SIZE, W_WIDTH, THREADS> W_Mover;
    typedef Mover<T, X_SIZE, X_WIDTH, THREADS> X_Mover;
    constexpr unsigned TOGETHER = LANES < WARP ? LANES : WARP, TEAMS = TOGETHER / ROW_LANES;  // lanes of one column
    constexpr unsigned SUMS = WANT_DX ? 1 + COLUMNS : 1;           // of a lane: loss, and dx of its columns
    constexpr unsigned UNIT_SUMS = WANT_DX ? 1 + N : 1;            // loss, dx_0, dx_1, ...
    constexpr unsigned OWN_G = (LANE_ROWS + ROW_LANES - 1) / ROW_LANES;  // of the rows that a lane shares
    constexpr unsigned WARP_ROOM = LANES > WARP ? THREADS / WARP * UNIT_SUMS : 1;
    // The target and dq go through a tile where a lane's rows follow each other and there is room: one short row has as
    // much of them as of W. Lanes that share rows have neighbouring ones.
    constexpr unsigned Y_SIZE = BLOCK_UNITS * ROWS;
    constexpr unsigned Y_GRAIN = twos(BLOCK_UNITS == 1 ? LANE_ROWS : LANE_ROWS | ROWS, VECTOR);
    constexpr unsigned Y_WIDTH = WIDE && (SLICES == 1 ? Y_SIZE : M) % VECTOR == 0 ? VECTOR : 1;
    typedef Tile<T, Y_SIZE, LANE_ROWS, Y_GRAIN> Y_Tile;
    typedef Mover<T, Y_SIZE, Y_WIDTH, THREADS> Y_Mover;
    typedef Tile<T, BLOCK_UNITS, 1, 1> C_Tile;
    typedef Mover<T, BLOCK_UNITS, 1, THREADS> C_Mover;
    constexpr unsigned ROOM = W_Tile::ROOM + X_Tile::ROOM + Y_Tile::ROOM + C_Tile::ROOM + WARP_ROOM;
    constexpr bool Y_STAGED = WHOLE && ROOM * sizeof(T) <= SHARED_BYTES;
    alignas(16) __shared__ T W_shared[W_Tile::ROOM];  // W first, dW after
    alignas(16) __shared__ T x_shared[X_Tile::ROOM];  // x first, dx after
    alignas(16) __shared__ T y_shared[Y_STAGED ? Y_Tile::ROOM : 1];  // the target first, dq after
    alignas(16) __shared__ T c_shared[C_Tile::ROOM];                 // the cotangent
    __shared__ T warp_sums[WARP_ROOM];
    const W_Tile W_tile = {W_shared};
    const X_Tile x_tile = {x_shared};
    const Y_Tile y_tile = {y_shared};
    const C_Tile c_tile = {c_shared};

    // --- where this thread works -------------------------------------------------------------------------------------
    const unsigned t = threadIdx.x, lane = t % LANES, column = lane % ROW_LANES * COLUMNS;
    const index_t first = index_t(blockIdx.x) * BLOCK_UNITS, pair = first / SLICES;
    const unsigned units_here = units - first < BLOCK_UNITS ? unsigned(units - first) : BLOCK_UNITS;
    const unsigned row = unsigned(first % SLICES) * ROWS, rows = M - row < ROWS ? M - row : ROWS;
    const index_t row_first = pair * M + row, W_first = row_first * N;
    const bool is_full = units_here == BLOCK_UNITS && rows == ROWS;
    // Where target and dq are not staged: the row of the unit of which this lane has them, and whether it is there.
    const auto y_row = [&](unsigned k) {
        return WHOLE ? lane * LANE_ROWS + k : lane / ROW_LANES + (k * ROW_LANES + lane % ROW_LANES) * STEP;
    };
    const unsigned y_rows = t / LANES < units_here ? rows : 0;
    const auto y_exists = [&](unsigned k) {
        return (LANE_ROWS % ROW_LANES == 0 || k * ROW_LANES + lane % ROW_LANES < LANE_ROWS) & (y_row(k) < y_rows);
    };
    const index_t y_first = row_first + t / LANES * ROWS;
    T y_own[OWN_G] = {}, c_own = T(1);

    // --- W, x, target and cotangent into shared memory ---------------------------------------------------------------
    const auto copy_in = [&](unsigned W_count, unsigned x_count, unsigned y_count, unsigned c_count) {
        W_Mover W_moves(W_count);
        X_Mover x_moves(x_count);
        Y_Mover y_moves(y_count);
        C_Mover c_moves(c_count);
        W_moves.from_global(W + W_first);
        x_moves.from_global(x + pair * N);
        if (GIVEN_TARGET && Y_STAGED) y_moves.from_global(target + row_first);
        if (GIVEN_COTANGENT) c_moves.from_global(cotangent + pair);
        W_moves.to_tile(W_tile);
        x_moves.to_tile(x_tile);
        if (GIVEN_TARGET && Y_STAGED) y_moves.to_tile(y_tile);
        if (GIVEN_COTANGENT) c_moves.to_tile(c_tile);
    };
#pragma unroll
    for (unsigned k = 0; GIVEN_TARGET && !Y_STAGED && k < OWN_G; ++k)
        if (y_exists(k)) y_own[k] = target[y_first + y_row(k)];
    if (is_full) {
        copy_in(W_SIZE, X_SIZE, Y_SIZE, BLOCK_UNITS);
        if (t < W_Tile::ROOM - W_SIZE) *W_tile.at(W_SIZE + t) = T(0);  // a grain may reach beyond the last row
        if (GIVEN_TARGET && Y_STAGED && t < Y_Tile::ROOM - Y_SIZE) *y_tile.at(Y_SIZE + t) = T(0);
    } else {  // units and rows beyond the end are computed like all others, with zeros
        for (unsigned e = t; e < W_Tile::ROOM; e += THREADS) W_shared[e] = T(0);
        for (unsigned e = t; e < X_Tile::ROOM; e += THREADS) x_shared[e] = T(0);
        for (unsigned e = t; GIVEN_TARGET && Y_STAGED && e < Y_Tile::ROOM; e += THREADS) y_shared[e] = T(0);
        for (unsigned e = t; GIVEN_COTANGENT && e < C_Tile::ROOM; e += THREADS) c_shared[e] = T(0);
        __syncthreads();
        copy_in(units_here * rows * N, units_here * N, units_here * rows, units_here);
    }
    __syncthreads();

    // The lane's row i is row first_row + i * STEP of its unit, and is there where i * STEP < left.
    const unsigned first_row = WHOLE ? lane * LANE_ROWS : lane / ROW_LANES;
    const int left = int(rows - first_row), columns = ALL_COLUMNS || column + COLUMNS <= N ? COLUMNS : int(N - column);
    const int own = !WHOLE ? columns : ALL_ROWS ? SEGMENT : left * int(N);  // elements of a segment; none if negative
    const int last = WANT_DX ? columns : 0;  // of the lane's sums
    const auto exists = [&](unsigned i) { return ALL_ROWS || int(i * STEP) < left; };
    const int own_rows = ALL_ROWS ? LANE_ROWS : left;

#pragma unroll
    for (unsigned p = 0; p < LANE_PAIRS; ++p) {
        // --- W, x, target and cotangent of each lane -----------------------------------------------------------------
        const unsigned unit = p * (THREADS / LANES) + t / LANES;
        const unsigned y_begin = unit * ROWS + first_row, W_begin = y_begin * N + column;
        T W_own[LANE_SIZE] = {}, x_own[COLUMNS] = {}, q[LANE_ROWS], g_own[OWN_G], sums[SUMS] = {};
#pragma unroll
        for (unsigned k = 0; k < LANE_SIZE / SEGMENT; ++k)
            if (exists(k)) W_tile.template get<SEGMENT, W_CHUNK>(W_own + k * SEGMENT, W_begin + k * STEP * N, own);
        x_tile.template get<COLUMNS, X_CHUNK>(x_own, unit * N + column, columns);
        if constexpr (GIVEN_TARGET && Y_STAGED) y_tile.template get<LANE_ROWS, Y_GRAIN>(y_own, y_begin, own_rows);
        if (GIVEN_COTANGENT) c_own = *c_tile.at(unit);

        // --- q = W x -------------------------------------------------------------------------------------------------
#pragma unroll
        for (unsigned i = 0; i < LANE_ROWS; ++i) q[i] = dot<COLUMNS>(W_own + i * COLUMNS, x_own, T(0));
        sum_over_lanes<ROW_LANES, LANE_ROWS>(q, lane);

        // --- e, g and loss: of the lanes that share rows, lane l does rows l, l + ROW_LANES, ... ---------------------
#pragma unroll
        for (unsigned k = 0; k < OWN_G; ++k) {
            const unsigned i = k * ROW_LANES + lane % ROW_LANES;
            T e;
            error_and_g<GIVEN_TARGET, GIVEN_COTANGENT>(q[k], y_own[k], c_own, e, g_own[k]);
            if ((LANE_ROWS % ROW_LANES == 0 || i < LANE_ROWS) && exists(i))
                sums[0] = multiply_add(e, e, sums[0]);
            else
                g_own[k] = T(0);  // no row: e and g are NaN where x is infinite
            if (WANT_DQ && !Y_STAGED && y_exists(k)) dq[y_first + y_row(k)] = g_own[k];
        }
        if constexpr (WANT_DQ && Y_STAGED) y_tile.template put<LANE_ROWS, Y_GRAIN>(g_own, y_begin, own_rows);

        // --- dW = g x^T, dx += W^T g ---------------------------------------------------------------------------------
#pragma unroll
        for (unsigned i = 0; i < LANE_ROWS; ++i) {
            T g = g_own[i / ROW_LANES];
            if (ROW_LANES > 1) g = __shfl_sync(ALL_LANES, g, (t % WARP & -ROW_LANES) + i % ROW_LANES);
            if constexpr (WANT_DX) add_scaled<COLUMNS>(sums + 1, g, W_own + i * COLUMNS);
            scale<COLUMNS>(W_own + i * COLUMNS, g, x_own);
        }
#pragma unroll
        for (unsigned k = 0; WANT_DW && k < LANE_SIZE / SEGMENT; ++k)
            if (exists(k)) W_tile.template put<SEGMENT, W_CHUNK>(W_own + k * SEGMENT, W_begin + k * STEP * N, own);

        // --- loss and dx of each unit: sums over its lanes -----------------------------------------------------------
        // All lanes of the unit read x before dx takes its place. dx of more lanes goes through warp_sums.
        if (TEAMS > 1 && LANES <= WARP) __syncwarp();
#pragma unroll
        for (unsigned d = 1; d < ROW_LANES; d *= 2) sums[0] += __shfl_xor_sync(ALL_LANES, sums[0], d);
        sum_over_lanes<TOGETHER, SUMS, ROW_LANES>(sums, lane);
        if (WANT_LOSS && LANES <= WARP && lane == 0 && unit < units_here) __stcs(loss + first + unit, sums[0]);
        if constexpr (LANES <= WARP && TEAMS == 1 && WANT_DX)
            x_tile.template put<COLUMNS, X_CHUNK>(sums + 1, unit * N + column, columns);
        else
#pragma unroll
            for (unsigned k = 0; k * TEAMS < SUMS; ++k) {
                const int which = k * TEAMS + lane % TOGETHER / ROW_LANES;
                if (LANES > WARP && which <= last && (which > 0 || column == 0))
                    warp_sums[t / WARP * UNIT_SUMS + column + which] = sums[k];
                if (LANES <= WARP && 0 < which && which <= last) *x_tile.at(unit * N + column + which - 1) = sums[k];
            }
    }
    __syncthreads();
    if constexpr (LANES > WARP) {
        if (lane < UNIT_SUMS && t / LANES < units_here) {
            constexpr unsigned WARPS = LANES / WARP;
            T total = T(0);
#pragma unroll
            for (unsigned w = 0; w < WARPS; ++w) total += warp_sums[(t / LANES * WARPS + w) * UNIT_SUMS + lane];
            // Plain stores: at most two units of a block come here.
            if (WANT_LOSS && lane == 0) loss[first + t / LANES] = total;
            if (WANT_DX && lane > 0) dx[(first + t / LANES) * N + lane - 1] = total;
        }
    }

    // --- dq, dx and dW out of shared memory --------------------------------------------------------------------------
    const auto copy_out = [&](unsigned W_count, unsigned x_count, unsigned y_count) {
        if (WANT_DQ && Y_STAGED) {
            Y_Mover y_moves(y_count);
            y_moves.from_tile(y_tile);
            y_moves.to_global(dq + row_first);
        }
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
        copy_out(W_SIZE, X_SIZE, Y_SIZE);
    else
        copy_out(units_here * rows * N, units_here * N, units_here * rows);
}

}  // namespace sigmoid_l2

#endif
