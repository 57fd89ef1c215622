// Gaussian noise of given mean and variance: out = mean + sqrt(variance + eps) * z, z standard
// normal, and its gradient with respect to the variance.
#pragma once

#include "noise_body.h"

namespace fused_dropout {
namespace {

// sqrt(variance + eps) of a block.
template <class T>
FUSED_DROPOUT_INLINE void read_deviations(const void* variance, int64_t first, int64_t count,
                                          Real<T> eps, Real<T>* deviation) {
  read_block<T>(variance, first, count, deviation);
  for (int k = 0; k < kGroupColumns; ++k) deviation[k] += eps;
  square_roots(deviation, kGroupColumns);
}

template <class T>
void add_gaussian_noise(const NoiseRun& run, double eps, const void* mean, const void* variance,
                        void* out) {
  using R = Real<T>;
  for_each_block(run, [&](const uint32_t* words, int64_t first, int64_t count) {
    R x[kGroupColumns], deviation[kGroupColumns], z[kGroupColumns];
    read_block<T>(mean, first, count, x);
    read_deviations<T>(variance, first, count, static_cast<R>(eps), deviation);
    normals_of_words(words, z);
    for (int k = 0; k < kGroupColumns; ++k) x[k] += deviation[k] * z[k];
    write_block<T>(x, first, count, out);
  });
}

template <class T>
void gaussian_noise_d_variance(const NoiseRun& run, double eps, const void* grad,
                               const void* variance, void* out) {
  using R = Real<T>;
  for_each_block(run, [&](const uint32_t* words, int64_t first, int64_t count) {
    R g[kGroupColumns], deviation[kGroupColumns], z[kGroupColumns];
    read_block<T>(grad, first, count, g);
    read_deviations<T>(variance, first, count, static_cast<R>(eps), deviation);
    normals_of_words(words, z);
    for (int k = 0; k < kGroupColumns; ++k) g[k] *= z[k] / (R(2) * deviation[k]);
    write_block<T>(g, first, count, out);
  });
}

GaussianNoiseKernels make_gaussian_noise_kernels() {
  return {{add_gaussian_noise<float>, add_gaussian_noise<BFloat16>, add_gaussian_noise<Float16>,
           add_gaussian_noise<double>},
          {gaussian_noise_d_variance<float>, gaussian_noise_d_variance<BFloat16>,
           gaussian_noise_d_variance<Float16>, gaussian_noise_d_variance<double>}};
}

}  // namespace
}  // namespace fused_dropout
