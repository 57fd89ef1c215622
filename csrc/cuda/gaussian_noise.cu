// IMPL(CUDA) of Gaussian noise of given mean and variance.
#include "../ops/gaussian_noise.h"
#include "../ops/row_major.h"
#include "binding.h"
#include "gaussian_noise.cuh"

namespace fused_dropout::gaussian_noise {
namespace {

// `other` is the mean or the gradient.
template <bool kGradient>
Tensor run(const Tensor& other, const Tensor& variance, const RngSource& rng, double eps) {
  const Tensor a = row_major(other);
  const Tensor b = row_major(variance);
  const Tensor out = new_like(a);
  with_type(a, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Operands<T> tensors = {data_of<T>(a), data_of<T>(b), mutable_data_of<T>(out), a.numel()};
    check_launch(launch<T, kGradient>(unseeded_noise_rule(), rng, eps, tensors, current_stream()));
  });
  return laid_out_like(other, out);
}

Tensor forward(const Tensor& mean, const Tensor& variance, const Tensor& rng_state, double eps) {
  const auto guard = device_guard(mean, "mean");
  check_arguments(mean, "mean", variance, eps);
  return run<false>(mean, variance, rng_source(rng_state, device_of(mean)), eps);
}

Tensor d_variance(const Tensor& grad_output, const Tensor& variance, const Tensor& rng_state,
                  double eps) {
  const auto guard = device_guard(variance, "variance");
  check_arguments(grad_output, "grad_output", variance, eps);
  const RngSource rng = rng_source(rng_state, device_of(variance));
  return run<true>(grad_output, variance, rng, eps);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_dropout, CUDA, m) {
  m.impl("gaussian_noise", TORCH_BOX(&forward));
  m.impl("gaussian_noise_d_variance", TORCH_BOX(&d_variance));
}

}  // namespace fused_dropout::gaussian_noise
