// Per-head RMSNorm of q and k, then rotary position embedding; its backward.
//
// Forward: qk [rows, q | k] from qkv [rows, q | k | v]; for each head x,
// n = bf16(bf16(x * rstd) * weight), and the pairs (i, i + D / 2) of n are
// rotated by the angle whose cos and sin the tables hold by position
// ([positions, D / 2] f32). Backward: overwrites the q and k columns of d_qkv
// from d_qk; its rows are d_stride elements apart. Head dimensions D are 64 and
// 128.
//
// One block per row. D / 16 lanes share a head: each holds eight neighbours of
// the low half and their partners, so that accesses are of 16 bytes and a pair
// is within one lane. Forward: 9 FLOPs an element of qk, bytes 4 an element.
// Backward: 15 and 6.
#include "common.cuh"

// What a lane holds of a head.
template <int D>
struct Head {
  static constexpr uint32_t kLanes = D / 16;
  float low[8], high[8];

  DEVICE static uint32_t column() { return threadIdx.x % kLanes * 8; }

  template <typename T>
  DEVICE void read(const T* p) {
    load8(low, p + column());
    load8(high, p + D / 2 + column());
  }
  DEVICE void write(bf16* p) const {
    store_words_global(p + column(), pack(low).pair);
    store_words_global(p + D / 2 + column(), pack(high).pair);
  }
  // Over the head's lanes, the same in each: a fixed tree.
  DEVICE static float sum(float x) {
    for (uint32_t d = kLanes / 2; d > 0; d /= 2) x += shfl_xor(x, int(d));
    return x;
  }
  DEVICE float inverse_rms(float eps) const {
    float squares = 0;
    for (int j = 0; j < 8; j++) squares += low[j] * low[j] + high[j] * high[j];
    return 1.0f / sqrtf(sum(squares) / float(D) + eps);
  }
};

// cos and sin of a lane's columns.
template <int D>
struct Angles {
  float cos[8], sin[8];

  DEVICE void read(const float* cos_table, const float* sin_table, uint32_t position) {
    const size_t at = size_t(position) * (D / 2) + Head<D>::column();
    load8(cos, cos_table + at);
    load8(sin, sin_table + at);
  }
};

// The heads of a row in turn, as many as the block holds at a time. Warps stay
// whole for the sums: lanes beyond the last head repeat it and write nothing.
template <int D>
struct Heads {
  static constexpr uint32_t kWarpHeads = WARP / Head<D>::kLanes;
  uint32_t first, count;

  DEVICE explicit Heads(uint32_t count) : first(threadIdx.x / WARP * kWarpHeads), count(count) {}
  DEVICE bool more() const { return first < count; }
  DEVICE void next() { first += blockDim.x / WARP * kWarpHeads; }
  DEVICE uint32_t mine() const { return first + threadIdx.x % WARP / Head<D>::kLanes; }
  DEVICE bool valid() const { return mine() < count; }
  DEVICE uint32_t head() const { return valid() ? mine() : count - 1; }
};

template <int D>
DEVICE void forward(const bf16* qkv, const uint32_t* positions, const float* q_weight, const float* k_weight,
                    const float* cos, const float* sin, bf16* qk, uint32_t heads, uint32_t kv_heads, float eps) {
  const size_t row = blockIdx.x;
  const bf16* from = qkv + row * (heads + 2 * kv_heads) * D;
  bf16* to = qk + row * (heads + kv_heads) * D;
  const uint32_t position = positions[row];
  for (Heads<D> at(heads + kv_heads); at.more(); at.next()) {
    const uint32_t head = at.head();
    Head<D> x, weight;
    Angles<D> angles;
    x.read(from + head * D);
    weight.read(head < heads ? q_weight : k_weight);
    // Behind the loads that need not wait for the position.
    angles.read(cos, sin, position);
    const float rstd = x.inverse_rms(eps);
    for (int j = 0; j < 8; j++) {
      const float a = round_bf16(round_bf16(x.low[j] * rstd) * weight.low[j]);
      const float b = round_bf16(round_bf16(x.high[j] * rstd) * weight.high[j]);
      x.low[j] = a * angles.cos[j] - b * angles.sin[j];
      x.high[j] = b * angles.cos[j] + a * angles.sin[j];
    }
    if (at.valid()) x.write(to + head * D);
  }
}

template <int D>
DEVICE void backward(const bf16* qkv, const bf16* d_qk, const uint32_t* positions, const float* q_weight,
                     const float* k_weight, const float* cos, const float* sin, bf16* d_qkv, uint32_t heads,
                     uint32_t kv_heads, uint32_t d_stride, float eps) {
  const size_t row = blockIdx.x;
  const bf16* from = qkv + row * (heads + 2 * kv_heads) * D;
  const bf16* d_from = d_qk + row * (heads + kv_heads) * D;
  bf16* to = d_qkv + row * d_stride;
  const uint32_t position = positions[row];
  for (Heads<D> at(heads + kv_heads); at.more(); at.next()) {
    const uint32_t head = at.head();
    Head<D> x, d, weight;
    Angles<D> angles;
    x.read(from + head * D);
    d.read(d_from + head * D);
    weight.read(head < heads ? q_weight : k_weight);
    // Behind the loads that need not wait for the position.
    angles.read(cos, sin, position);
    const float rstd = x.inverse_rms(eps);
    float dot = 0;
    for (int j = 0; j < 8; j++) {
      const float a = d.low[j], b = d.high[j];
      d.low[j] = (a * angles.cos[j] + b * angles.sin[j]) * weight.low[j];
      d.high[j] = (b * angles.cos[j] - a * angles.sin[j]) * weight.high[j];
      dot += d.low[j] * x.low[j] + d.high[j] * x.high[j];
    }
    const float scale = Head<D>::sum(dot) * rstd * rstd * rstd / float(D);
    for (int j = 0; j < 8; j++) {
      d.low[j] = d.low[j] * rstd - x.low[j] * scale;
      d.high[j] = d.high[j] * rstd - x.high[j] * scale;
    }
    if (at.valid()) d.write(to + head * D);
  }
}

#define QKNORM_ROPE(D)                                                                                     \
  KERNEL void LAUNCH_BOUNDS(512) qknorm_rope_forward_##D(                                                  \
      const bf16* qkv, const uint32_t* positions, const float* q_weight, const float* k_weight,            \
      const float* cos, const float* sin, bf16* qk, uint32_t heads, uint32_t kv_heads, float eps) {        \
    forward<D>(qkv, positions, q_weight, k_weight, cos, sin, qk, heads, kv_heads, eps);                    \
  }                                                                                                        \
  KERNEL_EXPORT(qknorm_rope_forward_##D)                                                                   \
  KERNEL void LAUNCH_BOUNDS(512) qknorm_rope_backward_##D(                                                 \
      const bf16* qkv, const bf16* d_qk, const uint32_t* positions, const float* q_weight,                 \
      const float* k_weight, const float* cos, const float* sin, bf16* d_qkv, uint32_t heads,              \
      uint32_t kv_heads, uint32_t d_stride, float eps) {                                                   \
    backward<D>(qkv, d_qk, positions, q_weight, k_weight, cos, sin, d_qkv, heads, kv_heads, d_stride, eps); \
  }                                                                                                        \
  KERNEL_EXPORT(qknorm_rope_backward_##D)

QKNORM_ROPE(64)
QKNORM_ROPE(128)
