// Causal attention with grouped queries: packed segments with prefixes, forward
// and backward, and prefill chunks over KV pages.
//
// qk is [rows, q | k] (normalised, rotated), v the last columns of qkv
// [rows, q | k | v]; out [rows, q] and lse [rows, heads] (natural log, f32) are
// overwritten. The rows of out and of d_qkv may have room behind them. A row
// attends to its segment's context up to itself: the ContextRanges of the
// segment, or its pages. Head dimensions 64 and 128.
//
// Forward (FlashAttention-2, arXiv 2307.08691): one block of 4 warps per
// 64 queries of a head; keys in tiles of 64 from position 0 on, copied one tile
// ahead, so a row's bits do not depend on its neighbours. Backward: dq by the
// same blocks; dk and dv by one block per 64 keys of a KV head, which goes over
// all segments that see these keys, in batch order, and holds the sums in
// registers: no atomics, two runs do not differ. S is computed in both.
//
// FLOPs per (query, key) pair and head: 4 D forward, 14 D backward (10 D would
// do with atomics). Least bytes: q, k, v, out once each.
#include "attention.cuh"

constexpr int kThreads = 128;
constexpr int kTile = 64;
// Queries of one step of the keys' backward: more would not fit in registers.
constexpr int kStep = 32;

// Positions of pages, and their layout: per KV head K [16, D], then V.
constexpr uint32_t kPage = 16;

// A segment's keys and values in KV pages.
struct PagedContext {
  const bf16* pages;  // at this KV head
  const uint32_t* table;
  Segment segment;
  uint32_t page_elements, d;

  DEVICE const bf16* at(uint32_t position) const {
    const uint32_t index = position / kPage;
    const uint32_t page = index < segment.group_page_count
                              ? table[segment.group_pages + index]
                              : table[segment.own_pages + index - segment.group_page_count];
    return pages + size_t(page) * page_elements;
  }
  DEVICE const bf16* key(uint32_t position) const { return at(position) + position % kPage * d; }
  DEVICE const bf16* value(uint32_t position) const { return at(position) + (kPage + position % kPage) * d; }
};

// Issues copies of rows of D elements; `from` gives each row's address.
template <int D, int ROWS, typename F>
DEVICE void copy_rows(bf16* tile, uint32_t rows, const bf16* anywhere, F from) {
  for (int i = threadIdx.x; i < ROWS * (D / 8); i += kThreads) {
    const uint32_t row = i / (D / 8), column = i % (D / 8) * 8;
    const bool valid = row < rows;
    cp_async16(tile + row * (D + 8) + column, valid ? from(row) + column : anywhere, valid);
  }
}

// acc [16 rows][N columns] += a [16][D] b^T, both stored row by row.
template <int D, int N>
DEVICE void multiply_rows(float (&acc)[N / 8][4], const bf16* a_tile, const bf16* b_tile) {
  for (int k = 0; k < D; k += 16) {
    uint32_t a[4];
    load_a(a, a_tile + k, D + 8);
    for (int n = 0; n < N; n += 16) {
      uint32_t b[2][2];
      load_b(b, b_tile + n * (D + 8) + k, D + 8);
      mma_bf16(acc[n / 8], a, b[0]);
      mma_bf16(acc[n / 8 + 1], a, b[1]);
    }
  }
}

// acc [16 rows][D] += p [16][K] b [K][D]: p is an accumulator, rounded to bf16.
template <int D, int K>
DEVICE void multiply_accumulator(float (&acc)[D / 8][4], const float (&p)[K / 8][4], const bf16* b_tile) {
  for (int k = 0; k < K / 16; k++) {
    const uint32_t a[4] = {
        pack_bf16(p[2 * k][0], p[2 * k][1]), pack_bf16(p[2 * k][2], p[2 * k][3]),
        pack_bf16(p[2 * k + 1][0], p[2 * k + 1][1]), pack_bf16(p[2 * k + 1][2], p[2 * k + 1][3])};
    for (int n = 0; n < D; n += 16) {
      uint32_t b[2][2];
      load_b_trans(b, b_tile + k * 16 * (D + 8) + n, D + 8);
      mma_bf16(acc[n / 8], a, b[0]);
      mma_bf16(acc[n / 8 + 1], a, b[1]);
    }
  }
}

