// The same attention over packed segments as attention.cu, on Hopper's
// asynchronous tensor cores: see there for contract and layouts.
//
// A block has a warpgroup that copies and two that compute, each one head of a
// KV head's group, so that keys and values are read once for both
// (FlashAttention-3, arXiv 2407.08608, without its TMA: a context lies in
// several ranges of rows, which one box does not cover, and boxes by range would
// read rows of other segments and pad each range to a tile). Tiles go round in
// two stages; barriers say which are full and which are empty. The two
// warpgroups run apart, so that one's exponentials overlap the other's products.
//
// Forward: 64 queries a head; keys in tiles of 128 from position 0 on. Scores of
// the next tile are computed while the values of this one are added up. Backward:
// dq by such blocks too; dk and dv of 64 keys of a KV head, queries in steps of
// 64, the two warpgroups' sums added at the end: no atomics, two runs do not
// differ. S is computed in both: 14 D FLOPs a pair and head.
#include "attention.cuh"
#include "wgmma.cuh"

constexpr int kTile = 64;
constexpr int kConsumers = 2;
constexpr int kThreads = (1 + kConsumers) * WARPGROUP;
constexpr int kStages = 2;

// Registers of a thread that copies and of one that computes: 128 threads of the
// former and 256 of the latter have no more than the 65,536 of a multiprocessor.
constexpr int kCopying = 40;
constexpr int kComputing = 232;

// Dynamic shared memory from the next boundary of 1,024 bytes, which swizzled
// panels need.
template <typename T>
DEVICE T& aligned_tiles(unsigned char* memory) {
  const uint32_t past = shared_address(memory) % 1024;
  return *reinterpret_cast<T*>(memory + (1024 - past) % 1024);
}

// The warpgroup's number among those that compute, and its thread.
DEVICE uint32_t consumer() { return threadIdx.x / WARPGROUP - 1; }

// The heads of a block of the grid's second dimension: as many of one KV head as
// compute, or what is left of an odd group.
struct Heads {
  uint32_t kv, first, active;
};

DEVICE Heads heads_of_block(uint32_t heads, uint32_t kv_heads) {
  const uint32_t group = heads / kv_heads, blocks = (group + kConsumers - 1) / kConsumers;
  const uint32_t kv = blockIdx.y / blocks, first = blockIdx.y % blocks * kConsumers;
  return {kv, kv * group + first, min(uint32_t(kConsumers), group - first)};
}

// What a copying thread has under way.
struct Copies {
  Mbarrier* last = nullptr;

  // Issued copies are one item, which `full` is for. The one before arrives.
  DEVICE void commit(Mbarrier* full) {
    cp_async_commit();
    cp_async_wait<1>();
    publish();
    last = full;
  }
  DEVICE void finish() {
    cp_async_wait<0>();
    publish();
  }

 private:
  DEVICE void publish() {
    if (last == nullptr) return;
    fence_async_shared();
    mbarrier_arrive(last);
  }
};

// Issues copies of rows of D elements to a swizzled tile, by one warpgroup;
// `from` gives each row's address. Rows from `rows` on become zero.
template <int D, int ROWS, typename F>
DEVICE void copy_swizzled(bf16* tile, uint32_t rows, const bf16* anywhere, F from) {
  constexpr uint32_t kChunks = D / 8;
  // Few registers: see kCopying.
#pragma unroll 2
  for (uint32_t i = threadIdx.x % WARPGROUP; i < ROWS * kChunks; i += WARPGROUP) {
    const uint32_t row = i / kChunks, chunk = i % kChunks;
    const bool valid = row < rows;
    cp_async16(tile + swizzled<ROWS>(row, chunk), valid ? from(row) + chunk * 8 : anywhere, valid);
  }
}

// acc [64][N] = a [64][D] b^T, with b [N][D].
template <int D, int N>
DEVICE void issue_rows(float (&acc)[N / 8][4], const bf16* a, const bf16* b) {
#pragma unroll
  for (int k = 0; k < D; k += 16) {
    const uint32_t within = k % PANEL, panel = k / PANEL * PANEL;
    wgmma(acc, wgmma_operand(a + panel * 64 + within, 0), wgmma_operand(b + panel * N + within, 0), k > 0);
  }
}

