// The tables of kernels of the instruction set that is being compiled, kIsa.
#pragma once

#include "prelude.h"

namespace fused_dropout {

template <Isa kTable, class Kernels>
const Kernels& kernels_for() {
  static const Kernels kernels = make_kernels(static_cast<const Kernels*>(nullptr));
  return kernels;
}

}  // namespace fused_dropout

// Ends the file of an op, which has defined `static Kernels make_kernels(const Kernels*)`.
#define FUSED_DROPOUT_INSTANTIATE(Kernels) \
  template const Kernels& fused_dropout::kernels_for<fused_dropout::kIsa, Kernels>()
