// sigmoid_l2.cuh: f(W, x) = ||sigmoid(W x)||^2 and both gradients, fused. The derivation is in reference.py.
//
//   q = W x,  s = sigmoid(q),  loss = sum(s^2),  g = 2 s (s (1 - s)),  dW = g x^T,  dx = W^T g
//
// Arrays are C-contiguous: W (B, m, n), x (B, n), loss (B,), dW (B, m, n), dx (B, n). Element (b, i, j) of W is
// W[(b * m + i) * n + j]; all offsets into global memory are 64-bit. A unit is a pair or, where a pair is cut into
// slices, `rows` of its rows, of which the last slice may have fewer. Then loss and dx are each slice's own, by unit,
// and `finish` adds them. plan.py chooses the kernel and its numbers.
//
// fused_staged: a block carries a tile of units through shared memory, so that neighbouring threads touch neighbouring
//               addresses of global memory however short a row is. A lane owns consecutive rows of a unit.
// fused_rows:   straight from global memory, for rows that keep a warp busy. A team of threads owns a row, a thread the
//               same columns of each row.
// fused_long:   a block owns a pair, for rows that its registers do not hold: it reads W twice.
//
// No sum's order depends on B, on the place in the batch or on WIDE, which says that W, x, dW and dx begin on multiples
// of 16 bytes and so may be moved by so many at a time.
//
// Device functions to be called by every thread of a one-dimensional block exactly once. The file includes nothing and
// uses of CUDA only threadIdx.x, blockIdx.x, __shared__, __syncthreads, __syncwarp, __shfl_sync, __shfl_xor_sync,
// __ldcs, __stcs, float2, float4, double2, exp and __fmaf_ieee_rn, so a host compiler with a stand-in for those can run
// it.

#ifndef SIGMOID_L2_CUH
#define SIGMOID_L2_CUH