// acc [64][D] += p [64][K] b [K][D]: p is an accumulator, as packed by `packed`.
template <int D, int K>
DEVICE void issue_accumulator(float (&acc)[D / 8][4], const uint32_t (&p)[K / 16][4], const bf16* b) {
#pragma unroll
  for (int k = 0; k < K / 16; k++) {
    wgmma(acc, p[k], wgmma_operand(b + k * 16 * PANEL, K * PANEL * sizeof(bf16)));
  }
}

template <int K>
DEVICE void pack_accumulator(uint32_t (&a)[K / 16][4], const float (&p)[K / 8][4]) {
  for (int k = 0; k < K / 16; k++) {
    a[k][0] = pack_bf16(p[2 * k][0], p[2 * k][1]);
    a[k][1] = pack_bf16(p[2 * k][2], p[2 * k][3]);
    a[k][2] = pack_bf16(p[2 * k + 1][0], p[2 * k + 1][1]);
    a[k][3] = pack_bf16(p[2 * k + 1][2], p[2 * k + 1][3]);
  }
}

// ---- forward

constexpr int kKeys = 128;

template <int D>
struct ForwardTiles {
  bf16 q[kConsumers][kTile * D];
  bf16 k[kStages][kKeys * D];
  bf16 v[kStages][kKeys * D];
  Mbarrier full_k[kStages], full_v[kStages], empty_k[kStages], empty_v[kStages];
};

// A running softmax of two rows a thread, base 2.
struct Softmax {
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  // What the rows' sums so far are worth after the last tile.
  float shrink[2];

  // Scores of keys first .. first + kKeys to exponentials; keys beyond a row's
  // own position count nothing. Position 0 is in the first tile, so that top is
  // finite from there on.
  DEVICE void take(float (&s)[kKeys / 8][4], uint32_t first, uint32_t position, float scale) {
    const bool masked = first + kKeys > position + 1;
    for (int half = 0; half < 2; half++) {
      const uint32_t reach = position + accumulator_row(half);
      float best = top[half];
      for (int n = 0; n < kKeys / 8; n++) {
        for (int j = 0; j < 2; j++) {
          float& x = s[n][2 * half + j];
          x *= scale;
          if (masked && first + n * 8 + threadIdx.x % 4 * 2 + j > reach) x = -INFINITY;
          best = fmaxf(best, x);
        }
      }
      best = row_max(best);
      shrink[half] = fast_exp2(top[half] - best);
      top[half] = best;
      float part = 0;
      for (int n = 0; n < kKeys / 8; n++) {
        for (int j = 0; j < 2; j++) {
          float& x = s[n][2 * half + j];
          x = fast_exp2(x - best);
          part += x;
        }
      }
      sum[half] = sum[half] * shrink[half] + part;
    }
  }
};

