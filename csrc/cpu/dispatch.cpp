#include "dispatch.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <atomic>
#include <stdexcept>

namespace fused_dropout {
namespace {

struct Available {
  Isa isa;
  const char* name;
};

#if defined(__x86_64__)
// Conversions of half floats; clang 14's __builtin_cpu_supports does not know them.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

std::vector<Available> ask_processor() {
  std::vector<Available> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") && has_f16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  if (avx512) found.push_back({Isa::kAvx512, "avx512"});
  if (avx2) found.push_back({Isa::kAvx2, "avx2"});
#endif
  found.push_back({Isa::kPlain, "plain"});
  return found;
}

const std::vector<Available>& available() {
  static const std::vector<Available> found = ask_processor();
  return found;
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> isa{available().front().isa};
  return isa;
}

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Available& one : available()) names.emplace_back(one.name);
  return names;
}

Isa current_isa() { return current().load(std::memory_order_relaxed); }

std::string current_isa_name() {
  const Isa isa = current_isa();
  for (const Available& one : available()) {
    if (one.isa == isa) return one.name;
  }
  return {};
}

void set_isa(const std::string& name) {
  std::string known;
  for (const Available& one : available()) {
    if (name == one.name) return current().store(one.isa, std::memory_order_relaxed);
    known += (known.empty() ? "" : ", ") + std::string(one.name);
  }
  throw std::invalid_argument("ISA must be one of " + known + " on this machine, got '" + name +
                              "'");
}

}  // namespace fused_dropout
