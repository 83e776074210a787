// What a base product needs beside cuBLASLt: rows of bias for it to add to.
//
// y[row] = bias, [rows, outputs], outputs a multiple of 8. One block per row.
// FLOPs 0; bytes 2 rows * outputs.
#include "common.cuh"

KERNEL void LAUNCH_BOUNDS(128) linear_bias(const bf16* bias, bf16* y, uint32_t outputs) {
  for (uint32_t i = threadIdx.x * 8; i < outputs; i += blockDim.x * 8) {
    float x[8];
    load8(x, bias + i);
    store8(y + size_t(blockIdx.x) * outputs + i, x);
  }
}
KERNEL_EXPORT(linear_bias)
