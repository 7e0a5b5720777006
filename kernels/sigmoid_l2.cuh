// sigmoid_l2.cuh: f(W, x) = ||sigmoid(W x)||^2 and both gradients, fused. The derivation is in reference.py.
//
//   q = W x,  s = sigmoid(q),  loss = sum(s^2),  g = 2 s (s (1 - s)),  dW = g x^T,  dx = W^T g
//
// Arrays are C-contiguous: W (B, m, n), x (B, n), loss (B,), dW (B, m, n), dx (B, n). Element (b, i, j) of W is
// W[(b * m + i) * n + j]; all offsets into global memory are 64-bit.
//
// fused_staged: a block owns a tile of PAIRS pairs, one thread a pair, and carries it through shared memory, so that
//               neighbouring threads touch neighbouring addresses of global memory however small a pair is.
// fused_block:  a block owns a pair and goes through its rows, its threads along n.
//
// Device functions to be called by every thread of a one-dimensional block exactly once. The file includes nothing and
// uses of CUDA only threadIdx.x, blockIdx.x, __shared__, __syncthreads, exp and __fmaf_ieee_rn, so a host compiler with a
// stand-in for those can run it.

#ifndef SIGMOID_L2_CUH
#define SIGMOID_L2_CUH

namespace sigmoid_l2 {

typedef long long index_t;

// a * b + c in one rounding. CuPy compiles everything with -ftz=true, which would read a subnormal W, x or g as 0 and so
// lose results that are normal numbers (1e-39 * 1e9); this instruction ignores the flag and costs the same.
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

// The stride at which pairs of `size` elements lie in shared memory: odd strides have no bank conflicts.
__host__ __device__ constexpr int odd(int size) { return size | 1; }

// Grid: ceil(B / PAIRS) blocks of PAIRS threads. An output that is not WANTed is not touched.
template <typename T, int M, int N, int PAIRS, bool WANT_LOSS, bool WANT_DW, bool WANT_DX>
__device__ inline void fused_staged(const T* W,    // (B, M, N)
                                    const T* x,    // (B, N)
                                    T* loss,       // (B,)
                                    T* dW,         // (B, M, N)
                                    T* dx,         // (B, N)
                                    index_t B) {
    constexpr int MN = M * N, W_STRIDE = odd(MN), X_STRIDE = odd(N);
    __shared__ T W_shared[PAIRS * W_STRIDE];  // W first, dW after
    __shared__ T x_shared[PAIRS * X_STRIDE];
    __shared__ T dx_shared[PAIRS * X_STRIDE];
    const int t = threadIdx.x;
    const index_t first = index_t(blockIdx.x) * PAIRS;
    const int here = B - first < PAIRS ? int(B - first) : PAIRS;

    for (int e = t; e < here * MN; e += PAIRS) W_shared[e / MN * W_STRIDE + e % MN] = W[first * MN + e];
    for (int e = t; e < here * N; e += PAIRS) x_shared[e / N * X_STRIDE + e % N] = x[first * N + e];
    __syncthreads();
    if (t < here) {
        T* const W_pair = W_shared + t * W_STRIDE;
        const T* const x_pair = x_shared + t * X_STRIDE;
        T* const dx_pair = dx_shared + t * X_STRIDE;
        T total = T(0);
        for (int j = 0; j < N; ++j) dx_pair[j] = T(0);
        for (int i = 0; i < M; ++i) {
            T q = T(0), s, c;
            for (int j = 0; j < N; ++j) q = multiply_add(W_pair[i * N + j], x_pair[j], q);
            sigmoid_and_complement(q, s, c);
            total = multiply_add(s, s, total);
            const T g = multiply(T(2) * s, multiply(s, c));
            for (int j = 0; j < N; ++j) {
                dx_pair[j] = multiply_add(g, W_pair[i * N + j], dx_pair[j]);
                W_pair[i * N + j] = multiply(g, x_pair[j]);
            }
        }
        if (WANT_LOSS) loss[first + t] = total;
    }
    __syncthreads();
    if (WANT_DW)
        for (int e = t; e < here * MN; e += PAIRS) dW[first * MN + e] = W_shared[e / MN * W_STRIDE + e % MN];
    if (WANT_DX)
        for (int e = t; e < here * N; e += PAIRS) dx[first * N + e] = dx_shared[e / N * X_STRIDE + e % N];
}

// Grid: B blocks of THREADS threads, a power of two. dx is summed in shared memory for n <= COLUMNS, else in dx itself:
// a column belongs to one thread, so neither needs a barrier.
template <typename T, int THREADS, int COLUMNS, bool WANT_LOSS, bool WANT_DW, bool WANT_DX>
__device__ inline void fused_block(const T* W,    // (B, m, n)
                                   const T* x,    // (B, n)
                                   T* loss,       // (B,)
                                   T* dW,         // (B, m, n)
                                   T* dx,         // (B, n)
                                   index_t m, index_t n) {
    __shared__ T partial[THREADS];
    __shared__ T dx_shared[COLUMNS];
    const int t = threadIdx.x;
    const index_t b = blockIdx.x;
    const T* const x_pair = x + b * n;
    T* const dx_pair = dx + b * n;
    T* const dx_sums = n <= COLUMNS ? dx_shared : dx_pair;
    T total = T(0);
    if (WANT_DX)
        for (index_t j = t; j < n; j += THREADS) dx_sums[j] = T(0);
    for (index_t i = 0; i < m; ++i) {
        const T* const W_row = W + (b * m + i) * n;
        T* const dW_row = dW + (b * m + i) * n;
        T q = T(0), s, c;
        for (index_t j = t; j < n; j += THREADS) q = multiply_add(W_row[j], x_pair[j], q);
        partial[t] = q;
        __syncthreads();
        for (int half = THREADS / 2; half > 0; half /= 2) {
            if (t < half) partial[t] += partial[t + half];
            __syncthreads();
        }
        sigmoid_and_complement(partial[0], s, c);
        __syncthreads();  // all have read q_i before the next row overwrites it
        total = multiply_add(s, s, total);
        const T g = multiply(T(2) * s, multiply(s, c));
        for (index_t j = t; j < n; j += THREADS) {
            if (WANT_DX) dx_sums[j] = multiply_add(g, W_row[j], dx_sums[j]);
            if (WANT_DW) dW_row[j] = multiply(g, x_pair[j]);
        }
    }
    if (WANT_LOSS && t == 0) loss[b] = total;
    if (WANT_DX && n <= COLUMNS)
        for (index_t j = t; j < n; j += THREADS) dx_pair[j] = dx_shared[j];
}

}  // namespace sigmoid_l2

#endif
