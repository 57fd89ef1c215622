// The mask bits of a layout's elements (../ops/mask_layout.h) in the order of memory.
#pragma once

#include <algorithm>

#include "../common/packed_bits.h"
#include "../common/with_constant.h"
#include "layout_walk.h"

namespace fused_dropout {
namespace {

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
        col_(element % row_.size) {
    for (int64_t bit = 0; bit + row_.size <= 64; bit += row_.size)
      first_of_rows_ |= uint64_t{1} << bit;
  }

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
      all = (word_from(bits_, first) & ones) * first_of_rows_ & low_ones(rows * size);
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
  uint64_t first_of_rows_ = 0;  // the first bit of each row that 64 bits hold
};

// Few columns of consecutive bits, read row by row: a row takes one bit of each column. A table
// spreads out the bits of a column, as far apart as the rows are long.
class BitsOfColumns {
 public:
  static constexpr int kMost = 15;

  // The first row's bits are those at `first_bits`, `count` <= kMost of them.
  BitsOfColumns(const uint32_t* bits, const int64_t* first_bits, int count)
      : bits_(bits), write_(with_constant<kMost>(count, [](auto constant) -> Write {
          return &BitsOfColumns::write_columns<decltype(constant)::value>;
        })) {
    std::copy(first_bits, first_bits + count, first_bits_);
    uint64_t next = 1;  // what the next bit of the index becomes
    for (int k = 1; k < 1 << rows_at_once(count); k *= 2) {
      for (int rest = 0; rest < k; ++rest) spread_[k + rest] = spread_[rest] | next;
      next <<= count;
    }
  }

  // Writes the bits of `count` rows, those of row `row` first.
  void write(int64_t row, int64_t count, BitWriter& writer) const {
    (this->*write_)(row, count, writer);
  }

 private:
  using Write = void (BitsOfColumns::*)(int64_t, int64_t, BitWriter&) const;

  static constexpr int rows_at_once(int count) { return count <= 8 ? 8 : 4; }  // they fit 64 bits

  template <int kCols>
  void write_columns(int64_t row, int64_t count, BitWriter& writer) const {
    constexpr int kRows = rows_at_once(kCols);
    for (; count > 0; row += 64, count -= 64) {
      uint64_t column[kCols];
      for (int c = 0; c < kCols; ++c) {
        column[c] = bits_from(bits_, static_cast<uint64_t>(first_bits_[c] + row));
      }
      const int rows = static_cast<int>(std::min<int64_t>(64, count));
      for (int r = 0; r < rows; r += kRows) {
        uint64_t all = 0;
        for (int c = 0; c < kCols; ++c) {
          all |= spread_[column[c] % (1 << kRows)] << c;
          column[c] >>= kRows;
        }
        const int n = std::min(kRows, rows - r) * kCols;
        writer.append(all & low_ones(n), n);
      }
    }
  }

  const uint32_t* bits_;
  Write write_;
  int64_t first_bits_[kMost];
  uint64_t spread_[256] = {};  // bit k of the index as bit k * columns
};

// Few rows whose bits take turns: row r of column c has bit c * rows + r. A table moves four bits
// at a time to the bytes of their rows.
class BitsOfTurns {
 public:
  static constexpr int kMost = 8;

  BitsOfTurns(const uint32_t* bits, int rows)
      : bits_(bits), write_(with_constant<kMost>(rows, [](auto constant) -> Write {
          return &BitsOfTurns::write_rows<decltype(constant)::value>;
        })) {
    for (int k = 0; k < 8 * rows; ++k) {
      const uint64_t moved = uint64_t{1} << (k % rows * 8 + k / rows);
      for (int some = 0; some < 16; ++some) {
        if (some >> k % 4 & 1) to_bytes_[k / 4][some] |= moved;
      }
    }
  }

  // Row r's bits of `count` columns, from `first_bit` on, become those of `out` + r * `row_bytes`;
  // bits past them are any.
  void write(int64_t first_bit, int64_t count, uint8_t* out, int64_t row_bytes) const {
    (this->*write_)(first_bit, count, out, row_bytes);
  }

 private:
  using Write = void (BitsOfTurns::*)(int64_t, int64_t, uint8_t*, int64_t) const;

  template <int kRows>
  void write_rows(int64_t first_bit, int64_t count, uint8_t* out, int64_t row_bytes) const {
    for (; count > 0; count -= 8, first_bit += 8 * kRows, ++out) {
      uint64_t turns = bits_from(bits_, static_cast<uint64_t>(first_bit));
      uint64_t bytes = 0;
      for (int k = 0; k < 2 * kRows; ++k, turns >>= 4) bytes |= to_bytes_[k][turns % 16];
      for (int r = 0; r < kRows; ++r) out[r * row_bytes] = static_cast<uint8_t>(bytes >> (8 * r));
    }
  }

  const uint32_t* bits_;
  Write write_;
  uint64_t to_bytes_[2 * kMost][16] = {};
};

}  // namespace
}  // namespace fused_dropout