// Grid (query tiles, pairs of heads).
template <int D>
DEVICE void forward(const bf16* qk, const bf16* qkv, const AttentionTile* tile_list, const Segment* segments,
                    const ContextRange* ranges, bf16* out, float* lse, uint32_t out_stride, uint32_t heads,
                    uint32_t kv_heads) {
  DYN_SMEM(memory, 128);
  auto& tiles = aligned_tiles<ForwardTiles<D>>(memory);
  const AttentionTile tile = tile_list[blockIdx.x];
  const auto [kv, first_head, active] = heads_of_block(heads, kv_heads);
  const Widths w = {heads, kv_heads, D};
  const uint32_t keys = tile.position + tile.rows, steps = (keys + kKeys - 1) / kKeys;
  if (threadIdx.x < kStages) {
    mbarrier_init(&tiles.full_k[threadIdx.x], WARPGROUP);
    mbarrier_init(&tiles.full_v[threadIdx.x], WARPGROUP);
    mbarrier_init(&tiles.empty_k[threadIdx.x], active * WARPGROUP);
    mbarrier_init(&tiles.empty_v[threadIdx.x], active * WARPGROUP);
  }
  __syncthreads();

  if (threadIdx.x < WARPGROUP) {
    give_registers<kCopying>();
    const PackedContext context = packed_context(qk, qkv, segments[tile.segment], ranges, w, kv);
    Copies copies;
    // Queries come with the first keys.
    for (uint32_t c = 0; c < active; c++) {
      const bf16* q = qk + size_t(tile.row) * w.qk() + (first_head + c) * D;
      copy_swizzled<D, kTile>(tiles.q[c], tile.rows, qk, [&](uint32_t r) { return q + size_t(r) * w.qk(); });
    }
    for (uint32_t step = 0; step < steps; step++) {
      const uint32_t stage = step % kStages, before = (step / kStages + 1) % 2;
      const uint32_t first = step * kKeys, rows = min(keys - first, uint32_t(kKeys));
      mbarrier_wait(&tiles.empty_k[stage], before);
      copy_swizzled<D, kKeys>(tiles.k[stage], rows, qk, [&](uint32_t r) { return context.key(first + r); });
      copies.commit(&tiles.full_k[stage]);
      mbarrier_wait(&tiles.empty_v[stage], before);
      copy_swizzled<D, kKeys>(tiles.v[stage], rows, qk, [&](uint32_t r) { return context.value(first + r); });
      copies.commit(&tiles.full_v[stage]);
    }
    copies.finish();
    return;
  }

  take_registers<kComputing>();
  if (consumer() >= active) return;
  const uint32_t head = first_head + consumer();
  const float scale = LOG2E / sqrtf(float(D));
  const bf16* q = tiles.q[consumer()];
  float acc[D / 8][4] = {}, s[kKeys / 8][4];
  uint32_t p[kKeys / 16][4];
  Softmax softmax;
  mbarrier_wait(&tiles.full_k[0], 0);
  wgmma_fence();
  issue_rows<D, kKeys>(s, q, tiles.k[0]);
  wgmma_commit();
  wgmma_wait<0>(s);
  mbarrier_arrive(&tiles.empty_k[0]);
  softmax.take(s, 0, tile.position, scale);
  pack_accumulator<kKeys>(p, s);
  for (uint32_t step = 0; step + 1 < steps; step++) {
    const uint32_t stage = step % kStages;
    const uint32_t next = (step + 1) % kStages, next_full = (step + 1) / kStages % 2;
    mbarrier_wait(&tiles.full_k[next], next_full);
    wgmma_fence();
    issue_rows<D, kKeys>(s, q, tiles.k[next]);
    wgmma_commit();
    // These values were copied before the keys that have been waited for.
    wgmma_fence();
    issue_accumulator<D, kKeys>(acc, p, tiles.v[stage]);
    wgmma_commit();
    wgmma_wait<1>(s);
    mbarrier_arrive(&tiles.empty_k[next]);
    softmax.take(s, (step + 1) * kKeys, tile.position, scale);
    wgmma_wait<0>(acc);
    mbarrier_arrive(&tiles.empty_v[stage]);
    for (int n = 0; n < D / 8; n++) {
      for (int i = 0; i < 4; i++) acc[n][i] *= softmax.shrink[i / 2];
    }
    pack_accumulator<kKeys>(p, s);
  }
  const uint32_t last = steps - 1;
  mbarrier_wait(&tiles.full_v[last % kStages], last / kStages % 2);
  wgmma_fence();
  issue_accumulator<D, kKeys>(acc, p, tiles.v[last % kStages]);
  wgmma_commit();
  wgmma_wait<0>(acc);

  for (int half = 0; half < 2; half++) softmax.sum[half] = row_sum(softmax.sum[half]);
  store_rows<D>(out + size_t(tile.row) * out_stride + head * D, out_stride, tile.rows, acc, 1.0f / softmax.sum[0],
                1.0f / softmax.sum[1]);
  if (threadIdx.x % 4 == 0) {
    for (int half = 0; half < 2; half++) {
      const uint32_t row = accumulator_row(half);
      if (row < tile.rows) {
        lse[size_t(tile.row + row) * heads + head] = softmax.top[half] * LN2 + logf(softmax.sum[half]);
      }
    }
  }
}

