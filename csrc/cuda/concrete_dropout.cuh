// Concrete dropout: out = in * keep / (1 - p) with the relaxed mask
//
//   keep = 1 - z = 1 / (1 + exp((logit p + logit u) / t)),   logit x = log(x / (1 - x)).
//
// It is computed as out = in * (e^-m + e^(l - m)) / (e^-m + e^(y - m)) with l = logit p, m = max(l,
// 0) and y = (l + logit u) / t: 1 / (1 - p) = 1 + e^l may be too large for a float.
//
// Forward is one launch. Backward is one pass over the elements, which gives the input's gradient
// and a partial sum of logit_p's for every block, and a launch of one block that adds those: in an
// order that the number of elements alone sets, since the grid follows from it.
//
// Where dimensions share the mask, a launch computes keep / (1 - p) and the slopes of its elements,
// and a pass over the tensor's elements multiplies by them: forward in the order of memory,
// backward in row-major order. Its floor is the bytes of the tensors.
//
// A float's factor is within 2^-21 (1 + (2 + |l| + |logit u|) / t) of itself: by the logarithms,
// which the hardware computes to 22 bits, and what the division by t makes of their error.
//
// noise.cuh says how the work is cut. Besides Philox an element takes two logarithms, an
// exponential and a reciprocal, an instruction each: in sm_90's code 34 issue slots an element of
// bf16, backward
// 40. Prediction: forward 0.85 of copy speed, backward, which moves 6 bytes, 0.95.
#pragma once

#include "masked_dims.cuh"
#include "noise.cuh"

