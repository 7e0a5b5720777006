// A barrier that sees when nobody can reach it any more, instead of waiting for ever.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>

// Threads that do not wait. Relaxed, here and below: a sanitizer must not take it for a barrier of its own.
extern std::atomic<int> running, finished;
extern std::atomic<bool> stuck;

void give_up();  // all that wait, because there is nobody left to come

namespace {  // each file's own, because one of them is compiled without a sanitizer

class Barrier {
  public:
    void reset(int count) {
        members = count;
        arrived = 0;
    }
    void wait() {
        const unsigned now = phase.load();
        if (stuck.load(std::memory_order_relaxed)) return;
        if (arrived.fetch_add(1) + 1 == members) {
            arrived = 0;
            running.fetch_add(members - 1, std::memory_order_relaxed);
            open();
        } else {
            if (running.fetch_sub(1, std::memory_order_relaxed) == 1) give_up();
            while (phase.load() == now) syscall(SYS_futex, &phase, FUTEX_WAIT_PRIVATE, now, nullptr);
        }
    }
    void open() {
        phase.fetch_add(1);
        syscall(SYS_futex, &phase, FUTEX_WAKE_PRIVATE, 1 << 30);
    }

  private:
    int members = 0;
    std::atomic<int> arrived{0};
    std::atomic<unsigned> phase{0};
};

}  // namespace
