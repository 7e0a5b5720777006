// common.cuh: what the GPU kernels share: arithmetic, the steps of a row, sums over threads, moves. The derivation is
// in reference.py.
//
//   q = W x,  s = sigmoid(q),  e = s - target,  loss = sum(e^2),  g = 2 e cotangent (s (1 - s)),
//   dq = g,  dW = g x^T,  dx = W^T g
//
// Arrays are C-contiguous: W (B, m, n), x (B, n), target (B, m), cotangent (B,), loss (B,), dW (B, m, n), dx (B, n),
// dq (B, m). Element (b, i, j) of W is W[(b * m + i) * n + j]; all offsets into global memory are 64-bit. A unit is a
// pair or, where a pair is cut into slices, `rows` of its rows; the last slice may have fewer. Then loss and dx are
// those of each slice, by unit, and the kernel finish adds them. plan.py chooses the kernel and its numbers.
//
// Without a GIVEN target (0) or cotangent (1) a kernel has no instruction for it. An output that is not WANTed is not
// touched.
//
// WIDE says that W, x, dW and dx begin on multiples of 16 bytes, so that 16 bytes can move in one access. The order of
// a sum depends neither on it nor on B or the place in the batch.
//
// The kernels are device functions that every thread of a one-dimensional block calls exactly once. Their files need
// the text of this one before theirs. They include nothing. They use only threadIdx.x, blockIdx.x, gridDim.x, __shared__,
// __syncthreads, __syncwarp, __shfl_sync, __shfl_xor_sync, __ldcs, __stcs, float2, float4, double2, exp, __fmaf_ieee_rn
// and __dsub_rn of CUDA, so a host compiler with a stand-in for those can run them.

#ifndef SIGMOID_L2_COMMON_CUH
#define SIGMOID_L2_COMMON_CUH

