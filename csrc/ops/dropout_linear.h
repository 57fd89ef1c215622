// The operators of a linear layer whose input is dropped: input [.., in], weight [out, in],
// grad_output [.., out]. Element k of the input, counted in row-major order, has bit k of the mask,
// as in dropout; a kept one is multiplied by scale.
//
//   dropout_linear:           dropped(input) weight^T + bias
//   dropout_linear_d_input:   dropped(grad_output weight)
//   dropout_linear_d_weight:  grad_output^T dropped(input)
//
// Each one's gradients are the other two. The input may have another dtype than the others, as
// under autocast: it is converted after it is dropped, and its gradient by torch.
#pragma once

#include "checks.h"

namespace fused_dropout::dropout_linear {

constexpr const char* kSchemas[] = {
    "dropout_linear(Tensor input, Tensor weight, Tensor? bias, Tensor rng_state, float p,"
    " float scale) -> Tensor",
    "dropout_linear_d_input(Tensor grad_output, Tensor weight, Tensor rng_state, float p,"
    " float scale) -> Tensor",
    "dropout_linear_d_weight(Tensor grad_output, Tensor input, Tensor rng_state, float p,"
    " float scale) -> Tensor",
};

// The last of `tensor`'s sizes.
inline int64_t columns_of(const Tensor& tensor, const char* name) {
  FUSED_DROPOUT_CHECK(tensor.dim() >= 2, name, " must have at least 2 dimensions, got ",
                      tensor.sizes());
  kernel_type(tensor);
  return tensor.size(tensor.dim() - 1);
}

// Whether all but the last of the sizes are equal.
inline bool same_rows(Sizes a, Sizes b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end() - 1, b.begin());
}

inline void check_on_same_device(const Tensor& other, const char* name, const Tensor& like) {
  FUSED_DROPOUT_CHECK(on_same_device(other, like), name, " must be on ", device_of(like), ", got ",
                      device_of(other));
}

inline void check_forward(const Tensor& input, const Tensor& weight,
                          const std::optional<Tensor>& bias, double p) {
  const int64_t in_features = columns_of(input, "input");
  check_matrix(weight, "weight");
  kernel_type(weight);
  FUSED_DROPOUT_CHECK(weight.size(1) == in_features, "weight must have shape [.., ", in_features,
                      "], got ", weight.sizes());
  check_on_same_device(weight, "weight", input);
  if (bias.has_value()) check_operand(*bias, "bias", {weight.size(0)}, weight);
  check_probability(p);
}

inline void check_d_input(const Tensor& grad_output, const Tensor& weight, double p) {
  const int64_t out_features = columns_of(grad_output, "grad_output");
  check_matrix(weight, "weight");
  check_operand(weight, "weight", {out_features, weight.size(1)}, grad_output);
  check_probability(p);
}

inline void check_d_weight(const Tensor& grad_output, const Tensor& input, double p) {
  columns_of(grad_output, "grad_output");
  columns_of(input, "input");
  FUSED_DROPOUT_CHECK(same_rows(input.sizes(), grad_output.sizes()),
                      "input must have the rows of grad_output ", grad_output.sizes(), ", got ",
                      input.sizes());
  check_on_same_device(input, "input", grad_output);
  check_probability(p);
}

}  // namespace fused_dropout::dropout_linear
