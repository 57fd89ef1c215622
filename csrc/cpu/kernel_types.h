// What the tables of kernels (<op>_kernels.h) share.
#pragma once

#include <cstdint>

#include "../common/params.h"

namespace fused_dropout {

constexpr int kScalarTypes = 4;  // in the order of ScalarType

// Half-open range of rows, output features or groups.
struct Range {
  int64_t begin;
  int64_t end;
  int64_t size() const { return end - begin; }
};

}  // namespace fused_dropout
