// Per-head RMSNorm of q and k, then rotary position embedding; its backward.
//
// Forward: qk [rows, q | k] from qkv [rows, q | k | v]; for each head x,
// n = bf16(bf16(x * rstd) * weight), and the pairs (i, i + D / 2) of n are
// rotated by the angle whose cos and sin the tables hold by position
// ([positions, D / 2] f32). Backward: overwrites the q and k columns of d_qkv
// from d_qk; its rows are d_stride elements apart. Head dimensions D are 64 and 128.
//
// One warp per head of a row: lane l holds elements 2 l (+ 64) and their
// partners, so that a pair is within one lane. Forward: 9 FLOPs an element of
// qk, bytes 4 an element. Backward: 15 and 6.
#include "common.cuh"

template <int D>
struct Head {
  // Elements per lane in each half of the head.
  static constexpr int kEach = D / 2 / WARP;
  float low[kEach], high[kEach];

  DEVICE static uint32_t column(int j) { return threadIdx.x % WARP * kEach + j; }

  DEVICE void read(const bf16* p) {
    for (int j = 0; j < kEach; j++) {
      low[j] = to_float(p[column(j)]);
      high[j] = to_float(p[D / 2 + column(j)]);
    }
  }
  DEVICE void write(bf16* p) const {
    for (int j = 0; j < kEach; j++) {
      p[column(j)] = to_bf16(low[j]);
      p[D / 2 + column(j)] = to_bf16(high[j]);
    }
  }
};

template <int D>
DEVICE float inverse_rms(const Head<D>& x, float eps) {
  float sum = 0;
  for (int j = 0; j < Head<D>::kEach; j++) sum += x.low[j] * x.low[j] + x.high[j] * x.high[j];
  return 1.0f / sqrtf(warp_sum(sum) / float(D) + eps);
}

template <int D>
DEVICE void forward(const bf16* qkv, const uint32_t* positions, const float* q_weight, const float* k_weight,
                    const float* cos, const float* sin, bf16* qk, uint32_t rows, uint32_t heads,
                    uint32_t kv_heads, float eps) {
  const uint32_t per_row = heads + kv_heads;
  const size_t task = (size_t(blockIdx.x) * blockDim.x + threadIdx.x) / WARP;
  if (task >= size_t(rows) * per_row) return;
  const size_t row = task / per_row;
  const uint32_t head = task % per_row;
  const float* weight = head < heads ? q_weight : k_weight;
  Head<D> x;
  x.read(qkv + row * (heads + 2 * kv_heads) * D + size_t(head) * D);
  const float rstd = inverse_rms(x, eps);
  const size_t angles = size_t(positions[row]) * (D / 2);
  for (int j = 0; j < Head<D>::kEach; j++) {
    const uint32_t i = Head<D>::column(j);
    const float a = round_bf16(round_bf16(x.low[j] * rstd) * weight[i]);
    const float b = round_bf16(round_bf16(x.high[j] * rstd) * weight[D / 2 + i]);
    const float c = cos[angles + i], s = sin[angles + i];
    x.low[j] = a * c - b * s;
    x.high[j] = b * c + a * s;
  }
  x.write(qk + row * per_row * D + size_t(head) * D);
}

template <int D>
DEVICE void backward(const bf16* qkv, const bf16* d_qk, const uint32_t* positions, const float* q_weight,
                     const float* k_weight, const float* cos, const float* sin, bf16* d_qkv, uint32_t rows,
                     uint32_t heads, uint32_t kv_heads, uint32_t d_stride, float eps) {
  const uint32_t per_row = heads + kv_heads;
  const size_t task = (size_t(blockIdx.x) * blockDim.x + threadIdx.x) / WARP;
  if (task >= size_t(rows) * per_row) return;
  const size_t row = task / per_row;
  const uint32_t head = task % per_row;
  const float* weight = head < heads ? q_weight : k_weight;
  const size_t at = row * (heads + 2 * kv_heads) * D + size_t(head) * D;
  Head<D> x, d;
  x.read(qkv + at);
  d.read(d_qk + row * per_row * D + size_t(head) * D);
  const float rstd = inverse_rms(x, eps);
  const size_t angles = size_t(positions[row]) * (D / 2);
  float dot = 0;
  for (int j = 0; j < Head<D>::kEach; j++) {
    const uint32_t i = Head<D>::column(j);
    const float c = cos[angles + i], s = sin[angles + i];
    const float a = d.low[j], b = d.high[j];
    d.low[j] = (a * c + b * s) * weight[i];
    d.high[j] = (b * c - a * s) * weight[D / 2 + i];
    dot += d.low[j] * x.low[j] + d.high[j] * x.high[j];
  }
  const float scale = warp_sum(dot) * rstd * rstd * rstd / float(D);
  for (int j = 0; j < Head<D>::kEach; j++) {
    d.low[j] = d.low[j] * rstd - x.low[j] * scale;
    d.high[j] = d.high[j] * rstd - x.high[j] * scale;
  }
  d.write(d_qkv + row * d_stride + size_t(head) * D);
}

#define QKNORM_ROPE(D)                                                                                   \
  KERNEL void LAUNCH_BOUNDS(256) qknorm_rope_forward_##D(                                                \
      const bf16* qkv, const uint32_t* positions, const float* q_weight, const float* k_weight,          \
      const float* cos, const float* sin, bf16* qk, uint32_t rows, uint32_t heads, uint32_t kv_heads,    \
      float eps) {                                                                                       \
    forward<D>(qkv, positions, q_weight, k_weight, cos, sin, qk, rows, heads, kv_heads, eps);            \
  }                                                                                                      \
  KERNEL_EXPORT(qknorm_rope_forward_##D)                                                                 \
  KERNEL void LAUNCH_BOUNDS(256) qknorm_rope_backward_##D(                                               \
      const bf16* qkv, const bf16* d_qk, const uint32_t* positions, const float* q_weight,               \
      const float* k_weight, const float* cos, const float* sin, bf16* d_qkv, uint32_t rows,             \
      uint32_t heads, uint32_t kv_heads, uint32_t d_stride, float eps) {                                 \
    backward<D>(qkv, d_qk, positions, q_weight, k_weight, cos, sin, d_qkv, rows, heads, kv_heads,        \
                d_stride, eps);                                                                          \
  }                                                                                                      \
  KERNEL_EXPORT(qknorm_rope_backward_##D)

QKNORM_ROPE(64)
QKNORM_ROPE(128)
