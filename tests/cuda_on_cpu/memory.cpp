#include "memory.h"

#include <cstdint>
#include <cstdlib>
#include <vector>

#include "runtime.h"

#if EMULATOR_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace emulator {
namespace {

constexpr size_t kAlignment = 128;
constexpr size_t kRedZone = 128;  // between static variables
constexpr int kMaxVariables = 32;

struct Variable {
  const void* key;
  unsigned char* memory;
};

struct BlockMemory {
  unsigned char* statics;  // kMaxVariables of them, with red zones
  size_t statics_used;     // including the red zones
  size_t statics_declared;
  Variable variables[kMaxVariables];
  int variable_count;
  unsigned char* dynamic;
  size_t dynamic_bytes;
  unsigned char poison;
};
BlockMemory block;
std::vector<void*> grid_memory;  // everything that this grid's blocks have had

constexpr size_t kStaticsBytes = kStaticSharedBytes + kMaxVariables * (kRedZone + kAlignment);

unsigned char* allocate(size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, kAlignment, bytes) != 0) fail(here(), "out of memory");
  grid_memory.push_back(memory);
  return static_cast<unsigned char*>(memory);
}

void fill_with_poison(unsigned char* memory, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) memory[i] = block.poison;
}

unsigned char* new_variable(size_t bytes) {
  block.statics_declared += bytes;
  if (block.variable_count == kMaxVariables || block.statics_declared > kStaticSharedBytes) {
    fail(here(),
         "the kernel declares %zu bytes of static shared memory in %d variables; the most is "
         "%zu in %d",
         block.statics_declared, block.variable_count + 1, kStaticSharedBytes, kMaxVariables);
  }
  unsigned char* const memory = block.statics + block.statics_used;
  block.statics_used += (bytes + kAlignment - 1) / kAlignment * kAlignment + kRedZone;
#if EMULATOR_ASAN
  ASAN_UNPOISON_MEMORY_REGION(memory, bytes);
#endif
  fill_with_poison(memory, bytes);
  return memory;
}

}  // namespace

void begin_block_memory(size_t dynamic_bytes, unsigned char poison) {
#if !EMULATOR_TSAN
  const bool reuse = block.statics && block.dynamic_bytes == dynamic_bytes;
#else
  const bool reuse = false;
#endif
  if (!reuse) {
    block.statics = allocate(kStaticsBytes);
    block.dynamic = dynamic_bytes ? allocate(dynamic_bytes) : nullptr;
    block.dynamic_bytes = dynamic_bytes;
  }
  block.statics_used = 0;
  block.statics_declared = 0;
  block.variable_count = 0;
#if EMULATOR_ASAN
  ASAN_POISON_MEMORY_REGION(block.statics, kStaticsBytes);
#endif
  block.poison = poison;
  fill_with_poison(block.dynamic, dynamic_bytes);
}

void end_grid_memory() {
  for (void* memory : grid_memory) std::free(memory);
  grid_memory.clear();
  block = BlockMemory{};
}

void* static_shared(const void* variable, size_t bytes) {
  for (int i = 0; i < block.variable_count; ++i) {
    if (block.variables[i].key == variable) return block.variables[i].memory;
  }
  unsigned char* const memory = new_variable(bytes);
  block.variables[block.variable_count++] = {variable, memory};
  return memory;
}

void* dynamic_shared() { return block.dynamic; }

}  // namespace emulator
