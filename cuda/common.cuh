// What several kernels share: sizes, reductions, vector access, and the device
// form of a batch. No kernel lives here.
#pragma once

#include "intrinsics.cuh"

constexpr int WARP = 32;
constexpr float LOG2E = 1.4426950408889634f;
constexpr float LN2 = 0.6931471805599453f;

// Sixteen bytes of bf16: the unit of a coalesced access.
struct alignas(16) bf16x8 {
  uint32_t pair[4];
};

DEVICE float low_half(uint32_t pair) { return float_from_bits(pair << 16); }
DEVICE float high_half(uint32_t pair) { return float_from_bits(pair & 0xffff0000u); }

DEVICE void unpack(const bf16x8& v, float (&x)[8]) {
  for (int i = 0; i < 4; i++) {
    x[2 * i] = low_half(v.pair[i]);
    x[2 * i + 1] = high_half(v.pair[i]);
  }
}

DEVICE bf16x8 pack(const float (&x)[8]) {
  bf16x8 v;
  for (int i = 0; i < 4; i++) v.pair[i] = pack_bf16(x[2 * i], x[2 * i + 1]);
  return v;
}

// Four f32 at a 16-byte boundary.
DEVICE void load4(float (&x)[4], const float* p) {
  uint32_t word[4];
  load_words(word, p);
  for (int i = 0; i < 4; i++) x[i] = float_from_bits(word[i]);
}
DEVICE void store4(float* p, const float (&x)[4]) {
  store_words(p, {bits_of_float(x[0]), bits_of_float(x[1]), bits_of_float(x[2]), bits_of_float(x[3])});
}

// Eight elements at a 16-byte boundary.
DEVICE void load8(float (&x)[8], const bf16* p) {
  bf16x8 v;
  load_words(v.pair, p);
  unpack(v, x);
}
DEVICE void store8(bf16* p, const float (&x)[8]) { store_words(p, pack(x).pair); }
DEVICE void load8(float (&x)[8], const float* p) {
  float low[4], high[4];
  load4(low, p);
  load4(high, p + 4);
  for (int i = 0; i < 4; i++) {
    x[i] = low[i];
    x[i + 4] = high[i];
  }
}
DEVICE void store8(float* p, const float (&x)[8]) {
  store4(p, {x[0], x[1], x[2], x[3]});
  store4(p + 4, {x[4], x[5], x[6], x[7]});
}

// Rounds as storing to bf16 and loading again does.
DEVICE float round_bf16(float x) { return to_float(to_bf16(x)); }

// x as an element of the pointer's type holds it.
DEVICE float rounded_as(const float*, float x) { return x; }
DEVICE float rounded_as(const bf16*, float x) { return round_bf16(x); }

// Element access for kernels templated on the residual stream's type.
DEVICE float load(const float* p) { return *p; }
DEVICE float load(const bf16* p) { return to_float(*p); }
DEVICE void store(float* p, float x) { *p = x; }
DEVICE void store(bf16* p, float x) { *p = to_bf16(x); }

// Sum over a warp, the same in every lane: a fixed tree.
template <typename T>
DEVICE T warp_sum(T x) {
  for (int d = WARP / 2; d > 0; d /= 2) x += shfl_xor(x, d);
  return x;
}

DEVICE float warp_max(float x) {
  for (int d = WARP / 2; d > 0; d /= 2) x = fmaxf(x, shfl_xor(x, d));
  return x;
}

struct Philox {
  uint32_t word[4];
};

