/* A CUDA driver without a GPU. Memory is the host's, each call finishes its work before it returns, and driver.py
   executes the launches. Only functions that numba-cuda calls are here. All that exists is in one list: so a wrong or
   stale address or handle is an error, and tests can see what is left behind. */

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500 };
typedef enum { DEVICE_MEMORY, PINNED_MEMORY, STREAM, EVENT, LIBRARY } Kind;
typedef struct Thing { struct Thing *next; Kind kind; char *first; size_t size; } Thing; /* `first` is the handle too */
typedef struct { unsigned blocks, one[2], threads, ones[2], shared; void *stream; } Launch;
typedef unsigned long long Address;

/* Functions of driver.py, which return an error code. Each call that may fail begins with `told`. */
static int (*told)(const char *function, void *stream);
static int (*launched)(const char *kernel, unsigned blocks, unsigned threads, void **arguments);
static Thing *things;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread int depth; /* of this thread's stack of contexts; there is one context, with the address &things */

void driver_connect(void *tell, void *launch) { told = tell, launched = launch; }

/* How many things of a kind exist, `room` at most, and their addresses and sizes. */
int driver_alive(Kind kind, int room, Address *firsts, size_t *sizes) {
    int count = 0;
    pthread_mutex_lock(&lock);
    for (Thing *thing = things; thing && count < room; thing = thing->next)
        if (thing->kind == kind) firsts[count] = (Address)thing->first, sizes[count++] = thing->size;
    pthread_mutex_unlock(&lock);
    return count;
}

static int make(Kind kind, size_t size, void *to) {
    Thing *thing = malloc(sizeof *thing);
    char *first = aligned_alloc(512, (size + 511) / 512 * 512);
    if (!size || !thing || !first) return size ? OUT_OF_MEMORY : INVALID_VALUE;
    pthread_mutex_lock(&lock);
    *thing = (Thing){things, kind, memset(first, 0xFF, size), size}; /* 0xFF: floats are NaN until written */
    things = thing;
    pthread_mutex_unlock(&lock);
    return *(void **)to = first, SUCCESS;
}

/* Whether the `size` bytes from `first` on are in a thing of this kind. To be destroyed, it must also begin there. */
static int has(Kind kind, void *first, size_t size, int destroy) {
    pthread_mutex_lock(&lock);
    Thing **link = &things, *thing;
    for (; (thing = *link); link = &thing->next) {
        size_t offset = (size_t)first - (size_t)thing->first;
        if (thing->kind == kind && offset <= (destroy ? 0 : thing->size) && size <= thing->size - offset) break;
    }
    if (thing && destroy) *link = thing->next, free(thing->first), free(thing);
    pthread_mutex_unlock(&lock);
    return thing != NULL;
}

static int begin(const char *function, void *stream) {
    if (!depth) return INVALID_CONTEXT;
    if ((size_t)stream > 2 && !has(STREAM, stream, 1, 0)) return INVALID_HANDLE; /* 0, 1 and 2 are default streams */
    return told ? told(function, stream) : SUCCESS;
}
#define BEGIN(stream) int code = begin(__func__, stream); if (code) return code
#define NEED_EVENT() if (!has(EVENT, event, 1, 0)) return INVALID_HANDLE
#define COPY(stream, on_device) BEGIN(stream); \
    if (!has(DEVICE_MEMORY, (void *)on_device, size, 0)) return INVALID_VALUE; \
    return memcpy((void *)to, (void *)from, size), SUCCESS
#define DESTROY(kind, first, otherwise) return has(kind, (void *)first, 1, 1) ? SUCCESS : otherwise

