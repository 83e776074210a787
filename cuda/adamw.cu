// AdamW over the flat adapter arena (f32), and the gradient's global norm.
//
// adamw_update has the CPU's operations in the CPU's order without
// contraction, so that equal gradients give equal bits. The norm is summed in
// f64: one partial sum per block of kChunk elements in a fixed tree, then the
// partial sums in order by one warp. No atomics: two runs do not differ.
// Update: 12 FLOPs, 28 bytes a parameter. Norm: 2 FLOPs, 4 bytes.
#include "common.cuh"

constexpr int kThreads = 256;
constexpr int kChunk = 8192;

KERNEL void LAUNCH_BOUNDS(256)
adamw_update(const float* grads, float* params, float* m, float* v, uint64_t n, float clip, float decay,
             float keep1, float keep2, float beta2, float size, float root, float epsilon) {
  const size_t stride = size_t(gridDim.x) * blockDim.x;
  for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride) {
    const float g = mul_exact(grads[i], clip);
    const float mi = add_exact(m[i], mul_exact(add_exact(g, -m[i]), keep1));
    const float vi = add_exact(mul_exact(v[i], beta2), mul_exact(mul_exact(keep2, g), g));
    const float step = mul_exact(size, mi) / add_exact(sqrtf(vi) / root, epsilon);
    m[i] = mi;
    v[i] = vi;
    params[i] = add_exact(mul_exact(params[i], decay), -step);
  }
}
KERNEL_EXPORT(adamw_update)

KERNEL void LAUNCH_BOUNDS(256) adamw_partial_norms(const float* x, double* partial, uint64_t n) {
  SHARED(double, part, [kThreads / WARP]);
  const size_t first = size_t(blockIdx.x) * kChunk;
  double sum = 0;
  for (size_t i = first + threadIdx.x; i < n && i < first + kChunk; i += kThreads) {
    sum += double(x[i]) * double(x[i]);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % WARP == 0) part[threadIdx.x / WARP] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    double total = 0;
    for (int w = 0; w < kThreads / WARP; w++) total += part[w];
    partial[blockIdx.x] = total;
  }
}
KERNEL_EXPORT(adamw_partial_norms)

KERNEL void LAUNCH_BOUNDS(32) adamw_total_norm(const double* partial, double* total, uint32_t count) {
  double sum = 0;
  for (uint32_t i = threadIdx.x; i < count; i += WARP) sum += partial[i];
  sum = warp_sum(sum);
  if (threadIdx.x == 0) *total = sum;
}
KERNEL_EXPORT(adamw_total_norm)
