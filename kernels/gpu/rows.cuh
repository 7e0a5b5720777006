// rows.cuh: the kernel for rows that keep a warp busy, straight from global memory. A block owns one or several units.
// A team of threads owns AT_ONCE rows at a time, a thread the same columns of each row: VECTORS times VECTOR
// neighbouring ones. x and the team's part of dx stay in registers.

#ifndef SIGMOID_L2_ROWS_CUH
#define SIGMOID_L2_ROWS_CUH

namespace sigmoid_l2 {

// Grid: ceil(units / (THREADS / (ROW_THREADS * TEAMS))) blocks of THREADS threads. TEAMS is 1 unless a team is a warp;
// VECTORS * ROW_THREADS * VECTOR columns are as few as hold n.
template <typename T, unsigned THREADS, unsigned ROW_THREADS, unsigned TEAMS, unsigned VECTOR, unsigned VECTORS,
          unsigned AT_ONCE, bool WIDE, bool WANT_LOSS, bool WANT_DW, bool WANT_DX>
__device__ inline void fused_rows(const T* W,  // (B, m, n)
                                  const T* x,  // (B, n)
                                  T* loss,     // (units,)
                                  T* dW,       // (B, m, n)
                                  T* dx,       // (units, n)
                                  unsigned units, unsigned m, unsigned n, unsigned rows, unsigned slices) {
    constexpr unsigned UNIT_THREADS = ROW_THREADS * TEAMS, UNITS = THREADS / UNIT_THREADS, WARPS = ROW_THREADS / WARP;
    constexpr unsigned OWN = VECTORS * VECTOR;       // columns of a thread
    constexpr unsigned STEP = ROW_THREADS * VECTOR;  // columns from one of a thread's vectors to the next
    static_assert(WARPS == 1 || (TEAMS == 1 && UNITS == 1), "all of the block meets at a row's barrier");
    __shared__ T q_sums[2 * WARPS * AT_ONCE];
    T x_own[OWN] = {}, dx_own[OWN] = {}, dW_own[VECTOR], total = T(0);

    // --- where this thread works -------------------------------------------------------------------------------------
    const unsigned t = threadIdx.x, lane = t % WARP, team = t / ROW_THREADS % TEAMS;
    const unsigned unit = blockIdx.x * UNITS + t / UNIT_THREADS, pair = unit / slices, row = unit % slices * rows;
    const unsigned end = unit >= units ? 0 : m - row < rows ? m - row : rows;
    const unsigned first = t % ROW_THREADS * VECTOR;  // column
    const bool has_last = first + (VECTORS - 1) * STEP < n;
    const auto has = [&](unsigned k) { return k + 1 < VECTORS || has_last; };
    index_t here = (index_t(pair) * m + row + team * AT_ONCE) * n + first;  // in W and dW
    unsigned turn = 0;                                                      // of the two halves of q_sums

#pragma unroll
    for (unsigned k = 0; k < VECTORS; ++k)
        if (unit < units && has(k))
            load_global<WIDE, VECTOR>(x_own + k * VECTOR, x + index_t(pair) * n + first + k * STEP);

    for (unsigned i = team * AT_ONCE; i < end; i += TEAMS * AT_ONCE, here += index_t(TEAMS * AT_ONCE) * n) {
        // --- W of AT_ONCE rows ---------------------------------------------------------------------------------------
        T W_rows[AT_ONCE][OWN] = {}, q[AT_ONCE], s, g_own;
#pragma unroll
        for (unsigned a = 0; a < AT_ONCE; ++a)
#pragma unroll
            for (unsigned k = 0; k < VECTORS; ++k)
                if (i + a < end && has(k))
                    load_global<WIDE, VECTOR>(W_rows[a] + k * VECTOR, W + here + index_t(a) * n + k * STEP);

        // --- q = W x -------------------------------------------------------------------------------------------------
#pragma unroll
        for (unsigned a = 0; a < AT_ONCE; ++a) q[a] = dot<OWN>(W_rows[a], x_own, T(0));

        // --- s, g and loss: lane l does row i + l % AT_ONCE ----------------------------------------------------------
        s_and_g(sum_over_warps<WARPS, AT_ONCE>(q, q_sums + turn * WARPS * AT_ONCE), s, g_own);
        turn ^= 1;
        if (i + lane % AT_ONCE < end)
            total = multiply_add(s, s, total);
        else
            g_own = T(0);  // no row: s and g are NaN where x is infinite

        // --- dW = g x^T, dx += W^T g ---------------------------------------------------------------------------------
#pragma unroll
        for (unsigned a = 0; a < AT_ONCE; ++a) {
            const T g = __shfl_sync(ALL_LANES, g_own, a);
            add_scaled<OWN>(dx_own, g, W_rows[a]);
#pragma unroll
            for (unsigned k = 0; k < VECTORS; ++k) {
                scale<VECTOR>(dW_own, g, x_own + k * VECTOR);
                if (WANT_DW && i + a < end && has(k))
                    store_global<WIDE, VECTOR>(dW + here + index_t(a) * n + k * STEP, dW_own);
            }
        }
    }

    // --- loss and dx of the unit -------------------------------------------------------------------------------------
#pragma unroll
    for (unsigned d = 1; d < AT_ONCE; d *= 2) total += __shfl_xor_sync(ALL_LANES, total, d);
    if (TEAMS == 1) {
        if (unit >= units) return;
        if (WANT_LOSS && t % ROW_THREADS == 0) loss[unit] = total;
#pragma unroll
        for (unsigned k = 0; k < VECTORS; ++k)
            if (WANT_DX && has(k))
                store_global<WIDE, VECTOR>(dx + index_t(unit) * n + first + k * STEP, dx_own + k * VECTOR);
    } else {
        constexpr unsigned ROOM = STEP * VECTORS;
        __shared__ T loss_sums[UNITS * TEAMS];
        alignas(16) __shared__ T dx_sums[UNITS * TEAMS * ROOM];
        const unsigned first_team = t / UNIT_THREADS * TEAMS;  // of the unit
        if (lane == 0) loss_sums[t / ROW_THREADS] = total;
#pragma unroll
        for (unsigned k = 0; k < VECTORS; ++k)
            store_shared<VECTOR>(dx_sums + t / ROW_THREADS * ROOM + first + k * STEP, dx_own + k * VECTOR);
        __syncthreads();
        if (unit >= units) return;
        if (WANT_LOSS && t % UNIT_THREADS == 0) {
            T sum = T(0);
            for (unsigned k = 0; k < TEAMS; ++k) sum += loss_sums[first_team + k];
            loss[unit] = sum;
        }
        for (unsigned j = t % UNIT_THREADS; WANT_DX && j < n; j += UNIT_THREADS) {
            T sum = T(0);
#pragma unroll
            for (unsigned k = 0; k < TEAMS; ++k) sum += dx_sums[(first_team + k) * ROOM + j];
            dx[index_t(unit) * n + j] = sum;
        }
    }
}

}  // namespace sigmoid_l2

#endif
