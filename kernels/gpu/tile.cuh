// tile.cuh: a tile of elements in shared memory, and the way of its elements from and to global memory. The kernel of
// staged.cuh has W and dW in one tile, x and dx in another; that of shared_tiny.cuh x and dx, the target and dq.

#ifndef SIGMOID_L2_TILE_CUH
#define SIGMOID_L2_TILE_CUH

namespace sigmoid_l2 {

// The largest power of two that divides `size` and is at most `most`, a power of two.
__host__ __device__ constexpr unsigned twos(unsigned size, unsigned most) {
    return (size & -size) < most ? size & -size : most;
}

// A tile of SIZE elements in shared memory. Each lane uses its own elements, which begin STRIDE after those of the lane
// before, and moves GRAIN of them in one access. Where STRIDE is an odd number of grains, no two lanes use one bank at
// a time. Otherwise GRAIN is 16 bytes, and vectors of 16 bytes are permuted within the 128 bytes of all banks: by as
// many bits as STRIDE has factors of 2.
template <typename T, unsigned SIZE, unsigned STRIDE, unsigned GRAIN>
struct Tile {
    static constexpr unsigned VECTOR = 16 / sizeof(T), BANKS = 128 / sizeof(T);
    static constexpr unsigned PERMUTED = GRAIN == VECTOR ? twos(STRIDE / GRAIN, 8) : 1;  // vectors that change places
    static constexpr unsigned ROOM = (SIZE + PERMUTED * VECTOR - 1) / (PERMUTED * VECTOR) * (PERMUTED * VECTOR);
    T* elements;  // (ROOM,)

    // Where element e lies; those of an aligned vector stay together.
    __device__ T* at(unsigned e) const { return elements + (e ^ (e / BANKS % PERMUTED) * VECTOR); }

    // Copy COUNT elements from e on to or from registers: those chunks of which the first element is among `own`.
    template <unsigned COUNT, unsigned CHUNK>
    __device__ void get(T* to, unsigned e, int own) const {
#pragma unroll
        for (unsigned chunk = 0; chunk < COUNT; chunk += CHUNK)
            if (int(chunk) < own)
#pragma unroll
                for (unsigned k = chunk; k < chunk + CHUNK && k < COUNT; k += GRAIN)
                    load_shared<GRAIN>(to + k, at(e + k));
    }
    template <unsigned COUNT, unsigned CHUNK>
    __device__ void put(const T* from, unsigned e, int own) const {
#pragma unroll
        for (unsigned chunk = 0; chunk < COUNT; chunk += CHUNK)
            if (int(chunk) < own)
#pragma unroll
                for (unsigned k = chunk; k < chunk + CHUNK && k < COUNT; k += GRAIN)
                    store_shared<GRAIN>(at(e + k), from + k);
    }
};

// A thread's share of the first `count` elements of a tile of SIZE, on their way from or to global memory.
// Neighbouring threads move neighbouring vectors of WIDTH elements and, where those do not divide `count`, single
// elements after them.
template <typename T, unsigned SIZE, unsigned WIDTH, unsigned THREADS>
struct Mover {
    static constexpr unsigned ROUNDS = (SIZE / WIDTH + THREADS - 1) / THREADS, ROUND = THREADS * WIDTH;
    const unsigned count, first = threadIdx.x * WIDTH, rest = count / WIDTH * WIDTH + threadIdx.x;
    T held[ROUNDS][WIDTH];  // all are loaded before the first is stored, so that all are in flight
    T single;

    __device__ Mover(unsigned count) : count(count) {}
    // The compiler does not know that a full round has a vector for each thread: it knows no bound of threadIdx.x.
    __device__ bool has(unsigned round) const {
        return (round + 1) * THREADS <= count / WIDTH || round * THREADS + threadIdx.x < count / WIDTH;
    }
    __device__ bool has_single() const { return threadIdx.x < count % WIDTH; }

    // In a loop: else what is not loaded in one trip would be kept from the one before, in registers.
    __device__ void clear() {
        single = T(0);
#pragma unroll
        for (unsigned r = 0; r < ROUNDS; ++r)
#pragma unroll
            for (unsigned k = 0; k < WIDTH; ++k) held[r][k] = T(0);
    }
    __device__ void from_global(const T* from) {
#pragma unroll
        for (unsigned r = 0; r < ROUNDS; ++r)
            if (has(r)) load_global<true, WIDTH>(held[r], from + first + r * ROUND);
        if (has_single()) single = __ldcs(from + rest);
    }
    template <typename Tile>
    __device__ void to_tile(const Tile& tile) const {
#pragma unroll
        for (unsigned r = 0; r < ROUNDS; ++r)
            if (has(r)) store_shared<WIDTH>(tile.at(first + r * ROUND), held[r]);
        if (has_single()) *tile.at(rest) = single;
    }
    template <typename Tile>
    __device__ void from_tile(const Tile& tile) {
#pragma unroll
        for (unsigned r = 0; r < ROUNDS; ++r)
            if (has(r)) load_shared<WIDTH>(held[r], tile.at(first + r * ROUND));
        if (has_single()) single = *tile.at(rest);
    }
    __device__ void to_global(T* to) const {
#pragma unroll
        for (unsigned r = 0; r < ROUNDS; ++r)
            if (has(r)) store_global<true, WIDTH>(to + first + r * ROUND, held[r]);
        if (has_single()) __stcs(to + rest, single);
    }
};

}  // namespace sigmoid_l2

#endif
