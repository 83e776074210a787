// The g++ side of intrinsics.cuh: the same names and signatures, executed by
// the emulator. Collectives carry their call site's line as a hidden default,
// so that lanes that meet at different lines are told apart.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <utility>

#define KERNEL static
#define DEVICE inline __attribute__((always_inline))
#define LAUNCH_BOUNDS(...)
#define __restrict__ __restrict
#define SHARED(type, name, dims)                                                      \
  typedef type name##_array dims;                                                     \
  static char name##_token;                                                           \
  name##_array& name = *static_cast<name##_array*>(                                   \
      ::emu::shared_array(&name##_token, sizeof(name##_array), alignof(name##_array)))
#define DYN_SMEM(name, alignment)                                                     \
  static_assert(alignment <= 128, "dynamic shared memory is aligned to 128");         \
  unsigned char* const name = ::emu::dynamic_shared()

namespace emu {

struct Index {
  uint32_t x, y, z;
};

// What a fiber can see of itself.
struct ThreadView {
  Index thread, block, block_dim, grid_dim;
};
extern __thread ThreadView* self;

enum Operation : int {
  kShuffleXor32, kShuffleXor64, kShuffle32, kBallot, kSyncWarp,
  kLdmatrix, kLdmatrixTrans, kMma,
  // Of a warpgroup.
  kWgmmaFence, kWgmma, kWgmmaCommit, kWgmmaWait,
};

struct ShuffleOp { uint64_t value, result; int lane; };
struct LdmatrixOp { const void* row; uint32_t* out; };
struct MmaOp { float* d; const uint32_t* a; const uint32_t* b; };

void* shared_array(const void* token, size_t bytes, size_t alignment);
unsigned char* dynamic_shared();
void barrier(int line);
// Waits for the warp, or the warpgroup; the last to come runs the operation for
// all.
void collective(Operation operation, void* lane, int line);
void copy_async(void* shared, const void* global, bool valid, int line);
void copy_commit();
void copy_wait(int pending);

#ifdef ARCA_EMU_CHECKED
constexpr int kChecked = 1;
#else
constexpr int kChecked = 0;
#endif

using Trampoline = void (*)(void (*)(), void**);
void register_kernel(const char* name, int checked, void (*kernel)(), Trampoline call,
                     const uint64_t* sizes, uint32_t count);

// Internal to each object, or the linker would give the fast and the checked
// build one copy.
namespace {

template <typename... P>
struct Export {
  template <size_t... I>
  static void spread(void (*f)(P...), void** args, std::index_sequence<I...>) {
    f(*static_cast<P*>(args[I])...);
  }
  static void call(void (*f)(), void** args) {
    spread(reinterpret_cast<void (*)(P...)>(f), args, std::index_sequence_for<P...>());
  }
};

struct Registration {
  template <typename... P>
  Registration(const char* name, void (*f)(P...)) {
    static const uint64_t sizes[] = {sizeof(P)..., 0};
    register_kernel(name, kChecked, reinterpret_cast<void (*)()>(f), Export<P...>::call, sizes,
                    sizeof...(P));
  }
};

}  // namespace
}  // namespace emu

#define KERNEL_EXPORT(name) static ::emu::Registration emu_registration_##name(#name, name);

#define threadIdx (::emu::self->thread)
#define blockIdx (::emu::self->block)
#define blockDim (::emu::self->block_dim)
#define gridDim (::emu::self->grid_dim)

constexpr unsigned FULL_WARP = 0xffffffffu;

struct bf16 {
  uint16_t bits;
};

#define EMU_LINE int line = __builtin_LINE()

static inline void __syncthreads(EMU_LINE) { ::emu::barrier(line); }
static inline void __syncwarp(unsigned = FULL_WARP, EMU_LINE) {
  ::emu::collective(::emu::kSyncWarp, nullptr, line);
}

DEVICE uint32_t bits_of_float(float x) {
  uint32_t r;
  __builtin_memcpy(&r, &x, 4);
  return r;
}
DEVICE float float_from_bits(uint32_t x) {
  float r;
  __builtin_memcpy(&r, &x, 4);
  return r;
}
DEVICE float to_float(bf16 x) { return float_from_bits(uint32_t(x.bits) << 16); }
DEVICE bf16 to_bf16(float x) {
  uint32_t b = bits_of_float(x);
  if (x != x) return bf16{uint16_t((b >> 16) | 0x40)};
  return bf16{uint16_t((b + 0x7fff + ((b >> 16) & 1)) >> 16)};
}
DEVICE uint32_t pack_bf16(float low, float high) {
  return uint32_t(to_bf16(low).bits) | uint32_t(to_bf16(high).bits) << 16;
}
DEVICE float fast_exp2(float x) { return exp2f(x); }
DEVICE float fast_reciprocal(float x) { return 1.0f / x; }
DEVICE float mul_exact(float a, float b) { return a * b; }
DEVICE float add_exact(float a, float b) { return a + b; }

// Vectors of g++, so that the checker sees one access and not its words.
typedef uint32_t Words2 __attribute__((vector_size(8), may_alias));
typedef uint32_t Words4 __attribute__((vector_size(16), may_alias));
DEVICE void load_words(uint32_t (&r)[2], const void* p) {
  const Words2 v = *static_cast<const Words2*>(p);
  for (int i = 0; i < 2; i++) r[i] = v[i];
}
DEVICE void load_words(uint32_t (&r)[4], const void* p) {
  const Words4 v = *static_cast<const Words4*>(p);
  for (int i = 0; i < 4; i++) r[i] = v[i];
}
DEVICE void store_words(void* p, const uint32_t (&r)[2]) { *static_cast<Words2*>(p) = Words2{r[0], r[1]}; }
DEVICE void store_words(void* p, const uint32_t (&r)[4]) {
  *static_cast<Words4*>(p) = Words4{r[0], r[1], r[2], r[3]};
}
DEVICE void store_words_global(void* p, const uint32_t (&r)[4]) { store_words(p, r); }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
template <typename T>
DEVICE T min(T a, T b) { return b < a ? b : a; }
template <typename T>
DEVICE T max(T a, T b) { return a < b ? b : a; }

static inline float shfl_xor(float x, int mask, EMU_LINE) {
  ::emu::ShuffleOp op{bits_of_float(x), 0, mask};
  ::emu::collective(::emu::kShuffleXor32, &op, line);
  return float_from_bits(uint32_t(op.result));
}
static inline uint32_t shfl_xor(uint32_t x, int mask, EMU_LINE) {
  ::emu::ShuffleOp op{x, 0, mask};
  ::emu::collective(::emu::kShuffleXor32, &op, line);
  return uint32_t(op.result);
}
static inline double shfl_xor(double x, int mask, EMU_LINE) {
  ::emu::ShuffleOp op{0, 0, mask};
  __builtin_memcpy(&op.value, &x, 8);
  ::emu::collective(::emu::kShuffleXor64, &op, line);
  double r;
  __builtin_memcpy(&r, &op.result, 8);
  return r;
}
static inline float shfl(float x, int lane, EMU_LINE) {
  ::emu::ShuffleOp op{bits_of_float(x), 0, lane};
  ::emu::collective(::emu::kShuffle32, &op, line);
  return float_from_bits(uint32_t(op.result));
}
static inline uint32_t shfl(uint32_t x, int lane, EMU_LINE) {
  ::emu::ShuffleOp op{x, 0, lane};
  ::emu::collective(::emu::kShuffle32, &op, line);
  return uint32_t(op.result);
}
static inline uint32_t warp_ballot(bool vote, EMU_LINE) {
  ::emu::ShuffleOp op{vote, 0, 0};
  ::emu::collective(::emu::kBallot, &op, line);
  return uint32_t(op.result);
}

static inline void cp_async16(void* shared, const void* global, bool valid, EMU_LINE) {
  ::emu::copy_async(shared, global, valid, line);
}
static inline void cp_async_commit() { ::emu::copy_commit(); }
template <int pending>
static inline void cp_async_wait() { ::emu::copy_wait(pending); }

static inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, EMU_LINE) {
  ::emu::LdmatrixOp op{row, r};
  ::emu::collective(::emu::kLdmatrix, &op, line);
}
static inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, EMU_LINE) {
  ::emu::LdmatrixOp op{row, r};
  ::emu::collective(::emu::kLdmatrixTrans, &op, line);
}
static inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                            EMU_LINE) {
  ::emu::MmaOp op{d, a, b};
  ::emu::collective(::emu::kMma, &op, line);
}

#include "shim_wgmma.h"
