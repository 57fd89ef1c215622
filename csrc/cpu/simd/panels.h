// Copies between torch's matrices (any dtype, any strides) and the dense, zero-padded panels of
// `Real` that the kernels run on.
#pragma once

#include "../../common/mask.h"
#include "conversions.h"
#include "prelude.h"

namespace fused_dropout {
namespace {

FUSED_DROPOUT_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
FUSED_DROPOUT_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// panel[r][c] = matrix[rows.begin + r][cols.begin + c], zero up to padded_rows and padded_cols.
template <class T>
void pack_panel(const MatrixView& matrix, Range rows, Range cols, int64_t padded_rows,
                int64_t padded_cols, Real<T>* panel, int64_t panel_stride) {
  const T* data = static_cast<const T*>(matrix.data);
  for (int64_t r = 0; r < padded_rows; ++r, panel += panel_stride) {
    int64_t filled = 0;
    if (r < rows.size()) {
      filled = cols.size();
      widen_row(data + (rows.begin + r) * matrix.row_stride + cols.begin * matrix.col_stride,
                matrix.col_stride, filled, panel);
    }
    for (int64_t c = filled; c < padded_cols; ++c) panel[c] = 0;
  }
}

// Whether `count` elements, `stride` apart, are neither infinite nor NaN: x * 0 is 0 where x is
// finite, and NaN elsewhere.
template <class T>
bool all_finite(const T* in, int64_t stride, int64_t count) {
  using R = Real<T>;
  constexpr int kLanes = Vec<R>::kLanes;
  const Vec<R> zero = broadcast(R(0));
  Vec<R> sums[4] = {zero, zero, zero, zero};
  R rest = 0;
  int64_t k = 0;
  if (stride == 1) {
    for (; k + 4 * kLanes <= count; k += 4 * kLanes) {
      for (int v = 0; v < 4; ++v) {
        sums[v] = multiply_add(widen_vector(in + k + v * kLanes), zero, sums[v]);
      }
    }
  }
  for (; k < count; ++k) rest += widen(in[k * stride]) * R(0);
  R totals[4] = {};
  add_sums4(totals, sums);
  return totals[0] + totals[1] + totals[2] + totals[3] + rest == 0;
}

// The columns `cols` of one row of the matrix, at most one group, padded with zeros: in the matrix
// itself if they lie there so, else in `space`.
template <class T>
FUSED_DROPOUT_INLINE const Real<T>* group_of_columns(const MatrixView& matrix, int64_t row,
                                                     Range cols, Real<T>* space) {
  const T* data =
      static_cast<const T*>(matrix.data) + row * matrix.row_stride + cols.begin * matrix.col_stride;
  if constexpr (std::is_same_v<T, Real<T>>) {
    if (matrix.col_stride == 1 && cols.size() == kGroupColumns) return data;
  }
  widen_row(data, matrix.col_stride, cols.size(), space);
  for (int64_t c = cols.size(); c < kGroupColumns; ++c) space[c] = 0;
  return space;
}

// As pack_panel, padded to whole groups of columns, with each group's vectors in the order of the
// steps. Says whether all numbers are finite, where that matters.
template <class T>
bool pack_steps(const MatrixView& matrix, Range rows, Range cols, int64_t padded_rows,
                Real<T>* panel, int64_t panel_stride) {
  using R = Real<T>;
  bool finite = true;
  R space[kGroupColumns];
  for (int64_t r = 0; r < padded_rows; ++r, panel += panel_stride) {
    for (int64_t c = 0; c < cols.size(); c += kGroupColumns) {
      if (r >= rows.size()) {
        for (int64_t k = c; k < c + kGroupColumns; ++k) panel[k] = 0;
        continue;
      }
      const Range group = {cols.begin + c, smaller(cols.begin + c + kGroupColumns, cols.end)};
      const R* columns = group_of_columns<T>(matrix, rows.begin + r, group, space);
      if constexpr (kMasksOperands) finite &= all_finite(columns, 1, kGroupColumns);
      arrange(columns, [&](int step) { return panel + c + step * Vec<R>::kLanes; });
    }
  }
  return finite;
}

// out[rows, cols] of a contiguous matrix = scale * panel.
template <class T>
void store_panel(const Real<T>* panel, int64_t panel_stride, Range rows, Range cols, Real<T> scale,
                 T* out, int64_t out_stride) {
  for (int64_t r = 0; r < rows.size(); ++r, panel += panel_stride) {
    T* row = out + (rows.begin + r) * out_stride + cols.begin;
    for (int64_t c = 0; c < cols.size(); ++c) narrow(panel[c] * scale, row + c);
  }
}

// Hands out consecutive, 64-byte aligned pieces of one scratch buffer. With a null buffer it only
// counts, which is how a kernel tells its caller how much it needs.
class ScratchCursor {
 public:
  explicit ScratchCursor(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    char* piece = base_ + used_;
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return reinterpret_cast<T*>(piece);
  }
  size_t used() const { return static_cast<size_t>(used_); }

 private:
  char* base_;
  int64_t used_ = 0;
};

}  // namespace
}  // namespace fused_dropout
