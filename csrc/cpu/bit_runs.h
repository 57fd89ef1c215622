// Runs of bits at any position of packed words.
#pragma once

#include <cstdint>

#include "../common/macros.h"

namespace fused_dropout {
namespace {

// The 64 bits from bit `first` on; 16 bytes past the last word that counts must be readable.
FUSED_DROPOUT_INLINE uint64_t bits_from(const uint32_t* bits, int64_t first) {
  uint64_t low;
  __builtin_memcpy(&low, bits + first / 32, sizeof low);
  const int shift = static_cast<int>(first % 32);
  const uint64_t high = bits[first / 32 + 2];
  return shift == 0 ? low : low >> shift | high << (64 - shift);
}

// Bits first, first + 1, ... become those of `value` where they were 0.
FUSED_DROPOUT_INLINE void put_bits(uint64_t* out, int64_t first, uint64_t value) {
  const int shift = static_cast<int>(first % 64);
  out[first / 64] |= value << shift;
  if (shift != 0) out[first / 64 + 1] |= value >> (64 - shift);
}

}  // namespace
}  // namespace fused_dropout
