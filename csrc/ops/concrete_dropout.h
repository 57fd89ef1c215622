// The operators of concrete dropout. The gradients are those of input and of logit_p, one element
// of float32 (float64 for float64). Elements share a uniform number along shared_dims.
#pragma once

#include "checks.h"

namespace fused_dropout::concrete_dropout {

constexpr const char* kSchemas[] = {
    "concrete_dropout(Tensor input, Tensor logit_p, Tensor rng_state, float temperature,"
    " int[]? shared_dims=None) -> Tensor",
    "concrete_dropout_backward(Tensor grad_output, Tensor input, Tensor logit_p,"
    " Tensor rng_state, float temperature, int[]? shared_dims=None) -> (Tensor, Tensor)",
};

inline void check_arguments(const Tensor& input, const Tensor& logit_p, double temperature) {
  kernel_type(input);
  FUSED_DROPOUT_CHECK(logit_p.numel() == 1 && dtype_of(logit_p) == sum_dtype(input),
                      "logit_p must have one element of dtype ", DtypeName{sum_dtype(input)},
                      ", got ", logit_p.sizes(), " of ", DtypeName{dtype_of(logit_p)});
  FUSED_DROPOUT_CHECK(device_of(logit_p) == device_of(input), "logit_p must be on ",
                      device_of(input), ", got ", device_of(logit_p));
  FUSED_DROPOUT_CHECK(temperature > 0.0 && std::isfinite(temperature),
                      "temperature must be above 0 and finite, got ", temperature);
}

// AOTInductor hands over None for an empty list.
inline bool shares_masks(const std::optional<Sizes>& shared_dims) {
  return shared_dims.has_value() && !shared_dims->empty();
}

}  // namespace fused_dropout::concrete_dropout
