// Decode: k and v into KV pages, and attention of single rows over them.
//
// A page holds 16 positions of one layer for all KV heads: per head K [16, D],
// then V [16, D], bf16. A sequence's table has two levels: pages it shares with
// its group (a common prompt), then its own.
//
// decode_write_kv puts the rows' k (of qk) and v (of qkv) where their positions
// lie. decode_attention gives out [rows, q] of segments with one row: a block
// per (segment, KV head), the heads of the group are the rows of one tensor-core
// tile. Four warps take every fourth page each, copied one ahead, and combine
// their sums in a fixed order: a row's bits do not depend on the batch.
//
// Bytes: 4 context * D per KV head, read once per sequence; FLOPs 4 context * D
// per head.
#include "common.cuh"

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / WARP;
constexpr uint32_t kPage = 16;

DEVICE uint32_t page_of(const Segment& s, const uint32_t* table, uint32_t index) {
  return index < s.group_page_count ? table[s.group_pages + index]
                                    : table[s.own_pages + index - s.group_page_count];
}

// Grid (query tiles): rows of one segment each.
KERNEL void LAUNCH_BOUNDS(128)
decode_write_kv(const bf16* qk, const bf16* qkv, const AttentionTile* tiles, const Segment* segments,
                const uint32_t* table, bf16* pages, uint32_t heads, uint32_t kv_heads, uint32_t d) {
  const AttentionTile tile = tiles[blockIdx.x];
  const Segment segment = segments[tile.segment];
  const uint32_t per_row = kv_heads * d / 8;
  const size_t page_elements = size_t(kv_heads) * 2 * kPage * d;
  for (uint32_t i = threadIdx.x; i < tile.rows * per_row; i += kThreads) {
    const size_t row = tile.row + i / per_row;
    const uint32_t position = tile.position + i / per_row;
    const uint32_t column = i % per_row * 8, kv = column / d, c = column % d;
    bf16* head = pages + page_of(segment, table, position / kPage) * page_elements + size_t(kv) * 2 * kPage * d;
    const uint32_t slot = position % kPage;
    float x[8];
    load8(x, qk + row * ((heads + kv_heads) * d) + heads * d + column);
    store_words_global(head + slot * d + c, pack(x).pair);
    load8(x, qkv + row * ((heads + 2 * kv_heads) * d) + (heads + kv_heads) * d + column);
    store_words_global(head + (kPage + slot) * d + c, pack(x).pair);
  }
}
KERNEL_EXPORT(decode_write_kv)

template <int D>
struct DecodeTiles {
  bf16 q[16 * (D + 8)];
  bf16 k[kWarps][2][kPage * (D + 8)];
  bf16 v[kWarps][2][kPage * (D + 8)];
  float top[kWarps][16];
  float sum[kWarps][16];
};

