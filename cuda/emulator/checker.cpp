#include "checker.h"

#include <algorithm>

namespace emu {
namespace {

// Cells are of two bytes: the smallest thing that kernels store is a bf16.
constexpr size_t kCell = 2;

// Locals are the thread's own. (Other mappings may lie right beside a stack.)
bool on_stack(const Thread& t, const void* p) {
  const unsigned char* q = static_cast<const unsigned char*>(p);
  return q >= t.stack_top - kStackBytes && q < t.stack_top;
}

}  // namespace

Access Checker::now(const Thread& t) const {
  return {block.barriers, block.warp_epochs[t.warp()], t.tick, t.fences, uint16_t(t.id)};
}

bool Checker::before(const Access& earlier, const Thread& later) const {
  if (earlier.thread == later.id || earlier.barriers < block.barriers) return true;
  if (earlier.thread / kWarp == later.warp() && earlier.warp_syncs < block.warp_epochs[later.warp()]) return true;
  return !block.mbarriers.empty() && earlier.tick <= later.seen[earlier.thread];
}

// Clears what the block before has used: most blocks use little of it.
void Checker::begin_block() {
  cells.resize((kStaticCapacity + kDynamicCapacity) / kCell);
  std::fill_n(cells.begin(), (used_static + kCell - 1) / kCell, SharedCell{});
  std::fill_n(cells.begin() + kStaticCapacity / kCell, (used_dynamic + kCell - 1) / kCell, SharedCell{});
  requests.clear();
  readers.clear();
  retirements.clear();
}

// Between arrays, or behind the last: memory that no array owns.
void Checker::check_extent(const void* address, size_t bytes, const char* what) {
  const unsigned char* p = static_cast<const unsigned char*>(address);
  const unsigned char* dynamic = block.dynamic;
  if (p >= dynamic) {
    if (p + bytes > dynamic + block.launch->shared_bytes) {
      fail("%s of %zu bytes at offset %td of dynamic shared memory of %u bytes", what, bytes,
           p - dynamic, block.launch->shared_bytes);
    }
    return;
  }
  const uint32_t at = uint32_t(p - block.shared);
  for (const auto& [token, array] : block.arrays) {
    if (at >= array.offset && at < array.offset + array.bytes) {
      if (at + bytes <= array.offset + array.bytes) return;
      fail("%s of %zu bytes at offset %u of a shared array of %u bytes", what, bytes,
           at - array.offset, array.bytes);
    }
  }
  fail("%s of %zu bytes in shared memory that no array owns", what, bytes);
}

void Checker::shared_readable(Thread& t, const void* address, size_t bytes, const char* what) {
  check_extent(address, bytes, what);
  const size_t first = (static_cast<const unsigned char*>(address) - block.shared) / kCell;
  const size_t last = (static_cast<const unsigned char*>(address) + bytes - 1 - block.shared) / kCell;
  for (size_t i = first; i <= last; i++) {
    SharedCell& c = cells[i];
    if (c.in_flight) fail("%s of shared memory at offset %zu before the cp.async of thread %u has been waited for", what, i * kCell, c.copier);
    if (!c.initialised) fail("%s of shared memory at offset %zu that nobody has written", what, i * kCell);
    if (c.written && !before(c.write, t)) {
      fail("race: %s of shared memory at offset %zu, written by thread %u with no barrier between",
           what, i * kCell, c.write.thread);
    }
  }
}

void Checker::shared_read(Thread& t, const void* address, size_t bytes, const char* what) {
  shared_readable(t, address, bytes, what);
  const size_t first = (static_cast<const unsigned char*>(address) - block.shared) / kCell;
  const size_t last = (static_cast<const unsigned char*>(address) + bytes - 1 - block.shared) / kCell;
  for (size_t i = first; i <= last; i++) {
    SharedCell& c = cells[i];
    if (!block.mbarriers.empty()) {
      std::vector<Reader>& all = readers[i];
      if (all.empty() || all.back().retired >= 0 || all.back().access.thread != t.id) all.push_back({{}, -1});
      all.back().access = now(t);
      continue;
    }
    if (c.readers == kNobody || c.read.barriers != block.barriers) {
      c.read = now(t);
      c.readers = kOneThread;
    } else if (c.read.thread / kWarp != t.warp()) {
      c.readers = kSeveralWarps;
    } else {
      if (c.read.thread != t.id && c.readers == kOneThread) c.readers = kOneWarp;
      c.read.warp_syncs = block.warp_epochs[t.warp()];
    }
  }
}

void Checker::shared_write(Thread& t, const void* address, size_t bytes, const char* what) {
  check_extent(address, bytes, what);
  const size_t first = (static_cast<const unsigned char*>(address) - block.shared) / kCell;
  const size_t last = (static_cast<const unsigned char*>(address) + bytes - 1 - block.shared) / kCell;
  for (size_t i = first; i <= last; i++) {
    SharedCell& c = cells[i];
    if (c.in_flight) fail("%s to shared memory at offset %zu into which a cp.async of thread %u is under way", what, i * kCell, c.copier);
    if (c.written && !before(c.write, t)) {
      fail("race: %s to shared memory at offset %zu, written by thread %u with no barrier between",
           what, i * kCell, c.write.thread);
    }
    if (c.products > 0) fail("race: %s to shared memory at offset %zu that a wgmma under way reads", what, i * kCell);
    if (!block.mbarriers.empty()) {
      check_readers(t, i, what);
    } else if (c.readers != kNobody && c.read.barriers == block.barriers) {
      const bool same_warp = c.readers != kSeveralWarps && c.read.thread / kWarp == t.warp();
      const bool ordered = (c.readers == kOneThread && c.read.thread == t.id) ||
                           (same_warp && c.read.warp_syncs < block.warp_epochs[t.warp()]);
      if (!ordered) {
        fail("race: %s to shared memory at offset %zu that %s reads with no barrier between", what,
             i * kCell,
             c.readers == kOneThread ? ("thread " + std::to_string(c.read.thread)).c_str()
                                     : "several threads");
      }
    }
    c.write = now(t);
    c.written = c.initialised = true;
    c.readers = kNobody;
  }
}

// Whoever has read this cell did so before.
void Checker::check_readers(Thread& t, size_t cell, const char* what) {
  auto it = readers.find(cell);
  if (it == readers.end()) return;
  for (const Reader& r : it->second) {
    if (r.retired < 0) {
      if (before(r.access, t)) continue;
      fail("race: %s to shared memory at offset %zu that thread %u reads with no barrier between", what, cell * kCell,
           r.access.thread);
    }
    const Retired& done = retirements[r.retired];
    if (r.retired == t.cleared || done.barriers < block.barriers) continue;
    for (uint32_t i = 0; i < kWarpgroup; i++) {
      const uint32_t thread = done.first_thread + i;
      if (thread == t.id || done.ticks[i] <= t.seen[thread]) continue;
      fail("race: %s to shared memory at offset %zu that a wgmma of thread %u reads with no barrier between", what,
           cell * kCell, thread);
    }
    t.cleared = r.retired;
  }
  readers.erase(it);
}

void Checker::product_reads(Thread* threads, const void* chunk) {
  const size_t first = (static_cast<const unsigned char*>(chunk) - block.shared) / kCell;
  for (uint32_t warp = 0; warp < kWarpgroup; warp += kWarp) shared_readable(threads[warp], chunk, 16, "wgmma");
  for (size_t i = first; i < first + 16 / kCell; i++) {
    SharedCell& c = cells[i];
    const Thread& writer = block.threads[c.write.thread];
    if (writer.fences == c.write.fences) {
      fail("wgmma of shared memory at offset %zu without a fence_async_shared of thread %u, which wrote it", i * kCell,
           writer.id);
    }
    c.products++;
  }
}

uint32_t Checker::retire(const Thread* threads) {
  Retired r = {block.barriers, threads[0].id, {}};
  for (uint32_t i = 0; i < kWarpgroup; i++) r.ticks[i] = threads[i].tick;
  retirements.push_back(r);
  return uint32_t(retirements.size() - 1);
}

void Checker::product_has_read(const void* chunk, uint32_t retired) {
  const size_t first = (static_cast<const unsigned char*>(chunk) - block.shared) / kCell;
  for (size_t i = first; i < first + 16 / kCell; i++) {
    cells[i].products--;
    std::vector<Reader>& all = readers[i];
    if (all.empty() || all.back().retired != int32_t(retired)) all.push_back({{}, int32_t(retired)});
  }
}

void Checker::global(Thread& t, const void* address, size_t bytes, bool write, const char* what) {
  Allocation* a = find_allocation(address);
  if (a == nullptr) fail("%s of %zu bytes at %p, which is in no allocation", what, bytes, address);
  const size_t at = static_cast<const unsigned char*>(address) - a->start;
  if (at + bytes > a->bytes) {
    fail("%s of %zu bytes at offset %zu of an allocation of %zu bytes", what, bytes, at, a->bytes);
  }
  const uint32_t launch = block.launch->number;
  const uint32_t me = uint32_t(block.index);
  ArcaEmuStats& stats = block_stats();
  (write ? stats.global_bytes_written : stats.global_bytes_read) += bytes;
  for (size_t i = at / kCell; i <= (at + bytes - 1) / kCell; i++) {
    GlobalCell& c = a->cells[i];
    if (!write && !a->written[i]) fail("%s of %zu bytes at offset %zu of an allocation of %zu bytes: nobody has written there", what, bytes, at, a->bytes);
    const bool written_now = c.write_launch == launch;
    if (written_now && c.write_block != me) {
      fail("race: %s of global memory at offset %zu of %zu, which block %u writes in the same launch",
           what, i * kCell, a->bytes, c.write_block);
    }
    if (written_now && !before(c.write, t)) {
      fail("race: %s of global memory at offset %zu of %zu, written by thread %u with no barrier between",
           what, i * kCell, a->bytes, c.write.thread);
    }
    if (write) {
      if (c.read_launch == launch && (c.several_blocks_read || c.read_block != me)) {
        fail("race: %s of global memory at offset %zu of %zu, which block %u reads in the same launch",
             what, i * kCell, a->bytes, c.read_block);
      }
      if (!written_now) stats.unique_bytes_written += kCell;
      c.write_launch = launch;
      c.write_block = me;
      c.write = now(t);
      a->written[i] = 1;
    } else if (c.read_launch != launch) {
      if (!written_now) stats.unique_bytes_read += kCell;
      c.read_launch = launch;
      c.read_block = me;
      c.several_blocks_read = false;
    } else if (c.read_block != me) {
      c.several_blocks_read = true;
    }
  }
}

void Checker::access(Thread& t, const void* address, size_t bytes, bool write, bool aligned, const void* place) {
  if (on_stack(t, address)) return;
  const bool shared = block.contains(address);
  if (shared) {
    if (write) {
      shared_write(t, address, bytes, "write");
    } else {
      shared_read(t, address, bytes, "read");
    }
  } else {
    Allocation* a = find_allocation(address);
    // Constants and tables of the program itself are nobody's race.
    if (a == nullptr && !write) return;
    global(t, address, bytes, write, write ? "write" : "read");
  }
  if (aligned && reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    fail("%s of %zu bytes at %p: not aligned", write ? "write" : "read", bytes, address);
  }
  count(t, address, bytes, write, shared, place);
}

void Checker::copy_issued(Thread& t, const void* shared, const void* global_address, bool valid, int line) {
  if (valid) global(t, global_address, 16, false, "cp.async");
  shared_write(t, shared, 16, "cp.async");
  const size_t first = (static_cast<const unsigned char*>(shared) - block.shared) / kCell;
  for (size_t i = first; i < first + 16 / kCell; i++) {
    cells[i].in_flight = true;
    cells[i].copier = uint16_t(t.id);
  }
  const void* place = reinterpret_cast<const void*>(uintptr_t(line));
  if (valid) count(t, global_address, 16, false, false, place);
}

// The bytes are there for this thread now; for others after the next barrier.
void Checker::copy_arrived(Thread& t, const void* shared) {
  const size_t first = (static_cast<const unsigned char*>(shared) - block.shared) / kCell;
  for (size_t i = first; i < first + 16 / kCell; i++) {
    cells[i].in_flight = false;
    cells[i].write = now(t);
  }
}

// Lanes of a warp that execute one instruction for the nth time are taken to
// do so together.
void Checker::count(Thread& t, const void* address, size_t bytes, bool write, bool shared, const void* place) {
  if (block.launch->settings.checked < 2) return;
  const uint32_t nth = t.executed[place]++;
  const std::pair<uint64_t, uint64_t> key{reinterpret_cast<uintptr_t>(place),
                                          uint64_t(t.warp()) << 32 | nth};
  Request& r = requests[key];
  r.lanes++;
  r.shared = shared;
  r.write = write;
  r.addresses.push_back(reinterpret_cast<uintptr_t>(address));
  r.addresses.push_back(bytes);
  if (r.lanes == kWarp) {
    finish(r);
    requests.erase(key);
  }
}

void Checker::finish(const Request& r) {
  ArcaEmuStats& stats = block_stats();
  if (!r.shared) {
    std::vector<uint64_t> sectors;
    for (size_t i = 0; i < r.addresses.size(); i += 2) {
      for (uint64_t s = r.addresses[i] / 32; s <= (r.addresses[i] + r.addresses[i + 1] - 1) / 32; s++) sectors.push_back(s);
    }
    std::sort(sectors.begin(), sectors.end());
    stats.requests++;
    stats.sectors += std::unique(sectors.begin(), sectors.end()) - sectors.begin();
    return;
  }
  // 32 banks of four bytes; wide accesses go by halves or quarters of a warp,
  // each of 128 bytes. A bank serves one word at a time.
  const uint64_t bytes = std::max<uint64_t>(r.addresses[1], 4);
  const size_t together = std::max<uint64_t>(128 / bytes, 1);
  stats.shared_requests++;
  for (size_t first = 0; first < r.addresses.size() / 2; first += together) {
    std::vector<uint64_t> words;
    const size_t end = std::min(r.addresses.size() / 2, first + together);
    for (size_t i = first; i < end; i++) {
      const uint64_t at = r.addresses[2 * i];
      for (uint64_t w = at / 4; w <= (at + r.addresses[2 * i + 1] - 1) / 4; w++) words.push_back(w);
    }
    std::sort(words.begin(), words.end());
    words.erase(std::unique(words.begin(), words.end()), words.end());
    uint32_t load[32] = {};
    uint32_t worst = 0;
    for (uint64_t w : words) worst = std::max(worst, ++load[w % 32]);
    if (worst > 1) stats.bank_conflicts += worst - 1;
  }
}

void Checker::count_ldmatrix(const Thread* lanes) {
  if (block.launch->settings.checked < 2) return;
  Request r{kWarp, true, false, {}};
  for (int i = 0; i < kWarp; i++) {
    r.addresses.push_back(reinterpret_cast<uintptr_t>(static_cast<LdmatrixOp*>(lanes[i].lane_data)->row));
    r.addresses.push_back(16);
  }
  finish(r);
}

void Checker::end_block() {
  for (const auto& [key, request] : requests) finish(request);
  requests.clear();
  used_static = block.static_used;
  used_dynamic = block.launch->shared_bytes;
}

}  // namespace emu

