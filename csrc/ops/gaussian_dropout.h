// The operators of Gaussian dropout: out = input * (1 + sigma * z), z standard normal.
#pragma once

#include "checks.h"

namespace fused_dropout::gaussian_dropout {

constexpr const char* kSchemas[] = {
    "gaussian_dropout(Tensor input, Tensor rng_state, float sigma) -> Tensor",
    "gaussian_dropout_(Tensor(a!) input, Tensor rng_state, float sigma) -> Tensor(a!)",
};

inline void check_arguments(const Tensor& input, double sigma) {
  kernel_type(input);
  check_not_negative(sigma, "sigma");
}

}  // namespace fused_dropout::gaussian_dropout
