// Hopper's products: what kernels for sm_90a use beyond intrinsics.cuh, which
// is warpgroups' products out of swizzled shared memory and the barriers that
// hand tiles from one warpgroup to another.
//
// With intrinsics.cuh the only file with inline PTX; under g++ the emulator
// defines the same. Compiled for anything but sm_90a, a kernel that comes here
// stops with an error. Sources: PTX ISA, "Asynchronous Warpgroup Level Matrix
// Multiply-Accumulate Instructions" and "mbarrier"; the operands' canonical
// layouts as in CUTLASS's mma_traits_sm90_gmma.hpp.
#pragma once

#include "intrinsics.cuh"

constexpr int WARPGROUP = 128;

// ---- tiles in shared memory

// A tile of ROWS rows of D bf16 lies as D / 64 panels of ROWS rows of 128 bytes,
// each at a boundary of 1,024 bytes; within a panel the 16-byte chunk c of row r
// stands at chunk c ^ (r % 8) (the 128-byte swizzle). Eight rows of one chunk
// are thus in different banks, and a panel is an operand of wgmma both as
// [rows, depth] and as [depth, columns].
constexpr int PANEL = 64;

// Elements before chunk `chunk` (of eight) of row `row`.
template <int ROWS>
DEVICE uint32_t swizzled(uint32_t row, uint32_t chunk) {
  return chunk / 8 * (ROWS * PANEL) + row * PANEL + (chunk % 8 ^ row % 8) * 8;
}

// A panel's descriptor as an operand: 1,024 bytes between groups of eight rows,
// `leading` between panels, where columns go over several.
DEVICE uint64_t wgmma_operand(const bf16* at, uint32_t leading) {
  constexpr uint64_t kStride = 1024 >> 4, kSwizzle128 = 1;
  return uint64_t((shared_address(at) & 0x3ffff) >> 4) | uint64_t(leading >> 4) << 16 | kStride << 32 |
         kSwizzle128 << 62;
}

#ifndef __CUDACC__
#include "emulator/shim_wgmma.h"
#else

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define HOPPER(...) __VA_ARGS__
#else
#define HOPPER(...) __trap()
#endif

// ---- barriers

// A barrier in shared memory that threads arrive at without waiting: a phase is
// complete when `count` of them have, and the next one begins.
struct Mbarrier {
  uint64_t state;
};

// By one thread; the block's barrier must follow before others use it.
DEVICE void mbarrier_init(Mbarrier* barrier, uint32_t count) {
  HOPPER(asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory"));
}

// What this thread did before comes before what those do who wait.
DEVICE void mbarrier_arrive(Mbarrier* barrier) {
  HOPPER(asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared::cta.b64 state, [%0];\n}" ::"r"(shared_address(barrier))
                      : "memory"));
}

// Until the phase of this parity is complete: the first has 0, and before it is
// complete the one before, of parity 1, counts as such. A wait without end ends
// the kernel with an error instead: nothing hangs.
DEVICE void mbarrier_wait(Mbarrier* barrier, uint32_t parity) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  for (uint32_t polls = 0; polls < 1u << 22; polls++) {
    uint32_t done;
    asm volatile(
        "{\n.reg .pred complete;\nmbarrier.try_wait.parity.shared::cta.b64 complete, [%1], %2;\n"
        "selp.u32 %0, 1, 0, complete;\n}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
    if (done) return;
  }
#endif
  __trap();
}

// What this thread wrote to shared memory before (cp.async included, once it is
// waited for) may be read by wgmma after the next barrier.
DEVICE void fence_async_shared() { HOPPER(asm volatile("fence.proxy.async.shared::cta;" ::: "memory")); }

// Registers of each thread of this warpgroup from here on. The kernel starts
// with as many as its launch bounds allow; what one gives up another may take.
template <int COUNT>
DEVICE void give_registers() {
  HOPPER(asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT)));
}
template <int COUNT>
DEVICE void take_registers() {
  HOPPER(asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT)));
}

// ---- products

// Before the first product, and before each that follows a wait: registers that
// were written are seen by the products behind.
DEVICE void wgmma_fence() { HOPPER(asm volatile("wgmma.fence.sync.aligned;" ::: "memory")); }
DEVICE void wgmma_commit() { HOPPER(asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory")); }

// Keeps the compiler from moving accesses to accumulators over a wait.
template <int TILES>
DEVICE void hold(float (&d)[TILES][4]) {
  for (int n = 0; n < TILES; n++) {
    asm volatile("" : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])::"memory");
  }
}

// Waits until at most `PENDING` of this warpgroup's commits are under way. Name
// the accumulators that are read next.
template <int PENDING, typename... D>
DEVICE void wgmma_wait(D&... d) {
  HOPPER(asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory"));
  (hold(d), ...);
}

#define ARCA_ROW(d, n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define ARCA_ROWS_8(d)                                                                                     \
  ARCA_ROW(d, 0), ARCA_ROW(d, 1), ARCA_ROW(d, 2), ARCA_ROW(d, 3), ARCA_ROW(d, 4), ARCA_ROW(d, 5), ARCA_ROW(d, 6), \
      ARCA_ROW(d, 7)
#define ARCA_ROWS_16(d)                                                                                    \
  ARCA_ROWS_8(d), ARCA_ROW(d, 8), ARCA_ROW(d, 9), ARCA_ROW(d, 10), ARCA_ROW(d, 11), ARCA_ROW(d, 12),       \
      ARCA_ROW(d, 13), ARCA_ROW(d, 14), ARCA_ROW(d, 15)
#define ARCA_REGISTERS_32                                                                                  \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "  \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define ARCA_REGISTERS_64                                                                                  \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "  \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, "   \
  "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "   \
  "%62, %63}"

// d (+)= a b over a warpgroup: a is 64 x 16 in shared memory, stored [m][k], b
// 16 x N stored [n][k], N 64 or 128. d is 64 x N in f32: warp w has rows
// 16 w .., lane 4 g + t of it D[g][8 n + 2 t ..] in d[n][0..1] and D[g + 8] of
// these columns in d[n][2..3]: the layout of mma_bf16. Asynchronous: neither d
// nor the operands may be touched before the wait.
DEVICE void wgmma(float (&d)[8][4], uint64_t a, uint64_t b, bool accumulate) {
  HOPPER(asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " ARCA_REGISTERS_32
      ", %32, %33, p, 1, 1, 0, 0;\n}"
      : ARCA_ROWS_8(d)
      : "l"(a), "l"(b), "r"(int(accumulate))));
}
DEVICE void wgmma(float (&d)[16][4], uint64_t a, uint64_t b, bool accumulate) {
  HOPPER(asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " ARCA_REGISTERS_64
      ", %64, %65, p, 1, 1, 0, 0;\n}"
      : ARCA_ROWS_16(d)
      : "l"(a), "l"(b), "r"(int(accumulate))));
}

// The same with a in registers (each warp its 16 rows, as mma_bf16 has them) and
// b stored [k][n].
DEVICE void wgmma(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b) {
  HOPPER(asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
                      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " ARCA_REGISTERS_32
                      ", {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}"
                      : ARCA_ROWS_8(d)
                      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)));
}
DEVICE void wgmma(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b) {
  HOPPER(asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
                      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " ARCA_REGISTERS_64
                      ", {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}"
                      : ARCA_ROWS_16(d)
                      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)));
}

#endif
