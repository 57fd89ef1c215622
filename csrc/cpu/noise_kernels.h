// What the bodies of the ops on continuous noise offer: the *_body.h of the same name fill the
// tables, the *_cpu.cpp call them. Everything works on a stretch of elements that are contiguous in
// memory, in blocks of 128 (kGroupColumns).
#pragma once

#include "kernel_types.h"

namespace fused_dropout {

// `count` elements from block `first_block` on. `rule` is make_noise_rule's.
struct NoiseRun {
  MaskRule rule;
  uint64_t first_block;
  int64_t count;
};

struct NoiseKernels {
  void (*uniforms_float)(const NoiseRun& run, float* out);
  void (*uniforms_double)(const NoiseRun& run, double* out);
  void (*normals_float)(const NoiseRun& run, float* out);
  void (*normals_double)(const NoiseRun& run, double* out);
};

struct GaussianDropoutKernels {
  // out = in * (1 + sigma * z); `out` may be `in`.
  void (*apply[kScalarTypes])(const NoiseRun& run, double sigma, const void* in, void* out);
};

struct GaussianNoiseKernels {
  // out = mean + sqrt(variance + eps) * z
  void (*add[kScalarTypes])(const NoiseRun& run, double eps, const void* mean, const void* variance,
                            void* out);
  // out = grad * z / (2 sqrt(variance + eps))
  void (*d_variance[kScalarTypes])(const NoiseRun& run, double eps, const void* grad,
                                   const void* variance, void* out);
};

// Of concrete dropout with drop probability p = sigmoid(logit).
struct ConcreteRate {
  double logit;
  double p;
  double inverse_temperature;  // 1 / t
};

struct ConcreteDropoutKernels {
  // out = in * keep / (1 - p); `out` may be `in`.
  void (*apply[kScalarTypes])(const NoiseRun& run, const ConcreteRate& rate, const void* in,
                              void* out);
  // d_in = grad * keep / (1 - p); returns the run's share of the gradient of the logit.
  double (*backward[kScalarTypes])(const NoiseRun& run, const ConcreteRate& rate, const void* grad,
                                   const void* in, void* d_in);
};

}  // namespace fused_dropout
