// LoRA (arXiv 2106.09685), rows grouped by adapter.
//
// With scale c, per adapted row and part p of a group of layers that share
// their input: s = c x A^T, y += s B^T; backward ds = c dy B, dx += ds A, and
// dA += ds^T x, dB += dy^T s in f32. Rows are covered by AdapterTiles (up to
// 64 rows of one adapter); rows of the base model are in none and are neither
// read nor written. Ranks are padded to 16 with zero rows of A and columns of
// B; part p of an adapter has its columns of s at LoraFactor::s_column.
//
// Where one adapter's rows come first in a batch, expand and dX are part of the
// base product's reduction: lora_place puts the factors beside the weight (see
// src/ops/cuda/linear.rs). Else they are kernels of their own: y (and dx) is
// read and written once more, 4 bytes an element, and rounded to bf16 twice, as
// PEFT in bf16 does.
//
// All products: blocks of 4 warps on 64 rows (or 64 columns of the wide
// operand), tiles of 64 in the reduction, copied one ahead (cp.async), m16n8k16
// on tensor cores. Sums over rows are split in fixed chunks that a second
// kernel adds in order: two runs do not differ. Where all rows of a backward go
// through one adapter of small rank, lora_backward.cu makes ds and dB.
//
// FLOPs 2 rows * (in + out) * r a pass; least bytes in src/ops/cost.rs.
#include "common.cuh"

constexpr int kThreads = 128;
constexpr int kTile = 64;
// Eight beyond a multiple of 64: eight rows lie in different banks.
constexpr int kStride = kTile + 8;

// One module's factors in the flat f32 master copy and in compute form.
struct LoraSource {
  uint64_t a_from, b_from;
  bf16* a;
  bf16* b;
  uint32_t r, r_padded, inputs, outputs;
};

// Grid (blocks, factors): master copy to bf16, ranks padded with zeros.
KERNEL void LAUNCH_BOUNDS(256) lora_sync(const float* params, const LoraSource* sources) {
  const LoraSource f = sources[blockIdx.y];
  const size_t stride = size_t(gridDim.x) * blockDim.x;
  const size_t first = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
  for (size_t i = first; i < size_t(f.r_padded) * f.inputs; i += stride) {
    const bool inside = i / f.inputs < f.r;
    f.a[i] = to_bf16(inside ? params[f.a_from + i] : 0.0f);
  }
  for (size_t i = first; i < size_t(f.outputs) * f.r_padded; i += stride) {
    const size_t row = i / f.r_padded, column = i % f.r_padded;
    f.b[i] = to_bf16(column < f.r ? params[f.b_from + row * f.r + column] : 0.0f);
  }
}
KERNEL_EXPORT(lora_sync)

// Grid (blocks, parts): one adapter's factors from compute form to beside a
// weight [outputs, inputs], so that it reads [[W, B], [A, 0]]: B of part p in
// its own rows and its own columns of s, with zeros in the other parts' columns;
// A one part below the other. `width` columns of s; end0, end1 are the last rows
// of the first parts. Eight elements a step.
KERNEL void LAUNCH_BOUNDS(256)
lora_place(const LoraFactor* factors, uint32_t adapters, uint32_t adapter, bf16* weight, uint32_t stride,
           uint32_t inputs, uint32_t outputs, uint32_t width, uint32_t end0, uint32_t end1) {
  const uint32_t part = blockIdx.y;
  const LoraFactor f = factors[size_t(part) * adapters + adapter];
  const uint32_t start = part == 0 ? 0 : part == 1 ? end0 : end1;
  const uint32_t end = part + 1 == gridDim.y ? outputs : part == 0 ? end0 : end1;
  const uint32_t step = gridDim.x * blockDim.x, first = blockIdx.x * blockDim.x + threadIdx.x;
  const bf16x8 zero = {};
  for (uint32_t i = first; i < (end - start) * (width / 8); i += step) {
    const uint32_t row = i / (width / 8), column = i % (width / 8) * 8;
    const bool own = f.b != nullptr && column >= f.s_column && column < f.s_column + f.r_padded;
    *reinterpret_cast<bf16x8*>(weight + size_t(start + row) * stride + inputs + column) =
        own ? *reinterpret_cast<const bf16x8*>(f.b + size_t(row) * f.r_padded + column - f.s_column) : zero;
  }
  if (f.a == nullptr) return;
  for (uint32_t i = first; i < f.r_padded * (inputs / 8); i += step) {
    const uint32_t row = i / (inputs / 8), column = i % (inputs / 8) * 8;
    *reinterpret_cast<bf16x8*>(weight + size_t(outputs + f.s_column + row) * stride + column) =
        *reinterpret_cast<const bf16x8*>(f.a + size_t(row) * inputs + column);
  }
}
KERNEL_EXPORT(lora_place)

