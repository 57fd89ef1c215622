// What the kernels of noise offer: simd/ops/noise.h fills the table, noise.cpp calls it.
#pragma once

#include "noise_run.h"

namespace fused_dropout::noise {

struct Kernels {
  void (*uniforms_float)(const NoiseRun& run, float* out);
  void (*uniforms_double)(const NoiseRun& run, double* out);
  void (*normals_float)(const NoiseRun& run, float* out);
  void (*normals_double)(const NoiseRun& run, double* out);
};

}  // namespace fused_dropout::noise
