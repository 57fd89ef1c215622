// What the kernels of dropout offer: simd/ops/dropout.h fills the table, dropout.cpp calls it.
#pragma once

#include "kernel_types.h"

namespace fused_dropout::dropout {

// A stretch of elements, contiguous in memory. `residual` may be null; `out` may be `in`.
struct Run {
  const void* in;
  const void* residual;
  void* out;
  int64_t count;
};

constexpr int64_t kSpareWords = 4;  // past the last bit, which kernels may read

// Rows of elements, which lie in memory while the bits of each column are consecutive: that of row
// r and column c is bit first_bits[c] + r.
constexpr int64_t kMinColumns = 16;
constexpr int64_t kMaxColumns = 2048;
constexpr int64_t kMaxColumnWords = 2048;
struct ColumnBits {
  int64_t rows;
  int64_t cols;  // kMinColumns to kMaxColumns; times rows / 32, rounded up, at most kMaxColumnWords
  int64_t row_stride;
  const int64_t* first_bits;
};

struct Kernels {
  // Draws the bits of groups first_group, first_group + 1, ... and applies them.
  void (*draw_and_apply[kScalarTypes])(const MaskRule& rule, const AffineMap& map, const Run& run,
                                       uint64_t first_group);
  // Element k has bit k of `bits`, which are whole groups.
  void (*apply[kScalarTypes])(const AffineMap& map, const Run& run, const uint32_t* bits);
  // The whole run is kept, or dropped.
  void (*apply_alike[kScalarTypes])(const AffineMap& map, const Run& run, bool kept);
  // `run` starts at the first row; its count is not used. kSpareWords follow `bits`.
  void (*apply_columns[kScalarTypes])(const AffineMap& map, const Run& run, const ColumnBits& tile,
                                      const uint32_t* bits);
};

}  // namespace fused_dropout::dropout
