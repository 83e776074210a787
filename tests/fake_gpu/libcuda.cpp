// A CUDA driver and a cuBLASLt that run on the emulator, so that the code which
// drives a GPU through them is executed where there is none. Loaded in their
// place by tests/fake_gpu/mod.rs; the emulator is the executable's own.
//
// A stream's work is done as late as it may be: when somebody waits for it. So
// whoever forgets to wait reads what was there before. FAKE_GPU names a fault:
// none (or unset), no_device, old_driver, old_gpu, wrong_image, no_memory,
// lost.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "emulator.h"

namespace {

using Address = uint64_t;
enum Result { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100,
              NO_BINARY = 209, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700 };

bool fault(const char* name) {
  const char* wanted = getenv("FAKE_GPU");
  return wanted != nullptr && strcmp(wanted, name) == 0;
}

using Work = std::function<int()>;

// Work in order; what it says when it fails is said at the next wait.
struct Stream {
  std::recursive_mutex lock;
  std::deque<Work> waiting;
  uint64_t given = 0, done = 0;
  int failed = SUCCESS;

  int give(Work work) {
    std::lock_guard<std::recursive_mutex> hold(lock);
    waiting.push_back(std::move(work));
    given++;
    return SUCCESS;
  }
  int wait_for(uint64_t last) {
    std::lock_guard<std::recursive_mutex> hold(lock);
    while (done < last && failed == SUCCESS) {
      const Work work = std::move(waiting.front());
      waiting.pop_front();
      failed = work();
      done++;
    }
    return failed;
  }
  int wait() {
    std::lock_guard<std::recursive_mutex> hold(lock);
    return wait_for(given);
  }
};

std::mutex made;
std::vector<Stream*> streams;

int wait_for_all() {
  std::vector<Stream*> all;
  {
    std::lock_guard<std::mutex> hold(made);
    all = streams;
  }
  int failed = SUCCESS;
  for (Stream* stream : all) {
    const int result = stream->wait();
    if (failed == SUCCESS) failed = result;
  }
  return failed;
}

struct Function {
  std::string name;
  int shared_allowed = 48 << 10;
};
using Clock = std::chrono::steady_clock;

// A place in a stream's work; kept by the work that refers to it.
struct Event {
  Stream* stream = nullptr;
  uint64_t place = 0;
  Clock::time_point at;
};
using Handle = std::shared_ptr<Event>;
Handle& event_of(void* event) { return *static_cast<Handle*>(event); }
Stream* stream_of(void* stream) { return static_cast<Stream*>(stream); }
int a_context;

}  // namespace

#define API extern "C" __attribute__((visibility("default")))

API int cuInit(unsigned) { return fault("no_device") ? NO_DEVICE : SUCCESS; }
API int cuDriverGetVersion(int* v) { *v = fault("old_driver") ? 11040 : 13000; return SUCCESS; }
API int cuDeviceGetCount(int* n) { *n = 1; return SUCCESS; }
API int cuDeviceGet(int* device, int) { *device = 0; return SUCCESS; }
API int cuDeviceGetName(char* name, int n, int) { snprintf(name, n, "fake GPU"); return SUCCESS; }
API int cuDeviceTotalMem_v2(size_t* bytes, int) { *bytes = size_t{1} << 36; return SUCCESS; }
API int cuDeviceGetAttribute(int* value, int which, int) {
  switch (which) {
    case 75: *value = fault("old_gpu") ? 7 : fault("hopper") ? 9 : 8; break;
    case 76: *value = 0; break;
    case 16: *value = 1; break;
    case 97: *value = (fault("hopper") ? 227 : 163) << 10; break;
    default: return INVALID_VALUE;
  }
  return SUCCESS;
}
API int cuDevicePrimaryCtxRetain(void** c, int) { *c = &a_context; return SUCCESS; }
API int cuCtxSetCurrent(void*) { return SUCCESS; }
API int cuCtxSynchronize() { return wait_for_all(); }
API int cuGetErrorString(int, const char** text) { *text = "a fake fault"; return SUCCESS; }

API int cuModuleLoadData(void** module, const void* image) {
  // A fatbin begins with this; the driver reads it by aligned words.
  if (*static_cast<const uint32_t*>(image) != 0xBA55ED50 || uintptr_t(image) % 8 != 0) return 200;
  *module = const_cast<void*>(image);
  return fault("wrong_image") ? NO_BINARY : SUCCESS;
}
API int cuModuleGetFunction(void** function, void*, const char* name) {
  if (!arca_emu_has_kernel(name, 0)) return NOT_FOUND;
  *function = new Function{name};
  return SUCCESS;
}
API int cuFuncGetParamInfo(void* function, size_t i, size_t* offset, size_t* size) {
  uint64_t sizes[64];
  if (i >= arca_emu_parameters(static_cast<Function*>(function)->name.c_str(), sizes, 64))
    return INVALID_VALUE;
  *offset = 0;
  *size = sizes[i];
  return SUCCESS;
}
API int cuFuncSetAttribute(void* function, int attribute, int value) {
  if (attribute != 8 || value > (fault("hopper") ? 227 : 163) << 10) return INVALID_VALUE;
  static_cast<Function*>(function)->shared_allowed = value;
  return SUCCESS;
}

