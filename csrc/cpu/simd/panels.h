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
