// What the kernels of gaussian_noise offer: simd/ops/gaussian_noise.h fills the table,
// gaussian_noise.cpp calls it.
#pragma once

#include "noise_run.h"

namespace fused_dropout::gaussian_noise {

struct Kernels {
  // out = mean + sqrt(variance + eps) * z
  void (*add[kScalarTypes])(const NoiseRun& run, double eps, const void* mean, const void* variance,
                            void* out);
  // out = grad * z / (2 sqrt(variance + eps))
  void (*d_variance[kScalarTypes])(const NoiseRun& run, double eps, const void* grad,
                                   const void* variance, void* out);
};

}  // namespace fused_dropout::gaussian_noise
