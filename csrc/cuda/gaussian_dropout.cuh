// Gaussian dropout: out = in * (1 + sigma * z), z standard normal. One launch; noise.cuh says how
// the work is cut and what to expect.
#pragma once

#include "noise.cuh"

namespace fused_dropout::gaussian_dropout {
namespace {

// `out` may be `in`.
template <class T, int kAccess>
__global__ void __launch_bounds__(kNoiseThreads)
    apply_kernel(MaskRule rule, RngSource rng, Real<T> sigma, const T* in, T* out, int64_t count) {
  constexpr int kChunk = kNoiseChunk<T>;
  for_each_chunk<T>(seeded(rule, rng), count, [&](int64_t first, const auto& draw) {
    uint32_t words[kChunk];
    Real<T> x[kChunk], z[kChunk];
    const auto loaded = load_chunk<T, kAccess, kChunk>(in + first, count - first);
    draw(words);
    loaded.widen_to(x);
    NormalNoise::of_words(words, z);
#pragma unroll
    for (int k = 0; k < kChunk; ++k) x[k] *= fma(sigma, z[k], Real<T>(1));
    store_chunk<T, kAccess>(x, count - first, out + first);
  });
}

template <class T>
cudaError_t launch(const MaskRule& rule, const RngSource& rng, double sigma, const T* in, T* out,
                   int64_t count, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  const dim3 blocks = noise_blocks<T>(count);
  const Real<T> s = static_cast<Real<T>>(sigma);
  if (is_aligned(in, 16) && is_aligned(out, 16)) {
    return launch_kernel<apply_kernel<T, kVector<T>>>(blocks, dim3(kNoiseThreads), 0, stream, rule,
                                                      rng, s, in, out, count);
  }
  return launch_kernel<apply_kernel<T, 1>>(blocks, dim3(kNoiseThreads), 0, stream, rule, rng, s, in,
                                           out, count);
}

}  // namespace
}  // namespace fused_dropout::gaussian_dropout
