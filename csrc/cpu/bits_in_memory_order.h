// The mask bits of a layout's elements (../ops/mask_layout.h) in the order of memory.
#pragma once

#include <algorithm>

#include "../common/packed_bits.h"
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

// The bits of a layout whose last dimension's are consecutive, or all one.
class BitsOfRows {
 public:
  // From `element` on, counted in the order of memory.
  BitsOfRows(const MaskLayout& layout, const uint32_t* bits, int64_t element)
      : bits_(bits),
        first_bit_(layout.first_bit),
        row_(layout.dims.back()),
        stride_(layout.dims.size() > 1 ? layout.dims[layout.dims.size() - 2].mask_stride : 0),
        rows_(layout.dims.data(), layout.dims.size() - 1, element / row_.size),
        col_(element % row_.size) {}

  // Writes the bits of the next `count` elements.
  void write(int64_t count, BitWriter& writer) {
    while (count > 0) {
      const bool is_short = row_.size <= 32 && row_.mask_stride == 1;
      const int64_t done = is_short && col_ == 0 && count >= row_.size
                               ? write_rows(count / row_.size, writer) * row_.size
                               : write_piece(count, writer);
      count -= done;
    }
  }

 private:
  // Up to `most` whole rows, as many as 64 bits hold; returns how many.
  int64_t write_rows(int64_t most, BitWriter& writer) {
    const int size = static_cast<int>(row_.size);
    const int64_t rows = std::min({64 / row_.size, most, rows_.left()});
    const uint64_t first = static_cast<uint64_t>(first_bit_ + rows_.bit());
    const uint64_t ones = low_ones(size);
    uint64_t all = 0;
    if (stride_ == 0) {
      const uint64_t row = word_from(bits_, first) & ones;
      for (int64_t k = 0; k < rows; ++k) all |= row << (k * size);
    } else {
      for (int64_t k = 0; k < rows; ++k) {
        all |= (word_from(bits_, first + static_cast<uint64_t>(k * stride_)) & ones) << (k * size);
      }
    }
    writer.append(all, static_cast<int>(rows) * size);
    rows_.advance(rows);
    return rows;
  }

  // Up to `most` elements of a row, at most 64; returns how many.
  int64_t write_piece(int64_t most, BitWriter& writer) {
    const int64_t left = row_.size - col_;
    const int count = static_cast<int>(std::min({int64_t{64}, most, left}));
    const uint64_t bit = static_cast<uint64_t>(first_bit_ + rows_.bit() + col_ * row_.mask_stride);
    const uint64_t piece =
        row_.mask_stride == 0 ? -uint64_t{bit_at(bits_, bit)} : bits_from(bits_, bit);
    writer.append(piece & low_ones(count), count);
    col_ += count;
    if (count == left) {
      col_ = 0;
      rows_.advance(1);
    }
    return count;
  }

  const uint32_t* bits_;
  int64_t first_bit_;
  MaskedDim row_;
  int64_t stride_;  // from a row's bits to the next one's
  LayoutWalk rows_;
  int64_t col_;
};

// Few columns of consecutive bits, read row by row: each row is the transpose of one bit of each
// column. A table spreads out the bits of a column, as far apart as the rows are long.
class BitsOfColumns {
 public:
  static constexpr int kMostColumns = 15;

  // The first rows' bits are those at `first_bits`, `count` of them.
  BitsOfColumns(const uint32_t* bits, const int64_t* first_bits, int count)
      : bits_(bits), count_(count), rows_(count <= 8 ? 8 : 4) {
    std::copy(first_bits, first_bits + count, first_bits_);
    spread_[0] = 0;
    for (int size = 0; size < rows_; ++size) {
      for (int k = 0; k < 1 << size; ++k) {
        spread_[(1 << size) + k] = spread_[k] | uint64_t{1} << (size * count);
      }
    }
  }

  // Writes the bits of `count` rows, whose first bits are those of the first row plus `row`.
  void write(int64_t row, int64_t count, BitWriter& writer) const {
    const uint32_t some = (1u << rows_) - 1;
    for (int64_t done = 0; done < count; done += 64) {
      uint64_t column[kMostColumns];
      for (int c = 0; c < count_; ++c) {
        column[c] = bits_from(bits_, static_cast<uint64_t>(first_bits_[c] + row + done));
      }
      const int rows = static_cast<int>(std::min<int64_t>(64, count - done));
      for (int r = 0; r < rows; r += rows_) {
        uint64_t all = 0;
        for (int c = 0; c < count_; ++c) all |= spread_[column[c] >> r & some] << c;
        const int n = std::min(rows_, rows - r) * count_;
        writer.append(all & low_ones(n), n);
      }
    }
  }

 private:
  const uint32_t* bits_;
  int count_;
  int rows_;  // at a time: their bits fit 64
  int64_t first_bits_[kMostColumns];
  uint64_t spread_[256];  // bit k of the index as bit k * count
};

}  // namespace
}  // namespace fused_dropout
