// finish.cuh: the kernel that adds the sums of the slices of each pair: those of a group one after the other, and then
// the groups. A block owns 32 columns of a pair; the column after those of dx is loss. CHUNK slices are in shared memory
// at a time: thread (k, c) loads slices k, k + LOADERS, ... of column c, all of them in flight at once; then thread
// (0, c) adds them.

#ifndef SIGMOID_L2_FINISH_CUH
#define SIGMOID_L2_FINISH_CUH

namespace sigmoid_l2 {

// Grid: B * (n / 32 + 1) blocks of 32 * LOADERS threads.
template <typename T, unsigned LOADERS, unsigned CHUNK, bool WANT_LOSS, bool WANT_DX>
__device__ inline void finish(const T* slice_loss,  // (units,)
                              const T* slice_dx,    // (units, n)
                              T* loss,              // (B,)
                              T* dx,                // (B, n)
                              unsigned n, unsigned slices, unsigned group) {
    __shared__ T chunk[CHUNK * WARP];
    const unsigned c = threadIdx.x % WARP, loader = threadIdx.x / WARP;
    const unsigned tiles = n / WARP + 1, j = blockIdx.x % tiles * WARP + c;
    const index_t b = blockIdx.x / tiles;
    const bool is_dx = WANT_DX && j < n, is_loss = WANT_LOSS && j == n;
    const unsigned step = is_dx ? n : 1;  // from one slice to the next
    const T* const from = is_dx ? slice_dx + b * slices * n + j : slice_loss + b * slices;
    T total = T(-0.0), group_total = T(-0.0);  // to which the first sum is added as it is
    unsigned added = 0;                        // slices to group_total

    for (unsigned first = 0; first < slices; first += CHUNK) {
        // --- the next slices into shared memory ----------------------------------------------------------------------
        T held[CHUNK / LOADERS];
#pragma unroll
        for (unsigned k = 0; k < CHUNK / LOADERS; ++k) {
            const unsigned part = first + k * LOADERS + loader;
            held[k] = (is_dx || is_loss) && part < slices ? from[index_t(part) * step] : T(0);
        }
        if (first > 0) __syncthreads();  // those before have been added
#pragma unroll
        for (unsigned k = 0; k < CHUNK / LOADERS; ++k) chunk[(k * LOADERS + loader) * WARP + c] = held[k];
        __syncthreads();

        // --- their sum -----------------------------------------------------------------------------------------------
        const unsigned count = slices - first < CHUNK ? slices - first : CHUNK;
        for (unsigned k = 0; loader == 0 && k < count; ++k) {
            group_total += chunk[k * WARP + c];
            if (++added == group || first + k + 1 == slices) {
                total += group_total;
                group_total = T(-0.0);
                added = 0;
            }
        }
    }
    if (loader > 0) return;
    if (is_dx) dx[b * n + j] = total;
    if (is_loss) loss[b] = total;
}

}  // namespace sigmoid_l2

#endif
