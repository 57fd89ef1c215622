// The noise operators: the noise itself in row-major order; see common/noise.h.
#pragma once

#include "checks.h"

namespace fused_dropout::noise {

constexpr const char* kSchemas[] = {
    "uniform_noise(Tensor rng_state, SymInt[] size, ScalarType dtype) -> Tensor",
    "normal_noise(Tensor rng_state, SymInt[] size, ScalarType dtype) -> Tensor",
};

// Noise comes in the dtypes that hold it exactly; a short one would round 1 - 2^-24 to 1.
inline Dtype check_arguments(Sizes size, torch::headeronly::ScalarType dtype) {
  using torch::headeronly::ScalarType;
  FUSED_DROPOUT_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                      "noise has dtype float32 or float64, got ", dtype);
  for (const int64_t length : size) {
    FUSED_DROPOUT_CHECK(length >= 0, "size must be at least 0 everywhere, got ", size);
  }
  return dtype == ScalarType::Float ? dtypes().float32 : dtypes().float64;
}

}  // namespace fused_dropout::noise
