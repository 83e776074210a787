// Token embedding.
//
// out[i] = table[tokens[i]], [rows, hidden], overwritten; the table is bf16
// [vocab, hidden], out f32 or bf16 (the residual stream's type). hidden is a
// multiple of 8; token ids are checked by the host.
// One block per row. FLOPs 0; bytes rows * hidden * (2 + out) + 4 rows.
#include "common.cuh"

template <typename R>
DEVICE void embed(const uint32_t* tokens, const bf16* table, R* out, uint32_t hidden) {
  const size_t row = blockIdx.x;
  const bf16* from = table + size_t(tokens[row]) * hidden;
  for (uint32_t i = threadIdx.x * 8; i < hidden; i += blockDim.x * 8) {
    float x[8];
    load8(x, from + i);
    store8(out + row * hidden + i, x);
  }
}

KERNEL void LAUNCH_BOUNDS(128)
embedding_bf16(const uint32_t* tokens, const bf16* table, bf16* out, uint32_t hidden) {
  embed(tokens, table, out, hidden);
}
KERNEL_EXPORT(embedding_bf16)

KERNEL void LAUNCH_BOUNDS(128)
embedding_f32(const uint32_t* tokens, const bf16* table, float* out, uint32_t hidden) {
  embed(tokens, table, out, hidden);
}
KERNEL_EXPORT(embedding_f32)
