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
constexpr int kWarpgroup = 128;
constexpr size_t kStackBytes = 64 << 10;

struct Launch;
struct Block;
struct Checker;

enum class State : uint8_t { kReady, kAtBarrier, kAtMbarrier, kTogether, kDone };

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
  // Of the mbarrier it waits at.
  const Mbarrier* mbarrier;
  uint32_t parity;
  // Its own clock, which moves on where others may learn of it, and by thread
  // what it knows of theirs (kept where the block has mbarriers).
  uint32_t tick;
  std::vector<uint32_t> seen;
  uint32_t fences;  // fence_async_shared executed so far
  int32_t cleared;  // the last of a warpgroup's waits that this thread is known to have seen
  // How often this thread has executed each access, for grouping by warp.
  std::unordered_map<const void*, uint32_t> executed;

  uint32_t warp() const { return id / kWarp; }
  uint32_t lane() const { return id % kWarp; }
};

// A barrier's arrivals: how many a phase takes, how many are missing, how many
// phases are over; what those who came know, and what the last phase knew.
struct MbarrierState {
  uint32_t count, pending, phase;
  std::vector<uint32_t> arriving, completed;
};

// A warpgroup's product under way.
struct Product {
  WgmmaOp op;
  int group;  // of commits
  float* d[kWarpgroup];
  uint32_t a_registers[kWarpgroup][4];
  // 16 bytes each, in order of rows.
  std::vector<const unsigned char*> a, b;
  // What the accumulators were, thread by thread.
  std::vector<float> before;
};

struct Warpgroup {
  std::vector<Product> products;
  int committed = 0;
  bool fenced = false;
  uint32_t waiting = 0;
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
  std::vector<Warpgroup> warpgroups;
  std::unordered_map<const void*, MbarrierState> mbarriers;
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
// Where dynamic memory begins among the addresses of shared memory.
constexpr uint32_t kDynamicAddress = 128;

extern __thread Thread* current;

// Scheduler (scheduler.cpp).
void run_block(Block& block);
// From a fiber: hand over until the scheduler resumes it.
void suspend();
// From a fiber: give the launch up with this message.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string describe(const Thread& thread);
const char* operation_name(Operation operation);

// Collectives (collectives.cpp, wgmma.cpp).
void run_collective(Block& block, uint32_t warp);
void run_warpgroup(Block& block, uint32_t warpgroup);
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
