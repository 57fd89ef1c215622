// The kernels in plain C++, for every processor.
#include "simd_plain.h"

#include "bodies.h"

namespace fused_dropout {

const Kernels& plain_kernels() {
  static const Kernels kernels = make_kernels("plain");
  return kernels;
}

}  // namespace fused_dropout
