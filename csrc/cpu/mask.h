// What the kernels of mask offer: simd/ops/mask.h fills the table, mask.cpp calls it.
#pragma once

#include "kernel_types.h"

namespace fused_dropout::mask {

struct Kernels {
  // Packed keep bits of groups first, first + stride, ...: 4 words each, contiguous in `out`.
  void (*draw_groups)(const MaskRule& rule, uint64_t first, uint64_t stride, int64_t count,
                      uint32_t* out);
  // The mask as bytes 0 and 1: `rows` whole rows of `cols` columns whose groups count up from
  // `first`, contiguous in `out`.
  void (*draw_bytes)(const MaskRule& rule, uint64_t first, int64_t rows, int64_t cols,
                     uint8_t* out);
};

}  // namespace fused_dropout::mask
