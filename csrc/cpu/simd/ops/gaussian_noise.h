// Gaussian noise of given mean and variance: out = mean + sqrt(variance + eps) * z, z standard
// normal, and its gradient with respect to the variance.
#pragma once

#include "../../gaussian_noise.h"
#include "../noise_blocks.h"

namespace fused_dropout::gaussian_noise {
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
void add(const NoiseRun& run, double eps, const void* mean, const void* variance, void* out) {
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
void d_variance(const NoiseRun& run, double eps, const void* grad, const void* variance,
                void* out) {
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

}  // namespace

static Kernels make_kernels(const Kernels*) {
  return {{add<float>, add<BFloat16>, add<Float16>, add<double>},
          {d_variance<float>, d_variance<BFloat16>, d_variance<Float16>, d_variance<double>}};
}

}  // namespace fused_dropout::gaussian_noise

FUSED_DROPOUT_INSTANTIATE(fused_dropout::gaussian_noise::Kernels);
