// IMPL(CUDA) of masked weights: checks, launches on the current stream.
#include "../ops/mask_weight.h"
#include "binding.h"
#include "mask_weight.cuh"

namespace fused_dropout::mask_weight {
namespace {

DropConnectProblem problem_of(const Layer& layer, const std::optional<Tensor>& mask_bits,
                              Device device) {
  const MaskRule rule = unseeded_rule(layer.p, kStreamMask, kDefaultDigits);
  return make_problem(layer, rule, mask_bits, device);
}

Tensor forward(const Tensor& weight, const Tensor& rng_state,
               const std::optional<Tensor>& mask_bits, double p, int64_t masks, double scale) {
  const auto guard = device_guard(weight, "weight");
  const Layer layer = layer_of_weight(weight, p, masks, scale);
  const RngSource rng = rng_source(rng_state, device_of(weight));
  const DropConnectProblem problem = problem_of(layer, mask_bits, device_of(weight));
  Tensor out = empty({masks, layer.out_features, layer.in_features}, dtype_of(weight), weight);
  with_type(weight, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    check_launch(launch_apply<T>(problem, rng, view_of(weight), all_of(problem),
                                 mutable_data_of<T>(out), current_stream()));
  });
  return out;
}

Tensor sum_of_stack(const Tensor& stack, const Tensor& rng_state,
                    const std::optional<Tensor>& mask_bits, double p, int64_t masks, double scale) {
  const auto guard = device_guard(stack, "stack");
  const Layer layer = layer_of_stack(stack, p, masks, scale);
  const RngSource rng = rng_source(rng_state, device_of(stack));
  const DropConnectProblem problem = problem_of(layer, mask_bits, device_of(stack));
  Tensor out = empty({layer.out_features, layer.in_features}, dtype_of(stack), stack);
  const StackView view = {stack.const_data_ptr(), stack.stride(0), stack.stride(1),
                          stack.stride(2)};
  with_type(stack, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    check_launch(launch_sum<T>(problem, rng, view, mutable_data_of<T>(out), current_stream()));
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_dropout, CUDA, m) {
  m.impl("mask_weight", TORCH_BOX(&forward));
  m.impl("mask_weight_sum", TORCH_BOX(&sum_of_stack));
}

}  // namespace fused_dropout::mask_weight
