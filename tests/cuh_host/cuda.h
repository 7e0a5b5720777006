// What kernels/sigmoid_l2.cuh uses of CUDA, for a host compiler: a thread is one of the operating system's, a barrier a
// real one. Blocks run one after another, so that a block's shared arrays can be static.
// Nothing is included, because <math.h> alone takes longer to compile than a kernel, of which there are dozens.
#pragma once

#ifndef __device__
#define __device__
#endif
#define __host__
#define __syncthreads() wait_for_block(__LINE__)
#define __syncwarp() wait_for_warp(__LINE__)
#define __shfl_sync(mask, value, lane) exchange<0>(mask, value, lane)
#define __shfl_xor_sync(mask, value, distance) exchange<1>(mask, value, distance)

struct Index {
    unsigned x;
};
extern constinit thread_local Index threadIdx, blockIdx;

typedef float float2 __attribute__((vector_size(8)));
typedef float float4 __attribute__((vector_size(16)));
typedef double double2 __attribute__((vector_size(16)));

template <typename V>
__device__ inline V __ldcs(const V* from) {
    return *from;
}
template <typename V>
__device__ inline void __stcs(V* to, V value) {
    *to = value;
}

extern "C" double exp(double) noexcept;
extern "C" float expf(float) noexcept;
inline float exp(float q) { return expf(q); }
float __fmaf_ieee_rn(float a, float b, float c);  // never flushes subnormals

// The barrier on `line` of the kernel's text.
void wait_for_block(int line);
void wait_for_warp(int line);

// The `bits` of the lane whose number is `operand` (KIND 0) or differs from the own by `operand` (KIND 1). As on a GPU,
// this waits for all lanes of the warp but orders none of their accesses to memory.
unsigned long long exchange_bits(unsigned mask, unsigned long long bits, unsigned kind, unsigned operand);

template <unsigned KIND, typename T>
T exchange(unsigned mask, T value, unsigned operand) {
    unsigned long long bits = 0;
    __builtin_memcpy(&bits, &value, sizeof value);
    bits = exchange_bits(mask, bits, KIND, operand);
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

// Every thread of the blocks from `first` to before `end` calls body(argument) once. What went wrong with barriers and
// shuffles, or "".
const char* run_grid(long long first, long long end, int threads, bool flush_subnormals, void (*body)(const void*),
                     const void* argument);

template <typename Body>
const char* run_grid(long long first, long long end, int threads, bool flush_subnormals, const Body& body) {
    return run_grid(first, end, threads, flush_subnormals, [](const void* b) { (*static_cast<const Body*>(b))(); },
                    &body);
}

// Tells the recorder, where there is one, that an array of a block begins here.
void see_shared(const char* name, const void* array, unsigned long long bytes);

// Shared memory starts out with anything in it: here all bits are set, which is NaN.
template <typename T, int SIZE>
__attribute__((no_sanitize("thread"))) void poison(const char* name, T (&shared)[SIZE]) {
    if (threadIdx.x == 0) {
        __builtin_memset(shared, 0xFF, sizeof shared);
        see_shared(name, shared, sizeof shared);
    }
    wait_for_block(0);
}

// Arguments of a program: a number, and an array of zeros of that size.
long long number(const char* text);
void* zeros(long long bytes);

template <typename T>
T* zeros(const char* size) {
    return static_cast<T*>(zeros(number(size) * sizeof(T)));
}
int report(const char* failure);
