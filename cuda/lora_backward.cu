// LoRA's backward where all rows go through one adapter: ds = c dy B and
// dB += dy^T s from one read of dy. (dA += ds^T x follows in lora.cu.)
//
// A block takes up to 512 columns of one part's dy over a chunk of rows, in
// tiles of 64 by 64. Both products read a tile from shared memory: a warp sums
// ds of its 16 rows over the block's columns, and dB of its 16 columns of each
// tile over the block's rows. dB stays in registers until the rows are through,
// ds until the columns are: no sum crosses warps. ds's f32 sums over a block's
// columns and dB's over its rows are added in order by kernels that follow, so
// two runs do not differ.
//
// Ranks above 32 take the kernels of lora.cu: dB would not fit into registers
// at a width at which the sums of ds weigh less than dy.
//
// Copies are three tiles ahead (24 KiB a block). FLOPs 4 rows * out * r; least
// bytes in src/ops/cost.rs, and on top of them, written and read once each,
// 4 r bytes of ds for each row and chunk of columns, and of dB for each column
// and chunk of rows.
#include "common.cuh"

constexpr int kThreads = 128;
constexpr int kTile = 64;
// Eight beyond a multiple of 64: eight rows lie in different banks.
constexpr int kStride = kTile + 8;
constexpr int kStages = 4;
// Columns of dy that a block takes at most.
constexpr int kMostColumns = 512;

// A group of layers that share their input, and how its work is cut.
struct Group {
  const LoraFactor* factors;  // of its parts, by adapter
  uint32_t adapters, adapter, inputs;
  uint32_t end0, end1, end2;  // the parts' last columns of dy
  uint32_t rows, chunk_columns;
};

// A part of it.
struct Part {
  uint32_t index;
  LoraFactor f;
  uint32_t start, width;  // its columns of dy
  uint32_t chunks;        // of those; none where the adapter leaves it alone
  size_t sums;            // where its sums of ds begin: [chunks][rows][r_padded]
  size_t factor;          // where its gradients begin in the group's: A, then B
};

DEVICE void load_part(Part& part, const Group& group) {
  const uint32_t i = part.index;
  part.f = group.factors[size_t(i) * group.adapters + group.adapter];
  part.start = i == 0 ? 0 : i == 1 ? group.end0 : group.end1;
  part.width = (i == 0 ? group.end0 : i == 1 ? group.end1 : group.end2) - part.start;
  part.chunks = part.f.b == nullptr ? 0 : (part.width + group.chunk_columns - 1) / group.chunk_columns;
}

DEVICE Part first_part(const Group& group) {
  Part part = {};
  load_part(part, group);
  return part;
}

DEVICE void next_part(Part& part, const Group& group) {
  part.sums += size_t(part.chunks) * group.rows * part.f.r_padded;
  part.factor += size_t(part.f.r) * (group.inputs + part.width);
  part.index++;
  load_part(part, group);
}

template <int N>
struct BackwardTiles {
  // The block's rows of B.
  bf16 b[kMostColumns * (N + 8)];
  struct {
    bf16 dy[kTile * kStride];
    // With the first tile of its rows.
    bf16 s[kTile * (N + 8)];
  } stage[kStages];
};

