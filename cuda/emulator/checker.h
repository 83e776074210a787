// Judges every access of the checked build by CUDA's rules.
//
// Within a block the only orders between threads are the block's barriers,
// __syncwarp and mbarriers: shuffles and tensor-core operations make lanes wait
// but order no memory. Without mbarriers a thread's clock is (barriers passed,
// the warp's __syncwarps passed), and an access comes before another if they are
// of one thread, or its barrier count is lower, or both are of one warp and its
// __syncwarp count is lower. With them there are vector clocks besides: what
// each thread has seen of each other's.
//
// wgmma reads shared memory by another path than loads and stores (the async
// proxy): what it reads must have been written before a fence_async_shared of
// the writer's, and may not be written again before the warpgroup has waited.
#pragma once

#include "runtime.h"

namespace emu {

// The last write and the readers since, of two bytes.
struct Access {
  uint32_t barriers;
  uint32_t warp_syncs;
  uint32_t tick;
  uint32_t fences;
  uint16_t thread;
};

// A reader since the last write, where the block has mbarriers: a thread, or the
// products that a warpgroup has waited for.
struct Reader {
  Access access;
  int32_t retired;  // index, or -1
};

// A warpgroup's wait: its threads' clocks then.
struct Retired {
  uint32_t barriers;
  uint32_t first_thread;
  uint32_t ticks[kWarpgroup];
};

enum Readers : uint8_t { kNobody, kOneThread, kOneWarp, kSeveralWarps };

struct SharedCell {
  Access write, read;
  Readers readers;
  bool written;
  bool initialised;
  bool in_flight;
  uint16_t copier;
  uint16_t products;  // that read it and are under way
};

// The same for global memory, where blocks have no order among them.
struct GlobalCell {
  uint32_t write_launch, write_block;
  uint32_t read_launch, read_block;
  bool several_blocks_read;
  Access write;
};

struct Checker {
  Block& block;
  std::vector<SharedCell> cells;
  uint32_t used_static = 0, used_dynamic = 0;

  explicit Checker(Block& b) : block(b) {}
  void begin_block();
  void access(Thread& thread, const void* address, size_t bytes, bool write, bool aligned,
              const void* place);
  void shared_read(Thread& thread, const void* address, size_t bytes, const char* what);
  // As shared_read, but nothing is kept of it.
  void shared_readable(Thread& thread, const void* address, size_t bytes, const char* what);
  void shared_write(Thread& thread, const void* address, size_t bytes, const char* what);
  void global(Thread& thread, const void* address, size_t bytes, bool write, const char* what);
  void copy_issued(Thread& thread, const void* shared, const void* global, bool valid, int line);
  void copy_arrived(Thread& thread, const void* shared);
  void count_ldmatrix(const Thread* lanes);
  // A product that these threads issue reads 16 bytes, until it has.
  void product_reads(Thread* threads, const void* chunk);
  uint32_t retire(const Thread* threads);
  void product_has_read(const void* chunk, uint32_t retired);
  // Adds what is still grouped to the statistics.
  void end_block();

 private:
  std::unordered_map<size_t, std::vector<Reader>> readers;
  std::vector<Retired> retirements;

  void check_readers(Thread& thread, size_t cell, const char* what);
  struct Request {
    uint32_t lanes;
    bool shared;
    bool write;
    std::vector<uint64_t> addresses;  // and sizes, in turn
  };
  std::map<std::pair<uint64_t, uint64_t>, Request> requests;

  void count(Thread& thread, const void* address, size_t bytes, bool write, bool shared,
             const void* place);
  void finish(const Request& request);
  Access now(const Thread& thread) const;
  bool before(const Access& earlier, const Thread& later) const;
  void check_extent(const void* address, size_t bytes, const char* what);
};

}  // namespace emu
