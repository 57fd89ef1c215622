// A half-open range of rows, columns, output features, groups or masks.
#pragma once

#include <cstdint>

namespace fused_dropout {

struct Range {
  int64_t begin;
  int64_t end;
  // Of no file in particular: the linker must not merge the code of one instruction set with
  // others.
  __attribute__((always_inline)) int64_t size() const { return end - begin; }
};

}  // namespace fused_dropout
