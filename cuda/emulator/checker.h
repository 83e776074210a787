// Judges every access of the checked build by CUDA's rules.
//
// Within a block the only orders between threads are the block's barriers and
// __syncwarp: shuffles and tensor-core operations make lanes wait but order no
// memory. So a thread's clock is (barriers passed, the warp's __syncwarps
// passed), and an access comes before another if they are of one thread, or its
// barrier count is lower, or both are of one warp and its __syncwarp count is
// lower. That needs no vector clocks.
#pragma once

#include "runtime.h"

namespace emu {

// The last write and the readers since, of two bytes.
struct Access {
  uint32_t barriers;
  uint32_t warp_syncs;
  uint16_t thread;
};

enum Readers : uint8_t { kNobody, kOneThread, kOneWarp, kSeveralWarps };

struct SharedCell {
  Access write, read;
  Readers readers;
  bool written;
  bool initialised;
  bool in_flight;
  uint16_t copier;
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
  void shared_write(Thread& thread, const void* address, size_t bytes, const char* what);
  void global(Thread& thread, const void* address, size_t bytes, bool write, const char* what);
  void copy_issued(Thread& thread, const void* shared, const void* global, bool valid, int line);
  void copy_arrived(Thread& thread, const void* shared);
  void count_ldmatrix(const Thread* lanes);
  // Adds what is still grouped to the statistics.
  void end_block();

 private:
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
