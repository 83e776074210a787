// A profiler as far as NVTX 3 knows one: InitializeInjectionNvtx2 asks for the
// tables of functions and fills in its own. Layouts and numbers are those of
// nvtx3/nvtxDetail/nvtxTypes.h and nvtx3/nvToolsExt.h, written down a second
// time so that a slip in the program does not repeat here.
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

namespace {

typedef void (*Function)();
typedef Function** Table;

struct Callbacks {
  size_t struct_size;
  int (*GetModuleFunctionTable)(int module, Table* out_table, unsigned* out_size);
};

struct VersionInfo {
  size_t struct_size;
  uint32_t version;
  uint32_t reserved0;
  void (*SetInjectionNvtxVersion)(uint32_t version);
};

struct EventAttributes {
  uint16_t version;
  uint16_t size;
  uint32_t category;
  int32_t colorType;
  uint32_t color;
  int32_t payloadType;
  int32_t reserved0;
  union {
    uint64_t ullValue;
    double dValue;
  } payload;
  int32_t messageType;
  union {
    const char* ascii;
    const wchar_t* unicode;
  } message;
};

int domain;

void* create(const char* name) {
  fprintf(stderr, "nvtx domain %s\n", name);
  return &domain;
}

int push(void* where, const EventAttributes* attributes) {
  const bool good = where == &domain && attributes->version == 3 &&
                    attributes->size == sizeof(EventAttributes) && attributes->messageType == 1;
  fprintf(stderr, "nvtx push %s\n", good ? attributes->message.ascii : "(wrong attributes)");
  return 0;
}

int pop(void* where) {
  fprintf(stderr, where == &domain ? "nvtx pop\n" : "nvtx pop of another domain\n");
  return 0;
}

}  // namespace

extern "C" int InitializeInjectionNvtx2(const void* (*export_table)(uint32_t)) {
  auto* versions = static_cast<const VersionInfo*>(export_table(3));
  if (!versions || versions->struct_size < sizeof(VersionInfo) || versions->version != 3) return 0;
  versions->SetInjectionNvtxVersion(3);
  auto* callbacks = static_cast<const Callbacks*>(export_table(1));
  if (!callbacks || callbacks->struct_size < sizeof(Callbacks) || export_table(77)) return 0;
  // Every module's table has its functions from 1 on, and a null at its end.
  const unsigned sizes[] = {0, 16, 9, 15, 7, 16, 7};
  for (int module = 0; module < 9; ++module) {
    Table table = nullptr;
    unsigned size = 0;
    const int found = callbacks->GetModuleFunctionTable(module, &table, &size);
    if (found != (module >= 1 && module <= 6)) return 0;
    if (!found) continue;
    if (size != sizes[module] || table[0] || table[size]) return 0;
    for (unsigned i = 1; i < size; ++i) {
      if (!table[i] || *table[i]) return 0;
    }
    if (module == 5) {
      *table[4] = reinterpret_cast<Function>(push);
      *table[5] = reinterpret_cast<Function>(pop);
      *table[12] = reinterpret_cast<Function>(create);
    }
  }
  return 1;
}