// What g++ calls before each access under -fsanitize=thread.
extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

// g++ calls the unaligned forms where it knows of no alignment.
#define EMU_HOOK(name, bytes, write, aligned)                                                      \
  void name(void* p) {                                                                    \
    if (emu::current == nullptr) return;                                                  \
    emu::current->block->checker->access(*emu::current, p, bytes, write, aligned,         \
                                         __builtin_return_address(0));                    \
  }
EMU_HOOK(__tsan_read1, 1, false, true)
EMU_HOOK(__tsan_read2, 2, false, true)
EMU_HOOK(__tsan_read4, 4, false, true)
EMU_HOOK(__tsan_read8, 8, false, true)
EMU_HOOK(__tsan_read16, 16, false, true)
EMU_HOOK(__tsan_write1, 1, true, true)
EMU_HOOK(__tsan_write2, 2, true, true)
EMU_HOOK(__tsan_write4, 4, true, true)
EMU_HOOK(__tsan_write8, 8, true, true)
EMU_HOOK(__tsan_write16, 16, true, true)
EMU_HOOK(__tsan_unaligned_read2, 2, false, false)
EMU_HOOK(__tsan_unaligned_read4, 4, false, false)
EMU_HOOK(__tsan_unaligned_read8, 8, false, false)
EMU_HOOK(__tsan_unaligned_read16, 16, false, false)
EMU_HOOK(__tsan_unaligned_write2, 2, true, false)
EMU_HOOK(__tsan_unaligned_write4, 4, true, false)
EMU_HOOK(__tsan_unaligned_write8, 8, true, false)
EMU_HOOK(__tsan_unaligned_write16, 16, true, false)
EMU_HOOK(__tsan_volatile_read4, 4, false, true)
EMU_HOOK(__tsan_volatile_write4, 4, true, true)

void __tsan_read_range(void* p, size_t bytes) {
  if (emu::current == nullptr || bytes == 0) return;
  emu::current->block->checker->access(*emu::current, p, bytes, false, false, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t bytes) {
  if (emu::current == nullptr || bytes == 0) return;
  emu::current->block->checker->access(*emu::current, p, bytes, true, false, __builtin_return_address(0));
}
}
