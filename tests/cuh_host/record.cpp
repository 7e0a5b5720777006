// Notes down every access to memory of a kernel that is compiled with -fsanitize=thread: this stands in for the
// sanitizer's own library. A place in the program is its address in the machine code.
#include <mutex>
#include <vector>

#include "cuda.h"

namespace {

struct Array {
    const char *begin, *end;
    const char* name;
};
struct Access {
    long long thread, site, array, write, offset, bytes;
};
std::vector<Array> arrays;  // those of a block after those that Python wants to see
std::vector<Access> accesses;
std::mutex mutex;

void note(const void* address, long long bytes, bool write, const void* site) {
    const char* const at = static_cast<const char*>(address);
    for (unsigned long long a = 0; a < arrays.size(); ++a)
        if (arrays[a].begin <= at && at < arrays[a].end) {
            const std::lock_guard lock(mutex);
            accesses.push_back({threadIdx.x, reinterpret_cast<long long>(site), static_cast<long long>(a), write,
                                at - arrays[a].begin, bytes});
            return;
        }
}

}  // namespace

void see_shared(const char* name, const void* array, unsigned long long bytes) {
    const char* const begin = static_cast<const char*>(array);
    arrays.push_back({begin, begin + bytes, name});  // all other threads wait
}

extern "C" {

void forget() {
    arrays.clear();
    accesses.clear();
}
void see_global(const char* name, const void* array, long long bytes) { see_shared(name, array, bytes); }
long long count_accesses() { return static_cast<long long>(accesses.size()); }
const void* all_accesses() { return accesses.data(); }
const char* array_name(long long a) { return arrays[a].name; }

#define NOTE(BYTES)                                                                                                  \
    void __tsan_read##BYTES(void* at) { note(at, BYTES, false, __builtin_return_address(0)); }                       \
    void __tsan_write##BYTES(void* at) { note(at, BYTES, true, __builtin_return_address(0)); }                       \
    void __tsan_unaligned_read##BYTES(void* at) { note(at, BYTES, false, __builtin_return_address(0)); }             \
    void __tsan_unaligned_write##BYTES(void* at) { note(at, BYTES, true, __builtin_return_address(0)); }
NOTE(1)
NOTE(2)
NOTE(4)
NOTE(8)
NOTE(16)
void __tsan_read_range(void* at, unsigned long bytes) { note(at, bytes, false, __builtin_return_address(0)); }
void __tsan_write_range(void* at, unsigned long bytes) { note(at, bytes, true, __builtin_return_address(0)); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
