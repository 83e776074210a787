// Kernels by name, and launches: arguments and limits checked, blocks run.

#include <stdio.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>

#include "checker.h"
#include "runtime.h"

namespace emu {

void prepare_shadows();

namespace {

std::mutex registry_mutex;
// By build (fast, checked) and name. Pointers to kernels stay valid.
std::map<std::string, std::unique_ptr<Kernel>>& registry(int checked) {
  static auto* maps = new std::map<std::string, std::unique_ptr<Kernel>>[2];
  return maps[checked];
}

const Kernel* find_kernel(const char* name, int checked) {
  std::lock_guard<std::mutex> lock(registry_mutex);
  auto& map = registry(checked);
  auto it = map.find(name);
  return it == map.end() ? nullptr : it->second.get();
}

std::atomic<uint32_t> launches{0};
// Checked launches share the shadow memory, and so go one at a time.
std::mutex checked_mutex;

thread_local ArcaEmuStats thread_stats;

// A block's memory, kept by each OS thread from launch to launch.
struct BlockMemory {
  Block block;
  std::vector<unsigned char> memory;

  BlockMemory() : memory(kStaticCapacity + kDynamicCapacity + 512) {
    uintptr_t at = reinterpret_cast<uintptr_t>(memory.data());
    block.shared = memory.data() + ((at + 255) / 256 * 256 - at);
    block.dynamic = block.shared + kStaticCapacity;
  }
};

uint32_t shared_limit(int32_t arch) {
  switch (arch) {
    case 80: return 163 << 10;
    case 120: return 99 << 10;
    default: return 227 << 10;
  }
}

void begin_block(Block& b, Launch& launch, uint64_t index) {
  b.launch = &launch;
  b.index = index;
  b.thread_count = launch.block.x * launch.block.y * launch.block.z;
  if (b.threads.size() < b.thread_count) b.threads.resize(b.thread_count);
  b.arrays.clear();
  b.static_used = 0;
  b.barriers = 0;
  const uint32_t warps = (b.thread_count + kWarp - 1) / kWarp;
  b.warp_epochs.assign(warps, 0);
  b.warp_waiting.assign(warps, 0);
  b.warpgroups.assign(b.thread_count / kWarpgroup, Warpgroup{});
  b.mbarriers.clear();
  b.random = launch.settings.seed * 0x9E3779B97F4A7C15u + index;
  b.failed = false;
  memset(b.dynamic, 0xFF, launch.shared_bytes);
  if (launch.settings.checked != 0) {
    if (!b.checker) b.checker = std::make_unique<Checker>(b);
    b.checker->begin_block();
  } else {
    b.checker.reset();
  }
  const Index& g = launch.grid;
  const Index at = {uint32_t(index % g.x), uint32_t(index / g.x % g.y), uint32_t(index / g.x / g.y)};
  for (uint32_t i = 0; i < b.thread_count; i++) {
    Thread& t = b.threads[i];
    const Index& d = launch.block;
    t.view = {{i % d.x, i / d.x % d.y, i / d.x / d.y}, at, d, g};
    t.block = &b;
    t.id = i;
    t.state = State::kReady;
    t.line = 0;
    t.copies.clear();
    t.groups_committed = 0;
    t.tick = 1;
    t.seen.clear();
    t.fences = 0;
    t.cleared = -1;
    t.executed.clear();
  }
}

// Blocks [next, ...) as they come, until all are done or one has failed.
void run_blocks(Launch& launch, std::atomic<uint64_t>& next, std::atomic<bool>& failed,
                std::string& error, std::mutex& error_mutex) {
  static thread_local BlockMemory memory;
  Block& b = memory.block;
  const uint64_t total = uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z;
  Launch mine = launch;  // an error of its own, while others run
  for (uint64_t i = next++; i < total && !failed; i = next++) {
    // Reverse and random schedules take blocks from the other end, or from a
    // random place on.
    uint64_t index = i;
    if (launch.settings.seed == 1) index = total - 1 - i;
    if (launch.settings.seed > 1) index = (i + launch.settings.seed * 7919) % total;
    begin_block(b, mine, index);
    run_block(b);
    thread_stats.blocks++;
    if (b.checker) b.checker->end_block();
    if (b.failed) {
      std::lock_guard<std::mutex> lock(error_mutex);
      if (!failed) error = mine.error;
      failed = true;
      return;
    }
  }
}

void add(ArcaEmuStats& to, const ArcaEmuStats& from) {
  static_assert(sizeof(ArcaEmuStats) % sizeof(uint64_t) == 0, "all counters are 64-bit");
  uint64_t* t = reinterpret_cast<uint64_t*>(&to);
  const uint64_t* f = reinterpret_cast<const uint64_t*>(&from);
  for (size_t i = 0; i < sizeof(ArcaEmuStats) / sizeof(uint64_t); i++) t[i] += f[i];
}

std::string refuse(const Kernel* kernel, const uint32_t grid[3], const uint32_t block[3],
                   uint32_t shared_bytes, const uint64_t* sizes, uint32_t count, int32_t arch) {
  if (kernel == nullptr) return "there is no kernel of this name in the emulator's build";
  if (count != kernel->sizes.size()) {
    return "it has " + std::to_string(kernel->sizes.size()) + " parameters, " + std::to_string(count) +
           " arguments were given";
  }
  for (uint32_t i = 0; i < count; i++) {
    if (sizes[i] != kernel->sizes[i]) {
      return "parameter " + std::to_string(i) + " has " + std::to_string(kernel->sizes[i]) +
             " bytes, the argument " + std::to_string(sizes[i]);
    }
  }
  const uint64_t threads = uint64_t(block[0]) * block[1] * block[2];
  if (threads == 0 || threads > 1024) return "a block of " + std::to_string(threads) + " threads";
  if (uint64_t(grid[0]) * grid[1] * grid[2] == 0) return "an empty grid";
  if (grid[0] > 0x7fffffffu || grid[1] > 65535 || grid[2] > 65535) return "the grid is too large";
  if (shared_bytes > shared_limit(arch)) {
    return std::to_string(shared_bytes) + " bytes of shared memory, sm_" + std::to_string(arch) +
           " has " + std::to_string(shared_limit(arch));
  }
  return "";
}

}  // namespace

ArcaEmuStats& block_stats() { return thread_stats; }

bool Block::contains(const void* p) const {
  const unsigned char* q = static_cast<const unsigned char*>(p);
  return q >= shared && q < shared + kStaticCapacity + kDynamicCapacity;
}

void* shared_array(const void* token, size_t bytes, size_t alignment) {
  Block& b = *current->block;
  auto it = b.arrays.find(token);
  if (it == b.arrays.end()) {
    // A gap after each array, so that running over one is not running into the
    // next.
    const uint32_t align = std::max<uint32_t>(alignment, 16);
    const uint32_t at = (b.static_used + align - 1) / align * align;
    if (at + bytes + 16 > kStaticCapacity) fail("more than %u bytes of static shared memory", kStaticCapacity);
    it = b.arrays.emplace(token, SharedArray{at, uint32_t(bytes)}).first;
    b.static_used = at + bytes + 16;
    memset(b.shared + at, 0xFF, bytes + 16);
  }
  if (b.static_used + b.launch->shared_bytes > b.launch->shared_limit) {
    fail("%u bytes of shared memory in all, this architecture has %u", b.static_used + b.launch->shared_bytes,
         b.launch->shared_limit);
  }
  return b.shared + it->second.offset;
}

unsigned char* dynamic_shared() { return current->block->dynamic; }

void register_kernel(const char* name, int checked, void (*function)(), Trampoline call,
                     const uint64_t* sizes, uint32_t count) {
  std::lock_guard<std::mutex> lock(registry_mutex);
  auto kernel = std::make_unique<Kernel>(Kernel{function, call, {sizes, sizes + count}});
  auto& slot = registry(checked)[name];
  // Somebody may be running the old one.
  if (slot) slot.release();
  slot = std::move(kernel);
}

}  // namespace emu

