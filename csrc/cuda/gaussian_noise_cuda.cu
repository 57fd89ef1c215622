// IMPL(CUDA) of Gaussian noise of given mean and variance.
#include <torch/library.h>

#include <tuple>

#include "gaussian_noise.cuh"
#include "noise_binding.h"

namespace fused_dropout {
namespace {

using at::Tensor;

// `other` is the mean or the gradient.
template <bool kGradient>
Tensor run_gaussian_noise(const Tensor& other, const Tensor& variance, const RngSource& rng,
                          double eps) {
  const Tensor a = other.contiguous();
  const Tensor b = variance.contiguous();
  const Tensor out = at::empty_like(a);
  with_type(a, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const GaussianNoiseOperands<T> tensors = {data_of<T>(a), data_of<T>(b), mutable_data_of<T>(out),
                                              a.numel()};
    check_launch(launch_gaussian_noise<T, kGradient>(unseeded_noise_rule(), rng, eps, tensors,
                                                     current_stream()));
  });
  return laid_out_like(other, out);
}

Tensor gaussian_noise_cuda(const Tensor& mean, const Tensor& variance, const Tensor& rng_state,
                           double eps) {
  const auto guard = device_guard(mean, "mean");
  check_gaussian_noise_arguments(mean, "mean", variance, eps);
  return run_gaussian_noise<false>(mean, variance, rng_source(rng_state, mean.device()), eps);
}

Tensor gaussian_noise_d_variance_cuda(const Tensor& grad_output, const Tensor& variance,
                                      const Tensor& rng_state, double eps) {
  const auto guard = device_guard(variance, "variance");
  check_gaussian_noise_arguments(grad_output, "grad_output", variance, eps);
  const RngSource rng = rng_source(rng_state, variance.device());
  return run_gaussian_noise<true>(grad_output, variance, rng, eps);
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_dropout, CUDA, m) {
  m.impl("gaussian_noise", gaussian_noise_cuda);
  m.impl("gaussian_noise_d_variance", gaussian_noise_d_variance_cuda);
}

}  // namespace fused_dropout