// ---- backward: dq

template <int D>
struct BackwardQTiles {
  bf16 q[kConsumers][kTile * D];
  bf16 d_out[kConsumers][kTile * D];
  bf16 k[kStages][kTile * D];
  bf16 v[kStages][kTile * D];
  Mbarrier full[kStages], empty[kStages];
};

// Grid (saved query tiles, pairs of heads).
template <int D>
DEVICE void backward_q(const bf16* qk, const bf16* qkv, const bf16* d_out, const float* lse, const float* deltas,
                       const AttentionTile* tile_list, const Segment* segments, const ContextRange* ranges,
                       bf16* d_qk, uint32_t heads, uint32_t kv_heads) {
  DYN_SMEM(memory, 128);
  auto& tiles = aligned_tiles<BackwardQTiles<D>>(memory);
  const AttentionTile tile = tile_list[blockIdx.x];
  const auto [kv, first_head, active] = heads_of_block(heads, kv_heads);
  const Widths w = {heads, kv_heads, D};
  const uint32_t keys = tile.position + tile.rows, steps = (keys + kTile - 1) / kTile;
  if (threadIdx.x < kStages) {
    mbarrier_init(&tiles.full[threadIdx.x], WARPGROUP);
    mbarrier_init(&tiles.empty[threadIdx.x], active * WARPGROUP);
  }
  __syncthreads();

  if (threadIdx.x < WARPGROUP) {
    give_registers<kCopying>();
    const PackedContext context = packed_context(qk, qkv, segments[tile.segment], ranges, w, kv);
    Copies copies;
    // Queries and their gradients come with the first keys.
    for (uint32_t c = 0; c < active; c++) {
      const bf16* q = qk + size_t(tile.row) * w.qk() + (first_head + c) * D;
      const bf16* go = d_out + size_t(tile.row) * w.q() + (first_head + c) * D;
      copy_swizzled<D, kTile>(tiles.q[c], tile.rows, qk, [&](uint32_t r) { return q + size_t(r) * w.qk(); });
      copy_swizzled<D, kTile>(tiles.d_out[c], tile.rows, qk, [&](uint32_t r) { return go + size_t(r) * w.q(); });
    }
    for (uint32_t step = 0; step < steps; step++) {
      const uint32_t stage = step % kStages;
      const uint32_t first = step * kTile, rows = min(keys - first, uint32_t(kTile));
      mbarrier_wait(&tiles.empty[stage], (step / kStages + 1) % 2);
      copy_swizzled<D, kTile>(tiles.k[stage], rows, qk, [&](uint32_t r) { return context.key(first + r); });
      copy_swizzled<D, kTile>(tiles.v[stage], rows, qk, [&](uint32_t r) { return context.value(first + r); });
      copies.commit(&tiles.full[stage]);
    }
    copies.finish();
    return;
  }

  take_registers<kComputing>();
  if (consumer() >= active) return;
  const uint32_t head = first_head + consumer();
  float row_lse[2], row_delta[2];
  for (int half = 0; half < 2; half++) {
    const uint32_t row = accumulator_row(half);
    const bool valid = row < tile.rows;
    const size_t at = size_t(tile.row + row) * heads + head;
    row_lse[half] = valid ? lse[at] * LOG2E : 0.0f;
    row_delta[half] = valid ? deltas[at] : 0.0f;
  }
  const float scale = 1.0f / sqrtf(float(D));
  float dq[D / 8][4] = {}, s[kTile / 8][4], dp[kTile / 8][4];
  for (uint32_t step = 0; step < steps; step++) {
    const uint32_t stage = step % kStages, first = step * kTile;
    mbarrier_wait(&tiles.full[stage], step / kStages % 2);
    wgmma_fence();
    issue_rows<D, kTile>(s, tiles.q[consumer()], tiles.k[stage]);
    issue_rows<D, kTile>(dp, tiles.d_out[consumer()], tiles.v[stage]);
    wgmma_commit();
    wgmma_wait<0>(s, dp);
    for (int half = 0; half < 2; half++) {
      const uint32_t reach = tile.position + accumulator_row(half);
      for (int n = 0; n < kTile / 8; n++) {
        for (int j = 0; j < 2; j++) {
          float& x = s[n][2 * half + j];
          const uint32_t position = first + n * 8 + threadIdx.x % 4 * 2 + j;
          const float p = position <= reach ? fast_exp2(x * (scale * LOG2E) - row_lse[half]) : 0.0f;
          x = p * (dp[n][2 * half + j] - row_delta[half]) * scale;
        }
      }
    }
    uint32_t ds[kTile / 16][4];
    pack_accumulator<kTile>(ds, s);
    wgmma_fence();
    issue_accumulator<D, kTile>(dq, ds, tiles.k[stage]);
    wgmma_commit();
    wgmma_wait<0>(dq);
    mbarrier_arrive(&tiles.empty[stage]);
  }
  store_rows<D>(d_qk + size_t(tile.row) * w.qk() + head * D, w.qk(), tile.rows, dq, 1.0f, 1.0f);
}

