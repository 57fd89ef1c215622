// The operator of the moments of DropConnect's pre-activations, on matrices: input [rows, in],
// weight [out, in]. Over all masks, an output feature o of row n has
//
//   mean     = mean_scale     (sum_i weight[o, i] input[n, i]     + bias[o])
//   variance = variance_scale (sum_i weight[o, i]^2 input[n, i]^2 + bias[o]^2)
//
// A bias that is not masked is added to the mean as it is, and the variance has nothing of it.
// Results have the type that sums have: float, or double for double. A scale of 0 makes zeros,
// whatever the operands are.
#pragma once

#include "../common/moments.h"
#include "checks.h"

namespace fused_dropout::dropconnect_moments {

constexpr const char* kSchemas[] = {
    "dropconnect_moments(Tensor input, Tensor weight, Tensor? bias, float mean_scale,"
    " float variance_scale, bool mask_bias) -> (Tensor, Tensor)",
};

inline MomentsProblem make_problem(const Tensor& input, const Tensor& weight,
                                   const std::optional<Tensor>& bias, double mean_scale,
                                   double variance_scale, bool mask_bias) {
  check_matrix(input, "input");
  check_matrix(weight, "weight");
  kernel_type(input);
  const int64_t rows = input.size(0), in_features = input.size(1), out_features = weight.size(0);
  check_operand(weight, "weight", {out_features, in_features}, input);
  if (bias.has_value()) check_operand(*bias, "bias", {out_features}, input);
  check_not_negative(mean_scale, "mean_scale");
  check_not_negative(variance_scale, "variance_scale");
  return {view_of(input),
          view_of(weight),
          bias.has_value() ? bias->const_data_ptr() : nullptr,
          bias.has_value() ? bias->stride(0) : 0,
          rows,
          in_features,
          out_features,
          mean_scale,
          variance_scale,
          mask_bias};
}

}  // namespace fused_dropout::dropconnect_moments
