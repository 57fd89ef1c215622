// What the kernels of dropconnect_moments offer: simd/ops/dropconnect_moments.h fills the table,
// dropconnect_moments.cpp calls it. Sums are float, or double for double.
#pragma once

#include "../common/moments.h"
#include "kernel_types.h"

namespace fused_dropout::dropconnect_moments {

constexpr int64_t kMostLanes = 16;  // elements of a vector, in any instruction set

struct Kernels {
  // squares[r][c] = matrix[r][c]^2 for the rows of `rows` and all `cols` columns, and `wide`, where
  // it is not null, the elements themselves; zeros up to the end of a row, `stride` elements long.
  // Both start at row `rows.begin`.
  void (*square[kScalarTypes])(const MatrixView& matrix, Range rows, int64_t cols, void* wide,
                               void* squares, int64_t stride);
  // The moments of the output features `outs`, for all rows. Rows of `wide` and `squares`, the
  // input and its squares, are `stride` elements apart, a multiple of kMostLanes, and end with
  // zeros. `mean` and `variance` are [rows, out_features].
  void (*apply[kScalarTypes])(const MomentsProblem& problem, const void* wide, const void* squares,
                              int64_t stride, Range outs, void* mean, void* variance);
  // The same from sums of products that stand in `mean` and `variance`.
  void (*finish[kScalarTypes])(const MomentsProblem& problem, Range rows, void* mean,
                               void* variance);
};

}  // namespace fused_dropout::dropconnect_moments
