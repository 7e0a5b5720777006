// A grid on the host: see cuda.h.
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

#include "barrier.h"
#include "cuda.h"

#ifdef __SSE2__
#include <xmmintrin.h>
static const unsigned FLUSH_SUBNORMALS = 0x8040;  // of results and of operands
#endif

void reset_shuffles();
void open_shuffles();
extern std::atomic<const char*> wrong;

constinit thread_local Index threadIdx{}, blockIdx{};
std::atomic<int> running, finished;
std::atomic<bool> stuck;

static constexpr unsigned LANES = 32, MOST_WARPS = 32;
static Barrier block, warps[MOST_WARPS];
static std::mutex one_grid_at_a_time;

void give_up() {
    stuck = true;
    block.open();
    for (Barrier& warp : warps) warp.open();
    open_shuffles();
}

// The sanitizer test leaves out the barrier on this line to see it missed; 0 is none.
static int line_left_out() {
    const char* line = std::getenv("BARRIER_LEFT_OUT");
    return line ? std::atoi(line) : 0;
}

static void wait_for(Barrier& barrier, int line) {
    static const int left_out = line_left_out();
    if (line == 0 || line != left_out) barrier.wait();
}

void wait_for_block(int line) { wait_for(block, line); }
void wait_for_warp(int line) { wait_for(warps[threadIdx.x / LANES], line); }

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

const char* run_grid(long long first, long long end, int threads, bool flush_subnormals, void (*body)(const void*),
                     const void* argument) {
    const std::lock_guard lock(one_grid_at_a_time);
    stuck = false;
    finished = 0;
    running = threads;
    block.reset(threads);
    for (Barrier& warp : warps) warp.reset(LANES);
    reset_shuffles();
    {
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
                const bool last = finished.fetch_add(1, std::memory_order_relaxed) + 1 == threads;
                if (running.fetch_sub(1, std::memory_order_relaxed) == 1 && !last) give_up();
            });
    }
    if (stuck) return "a barrier or shuffle that not all threads come to";
    const char* const failure = wrong;
    return failure ? failure : "";
}

__attribute__((weak)) void see_shared(const char*, const void*, unsigned long long) {}

long long number(const char* text) { return std::atoll(text); }

void* zeros(long long bytes) { return std::calloc(bytes, 1); }

int report(const char* failure) {
    std::fputs(failure, stderr);
    return *failure ? 2 : 0;
}
