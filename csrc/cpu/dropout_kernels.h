// What the dropout bodies offer: csrc/cpu/dropout_body.h fills the table, dropout_cpu.cpp calls it.
#pragma once

#include "kernel_types.h"

namespace fused_dropout {

// A stretch of elements, contiguous in memory. `residual` may be null; `out` may be `in`.
struct DropoutRun {
  const void* in;
  const void* residual;
  void* out;
  int64_t count;
};

struct DropoutKernels {
  // Draws the bits of groups first_group, first_group + 1, ... and applies them.
  void (*draw_and_apply[kScalarTypes])(const MaskRule& rule, const AffineMap& map,
                                       const DropoutRun& run, uint64_t first_group);
  // Element k has bit first_bit + k of `bits`, of which 16 bytes past the last must be readable.
  void (*apply[kScalarTypes])(const AffineMap& map, const DropoutRun& run, const uint32_t* bits,
                              int64_t first_bit);
  // The whole run is kept, or dropped.
  void (*apply_alike[kScalarTypes])(const AffineMap& map, const DropoutRun& run, bool kept);
  // Bit r * cols + c of `out` is bit first_bit + c * col_stride + r of `bits`, for r < rows <= 64.
  // 16 spare bytes follow `out`, as they do `bits`.
  void (*transpose_bits)(const uint32_t* bits, int64_t first_bit, int64_t col_stride, int64_t rows,
                         int64_t cols, uint32_t* out);
};

}  // namespace fused_dropout