namespace sigmoid_l2 {

typedef long long index_t;
enum : unsigned { WARP = 32, ALL_LANES = 0xFFFFFFFF };

// --- arithmetic ---------------------------------------------------------------------------------------------------

// a * b + c in one rounding. CuPy compiles everything with -ftz=true, which would read a subnormal W, x or g as 0 and
// so lose results that are normal numbers (1e-39 * 1e9); this instruction ignores the flag and costs the same.
template <typename T>
__device__ inline T multiply_add(T a, T b, T c) {
    return a * b + c;
}
template <>
__device__ inline float multiply_add<float>(float a, float b, float c) {
    return __fmaf_ieee_rn(a, b, c);
}
template <typename T>
__device__ inline T multiply(T a, T b) {
    return multiply_add(a, b, T(-0.0));  // -0.0: a * b = -0.0 stays what it is
}

// s = sigmoid(q) and c = 1 - s, both to a few ulp: one exp whose argument is never positive, nothing subtracted.
template <typename T>
__device__ inline void sigmoid_and_complement(T q, T& s, T& c) {
    const T t = exp(q < T(0) ? q : -q);
    const T r = T(1) / (T(1) + t);
    const T tr = t * r;
    s = q < T(0) ? tr : r;
    c = q < T(0) ? r : tr;
}

// s and g = 2 s (s (1 - s)).
template <typename T>
__device__ inline void s_and_g(T q, T& s, T& g) {
    T c;
    sigmoid_and_complement(q, s, c);
    g = multiply(T(2) * s, multiply(s, c));
}

// --- sums over threads --------------------------------------------------------------------------------------------

// Sums of the first COUNT values of v over groups of LANES neighbouring lanes, a power of two: lane l of a group is
// left with those of the values l, l + LANES, ... in v[0], v[1], ... Each step halves what a lane has to add, so all of
// it takes about COUNT shuffles. Every lane of the warp takes part.
template <unsigned LANES, unsigned COUNT, unsigned DISTANCE = 1, typename T>
__device__ inline void sum_over_lanes(T* v, unsigned lane) {
    if constexpr (DISTANCE < LANES) {
        constexpr unsigned LEFT = (COUNT + 1) / 2;
        if constexpr (COUNT == 1) {  // every lane keeps it
            v[0] += __shfl_xor_sync(ALL_LANES, v[0], DISTANCE);
        } else {
            const bool upper = lane & DISTANCE;
#pragma unroll
            for (unsigned k = 0; k < LEFT; ++k) {
                const T even = v[2 * k], odd = 2 * k + 1 < COUNT ? v[2 * k + 1] : T(0);
                v[k] = (upper ? odd : even) + __shfl_xor_sync(ALL_LANES, upper ? even : odd, DISTANCE);
            }
        }
        sum_over_lanes<LANES, LEFT, 2 * DISTANCE>(v, lane);
    }
}

// Sums of COUNT values, a power of two up to 32, over the block's WARPS warps: lane l is given that of value l % COUNT.
// The next call must be given other `sums`, because no barrier keeps it from overwriting these.
template <unsigned WARPS, unsigned COUNT, typename T>
__device__ inline T sum_over_warps(T* v, T* sums) {  // sums: (WARPS, COUNT)
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    sum_over_lanes<WARP, COUNT>(v, lane);
    if (WARPS == 1) return v[0];
    if (lane < COUNT) sums[warp * COUNT + lane] = v[0];
    __syncthreads();
    T sum = T(0);
#pragma unroll
    for (unsigned w = 0; w < WARPS; ++w) sum += sums[w * COUNT + lane % COUNT];
    return sum;
}

// --- moving ---------------------------------------------------------------------------------------------------------

// CUDA's type for WIDTH neighbouring elements, of up to 16 bytes, that move in one access.
template <typename T, unsigned WIDTH>
struct Packed;
template <>
struct Packed<float, 1> {
    typedef float type;
};
template <>
struct Packed<float, 2> {
    typedef float2 type;
};
template <>
struct Packed<float, 4> {
    typedef float4 type;
};
template <>
struct Packed<double, 1> {
    typedef double type;
};
template <>
struct Packed<double, 2> {
    typedef double2 type;
};
template <typename T, unsigned WIDTH>
union Vector {
    T at[WIDTH];
    typename Packed<T, WIDTH>::type packed;
};

// From and to global memory in one access or, where WIDE is false, element by element. By intrinsic functions: the
// compiler takes stores of float4 apart now and then, and these say that nothing is used again later.
template <bool WIDE, typename T, unsigned WIDTH>
__device__ inline void load_global(Vector<T, WIDTH>& to, const T* from) {
    if (WIDE) {
        to.packed = __ldcs(reinterpret_cast<const typename Packed<T, WIDTH>::type*>(from));
    } else {
#pragma unroll
        for (unsigned v = 0; v < WIDTH; ++v) to.at[v] = __ldcs(from + v);
    }
}
template <bool WIDE, typename T, unsigned WIDTH>
__device__ inline void store_global(T* to, const Vector<T, WIDTH>& from) {
    if (WIDE) {
        __stcs(reinterpret_cast<typename Packed<T, WIDTH>::type*>(to), from.packed);
    } else {
#pragma unroll
        for (unsigned v = 0; v < WIDTH; ++v) __stcs(to + v, from.at[v]);
    }
}
template <typename T, unsigned WIDTH>
__device__ inline void load_shared(Vector<T, WIDTH>& to, const T* from) {
    to.packed = *reinterpret_cast<const typename Packed<T, WIDTH>::type*>(from);
}
template <typename T, unsigned WIDTH>
__device__ inline void store_shared(T* to, const Vector<T, WIDTH>& from) {
    *reinterpret_cast<typename Packed<T, WIDTH>::type*>(to) = from.packed;
}

// The largest power of two that divides `size` and is at most `most`, a power of two.
__host__ __device__ constexpr unsigned twos(unsigned size, unsigned most) {
    return (size & -size) < most ? size & -size : most;
}

// A tile in shared memory of SIZE elements, of which each lane uses its own, STRIDE after the lane's before, GRAIN of
// them in one access. Where STRIDE is an odd number of grains, no two lanes meet in a bank. Else GRAIN is 16 bytes, and
// the vectors of 16 bytes are permuted within the 128 of all banks: by as many bits as STRIDE has factors of 2.
template <typename T, unsigned SIZE, unsigned STRIDE, unsigned GRAIN>
struct Tile {
    static constexpr unsigned VECTOR = 16 / sizeof(T), BANKS = 128 / sizeof(T);
    static constexpr unsigned PERMUTED = GRAIN == VECTOR ? twos(STRIDE / GRAIN, 8) : 1;  // vectors that change places
    static constexpr unsigned ROOM = (SIZE + PERMUTED * VECTOR - 1) / (PERMUTED * VECTOR) * (PERMUTED * VECTOR);
    T* elements;  // (ROOM,)

