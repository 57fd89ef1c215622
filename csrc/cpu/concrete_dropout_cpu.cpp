// IMPL(CPU) of concrete dropout.
#include <ATen/Functions.h>
#include <torch/library.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "../noise_arguments.h"
#include "../row_major.h"
#include "fresh_output.h"
#include "noise_cpu.h"

namespace fused_dropout {
namespace {

using at::Tensor;

ConcreteRate concrete_rate(const Tensor& logit_p, double temperature) {
  const double logit = logit_p.item<double>();
  return {logit, 1.0 / (1.0 + 1.0 / std::exp(logit)), 1.0 / temperature};
}

Tensor concrete_dropout_cpu(const Tensor& input, const Tensor& logit_p, const Tensor& rng_state,
                            double temperature) {
  check_concrete_dropout_arguments(input, logit_p, temperature);
  const MaskRule rule = noise_rule_from_cpu_state(rng_state);
  const ConcreteRate rate = concrete_rate(logit_p, temperature);
  const auto apply = kernels().concrete_dropout.apply[static_cast<int>(kernel_type(input))];
  const Tensor in = input.contiguous();
  const Tensor out = in.is_same(input) ? fresh_output(input) : in;  // a copy is ours to change
  parallel_noise(rule, in.numel(), [&](const NoiseRun& run, int64_t first) {
    apply(run, rate, elements_from(in, first), mutable_elements_from(out, first));
  });
  return laid_out_like(input, out);
}

// Sums of kGrainBlocks blocks each, then the sum of those: in an order that the shape alone sets.
std::tuple<Tensor, Tensor> concrete_dropout_backward_cpu(const Tensor& grad_output,
                                                         const Tensor& input, const Tensor& logit_p,
                                                         const Tensor& rng_state,
                                                         double temperature) {
  check_concrete_dropout_arguments(input, logit_p, temperature);
  check_operand(grad_output, "grad_output", input.sizes(), input);
  const MaskRule rule = noise_rule_from_cpu_state(rng_state);
  const ConcreteRate rate = concrete_rate(logit_p, temperature);
  const auto backward = kernels().concrete_dropout.backward[static_cast<int>(kernel_type(input))];
  const Tensor in = input.contiguous();
  const Tensor grad = grad_output.contiguous();
  const Tensor d_in = fresh_output(in);
  constexpr int64_t kPiece = kGrainBlocks * kGroupColumns;
  std::vector<double> sums(static_cast<size_t>(ceil_div(in.numel(), kPiece)));
  at::parallel_for(0, static_cast<int64_t>(sums.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t first = piece * kPiece;
      const NoiseRun run = {rule, static_cast<uint64_t>(piece * kGrainBlocks),
                            std::min(kPiece, in.numel() - first)};
      sums[static_cast<size_t>(piece)] =
          backward(run, rate, elements_from(grad, first), elements_from(in, first),
                   mutable_elements_from(d_in, first));
    }
  });
  double d_logit = 0;
  for (const double sum : sums) d_logit += sum;
  return {laid_out_like(input, d_in), at::full_like(logit_p, d_logit)};
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_dropout, CPU, m) {
  m.impl("concrete_dropout", concrete_dropout_cpu);
  m.impl("concrete_dropout_backward", concrete_dropout_backward_cpu);
}

}  // namespace fused_dropout
