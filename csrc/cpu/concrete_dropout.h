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
};

}  // namespace fused_dropout::concrete_dropout
