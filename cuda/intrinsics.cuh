// What kernels use beyond plain C++: types, warp collectives, asynchronous
// copies, tensor-core fragments.
//
// Inline PTX is here and, for what only Hopper has, in wgmma.cuh. Under nvcc the
// functions below are instructions; under g++ emulator/shim.h defines the same
// names and signatures for the CPU, and kernels are none the wiser. Fragment
// layouts are those of the PTX ISA (m16n8k16, section "Matrix Fragments for
// mma.m16n8k16").
#pragma once

#ifndef __CUDACC__
#include "emulator/shim.h"
#else

#include <stdint.h>

#define KERNEL extern "C" __global__
#define DEVICE __device__ __forceinline__
#define LAUNCH_BOUNDS(...) __launch_bounds__(__VA_ARGS__)
// Static shared memory, 16-byte aligned: SHARED(float, part, [32]);
#define SHARED(type, name, dims) __shared__ __align__(16) type name dims
// The launch's dynamic shared memory, as bytes.
#define DYN_SMEM(name, alignment)                                              \
  extern __shared__ __align__(128) unsigned char arca_dynamic_smem[];          \
  static_assert(alignment <= 128, "dynamic shared memory is aligned to 128");  \
  unsigned char* const name = arca_dynamic_smem
// Registers the kernel with the emulator; nothing to do here.
#define KERNEL_EXPORT(name)

constexpr unsigned FULL_WARP = 0xffffffffu;

// A bfloat16 as it lies in memory; arithmetic happens in f32.
struct bf16 {
  uint16_t bits;
};

DEVICE float to_float(bf16 x) { return __uint_as_float(unsigned(x.bits) << 16); }

// Rounds to nearest even.
DEVICE bf16 to_bf16(float x) {
  bf16 r;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r.bits) : "f"(x));
  return r;
}

// Two bf16 in one register, the first in the low half.
DEVICE uint32_t pack_bf16(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

// 2^x, within 2 ulp.
DEVICE float fast_exp2(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

// 1 / x, within 1 ulp; what would be a denormal is zero.
DEVICE float fast_reciprocal(float x) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

DEVICE float shfl_xor(float x, int mask) { return __shfl_xor_sync(FULL_WARP, x, mask); }
DEVICE uint32_t shfl_xor(uint32_t x, int mask) { return __shfl_xor_sync(FULL_WARP, x, mask); }
DEVICE double shfl_xor(double x, int mask) { return __shfl_xor_sync(FULL_WARP, x, mask); }
DEVICE float shfl(float x, int lane) { return __shfl_sync(FULL_WARP, x, lane); }
DEVICE uint32_t shfl(uint32_t x, int lane) { return __shfl_sync(FULL_WARP, x, lane); }

// Bit i is lane i's vote.
DEVICE uint32_t warp_ballot(bool vote) { return __ballot_sync(FULL_WARP, vote); }

DEVICE uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// 16 bytes from global to shared memory, asynchronously; zeros where !valid
// (then `global` is not read, but must still be a pointer). Both 16-aligned.
DEVICE void cp_async16(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :: "r"(shared_address(shared)), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}

DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `pending` of this thread's groups are still under way.
template <int pending>
DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" :: "n"(pending) : "memory");
}

// Four 8x8 matrices of bf16 from shared memory. Lane i gives the address of
// row i % 8 of matrix i / 8 (16 bytes, 16-aligned); lane i receives elements
// 2 (i % 4) and 2 (i % 4) + 1 of row i / 4 of matrix j in r[j].
DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same with each matrix transposed.
DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// d += a b over a warp: a is 16x16 row-major, b 16x8 column-major (n x k
// row-major), d 16x8 in f32. With g = lane / 4, t = lane % 4:
//   a[0] = A[g][2t..], a[1] = A[g+8][2t..], a[2] = A[g][2t+8..], a[3] = A[g+8][2t+8..]
//   b[0] = B[2t..][g], b[1] = B[2t+8..][g]
//   d[0..1] = D[g][2t..], d[2..3] = D[g+8][2t..]
DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Single-precision operations that the compiler may not contract into FMA, for
// results that must equal the CPU's bit for bit.
DEVICE float mul_exact(float a, float b) { return __fmul_rn(a, b); }
DEVICE float add_exact(float a, float b) { return __fadd_rn(a, b); }
DEVICE float float_from_bits(uint32_t x) { return __uint_as_float(x); }
DEVICE uint32_t bits_of_float(float x) { return __float_as_uint(x); }

// 8 or 16 bytes in one access, at a boundary of as many.
DEVICE void load_words(uint32_t (&r)[2], const void* p) {
  const uint2 v = *static_cast<const uint2*>(p);
  r[0] = v.x;
  r[1] = v.y;
}
DEVICE void load_words(uint32_t (&r)[4], const void* p) {
  const uint4 v = *static_cast<const uint4*>(p);
  r[0] = v.x;
  r[1] = v.y;
  r[2] = v.z;
  r[3] = v.w;
}
DEVICE void store_words(void* p, const uint32_t (&r)[2]) { *static_cast<uint2*>(p) = make_uint2(r[0], r[1]); }
DEVICE void store_words(void* p, const uint32_t (&r)[4]) {
  *static_cast<uint4*>(p) = make_uint4(r[0], r[1], r[2], r[3]);
}
// The same to global memory, surely as one: for sm_90 and before, nvcc cuts some
// of the former into words.
DEVICE void store_words_global(void* p, const uint32_t (&r)[4]) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
               :: "l"(__cvta_generic_to_global(p)), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

#endif