namespace fused_dropout::concrete_dropout {
namespace {

// Where p and the temperature come from: the kernels read the logit, a parameter, on the device.
template <class S>
struct Source {
  const S* logit_p;
  S inverse_temperature;
};

template <class S>
struct ConcreteRate {
  S logit, p, inverse_temperature;
  S shift;      // m
  S one;        // e^-m
  S numerator;  // e^-m + e^(l - m)
};

// 1 / x for 2^-126 <= x <= 2^126.
FUSED_DROPOUT_DEVICE float inverse_of(float x) { return reciprocal_approx(x); }
FUSED_DROPOUT_DEVICE double inverse_of(double x) { return 1.0 / x; }

template <class S>
FUSED_DROPOUT_DEVICE ConcreteRate<S> rate_of(const Source<S>& source) {
  const S logit = *source.logit_p;
  const S shift = logit > 0 ? logit : S(0);
  const S one = exp_of(-shift);
  const S odds = exp_of(logit - shift);
  return {logit, odds * inverse_of(one + odds), source.inverse_temperature, shift, one, one + odds};
}

// e^-m z / (1 - z), within bounds whose reciprocals are normal numbers. 1 - u is exact. By powers
// of 2: the logarithms are within 2^-22 of their size or of 1. A NaN ends up in `numerator` and
// `p`.
FUSED_DROPOUT_DEVICE float dropped_odds(const ConcreteRate<float>& rate, uint32_t word) {
  constexpr float kLog2OfE = 0x1.715476p0f;
  constexpr float kBound = 125.0f;
  const float u = uniform_of_word<float>(word);
  const float noise = log2_approx(u) - log2_approx(1.0f - u);
  const float at_half = fmaf(rate.logit, rate.inverse_temperature, -rate.shift) * kLog2OfE;
  const float x = fmaf(noise, rate.inverse_temperature, at_half);
  return exp2_approx(fminf(fmaxf(x, -kBound), kBound));
}

FUSED_DROPOUT_DEVICE double dropped_odds(const ConcreteRate<double>& rate, uint32_t word) {
  constexpr double kBound = 700;
  const double u = uniform_of_word<double>(word);
  const double x = (rate.logit + log(u / (1.0 - u))) * rate.inverse_temperature - rate.shift;
  return exp(fmin(fmax(x, -kBound), kBound));
}

// `out` may be `in`.
template <class T, int kAccess>
__global__ void __launch_bounds__(kNoiseThreads)
    forward_kernel(MaskRule rule, RngSource rng, Source<Real<T>> source, const T* in, T* out,
                   int64_t count) {
  using S = Real<T>;
  constexpr int kChunk = kNoiseChunk<T>;
  const ConcreteRate<S> rate = rate_of(source);
  for_each_chunk<T>(seeded(rule, rng), count, [&](int64_t first, const auto& draw) {
    uint32_t words[kChunk];
    S x[kChunk];
    const auto loaded = load_chunk<T, kAccess, kChunk>(in + first, count - first);
    draw(words);
    loaded.widen_to(x);
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      x[k] *= rate.numerator * inverse_of(rate.one + dropped_odds(rate, words[k]));
    }
    store_chunk<T, kAccess>(x, count - first, out + first);
  });
}

// The sum over the block's threads, in thread 0.
template <class S>
FUSED_DROPOUT_DEVICE S block_sum(S sum) {
  constexpr int kWarps = kNoiseThreads / kWarpLanes;
  FUSED_DROPOUT_SHARED(S, of_warp, [kWarps]);
#pragma unroll
  for (int half = kWarpLanes / 2; half > 0; half /= 2) sum += __shfl_xor_sync(~0u, sum, half);
  if (threadIdx.x % kWarpLanes == 0) of_warp[threadIdx.x / kWarpLanes] = sum;
  __syncthreads();
  sum = of_warp[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) sum += of_warp[w];
  return sum;
}

template <class T>
struct Gradients {
  const T* grad;
  const T* in;
  T* d_in;
  Real<T>* partial;  // one for each block
  int64_t count;
};

template <class T, int kAccess>
__global__ void __launch_bounds__(kNoiseThreads)
    backward_kernel(MaskRule rule, RngSource rng, Source<Real<T>> source, Gradients<T> tensors) {
  using S = Real<T>;
  constexpr int kChunk = kNoiseChunk<T>;
  const ConcreteRate<S> rate = rate_of(source);
  S d_logit = 0;
  for_each_chunk<T>(seeded(rule, rng), tensors.count, [&](int64_t first, const auto& draw) {
    const int64_t left = tensors.count - first;
    uint32_t words[kChunk];
    S g[kChunk], x[kChunk];
    const auto grad = load_chunk<T, kAccess, kChunk>(tensors.grad + first, left);
    const auto in = load_chunk<T, kAccess, kChunk>(tensors.in + first, left);
    draw(words);
    grad.widen_to(g);
    in.widen_to(x);
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      const S odds = dropped_odds(rate, words[k]);
      const S inverse = inverse_of(rate.one + odds);
      const S dropped = odds * inverse;
      g[k] *= inverse * rate.numerator;
      d_logit = fma(x[k] * g[k], fma(-dropped, rate.inverse_temperature, rate.p), d_logit);
    }
    store_chunk<T, kAccess>(g, left, tensors.d_in + first);
  });
  d_logit = block_sum(d_logit);
  if (threadIdx.x == 0) tensors.partial[blockIdx.x] = d_logit;
}

// ---- masks that dimensions share
// -----------------------------------------------------------------

// Of the elements of a mask: keep / (1 - p), and the derivative of its logarithm with respect to
// the logit. `slopes` may be null. Both are aligned to 16 bytes.
template <class S>
struct MaskFactors {
  S* factors;
  S* slopes;
};

template <class S>
__global__ void __launch_bounds__(kNoiseThreads)
    factors_kernel(MaskRule rule, RngSource rng, Source<S> source, MaskFactors<S> mask,
                   int64_t count) {
  constexpr int kChunk = kNoiseChunk<S>;
  const ConcreteRate<S> rate = rate_of(source);
  for_each_chunk<S>(seeded(rule, rng), count, [&](int64_t first, const auto& draw) {
    uint32_t words[kChunk];
    S factors[kChunk], slopes[kChunk];
    draw(words);
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      const S odds = dropped_odds(rate, words[k]);
      const S inverse = inverse_of(rate.one + odds);
      factors[k] = inverse * rate.numerator;
      slopes[k] = fma(-odds * inverse, rate.inverse_temperature, rate.p);
    }
    store_chunk<S, kVector<S>>(factors, count - first, mask.factors + first);
    if (mask.slopes != nullptr) {
      store_chunk<S, kVector<S>>(slopes, count - first, mask.slopes + first);
    }
  });
}

