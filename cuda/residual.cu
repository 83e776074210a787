// Fused adapter-residual extraction: ||h_on - h_off||_2 per completion token,
// the raw score of ARCA (arXiv 2606.00257).
//
// Adapted and base rows have gone side by side through the layers; this turns
// the two states of each pair into one number. h is [rows, hidden] in the
// residual stream's type, hidden a multiple of 8; difference and sum are f32.
// One warp per pair, sums in a fixed tree. 3 FLOPs an element, bytes
// pairs * 2 * hidden * R + 12 pairs.
#include "common.cuh"

template <typename R>
DEVICE void distance(const R* h, const uint32_t* on, const uint32_t* off, float* norms, uint32_t pairs,
                     uint32_t hidden) {
  const uint32_t pair = (blockIdx.x * blockDim.x + threadIdx.x) / WARP;
  if (pair >= pairs) return;  // whole warps: nobody waits for them
  const R* a = h + size_t(on[pair]) * hidden;
  const R* b = h + size_t(off[pair]) * hidden;
  float sum = 0;
  for (uint32_t i = threadIdx.x % WARP * 8; i < hidden; i += WARP * 8) {
    float x[8], y[8];
    load8(x, a + i);
    load8(y, b + i);
    for (int j = 0; j < 8; j++) sum += (x[j] - y[j]) * (x[j] - y[j]);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % WARP == 0) norms[pair] = sqrtf(sum);
}

KERNEL void LAUNCH_BOUNDS(128)
residual_norms_bf16(const bf16* h, const uint32_t* on, const uint32_t* off, float* norms, uint32_t pairs,
                    uint32_t hidden) {
  distance(h, on, off, norms, pairs, hidden);
}
KERNEL_EXPORT(residual_norms_bf16)

KERNEL void LAUNCH_BOUNDS(128)
residual_norms_f32(const float* h, const uint32_t* on, const uint32_t* off, float* norms, uint32_t pairs,
                   uint32_t hidden) {
  distance(h, on, off, norms, pairs, hidden);
}
KERNEL_EXPORT(residual_norms_f32)
