// IMPL(CUDA) of the DropConnect operators: checks, workspaces, launches on the current stream.
//
// Workspaces, freed to the caching allocator on return: partial sums and copies of operands, in
// float (or double). Where rows share masks: masked weights or products, and with a bias its packed
// masks (dropconnect_shared.cuh).
#include <tuple>

#include "../ops/dropconnect.h"
#include "../ops/matrices.h"
#include "binding.h"
#include "dropconnect_shared.cuh"

namespace fused_dropout::dropconnect {
namespace {

DropConnectProblem problem_of(const Layer& layer, const std::optional<Tensor>& mask_bits,
                              Device device) {
  const MaskRule rule = unseeded_rule(layer.p, kStreamMask, kDefaultDigits);
  return make_problem(layer, rule, mask_bits, device);
}

Tensor sums_workspace(int64_t count, const Tensor& like) {
  return empty({count}, sum_dtype(like), like);
}

// The library's product, on the current stream of a device.
struct Multiply {
  Device device;
  void operator()(const Matrices& a, const Matrices& b, const Matrices& out) const {
    multiply(a, b, out, device);
  }
};

template <class T>
SharedProducts<T, Multiply> shared_products(const DropConnectProblem& problem, const RngSource& rng,
                                            const Tensor& like) {
  return {problem, rng, current_stream(), {device_of(like)}};
}

Tensor draw_bias_bits(const Layer& layer, const RngSource& rng, const Tensor& like) {
  const int64_t groups = layer.masks * group_count(layer.out_features);
  return draw_bits(unseeded_rule(layer.p, kStreamBias, kDefaultDigits), rng, groups, like);
}

Tensor draw_mask_bits(const Tensor& weight, const Tensor& rng_state, int64_t masks, double p,
                      int64_t first_mask) {
  const auto guard = device_guard(weight, "weight");
  const Layer layer = layer_of_masks(weight, masks, p, first_mask);
  const RngSource rng = rng_source(rng_state, device_of(weight));
  const DropConnectProblem problem = problem_of(layer, std::nullopt, device_of(weight));
  Tensor bits = empty(stored_shape(layer), dtypes().int32, weight);
  check_launch(launch_store_masks(problem, rng, first_mask, mutable_data_of<uint32_t>(bits),
                                  current_stream()));
  return bits;
}

// Masks that are drawn are left at `bits_out`, if it is there.
Tensor forward_of(const Layer& layer, const Tensor& input, const Tensor& weight,
                  const std::optional<Tensor>& bias, const RngSource& rng,
                  const DropConnectProblem& problem, uint32_t* bits_out) {
  Tensor output = empty({layer.rows, layer.out_features}, dtype_of(input), input);
  with_type(input, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const void* const bias_data = bias.has_value() ? bias->const_data_ptr() : nullptr;
    const int64_t bias_stride = bias.has_value() ? bias->stride(0) : 0;
    if (products_pay<T>(problem)) {
      std::optional<Tensor> bias_bits;
      if (bias.has_value()) bias_bits = draw_bias_bits(layer, rng, input);
      auto products = shared_products<T>(problem, rng, input);
      const Tensor weights = empty({products.weights_for_output()}, dtype_of(input), input);
      return check_launch(products.output(
          view_of(input), view_of(weight),
          {bias_data, bias_stride, bias.has_value() ? data_of<uint32_t>(*bias_bits) : nullptr},
          mutable_data_of<T>(weights), mutable_data_of<T>(output)));
    }
    Forward<T> pass(problem, view_of(input), view_of(weight),
                    forward_slots<T>(problem.mask_bits != nullptr));
    Tensor workspace = sums_workspace(pass.workspace(), output);
    check_launch(pass.launch(rng, {bias_data, bias_stride}, mutable_data_of<Real<T>>(workspace),
                             mutable_data_of<T>(output), bits_out, current_stream()));
  });
  return output;
}

Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
               const Tensor& rng_state, const std::optional<Tensor>& mask_bits, double p,
               int64_t rows_per_mask, double scale) {
  const auto guard = device_guard(input, "input");
  const Layer layer = layer_of_forward(input, weight, bias, rows_per_mask, p, scale);
  const RngSource rng = rng_source(rng_state, device_of(input));
  const DropConnectProblem problem = problem_of(layer, mask_bits, device_of(input));
  return forward_of(layer, input, weight, bias, rng, problem, nullptr);
}

std::tuple<Tensor, Tensor> forward_with_bits(const Tensor& input, const Tensor& weight,
                                             const std::optional<Tensor>& bias,
                                             const Tensor& rng_state, double p,
                                             int64_t rows_per_mask, double scale) {
  const auto guard = device_guard(input, "input");
  const Layer layer = layer_of_forward(input, weight, bias, rows_per_mask, p, scale);
  const RngSource rng = rng_source(rng_state, device_of(input));
  DropConnectProblem problem = problem_of(layer, std::nullopt, device_of(input));
  Tensor bits = empty(stored_shape(layer), dtypes().int32, input);
  uint32_t* bits_out = mutable_data_of<uint32_t>(bits);
  if (!keeps_what_it_draws(problem)) {
    check_launch(launch_store_masks(problem, rng, 0, bits_out, current_stream()));
    problem = problem_of(layer, bits, device_of(input));
    bits_out = nullptr;
  }
  return {forward_of(layer, input, weight, bias, rng, problem, bits_out), bits};
}