// ---- backward: dk and dv

template <int D>
struct BackwardKvTiles {
  bf16 k[kTile * D];
  bf16 v[kTile * D];
  // The second head's are where the second warpgroup leaves its sums.
  bf16 q[kConsumers][kStages][kTile * D];
  bf16 d_out[kConsumers][kStages][kTile * D];
  float lse[kConsumers][kStages][kTile];
  float delta[kConsumers][kStages][kTile];
  Mbarrier full[kStages], empty[kStages], drained, summed;
};

// A step of the keys' backward: queries that see the keys, of a pair of heads.
struct QueryStep {
  uint32_t number;
  size_t row;       // first packed row
  uint32_t rows;    // of the step
  uint32_t first;   // within its segment
  uint32_t prefix;  // rows that precede the segment's in its context
  uint32_t key;     // position of the tile's first key in that context
  uint32_t head;    // first of the pair
  uint32_t active;  // heads of the pair
};

// Calls `f` for each step in order, on both sides of the barriers.
template <typename F>
DEVICE void each_step(AttentionTile tile, const Segment* segments, const ContextUser* users, uint32_t kv,
                      uint32_t group, F f) {
  const Segment owner = segments[tile.segment];
  uint32_t number = 0;
  for (uint32_t u = owner.first_user; u < owner.last_user; u++) {
    const Segment seen = segments[users[u].segment];
    const uint32_t key = users[u].position + tile.position;
    const uint32_t skip = key > seen.prefix_rows ? (key - seen.prefix_rows) / kTile * kTile : 0;
    for (uint32_t first = skip; first < seen.rows; first += kTile) {
      for (uint32_t head = 0; head < group; head += kConsumers) {
        f(QueryStep{number, seen.row + first, min(seen.rows - first, uint32_t(kTile)), first, seen.prefix_rows, key,
                    kv * group + head, min(group - head, uint32_t(kConsumers))});
        number++;
      }
    }
  }
}

