// The activations and their derivatives. Those of float have no branches, and keep their relative
// accuracy where they tend to 0: torch's own 1 + erf(x) and 1 + tanh(x) lose theirs there. Errors,
// in units of 2^-23 of x, or of 1 for a derivative, are below 3 (measured with the worst hardware
// allowed: gelu 1.3, gelu_tanh and silu 2.2, their derivatives 2.8), and below 5 for gelu of types
// of 16 bits. Infinities and NaN give what torch's formulas give.
#pragma once

#include <type_traits>

#include "../common/params.h"
#include "elementary.cuh"

namespace fused_dropout {
namespace {

// 1 / (1 + exp(-y)), and what is missing to 1: of a float exactly 0 where the exponential is 0, so
// that inf times it is no number.
template <class S>
struct Sigmoid {
  S value;
  S missing;  // 0, too, where the value is 0
};

FUSED_DROPOUT_DEVICE Sigmoid<float> sigmoid(float y) {
  const float e = expf(-y);
  const float value = reciprocal_approx(1.0f + e);
  return {value, fminf(e, 0x1p126f) * value};
}
FUSED_DROPOUT_DEVICE Sigmoid<double> sigmoid(double y) {
  const double value = 1.0 / (1.0 + exp(-y));
  return {value, 1.0 - value};
}

struct Relu {
  template <class S>
  FUSED_DROPOUT_DEVICE S value(S x) const {
    return x <= 0 ? S(0) : x;
  }
  template <class S>
  FUSED_DROPOUT_DEVICE S slope(S x) const {
    return x <= 0 ? S(0) : S(1);
  }
};

// x Phi(x) with Phi the normal distribution's weight below x, of elements of type T. Of floats what
// is near 0 is computed apart, by polynomials of x^2: the hardware's errors would be 4 units in the
// last place there, nothing to a type of 16 bits.
template <class T>
struct Gelu {
  // max(x, 0) - |x| Phi(-|x|), where x + |x| is NaN for -inf, as torch's is.
  FUSED_DROPOUT_DEVICE float value(float x) const {
    const float a = fminf(fabsf(x), 14.0f);  // further out Phi is 0, times inf not a number
    const GaussianTail tail = gaussian_tail(a);
    const float half = 0.5f * x;
    const float far = fmaf(-a, tail.exponential * tail.quotient, half + fabsf(half));
    if constexpr (!std::is_same_v<T, float>) return far;
    const float s = x * x;
    float p = 0x1.83d514p-14f;  // (Phi(x) - 1/2) / x
    p = fmaf(p, s, -0x1.317d3ap-10f);
    p = fmaf(p, s, 0x1.46818p-7f);
    p = fmaf(p, s, -0x1.10567ep-4f);
    p = fmaf(p, s, 0x1.98844ep-2f);
    return a < 1.0f ? fmaf(s, p, half) : far;
  }
  FUSED_DROPOUT_DEVICE double value(double x) const { return x * below(x); }

  // Phi(-a) - a Phi'(a) for x = -a; what is missing to 1 for x = a.
  FUSED_DROPOUT_DEVICE float slope(float x) const {
    const float a = fabsf(x);
    const GaussianTail tail = gaussian_tail(a);
    const float of_negative =
        tail.exponential * fmaf(a, -static_cast<float>(kInverseSqrt2Pi), tail.quotient);
    const float far = x < 0 ? of_negative : 1.0f - of_negative;
    if constexpr (!std::is_same_v<T, float>) return far;
    const float s = x * x;
    float p = -0x1.6cdd6ap-14f;  // (Phi(x) + x Phi'(x) - 1/2) / x
    p = fmaf(p, s, 0x1.26648ep-10f);
    p = fmaf(p, s, -0x1.36a6b2p-7f);
    p = fmaf(p, s, 0x1.ea2d64p-5f);
    p = fmaf(p, s, -0x1.10580cp-2f);
    p = fmaf(p, s, 0x1.988452p-1f);
    return a < 1.0f ? fmaf(x, p, 0.5f) : far;
  }
  FUSED_DROPOUT_DEVICE double slope(double x) const {
    return below(x) + x * (exp(-0.5 * x * x) * kInverseSqrt2Pi);
  }

 private:
  static constexpr double kInverseSqrt2Pi = 0.39894228040143267794;
  FUSED_DROPOUT_DEVICE static double below(double x) {
    return 0.5 * erfc(-x * 0.70710678118654752440);
  }
};

// x sigmoid(y) with y = scale (x + 0.044715 x^3), scale = 2 sqrt(2 / pi).
struct GeluTanh {
  template <class S>
  FUSED_DROPOUT_DEVICE S argument(S x) const {
    return x * (S(1.59576912160573071176) + S(1.59576912160573071176 * 0.044715) * (x * x));
  }
  template <class S>
  FUSED_DROPOUT_DEVICE S value(S x) const {
    return x * sigmoid(argument(x)).value;
  }
  template <class S>
  FUSED_DROPOUT_DEVICE S slope(S x) const {
    const Sigmoid<S> s = sigmoid(argument(x));
    const S inner = S(1.59576912160573071176) + S(3 * 1.59576912160573071176 * 0.044715) * (x * x);
    return s.value + x * (s.value * s.missing) * inner;
  }
};

struct Silu {
  template <class S>
  FUSED_DROPOUT_DEVICE S value(S x) const {
    return x * sigmoid(x).value;
  }
  template <class S>
  FUSED_DROPOUT_DEVICE S slope(S x) const {
    const Sigmoid<S> s = sigmoid(x);
    return s.value + x * (s.value * s.missing);
  }
};

struct Identity {
  template <class S>
  FUSED_DROPOUT_DEVICE S value(S x) const {
    return x;
  }
  template <class S>
  FUSED_DROPOUT_DEVICE S slope(S) const {
    return S(1);
  }
};

// f(function) with the activation of elements of type T as a type, so that loops in f have no
// branch for it.
template <class T, class F>
FUSED_DROPOUT_DEVICE void with_activation(Activation activation, F f) {
  switch (activation) {
    case Activation::kNone:
      return f(Identity());
    case Activation::kRelu:
      return f(Relu());
    case Activation::kGelu:
      return f(Gelu<T>());
    case Activation::kGeluTanh:
      return f(GeluTanh());
    case Activation::kSilu:
      return f(Silu());
  }
}

}  // namespace
}  // namespace fused_dropout
