// What the moments of DropConnect's pre-activations are made of, for the CPU and the CUDA kernels.
#pragma once

#include "macros.h"
#include "params.h"

namespace fused_dropout {

// The operands and factors of ops/dropconnect_moments.h. `bias` is null without one.
struct MomentsProblem {
  MatrixView input;
  MatrixView weight;
  const void* bias;
  int64_t bias_stride;
  int64_t rows, in_features, out_features;
  double mean_scale;
  double variance_scale;
  bool mask_bias;
};

template <class R>
struct Moments {
  R mean;
  R variance;
};

template <class R>
FUSED_DROPOUT_INLINE R scaled_or_zero(R sum, double scale) {
  return scale == 0 ? R(0) : sum * static_cast<R>(scale);
}

// The moments of an output feature from its sums of products and of their squares.
template <class R>
FUSED_DROPOUT_INLINE Moments<R> finished(const MomentsProblem& problem, Moments<R> sums, R bias) {
  if (problem.mask_bias) {
    return {scaled_or_zero(sums.mean + bias, problem.mean_scale),
            scaled_or_zero(sums.variance + bias * bias, problem.variance_scale)};
  }
  return {scaled_or_zero(sums.mean, problem.mean_scale) + bias,
          scaled_or_zero(sums.variance, problem.variance_scale)};
}

}  // namespace fused_dropout