    // Where element e lies; those of an aligned vector stay together.
    __device__ T* at(unsigned e) const { return elements + (e ^ (e / BANKS % PERMUTED) * VECTOR); }

    // The COUNT elements from e on, of which there may be but the first `here`.
    template <unsigned COUNT>
    __device__ void get(T* to, unsigned e, unsigned here = COUNT) const {
#pragma unroll
        for (unsigned k = 0; k < COUNT; k += GRAIN) {
            if (k >= here) continue;
            Vector<T, GRAIN> grain;
            load_shared(grain, at(e + k));
#pragma unroll
            for (unsigned v = 0; v < GRAIN; ++v) to[k + v] = grain.at[v];
        }
    }
    template <unsigned COUNT>
    __device__ void put(const T* from, unsigned e, unsigned here = COUNT) const {
#pragma unroll
        for (unsigned k = 0; k < COUNT; k += GRAIN) {
            if (k >= here) continue;
            Vector<T, GRAIN> grain;
#pragma unroll
            for (unsigned v = 0; v < GRAIN; ++v) grain.at[v] = from[k + v];
            store_shared(at(e + k), grain);
        }
    }
};

// What a thread moves between global memory and the first `count` elements of a tile of SIZE: neighbouring threads
// move neighbouring vectors of WIDTH and, where they do not divide `count`, single elements after them.
template <typename T, unsigned SIZE, unsigned WIDTH, unsigned THREADS>
struct Mover {
    static constexpr unsigned ROUNDS = (SIZE / WIDTH + THREADS - 1) / THREADS, ROUND = THREADS * WIDTH;
    const unsigned count, first = threadIdx.x * WIDTH, rest = count / WIDTH * WIDTH + threadIdx.x;
    Vector<T, WIDTH> held[ROUNDS];  // all are loaded before the first is stored, so that all are in flight
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
            if (has(r)) load_global<true>(held[r], from + first + r * ROUND);
        if (has_single()) single = __ldcs(from + rest);
    }
    template <typename Tile>
    __device__ void to_tile(const Tile& tile) const {
#pragma unroll
        for (unsigned r = 0; r < ROUNDS; ++r)
            if (has(r)) store_shared(tile.at(first + r * ROUND), held[r]);
        if (has_single()) *tile.at(rest) = single;
    }
    template <typename Tile>
    __device__ void from_tile(const Tile& tile) {
#pragma unroll
        for (unsigned r = 0; r < ROUNDS; ++r)
            if (has(r)) load_shared(held[r], tile.at(first + r * ROUND));
        if (has_single()) single = *tile.at(rest);
    }
    __device__ void to_global(T* to) const {
#pragma unroll
        for (unsigned r = 0; r < ROUNDS; ++r)
            if (has(r)) store_global<true>(to + first + r * ROUND, held[r]);
        if (has_single()) __stcs(to + rest, single);
    }
};

