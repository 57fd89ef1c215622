// Division by a number that the host knows: a multiplication and a shift (Granlund and Montgomery
// 1994, "Division by invariant integers using multiplication", theorem 4.2). A 64-bit division is a
// function call on a GPU, around which registers would have to be spilled.
#pragma once

#include <cstdint>

#include "compat.h"

namespace fused_dropout {

// m = ceil(2^(63 + l) / d) with l = ceil(log2 d): floor(a / d) = floor(m a / 2^(63 + l)) for all
// 0 <= a < 2^63.
struct Divisor {
  int64_t value;
  uint64_t multiplier;  // 0 for d = 1, which has none
  int shift;
};

inline Divisor make_divisor(int64_t d) {
  Divisor divisor{d, 0, 0};
  if (d <= 1) return divisor;
  int log2 = 0;
  while (int64_t{1} << log2 < d) ++log2;
  const unsigned __int128 power = static_cast<unsigned __int128>(1) << (63 + log2);
  const unsigned __int128 wide = static_cast<unsigned __int128>(d);
  divisor.multiplier = static_cast<uint64_t>((power + wide - 1) / wide);
  divisor.shift = log2 - 1;  // __umul64hi already divides by 2^64
  return divisor;
}

FUSED_DROPOUT_DEVICE int64_t quotient(int64_t a, const Divisor& d) {
  if (d.multiplier == 0) return a;
  return static_cast<int64_t>(__umul64hi(static_cast<uint64_t>(a), d.multiplier) >> d.shift);
}

// The same for numbers below 2^12 and divisors up to 2^7: with m = ceil(2^20 / d), m a < 2^32 and
// m a - a 2^20 / d < 2^20 / d.
struct SmallDivisor {
  int value;
  uint32_t multiplier;
};

inline SmallDivisor make_small_divisor(int d) {
  return {d, ((1u << 20) + static_cast<uint32_t>(d) - 1) / static_cast<uint32_t>(d)};
}

FUSED_DROPOUT_DEVICE int small_quotient(int a, const SmallDivisor& d) {
  return static_cast<int>(static_cast<uint32_t>(a) * d.multiplier >> 20);
}

}  // namespace fused_dropout
