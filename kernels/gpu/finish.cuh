// finish.cuh: the kernel that adds what the slices of each pair have left, in a fixed order. A block owns 32 columns of
// a pair, of which the one after dx is loss; thread (k, c) adds the slices k, k + GROUPS, ... of column c.

#ifndef SIGMOID_L2_FINISH_CUH
#define SIGMOID_L2_FINISH_CUH

namespace sigmoid_l2 {

// Grid: B * (n / 32 + 1) blocks of 32 * GROUPS threads.
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

    // --- the sums of this thread's slices ----------------------------------------------------------------------------
    T sum = T(0);
    if (WANT_DX && j < n)
        for (unsigned k = group; k < slices; k += GROUPS) sum += slice_dx[(b * slices + k) * n + j];
    if (WANT_LOSS && j == n)
        for (unsigned k = group; k < slices; k += GROUPS) sum += slice_loss[b * slices + k];
    sums[threadIdx.x] = sum;
    __syncthreads();

    // --- the sums of all groups --------------------------------------------------------------------------------------
    if (group > 0) return;
#pragma unroll
    for (unsigned k = 1; k < GROUPS; ++k) sum += sums[k * WARP + c];
    if (WANT_DX && j < n) dx[b * n + j] = sum;
    if (WANT_LOSS && j == n) loss[b] = sum;
}

}  // namespace sigmoid_l2

#endif
