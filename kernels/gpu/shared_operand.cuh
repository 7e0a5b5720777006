// shared_operand.cuh: how an operand of a product of matrices goes from global to shared memory. The text of common.cuh
// comes before this one.

#ifndef SIGMOID_L2_SHARED_OPERAND_CUH
#define SIGMOID_L2_SHARED_OPERAND_CUH

namespace sigmoid_l2 {

// Elements from one term to the next in shared memory: 4 more than a multiple of 8. Then no two lanes use one bank at a
// time where two lanes have neighbours of one line.
__host__ __device__ constexpr unsigned padded(unsigned size) {
    return size + (12 - size % 8) % 8;
}

// An operand's part of a tile: SIZE lines of STEP terms. ALONG says that a line's terms are neighbours in global
// memory; else the lines of a term are. WIDE: each line, or each term, begins on a multiple of 16 bytes.
template <typename T, unsigned SIZE, unsigned STEP, unsigned THREADS, bool ALONG, bool WIDE>
struct Operand {
    static constexpr unsigned WIDTH = 16 / sizeof(T), LINE = padded(SIZE), VECTORS = SIZE * STEP / WIDTH;
    static constexpr unsigned ROUNDS = (VECTORS + THREADS - 1) / THREADS;
    static_assert(!ALONG || STEP % (2 * WIDTH) == 0, "two lanes load neighbouring vectors of a line");
    T held[ROUNDS][WIDTH];  // all are loaded before the first is used, so that all are in flight

    // Of the first element of the vector of a round the line and the term, as the thread's own and a constant: for powers
    // of two that is the place of vector round * THREADS + threadIdx.x.
    static_assert((SIZE & (SIZE - 1)) == 0 && (THREADS & (THREADS - 1)) == 0, "powers of two");
    static constexpr unsigned VECTORS_OF_TERM = SIZE / WIDTH;
    static __device__ bool has() { return VECTORS >= THREADS || threadIdx.x < VECTORS; }
    static __device__ unsigned line(unsigned round) {
        return ALONG ? threadIdx.x / 2 % SIZE + round * (THREADS / 2) % SIZE
                     : (threadIdx.x % VECTORS_OF_TERM + round * THREADS % VECTORS_OF_TERM) * WIDTH;
    }
    static __device__ unsigned term(unsigned round) {
        return ALONG ? (threadIdx.x / (2 * SIZE) * 2 + threadIdx.x % 2 + round * THREADS / (2 * SIZE) * 2) * WIDTH
                     : threadIdx.x / VECTORS_OF_TERM + round * THREADS / VECTORS_OF_TERM;
    }

    // Load what is there of `lines` and `terms`, zeros elsewhere. `stride` is from one line or term to the next.
    // A tile spans less than 2^32 elements.
    __device__ void load(const T* from, unsigned stride, unsigned lines, unsigned terms) {
#pragma unroll
        for (unsigned r = 0; r < ROUNDS; ++r) {
            const unsigned l = line(r), k = term(r);
            const T* const at = from + (ALONG ? l * stride + k : k * stride + l);
#pragma unroll
            for (unsigned w = 0; w < WIDTH; ++w) held[r][w] = T(0);
            if (!has()) continue;
            if (WIDE) {
                if (l < lines && k < terms) load_global<true, WIDTH, true>(held[r], at);
            } else {
#pragma unroll
                for (unsigned w = 0; w < WIDTH; ++w)
                    if (l + (ALONG ? 0 : w) < lines && k + (ALONG ? w : 0) < terms) held[r][w] = at[w];
            }
        }
    }
    __device__ void store(T* shared) const {  // (STEP, LINE)
#pragma unroll
        for (unsigned r = 0; r < ROUNDS; ++r) {
            T* const at = shared + term(r) * LINE + line(r);
            if (!has()) continue;
            if (!ALONG) store_shared<WIDTH>(at, held[r]);
#pragma unroll
            for (unsigned w = 0; w < WIDTH; ++w)
                if (ALONG) at[w * LINE] = held[r][w];
        }
    }
};

}  // namespace sigmoid_l2

#endif
