// Batches of matrices in memory, and the parts in which they are worked on: for host code of both
// backends.
#pragma once

#include <algorithm>

#include "mask.h"
#include "params.h"
#include "range.h"

namespace fused_dropout {

inline int64_t bytes_of(ScalarType type) {
  return type == ScalarType::kFloat64 ? 8 : type == ScalarType::kFloat32 ? 4 : 2;
}

// A batch of matrices of any strides, in elements.
struct Matrices {
  const void* data;
  ScalarType type;
  int64_t count, rows, cols;
  int64_t stride, row_stride, col_stride;

  // Matrices k, k + 1, ... of rows and columns that begin where the ranges do.
  Matrices part(Range which, Range in_rows, Range in_cols) const {
    const int64_t first =
        which.begin * stride + in_rows.begin * row_stride + in_cols.begin * col_stride;
    return {static_cast<const char*>(data) + first * bytes_of(type),
            type,
            which.size(),
            in_rows.size(),
            in_cols.size(),
            stride,
            row_stride,
            col_stride};
  }
  Matrices transposed() const {
    return {data, type, count, cols, rows, stride, col_stride, row_stride};
  }
  Range all() const { return {0, count}; }
  Range all_rows() const { return {0, rows}; }
  Range all_cols() const { return {0, cols}; }
};

// Calls f for stretches of at most `step`.
template <class F>
void for_each_stretch(int64_t total, int64_t step, F f) {
  for (int64_t k = 0; k < total; k += step) f(Range{k, std::min(k + step, total)});
}

// Some masks of a DropConnect layer, how many rows each has, and the first of these rows.
struct RowChunk {
  Range masks;
  int64_t rows;
  int64_t first_row;

  // The chunk's rows of a matrix, one matrix for each mask.
  Matrices of(const MatrixView& matrix, ScalarType type, int64_t cols) const {
    const int64_t first = first_row * matrix.row_stride * bytes_of(type);
    return {static_cast<const char*>(matrix.data) + first,
            type,
            masks.size(),
            rows,
            cols,
            rows * matrix.row_stride,
            matrix.row_stride,
            matrix.col_stride};
  }
};

// The masks of a layer, at most `at_once` to a chunk; a last one that has fewer rows comes alone.
class Chunks {
 public:
  Chunks(const DropConnectProblem& problem, int64_t at_once)
      : rows_(std::min(problem.rows_per_mask, problem.rows)),
        whole_(problem.rows / rows_),
        rest_(problem.rows % rows_),
        at_once_(at_once) {}

  int64_t count() const { return ceil_div(whole_, at_once_) + (rest_ > 0); }

  RowChunk operator[](int64_t k) const {
    const int64_t first = k * at_once_;
    if (first >= whole_) return {{whole_, whole_ + 1}, rest_, whole_ * rows_};
    return {{first, std::min(first + at_once_, whole_)}, rows_, first * rows_};
  }

 private:
  int64_t rows_, whole_, rest_, at_once_;
};

}  // namespace fused_dropout
