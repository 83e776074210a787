// RMSNorm with the residual add before it, and its backward.
//
// Forward, per row of hidden elements (a multiple of 8): with `previous`,
// h = previous + y is written first, else h is read; then
// rstd = 1 / sqrt(mean(h^2) + eps) and x = bf16(h * rstd) * weight. R is the
// residual stream's type, x and y are bf16, weight and rstd f32.
// Backward: dh += dx * weight * rstd - h * rstd^3 * mean(dx * weight * h), f32,
// and dy = bf16(dh). Rows of x and of dy are x_stride and dy_stride elements apart.
//
// One block per row. A lane takes four neighbours at a time, so that a warp's
// accesses are whole sectors in bf16 and in f32. The first kKept groups of each
// thread stay in registers between the two passes; what a longer row has beyond
// them is read twice. Sums run in a fixed tree.
// Forward: 5 FLOPs an element, bytes rows * hidden * (2 R + 4). Backward: 9,
// bytes rows * hidden * (R + 12).
#include "common.cuh"

// A block has a thread for each 4 kKept elements of a row, up to this.
constexpr int kMostThreads = 512;
// Groups of four elements that a thread keeps.
constexpr int kKept = 4;

DEVICE void unpack4(float (&x)[4], const uint32_t (&word)[2]) {
  for (int i = 0; i < 2; i++) {
    x[2 * i] = low_half(word[i]);
    x[2 * i + 1] = high_half(word[i]);
  }
}
DEVICE void unpack4(float (&x)[4], const uint32_t (&word)[4]) {
  for (int i = 0; i < 4; i++) x[i] = float_from_bits(word[i]);
}
DEVICE void pack4(uint32_t (&word)[2], const float (&x)[4]) {
  for (int i = 0; i < 2; i++) word[i] = pack_bf16(x[2 * i], x[2 * i + 1]);
}
DEVICE void pack4(uint32_t (&word)[4], const float (&x)[4]) {
  for (int i = 0; i < 4; i++) word[i] = bits_of_float(x[i]);
}

// Four elements as they lie in memory, in as few registers: each byte of an
// element makes a word of the four.
template <typename R>
struct Four {
  uint32_t word[sizeof(R)];

  DEVICE static Four of(const float (&x)[4]) {
    Four f;
    pack4(f.word, x);
    return f;
  }
  DEVICE static Four at(const R* p) {
    Four f;
    load_words(f.word, p);
    return f;
  }
  DEVICE void get(float (&x)[4]) const { unpack4(x, word); }
  DEVICE void put(R* p) const { store_words(p, word); }
};

template <typename R>
DEVICE Four<R> read(const R* p) {
  return Four<R>::at(p);
}

// Sum over the block, the same in every thread.
DEVICE float block_sum(float x) {
  SHARED(float, part, [kMostThreads / WARP]);
  x = warp_sum(x);
  if (threadIdx.x % WARP == 0) part[threadIdx.x / WARP] = x;
  __syncthreads();
  float sum = 0;
  for (uint32_t w = 0; w < blockDim.x / WARP; w++) sum += part[w];
  return sum;
}

template <typename R>
DEVICE Four<R> added(const Four<R>& previous, const Four<bf16>& y) {
  float v[4], add[4];
  previous.get(v);
  y.get(add);
  for (int j = 0; j < 4; j++) v[j] += add[j];
  return Four<R>::of(v);
}

template <typename R>
DEVICE void add_squares(float& sum, const Four<R>& h) {
  float v[4];
  h.get(v);
  for (int j = 0; j < 4; j++) sum += v[j] * v[j];
}

template <typename R>
DEVICE Four<bf16> normalised(const Four<R>& h, const float* weight, float scale) {
  float v[4], w[4];
  h.get(v);
  load4(w, weight);
  for (int j = 0; j < 4; j++) v[j] *= scale;
  // Rounded before the weight, as a model in bf16 does.
  Four<bf16>::of(v).get(v);
  for (int j = 0; j < 4; j++) v[j] *= w[j];
  return Four<bf16>::of(v);
}

template <typename R>
DEVICE void forward(const R* previous, const bf16* y, R* h, const float* weight, bf16* x, float* rstd,
                    uint32_t hidden, uint32_t x_stride, float eps) {
  const size_t base = size_t(blockIdx.x) * hidden, x_base = size_t(blockIdx.x) * x_stride;
  const uint32_t first = threadIdx.x * 4, step = blockDim.x * 4;
  Four<R> kept[kKept];
  if (previous != nullptr) {
    Four<bf16> add[kKept];
    for (int s = 0; s < kKept; s++) {
      const uint32_t i = first + s * step;
      if (i < hidden) {
        kept[s] = read(previous + base + i);
        add[s] = read(y + base + i);
      }
    }
    for (int s = 0; s < kKept; s++) {
      const uint32_t i = first + s * step;
      if (i < hidden) {
        kept[s] = added(kept[s], add[s]);
        kept[s].put(h + base + i);
      }
    }
  } else {
    for (int s = 0; s < kKept; s++) {
      const uint32_t i = first + s * step;
      if (i < hidden) kept[s] = read(h + base + i);
    }
  }
  float sum = 0;
  for (int s = 0; s < kKept; s++) {
    if (first + s * step < hidden) add_squares(sum, kept[s]);
  }
  for (uint32_t i = first + kKept * step; i < hidden; i += step) {
    Four<R> v;
    if (previous != nullptr) {
      v = added(read(previous + base + i), read(y + base + i));
      v.put(h + base + i);
    } else {
      v = read(h + base + i);
    }
    add_squares(sum, v);
  }
  const float scale = 1.0f / sqrtf(block_sum(sum) / float(hidden) + eps);
  if (first == 0) rstd[blockIdx.x] = scale;
  for (int s = 0; s < kKept; s++) {
    const uint32_t i = first + s * step;
    if (i < hidden) normalised(kept[s], weight + i, scale).put(x + x_base + i);
  }
  for (uint32_t i = first + kKept * step; i < hidden; i += step) {
    normalised(read(h + base + i), weight + i, scale).put(x + x_base + i);
  }
}

