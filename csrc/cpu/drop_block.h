// What the kernels of drop_block offer: simd/ops/drop_block.h fills the table, drop_block.cpp calls
// it.
#pragma once

#include "kernel_types.h"

namespace fused_dropout::drop_block {

struct Kernels {
  // 64-bit words of scratch that `dilate` needs for `maps.count` maps.
  int64_t (*scratch_words)(const BlockMaps& maps);
  // The keep bits of the maps' elements, from bit 0 of `out` on, out of their seeds' keep bits,
  // from bit `first_seed` of `seeds` on, of which 16 bytes past the last must be readable. Bits of
  // the last word past the elements become 0.
  void (*dilate)(const BlockMaps& maps, const uint32_t* seeds, int64_t first_seed,
                 uint64_t* scratch, uint64_t* out);
  // How many of bits first, first + 1, ... first + count - 1 are set.
  int64_t (*count_bits)(const uint64_t* bits, int64_t first, int64_t count);
};

}  // namespace fused_dropout::drop_block
