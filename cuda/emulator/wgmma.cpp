// A warpgroup's products out of shared memory (wgmma.mma_async): issued by 128
// threads together, carried out as late as is legal, which is when they are
// waited for. Until then accumulators are NaN and operands may not be written.

#include <algorithm>

#include "checker.h"
#include "runtime.h"

namespace emu {
namespace {

constexpr uint32_t kDepth = 16;
constexpr uint32_t kRows = 64;
constexpr uint32_t kPoison = 0xffffffffu;

// A descriptor's fields: start, and the steps between panels and between groups
// of eight rows, in bytes.
struct Operand {
  uint32_t start, leading, stride;
};

Operand decode(uint64_t descriptor, const char* which) {
  const Operand o = {uint32_t(descriptor & 0x3fff) << 4, uint32_t(descriptor >> 16 & 0x3fff) << 4,
                     uint32_t(descriptor >> 32 & 0x3fff) << 4};
  if (descriptor >> 62 != 1) fail("wgmma: operand %s is not in the 128-byte swizzle, the only one known here", which);
  if (descriptor >> 49 & 7) fail("wgmma: operand %s has a base offset", which);
  // The pattern repeats every 1,024 bytes, and starts at such a boundary.
  if (o.start / 128 % 8 != 0) fail("wgmma: operand %s does not start in the first row of a swizzled panel", which);
  return o;
}

const unsigned char* at_address(const Block& block, uint32_t address) {
  // Bits 4 to 6 are those of the chunk, 7 to 9 those of the row.
  address ^= (address >> 7 & 7) << 4;
  if (address < kDynamicAddress || address + 16 > kDynamicAddress + block.launch->shared_bytes) {
    fail("wgmma: an operand reaches beyond dynamic shared memory of %u bytes", block.launch->shared_bytes);
  }
  return block.dynamic + (address - kDynamicAddress);
}

// Sixteen bytes of an operand stored [row][k]: eight of the depth, from 8 c on.
uint32_t by_row(const Operand& o, uint32_t row, uint32_t c) {
  return o.start + row / 8 * o.stride + row % 8 * 128 + c * 16;
}
// Of one stored [k][column]: eight columns from 8 c on.
uint32_t by_depth(const Operand& o, uint32_t k, uint32_t c) {
  return o.start + c / 8 * o.leading + c % 8 * 16 + k / 8 * o.stride + k % 8 * 128;
}

void widen(float* to, const unsigned char* from) {
  uint16_t half[8];
  memcpy(half, from, 16);
  for (int i = 0; i < 8; i++) to[i] = float_from_bits(uint32_t(half[i]) << 16);
}

__attribute__((target_clones("avx512f", "avx2", "default"))) void multiply(float* d, const float* a, const float* b,
                                                                          uint32_t n) {
  for (uint32_t i = 0; i < kRows; i++) {
    for (uint32_t k = 0; k < kDepth; k++) {
      for (uint32_t j = 0; j < n; j++) d[i * n + j] += a[i * kDepth + k] * b[k * n + j];
    }
  }
}

// Element i of an accumulator's thread lies at this row and column.
void place(uint32_t thread, uint32_t i, uint32_t& row, uint32_t& column) {
  const uint32_t lane = thread % kWarp;
  row = thread / kWarp * 16 + i / 2 % 2 * 8 + lane / 4;
  column = i / 4 * 8 + lane % 4 * 2 + i % 2;
}

void issue(Block& block, uint32_t number, Thread* threads) {
  Warpgroup& group = block.warpgroups[number];
  const WgmmaOp& first = *static_cast<WgmmaOp*>(threads[0].lane_data);
  if (block.launch->settings.arch != 90) fail("wgmma on sm_%d", block.launch->settings.arch);
  if (!group.fenced) fail("wgmma at line %d: the first of a group without wgmma_fence", threads[0].line);
  group.products.emplace_back();
  Product& p = group.products.back();
  p.group = group.committed;
  p.op = first;
  for (uint32_t i = 0; i < kWarpgroup; i++) {
    const WgmmaOp& op = *static_cast<WgmmaOp*>(threads[i].lane_data);
    if (op.a != first.a || op.b != first.b || op.accumulate != first.accumulate || op.n != first.n) {
      fail("wgmma at line %d: thread %u names other operands than the first", threads[0].line, threads[i].id);
    }
    p.d[i] = op.d;
    if (op.a_registers != nullptr) memcpy(p.a_registers[i], op.a_registers, sizeof p.a_registers[i]);
  }
  // The first product under way on these accumulators keeps what they were.
  const bool taken = std::any_of(group.products.begin(), group.products.end() - 1,
                                 [&](const Product& other) { return other.d[0] == p.d[0]; });
  if (!taken) {
    for (uint32_t i = 0; i < kWarpgroup; i++) {
      p.before.insert(p.before.end(), p.d[i], p.d[i] + p.op.n / 2);
      memset(p.d[i], 0xff, p.op.n / 2 * sizeof(float));
    }
  }
  const Operand b = decode(first.b, "b");
  const uint32_t b_rows = first.b_by_depth ? kDepth : p.op.n, b_chunks = first.b_by_depth ? p.op.n / 8 : kDepth / 8;
  for (uint32_t row = 0; row < b_rows; row++) {
    for (uint32_t c = 0; c < b_chunks; c++) {
      p.b.push_back(at_address(block, first.b_by_depth ? by_depth(b, row, c) : by_row(b, row, c)));
    }
  }
  if (first.a_registers == nullptr) {
    const Operand a = decode(first.a, "a");
    for (uint32_t row = 0; row < kRows; row++) {
      for (uint32_t c = 0; c < kDepth / 8; c++) p.a.push_back(at_address(block, by_row(a, row, c)));
    }
  }
  if (block.checker) {
    for (const unsigned char* chunk : p.a) block.checker->product_reads(threads, chunk);
    for (const unsigned char* chunk : p.b) block.checker->product_reads(threads, chunk);
  }
}

void carry_out(Product& p) {
  const uint32_t n = p.op.n;
  if (!p.before.empty()) {
    for (uint32_t i = 0; i < kWarpgroup; i++) {
      for (uint32_t j = 0; j < n / 2; j++) {
        if (bits_of_float(p.d[i][j]) != kPoison) fail("an accumulator was written while a wgmma on it was under way");
        p.d[i][j] = p.before[i * (n / 2) + j];
      }
    }
  }
  std::vector<float> a(kRows * kDepth), b(kDepth * n), d(kRows * n);
  if (p.a.empty()) {
    // As mma_bf16's left operand, in each warp.
    for (uint32_t i = 0; i < kWarpgroup; i++) {
      const uint32_t row = i / kWarp * 16 + i % kWarp / 4, column = 2 * (i % 4);
      for (uint32_t r = 0; r < 4; r++) {
        float* to = &a[(row + r % 2 * 8) * kDepth + column + r / 2 * 8];
        to[0] = float_from_bits(p.a_registers[i][r] << 16);
        to[1] = float_from_bits(p.a_registers[i][r] & 0xffff0000u);
      }
    }
  } else {
    for (size_t i = 0; i < p.a.size(); i++) widen(&a[i * 8], p.a[i]);
  }
  for (size_t i = 0; i < p.b.size(); i++) {
    if (p.op.b_by_depth) {
      widen(&b[i * 8], p.b[i]);
    } else {
      float eight[8];
      widen(eight, p.b[i]);
      for (uint32_t k = 0; k < 8; k++) b[(i % 2 * 8 + k) * n + i / 2] = eight[k];
    }
  }
  uint32_t row, column;
  for (uint32_t i = 0; p.op.accumulate && i < kWarpgroup; i++) {
    for (uint32_t j = 0; j < n / 2; j++) {
      place(i, j, row, column);
      d[row * n + column] = p.d[i][j];
    }
  }
  multiply(d.data(), a.data(), b.data(), n);
  for (uint32_t i = 0; i < kWarpgroup; i++) {
    for (uint32_t j = 0; j < n / 2; j++) {
      place(i, j, row, column);
      p.d[i][j] = d[row * n + column];
    }
  }
  block_stats().mma++;
}

void wait(Block& block, uint32_t number, Thread* threads) {
  Warpgroup& group = block.warpgroups[number];
  const int pending = *static_cast<int*>(threads[0].lane_data);
  size_t done = 0;
  while (done < group.products.size() && group.products[done].group < group.committed - pending) {
    carry_out(group.products[done++]);
  }
  if (block.checker && done > 0) {
    const uint32_t retired = block.checker->retire(threads);
    for (size_t i = 0; i < done; i++) {
      for (const unsigned char* chunk : group.products[i].a) block.checker->product_has_read(chunk, retired);
      for (const unsigned char* chunk : group.products[i].b) block.checker->product_has_read(chunk, retired);
    }
  }
  group.products.erase(group.products.begin(), group.products.begin() + done);
}

}  // namespace

void run_warpgroup(Block& block, uint32_t number) {
  Thread* threads = &block.threads[number * kWarpgroup];
  Warpgroup& group = block.warpgroups[number];
  for (uint32_t i = 1; i < kWarpgroup; i++) {
    const Thread& t = threads[i];
    if (t.operation != threads[0].operation || t.line != threads[0].line) {
      fail("warpgroup divergence: its first thread is in %s at line %d, thread %u in %s at line %d",
           operation_name(threads[0].operation), threads[0].line, t.id, operation_name(t.operation), t.line);
    }
  }
  switch (threads[0].operation) {
    case kWgmma: issue(block, number, threads); break;
    case kWgmmaWait: wait(block, number, threads); break;
    case kWgmmaCommit: group.committed++; break;
    default: break;
  }
  // Registers may have been written since a commit or a wait.
  if (threads[0].operation != kWgmma) group.fenced = threads[0].operation == kWgmmaFence;
}

}  // namespace emu
