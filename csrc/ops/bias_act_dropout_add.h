// The operators of out = residual + dropout(activation(input + bias)), kept elements times scale;
// input is [..., features]. The gradients of `none` need no input.
#pragma once

#include <string_view>

#include "checks.h"

namespace fused_dropout::bias_act_dropout_add {

constexpr const char* kSchemas[] = {
    "bias_act_dropout_add(Tensor input, Tensor? bias, Tensor? residual, Tensor rng_state,"
    " float p, str activation, float scale) -> Tensor",
    "bias_act_dropout_add_d_input(Tensor grad_output, Tensor? input, Tensor? bias,"
    " Tensor rng_state, float p, str activation, float scale) -> Tensor",
    "bias_act_dropout_add_d_both(Tensor grad_output, Tensor? input, Tensor? bias,"
    " Tensor rng_state, float p, str activation, float scale) -> (Tensor, Tensor)",
};

inline Activation activation_of(std::string_view name) {
  if (name == "none") return Activation::kNone;
  if (name == "relu") return Activation::kRelu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  FUSED_DROPOUT_CHECK(name == "silu",
                      "activation must be none, relu, gelu, gelu_tanh or silu, got ", name);
  return Activation::kSilu;
}

// `tensor` has shape [..., features], and `bias`, if given, [features].
inline void check_bias(const std::optional<Tensor>& bias, const Tensor& tensor) {
  if (!bias.has_value()) return;
  FUSED_DROPOUT_CHECK(tensor.dim() > 0,
                      "a bias needs a tensor [..., features], got one without dimensions");
  check_operand(*bias, "bias", {tensor.sizes().end() - 1, 1}, tensor);
}

inline void check_forward(const Tensor& input, const std::optional<Tensor>& bias,
                          const std::optional<Tensor>& residual, double p) {
  kernel_type(input);
  check_probability(p);
  check_bias(bias, input);
  if (residual.has_value()) check_operand(*residual, "residual", input.sizes(), input);
}

inline void check_backward(const Tensor& grad_output, const std::optional<Tensor>& input,
                           const std::optional<Tensor>& bias, double p, Activation activation) {
  kernel_type(grad_output);
  check_probability(p);
  FUSED_DROPOUT_CHECK(input.has_value() || activation == Activation::kNone,
                      "the gradient of an activation needs its input");
  check_bias(bias, grad_output);
  if (input.has_value()) check_operand(*input, "input", grad_output.sizes(), grad_output);
}

// Of the gradient of the bias too.
inline void check_has_features(const Tensor& grad_output) {
  FUSED_DROPOUT_CHECK(grad_output.dim() > 0, "grad_output must have shape [..., features]");
}

}  // namespace fused_dropout::bias_act_dropout_add
