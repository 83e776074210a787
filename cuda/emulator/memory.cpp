// Device memory: allocations between guards, and what is known of their bytes.

#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include <mutex>
#include <shared_mutex>

#include "checker.h"
#include "runtime.h"

namespace emu {
namespace {

constexpr size_t kAlignment = 256;
constexpr unsigned char kCanary = 0xC5;

std::shared_mutex mutex;
std::map<uintptr_t, std::unique_ptr<Allocation>>& allocations() {
  static auto* map = new std::map<uintptr_t, std::unique_ptr<Allocation>>();
  return *map;
}

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

}  // namespace

Allocation* find_allocation(const void* p) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(p);
  std::shared_lock<std::shared_mutex> lock(mutex);
  auto& map = allocations();
  auto it = map.upper_bound(at);
  if (it == map.begin()) return nullptr;
  Allocation* a = std::prev(it)->second.get();
  // Beyond the end but before the guard page: the caller reports the offset.
  return at < reinterpret_cast<uintptr_t>(a->map) + a->map_bytes ? a : nullptr;
}

}  // namespace emu

using emu::Allocation;

extern "C" void* arca_emu_alloc(uint64_t bytes) {
  const size_t page = sysconf(_SC_PAGESIZE);
  // The end lies less than the alignment before an inaccessible page.
  const size_t used = emu::round_up(bytes == 0 ? 1 : bytes, emu::kAlignment);
  const size_t body = emu::round_up(used + emu::kAlignment, page);
  void* map = mmap(nullptr, body + page, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) return nullptr;
  unsigned char* base = static_cast<unsigned char*>(map);
  mprotect(base + body, page, PROT_NONE);
  unsigned char* start = base + body - used;
  // No better aligned than promised.
  if (reinterpret_cast<uintptr_t>(start) % (2 * emu::kAlignment) == 0) start -= emu::kAlignment;
  memset(start, 0xFF, bytes);
  memset(start + bytes, emu::kCanary, base + body - (start + bytes));
  auto a = std::make_unique<Allocation>();
  a->map = base;
  a->map_bytes = body + page;
  a->start = start;
  a->bytes = bytes;
  std::unique_lock<std::shared_mutex> lock(emu::mutex);
  emu::allocations()[reinterpret_cast<uintptr_t>(start)] = std::move(a);
  return start;
}

extern "C" int arca_emu_free(void* pointer, char* error, uint64_t capacity) {
  std::unique_ptr<Allocation> a;
  {
    std::unique_lock<std::shared_mutex> lock(emu::mutex);
    auto& map = emu::allocations();
    auto it = map.find(reinterpret_cast<uintptr_t>(pointer));
    if (it == map.end()) {
      snprintf(error, capacity, "%p was not allocated on the device", pointer);
      return 1;
    }
    a = std::move(it->second);
    map.erase(it);
  }
  const size_t page = sysconf(_SC_PAGESIZE);
  const unsigned char* end = a->map + a->map_bytes - page;
  int bad = 0;
  for (const unsigned char* p = a->start + a->bytes; p < end; p++) {
    if (*p != emu::kCanary) {
      snprintf(error, capacity, "something wrote %td bytes beyond the end of an allocation of %zu bytes",
               p - (a->start + a->bytes) + 1, a->bytes);
      bad = 1;
      break;
    }
  }
  munmap(a->map, a->map_bytes);
  return bad;
}

namespace emu {

// Shadow memory exists only where a checked launch has looked.
void prepare_shadows() {
  std::unique_lock<std::shared_mutex> lock(mutex);
  for (auto& [at, a] : allocations()) {
    const size_t cells = (a->bytes + 1) / 2;
    if (a->cells.size() == cells) continue;
    a->cells.assign(cells, GlobalCell{});
    // What happened before the first checked launch is not known; memory that
    // is still all poison has not been written.
    a->written.resize(cells, 0);
    for (size_t i = 0; i < cells; i++) {
      if (a->start[2 * i] != 0xFF || (2 * i + 1 < a->bytes && a->start[2 * i + 1] != 0xFF)) a->written[i] = 1;
    }
  }
}

}  // namespace emu

extern "C" void arca_emu_mark_written(void* pointer, uint64_t bytes) {
  Allocation* a = emu::find_allocation(pointer);
  if (a == nullptr || bytes == 0) return;
  std::unique_lock<std::shared_mutex> lock(emu::mutex);
  const size_t at = static_cast<unsigned char*>(pointer) - a->start;
  if (a->written.empty()) a->written.resize((a->bytes + 1) / 2, 0);
  for (size_t i = at / 2; i < (at + bytes + 1) / 2 && i < a->written.size(); i++) a->written[i] = 1;
}
