// What kernels/sigmoid_l2.cuh uses of CUDA, for a host compiler: a thread is one of the operating system's, a barrier a
// real one. Blocks run one after another, so that a block's shared arrays can be static.
// Nothing is included, because <math.h> alone takes longer to compile than a kernel, of which there are dozens.
#pragma once

#define __device__
#define __host__
#define __syncthreads() wait_for_block(__LINE__)

struct Index {
    unsigned x;
};
extern constinit thread_local Index threadIdx, blockIdx;

extern "C" double exp(double) noexcept;
extern "C" float expf(float) noexcept;
inline float exp(float q) { return expf(q); }
float __fmaf_ieee_rn(float a, float b, float c);  // never flushes subnormals

// The barrier on `line` of the kernel's text.
void wait_for_block(int line);

// Every thread of the blocks from `first` to before `end` calls body(argument) once.
void run_grid(long long first, long long end, int threads, bool flush_subnormals, void (*body)(const void*),
              const void* argument);

template <typename Body>
void run_grid(long long first, long long end, int threads, bool flush_subnormals, const Body& body) {
    run_grid(first, end, threads, flush_subnormals, [](const void* b) { (*static_cast<const Body*>(b))(); }, &body);
}

// Shared memory starts out with anything in it: here all bits are set, which is NaN.
template <typename T, int SIZE>
void poison(T (&shared)[SIZE]) {
    if (threadIdx.x == 0) __builtin_memset(shared, 0xFF, sizeof shared);
    wait_for_block(0);
}

// Arguments of a program: a number, and an array of zeros of that size.
long long number(const char* text);
void* zeros(long long bytes);

template <typename T>
T* zeros(const char* size) {
    return static_cast<T*>(zeros(number(size) * sizeof(T)));
}
