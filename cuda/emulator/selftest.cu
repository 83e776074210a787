// Kernels that test the emulator itself: correct with bug = 0, and with one
// fault planted for each other value, which the checked build must report or
// the result must show.
#include "common.cuh"

constexpr int kThreads = 128;

// out[block] = sum of in[block * n ..][.. n], by warps and then by one of them.
//   1  no barrier between writing and reading the partial sums
//   2  a barrier that only some threads reach
//   3  reads one element beyond the end
//   4  writes one element beyond the shared array
//   5  reads shared memory that nobody wrote
//   6  every block writes the first result
//   7  two barriers at different lines
KERNEL void LAUNCH_BOUNDS(128) selftest_reduce(const float* in, float* out, uint32_t n, uint32_t bug) {
  SHARED(float, part, [kThreads / WARP]);
  const uint32_t end = n + (bug == 3 ? 1 : 0);
  const float* mine = bug == 3 ? in + size_t(gridDim.x - 1) * n : in + size_t(blockIdx.x) * n;
  float sum = 0;
  for (uint32_t i = threadIdx.x; i < end; i += kThreads) sum += mine[i];
  sum = warp_sum(sum);
  const uint32_t warp = threadIdx.x / WARP + (bug == 4 ? 1 : 0);
  if (threadIdx.x % WARP == 0 && !(bug == 5 && warp == 2)) part[warp] = sum;
  if (bug == 2) {
    if (threadIdx.x != 7) __syncthreads();
  } else if (bug == 7) {
    if (threadIdx.x < 64) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  } else if (bug != 1) {
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    float total = 0;
    for (int w = 0; w < kThreads / WARP; w++) total += part[w];
    out[bug == 6 ? 0 : blockIdx.x] = total;
  }
}
KERNEL_EXPORT(selftest_reduce)

// c [16, 8] = a [16, 16 k] b [8, 16 k]^T by one warp, copies two tiles ahead.
//   1  no wait for the copies
//   2  a wait that leaves the newest group open
//   3  the wrong rows of the fragment (a result, not an access, is wrong)
//   4  no barrier between the copies' arrival and their use
//   5  copies into a tile that others still read
KERNEL void LAUNCH_BOUNDS(32) selftest_product(const bf16* a, const bf16* b, float* c, uint32_t k, uint32_t bug) {
  // Rows of eight more than a tile's width: no two of eight rows share a bank.
  constexpr int kStride = 16 + 8;
  constexpr int kRows = 32;  // 16 of a, 8 of b, and as many again unused
  SHARED(bf16, tile, [2][kRows][kStride]);
  const uint32_t lane = threadIdx.x;
  auto issue = [&](uint32_t step) {
    bf16(&to)[kRows][kStride] = tile[bug == 5 ? 0 : step % 2];
    const uint32_t row = lane / 2, half = 8 * (lane % 2);
    cp_async16(&to[row][half], a + size_t(row) * 16 * k + 16 * step + half, step < k);
    cp_async16(&to[16 + row][half], b + size_t(row % 8) * 16 * k + 16 * step + half, step < k && row < 8);
    cp_async_commit();
  };
  float d[4] = {};
  issue(0);
  for (uint32_t step = 0; step < k; step++) {
    issue(step + 1);
    if (bug == 2) {
      cp_async_wait<2>();
    } else if (bug != 1) {
      cp_async_wait<1>();
    }
    if (bug != 4) __syncwarp();
    bf16(&from)[kRows][kStride] = tile[bug == 5 ? 0 : step % 2];
    uint32_t fa[4], fb[4];
    const uint32_t row = lane % 8, matrix = lane / 8;
    const uint32_t down = bug == 3 ? 8 * (matrix / 2) : 8 * (matrix % 2);
    const uint32_t across = bug == 3 ? 8 * (matrix % 2) : 8 * (matrix / 2);
    ldmatrix_x4(fa, &from[down + row][across]);
    ldmatrix_x4(fb, &from[16 + row][8 * (matrix % 2)]);
    const uint32_t fb2[2] = {fb[0], fb[1]};
    mma_bf16(d, fa, fb2);
    __syncwarp();
  }
  cp_async_wait<0>();
  const uint32_t g = lane / 4, t = 2 * (lane % 4);
  c[g * 8 + t] = d[0];
  c[g * 8 + t + 1] = d[1];
  c[(g + 8) * 8 + t] = d[2];
  c[(g + 8) * 8 + t + 1] = d[3];
}
KERNEL_EXPORT(selftest_product)
