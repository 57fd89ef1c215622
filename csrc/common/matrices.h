// Batches of matrices in memory, and the parts in which they are worked on: for host code of both
// backends.
#pragma once

#include <algorithm>

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

// Calls f for all masks, at most `at_once` at a time; a last one that has fewer rows comes alone.
template <class F>
void for_each_chunk(const DropConnectProblem& problem, int64_t at_once, F f) {
  const int64_t rows = std::min(problem.rows_per_mask, problem.rows);
  const int64_t whole = problem.rows / rows;
  for_each_stretch(whole, at_once,
                   [&](Range masks) { f(RowChunk{masks, rows, masks.begin * rows}); });
  const int64_t rest = problem.rows - whole * rows;
  if (rest > 0) f(RowChunk{{whole, whole + 1}, rest, whole * rows});
}

}  // namespace fused_dropout
