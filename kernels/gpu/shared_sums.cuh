// shared_sums.cuh: sums of any number of terms, with the errors of the additions, and the kernel that adds up the parts
// of dW which the blocks of a kernel for one W leave.

#ifndef SIGMOID_L2_SHARED_SUMS_CUH
#define SIGMOID_L2_SHARED_SUMS_CUH

namespace sigmoid_l2 {

// Add a term to the sum high + low, of which low has the errors of the additions (Knuth's TwoSum).
template <typename T>
__device__ inline void add_exactly(T& high, T& low, T term) {
    const T sum = high + term, added = sum - high;
    low += (high - (sum - added)) + (term - added);
    high = sum;
}

// The sum as one number: high alone where it is infinite, because low is NaN then.
template <typename T>
__device__ inline T rounded_once(T high, T low) {
    return low == low ? high + low : high;
}

// A block adds the parts of COLUMNS values: each of LOADERS threads some of a value, and then those of its loaders by
// halves. Part p of value v is at v * value_step + p * part_step. Grid: ceil(values / COLUMNS) blocks of
// COLUMNS * LOADERS threads.
template <typename T, unsigned COLUMNS, unsigned LOADERS>
__device__ inline void shared_sums(const T* parts, T* dW, index_t values, index_t count, index_t value_step,
                                   index_t part_step) {
    constexpr unsigned AT_ONCE = 8;
    __shared__ T highs[COLUMNS * LOADERS], lows[COLUMNS * LOADERS];
    const unsigned t = threadIdx.x, loader = t / COLUMNS;
    const index_t value = index_t(blockIdx.x) * COLUMNS + t % COLUMNS;
    T high = T(-0.0), low = T(0);

    // --- some parts of a value ---------------------------------------------------------------------------------------
    for (index_t first = loader; value < values && first < count; first += AT_ONCE * LOADERS) {
        T held[AT_ONCE];
#pragma unroll
        for (unsigned k = 0; k < AT_ONCE; ++k) {
            const index_t part = first + k * LOADERS;
            held[k] = part < count ? parts[value * value_step + part * part_step] : T(-0.0);
        }
#pragma unroll
        for (unsigned k = 0; k < AT_ONCE; ++k) add_exactly(high, low, held[k]);
    }

    // --- all of them -------------------------------------------------------------------------------------------------
    highs[t] = high;
    lows[t] = low;
#pragma unroll
    for (unsigned half = LOADERS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (loader < half) {
            low += lows[t + half * COLUMNS];
            add_exactly(high, low, highs[t + half * COLUMNS]);
            highs[t] = high;
            lows[t] = low;
        }
    }
    if (loader == 0 && value < values) dW[value] = rounded_once(high, low);
}

}  // namespace sigmoid_l2

#endif
