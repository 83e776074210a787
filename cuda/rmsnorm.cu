// RMSNorm with the residual add before it, and its backward.
//
// Forward, per row of hidden elements (a multiple of 8): with `previous`,
// h = previous + y is written first, else h is read; then
// rstd = 1 / sqrt(mean(h^2) + eps) and x = bf16(h * rstd) * weight. R is the
// residual stream's type, x and y are bf16, weight and rstd f32.
// Backward: dh += dx * weight * rstd - h * rstd^3 * mean(dx * weight * h), f32,
// and dy = bf16(dh). Rows of x and of dy are x_stride and dy_stride elements apart.
//
// One block of 256 per row; a row of up to 4096 stays in registers between the
// two passes, longer ones are read twice. Sums run in a fixed tree.
// Forward: 5 FLOPs an element, bytes rows * hidden * (2 R + 4). Backward: 9,
// bytes rows * hidden * (R + 12).
#include "common.cuh"

constexpr int kThreads = 256;
// Groups of eight elements that a thread keeps.
constexpr int kKept = 2;

// Sum over the block, the same in every thread.
DEVICE float block_sum(float x) {
  SHARED(float, part, [kThreads / WARP]);
  x = warp_sum(x);
  if (threadIdx.x % WARP == 0) part[threadIdx.x / WARP] = x;
  __syncthreads();
  float sum = 0;
  for (int w = 0; w < kThreads / WARP; w++) sum += part[w];
  return sum;
}

template <typename R>
DEVICE void forward(const R* previous, const bf16* y, R* h, const float* weight, bf16* x, float* rstd,
                    uint32_t hidden, uint32_t x_stride, float eps) {
  const size_t base = size_t(blockIdx.x) * hidden, x_base = size_t(blockIdx.x) * x_stride;
  float kept[kKept][8];
  float sum = 0;
  int slot = 0;
  for (uint32_t i = threadIdx.x * 8; i < hidden; i += kThreads * 8, slot++) {
    float v[8];
    if (previous != nullptr) {
      float add[8];
      load8(v, previous + base + i);
      load8(add, y + base + i);
      for (int j = 0; j < 8; j++) v[j] = rounded_as(h, v[j] + add[j]);
      store8(h + base + i, v);
    } else {
      load8(v, h + base + i);
    }
    for (int j = 0; j < 8; j++) sum += v[j] * v[j];
    for (int s = 0; s < kKept; s++) {
      if (s == slot) for (int j = 0; j < 8; j++) kept[s][j] = v[j];
    }
  }
  const float scale = 1.0f / sqrtf(block_sum(sum) / float(hidden) + eps);
  if (threadIdx.x == 0) rstd[blockIdx.x] = scale;
  slot = 0;
  for (uint32_t i = threadIdx.x * 8; i < hidden; i += kThreads * 8, slot++) {
    float v[8], w[8];
    if (slot < kKept) {
      for (int s = 0; s < kKept; s++) {
        if (s == slot) for (int j = 0; j < 8; j++) v[j] = kept[s][j];
      }
    } else {
      load8(v, h + base + i);
    }
    load8(w, weight + i);
    for (int j = 0; j < 8; j++) v[j] = round_bf16(v[j] * scale) * w[j];
    store8(x + x_base + i, v);
  }
}

template <typename R>
DEVICE void backward(const R* h, const float* weight, const float* rstd, const bf16* dx, float* dh, bf16* dy,
                     uint32_t hidden, uint32_t dy_stride) {
  const size_t base = size_t(blockIdx.x) * hidden, dy_base = size_t(blockIdx.x) * dy_stride;
  const float scale = rstd[blockIdx.x];
  float dot = 0;
  for (uint32_t i = threadIdx.x * 8; i < hidden; i += kThreads * 8) {
    float v[8], w[8], d[8];
    load8(v, h + base + i);
    load8(w, weight + i);
    load8(d, dx + base + i);
    for (int j = 0; j < 8; j++) dot += d[j] * w[j] * v[j];
  }
  const float c = block_sum(dot) * scale * scale * scale / float(hidden);
  // The second reading comes from L1: a row is a few kilobytes.
  for (uint32_t i = threadIdx.x * 8; i < hidden; i += kThreads * 8) {
    float v[8], w[8], d[8], g[8];
    load8(v, h + base + i);
    load8(w, weight + i);
    load8(d, dx + base + i);
    load8(g, dh + base + i);
    for (int j = 0; j < 8; j++) g[j] += d[j] * w[j] * scale - v[j] * c;
    store8(dh + base + i, g);
    store8(dy + dy_base + i, g);
  }
}

KERNEL void LAUNCH_BOUNDS(256)
rmsnorm_forward_bf16(const bf16* previous, const bf16* y, bf16* h, const float* weight, bf16* x,
                     float* rstd, uint32_t hidden, uint32_t x_stride, float eps) {
  forward(previous, y, h, weight, x, rstd, hidden, x_stride, eps);
}
KERNEL_EXPORT(rmsnorm_forward_bf16)

KERNEL void LAUNCH_BOUNDS(256)
rmsnorm_forward_f32(const float* previous, const bf16* y, float* h, const float* weight, bf16* x,
                    float* rstd, uint32_t hidden, uint32_t x_stride, float eps) {
  forward(previous, y, h, weight, x, rstd, hidden, x_stride, eps);
}
KERNEL_EXPORT(rmsnorm_forward_f32)

KERNEL void LAUNCH_BOUNDS(256)
rmsnorm_backward_bf16(const bf16* h, const float* weight, const float* rstd, const bf16* dx, float* dh,
                      bf16* dy, uint32_t hidden, uint32_t dy_stride) {
  backward(h, weight, rstd, dx, dh, dy, hidden, dy_stride);
}
KERNEL_EXPORT(rmsnorm_backward_bf16)

KERNEL void LAUNCH_BOUNDS(256)
rmsnorm_backward_f32(const float* h, const float* weight, const float* rstd, const bf16* dx, float* dh,
                     bf16* dy, uint32_t hidden, uint32_t dy_stride) {
  backward(h, weight, rstd, dx, dh, dy, hidden, dy_stride);
}
KERNEL_EXPORT(rmsnorm_backward_f32)
