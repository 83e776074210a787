// The g++ side of wgmma.cuh.
#pragma once

struct Mbarrier {
  uint64_t state;
};

namespace emu {

struct WgmmaOp {
  float* d;
  uint32_t n;
  const uint32_t* a_registers;  // or null: a is in shared memory
  uint64_t a, b;
  bool accumulate;
  bool b_by_depth;  // stored [k][n]
};

void mbarrier_init(Mbarrier* barrier, uint32_t count, int line);
void mbarrier_arrive(Mbarrier* barrier, int line);
void mbarrier_wait(Mbarrier* barrier, uint32_t parity, int line);
void fence_async();
uint32_t dynamic_address(const void* shared);

}  // namespace emu

DEVICE uint32_t shared_address(const void* p) { return ::emu::dynamic_address(p); }

static inline void mbarrier_init(Mbarrier* barrier, uint32_t count, EMU_LINE) {
  ::emu::mbarrier_init(barrier, count, line);
}
static inline void mbarrier_arrive(Mbarrier* barrier, EMU_LINE) { ::emu::mbarrier_arrive(barrier, line); }
static inline void mbarrier_wait(Mbarrier* barrier, uint32_t parity, EMU_LINE) {
  ::emu::mbarrier_wait(barrier, parity, line);
}
static inline void fence_async_shared() { ::emu::fence_async(); }

// Registers are not counted here.
template <int COUNT>
DEVICE void give_registers() {
  static_assert(COUNT % 8 == 0 && COUNT >= 24 && COUNT <= 256, "as setmaxnreg takes them");
}
template <int COUNT>
DEVICE void take_registers() {
  give_registers<COUNT>();
}

static inline void wgmma_fence(EMU_LINE) { ::emu::collective(::emu::kWgmmaFence, nullptr, line); }
static inline void wgmma_commit(EMU_LINE) { ::emu::collective(::emu::kWgmmaCommit, nullptr, line); }
// The line is the template's own: which wait it is shows in the barrier around.
template <int PENDING, typename... D>
static inline void wgmma_wait(D&...) {
  int pending = PENDING;
  ::emu::collective(::emu::kWgmmaWait, &pending, __builtin_LINE());
}

template <int TILES>
static inline void wgmma(float (&d)[TILES][4], uint64_t a, uint64_t b, bool accumulate, EMU_LINE) {
  ::emu::WgmmaOp op{&d[0][0], 8 * TILES, nullptr, a, b, accumulate, false};
  ::emu::collective(::emu::kWgmma, &op, line);
}
template <int TILES>
static inline void wgmma(float (&d)[TILES][4], const uint32_t (&a)[4], uint64_t b, EMU_LINE) {
  ::emu::WgmmaOp op{&d[0][0], 8 * TILES, a, 0, b, true, true};
  ::emu::collective(::emu::kWgmma, &op, line);
}