// Grid (column chunks of the adapted parts, row chunks). N columns of s, at
// least the widest part's. Sums of ds go to `sums`, unscaled. With one chunk of
// rows, `gradients` holds those of the group and is added to; else row chunk c's
// share of all `elements` is at gradients + c * elements.
template <int N>
DEVICE void backward(const bf16* dy, uint32_t dy_stride, const bf16* s, uint32_t s_stride, const Group& group,
                     float* sums, float* gradients, uint64_t elements, uint32_t chunk_rows) {
  DYN_SMEM(memory, 16);
  auto& tiles = *reinterpret_cast<BackwardTiles<N>*>(memory);
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  Part part = first_part(group);
  uint32_t chunk = blockIdx.x;
  while (chunk >= part.chunks) {
    chunk -= part.chunks;
    next_part(part, group);
  }
  const LoraFactor f = part.f;
  const uint32_t first = chunk * group.chunk_columns, columns = min(part.width - first, group.chunk_columns);
  const uint32_t begin = blockIdx.y * chunk_rows, end = min(begin + chunk_rows, group.rows);
  dy += part.start + first;
  s += f.s_column;
  sums += part.sums + size_t(chunk) * group.rows * f.r_padded;

  // Of the tile to be copied next; each step copies one, in order.
  uint32_t next_row = begin, next_column = 0;
  auto issue = [&](uint32_t step) {
    if (next_row < end) {
      auto& stage = tiles.stage[step % kStages];
      const uint32_t valid = min(end - next_row, uint32_t(kTile));
      copy_tile<kTile, kTile, kStride, kThreads>(stage.dy, dy + size_t(next_row) * dy_stride + next_column,
                                                 dy_stride, valid, columns - next_column);
      if (next_column == 0) {
        copy_tile<kTile, N, N + 8, kThreads>(stage.s, s + size_t(next_row) * s_stride, s_stride, valid, f.r_padded);
      }
      next_column += kTile;
      if (next_column >= columns) {
        next_column = 0;
        next_row += kTile;
      }
    }
    cp_async_commit();
  };
  copy_tile<kMostColumns, N, N + 8, kThreads>(tiles.b, f.b + size_t(first) * f.r_padded, f.r_padded, columns,
                                              f.r_padded);
  for (int i = 0; i < kStages - 1; i++) issue(i);

  float db[kMostColumns / kTile][N / 8][4] = {};
  uint32_t step = 0;
  for (uint32_t row = begin; row < end; row += kTile) {
    float ds[N / 8][4] = {};
    // s of the tile's rows, as the right operand of dB.
    uint32_t right[kTile / 16][N / 16][2][2];
    // Unrolled, so that dB stays in registers.
#pragma unroll
    for (int t = 0; t < kMostColumns / kTile; t++) {
      if (t * kTile >= columns) break;
      cp_async_wait<kStages - 2>();
      // What was copied is there for all, and the tile of the step before is free.
      __syncthreads();
      issue(step + kStages - 1);
      const auto& stage = tiles.stage[step % kStages];
      step++;
      if (t == 0) {
        for (int k = 0; k < kTile; k += 16) {
          for (int n = 0; n < N; n += 16) load_b_trans(right[k / 16][n / 16], stage.s + k * (N + 8) + n, N + 8);
        }
      }
      for (int k = 0; k < kTile; k += 16) {
        uint32_t a[4];
        // Sixteen columns of the tile by this warp's rows.
        load_a(a, stage.dy + warp * 16 * kStride + k, kStride);
        for (int n = 0; n < N; n += 16) {
          uint32_t b[2][2];
          load_b_trans(b, tiles.b + (t * kTile + k) * (N + 8) + n, N + 8);
          mma_bf16(ds[n / 8], a, b[0]);
          mma_bf16(ds[n / 8 + 1], a, b[1]);
        }
        // Sixteen rows of the tile by this warp's columns.
        load_a_trans(a, stage.dy + k * kStride + warp * 16, kStride);
        for (int n = 0; n < N; n += 16) {
          mma_bf16(db[t][n / 8], a, right[k / 16][n / 16][0]);
          mma_bf16(db[t][n / 8 + 1], a, right[k / 16][n / 16][1]);
        }
      }
    }
    for (int n = 0; n < N / 8; n++) {
      const uint32_t column = n * 8 + lane % 4 * 2;
      if (column >= f.r_padded) continue;
      for (int half = 0; half < 2; half++) {
        const uint32_t r = row + warp * 16 + half * 8 + lane / 4;
        if (r >= end) continue;
        store_words(sums + size_t(r) * f.r_padded + column,
                    {bits_of_float(ds[n][2 * half]), bits_of_float(ds[n][2 * half + 1])});
      }
    }
  }

  const bool whole = gridDim.y == 1;
  float* to = gradients + blockIdx.y * elements + part.factor + size_t(f.r) * group.inputs;
#pragma unroll
  for (int t = 0; t < kMostColumns / kTile; t++) {
    for (int n = 0; n < N / 8; n++) {
      for (int i = 0; i < 4; i++) {
        const uint32_t m = t * kTile + warp * 16 + i / 2 * 8 + lane / 4;
        const uint32_t k = n * 8 + lane % 4 * 2 + i % 2;
        if (m >= columns || k >= f.r) continue;
        float* one = to + size_t(first + m) * f.r + k;
        *one = whole ? *one + db[t][n][i] : db[t][n][i];
      }
    }
  }
}

#define LORA_BACKWARD(N)                                                                                       \
  KERNEL void LAUNCH_BOUNDS(128) lora_backward_##N(                                                            \
      const bf16* dy, uint32_t dy_stride, const bf16* s, uint32_t s_stride, const LoraFactor* factors,         \
      uint32_t adapters, uint32_t adapter, float* sums, float* gradients, uint64_t elements, uint32_t inputs,  \
      uint32_t end0, uint32_t end1, uint32_t end2, uint32_t rows, uint32_t chunk_rows,                         \
      uint32_t chunk_columns) {                                                                                \
    const Group group = {factors, adapters, adapter, inputs, end0, end1, end2, rows, chunk_columns};           \
    backward<N>(dy, dy_stride, s, s_stride, group, sums, gradients, elements, chunk_rows);                     \
  }                                                                                                            \
  KERNEL_EXPORT(lora_backward_##N)

LORA_BACKWARD(16)
LORA_BACKWARD(32)

// Grid (blocks, parts): ds = c times the column chunks' sums, added in order.
// Four columns a step.
KERNEL void LAUNCH_BOUNDS(256)
lora_backward_sum(const float* sums, const LoraFactor* factors, uint32_t adapters, uint32_t adapter, bf16* ds,
                  uint32_t ds_stride, uint32_t end0, uint32_t end1, uint32_t end2, uint32_t rows,
                  uint32_t chunk_columns) {
  const Group group = {factors, adapters, adapter, 0, end0, end1, end2, rows, chunk_columns};
  Part part = first_part(group);
  while (part.index < blockIdx.y) next_part(part, group);
  const uint32_t wide = part.f.r_padded, n = part.chunks > 0 ? rows * wide : 0;
  const uint32_t step = 4 * gridDim.x * blockDim.x;
  for (uint32_t i = 4 * (blockIdx.x * blockDim.x + threadIdx.x); i < n; i += step) {
    float sum[4] = {};
    for (uint32_t chunk = 0; chunk < part.chunks; chunk++) {
      float x[4];
      load4(x, sums + part.sums + size_t(chunk) * n + i);
      for (int j = 0; j < 4; j++) sum[j] += x[j];
    }
    for (int j = 0; j < 4; j++) sum[j] *= part.f.scale;
    store_words(ds + size_t(i / wide) * ds_stride + part.f.s_column + i % wide,
                {pack_bf16(sum[0], sum[1]), pack_bf16(sum[2], sum[3])});
  }
}
KERNEL_EXPORT(lora_backward_sum)
