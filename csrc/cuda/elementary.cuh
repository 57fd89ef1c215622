// Elementary functions by one name in float and in double. Those of floats that an element needs
// are written out: a handful of multiply-adds and one instruction of the hardware's, no branches.
//
// The coefficients are minimax fits of what stands beside them.
#pragma once

#include <cmath>

#include "../common/float_formats.h"
#include "approximations.cuh"

namespace fused_dropout {
namespace {

FUSED_DROPOUT_DEVICE float exp_of(float x) { return expf(x); }
FUSED_DROPOUT_DEVICE double exp_of(double x) { return exp(x); }

FUSED_DROPOUT_DEVICE float square_root(float x) { return sqrtf(x); }
FUSED_DROPOUT_DEVICE double square_root(double x) { return sqrt(x); }

// The square root of a normal number above 0, by a step of Newton's.
FUSED_DROPOUT_DEVICE float square_root_of_normal(float x) {
  const float inverse = reciprocal_root_approx(x);
  const float root = x * inverse;
  return fmaf(fmaf(-root, root, x), 0.5f * inverse, root);
}

// -log(x) of a normal number above 0, within 2 units in the last place.
FUSED_DROPOUT_DEVICE float minus_log(float x) {
  // x = m 2^e with sqrt(1/2) <= m < sqrt(2), and f = m - 1, exactly.
  constexpr uint32_t kSqrtHalf = 0x3F3504F3;
  constexpr float kLog2PerExponentBit = 0x1.62e43p-24f;
  const uint32_t exponent = (bits_from_float(x) - kSqrtHalf) & 0xFF800000;
  const float e = static_cast<float>(static_cast<int32_t>(exponent));  // times 2^23
  const float f = float_from_bits(bits_from_float(x) - exponent) - 1.0f;
  // (log(1 + f) - f) / f^2: its error is at most 4e-8 of log(1 + f).
  float tail = 0x1.65cdcp-4f;
  tail = fmaf(tail, f, -0x1.25018cp-3f);
  tail = fmaf(tail, f, 0x1.31826ap-3f);
  tail = fmaf(tail, f, -0x1.535d94p-3f);
  tail = fmaf(tail, f, 0x1.98d318p-3f);
  tail = fmaf(tail, f, -0x1.000498p-2f);
  tail = fmaf(tail, f, 0x1.5556f2p-2f);
  tail = fmaf(tail, f, -0x1.fffffap-2f);
  const float log_of_m = fmaf(f * f, tail, f);
  return fmaf(e, -kLog2PerExponentBit, -log_of_m);
}

// sqrt(2) sin(pi h / 2) and sqrt(2) cos(pi h / 2) for |h| <= 1, as h S and (1 - h^2) C: exact in
// their zeros too. w = h^2.
FUSED_DROPOUT_DEVICE float sine_factor(float w) {
  float s = 0x1.c1471ap-13f;
  s = fmaf(s, w, -0x1.b12c7p-8f);
  s = fmaf(s, w, 0x1.cd9ca8p-4f);
  s = fmaf(s, w, -0x1.d3ba4ap-1f);
  return fmaf(s, w, 0x1.1c5832p+1f);
}

FUSED_DROPOUT_DEVICE float cosine_factor(float w) {
  float c = 0x1.17d4cep-15f;
  c = fmaf(c, w, -0x1.4b3fb4p-10f);
  c = fmaf(c, w, 0x1.ceae86p-6f);
  c = fmaf(c, w, -0x1.526f3ap-2f);
  return fmaf(c, w, 0x1.6a09e6p+0f);
}

// The normal distribution below -a, for a >= 0: its weight is exponential * quotient, within 1e-7
// of the weight above -a and within 3e-5 of itself, or 0 where it is no normal number.
struct GaussianTail {
  float exponential;  // exp(-a^2 / 2)
  float quotient;     // a polynomial of 1 / (1 + a / 4)
};

FUSED_DROPOUT_DEVICE GaussianTail gaussian_tail(float a) {
  constexpr float kHalfLog2OfE = 0x1.715476p-1f;
  const float exponential = exp2_approx((a * -kHalfLog2OfE) * a);
  const float t = reciprocal_approx(fmaf(a, 0.25f, 1.0f));
  float p = -0x1.89be36p-4f;
  p = fmaf(p, t, 0x1.747586p-2f);
  p = fmaf(p, t, -0x1.3fa566p-2f);
  p = fmaf(p, t, 0x1.52d606p-2f);
  p = fmaf(p, t, -0x1.c55ec2p-8f);
  p = fmaf(p, t, 0x1.fb3b9p-4f);
  p = fmaf(p, t, 0x1.8b882cp-4f);
  p = fmaf(p, t, 0x1.6f8b5p-13f);
  return {exponential, p};
}

}  // namespace
}  // namespace fused_dropout
