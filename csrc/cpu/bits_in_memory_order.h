// The mask bits of a layout's elements (../ops/mask_layout.h) in the order of memory.
#pragma once

#include <algorithm>
#include <vector>

#include "../common/packed_bits.h"
#include "../ops/mask_layout.h"

namespace fused_dropout {
namespace {

// Walks over the elements from a given one on.
class BitsInMemoryOrder {
 public:
  BitsInMemoryOrder(const MaskLayout& layout, const uint32_t* bits, int64_t element)
      : dims_(layout.dims), bits_(bits), index_(layout.dims.size()), row_bit_(layout.first_bit) {
    for (size_t d = dims_.size(); d-- > 0; element /= dims_[d].size) {
      index_[d] = element % dims_[d].size;
      (d + 1 < dims_.size() ? row_bit_ : col_bit_) += index_[d] * dims_[d].mask_stride;
    }
  }

  // Writes the bits of the next `count` elements.
  void write(int64_t count, BitWriter& writer) {
    const MaskedDim inner = dims_.back();
    int64_t col = index_.back();
    while (count > 0) {
      const int n = static_cast<int>(std::min({int64_t{64}, count, inner.size - col}));
      writer.append(next(n, inner.mask_stride), n);
      count -= n;
      col += n;
      col_bit_ += n * inner.mask_stride;
      if (col == inner.size) {
        col = col_bit_ = 0;
        next_row();
      }
    }
    index_.back() = col;
  }

 private:
  // The bits of `count` elements of the last dimension.
  uint64_t next(int count, int64_t stride) const {
    const uint64_t bit = static_cast<uint64_t>(row_bit_ + col_bit_);
    if (stride == 0) return -uint64_t{bit_at(bits_, bit)} & low_ones(count);
    if (stride == 1) return bits_from(bits_, bit) & low_ones(count);
    uint64_t all = 0;
    for (int k = 0; k < count; ++k) {
      all |= uint64_t{bit_at(bits_, bit + static_cast<uint64_t>(k * stride))} << k;
    }
    return all;
  }

  // All dimensions but the last count on.
  void next_row() {
    for (size_t d = dims_.size() - 1; d-- > 0;) {
      row_bit_ += dims_[d].mask_stride;
      if (++index_[d] < dims_[d].size) return;
      row_bit_ -= dims_[d].size * dims_[d].mask_stride;
      index_[d] = 0;
    }
  }

  const std::vector<MaskedDim>& dims_;
  const uint32_t* bits_;
  std::vector<int64_t> index_;
  int64_t row_bit_;      // where the row of the last dimension starts
  int64_t col_bit_ = 0;  // from there
};

}  // namespace
}  // namespace fused_dropout
