// Gaussian dropout: out = in * (1 + sigma * z), z standard normal. Its gradient is the same with
// the same noise.
#pragma once

#include "../../gaussian_dropout.h"
#include "../noise_blocks.h"

namespace fused_dropout::gaussian_dropout {
namespace {

template <class T>
void apply(const NoiseRun& run, double sigma, const void* in, void* out) {
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

}  // namespace

static Kernels make_kernels(const Kernels*) {
  return {{apply<float>, apply<BFloat16>, apply<Float16>, apply<double>}};
}

}  // namespace fused_dropout::gaussian_dropout

FUSED_DROPOUT_INSTANTIATE(fused_dropout::gaussian_dropout::Kernels);
