// What a warp does together: shuffles, votes, tensor-core fragments. The last
// lane to come runs the operation over all of them.

#include <algorithm>

#include "checker.h"
#include "runtime.h"

namespace emu {
namespace {

struct Warp {
  Thread* lanes;
  uint32_t count;

  template <typename T>
  T& data(uint32_t i) {
    return *static_cast<T*>(lanes[i].lane_data);
  }
};

void shuffle(Warp& warp, Operation operation) {
  for (uint32_t i = 0; i < warp.count; i++) {
    auto& op = warp.data<ShuffleOp>(i);
    const uint32_t from = operation == kShuffle32 ? op.lane & 31 : i ^ uint32_t(op.lane);
    if (from >= warp.count) fail("shuffle from lane %u, which does not exist", from);
    op.result = warp.data<ShuffleOp>(from).value;
  }
}

void ballot(Warp& warp) {
  uint64_t votes = 0;
  for (uint32_t i = 0; i < warp.count; i++) votes |= warp.data<ShuffleOp>(i).value << i;
  for (uint32_t i = 0; i < warp.count; i++) warp.data<ShuffleOp>(i).result = votes;
}

// Lane i holds the address of row i % 8 of matrix i / 8.
void ldmatrix(Warp& warp, bool transposed) {
  Block& block = *warp.lanes[0].block;
  uint16_t rows[4][8][8];
  for (uint32_t i = 0; i < kWarp; i++) {
    const void* row = warp.data<LdmatrixOp>(i).row;
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail("ldmatrix: row of lane %u is not 16-byte aligned", i);
    if (!block.contains(row)) fail("ldmatrix: row of lane %u is not in shared memory", i);
    if (block.checker) block.checker->shared_read(warp.lanes[i], row, 16, "ldmatrix");
    memcpy(rows[i / 8][i % 8], row, 16);
  }
  if (block.checker) block.checker->count_ldmatrix(warp.lanes);
  for (uint32_t i = 0; i < kWarp; i++) {
    uint32_t* out = warp.data<LdmatrixOp>(i).out;
    const uint32_t g = i / 4, t = 2 * (i % 4);
    for (int m = 0; m < 4; m++) {
      const uint32_t low = transposed ? rows[m][t][g] : rows[m][g][t];
      const uint32_t high = transposed ? rows[m][t + 1][g] : rows[m][g][t + 1];
      out[m] = low | high << 16;
    }
  }
}

float widen(uint32_t half) { return float_from_bits(half << 16); }

// d [16][8] += a [16][16] b [16][8], sums in order of k.
__attribute__((target_clones("avx2", "default"))) void multiply(
    float (&d)[16][8], const float (&a)[16][16], const float (&b)[16][8]) {
  for (int i = 0; i < 16; i++) {
    for (int k = 0; k < 16; k++) {
      for (int j = 0; j < 8; j++) d[i][j] += a[i][k] * b[k][j];
    }
  }
}

void mma(Warp& warp) {
  float a[16][16], b[16][8], d[16][8];
  for (uint32_t lane = 0; lane < kWarp; lane++) {
    const MmaOp& op = warp.data<MmaOp>(lane);
    const uint32_t g = lane / 4, t = 2 * (lane % 4);
    for (uint32_t half = 0; half < 2; half++) {
      const uint32_t shift = 16 * half;
      a[g][t + half] = widen(op.a[0] >> shift & 0xffff);
      a[g + 8][t + half] = widen(op.a[1] >> shift & 0xffff);
      a[g][t + 8 + half] = widen(op.a[2] >> shift & 0xffff);
      a[g + 8][t + 8 + half] = widen(op.a[3] >> shift & 0xffff);
      b[t + half][g] = widen(op.b[0] >> shift & 0xffff);
      b[t + 8 + half][g] = widen(op.b[1] >> shift & 0xffff);
      d[g][t + half] = op.d[half];
      d[g + 8][t + half] = op.d[2 + half];
    }
  }
  multiply(d, a, b);
  for (uint32_t lane = 0; lane < kWarp; lane++) {
    const MmaOp& op = warp.data<MmaOp>(lane);
    const uint32_t g = lane / 4, t = 2 * (lane % 4);
    for (uint32_t half = 0; half < 2; half++) {
      op.d[half] = d[g][t + half];
      op.d[2 + half] = d[g + 8][t + half];
    }
  }
  block_stats().mma++;
}

}  // namespace

void run_collective(Block& block, uint32_t warp_index) {
  Warp warp{&block.threads[warp_index * kWarp],
            std::min<uint32_t>(kWarp, block.thread_count - warp_index * kWarp)};
  const Thread& first = warp.lanes[0];
  for (uint32_t i = 1; i < warp.count; i++) {
    const Thread& t = warp.lanes[i];
    if (t.operation != first.operation || t.line != first.line) {
      fail("warp divergence: lane 0 is in %s at line %d, lane %u in %s at line %d",
           operation_name(first.operation), first.line, i, operation_name(t.operation), t.line);
    }
  }
  const bool whole = first.operation >= kLdmatrix;
  if (whole && warp.count < kWarp) fail("%s in a warp of %u lanes", operation_name(first.operation), warp.count);
  switch (first.operation) {
    case kShuffleXor32:
    case kShuffleXor64:
    case kShuffle32: shuffle(warp, first.operation); break;
    case kBallot: ballot(warp); break;
    case kSyncWarp: break;
    case kLdmatrix: ldmatrix(warp, false); break;
    case kLdmatrixTrans: ldmatrix(warp, true); break;
    case kMma: mma(warp); break;
    default: break;
  }
  if (first.operation != kSyncWarp) return;
  block.warp_epochs[warp_index]++;
  if (block.mbarriers.empty()) return;
  // What one lane knows, all do.
  std::vector<uint32_t> seen(block.thread_count, 0);
  for (uint32_t i = 0; i < warp.count; i++) {
    Thread& t = warp.lanes[i];
    for (uint32_t j = 0; j < block.thread_count; j++) seen[j] = std::max(seen[j], t.seen[j]);
    seen[t.id] = t.tick++;
  }
  for (uint32_t i = 0; i < warp.count; i++) warp.lanes[i].seen = seen;
}

void copy_async(void* shared, const void* global, bool valid, int line) {
  Thread& t = *current;
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0) fail("cp.async at line %d: the shared address is not 16-byte aligned", line);
  if (!t.block->contains(shared)) fail("cp.async at line %d: the destination is not in shared memory", line);
  if (valid && reinterpret_cast<uintptr_t>(global) % 16 != 0) fail("cp.async at line %d: the global address is not 16-byte aligned", line);
  if (t.block->checker) t.block->checker->copy_issued(t, shared, global, valid, line);
  // Until the copy arrives, nobody may rely on what was there.
  memset(shared, 0xFF, 16);
  t.copies.push_back({static_cast<unsigned char*>(shared), static_cast<const unsigned char*>(global),
                      valid, t.groups_committed, line});
}

void copy_commit() { current->groups_committed++; }

void complete_copies(Thread& t, int pending) {
  size_t kept = 0;
  for (PendingCopy& copy : t.copies) {
    // Group g is complete when at most `pending` later groups may be open.
    if (copy.group >= t.groups_committed - pending) {
      t.copies[kept++] = copy;
      continue;
    }
    if (copy.valid) {
      memcpy(copy.shared, copy.global, 16);
    } else {
      memset(copy.shared, 0, 16);
    }
    if (t.block->checker) t.block->checker->copy_arrived(t, copy.shared);
  }
  t.copies.resize(kept);
}

void copy_wait(int pending) { complete_copies(*current, pending); }

}  // namespace emu
