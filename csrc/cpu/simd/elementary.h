// Logarithm, exponential, sine and cosine of floats as plain arithmetic without branches, which the
// compiler turns into vector code in a loop; of doubles by the C library. A float's result is
// within 2 units in the last place of the exact one; tests/ops/test_noise.py goes through them all.
//
// The coefficients are Chebyshev fits of what stands beside them.
#pragma once

#include "../../common/noise.h"
#include "prelude.h"
#include "scalar_types.h"

namespace fused_dropout {
namespace {

constexpr float kLog2High = 0x1.62e4p-1f;  // 16 bits of log 2, times a small integer exact
constexpr float kLog2Low = 0x1.7f7d1cp-20f;

// The natural logarithm of a normal number above 0.
FUSED_DROPOUT_INLINE float log_of(float x) {
  // x = m 2^e with sqrt(1/2) <= m < sqrt(2), and f = m - 1, exactly.
  constexpr uint32_t kSqrtHalf = 0x3F3504F3;
  const uint32_t bits = bits_from_float(x);
  const int32_t e = static_cast<int32_t>(bits - kSqrtHalf) >> 23;
  const float f = float_from_bits(bits - (static_cast<uint32_t>(e) << 23)) - 1.0f;
  // (log(1 + f) - f + f^2 / 2) / f^3
  float tail = -0x1.43b246p-4f;
  tail = tail * f + 0x1.02814ep-3f;
  tail = tail * f - 0x1.0a33eap-3f;
  tail = tail * f + 0x1.231ce6p-3f;
  tail = tail * f - 0x1.54d03ep-3f;
  tail = tail * f + 0x1.999f14p-3f;
  tail = tail * f - 0x1.0000cep-2f;
  tail = tail * f + 0x1.555554p-2f;
  const float exponent = static_cast<float>(e);
  const float square = f * f;
  const float small = square * (tail * f - 0.5f) + exponent * kLog2Low;
  return exponent * kLog2High + (f + small);
}

// e to the power of x, which is taken for -87 below that and for 87 above (700 for doubles): so
// that neither the result nor its reciprocal leaves the normal numbers.
FUSED_DROPOUT_INLINE float exp_of(float x) {
  constexpr float kBound = 87.0f;
  constexpr float kRounder = 0x1.8p23f;  // adding it rounds to an integer, in the low bits
  x = select(x < -kBound, -kBound, x);
  x = select(x > kBound, kBound, x);
  const float shifted = x * 0x1.715476p0f + kRounder;  // 1 / log 2
  const float n = shifted - kRounder;
  const float r = (x - n * kLog2High) - n * kLog2Low;
  // (exp(r) - 1 - r) / r^2
  float tail = 0x1.6d110ap-10f;
  tail = tail * r + 0x1.120b6ep-7f;
  tail = tail * r + 0x1.55551ap-5f;
  tail = tail * r + 0x1.5554dcp-3f;
  tail = tail * r + 0.5f;
  const float power = float_from_bits((bits_from_float(shifted) + 127u) << 23);  // 2^n
  return (1.0f + (r + r * r * tail)) * power;
}

// sin(2 pi t) and cos(2 pi t) for |t| <= 1/8.
FUSED_DROPOUT_INLINE float sine_of_turn(float t) {
  const float w = t * t;
  // (sin(2 pi t) / t - 2 pi) / t^2
  float tail = -0x1.2ee7bcp+6f;
  tail = tail * w + 0x1.4665e8p+6f;
  tail = tail * w - 0x1.4abbccp+5f;
  constexpr float kTwoPi = 0x1.921fb6p+2f;
  constexpr float kTwoPiLow = -0x1.777a5cp-23f;
  return t * (kTwoPi + (tail * w + kTwoPiLow));
}

FUSED_DROPOUT_INLINE float cosine_of_turn(float t) {
  const float w = t * t;
  // (cos(2 pi t) - 1) / t^2
  float tail = 0x1.db6492p+5f;
  tail = tail * w - 0x1.55cb98p+6f;
  tail = tail * w + 0x1.03c1eap+6f;
  tail = tail * w - 0x1.3bd3ccp+4f;
  return tail * w + 1.0f;
}

constexpr double kTwoPi = 0x1.921fb54442d18p+2;

FUSED_DROPOUT_INLINE double log_of(double x) { return __builtin_log(x); }
FUSED_DROPOUT_INLINE double exp_of(double x) {
  constexpr double kBound = 700.0;
  x = x < -kBound ? -kBound : x;
  return __builtin_exp(x > kBound ? kBound : x);
}
FUSED_DROPOUT_INLINE double sine_of_turn(double t) { return __builtin_sin(kTwoPi * t); }
FUSED_DROPOUT_INLINE double cosine_of_turn(double t) { return __builtin_cos(kTwoPi * t); }

// By vector operations: a loop over the C library's function would have to set errno.
template <class Real>
FUSED_DROPOUT_INLINE void square_roots(Real* x, int count) {
  constexpr int kLanes = Vec<Real>::kLanes;
  for (int k = 0; k < count; k += kLanes) store(x + k, square_root(load(x + k)));
}

}  // namespace
}  // namespace fused_dropout