// --- the kernels ----------------------------------------------------------------------------------------------------

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
    constexpr unsigned UNITS = THREADS / LANES * LANE_PAIRS, VECTOR = 16 / sizeof(T);
    constexpr unsigned W_SIZE = UNITS * ROWS * N, X_SIZE = UNITS * N, LANE_SIZE = LANE_ROWS * N;
    static_assert(SLICES == 1 || UNITS == 1, "a slice has a block to itself");
    static_assert(LANE_PAIRS == 1 || LANES == 1, "only a lane that owns pairs owns several");
    constexpr bool ALL_ROWS = LANES * LANE_ROWS == ROWS && M % ROWS == 0;  // each lane has LANE_ROWS
    // By 16 bytes, where each tile begins on a multiple of them.
    constexpr unsigned W_WIDTH = WIDE && (SLICES == 1 ? UNITS * ROWS * N : M * N) % VECTOR == 0 ? VECTOR : 1;
    constexpr unsigned X_WIDTH = WIDE && X_SIZE % VECTOR == 0 ? VECTOR : 1;
    typedef Tile<T, W_SIZE, LANE_SIZE, twos(UNITS == 1 ? LANE_SIZE : LANE_SIZE | ROWS * N, VECTOR)> W_Tile;
    typedef Tile<T, X_SIZE, N, twos(N, VECTOR)> X_Tile;
    typedef Mover<T, W_SIZE, W_WIDTH, THREADS> W_Mover;
    typedef Mover<T, X_SIZE, X_WIDTH, THREADS> X_Mover;
    constexpr unsigned SUMS = WANT_DX ? 1 + N : 1;    // over the unit's lanes: loss, dx_0, dx_1, ...
    alignas(16) __shared__ T W_shared[W_Tile::ROOM];  // W first, dW after
    alignas(16) __shared__ T x_shared[X_Tile::ROOM];  // x first, dx after
    __shared__ T warp_sums[LANES > WARP ? THREADS / WARP * SUMS : 1];
    const W_Tile W_tile = {W_shared};
    const X_Tile x_tile = {x_shared};
    const unsigned t = threadIdx.x, lane = t % LANES;
    const index_t first = index_t(blockIdx.x) * UNITS, pair = first / SLICES;
    const unsigned here = units - first < UNITS ? unsigned(units - first) : UNITS;
    const unsigned row = unsigned(first % SLICES) * ROWS, rows = M - row < ROWS ? M - row : ROWS;
    const index_t W_first = (pair * M + row) * N;
    const bool is_full = here == UNITS && rows == ROWS;

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
        copy_in(here * rows * N, here * N);
    }
    __syncthreads();

#pragma unroll
    for (unsigned p = 0; p < LANE_PAIRS; ++p) {
        const unsigned unit = p * (THREADS / LANES) + t / LANES, W_own_first = (unit * ROWS + lane * LANE_ROWS) * N;
        const unsigned own = ALL_ROWS ? LANE_SIZE : lane * LANE_SIZE < rows * N ? rows * N - lane * LANE_SIZE : 0;
        T W_own[LANE_SIZE], x_own[N], sums[SUMS] = {};
        W_tile.template get<LANE_SIZE>(W_own, W_own_first, own);
        x_tile.template get<N>(x_own, unit * N);
#pragma unroll
        for (unsigned i = 0; i < LANE_ROWS; ++i) {
            if (i * N >= own) continue;
            T* const W_row = W_own + i * N;
            T q = T(0), s, g;
#pragma unroll
            for (unsigned j = 0; j < N; ++j) q = multiply_add(W_row[j], x_own[j], q);
            s_and_g(q, s, g);
            sums[0] = multiply_add(s, s, sums[0]);
#pragma unroll
            for (unsigned j = 0; j < N; ++j) {
                if (WANT_DX) sums[1 + j] = multiply_add(g, W_row[j], sums[1 + j]);
                W_row[j] = multiply(g, x_own[j]);
            }
        }
        if (WANT_DW) W_tile.template put<LANE_SIZE>(W_own, W_own_first, own);

        // All lanes of the unit have read x, whose place dx takes, unless it goes through warp_sums.
        if (LANES > 1 && LANES <= WARP) __syncwarp();
        constexpr unsigned TOGETHER = LANES < WARP ? LANES : WARP;
        sum_over_lanes<TOGETHER, SUMS>(sums, lane);
        if (WANT_LOSS && LANES <= WARP && lane == 0 && unit < here) __stcs(loss + first + unit, sums[0]);
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
        if (lane < SUMS && t / LANES < here) {
            constexpr unsigned WARPS = LANES / WARP;
            T sum = T(0);
#pragma unroll
            for (unsigned w = 0; w < WARPS; ++w) sum += warp_sums[(t / LANES * WARPS + w) * SUMS + lane];
            if (WANT_LOSS && lane == 0) loss[first + t / LANES] = sum;
            if (lane > 0) dx[(first + t / LANES) * N + lane - 1] = sum;
        }
    }
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
        copy_out(here * rows * N, here * N);
}

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
    static_assert(WARPS == 1 || (TEAMS == 1 && UNITS == 1), "all of the block meets at a row's barrier");
    __shared__ T q_sums[2 * WARPS * AT_ONCE];
    const unsigned t = threadIdx.x, lane = t % WARP, own = lane % AT_ONCE, team = t / ROW_THREADS % TEAMS;
    const unsigned unit = blockIdx.x * UNITS + t / UNIT_THREADS, pair = unit / slices, row = unit % slices * rows;
    const unsigned end = unit >= units ? 0 : m - row < rows ? m - row : rows;
    constexpr unsigned STEP = ROW_THREADS * VECTOR;   // between the columns of a thread's vectors
    const unsigned first = t % ROW_THREADS * VECTOR;  // of these columns
    const bool has_last = first + (VECTORS - 1) * STEP < n;
    const auto has = [&](unsigned k) { return k + 1 < VECTORS || has_last; };
    index_t here = (index_t(pair) * m + row + team * AT_ONCE) * n + first;  // in W and dW
    Vector<T, VECTOR> x_own[VECTORS], dx_own[VECTORS];
    T total = T(0);

