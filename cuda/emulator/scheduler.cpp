// Fibers and their schedule. A block's threads run one at a time on one OS
// thread, each until it waits; which goes next depends on the launch's seed.

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>

#include "checker.h"
#include "runtime.h"

namespace emu {

__thread ThreadView* self;
__thread Thread* current;

namespace {

// The scheduler's own place while a fiber runs.
__thread void* scheduler_stack;
__thread sigjmp_buf* rescue;

#if defined(__x86_64__)
// Saves the callee-saved registers on the stack, swaps stacks, restores.
extern "C" void emu_switch(void** save, void* to);
asm(R"(
.text
.globl emu_switch
.hidden emu_switch
.type emu_switch, @function
emu_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size emu_switch, .-emu_switch
)");
constexpr int kSavedWords = 6;
#elif defined(__aarch64__)
extern "C" void emu_switch(void** save, void* to);
asm(R"(
.text
.globl emu_switch
.hidden emu_switch
.type emu_switch, %function
emu_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
#else
#error "the emulator knows the context switch of x86-64 and aarch64"
#endif

// Stacks of one OS thread, each above an inaccessible page.
struct Stacks {
  std::vector<unsigned char*> tops;

  unsigned char* top(size_t i) {
    const size_t page = sysconf(_SC_PAGESIZE);
    while (tops.size() <= i) {
      void* map = mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (map == MAP_FAILED) {
        fprintf(stderr, "the emulator has no memory for a thread's stack\n");
        abort();
      }
      mprotect(map, page, PROT_NONE);
      tops.push_back(static_cast<unsigned char*>(map) + page + kStackBytes);
    }
    return tops[i];
  }

  ~Stacks() {
    const size_t page = sysconf(_SC_PAGESIZE);
    for (unsigned char* t : tops) munmap(t - kStackBytes - page, kStackBytes + page);
  }
};

thread_local Stacks stacks;

void fiber_main() {
  Thread* t = current;
  const Launch& launch = *t->block->launch;
  launch.kernel->call(launch.kernel->function, launch.args);
  t->state = State::kDone;
  suspend();
  abort();  // nobody resumes a finished thread
}

void prepare(Thread& t) {
  t.stack_top = stacks.top(t.id);
  uintptr_t top = reinterpret_cast<uintptr_t>(t.stack_top) & ~uintptr_t(15);
#if defined(__x86_64__)
  void** sp = reinterpret_cast<void**>(top);
  *--sp = nullptr;  // a return address nobody takes: alignment as after a call
  *--sp = reinterpret_cast<void*>(fiber_main);
  for (int i = 0; i < kSavedWords; i++) *--sp = nullptr;
  t.stack_pointer = sp;
#else
  void** sp = reinterpret_cast<void**>(top - 160);
  for (int i = 0; i < 20; i++) sp[i] = nullptr;
  sp[11] = reinterpret_cast<void*>(fiber_main);
  t.stack_pointer = sp;
#endif
}

void resume(Thread& t) {
  current = &t;
  self = &t.view;
  emu_switch(&scheduler_stack, t.stack_pointer);
  current = nullptr;
}

// Faults within a fiber end the launch, not the process.
struct sigaction before[3];
constexpr int kSignals[3] = {SIGSEGV, SIGBUS, SIGILL};

void on_fault(int signal, siginfo_t* info, void* context) {
  if (current != nullptr && rescue != nullptr) {
    Thread& t = *current;
    const char* what = signal == SIGILL ? "index or shift out of its bounds"
                                        : "access to memory that is nobody's";
    char text[512];
    snprintf(text, sizeof text, "%s, at address %p (%s)", what, info->si_addr,
             describe(t).c_str());
    if (t.block->launch->error.empty()) t.block->launch->error = text;
    t.block->failed = true;
    siglongjmp(*rescue, 1);
  }
  for (int i = 0; i < 3; i++) {
    if (kSignals[i] != signal) continue;
    if (before[i].sa_flags & SA_SIGINFO) return before[i].sa_sigaction(signal, info, context);
    if (before[i].sa_handler != SIG_DFL && before[i].sa_handler != SIG_IGN) {
      return before[i].sa_handler(signal);
    }
  }
  ::signal(signal, SIG_DFL);
}

// Each OS thread that runs blocks needs a stack for the handler.
struct SignalStack {
  static constexpr size_t kBytes = 64 << 10;
  std::unique_ptr<unsigned char[]> memory{new unsigned char[kBytes]};
  stack_t old{};
  SignalStack() {
    static std::once_flag once;
    std::call_once(once, [] {
      struct sigaction action = {};
      action.sa_sigaction = on_fault;
      action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
      for (int i = 0; i < 3; i++) sigaction(kSignals[i], &action, &before[i]);
    });
    stack_t s = {};
    s.ss_sp = memory.get();
    s.ss_size = kBytes;
    sigaltstack(&s, &old);
  }
  ~SignalStack() { sigaltstack(&old, nullptr); }
};

uint64_t next_random(uint64_t& state) {
  state += 0x9E3779B97F4A7C15u;
  uint64_t z = state;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// Which threads go in which order in one round.
void order_threads(Block& block, std::vector<uint32_t>& order) {
  const uint64_t seed = block.launch->settings.seed;
  if (seed == 1) {
    std::reverse(order.begin(), order.end());
  } else if (seed > 1) {
    for (size_t i = order.size(); i > 1; i--) {
      std::swap(order[i - 1], order[next_random(block.random) % i]);
    }
  }
}

// Nobody can go on: either all wait at one barrier, or something is wrong.
bool release_barrier(Block& block, std::vector<uint32_t>& order) {
  const Thread* first = nullptr;
  const Thread* gone = nullptr;
  for (uint32_t i = 0; i < block.thread_count; i++) {
    Thread& t = block.threads[i];
    if (t.state == State::kDone) {
      gone = &t;
      continue;
    }
    if (t.state == State::kTogether) {
      block.launch->error = "deadlock: " + describe(t) + " waits in " +
                            operation_name(t.operation) + " at line " + std::to_string(t.line) +
                            " for lanes that never come";
      return false;
    }
    if (t.state == State::kAtMbarrier) {
      block.launch->error = "deadlock: " + describe(t) + " waits in mbarrier_wait at line " +
                            std::to_string(t.line) + ", " +
                            std::to_string(block.mbarriers[t.mbarrier].pending) + " arrivals are missing";
      return false;
    }
    if (first == nullptr) first = &t;
    if (t.line != first->line) {
      block.launch->error = "barrier divergence: " + describe(*first) + " waits at line " +
                            std::to_string(first->line) + ", " + describe(t) + " at line " +
                            std::to_string(t.line);
      return false;
    }
  }
  if (gone != nullptr) {
    block.launch->error = "barrier divergence: " + describe(*first) + " waits at line " +
                          std::to_string(first->line) + ", " + describe(*gone) + " has ended";
    return false;
  }
  block.barriers++;
  block_stats().barriers++;
  order.clear();
  for (uint32_t i = 0; i < block.thread_count; i++) {
    if (block.threads[i].state == State::kAtBarrier) {
      block.threads[i].state = State::kReady;
      order.push_back(i);
    }
  }
  return true;
}

}  // namespace

void suspend() { emu_switch(&current->stack_pointer, scheduler_stack); }

void fail(const char* format, ...) {
  char text[1024];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  Thread& t = *current;
  if (t.block->launch->error.empty()) {
    t.block->launch->error = std::string(text) + " (" + describe(t) + ")";
  }
  t.block->failed = true;
  t.state = State::kDone;
  suspend();
  abort();
}

std::string describe(const Thread& t) {
  const ThreadView& v = t.view;
  char text[160];
  snprintf(text, sizeof text, "block (%u, %u, %u) thread %u", v.block.x, v.block.y, v.block.z,
           t.id);
  return text;
}

const char* operation_name(Operation operation) {
  static const char* const names[] = {"shfl_xor", "shfl_xor", "shfl",          "warp_ballot",
                                      "__syncwarp", "ldmatrix_x4", "ldmatrix_x4_trans", "mma_bf16",
                                      "wgmma_fence", "wgmma", "wgmma_commit", "wgmma_wait"};
  return names[operation];
}

void run_block(Block& block) {
  static thread_local SignalStack signal_stack;
  sigjmp_buf buffer;
  std::vector<uint32_t> order;
  for (uint32_t i = 0; i < block.thread_count; i++) {
    prepare(block.threads[i]);
    order.push_back(i);
  }
  rescue = &buffer;
  if (sigsetjmp(buffer, 1) != 0) {
    current = nullptr;
    rescue = nullptr;
    return;
  }
  for (;;) {
    order_threads(block, order);
    for (uint32_t i : order) {
      resume(block.threads[i]);
      if (block.failed) break;
    }
    if (block.failed) break;
    // Those that a collective has set free go next; then the barrier.
    order.clear();
    bool alive = false;
    for (uint32_t i = 0; i < block.thread_count; i++) {
      const State s = block.threads[i].state;
      if (s == State::kReady) order.push_back(i);
      alive |= s != State::kDone;
    }
    if (!order.empty()) continue;
    if (!alive) {
      for (size_t i = 0; i < block.warpgroups.size(); i++) {
        if (block.warpgroups[i].products.empty()) continue;
        block.launch->error = "the kernel ends with a wgmma that nobody has waited for (" +
                              describe(block.threads[i * kWarpgroup]) + ")";
        block.failed = true;
      }
      break;
    }
    if (!release_barrier(block, order)) {
      block.failed = true;
      break;
    }
  }
  rescue = nullptr;
}

void barrier(int line) {
  Thread& t = *current;
  t.state = State::kAtBarrier;
  t.line = line;
  suspend();
}

static void warpgroup_collective(Block& block, uint32_t number) {
  if (number >= block.warpgroups.size()) fail("a warpgroup's operation in a warpgroup of fewer than 128 threads");
  if (++block.warpgroups[number].waiting < kWarpgroup) {
    suspend();
    return;
  }
  block.warpgroups[number].waiting = 0;
  run_warpgroup(block, number);
  for (uint32_t i = 0; i < kWarpgroup; i++) block.threads[number * kWarpgroup + i].state = State::kReady;
}

void collective(Operation operation, void* lane, int line) {
  Thread& t = *current;
  Block& block = *t.block;
  const uint32_t warp = t.warp();
  t.state = State::kTogether;
  t.operation = operation;
  t.line = line;
  t.lane_data = lane;
  if (operation >= kWgmmaFence) return warpgroup_collective(block, t.id / kWarpgroup);
  const uint32_t lanes = std::min<uint32_t>(kWarp, block.thread_count - warp * kWarp);
  if (++block.warp_waiting[warp] < lanes) {
    suspend();
    return;
  }
  block.warp_waiting[warp] = 0;
  run_collective(block, warp);
  for (uint32_t i = 0; i < lanes; i++) {
    block.threads[warp * kWarp + i].state = State::kReady;
  }
  // The last lane goes on at once; the others when their turn comes.
}

}  // namespace emu
