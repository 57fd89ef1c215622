// The arguments of bias_act_dropout_add as both backends check and understand them.
#pragma once

#include <ATen/Functions.h>
#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

#include "checks.h"

namespace fused_dropout {

inline Activation activation_of(std::string_view name) {
  if (name == "none") return Activation::kNone;
  if (name == "relu") return Activation::kRelu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  TORCH_CHECK_VALUE(name == "silu", "activation must be none, relu, gelu, gelu_tanh or silu, got ",
                    name);
  return Activation::kSilu;
}

// `tensor` has shape [..., features], and `bias`, if given, [features].
inline void check_bias(const std::optional<at::Tensor>& bias, const at::Tensor& tensor) {
  if (!bias.has_value()) return;
  TORCH_CHECK(tensor.dim() > 0,
              "a bias needs a tensor [..., features], got one without dimensions");
  check_operand(*bias, "bias", {tensor.size(-1)}, tensor);
}

inline void check_bias_act_forward(const at::Tensor& input, const std::optional<at::Tensor>& bias,
                                   const std::optional<at::Tensor>& residual, double p) {
  kernel_type(input);
  TORCH_CHECK_VALUE(p >= 0.0 && p <= 1.0, "p must be a probability in [0, 1], got ", p);
  check_bias(bias, input);
  if (residual.has_value()) check_operand(*residual, "residual", input.sizes(), input);
}

inline void check_bias_act_backward(const at::Tensor& grad_output,
                                    const std::optional<at::Tensor>& input,
                                    const std::optional<at::Tensor>& bias, double p,
                                    Activation activation) {
  kernel_type(grad_output);
  TORCH_CHECK_VALUE(p >= 0.0 && p <= 1.0, "p must be a probability in [0, 1], got ", p);
  TORCH_CHECK_VALUE(input.has_value() || activation == Activation::kNone,
                    "the gradient of an activation needs its input");
  check_bias(bias, grad_output);
  if (input.has_value()) check_operand(*input, "input", grad_output.sizes(), grad_output);
}

// `result`, which is contiguous, with the strides that torch gives to results like `like`.
inline at::Tensor with_strides_like(const at::Tensor& result, const at::Tensor& like) {
  if (like.is_contiguous()) return result;
  at::Tensor out = at::empty_like(like);
  return out.strides() == result.strides() ? result : out.copy_(result);
}

}  // namespace fused_dropout
