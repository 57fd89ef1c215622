// IMPL(CPU) of concrete dropout.
#include "concrete_dropout.h"

#include <cmath>
#include <tuple>
#include <vector>

#include "../ops/concrete_dropout.h"
#include "../ops/row_major.h"
#include "dispatch.h"
#include "fresh_output.h"
#include "parallel_noise.h"

namespace fused_dropout::concrete_dropout {
namespace {

Rate rate_of(const Tensor& logit_p, double temperature) {
  const bool is_double = dtype_of(logit_p) == dtypes().float64;
  const double logit = is_double ? *data_of<double>(logit_p) : *data_of<float>(logit_p);
  return {logit, 1.0 / (1.0 + 1.0 / std::exp(logit)), 1.0 / temperature};
}

Tensor forward(const Tensor& input, const Tensor& logit_p, const Tensor& rng_state,
               double temperature) {
  check_arguments(input, logit_p, temperature);
  const MaskRule rule = noise_rule_from_cpu_state(rng_state);
  const Rate rate = rate_of(logit_p, temperature);
  const auto apply = kernels<Kernels>().apply[kernel_index(input)];
  const Tensor in = row_major(input);
  const Tensor out = is_same(in, input) ? fresh_output(input) : in;  // a copy is ours to change
  parallel_noise(rule, in.numel(), [&](const NoiseRun& run, int64_t first) {
    apply(run, rate, elements_from(in, first), mutable_elements_from(out, first));
  });
  return laid_out_like(input, out);
}

// Sums of kGrainBlocks blocks each, then the sum of those: in an order that the shape alone sets.
std::tuple<Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& input,
                                    const Tensor& logit_p, const Tensor& rng_state,
                                    double temperature) {
  check_arguments(input, logit_p, temperature);
  check_operand(grad_output, "grad_output", input.sizes(), input);
  const MaskRule rule = noise_rule_from_cpu_state(rng_state);
  const Rate rate = rate_of(logit_p, temperature);
  const auto backward = kernels<Kernels>().backward[kernel_index(input)];
  const Tensor in = row_major(input);
  const Tensor grad = row_major(grad_output);
  const Tensor d_in = fresh_output(in);
  constexpr int64_t kPiece = kGrainBlocks * kGroupColumns;
  std::vector<double> sums(static_cast<size_t>(ceil_div(in.numel(), kPiece)));
  parallel_for(0, static_cast<int64_t>(sums.size()), 1, [&](int64_t begin, int64_t end) {
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
  return {laid_out_like(input, d_in), full(logit_p.sizes(), d_logit, dtype_of(logit_p), logit_p)};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fused_dropout, m) { define(m, kSchemas); }

STABLE_TORCH_LIBRARY_IMPL(fused_dropout, CPU, m) {
  m.impl("concrete_dropout", TORCH_BOX(&forward));
  m.impl("concrete_dropout_backward", TORCH_BOX(&backward));
}

}  // namespace fused_dropout::concrete_dropout
