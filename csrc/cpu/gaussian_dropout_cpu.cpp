// IMPL(CPU) of Gaussian dropout.
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

// Both are in row-major order; `out` may be `in`.
void gaussian_dropout_into(const Tensor& out, const Tensor& in, const MaskRule& rule,
                           double sigma) {
  const auto apply = kernels().gaussian_dropout.apply[static_cast<int>(kernel_type(in))];
  parallel_noise(rule, in.numel(), [&](const NoiseRun& run, int64_t first) {
    apply(run, sigma, elements_from(in, first), mutable_elements_from(out, first));
  });
}

Tensor gaussian_dropout_cpu(const Tensor& input, const Tensor& rng_state, double sigma) {
  check_gaussian_dropout_arguments(input, sigma);
  const MaskRule rule = noise_rule_from_cpu_state(rng_state);
  const Tensor in = input.contiguous();
  const Tensor out = in.is_same(input) ? fresh_output(input) : in;  // a copy is ours to change
  gaussian_dropout_into(out, in, rule, sigma);
  return laid_out_like(input, out);
}

Tensor gaussian_dropout_cpu_(const Tensor& input, const Tensor& rng_state, double sigma) {
  check_gaussian_dropout_arguments(input, sigma);
  const MaskRule rule = noise_rule_from_cpu_state(rng_state);
  change_in_place(input,
                  [&](const Tensor& dense) { gaussian_dropout_into(dense, dense, rule, sigma); });
  return input;
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_dropout, CPU, m) {
  m.impl("gaussian_dropout", gaussian_dropout_cpu);
  m.impl("gaussian_dropout_", gaussian_dropout_cpu_);
}

}  // namespace fused_dropout
