// What the kernels of concrete_dropout offer: simd/ops/concrete_dropout.h fills the table,
// concrete_dropout.cpp calls it.
#pragma once

#include "noise_run.h"

namespace fused_dropout::concrete_dropout {

// The drop probability is p = sigmoid(logit).
struct Rate {
  double logit;
  double p;
  double inverse_temperature;  // 1 / t
};

struct Kernels {
  // out = in * keep / (1 - p); `out` may be `in`.
  void (*apply[kScalarTypes])(const NoiseRun& run, const Rate& rate, const void* in, void* out);
  // d_in = grad * keep / (1 - p); returns the run's share of the gradient of the logit.
  double (*backward[kScalarTypes])(const NoiseRun& run, const Rate& rate, const void* grad,
                                   const void* in, void* d_in);

  // For masks that dimensions share: what the run's elements of the mask multiply an element by,
  // keep / (1 - p), and the derivative of its logarithm with respect to the logit, both in the
  // type that is computed in. `slopes` may be null.
  void (*factors[kScalarTypes])(const NoiseRun& run, const Rate& rate, void* factors, void* slopes);
  // out = in * factors; `out` may be `in`.
  void (*multiply[kScalarTypes])(const void* in, const void* factors, int64_t count, void* out);
  // d_in = grad * factors; returns the sum of in * d_in * slopes.
  double (*multiply_and_sum[kScalarTypes])(const void* grad, const void* in, const void* factors,
                                           const void* slopes, int64_t count, void* d_in);
};

}  // namespace fused_dropout::concrete_dropout