// ---- dropout

// SplitMix64's finaliser, as `rng::mix`.
DEVICE uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

// Factors of inputs column .. column + 8 of a row: 0 where dropped, else
// 1 / (1 - p). The CPU draws the same.
DEVICE void dropout_mask(float (&keep)[8], uint64_t row_key, uint64_t place, uint32_t column, float p) {
  const uint64_t key = mix(row_key ^ place * 0x9e3779b97f4a7c15ull);
  for (int half = 0; half < 2; half++) {
    const Philox bits = philox(column / 4 + half, 0, 0, 0, key);
    for (int j = 0; j < 4; j++) keep[4 * half + j] = open_unit(bits.word[j]) < p ? 0.0f : 1.0f / (1.0f - p);
  }
}

// Masks a tile of x [64 rows][64 columns] in shared memory, in place.
DEVICE void mask_tile(bf16* tile, const uint64_t* keys, uint64_t place, uint32_t row, uint32_t rows,
                      uint32_t column, float p) {
  for (int i = threadIdx.x; i < kTile * kTile / 8; i += kThreads) {
    const uint32_t r = i / (kTile / 8), c = i % (kTile / 8) * 8;
    if (r >= rows) continue;
    float keep[8], x[8];
    dropout_mask(keep, keys[row + r], place, column + c, p);
    load8(x, tile + r * kStride + c);
    for (int j = 0; j < 8; j++) x[j] *= keep[j];
    store8(tile + r * kStride + c, x);
  }
}

// The factors of one part for one adapter.
DEVICE LoraFactor factor_of(const LoraFactor* factors, uint32_t adapters, uint32_t part, uint32_t adapter) {
  return factors[size_t(part) * adapters + adapter];
}

// ---- s = c x A^T, ds = c dy B

// Accumulates acc += left [64 rows][k] * right over tiles of k. N columns of
// the right operand, stored [n][k] or [k][n].
template <int N, bool RIGHT_K_MAJOR>
struct ShrinkTiles {
  bf16 left[2][kTile * kStride];
  bf16 right[2][RIGHT_K_MAJOR ? kTile * (N + 8) : N * kStride];
};