int cuInit(unsigned flags) { return SUCCESS; }
int cuDriverGetVersion(int *version) { return *version = 13000, SUCCESS; }
int cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
int cuDeviceGetName(char *name, int size, int device) { return strncpy(name, "no GPU", size), SUCCESS; }
int cuDeviceGetUuid(char *uuid, int device) { return memset(uuid, 7, 16), SUCCESS; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    return *value = attribute == 75 ? 9 : attribute == 76 ? 0 : 1024, SUCCESS; /* compute capability 9.0 */
}
int cuDevicePrimaryCtxRetain(void **context, int device) { return *context = &things, SUCCESS; }
int cuDevicePrimaryCtxRelease(int device) { return SUCCESS; }
int cuCtxGetCurrent(void **context) { return *context = depth ? &things : NULL, SUCCESS; }
int cuCtxGetDevice(int *device) { return *device = 0, depth ? SUCCESS : INVALID_CONTEXT; }
int cuCtxSetCurrent(void *context) { return context ? depth += !depth, SUCCESS : INVALID_VALUE; }
int cuCtxPushCurrent(void *context) { return depth++, SUCCESS; }
int cuCtxPopCurrent(void **context) { return *context = &things, depth ? depth--, SUCCESS : INVALID_CONTEXT; }

int cuMemGetInfo(size_t *unused, size_t *total) { return *unused = *total = 80ull << 30, SUCCESS; }
int cuMemAlloc(Address *memory, size_t size) { BEGIN(0); return make(DEVICE_MEMORY, size, memory); }
int cuMemFree(Address memory) { DESTROY(DEVICE_MEMORY, memory, INVALID_VALUE); }
int cuMemHostAlloc(void **memory, size_t size, unsigned flags) { BEGIN(0); return make(PINNED_MEMORY, size, memory); }
int cuMemFreeHost(void *memory) { DESTROY(PINNED_MEMORY, memory, INVALID_VALUE); }
int cuMemcpyHtoD(Address to, void *from, size_t size) { COPY(0, to); }
int cuMemcpyDtoH(void *to, Address from, size_t size) { COPY(0, from); }
int cuMemcpyHtoDAsync(Address to, void *from, size_t size, void *stream) { COPY(stream, to); }
int cuMemcpyDtoHAsync(void *to, Address from, size_t size, void *stream) { COPY(stream, from); }

int cuStreamCreate(void **stream, unsigned flags) { BEGIN(0); return make(STREAM, 1, stream); }
int cuStreamDestroy(void *stream) { DESTROY(STREAM, stream, INVALID_HANDLE); }
int cuStreamSynchronize(void *stream) { BEGIN(stream); return SUCCESS; }
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) { BEGIN(stream); NEED_EVENT(); return SUCCESS; }
int cuEventCreate(void **event, unsigned flags) { BEGIN(0); return make(EVENT, 1, event); }
int cuEventDestroy(void *event) { DESTROY(EVENT, event, INVALID_HANDLE); }
int cuEventRecord(void *event, void *stream) { BEGIN(stream); NEED_EVENT(); return SUCCESS; }
int cuEventSynchronize(void *event) { BEGIN(0); NEED_EVENT(); return SUCCESS; }

int cuLibraryLoadData(void **library) { BEGIN(0); return make(LIBRARY, 1, library); }
int cuLibraryUnload(void *library) { DESTROY(LIBRARY, library, INVALID_HANDLE); }
int cuLibraryGetKernel(char **kernel, void *library, char *name) { BEGIN(0); return *kernel = strdup(name), SUCCESS; }
int cuKernelGetAttribute(int *value, int attribute, void *kernel, int device) { return *value = 32, SUCCESS; }
int cuLaunchKernelEx(const Launch *how, char *kernel, void **arguments) {
    BEGIN(how->stream);
    if (how->one[0] * how->one[1] * how->ones[0] * how->ones[1] != 1 || how->shared) return INVALID_VALUE;
    return launched(kernel, how->blocks, how->threads, arguments);
}

int cuGetErrorName(int code, const char **name) { /* asked by cuda-core; numba-cuda has names of its own */
    *name = code == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : code == 719 ? "CUDA_ERROR_LAUNCH_FAILED" : "CUDA_ERROR";
    return SUCCESS;
}
int cuGetProcAddress_v2(const char *function, void **address, int version, Address flags, int *status) {
    void *here = dlopen("libcuda.so.1", RTLD_LAZY); /* this library, which is loaded */
    *address = strcmp(function, "cuGetProcAddress") ? dlsym(here, function) : cuGetProcAddress_v2;
    if (status) *status = !*address;
    return *address ? SUCCESS : NOT_FOUND;
}