template <typename R>
DEVICE void add_products(float& dot, const Four<R>& h, const Four<bf16>& dx, const float* weight) {
  float v[4], w[4], d[4];
  h.get(v);
  load4(w, weight);
  dx.get(d);
  for (int j = 0; j < 4; j++) dot += d[j] * w[j] * v[j];
}

template <typename R>
DEVICE void update(const Four<R>& h, const Four<bf16>& dx, const float* weight, float scale, float c,
                   float (&g)[4], float* dh, bf16* dy) {
  float v[4], w[4], d[4];
  h.get(v);
  load4(w, weight);
  dx.get(d);
  for (int j = 0; j < 4; j++) g[j] += d[j] * w[j] * scale - v[j] * c;
  store4(dh, g);
  Four<bf16>::of(g).put(dy);
}

template <typename R>
DEVICE void backward(const R* h, const float* weight, const float* rstd, const bf16* dx, float* dh, bf16* dy,
                     uint32_t hidden, uint32_t dy_stride) {
  const size_t base = size_t(blockIdx.x) * hidden, dy_base = size_t(blockIdx.x) * dy_stride;
  const uint32_t first = threadIdx.x * 4, step = blockDim.x * 4;
  Four<R> v[kKept];
  Four<bf16> d[kKept];
  for (int s = 0; s < kKept; s++) {
    const uint32_t i = first + s * step;
    if (i < hidden) {
      v[s] = read(h + base + i);
      d[s] = read(dx + base + i);
    }
  }
  const float scale = rstd[blockIdx.x];
  float dot = 0;
  for (int s = 0; s < kKept; s++) {
    const uint32_t i = first + s * step;
    if (i < hidden) add_products(dot, v[s], d[s], weight + i);
  }
  for (uint32_t i = first + kKept * step; i < hidden; i += step) {
    add_products(dot, read(h + base + i), read(dx + base + i), weight + i);
  }
  // All under way before the first store, which the compiler must not pass.
  float g[kKept][4];
  for (int s = 0; s < kKept; s++) {
    const uint32_t i = first + s * step;
    if (i < hidden) load4(g[s], dh + base + i);
  }
  const float c = block_sum(dot) * scale * scale * scale / float(hidden);
  for (int s = 0; s < kKept; s++) {
    const uint32_t i = first + s * step;
    if (i < hidden) update(v[s], d[s], weight + i, scale, c, g[s], dh + base + i, dy + dy_base + i);
  }
  for (uint32_t i = first + kKept * step; i < hidden; i += step) {
    float more[4];
    load4(more, dh + base + i);
    update(read(h + base + i), read(dx + base + i), weight + i, scale, c, more, dh + base + i,
           dy + dy_base + i);
  }
}

KERNEL void LAUNCH_BOUNDS(512)
rmsnorm_forward_bf16(const bf16* previous, const bf16* y, bf16* h, const float* __restrict__ weight, bf16* x,
                     float* rstd, uint32_t hidden, uint32_t x_stride, float eps) {
  forward(previous, y, h, weight, x, rstd, hidden, x_stride, eps);
}
KERNEL_EXPORT(rmsnorm_forward_bf16)

KERNEL void LAUNCH_BOUNDS(512)
rmsnorm_forward_f32(const float* previous, const bf16* y, float* h, const float* __restrict__ weight, bf16* x,
                    float* rstd, uint32_t hidden, uint32_t x_stride, float eps) {
  forward(previous, y, h, weight, x, rstd, hidden, x_stride, eps);
}
KERNEL_EXPORT(rmsnorm_forward_f32)

KERNEL void LAUNCH_BOUNDS(512)
rmsnorm_backward_bf16(const bf16* h, const float* __restrict__ weight, const float* rstd, const bf16* dx,
                      float* dh, bf16* dy, uint32_t hidden, uint32_t dy_stride) {
  backward(h, weight, rstd, dx, dh, dy, hidden, dy_stride);
}
KERNEL_EXPORT(rmsnorm_backward_bf16)

KERNEL void LAUNCH_BOUNDS(512)
rmsnorm_backward_f32(const float* h, const float* __restrict__ weight, const float* rstd, const bf16* dx,
                     float* dh, bf16* dy, uint32_t hidden, uint32_t dy_stride) {
  backward(h, weight, rstd, dx, dh, dy, hidden, dy_stride);
}
KERNEL_EXPORT(rmsnorm_backward_f32)
