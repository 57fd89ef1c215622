// The mask itself, as bytes or packed.
#pragma once

#include "../../mask.h"

#include "../draw_groups.h"

namespace fused_dropout::mask {
namespace {

// 32 bits to 32 bytes of 0 or 1; `count` may cut the word short.
FUSED_DROPOUT_INLINE void expand_word(uint32_t word, int64_t count, uint8_t* out) {
  if (count >= 32) {
    for (int k = 0; k < 32; ++k) out[k] = word >> k & 1;
  } else {
    for (int k = 0; k < count; ++k) out[k] = word >> k & 1;
  }
}

void draw_bytes(const MaskRule& rule, uint64_t first, int64_t rows, int64_t cols, uint8_t* out) {
  constexpr int64_t kChunk = 32;  // groups drawn at a time
  uint32_t bits[kChunk * kGroupWords];
  const int64_t groups = group_count(cols);
  for (int64_t row = 0; row < rows; ++row, first += groups, out += cols) {
    for (int64_t g = 0; g < groups; g += kChunk) {
      const int64_t count = groups - g < kChunk ? groups - g : kChunk;
      draw_groups(rule, first + g, 1, count, bits);
      const int64_t first_col = g * kGroupColumns;
      for (int64_t w = 0; w < count * kGroupWords && first_col + 32 * w < cols; ++w) {
        expand_word(bits[w], cols - first_col - 32 * w, out + first_col + 32 * w);
      }
    }
  }
}

}  // namespace

static Kernels make_kernels(const Kernels*) { return {draw_groups, draw_bytes}; }

}  // namespace fused_dropout::mask

FUSED_DROPOUT_INSTANTIATE(fused_dropout::mask::Kernels);