template <int N, bool RIGHT_K_MAJOR, bool DROPOUT>
DEVICE void shrink(const bf16* left, size_t left_ld, const bf16* right, size_t right_ld, uint32_t columns,
                   uint32_t depth, AdapterTile tile, float scale, bf16* s, size_t s_ld, const uint64_t* keys,
                   uint64_t place, float p) {
  DYN_SMEM(memory, 16);
  auto& tiles = *reinterpret_cast<ShrinkTiles<N, RIGHT_K_MAJOR>*>(memory);
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  float acc[N / 8][4] = {};
  auto issue = [&](uint32_t step) {
    const uint32_t k = step * kTile;
    if (k < depth) {
      const uint32_t valid = min(depth - k, uint32_t(kTile));
      copy_tile<kTile, kTile, kStride, kThreads>(tiles.left[step % 2], left + tile.row * left_ld + k, left_ld,
                                                 tile.rows, valid);
      if constexpr (RIGHT_K_MAJOR) {
        copy_tile<kTile, N, N + 8, kThreads>(tiles.right[step % 2], right + k * right_ld, right_ld, valid, columns);
      } else {
        copy_tile<N, kTile, kStride, kThreads>(tiles.right[step % 2], right + k, right_ld, columns, valid);
      }
    }
    cp_async_commit();
  };
  const uint32_t steps = (depth + kTile - 1) / kTile;
  issue(0);
  for (uint32_t step = 0; step < steps; step++) {
    issue(step + 1);
    cp_async_wait<1>();
    __syncthreads();
    bf16* a_tile = tiles.left[step % 2];
    if constexpr (DROPOUT) {
      mask_tile(a_tile, keys, place, tile.row, tile.rows, step * kTile, p);
      __syncthreads();
    }
    for (int k = 0; k < kTile; k += 16) {
      uint32_t a[4];
      load_a(a, a_tile + warp * 16 * kStride + k, kStride);
      for (int n = 0; n < N; n += 16) {
        uint32_t b[2][2];
        if constexpr (RIGHT_K_MAJOR) {
          load_b_trans(b, tiles.right[step % 2] + k * (N + 8) + n, N + 8);
        } else {
          load_b(b, tiles.right[step % 2] + n * kStride + k, kStride);
        }
        mma_bf16(acc[n / 8], a, b[0]);
        mma_bf16(acc[n / 8 + 1], a, b[1]);
      }
    }
    // The next copies go into the tile that was read just now.
    __syncthreads();
  }
  for (int n = 0; n < N / 8; n++) {
    const uint32_t column = n * 8 + lane % 4 * 2;
    if (column >= columns) continue;
    for (int half = 0; half < 2; half++) {
      const uint32_t row = warp * 16 + half * 8 + lane / 4;
      if (row >= tile.rows) continue;
      *reinterpret_cast<uint32_t*>(s + (tile.row + row) * s_ld + column) =
          pack_bf16(acc[n][2 * half] * scale, acc[n][2 * half + 1] * scale);
    }
  }
}

// Grid (column blocks of N, parts, tiles): blocks that read the same rows of x
// are neighbours, so that it comes from memory once. `place` names layer and
// group for dropout; the part is added to it.
template <int N, bool DROPOUT>
DEVICE void shrink_forward(const bf16* x, const LoraFactor* factors, uint32_t adapters, const AdapterTile* tiles,
                           bf16* s, uint32_t inputs, uint32_t x_stride, uint32_t s_stride, const uint64_t* keys,
                           uint64_t place, float p) {
  const AdapterTile tile = tiles[blockIdx.z];
  const LoraFactor f = factor_of(factors, adapters, blockIdx.y, tile.adapter);
  const uint32_t first = blockIdx.x * N;
  if (f.a == nullptr || first >= f.r_padded) return;
  shrink<N, false, DROPOUT>(x, x_stride, f.a + size_t(first) * inputs, inputs, min(f.r_padded - first, uint32_t(N)),
                            inputs, tile, f.scale, s + f.s_column + first, s_stride, keys, place + blockIdx.y, p);
}

