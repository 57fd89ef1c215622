// The elements of a layout (../ops/mask_layout.h) one after the other.
#pragma once

#include "../ops/mask_layout.h"

namespace fused_dropout {
namespace {

// Goes through some dimensions of a layout, the outermost first, in the order of memory, and knows
// how far apart in the mask the present place and the first one are.
class LayoutWalk {
 public:
  // From `place` on, counted in the order of memory.
  LayoutWalk(const MaskedDim* dims, size_t count, int64_t place) : dims_(dims), count_(count) {
    for (size_t d = count; d-- > 0; place /= dims[d].size) {
      index_[d] = place % dims[d].size;
      bit_ += index_[d] * dims[d].mask_stride;
    }
  }

  int64_t bit() const { return bit_; }

  // How far the innermost dimension goes on, the present place included.
  int64_t left() const { return count_ == 0 ? 1 : dims_[count_ - 1].size - index_[count_ - 1]; }

  // Moves on by `steps` <= left().
  void advance(int64_t steps) {
    for (size_t d = count_; d-- > 0; steps = 1) {
      index_[d] += steps;
      bit_ += steps * dims_[d].mask_stride;
      if (index_[d] < dims_[d].size) return;
      bit_ -= dims_[d].size * dims_[d].mask_stride;
      index_[d] = 0;
    }
  }

 private:
  const MaskedDim* dims_;
  size_t count_;
  int64_t index_[kMostDims];
  int64_t bit_ = 0;
};

}  // namespace
}  // namespace fused_dropout
