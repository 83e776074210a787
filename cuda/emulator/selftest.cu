// Kernels that test the emulator itself: correct with bug = 0, and with one
// fault planted for each other value, which the checked build must report or
// the result must show.
#include "common.cuh"
#include "wgmma.cuh"

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

// c [64, 64] = a [64, 64 k] b [64, 64 k]^T on Hopper: one warpgroup copies tiles
// of 64 in two stages, another multiplies.
//    1  no fence between the copies and the products that read them
//    2  products do not wait for the copies
//    3  copies do not wait for the products of two tiles before
//    4  a stage is given up before its products have been waited for
//    5  no wgmma_fence
//    6  accumulators are read before the wait (a result is wrong)
//    7  accumulators are written before the wait
//    8  the last products are never waited for
//    9  tiles that are not swizzled (a result is wrong)
//   10  one thread never arrives
//   11  tiles at a boundary of 128 bytes only
//   12  one thread's arrival comes before its copies are there
//   13  a wait that leaves the newest products open
struct SelftestTiles {
  bf16 a[2][64 * PANEL];
  bf16 b[2][64 * PANEL];
  Mbarrier full[2], empty[2];
};

KERNEL void LAUNCH_BOUNDS(256) selftest_wgmma(const bf16* a, const bf16* b, float* c, uint32_t k, uint32_t bug) {
  DYN_SMEM(memory, 128);
  const uint32_t past = shared_address(memory) % 1024;
  auto& tiles = *reinterpret_cast<SelftestTiles*>(memory + (bug == 11 ? 0 : (1024 - past) % 1024));
  const uint32_t thread = threadIdx.x % WARPGROUP;
  if (threadIdx.x < 2) {
    mbarrier_init(&tiles.full[threadIdx.x], WARPGROUP);
    mbarrier_init(&tiles.empty[threadIdx.x], WARPGROUP);
  }
  __syncthreads();
  if (threadIdx.x < WARPGROUP) {
    for (uint32_t step = 0; step < k; step++) {
      const uint32_t stage = step % 2;
      if (bug != 3) mbarrier_wait(&tiles.empty[stage], (step / 2 + 1) % 2);
      for (uint32_t i = thread; i < 64 * 8; i += WARPGROUP) {
        const uint32_t row = i / 8, chunk = i % 8;
        const uint32_t to = bug == 9 ? row * PANEL + chunk * 8 : swizzled<64>(row, chunk);
        const size_t from = size_t(row) * 64 * k + step * 64 + chunk * 8;
        cp_async16(tiles.a[stage] + to, a + from, true);
        cp_async16(tiles.b[stage] + to, b + from, true);
      }
      cp_async_commit();
      if (!(bug == 12 && thread == 5)) cp_async_wait<0>();
      if (bug != 1) fence_async_shared();
      if (!(bug == 10 && thread == 7)) mbarrier_arrive(&tiles.full[stage]);
    }
    cp_async_wait<0>();
    return;
  }
  float d[8][4] = {}, early = 0;
  for (uint32_t step = 0; step < k; step++) {
    const uint32_t stage = step % 2;
    if (bug != 2) mbarrier_wait(&tiles.full[stage], step / 2 % 2);
    if (bug != 5) wgmma_fence();
    for (int i = 0; i < 64; i += 16) {
      wgmma(d, wgmma_operand(tiles.a[stage] + i, 0), wgmma_operand(tiles.b[stage] + i, 0), true);
    }
    wgmma_commit();
    if (bug == 4) mbarrier_arrive(&tiles.empty[stage]);
    if (bug == 6) early = d[0][0];
    if (bug == 7) d[0][0] = 0;
    if (bug == 13) {
      wgmma_wait<1>(d);
    } else if (!(bug == 8 && step + 1 == k)) {
      wgmma_wait<0>(d);
    }
    if (bug != 4) mbarrier_arrive(&tiles.empty[stage]);
  }
  if (bug == 13) wgmma_wait<0>(d);
  const uint32_t row = thread / WARP * 16 + thread % WARP / 4;
  for (int n = 0; n < 8; n++) {
    for (int i = 0; i < 4; i++) {
      if (bug == 6 && n == 0 && i == 0) d[n][i] = early;
      c[(row + i / 2 * 8) * 64 + n * 8 + thread % 4 * 2 + i % 2] = d[n][i];
    }
  }
}
KERNEL_EXPORT(selftest_wgmma)
