// IMPL(CPU) of Gaussian noise of given mean and variance.
#include "gaussian_noise.h"

#include "../ops/gaussian_noise.h"
#include "../ops/row_major.h"
#include "dispatch.h"
#include "fresh_output.h"
#include "parallel_noise.h"

namespace fused_dropout::gaussian_noise {
namespace {

using Kernel = void (*)(const NoiseRun&, double, const void*, const void*, void*);

// Runs `kernel` on `other`, the mean or the gradient, and `variance`.
Tensor run(Kernel kernel, const Tensor& other, const Tensor& variance, const MaskRule& rule,
           double eps) {
  const Tensor a = row_major(other);
  const Tensor b = row_major(variance);
  const Tensor out = fresh_output(a);
  parallel_noise(rule, a.numel(), [&](const NoiseRun& run, int64_t first) {
    kernel(run, eps, elements_from(a, first), elements_from(b, first),
           mutable_elements_from(out, first));
  });
  return laid_out_like(other, out);
}

Tensor forward(const Tensor& mean, const Tensor& variance, const Tensor& rng_state, double eps) {
  check_arguments(mean, "mean", variance, eps);
  const MaskRule rule = noise_rule_from_cpu_state(rng_state);
  const auto kernel = kernels<Kernels>().add[kernel_index(mean)];
  return run(kernel, mean, variance, rule, eps);
}

Tensor d_variance(const Tensor& grad_output, const Tensor& variance, const Tensor& rng_state,
                  double eps) {
  check_arguments(grad_output, "grad_output", variance, eps);
  const MaskRule rule = noise_rule_from_cpu_state(rng_state);
  const auto kernel = kernels<Kernels>().d_variance[kernel_index(variance)];
  return run(kernel, grad_output, variance, rule, eps);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fused_dropout, m) { define(m, kSchemas); }

STABLE_TORCH_LIBRARY_IMPL(fused_dropout, CPU, m) {
  m.impl("gaussian_noise", TORCH_BOX(&forward));
  m.impl("gaussian_noise_d_variance", TORCH_BOX(&d_variance));
}

}  // namespace fused_dropout::gaussian_noise