template <int D>
DEVICE void attend(const bf16* qk, const bf16* pages, const uint32_t* positions, const Segment* segments,
                   const uint32_t* table, bf16* out, uint32_t out_stride, uint32_t heads, uint32_t kv_heads) {
  DYN_SMEM(memory, 16);
  auto& tiles = *reinterpret_cast<DecodeTiles<D>*>(memory);
  const Segment segment = segments[blockIdx.x];
  if (segment.rows != 1) return;
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const uint32_t kv = blockIdx.y, group = heads / kv_heads;
  const uint32_t keys = positions[segment.row] + 1;
  const uint32_t page_count = (keys + kPage - 1) / kPage;
  const bf16* q = qk + size_t(segment.row) * ((heads + kv_heads) * D) + size_t(kv) * group * D;
  const size_t page_elements = size_t(kv_heads) * 2 * kPage * D;
  // Rows beyond the group are zero.
  for (int i = threadIdx.x; i < 16 * (D / 8); i += kThreads) {
    const uint32_t row = i / (D / 8), column = i % (D / 8) * 8;
    const bool valid = row < group;
    cp_async16(tiles.q + row * (D + 8) + column, valid ? q + row * D + column : q, valid);
  }
  cp_async_commit();
  auto issue = [&](uint32_t index, int slot) {
    if (index < page_count) {
      const bf16* head = pages + page_of(segment, table, index) * page_elements + size_t(kv) * 2 * kPage * D;
      const uint32_t rows = min(keys - index * kPage, kPage);
      for (int i = lane; i < int(kPage) * (D / 8); i += WARP) {
        const uint32_t row = i / (D / 8), column = i % (D / 8) * 8;
        const bool valid = row < rows;
        const bf16* from = valid ? head + row * D + column : head;
        cp_async16(&tiles.k[warp][slot][row * (D + 8) + column], from, valid);
        cp_async16(&tiles.v[warp][slot][row * (D + 8) + column], valid ? from + kPage * D : head, valid);
      }
    }
    cp_async_commit();
  };
  issue(warp, 0);
  // The queries are everybody's.
  cp_async_wait<1>();
  __syncthreads();
  const float scale = LOG2E / sqrtf(float(D));
  float acc[D / 8][4] = {};
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  int slot = 0;
  for (uint32_t index = warp; index < page_count; index += kWarps) {
    issue(index + kWarps, slot ^ 1);
    cp_async_wait<1>();
    __syncwarp();
    const bf16* k = tiles.k[warp][slot];
    const bf16* v = tiles.v[warp][slot];
    float s[2][4] = {};
    for (int c = 0; c < D; c += 16) {
      uint32_t a[4], b[2][2];
      load_a(a, tiles.q + c, D + 8);
      load_b(b, k + c, D + 8);
      mma_bf16(s[0], a, b[0]);
      mma_bf16(s[1], a, b[1]);
    }
    for (int half = 0; half < 2; half++) {
      float best = top[half];
      for (int n = 0; n < 2; n++) {
        for (int j = 0; j < 2; j++) {
          float& x = s[n][2 * half + j];
          x = index * kPage + n * 8 + lane % 4 * 2 + j < keys ? x * scale : -INFINITY;
          best = fmaxf(best, x);
        }
      }
      // A page that is read holds at least one position: best is finite.
      best = fmaxf(best, shfl_xor(best, 1));
      best = fmaxf(best, shfl_xor(best, 2));
      const float shrink = fast_exp2(top[half] - best);
      top[half] = best;
      float part = 0;
      for (int n = 0; n < 2; n++) {
        for (int j = 0; j < 2; j++) {
          float& x = s[n][2 * half + j];
          x = fast_exp2(x - best);
          part += x;
        }
      }
      sum[half] = sum[half] * shrink + part;
      for (int n = 0; n < D / 8; n++) {
        acc[n][2 * half] *= shrink;
        acc[n][2 * half + 1] *= shrink;
      }
    }
    const uint32_t p[4] = {pack_bf16(s[0][0], s[0][1]), pack_bf16(s[0][2], s[0][3]), pack_bf16(s[1][0], s[1][1]),
                           pack_bf16(s[1][2], s[1][3])};
    for (int n = 0; n < D; n += 16) {
      uint32_t b[2][2];
      load_b_trans(b, v + n, D + 8);
      mma_bf16(acc[n / 8], p, b[0]);
      mma_bf16(acc[n / 8 + 1], p, b[1]);
    }
    // The next copies go into the page that was read just now.
    __syncwarp();
    slot ^= 1;
  }
  for (int half = 0; half < 2; half++) {
    sum[half] += shfl_xor(sum[half], 1);
    sum[half] += shfl_xor(sum[half], 2);
    if (lane % 4 == 0) {
      tiles.top[warp][half * 8 + lane / 4] = top[half];
      tiles.sum[warp][half * 8 + lane / 4] = sum[half];
    }
  }
  // Everybody is done with the pages: their room takes the warps' sums.
  __syncthreads();
  float* parts = reinterpret_cast<float*>(&tiles.k[0][0][0]);
  constexpr int kRow = D + 4;
  for (int n = 0; n < D / 8; n++) {
    for (int j = 0; j < 4; j++) {
      const int row = j / 2 * 8 + lane / 4, column = n * 8 + lane % 4 * 2 + j % 2;
      parts[(warp * 16 + row) * kRow + column] = acc[n][j];
    }
  }
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < group * (D / 2); i += kThreads) {
    const uint32_t row = i / (D / 2), column = i % (D / 2) * 2;
    float best = -INFINITY;
    for (int w = 0; w < kWarps; w++) best = fmaxf(best, tiles.top[w][row]);
    float total = 0, low = 0, high = 0;
    for (int w = 0; w < kWarps; w++) {
      // A warp without a page has sum 0 and top -inf: its share is 0.
      const float share = fast_exp2(tiles.top[w][row] - best);
      total += tiles.sum[w][row] * share;
      low += parts[(w * 16 + row) * kRow + column] * share;
      high += parts[(w * 16 + row) * kRow + column + 1] * share;
    }
    bf16* to = out + size_t(segment.row) * out_stride + (size_t(kv) * group + row) * D + column;
    *reinterpret_cast<uint32_t*>(to) = pack_bf16(low / total, high / total);
  }
}

// Grid (segments, KV heads); blocks of other segments return at once.
#define DECODE(D)                                                                                        \
  KERNEL void LAUNCH_BOUNDS(128) decode_attention_##D(                                                   \
      const bf16* qk, const bf16* pages, const uint32_t* positions, const Segment* segments,             \
      const uint32_t* table, bf16* out, uint32_t out_stride, uint32_t heads, uint32_t kv_heads) {        \
    attend<D>(qk, pages, positions, segments, table, out, out_stride, heads, kv_heads);                  \
  }                                                                                                      \
  KERNEL_EXPORT(decode_attention_##D)

DECODE(64)
DECODE(128)