#define LORA_SHRINK(N)                                                                                         \
  KERNEL void LAUNCH_BOUNDS(128) lora_shrink_##N(const bf16* x, const LoraFactor* factors, uint32_t adapters,  \
                                                 const AdapterTile* tiles, bf16* s, uint32_t inputs,           \
                                                 uint32_t x_stride, uint32_t s_stride) {                       \
    shrink_forward<N, false>(x, factors, adapters, tiles, s, inputs, x_stride, s_stride, nullptr, 0, 0);       \
  }                                                                                                            \
  KERNEL_EXPORT(lora_shrink_##N)                                                                               \
  KERNEL void LAUNCH_BOUNDS(128) lora_shrink_dropout_##N(                                                      \
      const bf16* x, const LoraFactor* factors, uint32_t adapters, const AdapterTile* tiles, bf16* s,          \
      uint32_t inputs, uint32_t x_stride, uint32_t s_stride, const uint64_t* keys, uint64_t place, float p) {  \
    shrink_forward<N, true>(x, factors, adapters, tiles, s, inputs, x_stride, s_stride, keys, place, p);       \
  }                                                                                                            \
  KERNEL_EXPORT(lora_shrink_dropout_##N)                                                                       \
  KERNEL void LAUNCH_BOUNDS(128) lora_shrink_backward_##N(                                                     \
      const bf16* dy, const LoraFactor* factors, uint32_t adapters, const AdapterTile* tiles, bf16* ds,        \
      uint32_t dy_stride, uint32_t s_stride, uint32_t end0, uint32_t end1, uint32_t end2) {                    \
    const AdapterTile tile = tiles[blockIdx.z];                                                                \
    const LoraFactor f = factor_of(factors, adapters, blockIdx.y, tile.adapter);                               \
    const uint32_t first = blockIdx.x * N;                                                                     \
    if (f.b == nullptr || first >= f.r_padded) return;                                                         \
    const uint32_t start = blockIdx.y == 0 ? 0 : blockIdx.y == 1 ? end0 : end1;                                \
    const uint32_t end = blockIdx.y == 0 ? end0 : blockIdx.y == 1 ? end1 : end2;                               \
    shrink<N, true, false>(dy + start, dy_stride, f.b + first, f.r_padded,                                     \
                           min(f.r_padded - first, uint32_t(N)), end - start, tile, f.scale,                   \
                           ds + f.s_column + first, s_stride, nullptr, 0, 0);                                  \
  }                                                                                                            \
  KERNEL_EXPORT(lora_shrink_backward_##N)

LORA_SHRINK(16)
LORA_SHRINK(64)

// ---- y += s B^T, dx += ds A

struct ExpandTiles {
  bf16 left[kTile * kStride];
  bf16 right[kTile * kStride];
};

// acc += left [64 rows][depth] * right [64 columns], depth in steps of 64.
template <bool RIGHT_K_MAJOR>
DEVICE void expand(float (&acc)[kTile / 8][4], const bf16* left, size_t left_ld, const bf16* right,
                   size_t right_ld, uint32_t columns, uint32_t depth, AdapterTile tile) {
  DYN_SMEM(memory, 16);
  auto& tiles = *reinterpret_cast<ExpandTiles*>(memory);
  const int warp = threadIdx.x / WARP;
  for (uint32_t k0 = 0; k0 < depth; k0 += kTile) {
    const uint32_t valid = min(depth - k0, uint32_t(kTile));
    copy_tile<kTile, kTile, kStride, kThreads>(tiles.left, left + tile.row * left_ld + k0, left_ld, tile.rows, valid);
    if constexpr (RIGHT_K_MAJOR) {
      copy_tile<kTile, kTile, kStride, kThreads>(tiles.right, right + k0 * right_ld, right_ld, valid, columns);
    } else {
      copy_tile<kTile, kTile, kStride, kThreads>(tiles.right, right + k0, right_ld, columns, valid);
    }
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    for (uint32_t k = 0; k < valid; k += 16) {
      uint32_t a[4];
      load_a(a, tiles.left + warp * 16 * kStride + k, kStride);
      for (int n = 0; n < kTile; n += 16) {
        uint32_t b[2][2];
        if constexpr (RIGHT_K_MAJOR) {
          load_b_trans(b, tiles.right + k * kStride + n, kStride);
        } else {
          load_b(b, tiles.right + n * kStride + k, kStride);
        }
        mma_bf16(acc[n / 8], a, b[0]);
        mma_bf16(acc[n / 8 + 1], a, b[1]);
      }
    }
    // The tiles are filled again by the next step or the next part.
    __syncthreads();
  }
}

// y += acc for the tile's rows and `columns` columns from y on.
DEVICE void add_tile(const float (&acc)[kTile / 8][4], bf16* y, size_t ld, uint32_t columns, AdapterTile tile) {
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  for (int n = 0; n < kTile / 8; n++) {
    const uint32_t column = n * 8 + lane % 4 * 2;
    if (column >= columns) continue;
    for (int half = 0; half < 2; half++) {
      const uint32_t row = warp * 16 + half * 8 + lane / 4;
      if (row >= tile.rows) continue;
      uint32_t* p = reinterpret_cast<uint32_t*>(y + (tile.row + row) * ld + column);
      const uint32_t old = *p;
      *p = pack_bf16(low_half(old) + acc[n][2 * half], high_half(old) + acc[n][2 * half + 1]);
    }
  }
}

// Grid (tiles, column blocks over all parts). end0 .. end2 are the parts' last
// columns of y; their widths are multiples of 16, blocks do not cross parts.
KERNEL void LAUNCH_BOUNDS(128)
lora_expand(const bf16* s, const LoraFactor* factors, uint32_t adapters, const AdapterTile* tiles, bf16* y,
            uint32_t total, uint32_t s_stride, uint32_t end0, uint32_t end1, uint32_t end2) {
  const AdapterTile tile = tiles[blockIdx.x];
  uint32_t part = 0, start = 0, end = end0, block = blockIdx.y;
  while (block >= (end - start + kTile - 1) / kTile) {
    block -= (end - start + kTile - 1) / kTile;
    part++;
    start = end;
    end = part == 1 ? end1 : end2;
  }
  const LoraFactor f = factor_of(factors, adapters, part, tile.adapter);
  if (f.b == nullptr) return;
  const uint32_t first = block * kTile;
  const uint32_t columns = min(end - start - first, uint32_t(kTile));
  float acc[kTile / 8][4] = {};
  expand<false>(acc, s + f.s_column, s_stride, f.b + size_t(first) * f.r_padded, f.r_padded, columns, f.r_padded, tile);
  add_tile(acc, y + start + first, total, columns, tile);
}
KERNEL_EXPORT(lora_expand)

// Grid (tiles, column blocks of dx): the parts' shares are added in order, each
// through its own dropout mask where there is one (keys is null without).
KERNEL void LAUNCH_BOUNDS(128)
lora_expand_backward(const bf16* ds, const LoraFactor* factors, uint32_t adapters, uint32_t parts,
                     const AdapterTile* tiles, bf16* dx, uint32_t inputs, uint32_t s_stride, const uint64_t* keys,
                     uint64_t place, float p) {
  const AdapterTile tile = tiles[blockIdx.x];
  const uint32_t first = blockIdx.y * kTile;
  const uint32_t columns = min(inputs - first, uint32_t(kTile));
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  float sum[kTile / 8][4] = {};
  for (uint32_t part = 0; part < parts; part++) {
    const LoraFactor f = factor_of(factors, adapters, part, tile.adapter);
    if (f.a == nullptr) continue;
    if (keys == nullptr) {
      expand<true>(sum, ds + f.s_column, s_stride, f.a + first, inputs, columns, f.r_padded, tile);
      continue;
    }
    float acc[kTile / 8][4] = {};
    expand<true>(acc, ds + f.s_column, s_stride, f.a + first, inputs, columns, f.r_padded, tile);
    for (int half = 0; half < 2; half++) {
      const uint32_t row = warp * 16 + half * 8 + lane / 4;
      if (row >= tile.rows) continue;
      for (int n = 0; n < kTile / 8; n++) {
        float keep[8];
        dropout_mask(keep, keys[tile.row + row], place + part, first + n * 8, p);
        for (int j = 0; j < 8; j++) {
          if (j / 2 == lane % 4) sum[n][2 * half + j % 2] += acc[n][2 * half + j % 2] * keep[j];
        }
      }
    }
  }
  add_tile(sum, dx + first, inputs, columns, tile);
}
KERNEL_EXPORT(lora_expand_backward)

// ---- dA += ds^T x, dB += dy^T s

template <int N>
struct GradientTiles {
  bf16 wide[2][kTile * kStride];
  bf16 narrow[2][kTile * (N + 8)];
};

// Of three parts' values, that of one.
DEVICE uint32_t of_part(uint32_t part, uint32_t v0, uint32_t v1, uint32_t v2) {
  return part == 0 ? v0 : part == 1 ? v1 : v2;
}

DEVICE uint32_t padded(uint32_t r) { return (r + 15) / 16 * 16; }

// All gradients of a group, wide^T narrow over rows: dA of x and ds, dB of dy
// and s. r0 .. r2 are the parts' ranks (0: not adapted), end0 .. end2 their last
// columns of dy. Without dropout the parts share x, and their columns of ds lie
// side by side: dA is one product then; with it each part has a mask of its own.
//
// A block takes 64 columns of the wide operand by N of the narrow one over rows
// [blockIdx.y * chunk_rows, ..); blockIdx.x counts through the products, those of
// dA first: a launch may end with them where lora_backward.cu made dB. Factors
// lie one behind the other from out on, A [r, inputs] before B [width, r], as in
// the arena. With one chunk, out is the gradient and is added to; else chunk c's
// share of all `elements` is at out + c * elements.
template <int N, bool DROPOUT>
DEVICE void gradients(const bf16* x, uint32_t x_stride, const bf16* ds, uint32_t ds_stride, const bf16* dy,
                      uint32_t dy_stride, const bf16* s, uint32_t s_stride, float* out, uint64_t elements,
                      uint32_t inputs, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t end0, uint32_t end1,
                      uint32_t end2, uint32_t rows, uint32_t chunk_rows, const uint64_t* keys, uint64_t place,
                      float p) {
  DYN_SMEM(memory, 16);
  auto& tiles = *reinterpret_cast<GradientTiles<N>*>(memory);
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  // The product of this block, and where in it the block lies.
  uint32_t block = blockIdx.x, m0 = 0, n0 = 0;
  auto mine = [&](uint32_t width, uint32_t columns) {
    const uint32_t across = (width + kTile - 1) / kTile, blocks = across * ((columns + N - 1) / N);
    if (block >= blocks) {
      block -= blocks;
      return false;
    }
    m0 = block % across * kTile;
    n0 = block / across * N;
    return true;
  };
  const uint32_t column1 = padded(r0), column2 = column1 + padded(r1), column_end = column2 + padded(r2);
  uint32_t part = 0, first = 0, columns = column_end;
  auto take = [&](uint32_t p) {
    part = p;
    first = of_part(p, 0, column1, column2);
    columns = of_part(p, column1, column2, column_end) - first;
  };
  bool of_a = !DROPOUT && mine(inputs, column_end);
  for (uint32_t p = 0; DROPOUT && !of_a && p < 3; p++) {
    take(p);
    of_a = mine(inputs, columns);
  }
  uint32_t start = 0, width = inputs;
  bool found = of_a;
  for (uint32_t p = 0; !found; p++) {
    take(p);
    start = of_part(p, 0, end0, end1);
    width = of_part(p, end0, end1, end2) - start;
    found = mine(width, columns);
  }
  const bf16* wide = of_a ? x : dy + start;
  const bf16* narrow = (of_a ? ds : s) + first;
  const size_t wide_ld = of_a ? x_stride : dy_stride, narrow_ld = of_a ? ds_stride : s_stride;
  const uint32_t m_valid = min(width - m0, uint32_t(kTile)), n_valid = min(columns - n0, uint32_t(N));

  const uint32_t begin = blockIdx.y * chunk_rows, end = min(begin + chunk_rows, rows);
  float acc[N / 8][4] = {};
  auto issue = [&](uint32_t step) {
    const uint32_t row = begin + step * kTile;
    if (row < end) {
      const uint32_t valid = min(end - row, uint32_t(kTile));
      copy_tile<kTile, kTile, kStride, kThreads>(tiles.wide[step % 2], wide + row * wide_ld + m0, wide_ld, valid, m_valid);
      copy_tile<kTile, N, N + 8, kThreads>(tiles.narrow[step % 2], narrow + row * narrow_ld + n0, narrow_ld, valid, n_valid);
    }
    cp_async_commit();
  };
  const uint32_t steps = (end - begin + kTile - 1) / kTile;
  issue(0);
  for (uint32_t step = 0; step < steps; step++) {
    issue(step + 1);
    cp_async_wait<1>();
    __syncthreads();
    if (DROPOUT && of_a) {
      const uint32_t row = begin + step * kTile;
      mask_tile(tiles.wide[step % 2], keys, place + part, row, min(end - row, uint32_t(kTile)), m0, p);
      __syncthreads();
    }
    for (int k = 0; k < kTile; k += 16) {
      uint32_t a[4];
      load_a_trans(a, tiles.wide[step % 2] + k * kStride + warp * 16, kStride);
      for (uint32_t n = 0; n < N; n += 16) {
        // Products of fewer columns than the widest of the group.
        if (n >= n_valid) break;
        uint32_t b[2][2];
        load_b_trans(b, tiles.narrow[step % 2] + k * (N + 8) + n, N + 8);
        mma_bf16(acc[n / 8], a, b[0]);
        mma_bf16(acc[n / 8 + 1], a, b[1]);
      }
    }
    // The next copies go into the tile that was read just now.
    __syncthreads();
  }

  const bool whole = gridDim.y == 1;
  out += blockIdx.y * elements;
  for (uint32_t n = 0; n < N / 8; n++) {
    // Eight columns are of one part, whose first r are not padding.
    const uint32_t column = first + n0 + n * 8;
    const uint32_t of = column < column1 ? 0 : column < column2 ? 1 : 2;
    const uint32_t r = of_part(of, r0, r1, r2);
    const size_t second = size_t(r0) * (inputs + end0), third = second + size_t(r1) * (inputs + end1 - end0);
    float* factor = out + (of == 0 ? 0 : of == 1 ? second : third) + (of_a ? 0 : size_t(r) * inputs);
    for (int i = 0; i < 4; i++) {
      const uint32_t m = m0 + warp * 16 + i / 2 * 8 + lane / 4;
      const uint32_t k = column - of_part(of, 0, column1, column2) + lane % 4 * 2 + i % 2;
      if (m >= width || n * 8 >= n_valid || k >= r) continue;
      float* to = factor + (of_a ? size_t(k) * inputs + m : size_t(m) * r + k);
      *to = whole ? *to + acc[n][i] : acc[n][i];
    }
  }
}

// Grid (blocks of all products, chunks of rows).
#define LORA_GRADIENTS(N)                                                                                        \
  KERNEL void LAUNCH_BOUNDS(128) lora_gradients_##N(                                                             \
      const bf16* x, uint32_t x_stride, const bf16* ds, uint32_t ds_stride, const bf16* dy, uint32_t dy_stride,  \
      const bf16* s, uint32_t s_stride, float* out, uint64_t elements, uint32_t inputs, uint32_t r0,             \
      uint32_t r1, uint32_t r2, uint32_t end0, uint32_t end1, uint32_t end2, uint32_t rows,                      \
      uint32_t chunk_rows) {                                                                                     \
    gradients<N, false>(x, x_stride, ds, ds_stride, dy, dy_stride, s, s_stride, out, elements, inputs, r0, r1,   \
                        r2, end0, end1, end2, rows, chunk_rows, nullptr, 0, 0);                                  \
  }                                                                                                              \
  KERNEL_EXPORT(lora_gradients_##N)                                                                              \
  KERNEL void LAUNCH_BOUNDS(128) lora_gradients_dropout_##N(                                                     \
      const bf16* x, uint32_t x_stride, const bf16* ds, uint32_t ds_stride, const bf16* dy, uint32_t dy_stride,  \
      const bf16* s, uint32_t s_stride, float* out, uint64_t elements, uint32_t inputs, uint32_t r0,             \
      uint32_t r1, uint32_t r2, uint32_t end0, uint32_t end1, uint32_t end2, uint32_t rows, uint32_t chunk_rows, \
      const uint64_t* keys, uint64_t place, float p) {                                                           \
    gradients<N, true>(x, x_stride, ds, ds_stride, dy, dy_stride, s, s_stride, out, elements, inputs, r0, r1,    \
                       r2, end0, end1, end2, rows, chunk_rows, keys, place, p);                                  \
  }                                                                                                              \
  KERNEL_EXPORT(lora_gradients_dropout_##N)

LORA_GRADIENTS(16)
LORA_GRADIENTS(64)

// grad[i] += the chunks' shares, in order.
KERNEL void LAUNCH_BOUNDS(256) lora_gradients_sum(const float* partial, float* grad, uint64_t n, uint32_t chunks) {
  for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += size_t(gridDim.x) * blockDim.x) {
    float sum = grad[i];
    for (uint32_t c = 0; c < chunks; c++) sum += partial[c * n + i];
    grad[i] = sum;
  }
}
KERNEL_EXPORT(lora_gradients_sum)