extern "C" int arca_emu_has_kernel(const char* kernel, int checked) {
  return emu::find_kernel(kernel, checked != 0) != nullptr;
}

extern "C" uint32_t arca_emu_parameters(const char* name, uint64_t* sizes, uint32_t capacity) {
  const emu::Kernel* kernel = emu::find_kernel(name, false);
  if (kernel == nullptr) return 0;
  const uint32_t count = static_cast<uint32_t>(kernel->sizes.size());
  for (uint32_t i = 0; i < count && i < capacity; i++) sizes[i] = kernel->sizes[i];
  return count;
}

extern "C" int arca_emu_launch(const char* name, const uint32_t grid[3], const uint32_t block[3],
                               uint32_t shared_bytes, void** args, const uint64_t* sizes,
                               uint32_t count, const ArcaEmuSettings* settings,
                               ArcaEmuStats* stats, char* error, uint64_t capacity) {
  using namespace emu;
  const bool checked = settings->checked != 0;
  const Kernel* kernel = find_kernel(name, checked);
  const std::string why = refuse(kernel, grid, block, shared_bytes, sizes, count, settings->arch);
  if (!why.empty()) {
    snprintf(error, capacity, "%s: %s", name, why.c_str());
    return 1;
  }
  std::unique_lock<std::mutex> alone(checked_mutex, std::defer_lock);
  if (checked) {
    alone.lock();
    prepare_shadows();
  }
  Launch launch = {name, kernel, args, {grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]},
                   shared_bytes, shared_limit(settings->arch), *settings, ++launches, ""};
  std::atomic<uint64_t> next{0};
  std::atomic<bool> failed{false};
  std::string text;
  std::mutex text_mutex;
  const uint64_t blocks = uint64_t(grid[0]) * grid[1] * grid[2];
  const uint64_t wanted = checked ? 1 : std::max(1, settings->threads);
  std::vector<std::thread> others;
  std::mutex stats_mutex;
  ArcaEmuStats sum = {};
  auto work = [&] {
    thread_stats = ArcaEmuStats{};
    run_blocks(launch, next, failed, text, text_mutex);
    std::lock_guard<std::mutex> lock(stats_mutex);
    add(sum, thread_stats);
  };
  // A few blocks are done before another OS thread has started.
  for (uint64_t i = 1; i < std::min(wanted, blocks / 8); i++) others.emplace_back(work);
  work();
  for (std::thread& t : others) t.join();
  if (stats != nullptr) add(*stats, sum);
  if (failed) {
    snprintf(error, capacity, "%s: %s", name, text.c_str());
    return 1;
  }
  return 0;
}