// Calls body(first, places) for this thread's neighbours, kAccess at a time: where in the mask each
// of them is. Behind the last element that is any place of the mask.
template <int kAccess, class Body>
FUSED_DROPOUT_DEVICE void for_each_access(const MaskedDims& dims, int64_t count, Body body) {
  const int64_t stride = dims.mask_stride[dims.count - 1];
  for (int64_t first = thread_in_grid() * kAccess; first < count;
       first += threads_in_grid() * kAccess) {
    const ElementPlace start = place_of_element(dims, first);
    int64_t places[kAccess];
#pragma unroll
    for (int k = 0; k < kAccess; ++k) {
      places[k] = start.bit;
      if (k < start.left) {
        places[k] += k * stride;
      } else if (first + k < count) {
        places[k] = place_of_element(dims, first + k).bit;
      }
    }
    body(first, places);
  }
}

// `out` may be `in`.
template <class T, int kAccess>
__global__ void __launch_bounds__(kNoiseThreads)
    shared_forward_kernel(const Real<T>* factors, MaskedDims dims, const T* in, T* out,
                          int64_t count) {
  for_each_access<kAccess>(dims, count, [&](int64_t first, const int64_t (&places)[kAccess]) {
    Real<T> x[kAccess];
    load_chunk<T, kAccess, kAccess>(in + first, count - first).widen_to(x);
#pragma unroll
    for (int k = 0; k < kAccess; ++k) x[k] *= factors[places[k]];
    store_chunk<T, kAccess>(x, count - first, out + first);
  });
}

template <class T, int kAccess>
__global__ void __launch_bounds__(kNoiseThreads)
    shared_backward_kernel(MaskFactors<Real<T>> mask, MaskedDims dims, Gradients<T> tensors) {
  Real<T> d_logit = 0;
  for_each_access<kAccess>(
      dims, tensors.count, [&](int64_t first, const int64_t (&places)[kAccess]) {
        const int64_t left = tensors.count - first;
        Real<T> g[kAccess], x[kAccess];
        load_chunk<T, kAccess, kAccess>(tensors.grad + first, left).widen_to(g);
        load_chunk<T, kAccess, kAccess>(tensors.in + first, left).widen_to(x);
#pragma unroll
        for (int k = 0; k < kAccess; ++k) {
          g[k] *= mask.factors[places[k]];
          d_logit = fma(x[k] * g[k], mask.slopes[places[k]], d_logit);
        }
        store_chunk<T, kAccess>(g, left, tensors.d_in + first);
      });
  d_logit = block_sum(d_logit);
  if (threadIdx.x == 0) tensors.partial[blockIdx.x] = d_logit;
}

// One block: *sum = partial[0] + ... + partial[count - 1].
template <class S>
__global__ void __launch_bounds__(kNoiseThreads)
    add_partials_kernel(const S* partial, int64_t count, S* sum) {
  double mine = 0;
  for (int64_t k = threadIdx.x; k < count; k += kNoiseThreads) {
    mine += static_cast<double>(partial[k]);
  }
  mine = block_sum(mine);
  if (threadIdx.x == 0) *sum = static_cast<S>(mine);
}

// ---- launches ---------------------------------------------------------------------------------

template <class T>
cudaError_t launch_forward(const MaskRule& rule, const RngSource& rng,
                           const Source<Real<T>>& source, const T* in, T* out, int64_t count,
                           cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  const dim3 blocks = noise_blocks<T>(count);
  if (is_aligned(in, 16) && is_aligned(out, 16)) {
    return launch_kernel<forward_kernel<T, kVector<T>>>(blocks, dim3(kNoiseThreads), 0, stream,
                                                        rule, rng, source, in, out, count);
  }
  return launch_kernel<forward_kernel<T, 1>>(blocks, dim3(kNoiseThreads), 0, stream, rule, rng,
                                             source, in, out, count);
}