#pragma unroll
    for (unsigned k = 0; k < VECTORS; ++k) {
        x_own[k] = dx_own[k] = Vector<T, VECTOR>();
        if (unit < units && has(k)) load_global<WIDE>(x_own[k], x + index_t(pair) * n + first + k * STEP);
    }
    unsigned turn = 0;
    for (unsigned i = team * AT_ONCE; i < end; i += TEAMS * AT_ONCE, here += index_t(TEAMS * AT_ONCE) * n) {
        Vector<T, VECTOR> W_rows[AT_ONCE][VECTORS];
        T q[AT_ONCE] = {}, s, g_own;
#pragma unroll
        for (unsigned a = 0; a < AT_ONCE; ++a) {
            const T* const W_row = W + here + index_t(a) * n;
#pragma unroll
            for (unsigned k = 0; k < VECTORS; ++k) {
                W_rows[a][k] = Vector<T, VECTOR>();
                if (i + a < end && has(k)) load_global<WIDE>(W_rows[a][k], W_row + k * STEP);
            }
        }
#pragma unroll
        for (unsigned a = 0; a < AT_ONCE; ++a)
#pragma unroll
            for (unsigned k = 0; k < VECTORS; ++k)
#pragma unroll
                for (unsigned v = 0; v < VECTOR; ++v) q[a] = multiply_add(W_rows[a][k].at[v], x_own[k].at[v], q[a]);
        // Lane l does the sigmoid of row i + l % AT_ONCE and tells the others.
        s_and_g(sum_over_warps<WARPS, AT_ONCE>(q, q_sums + turn * WARPS * AT_ONCE), s, g_own);
        turn ^= 1;
        if (i + own < end)
            total = multiply_add(s, s, total);
        else
            g_own = T(0);  // not NaN, as of an infinite x
#pragma unroll
        for (unsigned a = 0; a < AT_ONCE; ++a) {
            const T g = __shfl_sync(ALL_LANES, g_own, a);
            T* const dW_row = dW + here + index_t(a) * n;
#pragma unroll
            for (unsigned k = 0; k < VECTORS; ++k) {
                Vector<T, VECTOR> dW_vector;
#pragma unroll
                for (unsigned v = 0; v < VECTOR; ++v) {
                    dx_own[k].at[v] = multiply_add(g, W_rows[a][k].at[v], dx_own[k].at[v]);
                    dW_vector.at[v] = multiply(g, x_own[k].at[v]);
                }
                if (WANT_DW && i + a < end && has(k)) store_global<WIDE>(dW_row + k * STEP, dW_vector);
            }
        }
    }
