// Argument checks of the ops on continuous noise, shared by the CPU and CUDA bindings.
#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>

#include "checks.h"

namespace fused_dropout {

// Noise itself comes in the types that hold it exactly; a short one would round 1 - 2^-24 to 1.
inline void check_noise_arguments(at::IntArrayRef size, at::ScalarType dtype) {
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble,
                   "noise has dtype float32 or float64, got ", dtype);
  for (const int64_t length : size) {
    TORCH_CHECK_VALUE(length >= 0, "size must be at least 0 everywhere, got ", size);
  }
}

inline void check_gaussian_dropout_arguments(const at::Tensor& input, double sigma) {
  kernel_type(input);
  TORCH_CHECK_VALUE(sigma >= 0.0 && std::isfinite(sigma),
                    "sigma must be at least 0 and finite, got ", sigma);
}

// `other`, called `name`, is the mean or the gradient.
inline void check_gaussian_noise_arguments(const at::Tensor& other, const char* name,
                                           const at::Tensor& variance, double eps) {
  kernel_type(variance);
  check_operand(other, name, variance.sizes(), variance);
  TORCH_CHECK_VALUE(eps >= 0.0 && std::isfinite(eps), "eps must be at least 0 and finite, got ",
                    eps);
}

inline void check_concrete_dropout_arguments(const at::Tensor& input, const at::Tensor& logit_p,
                                             double temperature) {
  kernel_type(input);
  const at::ScalarType wanted = input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK(logit_p.numel() == 1 && logit_p.scalar_type() == wanted,
              "logit_p must have one element of dtype ", wanted, ", got ", logit_p.sizes(), " of ",
              logit_p.scalar_type());
  TORCH_CHECK(logit_p.device() == input.device(), "logit_p must be on ", input.device(), ", got ",
              logit_p.device());
  TORCH_CHECK_VALUE(temperature > 0.0 && std::isfinite(temperature),
                    "temperature must be above 0 and finite, got ", temperature);
}

}  // namespace fused_dropout