template <class T>
bool gradients_are_aligned(const Gradients<T>& tensors) {
  return is_aligned(tensors.grad, 16) && is_aligned(tensors.in, 16) && is_aligned(tensors.d_in, 16);
}

template <class T>
cudaError_t add_partials(const Gradients<T>& tensors, dim3 blocks, Real<T>* d_logit,
                         cudaStream_t stream) {
  return launch_kernel<add_partials_kernel<Real<T>>>(dim3(1), dim3(kNoiseThreads), 0, stream,
                                                     static_cast<const Real<T>*>(tensors.partial),
                                                     int64_t{blocks.x}, d_logit);
}

// `partial` has room for noise_blocks(count, max_blocks) sums. Of no elements, d_logit becomes 0.
template <class T>
cudaError_t launch_backward(const MaskRule& rule, const RngSource& rng,
                            const Source<Real<T>>& source, const Gradients<T>& tensors,
                            Real<T>* d_logit, cudaStream_t stream,
                            int64_t max_blocks = kMaxBlocks) {
  const dim3 blocks = noise_blocks<T>(tensors.count, max_blocks);
  cudaError_t error = cudaSuccess;
  if (tensors.count == 0) {
    // Nothing to add up.
  } else if (gradients_are_aligned(tensors)) {
    error = launch_kernel<backward_kernel<T, kVector<T>>>(blocks, dim3(kNoiseThreads), 0, stream,
                                                          rule, rng, source, tensors);
  } else {
    error = launch_kernel<backward_kernel<T, 1>>(blocks, dim3(kNoiseThreads), 0, stream, rule, rng,
                                                 source, tensors);
  }
  return error != cudaSuccess ? error : add_partials(tensors, blocks, d_logit, stream);
}

// Fills `mask`, of `count` elements.
template <class S>
cudaError_t launch_factors(const MaskRule& rule, const RngSource& rng, const Source<S>& source,
                           const MaskFactors<S>& mask, int64_t count, cudaStream_t stream,
                           int64_t max_blocks = kMaxBlocks) {
  return launch_kernel<factors_kernel<S>>(noise_blocks<S>(count, max_blocks), dim3(kNoiseThreads),
                                          0, stream, rule, rng, source, mask, count);
}

// Of a mask that dimensions share, whose factors are there; `count` is above 0.
template <class T>
cudaError_t launch_shared_forward(const Real<T>* factors, const MaskedDims& dims, const T* in,
                                  T* out, int64_t count, cudaStream_t stream,
                                  int64_t max_blocks = kMaxBlocks) {
  const dim3 blocks = noise_blocks<T>(count, max_blocks);
  if (is_aligned(in, 16) && is_aligned(out, 16)) {
    return launch_kernel<shared_forward_kernel<T, kVector<T>>>(
        blocks, dim3(kNoiseThreads), 0, stream, factors, dims, in, out, count);
  }
  return launch_kernel<shared_forward_kernel<T, 1>>(blocks, dim3(kNoiseThreads), 0, stream, factors,
                                                    dims, in, out, count);
}

// The same; `partial` as for launch_backward.
template <class T>
cudaError_t launch_shared_backward(const MaskFactors<Real<T>>& mask, const MaskedDims& dims,
                                   const Gradients<T>& tensors, Real<T>* d_logit,
                                   cudaStream_t stream, int64_t max_blocks = kMaxBlocks) {
  const dim3 blocks = noise_blocks<T>(tensors.count, max_blocks);
  const cudaError_t error = gradients_are_aligned(tensors)
                                ? launch_kernel<shared_backward_kernel<T, kVector<T>>>(
                                      blocks, dim3(kNoiseThreads), 0, stream, mask, dims, tensors)
                                : launch_kernel<shared_backward_kernel<T, 1>>(
                                      blocks, dim3(kNoiseThreads), 0, stream, mask, dims, tensors);
  return error != cudaSuccess ? error : add_partials(tensors, blocks, d_logit, stream);
}

}  // namespace
}  // namespace fused_dropout::concrete_dropout