// Grid (key tiles, KV heads).
template <int D>
DEVICE void backward_kv(const bf16* qk, const bf16* qkv, const bf16* d_out, const float* lse,
                        const float* deltas, const AttentionTile* tile_list, const Segment* segments,
                        const ContextUser* users, bf16* d_qk, bf16* d_qkv, uint32_t d_qkv_stride, uint32_t heads,
                        uint32_t kv_heads) {
  DYN_SMEM(memory, 128);
  auto& tiles = aligned_tiles<BackwardKvTiles<D>>(memory);
  const AttentionTile tile = tile_list[blockIdx.x];
  const uint32_t kv = blockIdx.y, group = heads / kv_heads;
  const uint32_t computing = min(group, uint32_t(kConsumers));
  const Widths w = {heads, kv_heads, D};
  if (threadIdx.x < kStages) {
    mbarrier_init(&tiles.full[threadIdx.x], WARPGROUP);
    mbarrier_init(&tiles.empty[threadIdx.x], computing * WARPGROUP);
  }
  if (threadIdx.x == 0) {
    mbarrier_init(&tiles.drained, WARPGROUP);
    mbarrier_init(&tiles.summed, WARPGROUP);
  }
  __syncthreads();

  if (threadIdx.x < WARPGROUP) {
    give_registers<kCopying>();
    const bf16* k = qk + size_t(tile.row) * w.qk() + w.q() + kv * D;
    const bf16* v = qkv + size_t(tile.row) * w.qkv() + w.qk() + kv * D;
    // Keys and values come with the first queries.
    copy_swizzled<D, kTile>(tiles.k, tile.rows, k, [&](uint32_t r) { return k + size_t(r) * w.qk(); });
    copy_swizzled<D, kTile>(tiles.v, tile.rows, k, [&](uint32_t r) { return v + size_t(r) * w.qkv(); });
    Copies copies;
    each_step(tile, segments, users, kv, group, [&](QueryStep step) {
      const uint32_t stage = step.number % kStages;
      mbarrier_wait(&tiles.empty[stage], (step.number / kStages + 1) % 2);
      for (uint32_t c = 0; c < step.active; c++) {
        const uint32_t head = step.head + c;
        const bf16* q = qk + step.row * w.qk() + head * D;
        const bf16* go = d_out + step.row * w.q() + head * D;
        copy_swizzled<D, kTile>(tiles.q[c][stage], step.rows, k, [&](uint32_t r) { return q + size_t(r) * w.qk(); });
        copy_swizzled<D, kTile>(tiles.d_out[c][stage], step.rows, k, [&](uint32_t r) { return go + size_t(r) * w.q(); });
        if (threadIdx.x < kTile) {
          const bool valid = threadIdx.x < step.rows;
          const size_t at = (step.row + threadIdx.x) * heads + head;
          tiles.lse[c][stage][threadIdx.x] = valid ? lse[at] * LOG2E : 0.0f;
          tiles.delta[c][stage][threadIdx.x] = valid ? deltas[at] : 0.0f;
        }
      }
      copies.commit(&tiles.full[stage]);
    });
    copies.finish();
    return;
  }

  take_registers<kComputing>();
  const uint32_t mine = consumer();
  if (mine >= computing) return;
  const float scale = 1.0f / sqrtf(float(D));
  float dk[D / 8][4] = {}, dv[D / 8][4] = {};
  each_step(tile, segments, users, kv, group, [&](QueryStep step) {
    const uint32_t stage = step.number % kStages;
    mbarrier_wait(&tiles.full[stage], step.number / kStages % 2);
    if (mine < step.active) {
      float s[kTile / 8][4], dp[kTile / 8][4];
      uint32_t p[kTile / 16][4], ds[kTile / 16][4];
      wgmma_fence();
      issue_rows<D, kTile>(s, tiles.k, tiles.q[mine][stage]);
      issue_rows<D, kTile>(dp, tiles.v, tiles.d_out[mine][stage]);
      wgmma_commit();
      wgmma_wait<0>(s, dp);
      const float* row_lse = tiles.lse[mine][stage];
      const float* row_delta = tiles.delta[mine][stage];
      for (int n = 0; n < kTile / 8; n++) {
        for (int i = 0; i < 4; i++) {
          const uint32_t key = step.key + accumulator_row(i / 2);
          const uint32_t query = n * 8 + threadIdx.x % 4 * 2 + i % 2;
          // Queries beyond the segment are zero rows, but exp2(0 - 0) is 1.
          const bool sees = query < step.rows && key <= step.prefix + step.first + query;
          const float x = sees ? fast_exp2(s[n][i] * (scale * LOG2E) - row_lse[query]) : 0.0f;
          s[n][i] = x;
          dp[n][i] = x * (dp[n][i] - row_delta[query]) * scale;
        }
      }
      pack_accumulator<kTile>(p, s);
      pack_accumulator<kTile>(ds, dp);
      wgmma_fence();
      issue_accumulator<D, kTile>(dv, p, tiles.d_out[mine][stage]);
      issue_accumulator<D, kTile>(dk, ds, tiles.q[mine][stage]);
      wgmma_commit();
      wgmma_wait<0>(dv, dk);
    }
    mbarrier_arrive(&tiles.empty[stage]);
  });

  // The second warpgroup's sums, thread by thread, where only it has read.
  float* dk_sums = reinterpret_cast<float*>(tiles.q[1]);
  float* dv_sums = reinterpret_cast<float*>(tiles.d_out[1]);
  static_assert(sizeof(tiles.q[1]) == WARPGROUP * sizeof(dk), "the sums are as large as two stages");
  const uint32_t thread = threadIdx.x % WARPGROUP;
  if (mine == 1) {
    // All four warps: one's wait says nothing of another's products.
    mbarrier_arrive(&tiles.drained);
    mbarrier_wait(&tiles.drained, 0);
    for (int i = 0; i < D / 2; i++) {
      dk_sums[i * WARPGROUP + thread] = dk[i / 4][i % 4];
      dv_sums[i * WARPGROUP + thread] = dv[i / 4][i % 4];
    }
    mbarrier_arrive(&tiles.summed);
    return;
  }
  if (computing == kConsumers) {
    mbarrier_wait(&tiles.summed, 0);
    for (int i = 0; i < D / 2; i++) {
      dk[i / 4][i % 4] += dk_sums[i * WARPGROUP + thread];
      dv[i / 4][i % 4] += dv_sums[i * WARPGROUP + thread];
    }
  }
  // A tile that nobody sees cannot be: a segment sees itself.
  store_rows<D>(d_qk + size_t(tile.row) * w.qk() + w.q() + kv * D, w.qk(), tile.rows, dk, 1.0f, 1.0f);
  store_rows<D>(d_qkv + size_t(tile.row) * d_qkv_stride + w.qk() + kv * D, d_qkv_stride, tile.rows, dv, 1.0f, 1.0f);
}

