// Which instruction set the CPU kernels run on.
//
// The kernels in simd/ops are compiled once per instruction set. What an op's kernels offer is a
// struct of function pointers, `Kernels` in the header beside its binding.
#pragma once

#include <string>
#include <vector>

namespace fused_dropout {

enum class Isa { kPlain, kAvx2, kAvx512 };

// Best first: those that this binary has and this processor can run.
std::vector<std::string> available_isas();

// The one in use: the best available one unless set_isa chose another.
Isa current_isa();
std::string current_isa_name();

// Throws std::invalid_argument, naming what is available, for an ISA that is not.
void set_isa(const std::string& name);

// Defined and instantiated where the kernels are: in the translation unit of the instruction set.
template <Isa kIsa, class Kernels>
const Kernels& kernels_for();

// The kernels of an op for the instruction set in use.
template <class Kernels>
const Kernels& kernels() {
#if defined(__x86_64__)
  const Isa isa = current_isa();
  if (isa == Isa::kAvx512) return kernels_for<Isa::kAvx512, Kernels>();
  if (isa == Isa::kAvx2) return kernels_for<Isa::kAvx2, Kernels>();
#endif
  return kernels_for<Isa::kPlain, Kernels>();
}

}  // namespace fused_dropout
