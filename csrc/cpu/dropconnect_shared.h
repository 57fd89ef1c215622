// DropConnect with masks that many rows share, by the library's matrix product.
#pragma once

#include "dropconnect.h"

namespace fused_dropout::dropconnect {

// Computes the output if that is faster than the kernels of simd/ops/dropconnect.h, and says so.
bool forward_by_products(const ForwardArgs& args, ScalarType type);

// Computes the gradients for which that is faster, and returns what is left to do.
BackwardArgs backward_by_products(const BackwardArgs& args, ScalarType type);

}  // namespace fused_dropout::dropconnect
