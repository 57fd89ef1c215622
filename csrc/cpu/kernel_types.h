// What the tables of kernels (<op>.h) share.
#pragma once

#include "../common/params.h"
#include "../common/range.h"

namespace fused_dropout {

constexpr int kScalarTypes = 4;  // in the order of ScalarType

}  // namespace fused_dropout
