// The activations and their derivatives, by torch's formulas but for the one rewriting of
// 1 + tanh(u) as 2 sigmoid(2 u), which needs a single exponential and keeps its relative accuracy
// where it tends to 0. Infinities and NaN give what torch's formulas give.
#pragma once

#include "../common/params.h"
#include "elementary.cuh"

namespace fused_dropout {
namespace {

// The normal distribution's weight below x.
FUSED_DROPOUT_DEVICE float gaussian_below(float x) {
  return 0.5f * (1.0f + erff(x * 0.707106781f));
}
FUSED_DROPOUT_DEVICE double gaussian_below(double x) {
  return 0.5 * erfc(-x * 0.70710678118654752440);
}

// 1 / x, within 1 unit in the last place for float, and 0 from 2^126 on.
FUSED_DROPOUT_DEVICE float inverse(float x) { return __fdividef(1.0f, x); }
FUSED_DROPOUT_DEVICE double inverse(double x) { return 1.0 / x; }

template <class S>
FUSED_DROPOUT_DEVICE S sigmoid(S y) {
  return inverse(S(1) + exp_of(-y));
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

struct Gelu {
  template <class S>
  FUSED_DROPOUT_DEVICE S value(S x) const {
    return x * gaussian_below(x);
  }
  template <class S>
  FUSED_DROPOUT_DEVICE S slope(S x) const {
    constexpr S kInverseSqrt2Pi = S(0.39894228040143267794);
    return gaussian_below(x) + x * (exp_of(S(-0.5) * x * x) * kInverseSqrt2Pi);
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
    return x * sigmoid(argument(x));
  }
  template <class S>
  FUSED_DROPOUT_DEVICE S slope(S x) const {
    const S s = sigmoid(argument(x));
    const S inner = S(1.59576912160573071176) + S(3 * 1.59576912160573071176 * 0.044715) * (x * x);
    return s + x * (s * (1 - s)) * inner;
  }
};

struct Silu {
  template <class S>
  FUSED_DROPOUT_DEVICE S value(S x) const {
    return x * sigmoid(x);
  }
  template <class S>
  FUSED_DROPOUT_DEVICE S slope(S x) const {
    const S s = sigmoid(x);
    return s + x * (s * (1 - s));
  }
};

template <int kCount, class Function, class S>
FUSED_DROPOUT_DEVICE void values_of(Function function, S* x) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) x[i] = function.value(x[i]);
}

template <int kCount, class Function, class S>
FUSED_DROPOUT_DEVICE void times_slopes_of(Function function, const S* x, S* grad) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) grad[i] *= function.slope(x[i]);
}

// x[i] becomes activation(x[i]).
template <int kCount, class S>
FUSED_DROPOUT_DEVICE void activate(Activation activation, S* x) {
  switch (activation) {
    case Activation::kNone:
      return;
    case Activation::kRelu:
      return values_of<kCount>(Relu(), x);
    case Activation::kGelu:
      return values_of<kCount>(Gelu(), x);
    case Activation::kGeluTanh:
      return values_of<kCount>(GeluTanh(), x);
    case Activation::kSilu:
      return values_of<kCount>(Silu(), x);
  }
}

// grad[i] is multiplied by activation'(x[i]).
template <int kCount, class S>
FUSED_DROPOUT_DEVICE void times_slopes(Activation activation, const S* x, S* grad) {
  switch (activation) {
    case Activation::kNone:
      return;
    case Activation::kRelu:
      return times_slopes_of<kCount>(Relu(), x, grad);
    case Activation::kGelu:
      return times_slopes_of<kCount>(Gelu(), x, grad);
    case Activation::kGeluTanh:
      return times_slopes_of<kCount>(GeluTanh(), x, grad);
    case Activation::kSilu:
      return times_slopes_of<kCount>(Silu(), x, grad);
  }
}

}  // namespace
}  // namespace fused_dropout