API int cuMemAlloc_v2(Address* at, size_t bytes) {
  if (fault("no_memory") && bytes > 1 << 16) return OUT_OF_MEMORY;
  *at = reinterpret_cast<Address>(arca_emu_alloc(bytes));
  return *at ? SUCCESS : OUT_OF_MEMORY;
}
API int cuMemFree_v2(Address at) {
  wait_for_all();
  char error[256];
  return arca_emu_free(reinterpret_cast<void*>(at), error, sizeof error) ? ILLEGAL_ADDRESS : SUCCESS;
}
API int cuMemGetInfo_v2(size_t* free, size_t* total) {
  *free = *total = size_t{1} << 36;
  return SUCCESS;
}
API int cuMemAllocHost_v2(void** at, size_t bytes) { return (*at = malloc(bytes)) ? SUCCESS : OUT_OF_MEMORY; }
API int cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t n, void* stream) {
  return stream_of(stream)->give([=] {
    memcpy(reinterpret_cast<void*>(to), from, n);
    return SUCCESS;
  });
}
API int cuMemcpyDtoHAsync_v2(void* to, Address from, size_t n, void* stream) {
  return stream_of(stream)->give([=] {
    memcpy(to, reinterpret_cast<void*>(from), n);
    return SUCCESS;
  });
}
API int cuMemcpyDtoDAsync_v2(Address to, Address from, size_t n, void* stream) {
  return stream_of(stream)->give([=] {
    memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), n);
    return SUCCESS;
  });
}
API int cuMemsetD8Async(Address to, unsigned char value, size_t n, void* stream) {
  return stream_of(stream)->give([=] {
    memset(reinterpret_cast<void*>(to), value, n);
    return SUCCESS;
  });
}

API int cuStreamCreate(void** stream, unsigned) {
  std::lock_guard<std::mutex> hold(made);
  streams.push_back(new Stream);
  *stream = streams.back();
  return SUCCESS;
}
API int cuStreamSynchronize(void* stream) { return stream_of(stream)->wait(); }
API int cuStreamWaitEvent(void* stream, void* handle, unsigned) {
  const Event event = *event_of(handle);
  return stream_of(stream)->give([=] { return event.stream->wait_for(event.place); });
}
API int cuEventCreate(void** event, unsigned) { *event = new Handle(new Event); return SUCCESS; }
API int cuEventRecord(void* handle, void* to) {
  const Handle event = event_of(handle);
  event->stream = stream_of(to);
  std::lock_guard<std::recursive_mutex> hold(event->stream->lock);
  event->place = event->stream->given + 1;
  return event->stream->give([=] {
    event->at = Clock::now();
    return SUCCESS;
  });
}
API int cuEventSynchronize(void* handle) {
  const Handle event = event_of(handle);
  return event->stream->wait_for(event->place);
}
API int cuEventElapsedTime_v2(float* ms, void* from, void* to) {
  for (const Handle& event : {event_of(from), event_of(to)})
    if (event->stream->done < event->place) return NOT_READY;
  *ms = std::chrono::duration<float, std::milli>(event_of(to)->at - event_of(from)->at).count();
  return SUCCESS;
}
// A test reads on standard error what was to be profiled.
API int cuProfilerStart() { fputs("profiler started\n", stderr); return SUCCESS; }
API int cuProfilerStop() { fputs("profiler stopped\n", stderr); return SUCCESS; }
API int cuEventDestroy_v2(void* event) {
  delete static_cast<Handle*>(event);
  return SUCCESS;
}

API int cuLaunchKernel(void* handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                       unsigned bz, unsigned shared, void* stream, void** args, void**) {
  if (fault("lost")) return ILLEGAL_ADDRESS;
  const Function& f = *static_cast<Function*>(handle);
  if (int(shared) > f.shared_allowed) return INVALID_VALUE;
  std::vector<uint64_t> sizes(64);
  const uint32_t count = arca_emu_parameters(f.name.c_str(), sizes.data(), 64);
  std::vector<uint64_t> values(count);
  for (uint32_t i = 0; i < count; i++) memcpy(&values[i], args[i], sizes[i]);
  return stream_of(stream)->give([=, name = f.name]() mutable {
    std::vector<void*> pointers(count);
    for (uint32_t i = 0; i < count; i++) pointers[i] = &values[i];
    const uint32_t grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
    const ArcaEmuSettings settings = {0, 0, fault("hopper") ? 90 : 80, 1};
    ArcaEmuStats stats;
    char error[1024] = "";
    if (!arca_emu_launch(name.c_str(), grid, block, shared, pointers.data(), sizes.data(), count, &settings,
                         &stats, error, sizeof error))
      return SUCCESS;
    fprintf(stderr, "%s\n", error);
    return ILLEGAL_ADDRESS;
  });
}

