// Shuffles on the host: see cuda.h. Compiled without a sanitizer, so that it takes a shuffle for no more than it is: it
// would have it order accesses to memory.
#include "barrier.h"
#include "cuda.h"

static constexpr unsigned LANES = 32, MOST_WARPS = 32;

struct Lane {
    unsigned long long bits;
    unsigned kind, operand;
};
static struct Warp {
    Barrier barrier;
    Lane lanes[2][LANES];  // in turn, because a lane may be one exchange ahead of those that still read
} warps[MOST_WARPS];

std::atomic<const char*> wrong;  // with a shuffle: what was seen first

static void is_wrong(const char* what) {
    const char* nothing = nullptr;
    wrong.compare_exchange_strong(nothing, what);
}

void reset_shuffles() {
    wrong = nullptr;
    for (Warp& warp : warps) warp.barrier.reset(LANES);
}

void open_shuffles() {
    for (Warp& warp : warps) warp.barrier.open();
}

unsigned long long exchange_bits(unsigned mask, unsigned long long bits, unsigned kind, unsigned operand) {
    static thread_local unsigned turn = 0;
    Warp& warp = warps[threadIdx.x / LANES];
    const unsigned own = threadIdx.x % LANES, from = kind == 1 ? own ^ operand : operand;
    if (mask != 0xFFFFFFFF) is_wrong("a shuffle of a part of a warp");
    if (from >= LANES) is_wrong("a shuffle with a lane that is not there");
    Lane* const lanes = warp.lanes[turn];
    turn ^= 1;
    lanes[own] = {bits, kind, operand};
    warp.barrier.wait();
    const Lane& other = lanes[from % LANES];
    if (other.kind != kind || other.operand != operand) is_wrong("lanes in different shuffles");
    return other.bits;
}
