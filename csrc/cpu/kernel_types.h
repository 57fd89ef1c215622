// What the tables of kernels (<op>.h) share.
#pragma once

#include <cstdint>

#include "../common/params.h"

namespace fused_dropout {

constexpr int kScalarTypes = 4;  // in the order of ScalarType

// Half-open range of rows, output features or groups.
struct Range {
  int64_t begin;
  int64_t end;
  // Of no file in particular: the linker must not merge the code of one instruction set with
  // others.
  __attribute__((always_inline)) int64_t size() const { return end - begin; }
};

}  // namespace fused_dropout