// Philox4x32-10 of a 128-bit counter and a 64-bit key: the block that
// `rng::philox` gives on the CPU.
DEVICE Philox philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint64_t key) {
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  for (int round = 0; round < 10; round++) {
    const uint64_t p0 = uint64_t(0xd2511f53u) * c0;
    const uint64_t p1 = uint64_t(0xcd9e8d57u) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
    c1 = uint32_t(p1);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c3 = uint32_t(p0);
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  return {{c0, c1, c2, c3}};
}

// Uniform in the open interval (0, 1); every step is exact, contracted or not.
DEVICE float open_unit(uint32_t bits) {
  return (float(bits >> 9) + 0.5f) * (1.0f / 8388608.0f);
}

// Rows of one adapter within one tile; what the LoRA kernels run over. Built on
// the host, in order of rows, for adapted rows only.
struct AdapterTile {
  uint32_t row;
  uint32_t rows;
  uint32_t adapter;
};

// A piece of a segment's context: context positions
// [position, position + rows) are packed rows [row, row + rows).
struct ContextRange {
  uint32_t position;
  uint32_t row;
  uint32_t rows;
};

// A tile of queries, or of keys: rows [row, row + rows) of a segment, the first
// at context position `position`.
struct AttentionTile {
  uint32_t segment;
  uint32_t row;
  uint32_t rows;
  uint32_t position;
};

// A segment whose rows attend to another segment's rows, which stand at context
// position `position` in its context.
struct ContextUser {
  uint32_t segment;
  uint32_t position;
};

// A segment: its rows, where its list of ContextRange begins and ends, where
// the list of its ContextUser begins and ends, the length of its prefixes, and
// where its page table begins.
struct Segment {
  uint32_t row;
  uint32_t rows;
  uint32_t prefix_rows;
  uint32_t first_range;
  uint32_t last_range;
  uint32_t first_user;
  uint32_t last_user;
  uint32_t group_pages;       // index of its first group page in `pages`
  uint32_t group_page_count;
  uint32_t own_pages;         // index of its first own page in `pages`
  uint32_t own_page_count;
};

// One adapted linear layer's factors in compute form; r padded to 16 with
// zeros, `a` and `b` null where the adapter leaves the module alone.
struct LoraFactor {
  const bf16* a;       // [r_padded, inputs]
  const bf16* b;       // [outputs, r_padded]
  float scale;
  uint32_t r;
  uint32_t r_padded;
  uint32_t s_column;   // first column of this part in s
};

// ---- tensor-core tiles in shared memory

// Fragments of mma_bf16's operands out of tiles in shared memory, `stride`
// elements a row (a multiple of 8; 8 beyond a multiple of 64 keeps eight rows
// in different banks).

// A 16 x 16 left operand stored [m][k].
DEVICE void load_a(uint32_t (&a)[4], const bf16* tile, int stride) {
  const int lane = threadIdx.x % WARP;
  ldmatrix_x4(a, tile + (lane % 16) * stride + lane / 16 * 8);
}

// The same stored [k][m].
DEVICE void load_a_trans(uint32_t (&a)[4], const bf16* tile, int stride) {
  const int lane = threadIdx.x % WARP;
  ldmatrix_x4_trans(a, tile + (lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 8);
}

// Two neighbouring right operands of 8 columns, 16 deep, stored [n][k].
DEVICE void load_b(uint32_t (&b)[2][2], const bf16* tile, int stride) {
  const int lane = threadIdx.x % WARP;
  uint32_t r[4];
  ldmatrix_x4(r, tile + (lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 8);
  b[0][0] = r[0];
  b[0][1] = r[1];
  b[1][0] = r[2];
  b[1][1] = r[3];
}

// The same stored [k][n].
DEVICE void load_b_trans(uint32_t (&b)[2][2], const bf16* tile, int stride) {
  const int lane = threadIdx.x % WARP;
  uint32_t r[4];
  ldmatrix_x4_trans(r, tile + (lane % 16) * stride + lane / 16 * 8);
  b[0][0] = r[0];
  b[0][1] = r[1];
  b[1][0] = r[2];
  b[1][1] = r[3];
}

// Issues copies of a ROWS x COLUMNS tile from rows of `ld` elements; rows and
// columns beyond the valid ones (columns in whole eights) become zero.
template <int ROWS, int COLUMNS, int STRIDE, int THREADS>
DEVICE void copy_tile(bf16* tile, const bf16* from, size_t ld, uint32_t rows, uint32_t columns) {
  constexpr int kPerRow = COLUMNS / 8;
  for (int i = threadIdx.x; i < ROWS * kPerRow; i += THREADS) {
    const uint32_t row = i / kPerRow, column = i % kPerRow * 8;
    const bool valid = row < rows && column < columns;
    cp_async16(tile + row * STRIDE + column, valid ? from + row * ld + column : from, valid);
  }
}
