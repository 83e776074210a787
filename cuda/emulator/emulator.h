// What the emulator offers to the host: memory, launches, kernels by name.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  uint64_t seed;    // order of execution: 0 in order, 1 in reverse, else random
  int32_t checked;  // 0 the fast build, 1 the checked one, 2 with statistics
  int32_t arch;     // compute capability to pretend: 80, 90, 100 or 120
  int32_t threads;  // OS threads that blocks are spread over (fast build)
} ArcaEmuSettings;

// Sums over launches. All but blocks, barriers and mma need checked = 2.
typedef struct {
  uint64_t global_bytes_read, global_bytes_written;
  uint64_t unique_bytes_read, unique_bytes_written;  // distinct bytes per launch
  uint64_t requests, sectors;  // a warp's global accesses, their 32-byte sectors
  uint64_t shared_requests, bank_conflicts;  // a warp's accesses, passes beyond one each
  uint64_t mma, blocks, barriers;
} ArcaEmuStats;

// Runs a kernel to its end. 0, or 1 with what went wrong in `error`.
int arca_emu_launch(const char* kernel, const uint32_t grid[3], const uint32_t block[3],
                    uint32_t shared_bytes, void** args, const uint64_t* arg_sizes,
                    uint32_t arg_count, const ArcaEmuSettings* settings, ArcaEmuStats* stats,
                    char* error, uint64_t error_capacity);

// Device memory: aligned to 256 bytes and no better, poisoned, with an
// inaccessible page close behind its end. Null where there is no memory.
void* arca_emu_alloc(uint64_t bytes);
// 1 if something wrote beyond the end.
int arca_emu_free(void* pointer, char* error, uint64_t error_capacity);
// The host wrote here; reading it is no longer an error.
void arca_emu_mark_written(void* pointer, uint64_t bytes);
int arca_emu_has_kernel(const char* kernel, int checked);
// Sizes of a kernel's parameters, as many as there is room for; how many it has.
uint32_t arca_emu_parameters(const char* kernel, uint64_t* sizes, uint32_t capacity);

#ifdef __cplusplus
}
#endif
