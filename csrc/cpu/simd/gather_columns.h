// The bits of a tile whose columns have consecutive bits, put in order for its rows.
#pragma once

#include "../../common/packed_bits.h"
#include "../dropout.h"
#include "prelude.h"

namespace fused_dropout::dropout {
namespace {

// Word r / 32 * cols + c has the bit of row r and column c, as bit r % 32. All at once: the reads,
// far apart, may have to wait for writes to memory that went before.
FUSED_DROPOUT_INLINE void gather_columns(const ColumnBits& tile, const uint32_t* bits,
                                         uint32_t* words) {
  const int64_t depth = ceil_div(tile.rows, 32);
  for (int64_t c = 0; c < tile.cols; ++c) {
    const uint64_t first = static_cast<uint64_t>(tile.first_bits[c]);
    for (int64_t d = 0; d < depth; ++d) {
      words[d * tile.cols + c] = word_from(bits, first + static_cast<uint64_t>(32 * d));
    }
  }
}

}  // namespace
}  // namespace fused_dropout::dropout