// ------------------------------------------------------------------ cuBLASLt

namespace {

struct Layout {
  int kind;  // 0 is f32, 14 is bf16
  uint64_t rows, columns;
  int64_t ld;
};
struct Description {
  int transposed[2] = {0, 0};
};
struct Preference {
  uint32_t alignment[4] = {256, 256, 256, 256};
};
// What was promised when the algorithm was chosen.
struct Algorithm {
  uint32_t alignment[4];
  uint32_t magic[12];
};

float element(const void* p, int kind, size_t i) {
  if (kind == 0) return static_cast<const float*>(p)[i];
  const uint32_t bits = uint32_t{static_cast<const uint16_t*>(p)[i]} << 16;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

void set(void* p, int kind, size_t i, float x) {
  if (kind == 0) {
    static_cast<float*>(p)[i] = x;
    return;
  }
  uint32_t bits;
  memcpy(&bits, &x, 4);
  static_cast<uint16_t*>(p)[i] = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

}  // namespace

API int cublasLtCreate(void** handle) { *handle = &a_context; return 0; }
API int cublasLtMatmulDescCreate(void** d, int compute, int scale) {
  *d = new Description;
  return compute == 68 && scale == 0 ? 0 : 7;
}
API int cublasLtMatmulDescDestroy(void* d) { delete static_cast<Description*>(d); return 0; }
API int cublasLtMatrixLayoutDestroy(void* l) { delete static_cast<Layout*>(l); return 0; }
API int cublasLtMatmulDescSetAttribute(void* d, int which, const void* value, size_t n) {
  if (n != 4 || (which != 3 && which != 4)) return 7;
  memcpy(&static_cast<Description*>(d)->transposed[which - 3], value, 4);
  return 0;
}
API int cublasLtMatrixLayoutCreate(void** l, int kind, uint64_t rows, uint64_t columns, int64_t ld) {
  *l = new Layout{kind, rows, columns, ld};
  return uint64_t(ld) >= rows && rows > 0 && columns > 0 ? 0 : 7;
}
API int cublasLtMatmulPreferenceCreate(void** p) { *p = new Preference; return 0; }
API int cublasLtMatmulPreferenceDestroy(void* p) { delete static_cast<Preference*>(p); return 0; }
API int cublasLtMatmulPreferenceSetAttribute(void* p, int which, const void* value, size_t n) {
  if (which >= 5 && which <= 8) memcpy(&static_cast<Preference*>(p)->alignment[which - 5], value, 4);
  return n == (which == 1 ? 8u : 4u) ? 0 : 7;
}
API int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void* p, int,
                                       void* result, int* found) {
  Algorithm a = {};
  memcpy(a.alignment, static_cast<Preference*>(p)->alignment, sizeof a.alignment);
  memcpy(result, &a, 64);
  *found = 1;
  return 0;
}
// D = alpha op(A) op(B) + beta C, in columns.
API int cublasLtMatmul(void*, void* d, const float* alpha, const void* a, const Layout* la,
                       const void* b, const Layout* lb, const float* beta, const void* c,
                       const Layout* lc, void* out, const Layout* ld, const Algorithm* algorithm,
                       void* workspace, size_t, void* stream) {
  const void* operands[4] = {a, b, c, out};
  for (int i = 0; i < 4; i++)
    if (uintptr_t(operands[i]) % algorithm->alignment[i] != 0) return 15;
  const Description description = *static_cast<Description*>(d);
  const int* t = description.transposed;
  const uint64_t m = t[0] ? la->columns : la->rows, k = t[0] ? la->rows : la->columns;
  const uint64_t n = t[1] ? lb->rows : lb->columns;
  if (k != (t[1] ? lb->columns : lb->rows) || m != lc->rows || n != lc->columns || !workspace) return 7;
  return stream_of(stream)->give([=, alpha = *alpha, beta = *beta, la = *la, lb = *lb, lc = *lc, ld = *ld] {
    const int* t = description.transposed;
    for (uint64_t j = 0; j < n; j++) {
      for (uint64_t i = 0; i < m; i++) {
        float sum = 0;
        for (uint64_t x = 0; x < k; x++)
          sum += element(a, la.kind, t[0] ? i * la.ld + x : x * la.ld + i) *
                 element(b, lb.kind, t[1] ? x * lb.ld + j : j * lb.ld + x);
        const float before = beta != 0 ? beta * element(c, lc.kind, j * lc.ld + i) : 0;
        set(out, ld.kind, j * ld.ld + i, alpha * sum + before);
      }
    }
    return SUCCESS;
  });
}
