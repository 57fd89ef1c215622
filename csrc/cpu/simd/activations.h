// The activations and their derivatives, a block of elements at a time.
//
// float is computed without branches or calls, so that the compiler turns the loops into vector
// code. Every activation stands on one exponential of a number <= 0, which cannot overflow, and
// keeps its relative accuracy where it tends to 0: torch's own 1 + erf(x) and 1 + tanh(x) lose
// theirs there. Errors are below 3 units in the last place of the largest term. double calls the
// standard library for every element: it is there to check gradients with.
//
// Infinities and NaN give what torch's formulas give: gelu(-inf) is NaN, the limit of neither.
#pragma once

#include "../../common/params.h"
#include "prelude.h"
#include "scalar_types.h"

namespace fused_dropout {
namespace {

constexpr double kInverseSqrt2 = 0.70710678118654752440;
constexpr double kInverseSqrt2Pi = 0.39894228040143267794;
// gelu_tanh: x sigmoid(y) with y = kTanhScale (x + kTanhCubic x^3), since 1 + tanh(u) is
// 2 sigmoid(2 u).
constexpr double kTanhScale = 1.59576912160573071176;  // 2 sqrt(2 / pi)
constexpr double kTanhCubic = 0.044715;

// exp(high + low) for high <= 0 and |low| below 1e-2; 0 where it is below 2^-125.
// high + low = n ln 2 + r with |r| <= ln 2 / 2; the polynomial is (e^r - 1 - r) / r^2, its minimax
// fit there (relative error of e^r 3e-9).
FUSED_DROPOUT_INLINE float exp_of_negative(float high, float low) {
  constexpr float kRound = 0x1.8p23f;  // adding it leaves an integer in the lowest bits
  constexpr float kLn2High = 0x1.63p-1f;
  constexpr float kLn2Low = -2.12194440e-4f;
  const float shifted = high * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = ((high - n * kLn2High) - n * kLn2Low) + low;
  float q = 0.0013813145f;
  q = q * r + 0.008369419f;
  q = q * r + 0.041668456f;
  q = q * r + 0.16666515f;
  q = q * r + 0.49999994f;
  const float power = float_from_bits((bits_from_float(shifted) + 127) << 23);
  const float result = (r + r * r * q + 1.0f) * power;
  return select(high > -86.5f, result, 0.0f);
}

// exp(-|x|).
FUSED_DROPOUT_INLINE float exp_minus_abs(float x) {
  const float size = __builtin_fabsf(x);
  return exp_of_negative(select(size < 90.0f, -size, -90.0f), 0.0f);
}
FUSED_DROPOUT_INLINE double exp_minus_abs(double x) { return std::exp(-__builtin_fabs(x)); }

template <class R>
struct Gaussian {
  R exponential;  // exp(-x^2 / 2)
  R below;        // the normal distribution's weight below x
};

// The weight beyond a = |x| is exp(-a^2 / 2) P(w) / (a + 4) with w = (a - 4) / (a + 4); P is the
// minimax fit for a up to 13.5 (relative error 8e-9), where the exponential has become 0.
FUSED_DROPOUT_INLINE float gaussian_tail(float a, float exponential) {
  const float d = 1.0f / (a + 4.0f);
  const float w = (a - 4.0f) * d;
  float p = -0.00012683835f;
  p = p * w + 0.00019057411f;
  p = p * w + 0.001574307f;
  p = p * w - 0.0035174745f;
  p = p * w - 0.007528394f;
  p = p * w + 0.060404416f;
  p = p * w - 0.18652295f;
  p = p * w + 0.38713688f;
  p = p * w - 0.6078966f;
  p = p * w + 0.75528514f;
  return exponential * (p * d);
}

// The weight between 0 and x, odd in x: the minimax fit for |x| up to 1 (error 5e-10).
FUSED_DROPOUT_INLINE float gaussian_centre(float x) {
  const float s = x * x;
  float p = -7.4720633e-6f;
  p = p * s + 0.00011297995f;
  p = p * s - 0.0011858165f;
  p = p * s + 0.009973095f;
  p = p * s - 0.066490315f;
  p = p * s + 0.3989423f;
  return p * x;
}

FUSED_DROPOUT_INLINE Gaussian<float> gaussian(float x) {
  const float size = __builtin_fabsf(x);
  const float a = select(size < 13.5f, size, 13.5f);
  // The square of 12 leading bits is exact; its rounding would be the exponential's largest error.
  const float head = float_from_bits(bits_from_float(a) & 0xFFFFF000);
  const float exponential =
      exp_of_negative(-0.5f * (head * head), -0.5f * ((a - head) * (a + head)));
  const float tail = gaussian_tail(a, exponential);
  const float below = select(x < 0, tail, 1.0f - tail);
  return {exponential, select(a < 1.0f, 0.5f + gaussian_centre(x), below)};
}

inline Gaussian<double> gaussian(double x) {
  return {std::exp(-0.5 * x * x), 0.5 * std::erfc(-x * kInverseSqrt2)};
}

template <class R>
struct Relu {
  FUSED_DROPOUT_INLINE R value(R x) { return select(x <= 0, R(0), x); }
  FUSED_DROPOUT_INLINE R slope(R x) { return select(x <= 0, R(0), R(1)); }
};

template <class R>
struct Gelu {
  FUSED_DROPOUT_INLINE R value(R x) { return x * gaussian(x).below; }
  FUSED_DROPOUT_INLINE R slope(R x) {
    const Gaussian<R> normal = gaussian(x);
    return normal.below + x * (normal.exponential * R(kInverseSqrt2Pi));
  }
};

// x sigmoid(y(x)), which is silu for y = x.
template <class R>
struct Sigmoid {
  R value;
  R slope;
};

template <class R>
FUSED_DROPOUT_INLINE Sigmoid<R> sigmoid(R y) {
  const R e = exp_minus_abs(y);
  const R d = 1 / (1 + e);
  return {select(y < 0, e * d, d), e * d * d};
}

template <class R>
struct GeluTanh {
  FUSED_DROPOUT_INLINE R argument(R x) {
    return x * (R(kTanhScale) + R(kTanhScale * kTanhCubic) * (x * x));
  }
  FUSED_DROPOUT_INLINE R value(R x) { return x * sigmoid(argument(x)).value; }
  FUSED_DROPOUT_INLINE R slope(R x) {
    const Sigmoid<R> s = sigmoid(argument(x));
    return s.value + x * s.slope * (R(kTanhScale) + R(3 * kTanhScale * kTanhCubic) * (x * x));
  }
};

template <class R>
struct Silu {
  FUSED_DROPOUT_INLINE R value(R x) { return x * sigmoid(x).value; }
  FUSED_DROPOUT_INLINE R slope(R x) {
    const Sigmoid<R> s = sigmoid(x);
    return s.value + x * s.slope;
  }
};

template <class Function, class R>
FUSED_DROPOUT_INLINE void values_of(R* x) {
  for (int k = 0; k < kGroupColumns; ++k) x[k] = Function::value(x[k]);
}

template <class Function, class R>
FUSED_DROPOUT_INLINE void times_slopes(const R* x, R* grad) {
  for (int k = 0; k < kGroupColumns; ++k) grad[k] *= Function::slope(x[k]);
}

// x[k] becomes activation(x[k]).
template <class R>
FUSED_DROPOUT_INLINE void activate_block(Activation activation, R* x) {
  switch (activation) {
    case Activation::kNone:
      return;
    case Activation::kRelu:
      return values_of<Relu<R>>(x);
    case Activation::kGelu:
      return values_of<Gelu<R>>(x);
    case Activation::kGeluTanh:
      return values_of<GeluTanh<R>>(x);
    case Activation::kSilu:
      return values_of<Silu<R>>(x);
  }
}

// grad[k] is multiplied by activation'(x[k]).
template <class R>
FUSED_DROPOUT_INLINE void times_slopes_block(Activation activation, const R* x, R* grad) {
  switch (activation) {
    case Activation::kNone:
      return;
    case Activation::kRelu:
      return times_slopes<Relu<R>>(x, grad);
    case Activation::kGelu:
      return times_slopes<Gelu<R>>(x, grad);
    case Activation::kGeluTanh:
      return times_slopes<GeluTanh<R>>(x, grad);
    case Activation::kSilu:
      return times_slopes<Silu<R>>(x, grad);
  }
}

}  // namespace
}  // namespace fused_dropout
