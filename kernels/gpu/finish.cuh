// finish.cuh: the kernel that adds the sums of the slices of each pair, in a fixed order. A block owns 32 columns of a
// pair; the column after those of dx is loss. Thread (k, c) adds the slices k, k + GROUPS, ... of column c.

#ifndef SIGMOID_L2_FINISH_CUH
#define SIGMOID_L2_FINISH_CUH

namespace sigmoid_l2 {

// Grid: B * (n / 32 + 1) blocks of 32 * GROUPS threads.
template <typename T, unsigned GROUPS, bool WANT_LOSS, bool WANT_DX>
__device__ inline void finish(const T* slice_loss,  // (units,)
                              const T* slice_dx,    // (units, n)
                              T* loss,              // (B,)
                              T* dx,                // (B, n)
                              unsigned n, unsigned slices) {
    __shared__ T sums[GROUPS * WARP];
    const unsigned c = threadIdx.x % WARP, group = threadIdx.x / WARP;
    const unsigned tiles = n / WARP + 1, j = blockIdx.x % tiles * WARP + c;
    const index_t b = blockIdx.x / tiles;

    // --- the sums of this thread's slices ----------------------------------------------------------------------------
    T total = T(0);
    if (WANT_DX && j < n)
        for (unsigned k = group; k < slices; k += GROUPS) total += slice_dx[(b * slices + k) * n + j];
    if (WANT_LOSS && j == n)
        for (unsigned k = group; k < slices; k += GROUPS) total += slice_loss[b * slices + k];
    sums[threadIdx.x] = total;
    __syncthreads();

    // --- the sums of all groups --------------------------------------------------------------------------------------
    if (group > 0) return;
#pragma unroll
    for (unsigned k = 1; k < GROUPS; ++k) total += sums[k * WARP + c];
    if (WANT_DX && j < n) dx[b * n + j] = total;
    if (WANT_LOSS && j == n) loss[b] = total;
}

}  // namespace sigmoid_l2

#endif
