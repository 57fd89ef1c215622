// The operators of Gaussian noise of given mean and variance:
//
//   out = mean + sqrt(variance + eps) * z, z standard normal
//   d_variance = grad_output * z / (2 sqrt(variance + eps))
#pragma once

#include "checks.h"

namespace fused_dropout::gaussian_noise {

constexpr const char* kSchemas[] = {
    "gaussian_noise(Tensor mean, Tensor variance, Tensor rng_state, float eps) -> Tensor",
    "gaussian_noise_d_variance(Tensor grad_output, Tensor variance, Tensor rng_state, float eps)"
    " -> Tensor",
};

// `other`, called `name`, is the mean or the gradient.
inline void check_arguments(const Tensor& other, const char* name, const Tensor& variance,
                            double eps) {
  kernel_type(variance);
  check_operand(other, name, variance.sizes(), variance);
  check_not_negative(eps, "eps");
}

}  // namespace fused_dropout::gaussian_noise
