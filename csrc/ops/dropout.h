// The dropout operators: out = (kept ? scale * input + shift : fill) + residual. Elements share a
// mask bit along shared_dims.
#pragma once

#include "checks.h"

namespace fused_dropout::dropout {

// Reading an argument takes as long as drawing 1000 bits, so most have defaults. AOTInductor hands
// over None for an empty list.
constexpr const char* kSchemas[] = {
    "dropout(Tensor input, Tensor? residual, Tensor rng_state, float p, float scale,"
    " int[]? shared_dims=None, float shift=0.0, float fill=0.0) -> Tensor",
    "dropout_(Tensor(a!) input, Tensor? residual, Tensor rng_state, float p, float scale,"
    " int[]? shared_dims=None, float shift=0.0, float fill=0.0) -> Tensor(a!)",
};

inline void check_arguments(const Tensor& input, const std::optional<Tensor>& residual, double p) {
  kernel_type(input);
  check_probability(p);
  if (residual.has_value()) check_operand(*residual, "residual", input.sizes(), input);
}

}  // namespace fused_dropout::dropout
