// Gaussian noise of given mean and variance: out = mean + sqrt(variance + eps) * z, and its
// gradient with respect to the variance, grad * z / (2 sqrt(variance + eps)). One launch each;
// noise.cuh says how the work is cut and what to expect. The floor is three accesses an element.
#pragma once

#include "noise.cuh"

namespace fused_dropout::gaussian_noise {
namespace {

// `other` is the mean, or for the gradient what flows back.
template <class T>
struct Operands {
  const T* other;
  const T* variance;
  T* out;
  int64_t count;
};

template <class T, int kAccess, bool kGradient>
__global__ void __launch_bounds__(kNoiseThreads)
    apply_kernel(MaskRule rule, RngSource rng, Real<T> eps, Operands<T> tensors) {
  using S = Real<T>;
  constexpr int kChunk = kNoiseChunk<T>;
  for_each_chunk<T>(seeded(rule, rng), tensors.count, [&](int64_t first, const auto& draw) {
    const int64_t left = tensors.count - first;
    uint32_t words[kChunk];
    S x[kChunk], variance[kChunk], z[kChunk];
    const auto other = load_chunk<T, kAccess, kChunk>(tensors.other + first, left);
    const auto loaded = load_chunk<T, kAccess, kChunk>(tensors.variance + first, left);
    draw(words);
    other.widen_to(x);
    loaded.widen_to(variance);
    NormalNoise::of_words(words, z);
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      const S deviation = square_root(variance[k] + eps);
      if constexpr (kGradient) {
        x[k] *= z[k] / (S(2) * deviation);
      } else {
        x[k] = fma(deviation, z[k], x[k]);
      }
    }
    store_chunk<T, kAccess>(x, left, tensors.out + first);
  });
}

template <class T, bool kGradient>
cudaError_t launch(const MaskRule& rule, const RngSource& rng, double eps,
                   const Operands<T>& tensors, cudaStream_t stream) {
  if (tensors.count == 0) return cudaSuccess;
  const dim3 blocks = noise_blocks<T>(tensors.count);
  const Real<T> added = static_cast<Real<T>>(eps);
  if (is_aligned(tensors.other, 16) && is_aligned(tensors.variance, 16) &&
      is_aligned(tensors.out, 16)) {
    return launch_kernel<apply_kernel<T, kVector<T>, kGradient>>(blocks, dim3(kNoiseThreads), 0,
                                                                 stream, rule, rng, added, tensors);
  }
  return launch_kernel<apply_kernel<T, 1, kGradient>>(blocks, dim3(kNoiseThreads), 0, stream, rule,
                                                      rng, added, tensors);
}

}  // namespace
}  // namespace fused_dropout::gaussian_noise
