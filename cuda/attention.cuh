// What the attention kernels share: the sizes of a row, a segment's context,
// and the rows of an accumulator.
#pragma once

#include "common.cuh"

// Sizes of a row, in elements.
struct Widths {
  uint32_t heads, kv_heads, d;
  DEVICE uint32_t q() const { return heads * d; }
  DEVICE uint32_t qk() const { return (heads + kv_heads) * d; }
  DEVICE uint32_t qkv() const { return (heads + 2 * kv_heads) * d; }
};

// A segment's keys and values among the packed rows.
struct PackedContext {
  const bf16* keys;    // qk at this KV head's first column
  const bf16* values;  // qkv at this KV head's first column
  const ContextRange* ranges;
  uint32_t first, last;
  uint32_t qk_ld, qkv_ld;

  DEVICE size_t row(uint32_t position) const {
    uint32_t i = last - 1;
    while (i > first && ranges[i].position > position) i--;
    return ranges[i].row + (position - ranges[i].position);
  }
  DEVICE const bf16* key(uint32_t position) const { return keys + row(position) * qk_ld; }
  DEVICE const bf16* value(uint32_t position) const { return values + row(position) * qkv_ld; }
};

DEVICE PackedContext packed_context(const bf16* qk, const bf16* qkv, const Segment& segment,
                                    const ContextRange* ranges, Widths w, uint32_t kv) {
  return {qk + w.q() + kv * w.d, qkv + w.qk() + kv * w.d, ranges, segment.first_range, segment.last_range,
          w.qk(), w.qkv()};
}

// Sum or maximum over the four lanes that share a row of an accumulator.
DEVICE float row_sum(float x) {
  x += shfl_xor(x, 1);
  return x + shfl_xor(x, 2);
}
DEVICE float row_max(float x) {
  x = fmaxf(x, shfl_xor(x, 1));
  return fmaxf(x, shfl_xor(x, 2));
}

// Row of an accumulator's first or second half within the 64 of four warps.
DEVICE uint32_t accumulator_row(int half) {
  return threadIdx.x / WARP % 4 * 16 + half * 8 + threadIdx.x % WARP / 4;
}

// Stores an accumulator of four warps, 64 rows of D, as bf16 rows.
template <int D>
DEVICE void store_rows(bf16* to, size_t ld, uint32_t rows, const float (&acc)[D / 8][4], float low, float high) {
  for (int half = 0; half < 2; half++) {
    const uint32_t row = accumulator_row(half);
    if (row >= rows) continue;
    const float scale = half == 0 ? low : high;
    for (int n = 0; n < D / 8; n++) {
      *reinterpret_cast<uint32_t*>(to + row * ld + n * 8 + threadIdx.x % 4 * 2) =
          pack_bf16(acc[n][2 * half] * scale, acc[n][2 * half + 1] * scale);
    }
  }
}
