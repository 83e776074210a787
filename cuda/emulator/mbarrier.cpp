// Barriers in shared memory at which threads arrive without waiting. Their state
// is kept beside the block; the eight bytes in shared memory are only a place.

#include <algorithm>

#include "checker.h"
#include "runtime.h"

namespace emu {
namespace {

MbarrierState& state_of(Thread& t, const Mbarrier* barrier, const char* what, int line) {
  auto it = t.block->mbarriers.find(barrier);
  if (it == t.block->mbarriers.end()) fail("%s at line %d: this mbarrier has not been initialised", what, line);
  if (t.block->checker) t.block->checker->shared_readable(t, barrier, sizeof(Mbarrier), what);
  return it->second;
}

// The phase that a wait for `parity` is for is over.
bool complete(const MbarrierState& state, uint32_t parity) { return state.phase % 2 != parity; }

void merge(std::vector<uint32_t>& into, const std::vector<uint32_t>& from) {
  for (size_t i = 0; i < from.size(); i++) into[i] = std::max(into[i], from[i]);
}

}  // namespace

void mbarrier_init(Mbarrier* barrier, uint32_t count, int line) {
  Thread& t = *current;
  Block& block = *t.block;
  if (!block.contains(barrier)) fail("mbarrier_init at line %d: not in shared memory", line);
  if (reinterpret_cast<uintptr_t>(barrier) % 8 != 0) fail("mbarrier_init at line %d: not aligned to 8 bytes", line);
  if (count == 0 || count >= 1u << 20) fail("mbarrier_init at line %d: a count of %u", line, count);
  if (block.mbarriers.count(barrier)) fail("mbarrier_init at line %d: initialised twice", line);
  if (block.checker) block.checker->shared_write(t, barrier, sizeof(Mbarrier), "mbarrier_init");
  const std::vector<uint32_t> nothing(block.thread_count, 0);
  if (block.mbarriers.empty()) {
    for (uint32_t i = 0; i < block.thread_count; i++) block.threads[i].seen = nothing;
  }
  block.mbarriers[barrier] = {count, count, 0, nothing, nothing};
}

void mbarrier_arrive(Mbarrier* barrier, int line) {
  Thread& t = *current;
  Block& block = *t.block;
  MbarrierState& state = state_of(t, barrier, "mbarrier_arrive", line);
  merge(state.arriving, t.seen);
  state.arriving[t.id] = t.tick++;
  if (--state.pending > 0) return;
  state.phase++;
  state.pending = state.count;
  state.completed = state.arriving;
  for (uint32_t i = 0; i < block.thread_count; i++) {
    Thread& waiting = block.threads[i];
    if (waiting.state == State::kAtMbarrier && waiting.mbarrier == barrier && complete(state, waiting.parity)) {
      waiting.state = State::kReady;
    }
  }
}

void mbarrier_wait(Mbarrier* barrier, uint32_t parity, int line) {
  Thread& t = *current;
  MbarrierState& state = state_of(t, barrier, "mbarrier_wait", line);
  if (parity > 1) fail("mbarrier_wait at line %d: a parity of %u", line, parity);
  while (!complete(state, parity)) {
    t.state = State::kAtMbarrier;
    t.line = line;
    t.mbarrier = barrier;
    t.parity = parity;
    suspend();
  }
  merge(t.seen, state.completed);
}

void fence_async() { current->fences++; }

// As the hardware addresses it: 128 bytes of it are taken, so that dynamic memory
// is aligned to that and no better.
uint32_t dynamic_address(const void* p) {
  const Block& block = *current->block;
  const unsigned char* at = static_cast<const unsigned char*>(p);
  if (at < block.dynamic || at > block.dynamic + block.launch->shared_bytes) {
    fail("the address of something that is not in dynamic shared memory");
  }
  return uint32_t(at - block.dynamic) + kDynamicAddress;
}

}  // namespace emu
