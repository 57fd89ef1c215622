// What the kernels of gaussian_dropout offer: simd/ops/gaussian_dropout.h fills the table,
// gaussian_dropout.cpp calls it.
#pragma once

#include "noise_run.h"

namespace fused_dropout::gaussian_dropout {

struct Kernels {
  // out = in * (1 + sigma * z); `out` may be `in`.
  void (*apply[kScalarTypes])(const NoiseRun& run, double sigma, const void* in, void* out);
};

}  // namespace fused_dropout::gaussian_dropout
