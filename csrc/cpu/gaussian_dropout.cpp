// IMPL(CPU) of Gaussian dropout.
#include "gaussian_dropout.h"

#include "../ops/gaussian_dropout.h"
#include "../ops/row_major.h"
#include "dispatch.h"
#include "fresh_output.h"
#include "parallel_noise.h"

namespace fused_dropout::gaussian_dropout {
namespace {

// Both are in row-major order; `out` may be `in`.
void apply_into(const Tensor& out, const Tensor& in, const MaskRule& rule, double sigma) {
  const auto apply = kernels<Kernels>().apply[kernel_index(in)];
  parallel_noise(rule, in.numel(), [&](const NoiseRun& run, int64_t first) {
    apply(run, sigma, elements_from(in, first), mutable_elements_from(out, first));
  });
}

Tensor forward(const Tensor& input, const Tensor& rng_state, double sigma) {
  check_arguments(input, sigma);
  const MaskRule rule = noise_rule_from_cpu_state(rng_state);
  const Tensor in = row_major(input);
  const Tensor out = is_same(in, input) ? fresh_output(input) : in;  // a copy is ours to change
  apply_into(out, in, rule, sigma);
  return laid_out_like(input, out);
}

Tensor forward_(const Tensor& input, const Tensor& rng_state, double sigma) {
  check_arguments(input, sigma);
  const MaskRule rule = noise_rule_from_cpu_state(rng_state);
  change_in_place(input, [&](const Tensor& dense) { apply_into(dense, dense, rule, sigma); });
  return input;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fused_dropout, m) { define(m, kSchemas); }

STABLE_TORCH_LIBRARY_IMPL(fused_dropout, CPU, m) {
  m.impl("gaussian_dropout", TORCH_BOX(&forward));
  m.impl("gaussian_dropout_", TORCH_BOX(&forward_));
}

}  // namespace fused_dropout::gaussian_dropout