template <class T, bool kOutsAreResults>
void outer_by_products(const DropConnectProblem& problem, const RngSource& rng,
                       const Tensor& grad_output, const Tensor& panel, const Tensor& result) {
  auto products = shared_products<T>(problem, rng, result);
  const MatrixView grad = view_of(grad_output);
  T* const out = mutable_data_of<T>(result);
  if constexpr (kOutsAreResults) {
    const Tensor made = empty({products.products_for_d_weight()}, dtype_of(result), result);
    const Tensor sums = empty({products.sums_for_d_weight()}, sum_dtype(result), result);
    check_launch(products.d_weight(grad, view_of(panel), mutable_data_of<T>(made),
                                   mutable_data_of<Real<T>>(sums), out));
  } else {
    const Tensor weights = empty({products.weights_for_d_input()}, dtype_of(result), result);
    check_launch(products.d_input(grad, view_of(panel), mutable_data_of<T>(weights), out));
  }
}

// d_weight with the input as panel, d_input with the weight.
template <bool kOutsAreResults>
Tensor outer(const Tensor& grad_output, const Tensor& panel, const Tensor& rng_state,
             const std::optional<Tensor>& mask_bits, double p, int64_t rows_per_mask,
             double scale) {
  const auto guard = device_guard(grad_output, "grad_output");
  const Layer layer =
      layer_of_backward(grad_output, kOutsAreResults ? &panel : nullptr,
                        kOutsAreResults ? nullptr : &panel, rows_per_mask, p, scale);
  const RngSource rng = rng_source(rng_state, device_of(grad_output));
  const DropConnectProblem problem = problem_of(layer, mask_bits, device_of(grad_output));
  const int64_t results = kOutsAreResults ? layer.out_features : layer.rows;
  Tensor result = empty({results, layer.in_features}, dtype_of(grad_output), grad_output);
  with_type(grad_output, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (products_pay<T>(problem)) {
      return outer_by_products<T, kOutsAreResults>(problem, rng, grad_output, panel, result);
    }
    const MatrixView of_panel = view_of(panel);
    Gradients<T> pass(problem, view_of(grad_output), kOutsAreResults ? nullptr : &of_panel,
                      kOutsAreResults ? &of_panel : nullptr,
                      gradient_slots<T>(mask_bits.has_value()));
    Tensor workspace = sums_workspace(pass.workspace(), result);
    T* const to = mutable_data_of<T>(result);
    check_launch(pass.launch(rng, mutable_data_of<Real<T>>(workspace),
                             kOutsAreResults ? nullptr : to, kOutsAreResults ? to : nullptr,
                             current_stream()));
  });
  return result;
}

std::tuple<Tensor, Tensor> d_both(const Tensor& grad_output, const Tensor& input,
                                  const Tensor& weight, const Tensor& rng_state,
                                  const std::optional<Tensor>& mask_bits, double p,
                                  int64_t rows_per_mask, double scale) {
  const auto guard = device_guard(grad_output, "grad_output");
  const Layer layer = layer_of_backward(grad_output, &input, &weight, rows_per_mask, p, scale);
  const RngSource rng = rng_source(rng_state, device_of(grad_output));
  const DropConnectProblem problem = problem_of(layer, mask_bits, device_of(grad_output));
  Tensor d_input = empty({layer.rows, layer.in_features}, dtype_of(grad_output), grad_output);
  Tensor d_weight =
      empty({layer.out_features, layer.in_features}, dtype_of(grad_output), grad_output);
  with_type(grad_output, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (products_pay<T>(problem)) {
      outer_by_products<T, false>(problem, rng, grad_output, weight, d_input);
      return outer_by_products<T, true>(problem, rng, grad_output, input, d_weight);
    }
    const MatrixView of_input = view_of(input), of_weight = view_of(weight);
    Gradients<T> pass(problem, view_of(grad_output), &of_weight, &of_input,
                      gradient_slots<T>(mask_bits.has_value()));
    Tensor workspace = sums_workspace(pass.workspace(), grad_output);
    check_launch(pass.launch(rng, mutable_data_of<Real<T>>(workspace), mutable_data_of<T>(d_input),
                             mutable_data_of<T>(d_weight), current_stream()));
  });
  return {d_input, d_weight};
}

Tensor d_bias(const Tensor& grad_output, const Tensor& rng_state, double p, int64_t rows_per_mask,
              double scale) {
  check_matrix(grad_output, "grad_output");
  const auto guard = device_guard(grad_output, "grad_output");
  const Layer layer =
      make_layer(grad_output.size(0), 1, grad_output.size(1), rows_per_mask, p, scale);
  const RngSource rng = rng_source(rng_state, device_of(grad_output));
  const MaskRule rule = unseeded_rule(p, kStreamBias, kDefaultDigits);
  const Slices slices = bias_slices(layer.rows, layer.out_features);
  const int64_t sums = slice_count(slices) > 1 ? slice_count(slices) * layer.out_features : 0;
  Tensor workspace = sums_workspace(sums, grad_output);
  Tensor result = empty({layer.out_features}, dtype_of(grad_output), grad_output);
  with_type(grad_output, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    check_launch(launch_bias_grad<T>(
        rule, rng, view_of(grad_output), layer.rows, layer.out_features, rows_per_mask, slices,
        scale, mutable_data_of<Real<T>>(workspace), mutable_data_of<T>(result), current_stream()));
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_dropout, CUDA, m) {
  m.impl("dropconnect_mask_bits", TORCH_BOX(&draw_mask_bits));
  m.impl("dropconnect_linear", TORCH_BOX(&forward));
  m.impl("dropconnect_linear_with_bits", TORCH_BOX(&forward_with_bits));
  m.impl("dropconnect_linear_d_input", TORCH_BOX(&outer<false>));
  m.impl("dropconnect_linear_d_weight", TORCH_BOX(&outer<true>));
  m.impl("dropconnect_linear_d_both", TORCH_BOX(&d_both));
  m.impl("dropconnect_linear_d_bias", TORCH_BOX(&d_bias));
}

}  // namespace fused_dropout::dropconnect
