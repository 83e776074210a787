// AdamW over the flat adapter arena (f32), and the gradient's global norm.
//
// adamw_update has the CPU's operations in the CPU's order without
// contraction, so that equal gradients give equal bits. A thread takes four
// elements at 16-byte boundaries; the few before and behind them, and all of
// operands that are never at a boundary together, are taken one by one.
// The norm is summed in f64: one partial sum per block of kChunk elements, then
// the partial sums by one block, each in a fixed tree that depends on n alone.
// No atomics: two runs do not differ.
// Update: 12 FLOPs, 28 bytes a parameter. Norm: 2 FLOPs, 4 bytes.
#include "common.cuh"

constexpr int kThreads = 256;
constexpr int kChunk = 8192;

DEVICE uint32_t misalignment(const void* p) { return uint32_t(reinterpret_cast<uintptr_t>(p) % 16); }

struct Step {
  float clip, decay, keep1, keep2, beta2, size, root, epsilon;

  DEVICE void update(float grad, float& param, float& m, float& v) const {
    const float g = mul_exact(grad, clip);
    m = add_exact(m, mul_exact(add_exact(g, -m), keep1));
    v = add_exact(mul_exact(v, beta2), mul_exact(mul_exact(keep2, g), g));
    const float step = mul_exact(size, m) / add_exact(sqrtf(v) / root, epsilon);
    param = add_exact(mul_exact(param, decay), -step);
  }
};

KERNEL void LAUNCH_BOUNDS(256)
adamw_update(const float* grads, float* params, float* m, float* v, uint64_t n, float clip, float decay,
             float keep1, float keep2, float beta2, float size, float root, float epsilon) {
  const Step step{clip, decay, keep1, keep2, beta2, size, root, epsilon};
  const uint32_t off = misalignment(params);
  const bool together = misalignment(grads) == off && misalignment(m) == off && misalignment(v) == off;
  const size_t before = (16 - off) % 16 / 4;
  const size_t head = together && before < n ? before : n;
  const size_t fours = (n - head) / 4, singles = n - 4 * fours;
  const size_t first = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const size_t stride = size_t(gridDim.x) * blockDim.x;
  for (size_t i = first; i < fours; i += stride) {
    const size_t at = head + 4 * i;
    float g[4], param[4], mi[4], vi[4];
    load4(g, grads + at);
    load4(param, params + at);
    load4(mi, m + at);
    load4(vi, v + at);
    for (int j = 0; j < 4; j++) step.update(g[j], param[j], mi[j], vi[j]);
    store4(params + at, param);
    store4(m + at, mi);
    store4(v + at, vi);
  }
  for (size_t i = first; i < singles; i += stride) {
    const size_t at = i < head ? i : i + 4 * fours;
    float param = params[at], mi = m[at], vi = v[at];
    step.update(grads[at], param, mi, vi);
    params[at] = param;
    m[at] = mi;
    v[at] = vi;
  }
}
KERNEL_EXPORT(adamw_update)

// Sum over the block, in its first thread.
DEVICE double block_sum(double x) {
  SHARED(double, part, [kThreads / WARP]);
  x = warp_sum(x);
  if (threadIdx.x % WARP == 0) part[threadIdx.x / WARP] = x;
  __syncthreads();
  double sum = 0;
  if (threadIdx.x == 0) for (int w = 0; w < kThreads / WARP; w++) sum += part[w];
  return sum;
}

KERNEL void LAUNCH_BOUNDS(256) adamw_partial_norms(const float* x, double* partial, uint64_t n) {
  constexpr int kFours = kChunk / 4 / kThreads;
  const size_t first = size_t(blockIdx.x) * kChunk + threadIdx.x * 4;
  const bool whole = size_t(blockIdx.x + 1) * kChunk <= n && misalignment(x) == 0;
  float value[kFours][4];
  for (int s = 0; s < kFours; s++) {
    const size_t at = first + s * 4 * kThreads;
    if (whole) {
      load4(value[s], x + at);
    } else {
      for (int j = 0; j < 4; j++) value[s][j] = at + j < n ? x[at + j] : 0.0f;
    }
  }
  double sum = 0;
  for (int s = 0; s < kFours; s++) {
    for (int j = 0; j < 4; j++) sum += double(value[s][j]) * double(value[s][j]);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}
KERNEL_EXPORT(adamw_partial_norms)

KERNEL void LAUNCH_BOUNDS(256) adamw_total_norm(const double* partial, double* total, uint32_t count) {
  double sum = 0;
  for (uint32_t i = threadIdx.x; i < count; i += kThreads) sum += partial[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *total = sum;
}
KERNEL_EXPORT(adamw_total_norm)
