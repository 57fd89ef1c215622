#include "dispatch.h"

#include <atomic>
#include <stdexcept>

namespace fused_dropout {
namespace {

// A table function may use its instruction set, so it is called only after the processor was asked.
std::vector<const Kernels*> find_tables() {
  std::vector<const Kernels*> tables;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  if (avx512) tables.push_back(&avx512_kernels());
  if (avx2) tables.push_back(&avx2_kernels());
#endif
  tables.push_back(&plain_kernels());
  return tables;
}

const std::vector<const Kernels*>& tables() {
  static const std::vector<const Kernels*> found = find_tables();
  return found;
}

std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> table{tables().front()};
  return table;
}

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Kernels* table : tables()) names.emplace_back(table->isa);
  return names;
}

const Kernels& kernels() { return *current().load(std::memory_order_relaxed); }

void set_isa(const std::string& name) {
  std::string known;
  for (const Kernels* table : tables()) {
    if (name == table->isa) {
      current().store(table, std::memory_order_relaxed);
      return;
    }
    known += (known.empty() ? "" : ", ") + std::string(table->isa);
  }
  throw std::invalid_argument("ISA must be one of " + known + " on this machine, got '" + name +
                              "'");
}

}  // namespace fused_dropout
