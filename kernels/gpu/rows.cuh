// rows.cuh: the kernel for rows that keep a warp busy, straight from global memory. A block owns one or several units.
// A team of threads owns AT_ONCE rows at a time. A thread owns the same columns of each: VECTORS groups of WIDTH
// neighbouring columns; groups are STEP columns apart. x and the team's part of dx stay in registers.

#ifndef SIGMOID_L2_ROWS_CUH
#define SIGMOID_L2_ROWS_CUH

namespace sigmoid_l2 {

// Load or store a thread's columns of one row: VECTORS vectors, STEP apart; the last may be beyond the row's end.
template <bool WIDE, unsigned WIDTH, unsigned VECTORS, unsigned STEP, typename T>
__device__ inline void load_row(T* to, const T* from, bool has_last) {
#pragma unroll
    for (unsigned k = 0; k < VECTORS; ++k)
        if (k + 1 < VECTORS || has_last) load_global<WIDE, WIDTH>(to + k * WIDTH, from + k * STEP);
}
template <bool WIDE, unsigned WIDTH, unsigned VECTORS, unsigned STEP, typename T>
__device__ inline void store_row(T* to, const T* from, bool has_last) {
#pragma unroll
    for (unsigned k = 0; k < VECTORS; ++k)
        if (k + 1 < VECTORS || has_last) store_global<WIDE, WIDTH>(to + k * STEP, from + k * WIDTH);
}

// Add them to what is there. Plain accesses: the compiler does not know that __ldcs depends on the stores before it.
template <unsigned WIDTH, unsigned VECTORS, unsigned STEP, typename T>
__device__ inline void add_row(T* to, const T* from, bool has_last) {
#pragma unroll
    for (unsigned k = 0; k < VECTORS; ++k)
#pragma unroll
        for (unsigned v = 0; v < WIDTH; ++v)
            if (k + 1 < VECTORS || has_last) to[k * STEP + v] += from[k * WIDTH + v];
}

// loss and dx of a slice, from those of its teams, added in their order. Those of a unit's later slices are added to
// what the slices before have left.
template <unsigned ROW_THREADS, unsigned TEAMS, unsigned WIDTH, unsigned VECTORS, bool WANT_LOSS, bool WANT_DX,
          typename T>
__device__ inline void add_teams(T* loss, T* dx, T loss_own, const T* dx_own, unsigned unit, bool is_there, unsigned n,
                                 bool is_first,
                                 T* loss_sums,  // (BLOCK_UNITS * TEAMS,)
                                 T* dx_sums,    // (BLOCK_UNITS * TEAMS, COLUMNS)
                                 unsigned t) {
    constexpr unsigned UNIT_THREADS = TEAMS * ROW_THREADS, STEP = ROW_THREADS * WIDTH, COLUMNS = VECTORS * STEP;
    const unsigned thread = t % ROW_THREADS, team = t / ROW_THREADS;
    if (!is_first) __syncthreads();  // all have read the sums of the slice before
    if (thread == 0) loss_sums[team] = loss_own;
#pragma unroll
    for (unsigned k = 0; k < VECTORS; ++k)
        store_shared<WIDTH>(dx_sums + team * COLUMNS + k * STEP + thread * WIDTH, dx_own + k * WIDTH);
    __syncthreads();

    if (!is_there) return;
    const unsigned first = team / TEAMS * TEAMS;  // the unit's first team
    if (WANT_LOSS && t % UNIT_THREADS == 0) {
        T total = T(0);
        for (unsigned k = 0; k < TEAMS; ++k) total += loss_sums[first + k];
        loss[unit] = is_first ? total : loss[unit] + total;
    }
#pragma unroll 1  // more at a time would take more registers
    for (unsigned j = t % UNIT_THREADS; WANT_DX && j < n; j += UNIT_THREADS) {
        T total = T(0), &dx_j = dx[index_t(unit) * n + j];
#pragma unroll
        for (unsigned k = 0; k < TEAMS; ++k) total += dx_sums[(first + k) * COLUMNS + j];
        dx_j = is_first ? total : dx_j + total;
    }
}

// Grid: ceil(units / (THREADS / (ROW_THREADS * TEAMS))) blocks of THREADS threads. TEAMS is 1 if a team has more than a
// warp. VECTORS is the smallest number with VECTORS * ROW_THREADS * WIDTH >= n. If IN_TURN, a unit is a group of slices
// of `rows` rows each, which it does one after the other.
template <typename T, unsigned THREADS, unsigned ROW_THREADS, unsigned TEAMS, unsigned WIDTH, unsigned VECTORS,
          unsigned AT_ONCE, bool IN_TURN, bool WIDE, bool GIVEN_TARGET, bool GIVEN_COTANGENT, bool WANT_LOSS,
          bool WANT_DW, bool WANT_DX, bool WANT_DQ>
__device__ inline void fused_rows(const T* W,          // (B, m, n)
                                  const T* x,          // (B, n)
                                  const T* target,     // (B, m)
                                  const T* cotangent,  // (B,)
                                  T* loss,             // (units,)
                                  T* dW,               // (B, m, n)
                                  T* dx,               // (units, n)
                                  T* dq,               // (B, m)
                                  unsigned units, unsigned m, unsigned n, unsigned rows, unsigned unit_rows,
                                  unsigned slices) {
    constexpr unsigned UNIT_THREADS = ROW_THREADS * TEAMS, BLOCK_UNITS = THREADS / UNIT_THREADS;
    constexpr unsigned LANES = ROW_THREADS < WARP ? ROW_THREADS : WARP, WARPS = ROW_THREADS / LANES;
    constexpr unsigned WARP_TEAMS = TEAMS < WARP / LANES ? TEAMS : WARP / LANES;  // of a unit
    constexpr unsigned OWN = VECTORS * WIDTH, STEP = ROW_THREADS * WIDTH, STEP_ROWS = TEAMS * AT_ONCE;
    static_assert(WARPS == 1 || (TEAMS == 1 && BLOCK_UNITS == 1), "all of the block meets at a row's barrier");
    constexpr auto load = load_row<WIDE, WIDTH, VECTORS, STEP, T>;
    constexpr auto store = store_row<WIDE, WIDTH, VECTORS, STEP, T>;
    __shared__ T q_sums[2 * WARPS * AT_ONCE];  // for sum_over_row_threads, which uses the halves in turn
    __shared__ T c_shared[1], y_shared[2 * AT_ONCE];  // cotangent and target where a row has several warps

    // --- where this thread works -------------------------------------------------------------------------------------
    const unsigned t = threadIdx.x, lane = t % WARP, team = t / ROW_THREADS % TEAMS;
    const unsigned unit = blockIdx.x * BLOCK_UNITS + t / UNIT_THREADS;
    const unsigned pair = unit / slices;
    const unsigned first = t % ROW_THREADS * WIDTH;  // column
    const bool is_there = BLOCK_UNITS == 1 || unit < units;
    const bool has_last = first + (VECTORS - 1) * STEP < n;
    T x_own[OWN] = {}, c_own = T(1);
    unsigned turn = 0;

    if (is_there) load(x_own, x + index_t(pair) * n + first, has_last);
    if (GIVEN_COTANGENT && WARPS == 1 && is_there) c_own = cotangent[pair];
    if (GIVEN_COTANGENT && WARPS > 1 && t == 0) c_shared[0] = cotangent[pair];
    const index_t y_first = index_t(pair) * m;  // of the pair, in target and dq
    unsigned slice_end = unit % slices * unit_rows, i = slice_end + team * AT_ONCE;
    index_t W_at = (index_t(pair) * m + i) * n + first;  // of row i, in W and dW
    for (unsigned left = unit_rows;; left -= rows) {  // for each slice of the unit; left: rows, with this slice
        slice_end = m - slice_end < rows ? m : slice_end + rows;
        const unsigned end = is_there ? slice_end : 0;
        T dx_own[OWN] = {}, total = T(0);
        // The teams of a warp make the same number of steps, even where one has no row.
        for (; i - team % WARP_TEAMS * AT_ONCE < (LANES < WARP ? slice_end : end);
             i += STEP_ROWS, W_at += index_t(STEP_ROWS) * n) {
            // --- W and target of the rows i to i + AT_ONCE - 1; lane l has the target of row i + l % AT_ONCE ---------
            T W_rows[AT_ONCE][OWN] = {}, dW_row[OWN], q[AT_ONCE], y_own = T(0), e, g_own;
            const unsigned own_row = i + lane % AT_ONCE;
#pragma unroll
            for (unsigned a = 0; a < AT_ONCE; ++a)
                if (i + a < end) load(W_rows[a], W + W_at + index_t(a) * n, has_last);
            if (GIVEN_TARGET && WARPS == 1 && own_row < end) y_own = target[y_first + own_row];
            if (GIVEN_TARGET && WARPS > 1 && t < AT_ONCE && own_row < end)
                y_shared[turn * AT_ONCE + t] = target[y_first + own_row];

            // --- q = W x ---------------------------------------------------------------------------------------------
#pragma unroll
            for (unsigned a = 0; a < AT_ONCE; ++a) q[a] = dot<OWN>(W_rows[a], x_own, T(0));

            // --- e, g and loss: lane l does row i + l % AT_ONCE ------------------------------------------------------
            const T q_own = sum_over_row_threads<WARPS, AT_ONCE, LANES>(q, q_sums + turn * WARPS * AT_ONCE);
            // The longest rows leave no register for either before the sum. In it all threads meet at a barrier.
            if (GIVEN_TARGET && WARPS > 1 && own_row < end) y_own = y_shared[turn * AT_ONCE + lane % AT_ONCE];
            if (GIVEN_COTANGENT && WARPS > 1) c_own = c_shared[0];
            error_and_g<GIVEN_TARGET, GIVEN_COTANGENT>(q_own, y_own, c_own, e, g_own);
            turn ^= 1;
            if (own_row < end)
                total = multiply_add(e, e, total);
            else
                g_own = T(0);  // no row: e and g are NaN where x is infinite
            if (WANT_DQ && own_row < end && t % ROW_THREADS < AT_ONCE) dq[y_first + own_row] = g_own;

            // --- dW = g x^T, dx += W^T g -----------------------------------------------------------------------------
#pragma unroll
            for (unsigned a = 0; a < AT_ONCE; ++a) {
                const T g = __shfl_sync(ALL_LANES, g_own, lane / LANES * LANES + a);
                add_scaled<OWN>(dx_own, g, W_rows[a]);
                scale<OWN>(dW_row, g, x_own);
                if (WANT_DW && i + a < end) store(dW + W_at + index_t(a) * n, dW_row, has_last);
            }
        }

        // --- loss and dx of the slice --------------------------------------------------------------------------------
        const bool is_first = !IN_TURN || left == unit_rows;
#pragma unroll
        for (unsigned d = 1; d < AT_ONCE; d *= 2) total += __shfl_xor_sync(ALL_LANES, total, d);
        if constexpr (TEAMS > 1) {
            __shared__ T loss_sums[BLOCK_UNITS * TEAMS];
            alignas(16) __shared__ T dx_sums[BLOCK_UNITS * TEAMS * VECTORS * STEP];
            add_teams<ROW_THREADS, TEAMS, WIDTH, VECTORS, WANT_LOSS, WANT_DX>(
                loss, dx, total, dx_own, unit, is_there, n, is_first, loss_sums, dx_sums, t);
        } else if (is_there) {
            if (WANT_LOSS && t % ROW_THREADS == 0) loss[unit] = is_first ? total : loss[unit] + total;
            if (WANT_DX && is_first) store(dx + index_t(unit) * n + first, dx_own, has_last);
            if (WANT_DX && !is_first) add_row<WIDTH, VECTORS, STEP>(dx + index_t(unit) * n + first, dx_own, has_last);
        }
        if (!IN_TURN || slice_end >= m || left == rows) return;
        if (TEAMS == 1) {  // else `rows` is a multiple of their step
            W_at -= index_t(i - slice_end) * n;
            i = slice_end;
        }
    }
}

}  // namespace sigmoid_l2

#endif
