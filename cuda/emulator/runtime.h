// The emulator's own view of a launch: blocks, threads, shared memory.
#pragma once

#include <setjmp.h>
#include <stdarg.h>

#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "emulator.h"
#include "shim.h"

namespace emu {

constexpr int kWarp = 32;
constexpr size_t kStackBytes = 64 << 10;

struct Launch;
struct Block;
struct Checker;

enum class State : uint8_t { kReady, kAtBarrier, kInWarp, kDone };

// A copy under way from global to shared memory.
struct PendingCopy {
  unsigned char* shared;
  const unsigned char* global;
  bool valid;
  int group;
  int line;
};

// One CUDA thread: a fiber.
struct Thread {
  ThreadView view;
  Block* block;
  void* stack_pointer;
  const unsigned char* stack_top;
  uint32_t id;
  State state;
  // Of the barrier or collective it waits at.
  int line;
  Operation operation;
  void* lane_data;
  std::vector<PendingCopy> copies;
  int groups_committed;
  // How often this thread has executed each access, for grouping by warp.
  std::unordered_map<const void*, uint32_t> executed;

  uint32_t warp() const { return id / kWarp; }
  uint32_t lane() const { return id % kWarp; }
};

struct SharedArray {
  uint32_t offset, bytes;
};

// One thread block, on one OS thread; reused from block to block.
struct Block {
  Launch* launch;
  uint64_t index;  // order-independent number of the block in the grid
  std::vector<Thread> threads;
  uint32_t thread_count;
  // Static arrays, then the launch's dynamic memory.
  unsigned char* shared;
  std::map<const void*, SharedArray> arrays;
  uint32_t static_used;
  unsigned char* dynamic;
  uint32_t barriers;                  // passed so far: the block's epoch
  std::vector<uint32_t> warp_epochs;  // collectives passed, by warp
  std::vector<uint32_t> warp_waiting;
  uint64_t random;
  std::unique_ptr<Checker> checker;
  bool failed;

  bool contains(const void* p) const;
};

struct Kernel {
  void (*function)();
  Trampoline call;
  std::vector<uint64_t> sizes;
};

struct Launch {
  const char* name;
  const Kernel* kernel;
  void** args;
  Index grid, block;
  uint32_t shared_bytes;
  uint32_t shared_limit;
  ArcaEmuSettings settings;
  uint32_t number;  // of this launch in the process
  std::string error;  // of the first block that failed
};

// The largest shared memory of any architecture, and room for static arrays.
constexpr uint32_t kStaticCapacity = 48 << 10;
constexpr uint32_t kDynamicCapacity = 232 << 10;

extern __thread Thread* current;

// Scheduler (scheduler.cpp).
void run_block(Block& block);
// From a fiber: hand over until the scheduler resumes it.
void suspend();
// From a fiber: give the launch up with this message.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string describe(const Thread& thread);
const char* operation_name(Operation operation);

// Collectives (collectives.cpp).
void run_collective(Block& block, uint32_t warp);
void complete_copies(Thread& thread, int pending);

// Device memory (memory.cpp).
struct Allocation {
  unsigned char* map;
  size_t map_bytes;
  unsigned char* start;
  size_t bytes;
  // Checked launches only: one per two bytes.
  std::vector<uint8_t> written;
  std::vector<struct GlobalCell> cells;
};
// The allocation around p, or null. Valid while nobody frees it.
Allocation* find_allocation(const void* p);

ArcaEmuStats& block_stats();

}  // namespace emu