#pragma unroll
    for (unsigned d = 1; d < AT_ONCE; d *= 2) total += __shfl_xor_sync(ALL_LANES, total, d);

    if (TEAMS == 1) {
        if (unit >= units) return;
        if (WANT_LOSS && t % ROW_THREADS == 0) loss[unit] = total;
#pragma unroll
        for (unsigned k = 0; k < VECTORS; ++k)
            if (WANT_DX && has(k)) store_global<WIDE>(dx + index_t(unit) * n + first + k * STEP, dx_own[k]);
    } else {
        constexpr unsigned ROOM = STEP * VECTORS;
        __shared__ T loss_sums[UNITS * TEAMS];
        alignas(16) __shared__ T dx_sums[UNITS * TEAMS * ROOM];
        if (lane == 0) loss_sums[t / ROW_THREADS] = total;
#pragma unroll
        for (unsigned k = 0; k < VECTORS; ++k)
            store_shared(dx_sums + t / ROW_THREADS * ROOM + first + k * STEP, dx_own[k]);
        __syncthreads();
        if (unit >= units) return;
        const unsigned first_team = t / UNIT_THREADS * TEAMS;
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

// Grid: B blocks of THREADS threads. dx is summed in its own place: a column belongs to one thread, so that needs no
// barrier.
template <typename T, unsigned THREADS, bool WANT_LOSS, bool WANT_DW, bool WANT_DX>
__device__ inline void fused_long(const T* W,  // (B, m, n)
                                  const T* x,  // (B, n)
                                  T* loss,     // (B,)
                                  T* dW,       // (B, m, n)
                                  T* dx,       // (B, n)
                                  index_t m, index_t n) {
    __shared__ T q_sums[2 * THREADS / WARP];
    const unsigned t = threadIdx.x;
    const index_t b = blockIdx.x;
    const T* const x_pair = x + b * n;
    T* const dx_pair = dx + b * n;
    T total = T(0);
    for (index_t j = t; WANT_DX && j < n; j += THREADS) dx_pair[j] = T(0);
    for (index_t i = 0; i < m; ++i) {
        const T* const W_row = W + (b * m + i) * n;
        T* const dW_row = dW + (b * m + i) * n;
        T q[1] = {}, s, g;
        for (index_t j = t; j < n; j += THREADS) q[0] = multiply_add(W_row[j], x_pair[j], q[0]);
        s_and_g(sum_over_warps<THREADS / WARP, 1>(q, q_sums + i % 2 * (THREADS / WARP)), s, g);
        total = multiply_add(s, s, total);
        for (index_t j = t; j < n; j += THREADS) {
            if (WANT_DX) dx_pair[j] = multiply_add(g, W_row[j], dx_pair[j]);
            if (WANT_DW) dW_row[j] = multiply(g, x_pair[j]);
        }
    }
    if (WANT_LOSS && t == 0) loss[b] = total;
}

// What the slices of each pair have left, added in a fixed order. Grid: B * (n / 32 + 1) blocks of 32 * GROUPS threads:
// thread (k, c) adds the slices k, k + GROUPS, ... of one of 32 columns. The column after dx is loss.
template <typename T, unsigned GROUPS, bool WANT_LOSS, bool WANT_DX>
__device__ inline void finish(const T* slice_loss,  // (B, slices)
                              const T* slice_dx,    // (B, slices, n)
                              T* loss,              // (B,)
                              T* dx,                // (B, n)
                              unsigned n, unsigned slices) {
    __shared__ T sums[GROUPS * WARP];
    const unsigned c = threadIdx.x % WARP, group = threadIdx.x / WARP;
    const unsigned tiles = n / WARP + 1, j = blockIdx.x % tiles * WARP + c;
    const index_t b = blockIdx.x / tiles;
    T sum = T(0);
    if (WANT_DX && j < n)
        for (unsigned k = group; k < slices; k += GROUPS) sum += slice_dx[(b * slices + k) * n + j];
    if (WANT_LOSS && j == n)
        for (unsigned k = group; k < slices; k += GROUPS) sum += slice_loss[b * slices + k];
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (group > 0) return;
#pragma unroll
    for (unsigned k = 1; k < GROUPS; ++k) sum += sums[k * WARP + c];
    if (WANT_DX && j < n) dx[b * n + j] = sum;
    if (WANT_LOSS && j == n) loss[b] = sum;
}

}  // namespace sigmoid_l2

#endif
