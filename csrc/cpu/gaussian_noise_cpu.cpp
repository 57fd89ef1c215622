// IMPL(CPU) of Gaussian noise of given mean and variance.
#include <ATen/Functions.h>
#include <torch/library.h>

#include <tuple>

#include "../noise_arguments.h"
#include "../row_major.h"
#include "fresh_output.h"
#include "noise_cpu.h"

namespace fused_dropout {
namespace {

using at::Tensor;
using Kernel = void (*)(const NoiseRun&, double, const void*, const void*, void*);

// Runs `kernel` on `other`, the mean or the gradient, and `variance`.
Tensor run_gaussian_noise(Kernel kernel, const Tensor& other, const Tensor& variance,
                          const MaskRule& rule, double eps) {
  const Tensor a = other.contiguous();
  const Tensor b = variance.contiguous();
  const Tensor out = fresh_output(a);
  parallel_noise(rule, a.numel(), [&](const NoiseRun& run, int64_t first) {
    kernel(run, eps, elements_from(a, first), elements_from(b, first),
           mutable_elements_from(out, first));
  });
  return laid_out_like(other, out);
}

Tensor gaussian_noise_cpu(const Tensor& mean, const Tensor& variance, const Tensor& rng_state,
                          double eps) {
  check_gaussian_noise_arguments(mean, "mean", variance, eps);
  const MaskRule rule = noise_rule_from_cpu_state(rng_state);
  const auto kernel = kernels().gaussian_noise.add[static_cast<int>(kernel_type(mean))];
  return run_gaussian_noise(kernel, mean, variance, rule, eps);
}

Tensor gaussian_noise_d_variance_cpu(const Tensor& grad_output, const Tensor& variance,
                                     const Tensor& rng_state, double eps) {
  check_gaussian_noise_arguments(grad_output, "grad_output", variance, eps);
  const MaskRule rule = noise_rule_from_cpu_state(rng_state);
  const auto kernel = kernels().gaussian_noise.d_variance[static_cast<int>(kernel_type(variance))];
  return run_gaussian_noise(kernel, grad_output, variance, rule, eps);
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_dropout, CPU, m) {
  m.impl("gaussian_noise", gaussian_noise_cpu);
  m.impl("gaussian_noise_d_variance", gaussian_noise_d_variance_cpu);
}

}  // namespace fused_dropout