namespace sigmoid_l2 {

typedef long long index_t;
enum : unsigned { WARP = 32, ALL_LANES = 0xFFFFFFFF };
enum : unsigned { SHARED_BYTES = 48 * 1024 };  // that a block may declare, on every chip

// --- arithmetic ------------------------------------------------------------------------------------------------------

// a * b + c, rounded once. CuPy compiles everything with -ftz=true, which would read a subnormal W, x or g as 0 and so
// lose results that are normal numbers (1e-39 * 1e9); this instruction ignores the flag and costs the same.
template <typename T>
__device__ inline T multiply_add(T a, T b, T c) {
    return a * b + c;
}
template <>
__device__ inline float multiply_add<float>(float a, float b, float c) {
    return __fmaf_ieee_rn(a, b, c);
}

// a * b, rounded once.
template <typename T>
__device__ inline T multiply(T a, T b) {
    return multiply_add(a, b, T(-0.0));  // -0.0: a * b = -0.0 stays what it is
}

// a - b, rounded once: never contracted with the product that a may be.
template <typename T>
__device__ inline T subtract(T a, T b);
template <>
__device__ inline float subtract<float>(float a, float b) {
    return multiply_add(b, -1.0f, a);
}
template <>
__device__ inline double subtract<double>(double a, double b) {
    return __dsub_rn(a, b);
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

// --- the steps of a row ----------------------------------------------------------------------------------------------

// q + a . b of N elements, added one after the other.
template <unsigned N, typename T>
__device__ inline T dot(const T* a, const T* b, T q) {
#pragma unroll
    for (unsigned j = 0; j < N; ++j) q = multiply_add(a[j], b[j], q);
    return q;
}

// The error e = s - y of s = sigmoid(q), and g = cotangent dloss/dq = 2 e cotangent (s (1 - s)). Where y > 1/2, e is
// (1 - y) - (1 - s), in which 1 - y is exact where y <= 2, so that nothing cancels near s = y = 1.
template <bool GIVEN_TARGET, bool GIVEN_COTANGENT, typename T>
__device__ inline void error_and_g(T q, T y, T cotangent, T& e, T& g) {
    T s, c;
    sigmoid_and_complement(q, s, c);
    e = !GIVEN_TARGET ? s : y > T(0.5) ? subtract(subtract(T(1), y), c) : subtract(s, y);
    const T two_e = T(2) * e;
    g = multiply(GIVEN_COTANGENT ? multiply(two_e, cotangent) : two_e, multiply(s, c));
}

// y += g a, of N elements.
template <unsigned N, typename T>
__device__ inline void add_scaled(T* y, T g, const T* a) {
#pragma unroll
    for (unsigned j = 0; j < N; ++j) y[j] = multiply_add(g, a[j], y[j]);
}

// y = g a, of N elements.
template <unsigned N, typename T>
__device__ inline void scale(T* y, T g, const T* a) {
#pragma unroll
    for (unsigned j = 0; j < N; ++j) y[j] = multiply(g, a[j]);
}

// --- sums over threads -----------------------------------------------------------------------------------------------

// Sums of v[0 .. COUNT - 1] over groups of LANES neighbouring lanes, a power of two. At the end lane l of a group has
// the sums of v[l], v[l + LANES], ... in v[0], v[1], ... In each step two lanes share their values: each sends those
// that the other keeps, so all steps take about COUNT shuffles. Every lane of the warp takes part.
template <unsigned LANES, unsigned COUNT, unsigned DISTANCE = 1, typename T>
__device__ inline void sum_over_lanes(T* v, unsigned lane) {
    if constexpr (DISTANCE < LANES) {
        constexpr unsigned PAIRS = COUNT / 2;
        const bool upper = lane & DISTANCE;
#pragma unroll
        for (unsigned k = 0; 2 * k + 1 < COUNT; ++k) {  // k < PAIRS; NVRTC 13.0 warns of k < 0
            const T even = v[2 * k], odd = v[2 * k + 1];
            v[k] = (upper ? odd : even) + __shfl_xor_sync(ALL_LANES, upper ? even : odd, DISTANCE);
        }
        // The last value has no partner: both lanes keep it.
        if constexpr (COUNT % 2) v[PAIRS] = v[COUNT - 1] + __shfl_xor_sync(ALL_LANES, v[COUNT - 1], DISTANCE);
        sum_over_lanes<LANES, PAIRS + COUNT % 2, 2 * DISTANCE>(v, lane);
    }
}

// Sums of v[0 .. COUNT - 1] over the threads that own a row: LANES of a warp, or all WARPS warps of the block. COUNT is
// a power of two up to LANES; lane l gets the sum of v[l % COUNT]. The next call needs other `sums`: no barrier
// protects these.
template <unsigned WARPS, unsigned COUNT, unsigned LANES = WARP, typename T>
__device__ inline T sum_over_row_threads(T* v, T* sums) {  // sums: (WARPS, COUNT), in shared memory
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    sum_over_lanes<LANES, COUNT>(v, lane);
    if (WARPS == 1) return v[0];
    if (lane < COUNT) sums[warp * COUNT + lane] = v[0];
    __syncthreads();
    T total = sums[lane % COUNT];
#pragma unroll
    for (unsigned w = 1; w < WARPS; ++w) total += sums[w * COUNT + lane % COUNT];
    return total;
}

// --- moving ----------------------------------------------------------------------------------------------------------

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

// Copy WIDTH neighbouring elements between global memory and registers: in one access of an aligned address or, where
// WIDE is false, one by one. They use intrinsic functions, because the compiler sometimes splits a plain store of
// float4. The intrinsics also tell the cache that nothing is used again, unless AGAIN says that it is.
template <bool WIDE, unsigned WIDTH, bool AGAIN = false, typename T>
__device__ inline void load_global(T* to, const T* from) {
    typedef typename Packed<T, WIDTH>::type packed_t;
    const packed_t* const packed = reinterpret_cast<const packed_t*>(from);
    Vector<T, WIDTH> vector;
    if (WIDE) vector.packed = AGAIN ? *packed : __ldcs(packed);
#pragma unroll
    for (unsigned v = 0; v < WIDTH; ++v) to[v] = WIDE ? vector.at[v] : AGAIN ? from[v] : __ldcs(from + v);
}
template <bool WIDE, unsigned WIDTH, typename T>
__device__ inline void store_global(T* to, const T* from) {
    Vector<T, WIDTH> vector;
#pragma unroll
    for (unsigned v = 0; v < WIDTH; ++v) {
        vector.at[v] = from[v];
        if (!WIDE) __stcs(to + v, from[v]);
    }
    if (WIDE) __stcs(reinterpret_cast<typename Packed<T, WIDTH>::type*>(to), vector.packed);
}

// Copy WIDTH neighbouring elements between shared memory and registers, in one access of an aligned address.
template <unsigned WIDTH, typename T>
__device__ inline void load_shared(T* to, const T* from) {
    Vector<T, WIDTH> vector;
    vector.packed = *reinterpret_cast<const typename Packed<T, WIDTH>::type*>(from);
#pragma unroll
    for (unsigned v = 0; v < WIDTH; ++v) to[v] = vector.at[v];
}
template <unsigned WIDTH, typename T>
__device__ inline void store_shared(T* to, const T* from) {
    Vector<T, WIDTH> vector;
#pragma unroll
    for (unsigned v = 0; v < WIDTH; ++v) vector.at[v] = from[v];
    *reinterpret_cast<typename Packed<T, WIDTH>::type*>(to) = vector.packed;
}

}  // namespace sigmoid_l2

#endif
