// What the kernels of mask_weight offer: simd/ops/mask_weight.h fills the table, mask_weight.cpp
// calls it, and so does dropconnect_shared.cpp.
#pragma once

#include "kernel_types.h"

namespace fused_dropout::mask_weight {

// Part of a mask: some output features, and the columns of some groups, counted from the first of
// the layer. The last group may end early.
struct Tile {
  int64_t mask;
  Range outs;
  Range groups;
};

// Matrices one after another, of any strides.
struct StackView {
  const void* data;
  int64_t mask_stride;
  int64_t row_stride;
  int64_t col_stride;
};

constexpr int64_t kTileOuts = 32;   // output features whose masks are drawn at once
constexpr int64_t kMostLanes = 16;  // elements of a vector, in any instruction set

struct Kernels {
  // out[o][i] = kept ? scale * weight[o][i] : 0. Both start at the tile's first element; rows of
  // `out`, which may be the weight, are out_stride elements apart.
  void (*apply[kScalarTypes])(const DropConnectProblem& problem, const MatrixView& weight,
                              const Tile& tile, void* out, int64_t out_stride);
  // The same with a result of the type that sums have: float, or double for double.
  void (*apply_wide[kScalarTypes])(const DropConnectProblem& problem, const MatrixView& weight,
                                   const Tile& tile, void* out, int64_t out_stride);
  // out[i][o] = kept ? scale * weight[i][o] : 0: the transposed of `apply` on the transposed
  // weight, for at most kGroupColumns output features. Rows of both are `stride` and `out_stride`
  // elements apart and end with whole vectors.
  void (*apply_transposed[kScalarTypes])(const DropConnectProblem& problem, const void* weight,
                                         int64_t stride, const Tile& tile, void* out,
                                         int64_t out_stride);
  // sum[o][i] += kept ? scale * weight[o][i] : 0, in the type that sums have.
  void (*add[kScalarTypes])(const DropConnectProblem& problem, const MatrixView& weight,
                            const Tile& tile, void* sum, int64_t sum_stride);
  // out[o][i] = scale * the sum of all masks' stack[k][o][i] that are kept, for at most kTileOuts
  // output features and one group of columns. `out` is [out_features, in_features].
  void (*sum[kScalarTypes])(const DropConnectProblem& problem, const StackView& stack, Range outs,
                            int64_t group, void* out);
  // out[k] += row[k] for `count` elements; `row` has the type that sums have.
  void (*add_row[kScalarTypes])(const void* row, int64_t count, void* out);
  // Whether `count` elements, `stride` apart, are neither infinite nor NaN.
  bool (*all_finite[kScalarTypes])(const void* data, int64_t stride, int64_t count);
};

}  // namespace fused_dropout::mask_weight
