// Gaussian dropout: out = in * (1 + sigma * z), z standard normal. Its gradient is the same with
// the same noise.
#pragma once

#include "noise_body.h"

namespace fused_dropout {
namespace {

template <class T>
void apply_gaussian_dropout(const NoiseRun& run, double sigma, const void* in, void* out) {
  using R = Real<T>;
  const R s = static_cast<R>(sigma);
  for_each_block(run, [&](const uint32_t* words, int64_t first, int64_t count) {
    R x[kGroupColumns], z[kGroupColumns];
    read_block<T>(in, first, count, x);
    normals_of_words(words, z);
    for (int k = 0; k < kGroupColumns; ++k) x[k] *= R(1) + s * z[k];
    write_block<T>(x, first, count, out);
  });
}

GaussianDropoutKernels make_gaussian_dropout_kernels() {
  return {{apply_gaussian_dropout<float>, apply_gaussian_dropout<BFloat16>,
           apply_gaussian_dropout<Float16>, apply_gaussian_dropout<double>}};
}

}  // namespace
}  // namespace fused_dropout
