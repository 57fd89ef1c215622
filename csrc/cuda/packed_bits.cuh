// Bits packed into 32-bit words, the first in the lowest place.
#pragma once

#include "compat.h"

namespace fused_dropout {
namespace {

FUSED_DROPOUT_DEVICE uint32_t bit_at(const uint32_t* bits, int64_t k) {
  return bits[k >> 5] >> (k & 31) & 1;
}

// The 32 bits from bit `first` on; of those past `count` nothing is read.
FUSED_DROPOUT_DEVICE uint32_t bits_from(const uint32_t* bits, int64_t first, int64_t count) {
  const uint32_t* const word = bits + (first >> 5);
  const int shift = static_cast<int>(first & 31);
  const uint32_t high = shift + count > 32 ? word[1] : 0;
  return __funnelshift_r(word[0], high, static_cast<uint32_t>(shift));
}

// A 32 x 32 matrix of bits, of which each lane of the warp has a row, turned over: bit r of lane c
// becomes bit c of lane r.
FUSED_DROPOUT_DEVICE uint32_t transposed(uint32_t row, int lane) {
  uint32_t upper_left = 0x0000FFFF;  // of each block of 2 `half` x 2 `half`
#pragma unroll
  for (int half = 16; half > 0; half /= 2, upper_left ^= upper_left << half) {
    const bool is_lower = (lane & half) != 0;
    const uint32_t other = __shfl_xor_sync(~0u, row, half);
    const uint32_t moved =
        __funnelshift_r(other, other, static_cast<uint32_t>(is_lower ? half : 32 - half));
    const uint32_t kept = is_lower ? ~upper_left : upper_left;
    row = (row & kept) | (moved & ~kept);
  }
  return row;
}

}  // namespace
}  // namespace fused_dropout