#define ATTENTION_WGMMA(D)                                                                                        \
  KERNEL void LAUNCH_BOUNDS(kThreads, 1) attention_wgmma_forward_##D(                                             \
      const bf16* qk, const bf16* qkv, const AttentionTile* tiles, const Segment* segments,                       \
      const ContextRange* ranges, bf16* out, float* lse, uint32_t out_stride, uint32_t heads,                     \
      uint32_t kv_heads) {                                                                                        \
    forward<D>(qk, qkv, tiles, segments, ranges, out, lse, out_stride, heads, kv_heads);                          \
  }                                                                                                               \
  KERNEL_EXPORT(attention_wgmma_forward_##D)                                                                      \
  KERNEL void LAUNCH_BOUNDS(kThreads, 1) attention_wgmma_backward_q_##D(                                          \
      const bf16* qk, const bf16* qkv, const bf16* d_out, const float* lse, const float* deltas,                  \
      const AttentionTile* tiles, const Segment* segments, const ContextRange* ranges, bf16* d_qk,                \
      uint32_t heads, uint32_t kv_heads) {                                                                        \
    backward_q<D>(qk, qkv, d_out, lse, deltas, tiles, segments, ranges, d_qk, heads, kv_heads);                   \
  }                                                                                                               \
  KERNEL_EXPORT(attention_wgmma_backward_q_##D)                                                                   \
  KERNEL void LAUNCH_BOUNDS(kThreads, 1) attention_wgmma_backward_kv_##D(                                         \
      const bf16* qk, const bf16* qkv, const bf16* d_out, const float* lse, const float* deltas,                  \
      const AttentionTile* tiles, const Segment* segments, const ContextUser* users, bf16* d_qk, bf16* d_qkv,     \
      uint32_t d_qkv_stride, uint32_t heads, uint32_t kv_heads) {                                                 \
    backward_kv<D>(qk, qkv, d_out, lse, deltas, tiles, segments, users, d_qk, d_qkv, d_qkv_stride, heads,         \
                   kv_heads);                                                                                     \
  }                                                                                                               \
  KERNEL_EXPORT(attention_wgmma_backward_kv_##D)

ATTENTION_WGMMA(64)
ATTENTION_WGMMA(128)