template <int D>
struct ForwardTiles {
  bf16 q[kTile * (D + 8)];
  bf16 k[2][kTile * (D + 8)];
  bf16 v[2][kTile * (D + 8)];
};

// One tile of queries of one head. `lse` may be null.
template <int D, typename Context>
DEVICE void attend(AttentionTile tile, const bf16* q, size_t q_ld, Context context, bf16* out, size_t out_ld,
                   float* lse, size_t lse_ld) {
  DYN_SMEM(memory, 16);
  auto& tiles = *reinterpret_cast<ForwardTiles<D>*>(memory);
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const uint32_t keys = tile.position + tile.rows;
  const float scale = LOG2E / sqrtf(float(D));
  auto issue = [&](uint32_t step) {
    const uint32_t first = step * kTile;
    if (first < keys) {
      const uint32_t rows = min(keys - first, uint32_t(kTile));
      copy_rows<D, kTile>(tiles.k[step % 2], rows, q, [&](uint32_t r) { return context.key(first + r); });
      copy_rows<D, kTile>(tiles.v[step % 2], rows, q, [&](uint32_t r) { return context.value(first + r); });
    }
    cp_async_commit();
  };
  copy_rows<D, kTile>(tiles.q, tile.rows, q, [&](uint32_t r) { return q + r * q_ld; });
  issue(0);
  float acc[D / 8][4] = {};
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  const uint32_t steps = (keys + kTile - 1) / kTile;
  for (uint32_t step = 0; step < steps; step++) {
    issue(step + 1);
    cp_async_wait<1>();
    __syncthreads();
    float s[kTile / 8][4] = {};
    multiply_rows<D, kTile>(s, tiles.q + warp * 16 * (D + 8), tiles.k[step % 2]);
    for (int half = 0; half < 2; half++) {
      // The last position this row sees. Rows beyond the tile see as far as
      // they would: finite garbage that nobody stores.
      const uint32_t reach = tile.position + warp * 16 + half * 8 + lane / 4;
      float best = top[half];
      for (int n = 0; n < kTile / 8; n++) {
        for (int j = 0; j < 2; j++) {
          float& x = s[n][2 * half + j];
          const uint32_t position = step * kTile + n * 8 + lane % 4 * 2 + j;
          x = position <= reach ? x * scale : -INFINITY;
          best = fmaxf(best, x);
        }
      }
      // Position 0 is in the first tile, so that best is finite from there on.
      best = row_max(best);
      const float shrink = fast_exp2(top[half] - best);
      top[half] = best;
      float part = 0;
      for (int n = 0; n < kTile / 8; n++) {
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
    multiply_accumulator<D, kTile>(acc, s, tiles.v[step % 2]);
    // The next copies go into the tiles that were read just now.
    __syncthreads();
  }
  for (int half = 0; half < 2; half++) sum[half] = row_sum(sum[half]);
  store_rows<D>(out, out_ld, tile.rows, acc, 1.0f / sum[0], 1.0f / sum[1]);
  if (lse != nullptr && lane % 4 == 0) {
    for (int half = 0; half < 2; half++) {
      const uint32_t row = warp * 16 + half * 8 + lane / 4;
      if (row < tile.rows) lse[row * lse_ld] = top[half] * LN2 + logf(sum[half]);
    }
  }
}

// Grid (query tiles, heads).
template <int D>
DEVICE void forward(const bf16* qk, const bf16* qkv, const AttentionTile* tiles, const Segment* segments,
                    const ContextRange* ranges, bf16* out, float* lse, uint32_t out_stride, uint32_t heads,
                    uint32_t kv_heads) {
  const AttentionTile tile = tiles[blockIdx.x];
  const uint32_t head = blockIdx.y, kv = head / (heads / kv_heads);
  const Widths w = {heads, kv_heads, D};
  attend<D>(tile, qk + size_t(tile.row) * w.qk() + head * D, w.qk(),
            packed_context(qk, qkv, segments[tile.segment], ranges, w, kv),
            out + size_t(tile.row) * out_stride + head * D, out_stride, lse + size_t(tile.row) * heads + head, heads);
}

// Grid (query tiles, heads). Segments of one row are decode_attention's.
template <int D>
DEVICE void paged(const bf16* qk, const bf16* pages, const AttentionTile* tiles, const Segment* segments,
                  const uint32_t* table, bf16* out, uint32_t out_stride, uint32_t heads, uint32_t kv_heads) {
  const AttentionTile tile = tiles[blockIdx.x];
  const Segment segment = segments[tile.segment];
  if (segment.rows == 1) return;
  const uint32_t head = blockIdx.y, kv = head / (heads / kv_heads);
  const Widths w = {heads, kv_heads, D};
  const uint32_t per_head = 2 * kPage * D;
  const PagedContext context = {pages + size_t(kv) * per_head, table, segment, kv_heads * per_head, D};
  attend<D>(tile, qk + size_t(tile.row) * w.qk() + head * D, w.qk(), context,
            out + size_t(tile.row) * out_stride + head * D, out_stride, nullptr, 0);
}

// ---- backward

// delta[row, head] = sum of d_out * out: a warp each.
template <int D>
DEVICE void delta(const bf16* out, const bf16* d_out, float* to, uint32_t count, uint32_t out_stride,
                  uint32_t heads) {
  const uint32_t i = (blockIdx.x * blockDim.x + threadIdx.x) / WARP;
  if (i >= count) return;
  const uint32_t column = threadIdx.x % WARP * (D / WARP);
  out += size_t(i / heads) * out_stride + i % heads * D + column;
  d_out += size_t(i) * D + column;
  float sum = 0;
  for (int j = 0; j < D / WARP; j++) sum += to_float(out[j]) * to_float(d_out[j]);
  sum = warp_sum(sum);
  if (threadIdx.x % WARP == 0) to[i] = sum;
}

template <int D>
struct BackwardTiles {
  bf16 q[kTile * (D + 8)];
  bf16 d_out[kTile * (D + 8)];
  bf16 k[kTile * (D + 8)];
  bf16 v[kTile * (D + 8)];
  float lse[kTile];
  float delta[kTile];
};

// Grid (saved query tiles, heads): dq.
template <int D>
DEVICE void backward_q(const bf16* qk, const bf16* qkv, const bf16* d_out, const float* lse, const float* deltas,
                       const AttentionTile* tile_list, const Segment* segments, const ContextRange* ranges,
                       bf16* d_qk, uint32_t heads, uint32_t kv_heads) {
  DYN_SMEM(memory, 16);
  auto& tiles = *reinterpret_cast<BackwardTiles<D>*>(memory);
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const AttentionTile tile = tile_list[blockIdx.x];
  const uint32_t head = blockIdx.y, kv = head / (heads / kv_heads);
  const Widths w = {heads, kv_heads, D};
  const PackedContext context = packed_context(qk, qkv, segments[tile.segment], ranges, w, kv);
  const bf16* q = qk + size_t(tile.row) * w.qk() + head * D;
  const bf16* go = d_out + size_t(tile.row) * w.q() + head * D;
  copy_rows<D, kTile>(tiles.q, tile.rows, q, [&](uint32_t r) { return q + size_t(r) * w.qk(); });
  copy_rows<D, kTile>(tiles.d_out, tile.rows, q, [&](uint32_t r) { return go + size_t(r) * w.q(); });
  float row_lse[2], row_delta[2];
  for (int half = 0; half < 2; half++) {
    const uint32_t row = warp * 16 + half * 8 + lane / 4;
    const bool valid = row < tile.rows;
    const size_t at = size_t(tile.row + row) * heads + head;
    row_lse[half] = valid ? lse[at] * LOG2E : 0.0f;
    row_delta[half] = valid ? deltas[at] : 0.0f;
  }
  const float scale = 1.0f / sqrtf(float(D));
  const uint32_t keys = tile.position + tile.rows;
  float dq[D / 8][4] = {};
  for (uint32_t first = 0; first < keys; first += kTile) {
    const uint32_t rows = min(keys - first, uint32_t(kTile));
    copy_rows<D, kTile>(tiles.k, rows, q, [&](uint32_t r) { return context.key(first + r); });
    copy_rows<D, kTile>(tiles.v, rows, q, [&](uint32_t r) { return context.value(first + r); });
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    float s[kTile / 8][4] = {}, dp[kTile / 8][4] = {};
    multiply_rows<D, kTile>(s, tiles.q + warp * 16 * (D + 8), tiles.k);
    multiply_rows<D, kTile>(dp, tiles.d_out + warp * 16 * (D + 8), tiles.v);
    for (int half = 0; half < 2; half++) {
      const uint32_t reach = tile.position + warp * 16 + half * 8 + lane / 4;
      for (int n = 0; n < kTile / 8; n++) {
        for (int j = 0; j < 2; j++) {
          float& x = s[n][2 * half + j];
          const uint32_t position = first + n * 8 + lane % 4 * 2 + j;
          const float p = position <= reach ? fast_exp2(x * (scale * LOG2E) - row_lse[half]) : 0.0f;
          x = p * (dp[n][2 * half + j] - row_delta[half]) * scale;
        }
      }
    }
    multiply_accumulator<D, kTile>(dq, s, tiles.k);
    // The next keys go where these were read just now.
    __syncthreads();
  }
  store_rows<D>(d_qk + size_t(tile.row) * w.qk() + head * D, w.qk(), tile.rows, dq, 1.0f, 1.0f);
}

// Grid (key tiles, KV heads): dk and dv of 64 rows, from all queries that see
// them.
template <int D>
DEVICE void backward_kv(const bf16* qk, const bf16* qkv, const bf16* d_out, const float* lse,
                        const float* deltas, const AttentionTile* tile_list, const Segment* segments,
                        const ContextUser* users, bf16* d_qk, bf16* d_qkv, uint32_t d_qkv_stride, uint32_t heads,
                        uint32_t kv_heads) {
  DYN_SMEM(memory, 16);
  auto& tiles = *reinterpret_cast<BackwardTiles<D>*>(memory);
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const AttentionTile tile = tile_list[blockIdx.x];
  const Segment owner = segments[tile.segment];
  const uint32_t kv = blockIdx.y, group = heads / kv_heads;
  const Widths w = {heads, kv_heads, D};
  const bf16* k = qk + size_t(tile.row) * w.qk() + w.q() + kv * D;
  const bf16* v = qkv + size_t(tile.row) * w.qkv() + w.qk() + kv * D;
  copy_rows<D, kTile>(tiles.k, tile.rows, k, [&](uint32_t r) { return k + size_t(r) * w.qk(); });
  copy_rows<D, kTile>(tiles.v, tile.rows, k, [&](uint32_t r) { return v + size_t(r) * w.qkv(); });
  const float scale = 1.0f / sqrtf(float(D));
  float dk[D / 8][4] = {}, dv[D / 8][4] = {};
  for (uint32_t u = owner.first_user; u < owner.last_user; u++) {
    const Segment seen = segments[users[u].segment];
    // Where the tile's first key stands in this segment's context.
    const uint32_t key0 = users[u].position + tile.position;
    const uint32_t skip = key0 > seen.prefix_rows ? (key0 - seen.prefix_rows) / kStep * kStep : 0;
    for (uint32_t first = skip; first < seen.rows; first += kStep) {
      const uint32_t rows = min(seen.rows - first, uint32_t(kStep));
      const size_t row0 = seen.row + first;
      for (uint32_t head = kv * group; head < (kv + 1) * group; head++) {
        copy_rows<D, kStep>(tiles.q, rows, k, [&](uint32_t r) { return qk + (row0 + r) * w.qk() + head * D; });
        copy_rows<D, kStep>(tiles.d_out, rows, k, [&](uint32_t r) { return d_out + (row0 + r) * w.q() + head * D; });
        cp_async_commit();
        if (threadIdx.x < kStep) {
          const bool valid = threadIdx.x < rows;
          const size_t at = (row0 + threadIdx.x) * heads + head;
          tiles.lse[threadIdx.x] = valid ? lse[at] * LOG2E : 0.0f;
          tiles.delta[threadIdx.x] = valid ? deltas[at] : 0.0f;
        }
        cp_async_wait<0>();
        __syncthreads();
        float s[kStep / 8][4] = {}, dp[kStep / 8][4] = {};
        multiply_rows<D, kStep>(s, tiles.k + warp * 16 * (D + 8), tiles.q);
        multiply_rows<D, kStep>(dp, tiles.v + warp * 16 * (D + 8), tiles.d_out);
        for (int n = 0; n < kStep / 8; n++) {
          for (int j = 0; j < 4; j++) {
            const uint32_t key = key0 + warp * 16 + j / 2 * 8 + lane / 4;
            const uint32_t query = n * 8 + lane % 4 * 2 + j % 2;
            // Queries beyond the segment are zero rows, but exp2(0 - 0) is 1.
            const bool sees = query < rows && key <= seen.prefix_rows + first + query;
            const float p = sees ? fast_exp2(s[n][j] * (scale * LOG2E) - tiles.lse[query]) : 0.0f;
            s[n][j] = p;
            dp[n][j] = p * (dp[n][j] - tiles.delta[query]) * scale;
          }
        }
        multiply_accumulator<D, kStep>(dv, s, tiles.d_out);
        multiply_accumulator<D, kStep>(dk, dp, tiles.q);
        // The next queries go where these were read just now.
        __syncthreads();
      }
    }
  }
  // A tile that nobody sees cannot be: a segment sees itself.
  store_rows<D>(d_qk + size_t(tile.row) * w.qk() + w.q() + kv * D, w.qk(), tile.rows, dk, 1.0f, 1.0f);
  store_rows<D>(d_qkv + size_t(tile.row) * d_qkv_stride + w.qk() + kv * D, d_qkv_stride, tile.rows, dv, 1.0f, 1.0f);
}

// The keys' backward may have all the registers it wants: ptxas otherwise trades
// a few spills for a second block.
#define ATTENTION(D)                                                                                              \
  KERNEL void LAUNCH_BOUNDS(128) attention_forward_##D(                                                           \
      const bf16* qk, const bf16* qkv, const AttentionTile* tiles, const Segment* segments,                       \
      const ContextRange* ranges, bf16* out, float* lse, uint32_t out_stride, uint32_t heads,                     \
      uint32_t kv_heads) {                                                                                        \
    forward<D>(qk, qkv, tiles, segments, ranges, out, lse, out_stride, heads, kv_heads);                          \
  }                                                                                                               \
  KERNEL_EXPORT(attention_forward_##D)                                                                            \
  KERNEL void LAUNCH_BOUNDS(128) attention_paged_##D(                                                             \
      const bf16* qk, const bf16* pages, const AttentionTile* tiles, const Segment* segments,                     \
      const uint32_t* table, bf16* out, uint32_t out_stride, uint32_t heads, uint32_t kv_heads) {                 \
    paged<D>(qk, pages, tiles, segments, table, out, out_stride, heads, kv_heads);                                \
  }                                                                                                               \
  KERNEL_EXPORT(attention_paged_##D)                                                                              \
  KERNEL void LAUNCH_BOUNDS(128)                                                                                  \
      attention_delta_##D(const bf16* out, const bf16* d_out, float* deltas, uint32_t count,                      \
                          uint32_t out_stride, uint32_t heads) {                                                  \
    delta<D>(out, d_out, deltas, count, out_stride, heads);                                                       \
  }                                                                                                               \
  KERNEL_EXPORT(attention_delta_##D)                                                                              \
  KERNEL void LAUNCH_BOUNDS(128) attention_backward_q_##D(                                                        \
      const bf16* qk, const bf16* qkv, const bf16* d_out, const float* lse, const float* deltas,                  \
      const AttentionTile* tiles, const Segment* segments, const ContextRange* ranges, bf16* d_qk,                \
      uint32_t heads, uint32_t kv_heads) {                                                                        \
    backward_q<D>(qk, qkv, d_out, lse, deltas, tiles, segments, ranges, d_qk, heads, kv_heads);                   \
  }                                                                                                               \
  KERNEL_EXPORT(attention_backward_q_##D)                                                                         \
  KERNEL void LAUNCH_BOUNDS(128, 1) attention_backward_kv_##D(                                                       \
      const bf16* qk, const bf16* qkv, const bf16* d_out, const float* lse, const float* deltas,                  \
      const AttentionTile* tiles, const Segment* segments, const ContextUser* users, bf16* d_qk, bf16* d_qkv,     \
      uint32_t d_qkv_stride, uint32_t heads, uint32_t kv_heads) {                                                 \
    backward_kv<D>(qk, qkv, d_out, lse, deltas, tiles, segments, users, d_qk, d_qkv, d_qkv_stride, heads,         \
                   kv_heads);                                                                                     \
  }                                                                                                               \
  KERNEL_EXPORT(attention_backward_kv_##D)

ATTENTION(64)
ATTENTION(128)
