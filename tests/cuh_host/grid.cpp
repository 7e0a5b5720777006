// A grid on the host: see cuda.h.
#include "cuda.h"

#include <barrier>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

#ifdef __SSE2__
#include <xmmintrin.h>
static const unsigned FLUSH_SUBNORMALS = 0x8040;  // of results and of operands
#endif

constinit thread_local Index threadIdx{}, blockIdx{};

static std::barrier<>* block;
static std::mutex one_grid_at_a_time;

// The sanitizer test leaves out the barrier on this line to see it missed; 0 is none.
static int line_left_out() {
    const char* line = std::getenv("BARRIER_LEFT_OUT");
    return line ? std::atoi(line) : 0;
}

void wait_for_block(int line) {
    static const int left_out = line_left_out();
    if (line == 0 || line != left_out) block->arrive_and_wait();
}

float __fmaf_ieee_rn(float a, float b, float c) {
#ifdef __SSE2__
    const unsigned mode = _mm_getcsr();
    _mm_setcsr(mode & ~FLUSH_SUBNORMALS);
    const volatile float result = __builtin_fmaf(a, b, c);  // volatile: computed before the mode is put back
    _mm_setcsr(mode);
    return result;
#else
    return __builtin_fmaf(a, b, c);
#endif
}

void run_grid(long long first, long long end, int threads, bool flush_subnormals, void (*body)(const void*),
              const void* argument) {
    const std::lock_guard lock(one_grid_at_a_time);
    std::barrier<> barrier(threads);
    block = &barrier;
    std::vector<std::jthread> team;
    for (int t = 0; t < threads; ++t)
        team.emplace_back([=] {
#ifdef __SSE2__
            if (flush_subnormals) _mm_setcsr(_mm_getcsr() | FLUSH_SUBNORMALS);
#endif
            threadIdx.x = t;
            for (long long b = first; b < end; ++b) {
                wait_for_block(0);  // the last block's shared memory is this one's
                blockIdx.x = unsigned(b);
                body(argument);
            }
        });
}

long long number(const char* text) { return std::atoll(text); }

void* zeros(long long bytes) { return std::calloc(bytes, 1); }
