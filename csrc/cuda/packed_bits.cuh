// Bits packed into 32-bit words, the first in the lowest place.
#pragma once

#include "compat.h"

namespace fused_dropout {
namespace {

FUSED_DROPOUT_DEVICE uint32_t bit_at(const uint32_t* bits, int64_t k) {
  return bits[k / 32] >> (k % 32) & 1;
}

// The 32 bits from bit `first` on; of those past `count` nothing is read.
FUSED_DROPOUT_DEVICE uint32_t bits_from(const uint32_t* bits, int64_t first, int64_t count) {
  const uint32_t low = bits[first / 32];
  const bool crosses = first % 32 + count > 32;
  const uint32_t high = crosses ? bits[first / 32 + 1] : 0;
  return __funnelshift_r(low, high, static_cast<uint32_t>(first % 32));
}

}  // namespace
}  // namespace fused_dropout
